"""Studies of several MR series, described by a table with one row for each series."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from medclip_jax.corpora.columns import COLUMNS
from medclip_jax.corpora.folder import StudyTable, TableReader, read_table
from medclip_jax.corpora.study import Series, Study
from medclip_jax.corpora.tables import Row, TableError, name_rows, plain_name
from medclip_jax.reports.definitions import BUILT_IN, Findings

SERIES = ("cine_lax", "cine_sa", "lge_sa", "lge_lax", "lge_2ch", "lge_3ch")
"""The series of CMR-CLIP in the order in which the model sees them; studies may have others, or not all."""

_UNREAD = (
    "organs",
    "organ_classes",
    "label_map",
    "label_classes",
    "box",
    "rescale_slope",
    "rescale_intercept",
)

_CMR_COLUMNS: dict[str, tuple[str, ...]] = {
    **{name: names for name, names in COLUMNS.items() if name not in _UNREAD},
    "volume": ("path", "file", "image", "image_path", "nifti", "volume"),
    "name": ("series", "view", "series_name"),
    "series": ("series_uid", "series_instance_uid", "seriesinstanceuid", "series_number"),
}
"""As `columns.COLUMNS`; `series` is the DICOM series, and `name` which of the study's series a row is."""


def cmr(
    csv_path: str | os.PathLike,
    *,
    root: str | os.PathLike | None = None,
    reports_elsewhere: bool = False,
    encoding: str | None = None,
    sheet: str | None = None,
    definitions: Findings = BUILT_IN,
) -> StudyTable:
    """Read a table of series and put the series of a study together.

    Args:
        csv_path: as for `corpora.folder.folder`, and so are the others. The columns ``study``, ``series``
            (its name: one of `SERIES` or any other) and ``path`` are needed; what else a study has may
            stand in one of its rows or in all.

    Returns:
        One study for each patient and study id, in the order of their first rows.

    Raises:
        TableError: as `corpora.folder.folder`; or a row without study, or none with a series.
    """
    table = read_table(
        csv_path,
        _SeriesReader,
        root=root,
        reports_elsewhere=reports_elsewhere,
        encoding=encoding,
        sheet=sheet,
        definitions=definitions,
    )
    return join_series(table)


class _SeriesReader(TableReader):
    """Reads rows that are a series each."""

    columns: ClassVar[Mapping[str, Sequence[str]]] = _CMR_COLUMNS
    modality: ClassVar[str] = "MR"

    def _rows(self) -> list[Row]:
        places = self._columns.places
        for column, what in (("study", "which rows are one study"), ("name", "which series a row is")):
            if column not in places:
                raise TableError(
                    f"'{self._table.path}' lacks the column {_CMR_COLUMNS[column][0]!r}, which says {what}: "
                    "see docs/how-to/cardiac-mr.md"
                )
        given = super()._rows()
        rows = [row for row in given if self._cell(row, "name")]
        if unnamed := len(given) - len(rows):
            if not rows:
                raise TableError(
                    f"'{self._table.path}' names no series: fill in the column "
                    f"'{self._columns.names['name']}', such as {', '.join(SERIES)}"
                )
            self._remark(f"{unnamed} rows name no series, and are passed over")
        for row in rows:
            if not self._cell(row, "study"):
                raise self._fail(row, "study", "empty; every row needs the id of its study")
        if "patient" not in places:
            return rows
        # A patient may stand in one row of the study alone; where studies are numbered anew for each
        # patient, nobody knows whose the others are, and the reader says that the cell is empty.
        patients = defaultdict(set)
        for row in rows:
            if patient := self._cell(row, "patient"):
                patients[self._cell(row, "study")].add(patient)
        return [self._with_patient(row, places["patient"], patients) for row in rows]

    def _with_patient(self, row: Row, place: int, patients: Mapping[str, set[str]]) -> Row:
        known = patients[self._cell(row, "study")]
        if self._cell(row, "patient") or len(known) != 1:
            return row
        return replace(row, cells=(*row.cells[:place], *known, *row.cells[place + 1 :]))

    def _series_name(self, row: Row) -> str:
        name = plain_name(self._cell(row, "name"))
        if not name.isidentifier():
            raise self._fail(row, "name", "must be a name of letters, digits and _, such as cine_sa")
        return name

    def _check_reports(self, studies: Sequence[Study]) -> None:
        """Where rows of a study differ, `join_series` rejects it."""


