"""Calcified plaques, and the Agatston score of what was rendered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

GRADE_LIMITS = (0.0, 10.0, 100.0, 400.0)
"""Grades 0..4: score 0, 1-10, 11-100, 101-400, above 400."""


@dataclass(frozen=True)
class Plaque:
    """A calcification: an ellipsoid of constant density, in patient coordinates (x, y, z), mm."""

    center: Float[np.ndarray, 3]
    radii: Float[np.ndarray, 3]
    axes: Float[np.ndarray, "3 3"]
    hu: float


def plaque_parcels(plaque: Plaque, step: float) -> tuple[Float[np.ndarray, "N 3"], Float[np.ndarray, N]]:
    """Points and volumes (mm³) that fill a plaque."""
    sides = [np.arange(-r + min(step, r) / 2, r, min(step, r)) for r in plaque.radii]
    grid = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, 3)
    grid = grid[((grid / plaque.radii) ** 2).sum(1) <= 1]
    if len(grid) == 0:
        grid = np.zeros((1, 3))
    volume = 4 / 3 * np.pi * np.prod(plaque.radii)
    return plaque.center + grid @ plaque.axes, np.full(len(grid), volume / len(grid))


def agatston_score(
    hu: Float[np.ndarray, "D H W"], spacing: tuple[float, float, float], mask: np.ndarray | None = None
) -> float:
    """Agatston score of an image without contrast.

    In each axial slice, 4-connected lesions of at least 130 HU and 1 mm² score their area (mm²) times
    1, 2, 3 or 4 for a peak of 130-199, 200-299, 300-399, 400 HU or more. The sum is scaled by slice
    distance / 3 mm, the distance for which the score was defined.

    Args:
        hu: (D, H, W) Hounsfield units.
        spacing: mm along D, H, W.
        mask: (D, H, W) where to look; everywhere if None.

    References:
        Agatston et al., J Am Coll Cardiol 1990; 15:827-832.
    """
    from scipy import ndimage  # takes a while: configs of training import this package, too

    dense = hu >= 130 if mask is None else (hu >= 130) & (mask > 0)
    area = spacing[1] * spacing[2]
    score = 0.0
    for image, found in zip(hu, dense, strict=True):
        if not found.any():
            continue
        lesions, count = ndimage.label(found)
        index = np.arange(1, count + 1)
        size = ndimage.sum_labels(found, lesions, index) * area
        peak = ndimage.maximum(image, lesions, index)
        factor = np.clip(np.floor(peak / 100), 1, 4)
        score += float((size * factor)[size >= 1.0].sum())
    return score * spacing[0] / 3.0


def cac_grade(score: float) -> int:
    """The five grades of coronary calcium: 0 (none), 1 (to 10), 2 (to 100), 3 (to 400), 4 (above)."""
    return int(np.searchsorted(GRADE_LIMITS, score, side="left"))


def standard_score(plaques: Sequence[Plaque], background: float = 40.0) -> float:
    """Agatston score of plaques under the scoring protocol: 3 mm slices, 0.7 mm pixels, no contrast or noise.

    The score belongs to the patient, so two reconstructions of one scan have the same.
    """
    spacing = (3.0, 0.7, 0.7)
    total = 0.0
    for group in _clusters(plaques):
        low = np.min([p.center - p.radii.max() for p in group], axis=0) - 2 * np.array(spacing[::-1])
        high = np.max([p.center + p.radii.max() for p in group], axis=0) + 2 * np.array(spacing[::-1])
        low[2] = np.floor(low[2] / 3.0) * 3.0
        counts = np.ceil((high - low)[::-1] / spacing).astype(int) + 1
        hu = np.full(counts, background)
        for plaque in group:
            points, volumes = plaque_parcels(plaque, 0.45)
            places = ((points - low)[:, ::-1] / spacing).astype(int)
            share = np.bincount(np.ravel_multi_index(places.T, counts), volumes, hu.size)
            share = np.minimum(share / np.prod(spacing), 1).reshape(counts)
            hu += share * (plaque.hu - hu)
        total += agatston_score(hu, spacing)
    return total


def _clusters(plaques: Sequence[Plaque]) -> list[list[Plaque]]:
    """Plaques that may touch, so that each group can be rendered alone."""
    groups: list[list[Plaque]] = []
    for plaque in plaques:
        touching = [
            g
            for g in groups
            if any(
                np.linalg.norm(p.center - plaque.center) < p.radii.max() + plaque.radii.max() + 6 for p in g
            )
        ]
        groups = [g for g in groups if not any(g is t for t in touching)]
        groups.append([plaque] + [p for g in touching for p in g])
    return groups
