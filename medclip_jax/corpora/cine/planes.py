"""Where the pictures lie in the heart, and the heart in the body."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


def short_axis(level: float, pixel: float, size: int, turn: float, offset: Sequence[float]) -> Plane:
    """Across the long axis.

    Args:
        level: z, mm.
        pixel, size: of the picture.
        turn: of the picture around the long axis, radians.
        offset: x and y of the picture's center.
    """
    return Plane(
        "sa",
        (float(offset[0]), float(offset[1]), float(level)),
        (float(np.cos(turn)), float(np.sin(turn)), 0.0),
        (float(-np.sin(turn)), float(np.cos(turn)), 0.0),
        pixel,
        size,
    )


_LONG = {"4ch": (0.0, -0.22), "2ch": (1.5, 0.0), "3ch": (0.9, 0.0)}
"""Angle of the plane in the short axis, and how much it tilts towards the aortic root."""


def long_axis(
    kind: str, middle: float, pixel: float, size: int, turn: float, tilt: float, offset: Sequence[float]
) -> Plane:
    """Along the long axis: the apex up in the four-chamber view, to the left in the others.

    Args:
        kind: "4ch", "2ch" or "3ch".
        middle: z of the picture's center, mm.
        pixel, size: of the picture.
        turn: of the picture in its plane, radians.
        tilt: of the plane around the long axis, radians.
        offset: of the picture's center along and across the axis.
    """
    angle, lean = _LONG[kind]
    angle += tilt
    side = np.array([np.cos(angle), np.sin(angle), 0.0])
    other = np.array([-np.sin(angle), np.cos(angle), 0.0])
    base = np.cos(lean) * np.array([0.0, 0.0, 1.0]) + np.sin(lean) * other
    right, down = (side, base) if kind == "4ch" else (base, side)
    right, down = np.cos(turn) * right + np.sin(turn) * down, np.cos(turn) * down - np.sin(turn) * right
    # The tilted plane meets the long axis in the middle of the ventricle.
    center = np.array([0.0, 0.0, middle]) + offset[0] * side + offset[1] * base
    return Plane(
        kind, tuple(map(float, center)), tuple(map(float, right)), tuple(map(float, down)), pixel, size
    )


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
