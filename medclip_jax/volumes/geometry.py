"""Where voxels lie: orientation, resampling, cropping, and masks on any grid. World is RAS+ mm throughout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import permutations

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int16, Integer, Shaped, UInt8

from medclip_jax.volumes.volume import AIR_HU, Volume, VolumeRejected

try:
    from threadpoolctl import ThreadpoolController
except ImportError:
    ThreadpoolController = None

_BLOCK = 64
"""Output rows per matrix product: enough for BLAS, few enough to skip most zeros of a band matrix."""


def canonical(
    voxels: Shaped[np.ndarray, "I J K"], affine: Float[np.ndarray, "4 4"]
) -> tuple[Shaped[np.ndarray, "D H W"], Float[np.ndarray, "4 4"]]:
    """Reorder and flip axes so that they point most nearly to Superior, Anterior, Right.

    No value is interpolated: an oblique grid keeps its rotation in the returned affine.

    Args:
        voxels: any orientation.
        affine: homogeneous array index ``(i, j, k, 1)`` to RAS+ world mm.

    Returns:
        A view of `voxels` as (D, H, W), and the affine from ``(d, h, w, 1)`` to the same world.

    Raises:
        ValueError: if two axes of the affine are parallel or one has no length.
    """
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(directions).all() or abs(np.linalg.det(directions)) < 1e-4:
        raise ValueError("the affine has parallel axes or an axis of no length")
    # Which array axis goes to depth (S), height (A), width (R): the assignment with the largest cosines.
    order = max(permutations(range(3)), key=lambda p: sum(abs(directions[2 - k, p[k]]) for k in range(3)))
    flips = [directions[2 - k, order[k]] < 0 for k in range(3)]
    result = voxels.transpose(order)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    moved = np.eye(4)
    for k, (axis, flip) in enumerate(zip(order, flips, strict=True)):
        moved[:3, k] = -affine[:3, axis] if flip else affine[:3, axis]
    last = [voxels.shape[axis] - 1 if flip else 0 for axis, flip in zip(order, flips, strict=True)]
    moved[:3, 3] = affine[:3, 3] + affine[:3, list(order)] @ last
    return result, moved


def resample(volume: Volume, spacing_mm: Sequence[float]) -> Volume:
    """Resample to a new spacing, anti-aliased along every axis that gets coarser.

    The new grid shares the old one's center and orientation. Along each axis the weights are those of
    the linear interpolant averaged over a box of ``sqrt(scale**2 - 1)`` old voxels, where
    ``scale = new / old``; variances of boxes add, so one old voxel's own extent and this box make one
    new voxel. At ``scale <= 1`` there is no box: plain linear interpolation. Constants and
    linear ramps are reproduced exactly; beyond the border the edge voxel repeats.

    Args:
        volume: any volume.
        spacing_mm: wanted mm along depth, height, width.

    Returns:
        A volume of exactly that spacing, whose shape is the nearest that covers the old extent.

    Raises:
        ValueError: if a spacing is not positive and finite.
    """
    spacing = tuple(float(s) for s in spacing_mm)
    if len(spacing) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing):
        raise ValueError(
            f"spacing_mm must be three positive numbers (depth, height, width), got {spacing_mm}"
        )
    old = np.asarray(volume.spacing, dtype=float)
    scale = np.asarray(spacing) / old
    # Halves go down, with a margin for rounding errors of the spacing: a pure function of the ratio.
    shape = [max(1, math.floor(n / s + 0.5 - 1e-6)) for n, s in zip(volume.voxels.shape, scale, strict=True)]
    weights = [_axis_weights(n, m, s) for n, m, s in zip(volume.voxels.shape, shape, scale, strict=True)]
    affine = volume.affine.copy()
    affine[:3, :3] = volume.affine[:3, :3] * scale
    first = (np.asarray(volume.voxels.shape) - 1) / 2 - (np.asarray(shape) - 1) / 2 * scale
    affine[:3, 3] = volume.affine[:3, 3] + volume.affine[:3, :3] @ first
    with _one_blas_thread():
        voxels = _apply_weights(volume.voxels, weights)
    return replace(volume, voxels=voxels, spacing=spacing, affine=affine)


def _one_blas_thread() -> AbstractContextManager:
    """Keep BLAS on one thread: on a busy machine its threads would wait for each other in each product.

    Prepare runs one process per core anyway.
    """
    return (
        nullcontext()
        if ThreadpoolController is None
        else ThreadpoolController().limit(limits=1, user_api="blas")
    )


def _axis_weights(old: int, new: int, scale: float) -> Float32[np.ndarray, "new old"]:
    """Resampling matrix of one axis: row k holds the weights of the old samples in new sample k."""
    position = (old - 1) / 2 + (np.arange(new) - (new - 1) / 2) * scale
    width = np.sqrt(max(scale * scale - 1.0, 0.0))
    reach = int(np.ceil(width / 2)) + 1
    base = np.floor(position).astype(int)
    matrix = np.zeros((new, old))
    for offset in range(-reach, reach + 2):
        distance = position - (base + offset)
        if width > 1e-6:
            weight = (_hat_integral(distance + width / 2) - _hat_integral(distance - width / 2)) / width
        else:
            weight = np.maximum(0.0, 1.0 - np.abs(distance))
        np.add.at(matrix, (np.arange(new), np.clip(base + offset, 0, old - 1)), weight)
    return (matrix / matrix.sum(axis=1, keepdims=True)).astype(np.float32)


def _hat_integral(x: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Integral from -infinity to x of the hat function ``max(0, 1 - |t|)``."""
    x = np.clip(x, -1.0, 1.0)
    return 0.5 + x - 0.5 * x * np.abs(x)


