"""Spreadsheets (.xlsx, .xlsm) as tables: one sheet, its cells as the text that Excel would save as CSV.

What a spreadsheet has done to ids is left to be seen by `table_ids`, as it is in a CSV: a number with
more digits than a spreadsheet keeps is written in scientific notation, a date as a date, an error value by
its name.
"""

from __future__ import annotations

import datetime
import io
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medclip_jax.corpora.tables import Row, Table, TableError

if TYPE_CHECKING:
    from openpyxl.workbook import Workbook

SUFFIXES = (".xlsx", ".xlsm")
_EXACT = 10**15
"""A spreadsheet keeps fifteen digits of a number."""

_ZEROS = re.compile(r"0{2,}")


@dataclass
class Sheet(Table):
    """A sheet in memory: `Row.number` counts from the header, `Row.line` is the spreadsheet's own number."""

    _rows: list[tuple[int, list[str]]] = field(default_factory=list)
    _header_line: int = 0

    def rows(
        self, looks_like_row: Callable[[Sequence[str], Sequence[str]], bool] | None = None
    ) -> Iterator[Row]:
        """Every row that holds some text, in order.

        Args:
            looks_like_row: as of other tables; a sheet's rows are never in doubt.

        Raises:
            TableError: text stands in a column without a name to the right of the header.
        """
        self.empty_rows = 0
        width = len(self.header)
        before = self._header_line
        for line, cells in self._rows:
            self.empty_rows += line - before - 1
            before = line
            if any(cell.strip() for cell in cells[width:]):
                raise TableError(
                    f"row {line} of '{self.path}' has more cells than the header: give the columns to the "
                    "right of it a name, or clear them"
                )
            yield Row(line - self._header_line, line, (*cells[:width], *[""] * (width - len(cells))))


def open_sheet(path: Path, name: str | None = None) -> Sheet:
    """Read a sheet of a spreadsheet.

    Args:
        path: of an existing file.
        name: of the sheet, in any case; default: the first one.

    Raises:
        TableError: it is damaged, has no such sheet or no header, or holds formulas without values. Cells are
            not quoted.
    """
    data = path.read_bytes()
    book = _open(data, path)
    sheets = {sheet.title: sheet for sheet in book.worksheets}
    if not sheets:
        raise TableError(f"'{path}' has no sheet with cells: save the table as a sheet, or as CSV")
    title = _choose(tuple(sheets), name, path)
    # Programs other than Excel write a wrong extent, by which rows would be lost.
    sheets[title].reset_dimensions()
    rows, unvalued = _read(sheets[title].iter_rows())
    book.close()
    if unvalued and _has_formulas(data) and (places := _formulas(data, path, title) & unvalued):
        row, column = min(places)
        raise TableError(
            f"sheet '{title}' of '{path}' holds {len(places)} formulas without a value, the first in row "
            f"{row}, column {column}: open the file in Excel or LibreOffice, save it there, and give that"
        )
    rows = [(line, cells) for line, cells in rows if any(cell.strip() for cell in cells)]
    if not rows:
        raise TableError(f"sheet '{title}' of '{path}' is empty: {_other(sheets, title)}")
    header_line, header = rows[0]
    while not header[-1].strip():
        header.pop()
    others = [repr(other) for other in sheets if other != title]
    remarks = () if name is not None or not others else (_which(path, title, others),)
    return Sheet(path, tuple(header), remarks=remarks, _rows=rows[1:], _header_line=header_line)


def is_spreadsheet(data: bytes) -> bool:
    """Whether bytes are those of an .xlsx file, whatever it is called."""
    if not data.startswith(b"PK\x03\x04"):
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return any(name.lower() == "xl/workbook.xml" for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _open(data: bytes, path: Path, *, values: bool = True) -> Workbook:
    import openpyxl

    try:
        with warnings.catch_warnings():
            # About styles, validation and extensions, none of which is text.
            warnings.simplefilter("ignore")
            return openpyxl.load_workbook(
                io.BytesIO(data), read_only=True, data_only=values, keep_links=False
            )
    except Exception as error:  # of many kinds: whatever a damaged part of the file runs into
        raise TableError(
            f"'{path}' cannot be read as a spreadsheet ({type(error).__name__}): copy it again, or open it, "
            "see whether it is complete, and save it as .xlsx or as CSV"
        ) from None


def _choose(titles: Sequence[str], name: str | None, path: Path) -> str:
    if name is None:
        return titles[0]
    for title in titles:
        if title.strip().casefold() == name.strip().casefold():
            return title
    raise TableError(f"'{path}' has no sheet '{name}': it has {', '.join(map(repr, titles))}")


def _which(path: Path, title: str, others: Sequence[str]) -> str:
    return f"of '{path}' the first sheet is read, '{title}'; others: {', '.join(others)} (--sheet)"


def _other(sheets: Sequence[str], title: str) -> str:
    others = [repr(other) for other in sheets if other != title]
    return f"give another one with --sheet ({', '.join(others)})" if others else "it has no other"


def _read(rows: Iterator[Sequence[Any]]) -> tuple[list[tuple[int, list[str]]], set[tuple[int, int]]]:
    """Text of the rows by the spreadsheet's number, and the places of cells that exist without a value."""
    read = []
    unvalued = set()
    for line, cells in enumerate(rows, 1):
        texts = []
        for column, cell in enumerate(cells, 1):
            value = cell.value
            if type(value) is str:
                texts.append(value)
            elif value is None:
                texts.append("")
                if hasattr(cell, "row"):  # not one of those that fill a gap
                    unvalued.add((line, column))
            else:
                texts.append(_text(value, cell))
        read.append((line, texts))
    return read, unvalued


def _text(value: Any, cell: Any) -> str:
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, int | float):
        return _number(value, cell.number_format)
    if isinstance(value, datetime.datetime):
        return value.isoformat(" ") if value.time() != datetime.time() else value.date().isoformat()
    return str(value)


def _number(value: int | float, shown_as: str) -> str:
    if abs(value) < _EXACT and value == int(value):
        whole = str(int(value))
        # A cell that is formatted as 00000 shows the zeros which its number lacks.
        return whole.zfill(len(shown_as)) if _ZEROS.fullmatch(shown_as) else whole
    if abs(value) >= _EXACT:
        return f"{float(value):.14E}"
    return repr(float(value))


def _has_formulas(data: bytes) -> bool:
    """Whether any sheet holds one, by a look that costs less than reading it again."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        sheets = [name for name in archive.namelist() if "worksheets/" in name]
        return any(re.search(rb"<(?:\w+:)?f[ />]", archive.read(name)) for name in sheets)


def _formulas(data: bytes, path: Path, title: str) -> set[tuple[int, int]]:
    """Places of formulas."""
    book = _open(data, path, values=False)
    sheet = book[title]
    sheet.reset_dimensions()
    found = {
        (line, column)
        for line, cells in enumerate(sheet.iter_rows(), 1)
        for column, cell in enumerate(cells, 1)
        if getattr(cell, "data_type", "") == "f"
    }
    book.close()
    return found
