"""From series as they come to pictures as the model was trained on: slices in their own plane."""

from __future__ import annotations

import torch
from torch import Tensor

from medclip_jax.export.torch.prepare import crop_and_resample, to_hu, window_by_percentiles

RIGHT_ON_SCREEN = (-1.0, -0.5, 0.0)
"""Where columns run to, RAS: to the patient's left; in a sagittal plane to the back."""
DOWN_ON_SCREEN = (0.0, -0.5, -1.0)
"""Where rows run to, RAS: to the feet; in an axial plane to the back."""


def hang(voxels: Tensor, affine: Tensor) -> tuple[Tensor, list[float]]:
    """Pictures (slices, phases, rows, columns) as radiologists hang them, and mm between rows, columns.

    Args:
        voxels: (I, J), (I, J, slice) or (I, J, slice, phase).
        affine: (4, 4) from array index to RAS mm.

    Raises:
        ValueError: rows and columns are not at right angles, or slices lie in each other's plane.
    """
    if not 2 <= voxels.ndim <= 4:
        raise ValueError(f"a series has axes i, j, slice, phase, not {voxels.ndim} of them")
    voxels = voxels.reshape((*voxels.shape, 1, 1)[:4])
    linear = torch.as_tensor(affine, dtype=torch.float64).cpu()[:3, :3]
    lengths = linear.norm(dim=0)
    directions = linear[:, :2] / lengths[:2]
    if not abs(directions[:, 0] @ directions[:, 1]) <= 1e-2:  # NaN too
        raise ValueError("rows and columns are not at right angles: export the series again")
    right, down = (torch.tensor(way, dtype=torch.float64) for way in (RIGHT_ON_SCREEN, DOWN_ON_SCREEN))
    across, along = (directions.T @ right).tolist(), (directions.T @ down).tolist()
    as_stored, turned = abs(across[0]) + abs(along[1]), abs(across[1]) + abs(along[0])
    rows, columns = (1, 0) if as_stored >= turned - 1e-6 else (0, 1)
    flip_rows, flip_columns = along[rows] < 0, across[columns] < 0
    normal = torch.linalg.cross(
        -directions[:, columns] if flip_columns else directions[:, columns],
        -directions[:, rows] if flip_rows else directions[:, rows],
    )
    step = float(linear[:, 2] @ normal)
    if voxels.shape[2] > 1 and abs(step) < 0.1 * max(float(lengths[2]), 1e-6):
        raise ValueError("the slices lie in each other's plane: give the true affine")
    flips = [axis for axis, flip in ((0, step < 0), (2, flip_rows), (3, flip_columns)) if flip]
    return voxels.permute(2, 3, rows, columns).flip(flips), [float(lengths[rows]), float(lengths[columns])]


def prepared_pictures(voxels, affine, settings: dict) -> Tensor:
    """A series as `medclip prepare` makes it: (N, H, W) int16, all phases of the first slice, then the next.

    Args:
        voxels: see `hang`; array or tensor.
        affine: see `hang`.
        settings: its entry in `series` of config.json.
    """
    if hasattr(voxels, "astype"):  # NumPy's: native byte order, no negative strides
        voxels = voxels.astype(voxels.dtype.newbyteorder("="))
    pictures, (height, width) = hang(torch.as_tensor(voxels).cpu(), affine)
    slices, phases, *size = pictures.shape
    flat = to_hu(pictures.reshape(-1, *size), settings["modality"])
    if settings["percentiles"]:
        flat = window_by_percentiles(flat, settings["percentiles"])
    if settings["frames"] == "middle":
        flat = flat.unflatten(0, (slices, phases))[slices // 2]
    # Pictures one behind the other, a mm apart: along them nothing is interpolated.
    linear = torch.diag(torch.tensor([1.0, height, width], dtype=torch.float64))
    grid = torch.cat([linear, torch.zeros(3, 1, dtype=torch.float64)], dim=1)
    shape, spacing = (len(flat), *settings["shape"][1:]), (1.0, *settings["spacing"][1:])
    return crop_and_resample(flat, grid, shape, spacing, None, int(flat.min()))
