"""What a cell of a table of studies means: labels, numbers, boxes, splits, paths."""

from __future__ import annotations

import math
import os
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

MISSING = frozenset(
    ("", "nan", "none", "null", "n/a", "na", "<na>", "nat", "#n/a", "#name?", "#value!", "#ref!", r"\n")
)
"""Cells that say nothing, in lower case: of people, pandas, R, databases and spreadsheets."""

_LONGEST_MISSING = max(map(len, MISSING))

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""What a split's cell may say, in lower case, to the split."""

Fail = Callable[[str], Exception]
"""Makes the error of a cell from what it should hold."""

LONGEST_GROUP = 40
MOST_GROUPS = 100
"""Values of one column of groups: more are ids, dates or numbers, and no groups."""

ZERO = "0"
_LABELS = (
    dict.fromkeys(("1", "true", "yes", "y", "present", "positive", "pos"), 1)
    | dict.fromkeys(("-1", "false", "no", "n", "absent", "negative", "neg"), -1)
    | dict.fromkeys(("", "unknown", "uncertain", "not mentioned", "?"), 0)
)

ZeroMeaning = Literal["absent", "unknown"]


def said(cell: str) -> str:
    """A cell's text, "" for what stands for a missing value."""
    text = cell.strip()
    return "" if len(text) <= _LONGEST_MISSING and text.lower() in MISSING else text


def read_label(text: str, fail: Fail) -> int | None:
    """A label: 1 present, -1 absent, 0 unknown, None for a zero, which means what `zero_meaning` says.

    Args:
        text: of the cell, "" where it says nothing.
        fail: makes the error where it is no label.
    """
    plain = re.sub(r"^\+?(-?\d)([.,]0*)?$", r"\1", text.lower())
    if plain == ZERO:
        return None
    if plain not in _LABELS:
        raise fail("a label is 1 (present), -1 (absent), 0, or empty (unknown)")
    return _LABELS[plain]


def zero_meaning(labels: Iterable[int | None]) -> ZeroMeaning | None:
    """What 0 means in a table's label columns.

    One table has one convention, so all its label columns decide together: beside 1 and nothing else, 0 can
    only mean absent; where absence is written as -1 or in a word, or where nothing is ever present, 0 means
    unknown.

    Args:
        labels: every label of the table, as `read_label` gives them.

    Returns:
        None where there is no 0.
    """
    found = set(labels)
    if None not in found:
        return None
    return "absent" if 1 in found and -1 not in found else "unknown"


def read_number(text: str, fail: Fail) -> float:
    """A finite number with a decimal point."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise fail("must be a number, with a point for the decimals (1.5, not 1,5), or empty")
    return number


def read_group(text: str, fail: Fail) -> str:
    """Which group a row belongs to: a few words, that are written into the prepared set."""
    plain = " ".join(unicodedata.normalize("NFC", text).split())
    if len(plain) > LONGEST_GROUP or re.search(r"\d{5,}", plain):
        raise fail(
            f"a group is a category (a scanner, a band of ages) of at most {LONGEST_GROUP} characters, "
            "without a number of five digits or more, because it is written into the prepared set"
        )
    return plain


def read_spacing(text: str, fail: Fail) -> tuple[float, float, float] | None:
    """Three numbers in mm along depth, height, width; None for an empty cell."""
    if not text:
        return None
    numbers = [read_number(part, fail) for part in re.split(r"[\s,;x]+", text.strip("[]() "))]
    if len(numbers) != 3 or min(numbers) <= 0:
        raise fail("must be three positive numbers, the mm of a voxel along depth, height and width")
    return tuple(numbers)


def read_box(text: str, fail: Fail) -> dict[str, float]:
    """Six numbers in RAS mm, as the measurements that `prepare` crops by; {} for an empty cell."""
    if not text:
        return {}
    numbers = [read_number(part, fail) for part in re.split(r"[\s,;]+", text.strip("[]() "))]
    if len(numbers) != 6 or any(low > high for low, high in zip(numbers[::2], numbers[1::2], strict=True)):
        raise fail("must be six numbers, x_min x_max y_min y_max z_min z_max, in mm of RAS world coordinates")
    names = [f"box_{axis}_{end}" for axis in "xyz" for end in ("min", "max")]
    return dict(zip(names, numbers, strict=True))


def read_rescale(
    slope: str, intercept: str, fail: Callable[[str, str], Exception]
) -> tuple[float, float] | None:
    """Slope and intercept; None where both cells are empty.

    Args:
        slope: of the column rescale_slope.
        intercept: of the column rescale_intercept.
        fail: makes the error from the column and what it should hold.
    """
    if not slope and not intercept:
        return None
    factor = read_number(slope, lambda what: fail("rescale_slope", what)) if slope else 1.0
    if factor == 0:
        raise fail("rescale_slope", "0 would make every voxel the same: write 1, or leave it empty")
    return factor, read_number(intercept, lambda what: fail("rescale_intercept", what)) if intercept else 0.0


def read_path(text: str, root: Path) -> str:
    """A path as this system writes it: with slashes, without ``.``, ``..`` and doubled separators.

    One file has one spelling, so that a scan which stands in the table twice is noticed.

    Args:
        text: of the cell.
        root: folder that relative paths start from; absolute paths below it become relative.
    """
    if os.sep == "/" and "\\" in text and not os.path.lexists(root / text):
        text = text.replace("\\", "/")  # written on Windows
    path = posixpath.normpath(text)
    if posixpath.isabs(path):
        base = posixpath.normpath(root.absolute().as_posix())
        if posixpath.commonpath([base, path]) == base and path != base:
            return posixpath.relpath(path, base)
    return path


def is_windows_path(text: str) -> bool:
    """Whether a path names a drive or a share of Windows, which other systems do not have."""
    return os.sep == "/" and re.match(r"[A-Za-z]:[\\/]|\\\\\w", text) is not None


SCAN_FILE = re.compile(r"\.(nii|nii\.gz|nrrd|nhdr|mha|mhd|dcm)/?$", re.IGNORECASE)


def looks_like_scan(text: str, like: str) -> bool:
    """Whether a cell names a scan: by its suffix, or because it is spelled as another scan's name is.

    Args:
        text: of the cell.
        like: name of a scan in the same table.
    """

    def pattern(name: str) -> str:
        return re.sub(r"\d+", "0", re.sub(r"[^\W\d_]+", "a", name))

    text, like = text.strip(), like.strip()
    if SCAN_FILE.search(text):
        return True
    return any(map(str.isdigit, text)) and len(pattern(like)) > 2 and pattern(text) == pattern(like)