def join_series(table: StudyTable) -> StudyTable:
    """Put studies of one series each together by patient and study.

    What a study says may stand in one row or in several; rows that contradict each other reject it, and so
    does a series that stands in several studies. Of several rows of one series of a study the first counts,
    the others are counted in a remark and noted.

    Args:
        table: a study for each row.
    """
    groups: dict[tuple[str, str], list[Study]] = defaultdict(list)
    claims: dict[tuple[Path, str], set[tuple[str, str]]] = defaultdict(set)
    for study in table.studies:
        owner = (study.patient_id, study.study_id)
        groups[owner].append(study)
        if study.has_scan:
            claims[study.path, study.series[0].uid].add(owner)
    shared = {place for place, owners in claims.items() if len(owners) > 1}
    repeated: list[int] = []
    studies = tuple(_join(owner, rows, repeated, shared) for owner, rows in groups.items())
    counts = Counter(series.name for study in studies for series in study.series if study.has_scan)
    told = ", ".join(f"{name} {counts[name]}" for name in in_order(counts))
    remarks = [*table.remarks, f"{len(table)} rows are {len(studies)} studies, with these series: {told}"]
    if repeated:
        remarks.append(
            f"{name_rows(repeated)} name a series that an earlier row of the study names already: the first "
            "row counts, put the one that you want there"
        )
    owners = Counter(study.study_id for study in studies)
    if several := sum(count > 1 for count in owners.values()):
        remarks.append(
            f"{several} study ids stand beside several patients, and count as studies of their own: if that "
            "is not meant, correct the ids"
        )
    return replace(table, studies=studies, remarks=tuple(remarks))


def in_order(names: Iterable[str]) -> list[str]:
    """Names of series, those of `SERIES` first, in its order."""
    return sorted(names, key=lambda name: (SERIES.index(name) if name in SERIES else len(SERIES), name))


def _join(
    owner: tuple[str, str], rows: Sequence[Study], repeated: list[int], shared: Collection[tuple[Path, str]]
) -> Study:
    """One study of its rows; those that repeat a series are added to `repeated`."""
    first = rows[0]
    differing: list[str] = []

    def common(name: str, read: Callable[[Study], Any], nothing: Any) -> Any:
        said = {" ".join(str(read(row)).split()): read(row) for row in rows if read(row) != nothing}
        if len(said) > 1:
            differing.append(name)
        return next(iter(said.values()), nothing)

    def common_items(name: str, read: Callable[[Study], Mapping[str, Any]], nothing: Any) -> dict[str, Any]:
        keys = dict.fromkeys(key for row in rows for key in read(row))
        return {
            key: common(f"{name}{key}", lambda row, key=key: read(row).get(key, nothing), nothing)
            for key in keys
        }

    series: dict[str, Series] = {}
    notes: list[str] = []
    for row in rows:
        (one,) = row.series
        if not row.has_scan:
            continue
        if one.name in series:
            repeated.append(row.row)
            notes.append(f"series-repeated:{one.name}")
            continue
        series[one.name] = one
    joined = replace(
        first,
        series=tuple(series[name] for name in in_order(series)) or first.series,
        record_id=json.dumps(owner),
        report=common("report", lambda row: row.report, ""),
        sections=common_items("", lambda row: row.sections, ""),
        labels=common_items("label:", lambda row: row.labels, 0),
        measurements=common_items("measurement:", lambda row: row.measurements, None),
        groups=common_items("group:", lambda row: row.groups, None),
        split=common("split", lambda row: row.split, None),
        notes=tuple(dict.fromkeys(notes)),
    )
    if taken := [one.name for one in joined.series if (one.path, one.uid) in shared]:
        message = (
            f"The file of {', '.join(taken)} stands in rows of different patients or studies, and nobody can "
            "tell which is right: correct the table."
        )
        return replace(joined, rejection=("volume-in-several-studies", message))
    if not differing:
        return joined
    message = (
        f"The {len(rows)} rows of the study contradict each other in {', '.join(differing)}: correct them, "
        "or fill in one row alone."
    )
    return replace(joined, rejection=("rows-differ", message))
