"""CSV and TSV tables as users have them."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator, Mapping
from pathlib import Path


class TableError(ValueError):
    """A table that cannot be used; the message names the row or column and holds the fix."""


@contextlib.contextmanager
def open_table(path: Path) -> Iterator[tuple[list[str], Iterator[Mapping[str | None, str | None]]]]:
    """Open a table whose delimiter (comma, tab or semicolon) is told by its first line.

    Args:
        path: of an existing file.

    Yields:
        The header, and the rows as column name to cell.

    Raises:
        TableError: a spreadsheet, not UTF-8, no table, or a row with more cells than the header. Cells are
            not quoted.
    """
    if path.suffix.lower() in (".xlsx", ".xls", ".ods"):
        raise TableError(f"'{path}' is a spreadsheet: save it as CSV (UTF-8) and give that")
    # Reports are long, and csv stops at 128 kB by default.
    csv.field_size_limit(1 << 30)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max("\t,;", key=first.count)
            reader = csv.DictReader(file, delimiter=delimiter, strict=False)
            yield [name or "" for name in reader.fieldnames or ()], _rows(reader, path, delimiter)
    except UnicodeDecodeError:
        raise TableError(f"'{path}' is not UTF-8: save it as CSV with UTF-8 encoding") from None
    except csv.Error as error:
        raise TableError(f"'{path}' is not a CSV or TSV table ({error}): save it again as CSV") from None


def _rows(reader: csv.DictReader, path: Path, delimiter: str) -> Iterator[Mapping[str | None, str | None]]:
    for row, cells in enumerate(reader, start=1):
        if None in cells:
            raise TableError(
                f"row {row} of '{path}' has more cells than the header: put texts that hold a "
                f"{'tab' if delimiter == chr(9) else delimiter!r} or a line break into double quotes"
            )
        yield cells
