"""A table of studies made from the DICOM headers of an archive, joined with a table of reports."""

from __future__ import annotations

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medclip_jax.corpora.columns import COLUMNS
from medclip_jax.corpora.tables import TableError, open_table, plain_name
from medclip_jax.volumes.dicom_archive import Archive
from medclip_jax.volumes.dicom_selection import LeftOut, SeriesChoice, select_series
from medclip_jax.volumes.dicom_survey import FoundSeries

KEYWORDS = (
    "PatientID", "StudyInstanceUID", "AccessionNumber", "StudyDate", "SeriesNumber", "SeriesDescription",
    "BodyPartExamined", "ImageType",
)  # fmt: skip
"""Elements that stand in the table besides what `FoundSeries` knows."""

LEFT_OUT_COLUMNS = ("path", "series", "accession", "code", "what_to_do")

_REPORT_KEYS = (
    *COLUMNS["study"],
    "accessionnumber",
    "accession_no",
    "study_uid",
    "study_instance_uid",
    "studyinstanceuid",
)

_NO_VOLUMES = ("several-phases", "single-slice", "missing-slices", "uneven-gaps", "sheared-grid")
"""Why series of frames are no volumes, and are none the worse for it."""

_NOT_UTF8 = "Rename the folder: a table cannot hold its name."


@dataclass
class Index:
    """Rows of a table of studies.

    Attributes:
        rows: column to cell, one for each series that can be prepared.
        left_out: `LEFT_OUT_COLUMNS` to cell, one for each series or report that stands in no row.
    """

    rows: list[dict[str, str]] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)

    def leave_out(self, path: str, series: str, accession: str, code: str, what_to_do: str) -> None:
        """List what stands in no row, and why."""
        cells = (path, series, accession, code, what_to_do)
        self.left_out.append(dict(zip(LEFT_OUT_COLUMNS, cells, strict=True)))

    def leave_out_series(self, left: LeftOut) -> None:
        """List a series that is not wanted, or cannot be used."""
        found = left.series
        accession = found.values["AccessionNumber"]
        self.leave_out(place_of(found), found.uid or found.key, accession, left.code, left.message)

    def counts(self) -> Counter[str]:
        """Code to the number of what was left out for it."""
        return Counter(entry["code"] for entry in self.left_out)


def make_index(series: Sequence[FoundSeries], choice: SeriesChoice) -> Index:
    """One row for each series that is wanted and can become a volume, as far as headers tell.

    Args:
        series: of the archive, with `KEYWORDS` among their values.
        choice: which of them are wanted.
    """
    index = Index()
    taken, left = select_series(series, choice)
    for found in taken:
        path, name = place_of(found), found.uid or found.key
        if _is_utf8(path):
            index.rows.append(_row(found, path, name))
        else:
            index.leave_out(path, name, found.values["AccessionNumber"], "name-not-utf8", _NOT_UTF8)
    for item in left:
        index.leave_out_series(item)
    return index


def make_frame_index(series: Iterable[FoundSeries], modality: str = "MR") -> Index:
    """One row for each series of slices with any number of phases, for `corpora.cmr`; its name is left open.

    Args:
        series: of the archive, with `KEYWORDS` among their values.
        modality: of the series.
    """
    index = Index()
    for found in series:
        path, accession = place_of(found), found.values["AccessionNumber"]
        where = (path, found.uid or found.key, accession)
        if found.modality != modality:
            index.leave_out(*where, "wrong-modality", f"It is no {modality}: see --modality.")
        elif found.facts is None and found.code not in _NO_VOLUMES:
            index.leave_out(*where, found.code, found.message)
        elif not _is_utf8(path):
            index.leave_out(*where, "name-not-utf8", _NOT_UTF8)
        else:
            index.rows.append(_frame_row(found, path))
    return index


