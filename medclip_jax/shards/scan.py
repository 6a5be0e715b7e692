"""One study: read, check, crop, resample, compress. Runs in worker processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from medclip_jax.corpora.study import Series, Study
from medclip_jax.reports.definitions import Findings
from medclip_jax.shards.frames import prepare_frames
from medclip_jax.shards.organs import Mask, occupancy, organ_texts, read_masks
from medclip_jax.shards.plan import Item, report_of, says_nothing
from medclip_jax.shards.record import ORGAN_SENTENCES, VOLUME, checksum, encode
from medclip_jax.shards.series import SeriesSettings
from medclip_jax.shards.settings import PrepareSettings
from medclip_jax.volumes import Volume, VolumeRejected, crop_and_resample, mask_center, read_volume

ACCEPTED, NOTED, REJECTED = "accepted", "accepted-with-note", "rejected-with-reason"


@dataclass(frozen=True)
class Outcome:
    """What became of a study.

    Attributes:
        entry: its line in the manifest.
        record: serialized, None where the study was rejected.
    """

    entry: dict[str, object]
    record: bytes | None = None


def prepare_study(item: Item, settings: PrepareSettings) -> Outcome:
    """Make a study's record. Every input ends accepted, accepted with a note, or rejected with a reason.

    Args:
        item: from the plan.
        settings: resolved.
    """
    entry: dict[str, object] = {
        "row": item.row,
        "id": item.id,
        "study": item.study_hash,
        "patient": item.patient_hash,
        "split": item.split,
    }
    try:
        if item.rejection is not None:
            raise VolumeRejected(*item.rejection)
        record, provenance, notes = _make_record(item, settings)
        spacings = _spacings(record, settings)
        data, checksums = encode(record, settings.schema)
    except VolumeRejected as rejection:
        return Outcome(entry | {"class": REJECTED, "reason": rejection.code, "message": str(rejection)})
    except MemoryError:
        return Outcome(
            entry
            | {
                "class": REJECTED,
                "reason": "out-of-memory",
                "message": "The volume does not fit into memory: prepare it with fewer --workers.",
            }
        )
    except Exception as error:
        # Its text may quote a path. Only the kind of error and where it rose are safe to keep.
        where = f"{type(error).__name__}{_place(error)}"
        message = f"Reading failed with {where}: see whether a viewer opens the file, and report this."
        return Outcome(entry | {"class": REJECTED, "reason": "unreadable", "message": message})
    entry |= {
        "class": NOTED if notes else ACCEPTED,
        "notes": list(notes),
        "provenance": provenance,
        **({"spacing": spacings} if spacings else {}),
        "bytes": len(data),
        "checksum": checksum(data),
        "volume_checksum": _scan_checksum([checksums[series.name] for series in settings.all_series]),
    }
    return Outcome(entry, data)


def _spacings(record: dict[str, Any], settings: PrepareSettings) -> object:
    """mm of a voxel as prepared, where it is the record's own: of the volume, or by name of the series."""
    found = {
        series.name: [round(float(step), 4) for step in record[series.spacing_array]]
        for series in settings.all_series
        if series.spacing_array in record
    }
    return found if settings.series else found.get(VOLUME)


def _scan_checksum(found: list[str]) -> str:
    """One checksum of all scans of a record, by which equal ones are noticed."""
    return found[0] if len(found) == 1 else checksum("".join(found).encode())