def _bands(matrix: Float32[np.ndarray, "new old"], block: int) -> list[tuple[slice, slice, np.ndarray]]:
    """Cut a band matrix into row blocks with only the columns that are not zero."""
    bands = []
    for start in range(0, len(matrix), block):
        rows = slice(start, min(start + block, len(matrix)))
        used = np.flatnonzero(matrix[rows].any(axis=0))
        columns = slice(int(used[0]), int(used[-1]) + 1)
        bands.append((rows, columns, np.ascontiguousarray(matrix[rows, columns])))
    return bands


def _apply_weights(voxels: Integer[np.ndarray, "D H W"], weights: list[np.ndarray]) -> np.ndarray:
    """Apply one matrix per axis, slice by slice, so that what lies between stays in the processor's cache."""
    depth, height, width = weights
    in_height, in_width = _bands(height, _BLOCK), _bands(width, _BLOCK)
    rows = np.empty((len(height), voxels.shape[2]), np.float32)

    def reduce_plane(plane: np.ndarray, out: np.ndarray) -> None:
        for target, source, band in in_height:
            np.matmul(band, plane[source], out=rows[target])
        for target, source, band in in_width:
            np.matmul(rows[:, source], band.T, out=out[:, target])

    shape = (len(depth), len(height), len(width))
    result = np.empty(shape, np.int16)
    plane = np.empty(shape[1:], np.float32)
    if len(depth) <= voxels.shape[0]:
        # Coarser in depth: combine whole slices first, then shrink only the few that remain. A ring of
        # converted slices serves neighboring output slices, whose supports overlap.
        reach = max(source.stop - source.start for _, source, _ in _bands(depth, 1))
        ring = np.zeros((reach, voxels.shape[1] * voxels.shape[2]), np.float32)
        ready = 0
        for target, source, band in _bands(depth, 1):
            for d in range(max(ready, source.start), source.stop):
                ring[d % reach].reshape(voxels.shape[1:])[...] = voxels[d]
            ready = source.stop
            rolled = np.zeros(reach, np.float32)
            rolled[np.arange(source.start, source.stop) % reach] = band[0]
            reduce_plane((rolled @ ring).reshape(voxels.shape[1:]), plane)
            result[target.start] = _to_int16(plane)
        return result
    reduced = np.empty((voxels.shape[0], shape[1] * shape[2]), np.float32)
    for d in range(voxels.shape[0]):
        reduce_plane(voxels[d].astype(np.float32), reduced[d].reshape(shape[1:]))
    for target, source, band in _bands(depth, _BLOCK):
        result[target] = _to_int16(band @ reduced[source]).reshape(-1, *shape[1:])
    return result


def _to_int16(values: Float32[np.ndarray, ...]) -> np.ndarray:
    return np.rint(values, out=values).astype(np.int16)


