"""A user's own table of ids, labels, measurements and groups, read and checked before it meets a set."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medclip_jax.corpora.cells import (
    MOST_GROUPS,
    read_group,
    read_label,
    read_number,
    said,
    zero_meaning,
)
from medclip_jax.corpora.columns import COLUMNS, Columns, find_columns, known_names
from medclip_jax.corpora.table_ids import clean_ids
from medclip_jax.corpora.tables import Row, Table, TableError, name_rows, open_table
from medclip_jax.reports.definitions import BUILT_IN, Findings
from medclip_jax.shards.label_tables import Values

ID_COLUMNS: dict[str, tuple[str, ...]] = {
    "id": ("id", "record", "record_id"),
    "scan": COLUMNS["volume"],
    "series": COLUMNS["series"],
    "study": COLUMNS["study"],
    "patient": COLUMNS["patient"],
}
"""Columns of ids, as `columns.COLUMNS`."""

Absent = Literal["0", "-1"]
"""How a table writes that a finding is absent; the other one of the two then means unknown."""


_MINUS_ONE = -2
"""A label that is written -1, and not as a word for absent."""


@dataclass(frozen=True)
class LabelRow:
    """One row of a table, its values read.

    Attributes:
        number: in the table, from 1.
        ids: kind of id (of `ID_COLUMNS`) to text.
        values: in the order of the table's columns.
    """

    number: int
    ids: Mapping[str, str]
    values: Values


@dataclass(frozen=True)
class LabelRows:
    """A table of labels in memory.

    Attributes:
        path: of the file.
        findings: names of its label columns.
        measurements: names of its measurements.
        groups: names of its groups.
        rows: those with an id, in order.
        without_id: numbers of the others.
        remarks: what the user should know, for the screen.
        kinds: columns of ids that it has.
    """

    path: Path
    findings: tuple[str, ...]
    measurements: tuple[str, ...]
    groups: tuple[str, ...]
    rows: tuple[LabelRow, ...]
    without_id: tuple[int, ...]
    remarks: tuple[str, ...]
    kinds: tuple[str, ...]


def read_rows(
    path: Path,
    definitions: Findings = BUILT_IN,
    *,
    absent: Absent | None = None,
    encoding: str | None = None,
    sheet: str | None = None,
) -> LabelRows:
    """Read a table of ids and of columns ``label:``, ``measurement:`` and ``group:``.

    Args:
        path: CSV, TSV or .xlsx.
        definitions: the findings that labels can be of.
        absent: how it writes that a finding is absent; None where one of 0 and -1 does not occur.
        encoding: of its text, as `tables.open_table` takes it.
        sheet: of a spreadsheet.

    Raises:
        TableError: no such file, no column of ids or of values, a cell that cannot be understood, ids that a
            spreadsheet has changed, or labels of 0 and -1 and nothing said of them. Cells are not quoted.
    """
    if not path.is_file():
        raise TableError(f"no table '{path}': give the CSV, TSV or .xlsx file with --table")
    table = open_table(path, encoding=encoding, known=known_names(ID_COLUMNS), sheet=sheet)
    columns = find_columns(table.header, path, True, definitions, ID_COLUMNS)
    _check_columns(columns, table)
    rows = list(table.rows(lambda inside, row: False))
    remarks = [*table.remarks]
    if columns.ignored:
        remarks.append(f"columns that are not read: {', '.join(columns.ignored)}")
    if short := [row.number for row in rows if row.short]:
        remarks.append(
            f"{name_rows(short)} have fewer cells than the header; the missing ones count as empty"
        )
    if table.empty_rows:
        remarks.append(f"{table.empty_rows} empty rows are passed over")
    labels, measured, groups = _read_values(rows, columns, path)
    labels, said_of_zeros = _settled(labels, absent, path)
    remarks += said_of_zeros
    ids = {kind: _ids(rows, columns, kind, path, remarks.append) for kind in ID_COLUMNS}
    found, without_id = [], []
    for place, row in enumerate(rows):
        own = {kind: given[row.number] for kind, given in ids.items() if row.number in given}
        if not set(own) - {"series"}:
            without_id.append(row.number)
            continue
        found.append(LabelRow(row.number, own, (labels[place], measured[place], groups[place])))
    kinds = tuple(kind for kind in ID_COLUMNS if kind in columns.places)
    names = tuple(columns.labels), tuple(columns.measurements), tuple(columns.groups)
    return LabelRows(path, *names, tuple(found), tuple(without_id), tuple(remarks), kinds)


def _check_columns(columns: Columns, table: Table) -> None:
    """Check that the table has ids and values.

    Raises:
        TableError: it has not.
    """
    known = columns.places or columns.labels or columns.measurements or columns.groups
    has = ", ".join(repr(name.strip()) for name in table.header) if known else "none whose name is known"
    if not set(columns.places) - {"series"}:
        raise TableError(
            f"'{table.path}' has no column of ids: name it 'id' (of volumes, studies or patients), 'volume', "
            f"'study' or 'patient'. Its columns are: {has}"
        )
    if not (columns.labels or columns.measurements or columns.groups):
        raise TableError(
            f"'{table.path}' has no column of values: name them 'label:FINDING' (1, 0 or -1, empty where "
            f"unknown), 'measurement:NAME' (numbers) or 'group:NAME' (categories). Its columns are: {has}"
            + (f". Not read: {', '.join(columns.ignored)}" if columns.ignored and known else "")
        )


def _ids(
    rows: Sequence[Row], columns: Columns, kind: str, path: Path, warn: Callable[[str], None]
) -> dict[int, str]:
    if kind not in columns.places:
        return {}
    given = {row.number: text for row in rows if (text := said(row.cells[columns.places[kind]]))}
    return clean_ids(given, columns.names[kind], str(path), warn)


def _read_values(
    rows: Sequence[Row], columns: Columns, path: Path
) -> tuple[list[tuple[str | int, ...]], list[tuple[float, ...]], list[tuple[str, ...]]]:
    """Values of all rows; what cannot be read is listed for all columns at once. Labels keep 0 and -1 apart.

    Raises:
        TableError: some cannot be read.
    """
    faults: dict[tuple[str, str], list[int]] = defaultdict(list)

    def read(row: Row, kind: str, name: str, place: int, reader: Callable, nothing: Any) -> Any:
        text = said(row.cells[place])
        if not text:
            return nothing

        def fail(what: str) -> Exception:
            faults[columns.names[f"{kind}:{name}"], what].append(row.number)
            return _Fault()

        try:
            return reader(text, fail)
        except _Fault:
            return nothing

    found = [
        [
            tuple(read(row, kind, name, place, reader, nothing) for name, place in places.items())
            for row in rows
        ]
        for kind, places, reader, nothing in (
            ("label", columns.labels, _read_label, 0),
            ("measurement", columns.measurements, read_number, math.nan),
            ("group", columns.groups, read_group, ""),
        )
    ]
    for place, name in enumerate(columns.groups):
        values = {row[place] for row in found[2]} - {""}
        if len(values) > MOST_GROUPS:
            what = f"{len(values)} different values, and groups have {MOST_GROUPS} at most"
            faults[columns.names[f"group:{name}"], what] = [row.number for row in rows]
    if faults:
        lines = [
            f"column '{title}', {name_rows(numbers)}: {what}" for (title, what), numbers in faults.items()
        ]
        raise TableError(f"'{path}' has cells that cannot be read:\n  " + "\n  ".join(lines))
    return found[0], found[1], found[2]


def _read_label(text: str, fail: Callable[[str], Exception]) -> int | None:
    label = read_label(text, fail)
    return _MINUS_ONE if label == -1 and re.fullmatch(r"-\d.*", text) else label


class _Fault(Exception):
    """A cell that cannot be read, which is noted already."""


def _settled(
    labels: Sequence[tuple[int | None, ...]], absent: Absent | None, path: Path
) -> tuple[list[tuple[int, ...]], list[str]]:
    """Labels of 1, -1 and 0 for unknown, of those that `cells.read_label` reads, and what is said of it.

    Raises:
        TableError: 0 and -1 both occur, and it is not said which is which.
    """
    there = {label for row in labels for label in row}
    if absent is None and {None, _MINUS_ONE} <= there:
        raise TableError(
            f"the label columns of '{path}' hold 0 and -1, and each can mean absent: give --absent -1 (0 is "
            "then unknown), or --absent 0 (-1 is then unknown, as CheXpert writes uncertain ones)"
        )
    zero, minus, remarks = 0, -1, []
    if absent == "0":
        zero, minus = -1, 0
    elif absent is None and None in there:
        zero = -1 if zero_meaning(there) == "absent" else 0
        word = "absent" if zero else "unknown, because nothing is present, or a word says what is absent"
        remarks.append(f"labels: 0 is read as {word}. If that is not meant, give --absent")
    elif absent is None and _MINUS_ONE in there:
        remarks.append("labels: -1 is read as absent. If it means unknown, give --absent 0")
    meant = {None: zero, _MINUS_ONE: minus}
    return [tuple(meant.get(label, label) for label in row) for row in labels], remarks