def _frame_row(found: FoundSeries, path: str) -> dict[str, str]:
    values = found.values
    slices = len(np.unique(np.round(found.positions, 1), axis=0))
    return {
        "patient": values["PatientID"] or f"unknown-{values['StudyInstanceUID'] or found.key}",
        "study": values["AccessionNumber"] or values["StudyInstanceUID"] or found.key,
        "series": "",
        "path": path,
        "series_uid": found.uid or found.key,
        "modality": found.modality,
        "description": values["SeriesDescription"],
        "slices": str(slices),
        "phases": f"{len(found.positions) / slices:.3g}",
        "number": values["SeriesNumber"],
        "study_instance_uid": values["StudyInstanceUID"],
        "study_date": values["StudyDate"],
        "image_type": values["ImageType"].strip("[]").replace("'", "").replace(", ", "\\"),
    }


def list_unread(index: Index, archive: Archive) -> None:
    """List the files and folders of an archive that no series has, each with its reason.

    Args:
        index: is added to.
        archive: that was read.
    """
    for folder in archive.closed:
        index.leave_out(
            str(folder), "", "", "unreadable", "The folder cannot be opened: fix its permissions."
        )
    for path in archive.unopened:
        text = "The file cannot be opened: fix its permissions. Its series may lack it."
        index.leave_out(str(path), "", "", "unreadable-file", text)
    for path in archive.damaged:
        text = "The file is damaged, and nobody knows its series: copy it again. Its series may lack it."
        index.leave_out(str(path), "", "", "damaged-file", text)
    for path in archive.copies:
        index.leave_out(str(path), "", "", "copy", "The file repeats another one of the archive.")


def join_reports(index: Index, table: Path, *, key: str | None = None, encoding: str | None = None) -> Index:
    """Give rows the cells of a table of reports, by accession number, else by StudyInstanceUID.

    Args:
        index: of `make_index`.
        table: CSV or TSV, one row for each examination.
        key: its column of accession numbers; default: one of the names that are understood.
        encoding: of the table; default: what its first bytes tell, else UTF-8.

    Returns:
        The rows that have a report. Series without one (`no-report`), reports without a series
        (`report-without-series`), accession numbers with several reports (`several-reports`) or patients
        (`several-patients`) are among those left out.

    Raises:
        TableError: no such table, or no such column.
    """
    reports, names, written = _read_reports(table, key, encoding)
    joined = Index(left_out=list(index.left_out))
    owners = defaultdict(set)
    for row in index.rows:
        for number in _numbers(row):
            owners[number].add(row["patient"])
    used: set[str] = set()
    for row in index.rows:
        number = next((number for number in _numbers(row) if number in reports), None)
        where = (row.get("volume") or row["path"], row.get("series_uid") or row["series"], row["study"])
        if number is None:
            joined.leave_out(*where, "no-report", "The table of reports has no row of this examination.")
            continue
        used.add(number)
        texts = reports[number]
        if len(texts) > 1:
            text = f"The table has {len(texts)} different rows of this examination: keep one, or join them."
            joined.leave_out(*where, "several-reports", text)
        elif len(owners[number]) > 1:
            text = "Patients share this accession number, so that nobody knows whose the report is."
            joined.leave_out(*where, "several-patients", text)
        else:
            cells = zip(names, texts[0], strict=True)
            joined.rows.append(row | {name: cell for name, cell in cells if name not in row})
    for number in reports:
        if number not in used:
            text = "No series that can be prepared has this number: look for it among those left out."
            joined.leave_out("", "", written[number], "report-without-series", text)
    return joined


def write_index(index: Index, out: Path, left_out: Path) -> None:
    """Write both tables, readable by their owner only: they name patients.

    Args:
        index: what to write.
        out: CSV of the rows.
        left_out: CSV of what stands in no row.
    """
    names = list(dict.fromkeys(name for row in index.rows for name in row))
    _write(out, names, index.rows)
    write_left_out(index.left_out, left_out)