def crop_or_pad(
    volume: Volume,
    shape: Sequence[int],
    *,
    center: Sequence[float] | None = None,
    fill: int = AIR_HU,
) -> Volume:
    """Cut or extend to a shape, on the volume's own grid: nothing is interpolated.

    Args:
        volume: any volume.
        shape: wanted (D, H, W).
        center: world RAS mm that the result's middle should be nearest to; default the volume's middle.
        fill: HU of voxels outside the old volume.

    Raises:
        ValueError: if the shape is not three positive integers or the center is not finite.
    """
    size = tuple(int(n) for n in shape)
    if len(size) != 3 or min(size) < 1:
        raise ValueError(f"shape must be three positive integers (depth, height, width), got {shape}")
    old = np.asarray(volume.voxels.shape)
    if center is None:
        middle = (old - 1) / 2
    else:
        point = np.asarray(center, dtype=float)
        if point.shape != (3,) or not np.isfinite(point).all():
            raise ValueError(f"center must be three finite numbers in RAS mm, got {center}")
        middle = np.linalg.solve(volume.affine[:3, :3], point - volume.affine[:3, 3])
    # The small term keeps a half that is only off by rounding from flipping between neighbors.
    start = np.floor(middle - (np.asarray(size) - 1) / 2 + 0.5 + 1e-6).astype(int)
    source = [slice(max(0, a), max(0, min(n, a + m))) for a, m, n in zip(start, size, old, strict=True)]
    voxels = np.full(size, fill, dtype=volume.voxels.dtype)
    if all(s.stop > s.start for s in source):
        target = tuple(slice(s.start - a, s.stop - a) for s, a in zip(source, start, strict=True))
        voxels[target] = volume.voxels[tuple(source)]
    affine = volume.affine.copy()
    affine[:3, 3] += volume.affine[:3, :3] @ start
    return replace(volume, voxels=voxels, affine=affine)


def resample_labels(
    labels: Integer[np.ndarray, "I J K"] | Bool[np.ndarray, "I J K"],
    labels_affine: Float[np.ndarray, "4 4"],
    like: Volume,
) -> Integer[np.ndarray, "D H W"]:
    """Look up the label nearest to each voxel of a volume; 0 where the label map does not reach.

    Args:
        labels: a mask or label map on any grid, crop or orientation.
        labels_affine: homogeneous index of `labels`, in its own axis order, to RAS+ world mm.
        like: the volume whose grid is wanted.

    Returns:
        Labels on the grid of `like`, of the type of `labels` (a bool mask becomes uint8).
    """
    if labels.dtype == bool:
        labels = labels.view(np.uint8)
    to_label = np.linalg.solve(labels_affine, like.affine)
    matrix, shift = to_label[:3, :3], to_label[:3, 3]
    major = np.abs(matrix).argmax(axis=1)
    others = np.abs(matrix).sum(axis=1) - np.abs(matrix).max(axis=1)
    extent = max(like.voxels.shape)
    if len(set(major)) == 3 and (others * extent < 1e-2).all():
        # Parallel grids: one index list per axis.
        result = np.zeros(like.voxels.shape, labels.dtype)
        inside, picks = [None] * 3, [None] * 3
        for axis, source in enumerate(major):
            index = np.floor(
                matrix[axis, source] * np.arange(like.voxels.shape[source]) + shift[axis] + 0.5 + 1e-6
            )
            valid = (index >= 0) & (index < labels.shape[axis])
            inside[source], picks[source] = np.flatnonzero(valid), index[valid].astype(int)
        moved = labels.transpose(np.argsort(major))
        result[np.ix_(*inside)] = moved[np.ix_(*picks)]
        return result
    result = np.zeros(like.voxels.shape, labels.dtype)
    height, width = np.meshgrid(*(np.arange(n) for n in like.voxels.shape[1:]), indexing="ij")
    limits = np.asarray(labels.shape)[:, None, None]
    for d in range(like.voxels.shape[0]):
        position = (
            matrix[:, 0, None, None] * d
            + matrix[:, 1, None, None] * height
            + matrix[:, 2, None, None] * width
            + shift[:, None, None]
        )
        index = np.floor(position + 0.5 + 1e-6).astype(int)
        valid = ((index >= 0) & (index < limits)).all(axis=0)
        result[d][valid] = labels[tuple(index[:, valid])]
    return result


