"""One study: read, check, crop, resample, compress. Runs in worker processes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from medclip_jax.corpora.study import Study
from medclip_jax.shards.organs import Mask, occupancy, organ_texts, read_masks
from medclip_jax.shards.plan import Item, report_of, says_nothing
from medclip_jax.shards.record import Record, checksum, encode
from medclip_jax.shards.settings import PrepareSettings
from medclip_jax.volumes import VolumeRejected, crop_and_resample, mask_center, read_volume

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
        data, volume_checksum = encode(record, settings.schema)
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
        "bytes": len(data),
        "checksum": checksum(data),
        "volume_checksum": volume_checksum,
    }
    return Outcome(entry, data)


def _make_record(item: Item, settings: PrepareSettings) -> tuple[Record, dict[str, object], tuple[str, ...]]:
    from medclip_jax.reports.statements import statements

    study, schema = item.study, settings.schema
    volume = read_volume(
        study.volume,
        rescale=study.rescale,
        modality=study.modality,
        spacing=study.spacing,
        series=study.series or None,
        kernel=settings.kernel,
        rule=settings.series_rule,
    )
    notes = [*item.notes, *volume.notes]
    wanted = set(schema.organs) | ({settings.crop} - {"center", "box"})
    masks = read_masks(study, wanted) if wanted else {}
    center, more = _crop_center(study, settings, masks)
    notes += more
    prepared, more = crop_and_resample(volume, schema.shape, schema.spacing, center)
    notes += more
    organs = None
    if schema.organs and masks:
        organs, more = occupancy(masks, schema.organs, volume, prepared, schema.cell)
        notes += more
    if schema.organs and not masks:
        notes.append("organs-missing")
    report = report_of(study)
    findings_text, impression, source = _sections(study, report)
    found = _extract(source, schema.findings) if source else dict.fromkeys(schema.findings, 0)
    record = Record(
        id=item.id,
        study=item.study_hash,
        patient=item.patient_hash,
        volume=prepared.voxels,
        report=report,
        findings_text=findings_text,
        impression=impression,
        # A report that says nothing does not say that there is nothing.
        statements=" ".join(statements(found)) if source else "",
        findings=np.array([found[name] for name in schema.findings], np.int8),
        labels=np.array([study.labels.get(name, 0) for name in schema.findings], np.int8),
        measurements=np.array([study.measurements.get(n, np.nan) for n in schema.measurements], np.float32),
        organs=organs,
        organ_sentences=organ_texts(study, source, settings),
    )
    return record, dict(volume.provenance), tuple(dict.fromkeys(notes))


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


def _extract(text: str, findings: tuple[str, ...]) -> dict[str, Int]:
    from medclip_jax.reports.findings import extract

    return {name: int(status) for name, status in extract(text, findings).items()}


def _place(error: BaseException) -> str:
    """Module and line of this library where an error rose, the innermost one."""
    place, trace = "", error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        if module.startswith("medclip_jax"):
            place = f" in {module}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place