def _make_record(
    item: Item, settings: PrepareSettings
) -> tuple[dict[str, Any], dict[str, object], tuple[str, ...]]:
    from medclip_jax.reports.statements import statements

    study, schema = item.study, settings.schema
    notes = list(item.notes)
    wanted = set(schema.organs) | ({settings.crop} - {"center", "box"})
    masks, center = None, None
    scans: dict[str, Volume] = {}
    frames: dict[str, np.ndarray] = {}
    provenance: dict[str, dict[str, object]] = {}
    organs = None
    for series in (one for one in settings.all_series if one.name in {given.name for given in study.series}):
        given = next(given for given in study.series if given.name == series.name)
        if series.frames:
            prepared = prepare_frames(given, series)
            frames |= prepared.arrays
            provenance[series.name] = dict(prepared.provenance)
            notes += prepared.notes
            continue
        scan = _read(given, series, settings)
        found = list(scan.notes)
        if masks is None:  # after the first scan: what is wrong with it is the reason that helps most
            masks = read_masks(study, wanted) if wanted else {}
            center, more = _crop_center(study, settings, masks)
            found += more
        scans[series.name], more = crop_and_resample(scan, series.shape, series.spacing, center)
        found += more
        if series.name == VOLUME and schema.organs and masks:
            organs, more = occupancy(masks, schema.organs, scan, scans[VOLUME], schema.cell)
            found += more
        provenance[series.name] = dict(scan.provenance)
        notes += found if not settings.series else [f"{note}:{series.name}" for note in found]
    if schema.organs and not masks:
        notes.append("organs-missing")
    report = report_of(study)
    findings_text, impression, source = _sections(study, report)
    known = settings.definitions
    found = _extract(source, schema.findings, known) if source else dict.fromkeys(schema.findings, 0)
    record = {
        "id": item.id,
        "study": item.study_hash,
        "patient": item.patient_hash,
        **frames,
        **{name: scan.voxels for name, scan in scans.items()},
        **{
            series.spacing_array: np.array(scans[series.name].spacing, np.float32)
            for series in settings.all_series
            if series.spacing_array and series.name in scans
        },
        "report": report,
        "findings_text": findings_text,
        "impression": impression,
        # A report that says nothing does not say that there is nothing.
        "statements": " ".join(statements(found, known)) if source else "",
        "findings": np.array([found[name] for name in schema.findings], np.int8),
        "labels": np.array([study.labels.get(name, 0) for name in schema.findings], np.int8),
        "measurements": np.array(
            [study.measurements.get(name, np.nan) for name in schema.measurements], np.float32
        ),
        "organs": organs,
    }
    if schema.has_organs:
        record[ORGAN_SENTENCES] = organ_texts(study, source, settings)
    return record, provenance if settings.series else provenance[VOLUME], tuple(dict.fromkeys(notes))


def _read(series: Series, settings: SeriesSettings, choice: PrepareSettings) -> Volume:
    """Read one series of a study."""
    try:
        return read_volume(
            series.path,
            rescale=series.rescale,
            modality=series.modality,
            spacing=series.spacing,
            series=series.uid or None,
            kernel=choice.kernel,
            rule=choice.series_rule,
            percentiles=settings.percentiles,
        )
    except VolumeRejected as rejection:
        if not choice.series:
            raise
        raise VolumeRejected(rejection.code, f"Series '{settings.name}': {rejection}") from None


def _crop_center(
    study: Study, settings: PrepareSettings, masks: dict[str, Mask]
) -> tuple[Float[np.ndarray, " 3"] | None, list[str]]:
    if settings.crop == "center":
        return None, []
    if settings.crop == "box":
        edges = [
            [study.measurements.get(f"box_{axis}_{end}", np.nan) for end in ("min", "max")] for axis in "xyz"
        ]
        if not np.isfinite(edges).all():
            raise VolumeRejected(
                "no-box", "The study has no box to crop to: fill the column, or crop to 'center'."
            )
        low, high = np.array(edges).T
        # World axes are (x right, y front, z up), the crop's are (depth, height, width).
        extent = np.array(settings.shape[::-1]) * np.array(settings.spacing[::-1])
        return (low + high) / 2, ["box-larger-than-crop"] if (high - low > extent).any() else []
    mask, affine = masks.get(settings.crop, (None, None))
    if mask is None or not mask.any():
        raise VolumeRejected(
            "no-crop-organ",
            f"The study shows no {settings.crop} to crop around: crop to 'center', or leave it out.",
        )
    return mask_center(mask, affine), []


def _sections(study: Study, report: str) -> tuple[str, str, str]:
    """Findings text, impression, and what findings are extracted from: no history, no technique."""
    from medclip_jax.reports.sections import split_sections

    found = {name: text for name, text in split_sections(report).items() if not says_nothing(text)}
    found |= {name: text.strip() for name, text in study.sections.items() if not says_nothing(text)}
    findings, impression = found.get("findings", ""), found.get("impression", "")
    # An addendum is read under its title, because it corrects the rest.
    addendum = f"ADDENDUM: {found['addendum']}" if "addendum" in found else ""
    return findings, impression, "\n".join(filter(None, (findings, impression, addendum))) or report


def _extract(text: str, findings: tuple[str, ...], definitions: Findings) -> dict[str, Int]:
    from medclip_jax.reports.findings import extract

    return {name: int(status) for name, status in extract(text, findings, definitions=definitions).items()}


def _place(error: BaseException) -> str:
    """Module and line of this library where an error rose, the innermost one."""
    place, trace = "", error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        if module.startswith("medclip_jax"):
            place = f" in {module}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place
