"""Patch kernels and position tables for another patch and another grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32


def resize_matrix(target: int, source: int) -> Float[np.ndarray, "{target} {source}"]:
    """Linear interpolation along one axis, as a matrix.

    Samples lie at the middles of equal cells over the same length, as in an image. Where there are fewer
    targets than sources the triangle is as wide as a target's cell, so that every source counts.

    Args:
        target: samples that come out.
        source: samples that go in.

    Returns:
        (target, source) float64; each row sums to 1.
    """
    step = source / target
    middles = (np.arange(target) + 0.5) * step - 0.5
    weights = np.maximum(0.0, 1.0 - np.abs(middles[:, None] - np.arange(source)) / max(step, 1.0))
    return weights / weights.sum(axis=1, keepdims=True)


def inflate(
    kernel: Float[np.ndarray, "width channels *size"], patch: Sequence[int], channels: int
) -> Float32[np.ndarray, "voxels width"]:
    """Make the kernel of 3D patches from that of 2D or 3D ones.

    Its answer to a patch is the answer of the given kernel to that patch resized linearly to the kernel's
    own size; to the patch's mean over depth where the kernel is 2D. With another number of channels the
    kernel answers to their mean as the given one does to a gray image.

    Args:
        kernel: of a convolution, (width, channels, [depth,] height, width of the patch).
        patch: voxels along depth, height, width.
        channels: intensity windows of a voxel.

    Returns:
        (pd * ph * pw * channels, width), rows in the order of `models.patches.patchify`.

    References:
        Carreira & Zisserman 2017 for repeating 2D kernels along the third axis.
    """
    kernel = np.asarray(kernel, np.float64)
    if kernel.ndim == 4:
        kernel = kernel[:, :, None]
        along_depth = np.full((1, patch[0]), 1.0 / patch[0])
    else:
        along_depth = resize_matrix(kernel.shape[2], patch[0])
    if kernel.shape[1] != channels:
        kernel = np.repeat(kernel.sum(axis=1, keepdims=True) / channels, channels, axis=1)
    along_height, along_width = (resize_matrix(kernel.shape[axis], patch[axis - 2]) for axis in (3, 4))
    made = np.einsum("ocdhw,dx,hy,wz->xyzco", kernel, along_depth, along_height, along_width, optimize=True)
    return made.reshape(-1, kernel.shape[0]).astype(np.float32)


def resize_positions(
    table: Float[np.ndarray, "tokens features"], source: Sequence[int], target: Sequence[int]
) -> Float32[np.ndarray, "positions features"]:
    """Interpolate a position table to another grid, linearly along every axis.

    Args:
        table: one row a patch, the last axis of the grid fastest.
        source: the table's grid: (height, width), which is repeated along depth, or (depth, height, width).
        target: patches along depth, height, width.

    Returns:
        (d * h * w, features), in the order of `models.patches.patchify`.
    """
    source = (1, *source) if len(source) == 2 else tuple(source)
    cells = np.asarray(table, np.float64).reshape(*source, -1)
    matrices = [resize_matrix(to, of) for to, of in zip(target, source, strict=True)]
    made = np.einsum("dhwf,xd,yh,zw->xyzf", cells, *matrices, optimize=True)
    return made.reshape(-1, cells.shape[-1]).astype(np.float32)
