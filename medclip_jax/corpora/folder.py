"""Any folder of scans, described by a table: what a hospital uses."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from medclip_jax.corpora.organ_masks import ClassCache, MaskError, find_masks
from medclip_jax.corpora.study import Study
from medclip_jax.corpora.tables import TableError, open_table

__all__ = ["COLUMNS", "TableError", "folder"]

COLUMNS: dict[str, tuple[str, ...]] = {
    "volume": (
        "volume",
        "volume_path",
        "volumename",
        "image",
        "image_path",
        "img_path",
        "scan",
        "path",
        "file",
        "nifti",
    ),
    "series": ("series", "series_uid", "series_instance_uid", "seriesinstanceuid", "series_number"),
    "study": ("study", "study_id", "accession", "accession_number", "exam", "exam_id"),
    "patient": ("patient", "patient_id", "subject", "subject_id"),
    "report": ("report", "report_text", "text", "report_en", "caption"),
    "findings": ("findings", "findings_text", "findings_en"),
    "impression": ("impression", "impressions", "impression_text", "impressions_en", "conclusion"),
    "split": ("split", "subset", "fold"),
    "organs": ("organs", "masks", "mask", "segmentation"),
    "organ_classes": ("organ_classes", "mask_classes", "class_map"),
    "modality": ("modality",),
    "box": ("box", "crop_box"),
    "rescale_slope": ("rescale_slope", "rescaleslope", "slope"),
    "rescale_intercept": ("rescale_intercept", "rescaleintercept", "intercept"),
    "spacing": ("spacing", "spacing_mm"),
}
"""Column to the header names that are understood, in any case, with spaces or dashes for underscores."""

_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
_VALUES = {
    "1": 1,
    "true": 1,
    "yes": 1,
    "present": 1,
    "-1": -1,
    "0": 0,
    "": 0,
    "unknown": 0,
    "absent": -1,
    "no": -1,
    "false": -1,
}
_MISSING = ("", "nan", "none", "null", "n/a", "na")


def folder(
    csv_path: str | os.PathLike, *, root: str | os.PathLike | None = None, reports_elsewhere: bool = False
) -> Iterator[Study]:
    """Read a table of studies.

    Args:
        csv_path: CSV or TSV (by its first line), UTF-8, with a header. ``volume`` and one of ``report``,
            ``findings``, ``impression`` are needed; `docs/data.md` describes every column.
        root: folder that relative paths start from; default: the table's folder.
        reports_elsewhere: the table need not have reports.

    Yields:
        One study for each row, in order. A row without a volume yields ``volume=Path()``.

    Raises:
        TableError: no table, a column is missing, or a cell cannot be understood. Cells of patients are
            not quoted.
    """
    path = Path(csv_path)
    if not path.is_file():
        raise TableError(f"no table '{path}': give the CSV or TSV file with --table")
    root = Path(root) if root is not None else path.parent
    if not root.is_dir():
        raise TableError(f"no folder '{root}': --root must be the folder that the table's paths start from")
    classes: ClassCache = {}
    with open_table(path) as (header, rows):
        columns = _columns(header, path, reports_elsewhere)
        for row, cells in enumerate(rows, start=1):
            yield _study(row, cells, columns, root, path, classes)


def _columns(header: list[str], path: Path, reports_elsewhere: bool) -> dict[str, str]:
    """Our name of a column to the table's."""
    plain = {re.sub(r"[\s\-]+", "_", name.strip().lower()): name for name in header}
    columns: dict[str, str] = {}
    for name, known in COLUMNS.items():
        for candidate in known:
            if candidate in plain and plain[candidate] not in columns.values():
                columns[name] = plain[candidate]
                break
    missing = []
    if "volume" not in columns:
        missing.append("volume (or " + ", ".join(COLUMNS["volume"][1:]) + ")")
    if not reports_elsewhere and not {"report", "findings", "impression"} & set(columns):
        missing.append("report (or findings, impression)")
    if missing:
        raise TableError(
            f"'{path}' lacks the column {' and the column '.join(missing)}. It has: "
            f"{', '.join(repr(name) for name in header) or 'nothing'}. Rename a column, see docs/data.md"
        )
    for name in header:
        kind, _, rest = name.strip().partition(":")
        if kind.lower() in ("label", "measurement") and rest.strip():
            columns[f"{kind.lower()}:{rest.strip()}"] = name
    _check_labels([name.partition(":")[2] for name in columns if name.startswith("label:")], path)
    return columns