def fraction_in_cells(mask: Shaped[np.ndarray, "D H W"], cell: Sequence[int]) -> UInt8[np.ndarray, "d h w"]:
    """Share of each cell that a mask fills, by exact counting, as ``round(255 * fraction)``.

    Args:
        mask: nonzero inside.
        cell: voxels per cell along depth, height, width; must divide the shape.

    Raises:
        ValueError: if the cell does not divide the shape.
    """
    shape, size = mask.shape, tuple(int(c) for c in cell)
    if len(size) != 3 or min(size) < 1 or any(n % c for n, c in zip(shape, size, strict=True)):
        raise ValueError(f"cell {tuple(cell)} must divide the mask's shape {shape}: change either one")
    split = (mask != 0).reshape(shape[0] // size[0], size[0], shape[1] // size[1], size[1], -1, size[2])
    count = split.sum(axis=5, dtype=np.int32).sum(axis=(1, 3))
    total = int(np.prod(size))
    # Integer arithmetic, halves up: the same on every machine.
    return ((count.astype(np.int64) * 510 + total) // (2 * total)).astype(np.uint8)


def mask_center(
    mask: Shaped[np.ndarray, "I J K"], affine: Float[np.ndarray, "4 4"]
) -> Float[np.ndarray, " 3"]:
    """Center of mass of a mask's nonzero voxels, in the affine's world (RAS mm).

    Raises:
        ValueError: if the mask is empty.
    """
    inside = mask != 0
    total = int(np.count_nonzero(inside))
    if total == 0:
        raise ValueError("the mask is empty, it has no center: crop around the volume's middle instead")
    index: Int[np.ndarray, " 3"] = np.array(
        [
            inside.sum(axis=tuple(a for a in range(3) if a != axis), dtype=np.int64) @ np.arange(n) / total
            for axis, n in enumerate(mask.shape)
        ]
    )
    return affine[:3, :3] @ index + affine[:3, 3]


def straighten(
    voxels: Int16[np.ndarray, "D H W"], affine: Float[np.ndarray, "4 4"], *, fill: int = AIR_HU
) -> tuple[Int16[np.ndarray, "D H W"], Float[np.ndarray, "4 4"], tuple[str, ...]]:
    """Undo a gantry tilt: shift each slice in its plane until the stack is at right angles to it.

    Shifts are by linear interpolation; the depth spacing becomes the distance between the planes. The
    middle slice stays in place, so a point keeps its world position.

    Args:
        voxels: canonical order.
        affine: index to RAS+ mm; only the depth axis may lean.
        fill: value that enters at the borders.

    Returns:
        Voxels, affine, and a note of the tilt in degrees; the input unchanged where there is no tilt.

    Raises:
        VolumeRejected: "sheared-grid" when the slices are not rectangular or the tilt exceeds 35°.
    """
    depth, height, width = affine[:3, :3].T
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    normal = np.cross(width, height)
    normal *= np.sign(normal @ depth) / np.linalg.norm(normal)
    tilt = np.degrees(np.arccos(np.clip(normal @ depth / lengths[0], -1, 1)))
    skew = abs(height @ width) / (lengths[1] * lengths[2])
    if skew > 5e-3 or tilt > 35:
        raise VolumeRejected(
            "sheared-grid",
            "The voxel axes are not at right angles: resample the volume to a rectangular grid.",
        )
    if tilt < 0.2:
        return voxels, affine, ()
    lean = (depth @ height / lengths[1] ** 2, depth @ width / lengths[2] ** 2)  # voxels of shift per slice
    middle = (len(voxels) - 1) / 2
    result = np.empty_like(voxels)
    for d in range(len(voxels)):
        plane = voxels[d].astype(np.float32)
        for axis, step in enumerate(lean):
            plane = _shift(plane, step * (d - middle), axis, fill)
        result[d] = _to_int16(plane)
    straight = affine.copy()
    straight[:3, 0] = (depth @ normal) * normal
    straight[:3, 3] += middle * (depth - straight[:3, 0])
    return result, straight, (f"gantry-tilt-corrected:{tilt:.0f}deg",)


def _shift(
    plane: Float32[np.ndarray, "H W"], shift: float, axis: int, fill: int
) -> Float32[np.ndarray, "H W"]:
    """Move content by `shift` voxels towards higher indices; linear interpolation, `fill` from outside."""
    position = np.arange(plane.shape[axis]) - shift
    low = np.floor(position).astype(int)
    share = (position - low).astype(np.float32)
    padded = np.concatenate([plane, np.full_like(plane.take([0], axis), fill)], axis)
    outside = plane.shape[axis]  # the index of the added row
    take = [np.where((i >= 0) & (i < outside), i, outside) for i in (low, low + 1)]
    share = share[:, None] if axis == 0 else share[None, :]
    return padded.take(take[0], axis) * (1 - share) + padded.take(take[1], axis) * share
