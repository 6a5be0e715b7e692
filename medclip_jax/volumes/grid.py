"""Where an array lies in the world, and maps on one such grid brought to another and written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, UInt8
from scipy import ndimage

from medclip_jax.volumes.geometry import resample_labels
from medclip_jax.volumes.volume import Volume

_LPS = np.diag([-1.0, -1.0, 1.0])
"""ITK's world is LPS, ours RAS."""

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
"""What `write_map` writes."""


@dataclass(frozen=True)
class Grid:
    """Where the voxels of an array lie.

    Attributes:
        shape: of the array.
        affine: (4, 4) from array index to RAS mm.
    """

    shape: tuple[int, int, int]
    affine: Float[np.ndarray, "4 4"]


def transfer(
    values: Float[np.ndarray, "I J K"], grid: Grid, target: Grid
) -> Float32[np.ndarray, "{target.shape[0]} {target.shape[1]} {target.shape[2]}"]:
    """Look a map up at the voxels of another grid, linearly interpolated; 0 where it does not reach.

    Args:
        values: the map.
        grid: where it lies.
        target: where it is wanted.
    """
    matrix = np.linalg.solve(grid.affine, target.affine)
    # "grid-constant" fades over one voxel at the border: an index off by rounding keeps its value.
    return ndimage.affine_transform(
        np.asarray(values, np.float32),
        matrix[:3, :3],
        offset=matrix[:3, 3],
        output_shape=tuple(target.shape),
        order=1,
        mode="grid-constant",
        cval=0.0,
    )


def transfer_labels(
    labels: UInt8[np.ndarray, "I J K"], grid: Grid, target: Grid
) -> UInt8[np.ndarray, "{target.shape[0]} {target.shape[1]} {target.shape[2]}"]:
    """Look the nearest label up at the voxels of another grid; 0 where the map does not reach.

    Args:
        labels: the map.
        grid: where it lies.
        target: where it is wanted.
    """
    # Of the volume that is wanted, its shape and place alone count: one voxel stands for all of them.
    voxels = np.broadcast_to(np.int16(0), target.shape)
    spacing = tuple(float(length) for length in np.linalg.norm(target.affine[:3, :3], axis=0))
    return resample_labels(labels, grid.affine, Volume(voxels, spacing, target.affine))


def check_map_path(path: str | os.PathLike) -> Path:
    """Check that `write_map` could write there.

    Raises:
        ValueError: the ending is none of `IMAGE_SUFFIXES`.
        FileNotFoundError: there is no such folder.
    """
    path = Path(path).expanduser()
    if not path.name.lower().endswith(IMAGE_SUFFIXES):
        raise ValueError(f"{path}: a map is written as {', '.join(IMAGE_SUFFIXES)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}")
    return path


def write_map(
    path: str | os.PathLike, values: Float32[np.ndarray, "I J K"] | UInt8[np.ndarray, "I J K"], grid: Grid
) -> None:
    """Write a map as an image file that viewers lay over the scan of the same grid; its type is kept.

    Args:
        path: ends in one of `IMAGE_SUFFIXES`.
        values: the map.
        grid: where it lies, index to RAS mm.

    Raises:
        ValueError: as `check_map_path`; or an oblique stack (gantry tilt), which only NIfTI can hold.
        FileNotFoundError: as `check_map_path`.
    """
    path = check_map_path(path)
    if path.name.lower().endswith((".nii", ".nii.gz")):
        import nibabel as nib

        image = nib.Nifti1Image(values, grid.affine)
        image.header.set_xyzt_units("mm")
        image.header["descrip"] = b"medclip_jax"
        nib.save(image, path)
        return
    import SimpleITK as sitk

    lengths = np.linalg.norm(grid.affine[:3, :3], axis=0)
    directions = grid.affine[:3, :3] / lengths
    if np.abs(directions.T @ directions - np.eye(3)).max() > 1e-3:
        raise ValueError(
            f"{path}: the slices of this scan are tilted, which only NIfTI holds: name it .nii.gz"
        )
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.transpose(2, 1, 0)))
    image.SetSpacing(lengths.tolist())
    image.SetDirection((_LPS @ directions).ravel().tolist())
    image.SetOrigin((_LPS @ grid.affine[:3, 3]).tolist())
    sitk.WriteImage(image, str(path), useCompression=True)
