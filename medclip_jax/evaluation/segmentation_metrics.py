"""Overlap of two masks, and how far apart their surfaces lie.

Surfaces are voxels: those of a mask with a face on something else, the volume's border included. Distances
are between the centers of such voxels, by SciPy's exact Euclidean distance transform. MONAI and medpy define
them likewise (tested against MONAI).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage


class Overlap(NamedTuple):
    """How two masks agree.

    Attributes:
        dice: twice the shared voxels over the sum of both; NaN where both are empty.
        hausdorff: 95 % Hausdorff distance, mm; NaN where one is empty.
        surface_dice: share of both surfaces that lies within a tolerance of the other; 0 where one is empty,
            NaN where both are.
    """

    dice: float
    hausdorff: float
    surface_dice: float


def overlap_of(
    predicted: Bool[np.ndarray, "D H W"],
    true: Bool[np.ndarray, "D H W"],
    spacing: Sequence[float],
    *,
    tolerance: float,
    percentile: float = 95.0,
) -> Overlap:
    """Compare two masks.

    Args:
        predicted, true: the masks.
        spacing: mm along depth, height, width.
        tolerance: of the surface Dice, mm.
        percentile: of the distances of each surface to the other, the larger of the two counts; 100 for the
            Hausdorff distance itself.

    References:
        Nikolov et al. 2018, "Deep learning to achieve clinically applicable segmentation of head and neck
        anatomy for radiotherapy", for the surface Dice.
    """
    sizes = int(predicted.sum()), int(true.sum())
    if not any(sizes):
        return Overlap(np.nan, np.nan, np.nan)
    if not all(sizes):
        return Overlap(0.0, np.nan, 0.0)
    dice = 2.0 * int((predicted & true).sum()) / sum(sizes)
    # Both lie inside this box, and so does every distance between them.
    box = ndimage.find_objects((predicted | true).astype(np.uint8))[0]
    there, back = surface_distances(predicted[box], true[box], spacing)
    far = max(np.percentile(there, percentile), np.percentile(back, percentile))
    near = (there <= tolerance).sum() + (back <= tolerance).sum()
    return Overlap(dice, float(far), float(near / (there.size + back.size)))


def surface_distances(
    predicted: Bool[np.ndarray, "D H W"], true: Bool[np.ndarray, "D H W"], spacing: Sequence[float]
) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " T"]]:
    """Distance in mm of each voxel of either surface to the nearest of the other; neither mask is empty."""
    surfaces = _surface(predicted), _surface(true)
    to_predicted, to_true = (ndimage.distance_transform_edt(~one, sampling=spacing) for one in surfaces)
    return to_true[surfaces[0]], to_predicted[surfaces[1]]


def _surface(mask: Bool[np.ndarray, "D H W"]) -> Bool[np.ndarray, "D H W"]:
    return mask & ~ndimage.binary_erosion(mask)
