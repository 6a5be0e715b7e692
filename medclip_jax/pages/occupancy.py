"""Organ occupancy on the patch grid, drawn over the scan: what a model with organ terms is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int16, UInt8

AXES = (("axial", 0), ("coronal", 1), ("sagittal", 2))
"""Views and the axis that each cuts."""

_STRENGTH = 0.65
"""Opacity of an organ's color where it fills the patch."""
_GRID = 0.14
"""Opacity of the white lines between patches."""


@dataclass(frozen=True)
class View:
    """One layer of patches over the middle slice of that layer.

    Attributes:
        name: "axial", "coronal" or "sagittal".
        layer: of patches, from 0: the one that shows most of the organs.
        layers: of patches along this axis.
        image: (height, width, 3) pixels, hung as radiologists do.
    """

    name: str
    layer: int
    layers: int
    image: UInt8[np.ndarray, "height width 3"]


def patch_shares(
    organs: UInt8[np.ndarray, "O d h w"], cell: int, patch: tuple[int, int, int]
) -> Float32[np.ndarray, "O D H W"]:
    """Share of each patch that each organ fills, on the grid of patches, as the model pools it.

    Args:
        organs: shares of cells x 255, as prepared.
        cell: voxels per cell along each axis.
        patch: voxels per patch along depth, height, width.

    Raises:
        ValueError: the cell does not divide the patch, or the patch not the volume.
    """
    from medclip_jax.models.patches import pool_cells

    shares = np.asarray(pool_cells(organs[None], cell, patch))[0]
    grid = [size * cell // step for size, step in zip(organs.shape[1:], patch, strict=True)]
    return shares.reshape(len(organs), *grid)


def draw_occupancy(
    volume: Int16[np.ndarray, "D H W"],
    shares: Float32[np.ndarray, "O d h w"],
    colors: Sequence[str],
    *,
    spacing: tuple[float, float, float],
    window: tuple[float, float],
    height: int = 300,
    layers: Sequence[int] | None = None,
) -> list[View]:
    """Draw three views.

    Args:
        volume: prepared.
        shares: from `patch_shares`.
        colors: "#rrggbb" for each organ; where organs share a patch, later ones lie over earlier ones.
        spacing: mm per voxel along depth, height, width.
        window: (low, high) that become black and white.
        height: pixels of the tallest view.
        layers: of patches that the views show; None for those that show most of the organs.

    Returns:
        Axial, coronal, sagittal.
    """
    extent = np.array(volume.shape) * np.array(spacing)
    scale = height / max(extent[0], extent[1])
    low, high = window
    views = []
    for name, axis in AXES:
        along = shares.shape[1 + axis]
        others = tuple(other for other in range(4) if other != 1 + axis)
        layer = int(shares.sum(axis=others).argmax()) if layers is None else layers[axis]
        # Indices grow towards Superior, Anterior and Right; pages grow down and to the right.
        slices = volume.shape[axis] // along
        plane = np.take(volume, layer * slices + slices // 2, axis)[::-1, ::-1]
        fill = np.take(shares, layer, 1 + axis)[:, ::-1, ::-1]
        size = tuple(round(extent[other] * scale) for other in range(3) if other != axis)
        gray = np.clip((_stretch(plane, size) - low) / max(high - low, 1e-6), 0, 1) * 255
        image = _tint(np.repeat(gray[..., None], 3, -1), _stretch(fill, size), colors)
        for edge, count in enumerate(fill.shape[1:]):
            lines = np.round(np.arange(1, count) * size[edge] / count).astype(int)
            image[(slice(None),) * edge + (lines,)] *= 1 - _GRID
            image[(slice(None),) * edge + (lines,)] += _GRID * 255
        views.append(View(name, layer, along, np.round(image).astype(np.uint8)))
    return views


def _stretch(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest neighbor to `size` along the last two axes."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, array.shape[-2:], strict=True))
    return array[..., rows[:, None], columns]


def _tint(
    image: Float[np.ndarray, "h w 3"], shares: Float32[np.ndarray, "O h w"], colors: Sequence[str]
) -> Float[np.ndarray, "h w 3"]:
    for share, color in zip(shares, colors, strict=True):
        alpha = _STRENGTH * share[..., None]
        image = image * (1 - alpha) + alpha * np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    return image
