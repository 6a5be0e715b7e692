"""Tables as people have them: encoding and delimiter are found, and no row is lost in a quoted cell."""

from __future__ import annotations

import codecs
import csv
import io
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

DELIMITERS = ",;\t|"

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with that of UTF-16, so it comes first
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SPREADSHEET = (
    "is a spreadsheet of a kind that is not read, or protected by a password: save it as .xlsx without one, "
    "or as CSV, in Excel as 'CSV UTF-8 (comma delimited)', and give that"
)
_OLE = b"\xd0\xcf\x11\xe0"
"""Begins Excel's older files, and new ones that a password protects."""

_OTHER_KINDS = (
    (b"PK\x03\x04", "is an archive: unpack it, and give the table in it"),
    (_OLE, _SPREADSHEET),
    (b"\x1f\x8b", "is compressed: unpack it (gunzip) and give the CSV or TSV file"),
    (b"PAR1", "is a Parquet file: save it as CSV and give that"),
    (b"%PDF", "is a PDF: give a CSV or TSV file"),
)
_INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u200c\u200d\u2060"))


class TableError(ValueError):
    """A table that cannot be used; the message names the row or column and holds the fix."""


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        number: from 1, the header not counted, empty rows counted: one less than a spreadsheet's number.
        line: of the file, where the row begins.
        cells: as many as the header has.
        short: whether the file has fewer; the missing ones are empty.
    """

    number: int
    line: int
    cells: tuple[str, ...]
    short: bool = False


@dataclass
class Table(ABC):
    """A table in memory.

    Attributes:
        path: of the file, for messages.
        header: names of the columns, as the file writes them.
        empty_rows: how many rows without any text `rows` has passed over.
        remarks: what the user should know of how it was read.
    """

    path: Path
    header: tuple[str, ...]
    empty_rows: int = 0
    remarks: tuple[str, ...] = ()

    @abstractmethod
    def rows(self, looks_like_row: Callable[[Sequence[str], Sequence[str]], bool]) -> Iterator[Row]:
        """Every row that holds some text, in order.

        Args:
            looks_like_row: takes the cells of a line that lies inside a quoted cell of a row, and those of
                the row; says whether the line is a row of its own, which a stray quote has swallowed.

        Raises:
            TableError: a row cannot be understood. Cells are not quoted.
        """


@dataclass
class TextTable(Table):
    """A CSV or TSV in memory.

    Attributes:
        delimiter: that was found.
        encoding: that was found or given.
    """

    delimiter: str = ","
    encoding: str = "utf-8"
    _lines: list[str] = field(default_factory=list)
    _header_lines: int = 0

    def rows(self, looks_like_row: Callable[[Sequence[str], Sequence[str]], bool]) -> Iterator[Row]:
        """Every row that holds some text, in order.

        Args:
            looks_like_row: takes the cells of a line that lies inside a quoted cell of a row, and those of
                the row; says whether the line is a row of its own, which a stray quote has swallowed. It is
                called only where the number of cells is that of the header.

        Raises:
            TableError: a quote without its partner, more cells than the header, or a row of a single cell.
                Cells are not quoted.
        """
        self.empty_rows = 0
        reader = csv.reader(
            self._lines[self._header_lines :], delimiter=self.delimiter, skipinitialspace=True, strict=True
        )
        number, before = 0, 0
        width = len(self.header)
        while True:
            number += 1
            line = self._header_lines + before + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise self._quote_error(error, number, line, self._header_lines + reader.line_num) from None
            swallowed = range(line + 1, self._header_lines + reader.line_num + 1)
            before = reader.line_num
            if not any(cell.strip() for cell in cells):
                self.empty_rows += 1
                continue
            while len(cells) > width and not cells[-1].strip():  # a delimiter at the end of every line
                cells.pop()
            place = f"row {number} (line {line}) of '{self.path}'"
            if len(cells) > width:
                raise TableError(
                    f"{place} has more cells than the header: put texts that hold a {self._delimiter_name()} "
                    "or a line break into double quotes"
                )
            if len(cells) == 1 < width:
                raise TableError(
                    f"{place} has one cell, the header has {width}: put texts that hold a line break into "
                    f"double quotes, or write the {self._delimiter_name()} of the empty cells"
                )
            for other in swallowed:
                inside = next(csv.reader([self._lines[other - 1]], delimiter=self.delimiter), [])
                if len(inside) == width and looks_like_row(inside, cells):
                    raise TableError(
                        f"{place}: line {other} looks like a row, but it lies inside a double quote that "
                        f"opens in line {line} or later and is not closed before it. Close the quote, take "
                        'it out, or write a quote that is part of the text twice ("")'
                    )
            short = len(cells) < width
            yield Row(number, line, (*cells, *[""] * (width - len(cells))), short)

    def _delimiter_name(self) -> str:
        return "tab" if self.delimiter == "\t" else repr(self.delimiter)

    def _quote_error(self, error: csv.Error, number: int, first: int, last: int) -> TableError:
        place = f"row {number} (line {first}) of '{self.path}'"
        if "unexpected end of data" in str(error):
            lines = f"lines {first + 1} to {last}" if last > first + 1 else f"line {last}"
            taken = f": {lines} would become part of that cell" if last > first else ""
            return TableError(
                f"{place}: a double quote opens a cell and is never closed{taken}. Close it, or take it out"
            )
        if "expected after" in str(error):
            return TableError(
                f"{place}: in line {last} there is text behind a closing double quote. Write a quote that is "
                f'part of a text twice (""), and see that the quote that opens in line {first} is meant'
            )
        return TableError(f"{place} cannot be read ({error}): save the table again as CSV")


def open_table(
    path: Path,
    *,
    encoding: str | None = None,
    known: Collection[str] = (),
    option: str | None = "--encoding",
    sheet: str | None = None,
) -> Table:
    """Read a table into memory.

    Args:
        path: of an existing file.
        encoding: of its text; default: what its first bytes tell (UTF-8, UTF-16 and UTF-32 with a byte
            order mark), else UTF-8.
        known: names of columns, as `plain_name` gives them. The delimiter (comma, semicolon, tab or ``|``)
            is the one by which the first line holds most of them, then the one that gives most columns.
        option: of the command, which sets the encoding, for messages; None where it has none.
        sheet: of a spreadsheet (.xlsx, .xlsm), which one; default: its first.

    Raises:
        TableError: another kind of spreadsheet, another encoding, or no table. Cells are not quoted.
    """
    from medclip_jax.corpora import spreadsheets

    data = path.read_bytes()
    if path.suffix.lower() in spreadsheets.SUFFIXES or spreadsheets.is_spreadsheet(data):
        if data.startswith(_OLE):
            raise TableError(f"'{path}' {_SPREADSHEET}")
        if encoding is not None and option is not None:
            raise TableError(f"'{path}' is a spreadsheet, whose encoding is known: leave out {option}")
        return spreadsheets.open_sheet(path, sheet)
    if sheet is not None:
        raise TableError(f"'{path}' is no spreadsheet (.xlsx): leave out --sheet")
    if path.suffix.lower() in (".xls", ".ods", ".numbers"):
        raise TableError(f"'{path}' {_SPREADSHEET}")
    for start, kind in _OTHER_KINDS:
        if data.startswith(start):
            raise TableError(f"'{path}' {kind}")
    text, encoding = _decode(data, path, encoding, option)
    if (place := text.find("\0")) >= 0:
        give = f"give its encoding, for example {option} utf-16" if option else "save it as UTF-8"
        raise TableError(
            f"line {text.count(chr(10), 0, place) + 1} of '{path}' holds a NUL byte: the file is damaged, or "
            f"not in the encoding {encoding}; copy it again, or {give}"
        )
    # Reports are long, and csv stops at 128 kB by default.
    csv.field_size_limit(1 << 30)
    lines = list(io.StringIO(text, newline=""))
    told = re.fullmatch(r'"?sep=(.)"?\s*', lines[0].lower()) if lines else None  # Excel's own hint
    skipped = 1 if told else 0
    delimiter, header, end = _header(lines, skipped, told[1] if told else DELIMITERS, known, path)
    return TextTable(path, header, delimiter=delimiter, encoding=encoding, _lines=lines, _header_lines=end)


def _decode(data: bytes, path: Path, encoding: str | None, option: str | None) -> tuple[str, str]:
    marked = next((name for mark, name in _BOMS if data.startswith(mark)), None)
    chosen = encoding or marked or "utf-8"
    if marked == "utf-8-sig" and chosen.lower().replace("_", "-") in ("utf-8", "utf8"):
        chosen = marked
    try:
        return data.decode(chosen), chosen
    except LookupError:
        raise TableError(
            f"there is no encoding '{encoding}': {option} takes utf-8, utf-16, cp1252 (Windows, western "
            "Europe), cp1254 (Turkish), latin-1 and all others that Python knows"
        ) from None
    except UnicodeError as error:
        line = data.count(b"\n", 0, getattr(error, "start", 0)) + 1
        if encoding is not None:
            raise TableError(
                f"line {line} of '{path}' is not in the encoding {encoding}: give another one with {option}"
            ) from None
        likely = "utf-16" if data[:400].count(b"\0") > 20 else "cp1252"
        give = f", or give its encoding, for example {option} {likely}" if option else ""
        raise TableError(
            f"'{path}' is not UTF-8 (line {line}): save it as CSV with UTF-8 encoding{give}"
        ) from None


def _header(
    lines: Sequence[str], skipped: int, delimiters: str, known: Collection[str], path: Path
) -> tuple[str, tuple[str, ...], int]:
    """Delimiter, names, and the number of lines down to the header's last."""
    best: tuple[tuple[int, int], str, tuple[str, ...], int] | None = None
    for delimiter in delimiters:
        reader = csv.reader(lines[skipped:], delimiter=delimiter, skipinitialspace=True)
        try:
            names = tuple(next(reader, ()))
        except csv.Error as error:
            raise TableError(f"'{path}' is not a CSV or TSV table ({error}): save it again as CSV") from None
        score = (sum(plain_name(name) in known for name in names), len(names))
        if best is None or score > best[0]:
            best = (score, delimiter, names, skipped + reader.line_num)
    _, delimiter, names, end = best
    return delimiter, names, end


def plain_name(name: str) -> str:
    """A column's name in lower case, with underscores for spaces and dashes, without invisible characters."""
    return re.sub(r"[\s\-]+", "_", name.translate(_INVISIBLE).strip().lower())


def name_rows(rows: Iterable[int], limit: int = 8) -> str:
    """ "row 3", "rows 3, 5", or the first few and how many there are."""
    rows = sorted(set(rows))
    if len(rows) == 1:
        return f"row {rows[0]}"
    shown = ", ".join(map(str, rows[:limit]))
    return f"rows {shown}" + (f" and {len(rows) - limit} more" if len(rows) > limit else "")
