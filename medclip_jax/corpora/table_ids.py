"""Ids of patients and studies that a spreadsheet has changed, so that two people can become one."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

from medclip_jax.corpora.tables import TableError, name_rows

_ROUNDED = re.compile(r"[+-]?\d([.,]\d+)?[eE][+-]\d{1,3}")
_FLOAT = re.compile(r"\d+[.,]0+")
_ERROR = re.compile(r"#(name\?|value!|ref!|n/a|num!|null!|div/0!|#+)", re.IGNORECASE)
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
_DATE = re.compile(
    rf"\d{{1,2}}[-/. ]{_MONTH}(?:[-/. ]\d{{2,4}})?|{_MONTH}[-/. ]\d{{2,4}}"
    r"|\d{1,2}[/.]\d{1,2}[/.](?:\d{4}|\d{2})|\d{4}[-/]\d{1,2}[-/]\d{1,2}(?:[ T]\d{1,2}:\d{2}(?::\d{2})?)?",
    re.IGNORECASE,
)
_EXACT_DIGITS = 15
"""A spreadsheet keeps so many digits of a number, and writes zeros for the rest."""

_AS_TEXT = "Export the table again with this column as text, not as a number (in Excel: format cells, Text)"


def clean_ids(ids: Mapping[int, str], column: str, table: str, warn: Callable[[str], None]) -> dict[int, str]:
    """Ids as they were before a spreadsheet or a data frame wrote them, where that can be told.

    Args:
        ids: row to id, without missing ones.
        column: the table's name of the column.
        table: for messages.
        warn: takes what is worth a look.

    Returns:
        Row to id, in one Unicode form, without the ``.0`` of a number.

    Raises:
        TableError: ids were rounded, turned into dates or into error values, so that different ones may
            have become equal; or equal ones differ in leading zeros. Ids are not quoted.
    """
    place = f"'{table}', column '{column}'"
    ids = {row: unicodedata.normalize("NFC", text) for row, text in ids.items()}
    if rows := [row for row, text in ids.items() if _ROUNDED.fullmatch(text)]:
        raise TableError(
            f"{place}: {name_rows(rows)} hold a number in scientific notation, such as 1.23457E+11. A "
            f"spreadsheet has rounded the ids, and different ones may have become equal. {_AS_TEXT}"
        )
    if rows := [row for row, text in ids.items() if _ERROR.fullmatch(text)]:
        raise TableError(
            f"{place}: {name_rows(rows)} hold an error value of a spreadsheet (#NAME?, #VALUE!, ####) "
            f"instead of an id. {_AS_TEXT}"
        )
    dates = [row for row, text in ids.items() if _DATE.fullmatch(text)]
    if dates and len(dates) < len(ids):
        raise TableError(
            f"{place}: {name_rows(dates)} hold a date, other rows do not. Spreadsheets turn ids such as 3-4 "
            f"or MAR1 into dates. {_AS_TEXT}"
        )
    if dates:
        warn(f"{place}: every id is a date. Are these ids, and are they different for different people?")
    if rows := [row for row, text in ids.items() if _FLOAT.fullmatch(text)]:
        warn(f"{place}: {name_rows(rows)} hold a number with .0 behind it; it is left out")
        ids = {
            row: re.split("[.,]", text)[0] if _FLOAT.fullmatch(text) else text for row, text in ids.items()
        }
    spellings: dict[str, set[str]] = defaultdict(set)
    for text in ids.values():
        spellings[text.casefold()].add(text)
    if rows := [row for row, text in ids.items() if len(spellings[text.casefold()]) > 1]:
        warn(f"{place}: {name_rows(rows)} hold ids that differ in capitals alone; they count as different")
    _check_digits({row: text for row, text in ids.items() if text.isdecimal()}, place, warn)
    return ids


def _check_digits(ids: Mapping[int, str], place: str, warn: Callable[[str], None]) -> None:
    """Ids of digits alone: cut at 15 digits, or with leading zeros here and without them there."""
    long = {text for text in ids.values() if len(text) > _EXACT_DIGITS}
    # By chance, that many last digits are all zero in one table of a thousand.
    if sum(len(text) - _EXACT_DIGITS for text in long) >= 3 and all(
        not text[_EXACT_DIGITS:].strip("0") for text in long
    ):
        rows = [row for row, text in ids.items() if text in long]
        raise TableError(
            f"{place}: {name_rows(rows)} hold more than 15 digits, and all end in zeros from the 16th on. A "
            f"spreadsheet has rounded the ids, and different ones may have become equal. {_AS_TEXT}"
        )
    padded = {text.lstrip("0"): text for text in ids.values() if text.startswith("0") and text.strip("0")}
    if twins := [row for row, text in ids.items() if text in padded]:
        rows = [row for row, text in ids.items() if text.lstrip("0") in {ids[row] for row in twins}]
        raise TableError(
            f"{place}: {name_rows(rows)} hold ids that differ in leading zeros alone (007 and 7). If they "
            "are the same, a spreadsheet has dropped the zeros: write them in all rows. If not, put a letter "
            "before the ids"
        )
    lengths = Counter(map(len, set(ids.values())))
    if not padded and len(lengths) > 1:
        longest = max(lengths)
        shorter = [row for row, text in ids.items() if len(text) < longest]
        if longest >= 5 and lengths[longest] > 0.6 * lengths.total():
            warn(
                f"{place}: {name_rows(shorter)} hold fewer than {longest} digits, which most ids have. Has a "
                "spreadsheet dropped leading zeros? Then ids may not match those of other tables"
            )
