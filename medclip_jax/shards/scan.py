"""One study: read, check, crop, resample, compress. Runs in worker processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from medclip_jax.corpora.study import Series, Study
from medclip_jax.reports.definitions import Findings
from medclip_jax.shards.frames import prepare_frames
from medclip_jax.shards.label_maps import prepare_label_map
from medclip_jax.shards.organs import Mask, occupancy, organ_texts, read_masks
from medclip_jax.shards.plan import Item
from medclip_jax.shards.record import GROUPS, LABEL_MAP, ORGAN_SENTENCES, VOLUME, checksum, encode
from medclip_jax.shards.series import SeriesSettings
from medclip_jax.shards.settings import PrepareSettings
from medclip_jax.shards.texts import Texts, read_texts, withhold
from medclip_jax.volumes import Volume, VolumeRejected, crop_and_resample, mask_center, read_volume
from medclip_jax.volumes.frames import Frames

Observer = Callable[[str, Volume | Frames], None]
"""Looks at scans as they were read."""

ACCEPTED, NOTED, REJECTED = "accepted", "accepted-with-note", "rejected-with-reason"


@dataclass(frozen=True)
class Outcome:
    """What became of a study.

    Attributes:
        entry: its line in the manifest.
        record: serialized, None where the study was rejected.
        report: the text that the record holds, from which a tokenizer may learn.
    """

    entry: dict[str, object]
    record: bytes | None = None
    report: str = ""


def prepare_study(item: Item, settings: PrepareSettings, observe: Observer | None = None) -> Outcome:
    """Make a study's record. Every input ends accepted, accepted with a note, or rejected with a reason.

    Args:
        item: from the plan.
        settings: resolved.
        observe: is given the name of each series and the scan as it was read, before it is cropped.
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
        texts = read_texts(item.study, settings)
        record, provenance, notes = _make_record(item, texts, settings, observe)
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
        **({"redacted": dict(texts.redacted)} if texts.redacted else {}),
        **({"scrubbed": dict(texts.scrubbed)} if texts.scrubbed else {}),
        **({"spacing": spacings} if spacings else {}),
        "bytes": len(data),
        "checksum": checksum(data),
        "volume_checksum": _scan_checksum([checksums[series.name] for series in settings.all_series]),
    }
    return Outcome(entry, data, texts.report)


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
    item: Item, texts: Texts, settings: PrepareSettings, observe: Observer | None
) -> tuple[dict[str, Any], dict[str, object], tuple[str, ...]]:
    from medclip_jax.reports.statements import statements

    study, schema = item.study, settings.schema
    notes = [*item.notes, *_redaction_notes(texts, settings)]
    wanted = set(schema.organs) | ({settings.crop} - {"center", "box"})
    masks, center = None, None
    scans: dict[str, Volume] = {}
    frames: dict[str, np.ndarray] = {}
    provenance: dict[str, dict[str, object]] = {}
    organs = label_map = None
    for series in (one for one in settings.all_series if one.name in {given.name for given in study.series}):
        given = next(given for given in study.series if given.name == series.name)
        if series.frames:
            prepared = prepare_frames(given, series, observe)
            frames |= prepared.arrays
            provenance[series.name] = dict(prepared.provenance)
            notes += prepared.notes
            continue
        scan = _read(given, series, settings)
        if observe is not None:
            observe(series.name, scan)
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
        if series.name == VOLUME and settings.label_maps:
            label_map, more = prepare_label_map(study, settings, scan, scans[VOLUME], masks)
            found += more
        provenance[series.name] = dict(scan.provenance)
        notes += found if not settings.series else [f"{note}:{series.name}" for note in found]
    if schema.organs and not masks:
        notes.append("organs-missing")
    source = texts.source
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
        "report": texts.report,
        "findings_text": texts.findings_text,
        "impression": texts.impression,
        # A report that says nothing does not say that there is nothing.
        "statements": " ".join(statements(found, known)) if source else "",
        "findings": np.array([found[name] for name in schema.findings], np.int8),
        "labels": np.array([study.labels.get(name, 0) for name in schema.findings], np.int8),
        "measurements": np.array(
            [study.measurements.get(name, np.nan) for name in schema.measurements], np.float32
        ),
        "organs": organs,
    }
    if settings.label_maps:
        record[LABEL_MAP] = label_map
    if settings.groups:
        record[GROUPS] = {name: study.groups[name] for name in settings.groups if name in study.groups}
    if schema.has_organs:
        said = organ_texts(study, source, settings)
        # Whether it is normal is told by the text as it is.
        record[ORGAN_SENTENCES] = {
            organ: text | {"text": left}
            for organ, text in said.items()
            if (left := withhold(text["text"], settings).text)
        }
    return record, provenance if settings.series else provenance[VOLUME], tuple(dict.fromkeys(notes))


def _redaction_notes(texts: Texts, settings: PrepareSettings) -> list[str]:
    """A note where nothing is left of a report, or its rejection, as of one that was empty."""
    if texts.report or not texts.redacted:
        return []
    if settings.empty_report == "reject":
        raise VolumeRejected(
            "report-redacted",
            "The report says nothing but what --redact takes out: leave the row out, or keep such volumes "
            "with --empty-report note.",
        )
    return ["report-redacted"]


def _read(series: Series, settings: SeriesSettings, choice: PrepareSettings) -> Volume:
    """Read one series of a study."""
    try:
        return read_volume(
            series.files or series.path,
            rescale=series.rescale,
            modality=series.modality,
            spacing=series.spacing,
            series=series.uid or None,
            kernel=choice.kernel,
            rule=choice.series_rule,
            percentiles=settings.percentiles,
            axes=series.axes or None,
            raw=series.raw,
            channel=series.channel,
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
