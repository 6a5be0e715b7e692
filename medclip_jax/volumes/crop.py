"""The step from a scan to a model's grid: one function for prepare, for inference and by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from medclip_jax.volumes.geometry import crop_or_pad, resample
from medclip_jax.volumes.modality import modality_of
from medclip_jax.volumes.volume import Volume, VolumeRejected


def crop_and_resample(
    volume: Volume,
    shape: Sequence[int | None],
    spacing: Sequence[float | None],
    center: Float[np.ndarray, " 3"] | None = None,
) -> tuple[Volume, list[str]]:
    """Resample to `spacing` and cut or pad to `shape` around a point, working only on the voxels needed.

    What `medclip prepare` and inference do. The result's middle is the point, to rounding; that of
    ``crop_or_pad(resample(volume))`` lies up to half a new voxel beside it, on the resampled volume's grid.

    Along an axis with a shape and no spacing, the volume is resized: its full extent, from the outer edge
    of the first voxel to that of the last, becomes so many voxels, and the spacing what follows from that.

    Args:
        volume: any volume.
        shape: wanted (D, H, W); None along an axis keeps the volume's own voxels there.
        spacing: wanted mm along depth, height, width; None resizes, and goes with a shape of None.
        center: world (x, y, z) in RAS mm; None means the volume's middle. It counts along the axes that have
            a spacing; the others are taken whole.

    Returns:
        The volume, and notes: "mostly-padding:P%" where the scan covers less than a quarter of it.

    Raises:
        VolumeRejected: the crop lies outside the volume.
    """
    size = np.array(volume.voxels.shape)
    whole = [axis for axis in range(3) if spacing[axis] is None]
    shape = tuple(int(own) if wanted is None else wanted for own, wanted in zip(size, shape, strict=True))
    spacing = tuple(
        own * float(count / wanted) if step is None else step
        for own, step, count, wanted in zip(volume.spacing, spacing, size, shape, strict=True)
    )
    middle = (size - 1) / 2
    if center is not None:
        middle = np.linalg.solve(volume.affine[:3, :3], center - volume.affine[:3, 3])
        middle[whole] = (size[whole] - 1) / 2
    if center is None or whole:
        center = volume.affine[:3, :3] @ middle + volume.affine[:3, 3]
    # Two voxels of either grid beyond the crop: what anti-aliasing looks at, and the rounding of the crop.
    ratio = np.array(spacing) / np.array(volume.spacing)
    reach = (np.array(shape) / 2 + 2) * ratio + 2
    low = np.clip(np.floor(middle - reach), 0, size).astype(int)
    high = np.clip(np.ceil(middle + reach) + 1, 0, size).astype(int)
    for axis in range(3):
        # An even crop out of an odd grid, or the reverse, would lie half a voxel off its center.
        while low[axis] > 0 and high[axis] < size[axis]:
            resampled = math.floor((high[axis] - low[axis]) / ratio[axis] + 0.5 - 1e-6)  # as `resample` does
            if (resampled - shape[axis]) % 2 == 0:
                break
            low[axis], high[axis] = low[axis] - 1, high[axis] + 1
    if (high <= low).any():
        raise VolumeRejected(
            "crop-outside", "The crop's center lies outside the volume: check the box or the organ mask."
        )
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ low
    box = replace(volume, voxels=volume.voxels[tuple(map(slice, low, high))], affine=affine)
    fill = int(modality_of(volume.provenance.get("modality", "CT")).outside(volume.voxels))
    prepared = crop_or_pad(resample(box, spacing), shape, center=center, fill=fill)
    covered = np.prod(np.minimum(size / ratio, shape)) / np.prod(shape)
    return prepared, [f"mostly-padding:{100 * (1 - covered):.0f}%"] if covered < 0.25 else []