def write_left_out(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Write what stands in no row, readable by its owner only.

    Args:
        rows: as `Index.left_out`.
        path: CSV.
    """
    _write(path, LEFT_OUT_COLUMNS, rows)


def _row(found: FoundSeries, path: str, name: str) -> dict[str, str]:
    values, facts, geometry = found.values, found.facts, found.geometry
    kernel = " ".join(found.kernels)
    return {
        "volume": path,
        "series": name,
        "patient": values["PatientID"] or f"unknown-{values['StudyInstanceUID'] or found.key}",
        "study": values["AccessionNumber"] or values["StudyInstanceUID"] or found.key,
        "modality": found.modality,
        "study_instance_uid": values["StudyInstanceUID"],
        "study_date": values["StudyDate"],
        "key": found.key,
        "number": values["SeriesNumber"],
        "description": values["SeriesDescription"],
        "body_part": values["BodyPartExamined"],
        "kernel": kernel,
        "kernel_class": facts.kernel or "",
        "image_type": values["ImageType"].strip("[]").replace("'", "").replace(", ", "\\"),
        "slices": str(facts.slices),
        "gap_mm": f"{facts.gap:g}",
        "extent_mm": f"{facts.extent:g}",
        "thickness_mm": f"{geometry['thickness_mm']:g}" if "thickness_mm" in geometry else "",
        "rows": str(geometry["rows"]),
        "columns": str(geometry["columns"]),
        "pixel_mm": f"{geometry['row_mm']:g} {geometry['column_mm']:g}",
        "orientation": "axial" if facts.is_axial else "other",
        "derived": "yes" if facts.is_derived or facts.is_projection else "no",
    }


def place_of(found: FoundSeries) -> str:
    """What the table names as the volume: a file where one holds all, else the folder."""
    paths = found.paths
    return os.path.abspath(paths[0] if len(paths) == 1 else found.folder)


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _numbers(row: Mapping[str, str]) -> Iterator[str]:
    """By what an examination can be named in a table of reports."""
    yield from (_plain_number(row[name]) for name in ("study", "study_instance_uid") if row[name])


def _plain_number(text: str) -> str:
    return text.strip().casefold()


def _read_reports(
    path: Path, key: str | None, encoding: str | None
) -> tuple[dict[str, list[tuple[str, ...]]], list[str], dict[str, str]]:
    """Number to the different rows that have it; the names of their cells; numbers as they are written."""
    if not path.is_file():
        raise TableError(f"no table '{path}': give a CSV or TSV file with --reports")
    table = open_table(path, encoding=encoding, known=_REPORT_KEYS)
    plain = [plain_name(name) for name in table.header]
    wanted = [plain_name(key)] if key else [name for name in _REPORT_KEYS if name in plain]
    if not wanted or wanted[0] not in plain:
        told = ", ".join(repr(name.strip()) for name in table.header) or "nothing"
        raise TableError(
            f"'{path}' has no column of accession numbers. It has: {told}. Name it with --reports-key"
        )
    place = plain.index(wanted[0])
    reports: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    written: dict[str, str] = {}
    for row in table.rows(lambda inside, cells: len(inside[place].strip()) == len(cells[place].strip()) > 0):
        number = _plain_number(row.cells[place])
        written.setdefault(number, row.cells[place].strip())
        cells = tuple(cell for other, cell in enumerate(row.cells) if other != place)
        if number and cells not in reports[number]:
            reports[number].append(cells)
    names = [name.strip() for other, name in enumerate(table.header) if other != place]
    return dict(reports), names, written


def _write(path: Path, names: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    with open(
        partial,
        "w",
        encoding="utf-8",
        errors="backslashreplace",
        newline="",
        opener=lambda name, flags: os.open(name, flags | os.O_EXCL, 0o600),
    ) as opened:
        table = csv.DictWriter(opened, names, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    os.replace(partial, path)