def _check_labels(names: list[str], path: Path) -> None:
    if not names:
        return
    from medclip_jax.reports.findings import FINDINGS

    if unknown := [name for name in names if name not in FINDINGS]:
        raise TableError(
            f"'{path}' has labels of unknown findings: {', '.join(unknown)}. Known are "
            f"{', '.join(sorted(FINDINGS))}"
        )


def _study(
    row: int,
    cells: Mapping[str, str | None],
    columns: Mapping[str, str],
    root: Path,
    table: Path,
    classes: ClassCache,
) -> Study:
    def cell(name: str) -> str:
        text = (cells.get(columns[name]) or "").strip() if name in columns else ""
        return "" if text.lower() in _MISSING else text

    def fail(column: str, what: str) -> TableError:
        return TableError(f"row {row} of '{table}', column '{columns[column]}': {what}")

    volume, series = cell("volume"), cell("series")
    volume_id = f"{volume}#{series}" if volume and series else volume
    # A table without patients is accepted, every study its own patient; one with gaps is a mistake.
    study = cell("study") or volume_id or f"row {row}"
    patient = cell("patient")
    if "patient" in columns and not patient:
        raise fail("patient", "empty; fill it in, because splits go by patient")
    labels, measurements = {}, {}
    for name in columns:
        kind, _, rest = name.partition(":")
        text = cell(name) if rest else ""
        if kind == "label" and rest:
            value = _VALUES.get(text.lower().removesuffix(".0"))
            if value is None:
                raise fail(name, "a label is 1 (present), -1 (absent) or 0 or empty (unknown)")
            labels[rest] = value
        elif kind == "measurement" and text:
            measurements[rest] = _number(text, lambda what, name=name: fail(name, what))
    measurements |= _box(cell("box"), lambda what: fail("box", what))
    slope, intercept = (
        _number(cell(name), lambda what, name=name: fail(name, what)) if cell(name) else None
        for name in ("rescale_slope", "rescale_intercept")
    )
    if slope == 0:
        raise fail("rescale_slope", "0 would make every voxel the same: write 1, or leave it empty")
    rescaled = slope is not None or intercept is not None
    split = cell("split").lower()
    if split and split not in _SPLITS:
        raise fail("split", f"must be one of {', '.join(sorted(_SPLITS))}, or empty")
    modality = cell("modality").upper() or "CT"
    if modality not in ("CT", "MR", "MRI"):
        raise fail("modality", "must be CT or MR")
    organs, organ_classes = {}, {}
    if cell("organs"):
        try:
            organs, organ_classes = find_masks(cell("organs"), cell("organ_classes"), root, classes)
        except MaskError as error:
            # A fault of the class map is named even where its column is absent: `organs` then holds it.
            raise fail(error.column if error.column in columns else "organs", str(error)) from None
    return Study(
        volume=root / volume if volume else Path(),
        volume_id=volume_id or f"row {row}",
        study_id=study,
        patient_id=patient or study,
        report=cell("report"),
        sections={name: cell(name) for name in ("findings", "impression") if cell(name)},
        labels=labels,
        measurements=measurements,
        organs=organs,
        organ_classes=organ_classes,
        split=_SPLITS[split] if split else None,
        rescale=(1.0 if slope is None else slope, intercept or 0.0) if rescaled else None,
        modality=modality[:2],
        spacing=_spacing(cell("spacing"), lambda what: fail("spacing", what)),
        series=series,
    )


def _number(text: str, fail) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise fail("must be a number, with a point for the decimals, or empty")
    return number


def _spacing(text: str, fail) -> tuple[float, float, float] | None:
    if not text:
        return None
    numbers = [_number(part, fail) for part in re.split(r"[\s,;x]+", text.strip("[]() "))]
    if len(numbers) != 3 or min(numbers) <= 0:
        raise fail("must be three positive numbers, the mm of a voxel along depth, height and width")
    return tuple(numbers)


def _box(text: str, fail) -> dict[str, float]:
    """Six numbers in RAS mm, as the measurements that `prepare` crops by."""
    if not text:
        return {}
    numbers = [_number(part, fail) for part in re.split(r"[\s,;]+", text.strip("[]() "))]
    if len(numbers) != 6 or any(low > high for low, high in zip(numbers[::2], numbers[1::2], strict=True)):
        raise fail("must be six numbers, x_min x_max y_min y_max z_min z_max, in mm of RAS world coordinates")
    names = [f"box_{axis}_{end}" for axis in "xyz" for end in ("min", "max")]
    return dict(zip(names, numbers, strict=True))
