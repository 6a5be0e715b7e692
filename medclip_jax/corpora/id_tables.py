"""Tables of an archive that are keyed on an id: found by name, checked for their columns, one row an id."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from medclip_jax.corpora.cells import SPLITS, said
from medclip_jax.corpora.table_ids import clean_ids
from medclip_jax.corpora.tables import Row, TableError, name_rows, open_table, plain_name

_SHOWN = 5


@dataclass(frozen=True)
class IdTable:
    """A table in memory, by id.

    Attributes:
        path: of the file, for messages.
        places: our name of a column to its index; columns that the table lacks are not there.
        rows: id to its first row, in the table's order.
        repeated: ids of several rows that differ, to these.
        others: titles of the columns that nobody asked for.
        header: titles of all columns.
        remarks: what the user should know, for the screen.
    """

    path: Path
    places: Mapping[str, int]
    rows: Mapping[str, Row]
    repeated: Mapping[str, tuple[Row, ...]]
    others: tuple[str, ...]
    header: tuple[str, ...]
    remarks: tuple[str, ...] = field(default=())

    def cell(self, row: Row | None, column: str) -> str:
        """Text of a cell, "" where it says nothing, where there is no such column, or no row."""
        place = self.places.get(column)
        return "" if place is None or row is None else said(row.cells[place])

    def fail(self, row: Row, column: str) -> Callable[[str], TableError]:
        """Makes the error of a cell from what it should hold."""
        title = self.header[self.places[column]].strip()

        def error(what: str) -> TableError:
            return TableError(
                f"row {row.number} (line {row.line}) of '{self.path}', column '{title}': {what}"
            )

        return error

    def longest(self, one: str, column: str) -> str:
        """The longest text that the rows of an id have in a column, "" where there is none.

        Of a preliminary reading and a final report under one id, the final one is the longer.
        """
        rows = self.repeated.get(one) or (self.rows.get(one),)
        return max((self.cell(row, column) for row in rows), key=len)

    def split_of(self, one: str) -> str | None:
        """The split of an id; None where its rows name none.

        Raises:
            TableError: another word, or its rows name several.
        """
        rows = self.repeated.get(one) or (self.rows.get(one),)
        splits = {self.split(row) for row in rows} - {None}
        if len(splits) > 1:
            numbers = name_rows(row.number for row in rows)
            raise TableError(
                f"{numbers} of '{self.path}' are of one id, and in several splits: correct them, or take out "
                "those that are wrong"
            )
        return next(iter(splits), None)

    def split(self, row: Row | None) -> str | None:
        """The split that a row's column ``split`` names; None where it is empty.

        Raises:
            TableError: another word.
        """
        word = self.cell(row, "split").lower()
        if not word:
            return None
        if word not in SPLITS:
            raise self.fail(row, "split")(f"must be one of {', '.join(sorted(SPLITS))}, or empty")
        return SPLITS[word]


def read_by_id(
    path: Path, key: Sequence[str], columns: Mapping[str, Sequence[str]], *, needed: Iterable[str] = ()
) -> IdTable:
    """Read a table by the ids of one column.

    Args:
        path: CSV, TSV or .xlsx.
        key: names of the column with ids that are understood, as `tables.plain_name` gives them.
        columns: our name of a column to the names that are understood, likewise.
        needed: columns without which the table is of no use.

    Returns:
        Its rows; of one id, rows that say the same in all these columns count once.

    Raises:
        TableError: a column is missing, an id is empty, or a spreadsheet has changed the ids. Cells are not
            quoted.
    """
    understood = {name: column for column, names in {"": key, **columns}.items() for name in names}
    table = open_table(path, known=understood, option=None)
    places: dict[str, int] = {}
    others = []
    for place, title in enumerate(table.header):
        column = understood.get(plain_name(title))
        if column is not None and column not in places:
            places[column] = place
        elif title.strip():
            others.append(title.strip())
    missing = [key if column == "" else columns[column] for column in ("", *needed) if column not in places]
    if missing:
        wanted = " and ".join(f"the column '{names[0]}'" for names in missing)
        has = ", ".join(repr(title.strip()) for title in table.header) or "none"
        raise TableError(f"'{path}' lacks {wanted}. Its columns are {has}: is it the right file?")
    own = places.pop("")
    rows = list(table.rows(lambda inside, outer: _looks_like_id(inside[own], outer[own])))
    if empty := [row.number for row in rows if not said(row.cells[own])]:
        title = table.header[own].strip()
        raise TableError(f"{name_rows(empty)} of '{path}' have no '{title}': fill it in, or take them out")
    remarks: list[str] = list(table.remarks)
    ids = clean_ids({row.number: said(row.cells[own]) for row in rows}, table.header[own].strip(), str(path),
                    remarks.append)  # fmt: skip
    by_id: dict[str, list[Row]] = defaultdict(list)
    again = 0
    for row in rows:
        same = [row.cells[place] for place in places.values()]
        held = by_id[ids[row.number]]
        if any(same == [other.cells[place] for place in places.values()] for other in held):
            again += 1
        else:
            held.append(row)
    if again:
        remarks.append(f"'{path.name}': {again} rows repeat another one word for word, and count once")
    return IdTable(
        path,
        places,
        {one: held[0] for one, held in by_id.items()},
        {one: tuple(held) for one, held in by_id.items() if len(held) > 1},
        tuple(others),
        table.header,
        tuple(remarks),
    )


def find_by_name(root: Path, files: Iterable[str], pattern: str, published: str, what: str) -> Path:
    """The file of an archive that goes by a name.

    Args:
        root: that the files' paths start from.
        files: of `archive.list_files`.
        pattern: regular expression of the name, in any case.
        published: the name that the archive gives it, for the message.
        what: it holds.

    Returns:
        The one that lies highest; among those the last by name, which has the latest date.

    Raises:
        TableError: there is none.
    """
    found = find_all_by_name(files, pattern)
    if not found:
        raise TableError(
            f"'{root}' holds no {published} ({what}), neither itself nor in a folder below: give --root the "
            "folder that the archive was unpacked to"
        )
    return root / found[0]


def find_all_by_name(files: Iterable[str], pattern: str) -> list[str]:
    """Files whose name matches, those that lie highest first, and among them the last by name."""
    wanted = re.compile(pattern, re.IGNORECASE)
    found = [file for file in files if wanted.fullmatch(PurePosixPath(file).name)]
    return sorted(sorted(found, reverse=True), key=lambda file: file.count("/"))


def check_spelling(ids: Iterable[str], what: str, others: Iterable[str], other_what: str) -> None:
    """Check that ids which have no partner do not differ from one in leading zeros or capitals alone.

    Args:
        ids: of one side.
        what: they are, with the file or folder that holds them.
        others: of the other side.
        other_what: likewise.

    Raises:
        TableError: some do. Ids are not quoted.
    """
    left, right = set(ids), set(others)
    loose = {_loosely(one) for one in right - left}
    torn = [one for one in left - right if _loosely(one) in loose]
    if torn:
        raise TableError(
            f"{len(torn)} ids of {what} differ from those of {other_what} in leading zeros or capitals "
            "alone: a spreadsheet or a data frame has read one side as numbers. Take that file again from "
            "the archive, or save it with the ids as text"
        )


NOT_IN_ARCHIVE = (
    "not-in-archive",
    "The archive's tables have no row of this volume, so that nobody knows whose it is and in which split: "
    "leave it out, or take the tables of the release that it is of.",
)
"""Rejection of a volume without a row."""

SEVERAL_REPORTS = "report-of-several"
"""Note of a study whose report is one of several that differ."""


def few(ids: Sequence[str]) -> str:
    """The first few of some ids, and how many more there are."""
    more = len(ids) - _SHOWN
    return ", ".join(ids[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _loosely(text: str) -> str:
    return text.casefold().lstrip("0")


def _looks_like_id(text: str, like: str) -> bool:
    """Whether a line inside a quoted cell begins a row of its own: it has an id spelled as this row's is."""

    def pattern(name: str) -> str:
        return re.sub(r"[0-9a-f]", "0", name.strip().casefold())

    return any(map(str.isdigit, text)) and len(like.strip()) > 3 and pattern(text) == pattern(like)
