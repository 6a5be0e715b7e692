"""CT-RATE's metadata: what the DICOM headers said of each volume."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from medclip_jax.corpora.tables import TableError

_NUMBER = re.compile(r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?")
_AGE = re.compile(r"0*(\d{1,3})\s*Y?(?:\.0*)?", re.IGNORECASE)

OLDEST = 90.0
"""What every age from here on counts as: higher ones can tell a person."""

_DIRECTIONS = (("L", "R"), ("P", "A"), ("S", "I"))
"""Of DICOM's axes, for cosines of either sign."""

USUAL_AXES = "LPS"
"""Where columns, rows and slices of an axial CT run, as DICOM has them."""


@dataclass(frozen=True)
class Metadata:
    """One volume's row.

    Attributes:
        rescale: (slope, intercept); None where a cell is empty.
        in_plane: mm of a pixel (along columns, along rows); None where it is not told.
        between_slices: mm; None where the cell is empty.
        axes: where the stored array's axes point, columns, rows and slices in turn: `Series.axes`.
        age: years; None where it is not told.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = (
        "rescaleslope",
        "rescaleintercept",
        "xyspacing",
        "zspacing",
        "imageorientationpatient",
        "patientage",
    )

    rescale: tuple[float, float] | None = None
    in_plane: tuple[float, float] | None = None
    between_slices: float | None = None
    axes: str = USUAL_AXES
    age: float | None = None

    @property
    def spacing(self) -> tuple[float, float, float] | None:
        """mm along depth, height, width; None where a part of it is not told."""
        if self.in_plane is None or self.between_slices is None:
            return None
        by_axis = dict(zip(self.axes, (*self.in_plane, self.between_slices), strict=True))
        return tuple(
            next(by_axis[letter] for letter in pair if letter in by_axis) for pair in ("SI", "AP", "RL")
        )


def read_metadata(rows: Mapping[str, Mapping[str, str]]) -> dict[str, Metadata]:
    """Understand the cells of every row.

    Args:
        rows: volume to plain name of a column to text.

    Raises:
        TableError: a cell holds no number where one must stand.
    """
    return {name: _read(name, row) for name, row in rows.items()}


def _read(name: str, row: Mapping[str, str]) -> Metadata:
    def numbers(column: str) -> list[float]:
        text = row[column]
        found = [float(number) for number in _NUMBER.findall(text)]
        if text and (not found or not all(map(math.isfinite, found))):
            raise TableError(f"metadata of {name}, column {column!r}: it holds no number")
        return found

    slope, intercept = numbers("rescaleslope"), numbers("rescaleintercept")
    in_plane, between = numbers("xyspacing"), numbers("zspacing")
    if len(in_plane) == 1:
        in_plane *= 2
    if len(in_plane) not in (0, 2):
        raise TableError(f"metadata of {name}, column 'xyspacing': it must hold two numbers")
    age = _AGE.fullmatch(row["patientage"])
    return Metadata(
        rescale=(slope[0], intercept[0]) if slope and intercept and slope[0] else None,
        in_plane=(in_plane[0], in_plane[1]) if in_plane and min(in_plane) > 0 else None,
        between_slices=between[0] if between and between[0] > 0 else None,
        axes=_axes(tuple(numbers("imageorientationpatient"))),
        age=min(float(age[1]), OLDEST) if age else None,
    )


@lru_cache(maxsize=1024)
def _axes(cosines: tuple[float, ...]) -> str:
    """The letters nearest to DICOM's orientation; the usual ones where it is not told or no plane."""
    if len(cosines) != 6:
        return USUAL_AXES
    row, column = np.array(cosines[:3]), np.array(cosines[3:])
    letters = ""
    for direction in (row, column, np.cross(row, column)):
        axis = int(np.abs(direction).argmax())
        letters += _DIRECTIONS[axis][int(direction[axis] < 0)]
    return letters if len({"LRPASI".index(letter) // 2 for letter in letters}) == 3 else USUAL_AXES
