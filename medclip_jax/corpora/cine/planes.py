"""Where the pictures lie in the heart, and the heart in the body."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Float32

BODY = np.array([[-0.79, -0.62, 0.0], [0.28, -0.36, -0.89], [0.55, -0.70, 0.45]])
"""Rows: the heart's x, y and z in the patient's RAS coordinates: the apex points left, forward and down."""


@dataclass(frozen=True)
class Plane:
    """A picture's place in the heart's coordinates, mm.

    Attributes:
        kind: "sa", "4ch", "2ch" or "3ch".
        center: of the picture.
        right, down: unit vectors along its rows and columns.
        pixel: distance of the pixels.
        size: rows and columns.
    """

    kind: str
    center: tuple[float, float, float]
    right: tuple[float, float, float]
    down: tuple[float, float, float]
    pixel: float
    size: int

    def grid(self) -> tuple[Float32[np.ndarray, "1 W"], Float32[np.ndarray, "H 1"]]:
        """Distance of every column and row from the picture's center, mm."""
        steps = ((np.arange(self.size) - 0.5 * (self.size - 1)) * self.pixel).astype(np.float32)
        return steps[None, :], steps[:, None]

    def points(self) -> tuple[Float32[np.ndarray, "H W"], ...]:
        """x, y and z of every pixel in the heart's coordinates."""
        across, along = self.grid()
        return tuple(
            np.float32(c) + np.float32(r) * across + np.float32(d) * along
            for c, r, d in zip(self.center, self.right, self.down, strict=True)
        )


@dataclass(frozen=True)
class Setup:
    """What the series of a study share.

    Attributes:
        pixel: distance of the pixels, mm.
        size: rows and columns.
        turn: of the pictures in their plane, radians.
        middle: how far the pictures' middle lies from the heart's, to the right and down, mm.
    """

    pixel: float
    size: int
    turn: float = 0.0
    middle: tuple[float, float] = (0.0, 0.0)


def short_axis(level: float, setup: Setup) -> Plane:
    """Across the long axis.

    Args:
        level: z, mm.
        setup: of the study; the middle counts from the long axis.
    """
    cos, sin = float(np.cos(setup.turn)), float(np.sin(setup.turn))
    center = (*setup.middle, float(level))
    return Plane("sa", center, (cos, sin, 0.0), (-sin, cos, 0.0), setup.pixel, setup.size)


_LONG = {"lax": ("4ch", 0.0, -0.22, 0.62), "2ch": ("2ch", 1.5, 0.0, 0.55), "3ch": ("3ch", 0.9, 0.0, 0.55)}
"""By series: kind, the plane's angle in the short axis, how much it leans towards the aortic root, and which
share of the ventricle's length lies in the middle of the picture."""

_TOP, _BOTTOM, _ALONE = 0.84, 0.22, 0.5
"""Shares of the ventricle's length between which a stack lies, and where a single slice does."""

SLICE_MM = 8.0
"""Distance that the header of a single slice gives."""


def long_axis(series: str, length: float, setup: Setup, tilt: float, along: float) -> Plane:
    """Along the long axis: the apex up in the four-chamber view, to the left in the others.

    Args:
        series: "lax", "2ch" or "3ch".
        length: of the left ventricle, mm.
        setup: of the study.
        tilt: of the plane around the long axis, radians.
        along: how much further the picture lies towards the base, mm.
    """
    kind, angle, lean, share = _LONG[series]
    angle += tilt
    side = np.array([np.cos(angle), np.sin(angle), 0.0])
    other = np.array([-np.sin(angle), np.cos(angle), 0.0])
    base = np.cos(lean) * np.array([0.0, 0.0, 1.0]) + np.sin(lean) * other
    # The leaning plane meets the long axis in the middle of the picture.
    center = np.array([0.0, 0.0, share * length])
    center += setup.middle[0] * side + (setup.middle[1] + along) * base
    right, down = (side, base) if kind == "4ch" else (base, side)
    cos, sin = np.cos(setup.turn), np.sin(setup.turn)
    right, down = cos * right + sin * down, cos * down - sin * right
    axes = (tuple(vector.tolist()) for vector in (center, right, down))
    return Plane(kind, *axes, setup.pixel, setup.size)


def series_planes(
    series: str, length: float, slices: int, setup: Setup, rng: np.random.Generator
) -> tuple[list[Plane], float]:
    """The planes of a series, base first, and mm between them.

    Args:
        series: "sa", "lax", "2ch" or "3ch".
        length: of the left ventricle, mm.
        slices: of a short-axis stack.
        setup: of the study.
        rng: tilts and moves long-axis planes.
    """
    if series in _LONG:
        return [
            long_axis(series, length, setup, float(rng.normal(0, 0.06)), float(rng.normal(0, 2)))
        ], SLICE_MM
    # The right ventricle is in the picture, too: its middle lies left of the long axis.
    setup = replace(setup, middle=(setup.middle[0] - 14.0, setup.middle[1] + 2.0))
    if slices == 1:
        return [short_axis(_ALONE * length, setup)], SLICE_MM
    step = (_TOP - _BOTTOM) * length / (slices - 1)
    return [short_axis(_TOP * length - step * number, setup) for number in range(slices)], step


def affine(
    planes: Sequence[Plane], step: float, apex: Float[np.ndarray, 3], pose: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "4 4"]:
    """From index (column, row counted upwards, slice, 1) to RAS mm, as converters from DICOM store it.

    Args:
        planes: of the stack, evenly spaced.
        step: between its slices, mm.
        apex: RAS position of the heart's origin.
        pose: rows are the heart's axes in RAS.
    """
    first = planes[0]
    right, down = np.array(first.right) @ pose, np.array(first.down) @ pose
    normal = (
        (np.subtract(planes[1].center, first.center) @ pose / step)
        if len(planes) > 1
        else np.cross(right, down)
    )
    half = 0.5 * (first.size - 1) * first.pixel
    matrix = np.eye(4)
    matrix[:3, 0] = right * first.pixel
    matrix[:3, 1] = -down * first.pixel
    matrix[:3, 2] = normal * step
    matrix[:3, 3] = apex + np.array(first.center) @ pose - half * right + half * down
    return matrix


def draw_pose(rng: np.random.Generator) -> Float[np.ndarray, "3 3"]:
    """The heart's axes in one body: `BODY`, made orthonormal and turned a little."""
    small = rng.uniform(-0.08, 0.08, 3)
    turn = np.array([[1, -small[2], small[1]], [small[2], 1, -small[0]], [-small[1], small[0], 1]])
    rows = BODY @ turn
    z = rows[2] / np.linalg.norm(rows[2])
    x = rows[0] - (rows[0] @ z) * z
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z])
