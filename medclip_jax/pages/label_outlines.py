"""Outlines of the classes of a label map, over slices of its volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from medclip_jax.corpora.study import OUTSIDE_LABEL

COLORS = (
    "#4cc9f0",
    "#f72585",
    "#ffd166",
    "#06d6a0",
    "#ff9f1c",
    "#b388ff",
    "#8ac926",
    "#ff6b6b",
    "#90e0ef",
    "#f4a5ff",
)
"""Outlines of organs and classes; legible on gray."""


@dataclass(frozen=True)
class ShownClass:
    """A class that a map shows: its value there, its name, and its color on the page."""

    value: int
    name: str
    color: str


def shown_classes(
    labels: UInt8[np.ndarray, "D H W"] | None, names: Sequence[str], skipped: int = 0
) -> tuple[ShownClass, ...]:
    """The classes that a label map shows.

    Args:
        labels: of a record, None where it has none.
        names: of the classes 1, 2, ...
        skipped: colors that others have taken.
    """
    if labels is None:
        return ()
    counts = np.bincount(labels.ravel(), minlength=OUTSIDE_LABEL + 1)
    return tuple(
        ShownClass(value, name, COLORS[(skipped + value - 1) % len(COLORS)])
        for value, name in enumerate(names, 1)
        if counts[value]
    )


def fullest_slice(labels: UInt8[np.ndarray, "D H W"], axis: int) -> int:
    """Index along an axis of the slice with the most labeled voxels; the middle one where none is."""
    others = tuple(other for other in range(3) if other != axis)
    counts = ((labels > 0) & (labels < OUTSIDE_LABEL)).sum(others)
    return int(counts.argmax()) if counts.any() else labels.shape[axis] // 2


def class_outline(plane: UInt8[np.ndarray, "A B"], value: int, size: tuple[float, float]) -> str:
    """SVG path around the voxels of one class, "" where a slice shows none.

    Args:
        plane: classes of a slice, as the page shows it.
        value: of the class.
        size: height and width of the picture.
    """
    import contourpy

    mask = plane == value
    if not mask.any():
        return ""
    # A rim of empty voxels closes outlines that reach the border.
    padded = np.pad(mask, 1).astype(np.float32)
    y, x = (
        np.clip(np.arange(n + 2) - 0.5, 0, n) / n * length
        for n, length in zip(plane.shape, size, strict=True)
    )
    lines = contourpy.contour_generator(x, y, padded).lines(0.5)
    return " ".join("M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in line) for line in lines)
