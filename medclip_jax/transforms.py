"""On the device, inside the step: Hounsfield units to intensities, projections, augmentation and crops."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, UInt8

from medclip_jax.corpora.study import OUTSIDE_LABEL

AIR_HU = -1024
"""Fills what a shift leaves empty; the same value as in prepared volumes."""

BLOB_HU = (-1000, 100)
"""Range in which blobs are looked for: air to soft tissue, so that bone and calcium are no brighter."""

BLOB_DISTANCE = {1: 3, 3: 2}
"""Voxels along an axis from a blob's middle to its surroundings, by the number of axes that a step takes."""


def to_float(
    volume: Num[Array, "batch depth height width"], windows: Sequence[tuple[float, float]]
) -> Float[Array, "batch depth height width channels"]:
    """Window Hounsfield units: one channel a window, ``low`` to -1 and ``high`` to +1, clipped there.

    Args:
        volume: (B, D, H, W) HU.
        windows: (low, high) in HU, one or more; e.g. ``[(-1000, 1000)]``.

    Returns:
        (B, D, H, W, C) float32.

    Raises:
        ValueError: no window, or one whose low end is not below its high end.
    """
    if not windows:
        raise ValueError("no intensity window: give at least one (low, high) in HU, e.g. (-1000, 1000)")
    channels = []
    for low, high in windows:
        if not low < high:
            raise ValueError(f"window ({low}, {high}) is empty: give (low, high) in HU with low < high")
        clipped = jnp.clip(volume.astype(jnp.float32), low, high)
        channels.append((clipped - low) * (2.0 / (high - low)) - 1.0)
    return jnp.stack(channels, axis=-1)


def project(
    volume: Num[Array, "batch depth height width"], cell: tuple[int, int, int], how: str
) -> Float[Array, "batch d h w"]:
    """One value for each cell of voxels: its mean, its maximum or minimum, or its clearest blob.

    A maximum keeps a plaque or nodule that a mean would drown; a minimum keeps emphysema. Radiologists look
    at thin slabs in the same way. "blob" is the maximum of `blobs`: a nodule, and not the vessel or the chest
    wall that are as bright.

    Args:
        volume: (B, D, H, W) HU.
        cell: voxels of a cell along depth, height, width; must divide the volume.
        how: "mean", "max", "min" or "blob".

    Returns:
        (B, D / cell, H / cell, W / cell) HU; for "blob" a difference of HU.

    Raises:
        ValueError: a cell that does not divide the volume, an odd one for "blob", or an unknown `how`.
    """
    if how not in ("mean", "max", "min", "blob"):
        raise ValueError(f"projection {how!r} is unknown: use 'mean', 'max', 'min' or 'blob'")
    shape = volume.shape[1:]
    if any(size % step for size, step in zip(shape, cell, strict=True)):
        raise ValueError(
            f"cells of {tuple(cell)} voxels do not divide volumes of {shape}: choose cells that do"
        )
    if how == "blob":
        if any(step % 2 for step in cell):
            raise ValueError(f"blobs are sought at every second voxel: cells of {tuple(cell)} must be even")
        return project(blobs(volume), tuple(step // 2 for step in cell), "max")
    d, h, w = cell
    cut = volume.reshape(-1, shape[0] // d, d, shape[1] // h, h, shape[2] // w, w)
    if how == "mean":
        return cut.astype(jnp.float32).mean(axis=(2, 4, 6))
    return (cut.max if how == "max" else cut.min)(axis=(2, 4, 6)).astype(jnp.float32)


def blobs(volume: Num[Array, "batch depth height width"]) -> Float[Array, "batch d h w"]:
    """How far each second voxel along each axis stands out of everything around it.

    The mean of 3 x 3 x 3 voxels less the highest such mean at 14 points around: three voxels away along each
    axis, two along every axis on the diagonals. A vessel continues in some direction, a wall on one side;
    only what ends on all sides, such as a nodule of up to five voxels, is left above zero.

    Args:
        volume: (B, D, H, W) HU, clipped here to `BLOB_HU`.

    Returns:
        (B, ceil(D / 2), ceil(H / 2), ceil(W / 2)) difference of HU; 0 or less where nothing stands out.

    References:
        The discrete form of blob detectors for lung nodules, such as Li, Sone and Doi 2003, "Selective
        enhancement filters for nodules, vessels, and airway walls in two- and three-dimensional CT scans".
    """
    sums = jnp.clip(jnp.round(volume), *BLOB_HU).astype(jnp.int16)  # 27 of them still fit 16 bits
    for axis in (1, 2, 3):
        size = sums.shape[axis]
        wide = jnp.pad(sums, [(int(a == axis),) * 2 for a in range(4)], mode="edge")
        first, middle, last = (
            jax.lax.slice_in_dim(wide, start, start + size, axis=axis) for start in range(3)
        )
        sums = first + middle + last
    margin = max(BLOB_DISTANCE.values())
    wide = jnp.pad(sums, [(0, 0), *[(margin, margin)] * 3], mode="edge")
    middle = sums[:, ::2, ::2, ::2]
    highest = jnp.full_like(middle, jnp.iinfo(jnp.int16).min)
    for step in itertools.product((-1, 0, 1), repeat=3):
        distance = BLOB_DISTANCE.get(sum(map(abs, step)))
        if distance is not None:
            depth, height, width = (
                slice(margin + distance * direction, margin + distance * direction + size, 2)
                for direction, size in zip(step, sums.shape[1:], strict=True)
            )
            highest = jnp.maximum(highest, wide[:, depth, height, width])
    return (middle - highest).astype(jnp.float32) / 27.0


def augment(
    volume: Num[Array, "batch depth height width"],
    keys: jax.Array,
    *,
    shift_voxels: tuple[int, int, int] = (0, 0, 0),
    flip_width: bool = False,
    noise_hu: float = 0.0,
    gain: float = 0.0,
    offset_hu: float = 0.0,
) -> Num[Array, "batch depth height width"]:
    """Vary each sample on its own: a function of its key alone.

    Args:
        volume: (B, D, H, W) HU.
        keys: (B,) one random key a sample.
        shift_voxels: largest shift along depth, height, width, either way; air moves in.
        flip_width: mirror left and right in half of the samples. Anatomically wrong; off by default.
        noise_hu: largest standard deviation of white noise; each sample draws its own below it.
        gain: largest relative change of contrast, about 0 HU: HU x (1 + u), u within +-gain.
        offset_hu: largest change of level, either way.

    Returns:
        (B, D, H, W): the type of `volume` where only geometry changed, else float32 HU. With everything
        off, `volume` itself.
    """

    def one(volume, key):
        _, _, level, spread, grain = jax.random.split(key, 5)
        volume = _move(volume, key, shift_voxels, flip_width, AIR_HU)
        if gain or offset_hu:
            factor, offset = jax.random.uniform(level, (2,), minval=-1.0, maxval=1.0)
            volume = volume.astype(jnp.float32) * (1.0 + gain * factor) + offset_hu * offset
        if noise_hu:
            scale = noise_hu * jax.random.uniform(spread)
            volume = volume.astype(jnp.float32) + scale * jax.random.normal(grain, volume.shape)
        return volume

    return jax.vmap(one)(volume, keys)


def augment_labels(
    labels: UInt8[Array, "batch depth height width"],
    keys: jax.Array,
    *,
    shift_voxels: tuple[int, int, int] = (0, 0, 0),
    flip_width: bool = False,
) -> UInt8[Array, "batch depth height width"]:
    """Move label maps as `augment` with these keys moves the volumes that they belong to.

    What a shift leaves empty counts for nothing (`OUTSIDE_LABEL`). A mirrored map keeps its classes, so that
    what is called left lies on the right: another reason to leave `flip_width` off.

    Args:
        labels: (B, D, H, W) classes.
        keys: (B,) as given to `augment`; so are the others.

    Returns:
        (B, D, H, W).
    """
    move = functools.partial(
        _move, shift_voxels=tuple(shift_voxels), flip_width=flip_width, fill=OUTSIDE_LABEL
    )
    return jax.vmap(move)(labels, keys)


def _move(volume, key, shift_voxels, flip_width, fill):
    """Shift and mirror one (D, H, W) array by its key; `fill` moves in."""
    if any(shift_voxels):
        start = _shift_offset(key, shift_voxels) + jnp.asarray(shift_voxels)
        wide = jnp.pad(volume, [(s, s) for s in shift_voxels], constant_values=fill)
        volume = jax.lax.dynamic_slice(wide, start, volume.shape)
    if flip_width:
        mirror = jax.random.split(key, 5)[1]
        volume = jnp.where(jax.random.bernoulli(mirror), volume[:, :, ::-1], volume)
    return volume


def random_crops(
    volume: Num[Array, "batch depth height width"],
    keys: jax.Array,
    *,
    count: int,
    shape: tuple[int, int, int],
) -> Num[Array, "batch count d h w"]:
    """Cut boxes out of each volume, every position inside it being equally likely.

    Args:
        volume: (B, D, H, W); label maps with the keys of their volumes give the same boxes.
        keys: (B,) one random key a sample: where its boxes lie is a function of its key alone.
        count: M boxes of each volume.
        shape: (d, h, w) voxels of a box.

    Returns:
        (B, M, d, h, w), of the type of `volume`.

    Raises:
        ValueError: a box is larger than the volume.

    References:
        T3D, section 3.3, "Generating local views".
    """
    slack = [size - part for size, part in zip(volume.shape[1:], shape, strict=True)]
    if min(slack) < 0:
        raise ValueError(
            f"crops of {tuple(shape)} voxels do not fit into volumes of {volume.shape[1:]}: take smaller ones"
        )

    starts = jax.vmap(lambda key: jax.random.randint(key, (count, 3), 0, jnp.asarray(slack) + 1))(keys)
    return cut_boxes(volume, starts, shape)


def foreground_starts(
    labels: UInt8[Array, "batch depth height width"],
    keys: jax.Array,
    *,
    count: int,
    shape: tuple[int, int, int],
    foreground: float,
) -> Int[Array, "batch count 3"]:
    """Where to cut boxes out of each volume so that a share of them has a voxel of a class in the middle.

    That voxel is one of all that have a class, each equally likely; the middle of the other boxes is one of
    the background's. Near the border the box is moved into the volume. Where a map has no voxel of the kind
    that is wanted, any labeled voxel will do, and any voxel where none is labeled.

    Args:
        labels: (B, D, H, W) classes, 0 the background, `OUTSIDE_LABEL` for voxels that count for nothing.
        keys: (B,) one random key a sample: where its boxes lie is a function of its key and map alone.
        count: M boxes of each volume.
        shape: (d, h, w) voxels of a box; it must fit into the volume.
        foreground: share of the boxes, each drawing on its own: .5 for as many of either kind.

    Returns:
        (B, M, 3) first voxel of each box.
    """
    slack = jnp.asarray([size - part for size, part in zip(labels.shape[1:], shape, strict=True)])
    middle = jnp.asarray(shape) // 2

    def kinds(rows):
        valid = rows != OUTSIDE_LABEL
        return jnp.stack([valid & (rows == 0), valid & (rows > 0), valid, jnp.ones_like(valid)])

    def draw(labels, key):
        # Counted by rows first: numbers of all voxels of a volume would take 16 times its memory.
        rows = labels.reshape(-1, labels.shape[-1])
        ends = jnp.cumsum(kinds(rows).sum(axis=-1), axis=-1)
        kind_key, place_key = jax.random.split(key)
        kind = jax.random.bernoulli(kind_key, foreground, (count,)).astype(jnp.int32)
        for other in (2, 3):
            kind = jnp.where(ends[kind, -1] == 0, other, kind)
        rank = jax.random.randint(place_key, (count,), 0, ends[kind, -1])

        def find(kind, rank):
            row = jnp.searchsorted(ends[kind], rank, side="right")
            rank = rank - jnp.where(row > 0, ends[kind, row - 1], 0)
            column = jnp.searchsorted(jnp.cumsum(kinds(rows[row])[kind]), rank, side="right")
            return jnp.stack([row // labels.shape[1], row % labels.shape[1], column])

        return jnp.clip(jax.vmap(find)(kind, rank) - middle, 0, slack)

    return jax.vmap(draw)(labels, keys)


def cut_boxes(
    volume: Num[Array, "batch depth height width"],
    starts: Int[Array, "batch count 3"],
    shape: tuple[int, int, int],
) -> Num[Array, "batch count d h w"]:
    """Cut boxes of one shape out of volumes.

    Args:
        volume: (B, D, H, W).
        starts: (B, M, 3) first voxel of each.
        shape: (d, h, w).
    """

    def cut(volume, starts):
        return jax.vmap(lambda start: jax.lax.dynamic_slice(volume, start, shape))(starts)

    return jax.vmap(cut)(volume, starts)


def mirror(
    boxes: Num[Array, "boxes d h w"], keys: jax.Array, probability: float
) -> Num[Array, "boxes d h w"]:
    """Mirror each box along each axis with some probability; with the same keys, its label map likewise.

    Args:
        boxes: (N, d, h, w).
        keys: (N,) one random key a box.
        probability: for each axis.
    """

    def one(box, key):
        turned = jax.random.bernoulli(key, probability, (3,))
        for axis in range(3):
            box = jnp.where(turned[axis], jnp.flip(box, axis), box)
        return box

    return jax.vmap(one)(boxes, keys)


def quarter_turns(
    boxes: Num[Array, "boxes d h w"], keys: jax.Array, probability: float
) -> Num[Array, "boxes d h w"]:
    """Turn each box about its first axis by one, two or three quarters with some probability.

    With the same keys, its label map is turned likewise. Nothing is interpolated.

    Args:
        boxes: (N, d, h, w), as high as wide.
        keys: (N,) one random key a box.
        probability: that a box is turned; each of the three turns is then equally likely.

    Raises:
        ValueError: boxes that are not as high as wide.

    References:
        T3D, appendix, "Segmentation tasks" (rotation with probability .3).
    """
    if boxes.shape[2] != boxes.shape[3]:
        raise ValueError(
            f"boxes of {boxes.shape[1:]} voxels change their shape by a quarter turn: take some that are as "
            "high as wide"
        )

    def one(box, key):
        whether, which = jax.random.split(key)
        turned = [jnp.rot90(box, count, axes=(1, 2)) for count in range(4)]
        count = jax.random.bernoulli(whether, probability) * jax.random.randint(which, (), 1, 4)
        return jnp.stack(turned)[count]

    return jax.vmap(one)(boxes, keys)


CROP_ASPECTS = (3 / 4, 4 / 3)
"""Width over height of the boxes of `augment_frames`."""


def augment_frames(
    frames: Float[Array, "batch frames height width"],
    keys: jax.Array,
    *,
    crop_area: tuple[float, float] = (1.0, 1.0),
    flip_width: bool = False,
    gain: float = 0.0,
    noise: float = 0.0,
) -> Float[Array, "batch frames height width"]:
    """Vary each study on its own, all of its frames alike, so that they still move as the heart does.

    Args:
        frames: (B, T, H, W) intensities.
        keys: (B,) one random key a sample.
        crop_area: smallest and largest share of the frame that a random box covers, which is then resized to
            the complete frame, bilinearly; (1, 1) for no such boxes.
        flip_width: mirror left and right in half of the samples. Anatomically wrong; off by default.
        gain: largest relative change of contrast: intensity x (1 + u), u within +-gain.
        noise: largest standard deviation of white noise; each sample draws its own below it.

    Returns:
        (B, T, H, W). With everything off, `frames` itself.

    References:
        Szegedy et al. 2015, "Going deeper with convolutions", section 6, for boxes of random area and aspect.
    """
    crops = tuple(crop_area) != (1.0, 1.0)
    if not (crops or flip_width or gain or noise):
        return frames

    def one(frames, key):
        box, mirror, contrast, spread, grain = jax.random.split(key, 5)
        if crops:
            frames = _resized_crop(frames, box, crop_area)
        if flip_width:
            frames = jnp.where(jax.random.bernoulli(mirror), frames[:, :, ::-1], frames)
        if gain:
            frames = frames * (1.0 + gain * jax.random.uniform(contrast, minval=-1.0, maxval=1.0))
        if noise:
            scale = noise * jax.random.uniform(spread)
            frames = frames + scale * jax.random.normal(grain, frames.shape, frames.dtype)
        return frames

    return jax.vmap(one)(frames, keys)


def beyond_mean_frame(
    frames: Float[Array, "batch frames height width"],
    view: Int[Array, "batch frames"],
    valid: Bool[Array, "batch frames"],
) -> Float[Array, "batch frames height width"]:
    """What each frame differs by from the mean frame of its series: of a beating heart, what moves.

    Args:
        frames: (B, T, H, W) intensities.
        view: (B, T) index of the series that a frame is of, -1 for none; those count as one series.
        valid: (B, T), False for padding, which has no part in a mean.

    Returns:
        (B, T, H, W); 0 on padding and where a series has one frame.
    """
    together = (view[:, :, None] == view[:, None]) & valid[:, None] & valid[:, :, None]
    share = together / jnp.maximum(together.sum(axis=2, keepdims=True), 1)
    frames = jnp.where(valid[..., None, None], frames, 0.0)
    return frames - jnp.einsum("btu,buhw->bthw", share.astype(frames.dtype), frames)


def _resized_crop(frames, key, crop_area):
    """A random box of all frames (T, H, W), resized to (H, W)."""
    area_key, aspect_key, place_key = jax.random.split(key, 3)
    shape = jnp.asarray(frames.shape[1:], jnp.float32)
    area = jax.random.uniform(area_key, minval=crop_area[0], maxval=crop_area[1])
    low, high = (jnp.log(aspect) for aspect in CROP_ASPECTS)
    root = jnp.exp(jax.random.uniform(aspect_key, minval=low, maxval=high) / 2)
    # Of the frame's height and width; a box that would stand out is as long as the frame there.
    sides = jnp.minimum(jnp.sqrt(area) * jnp.stack([1 / root, root]), 1.0)
    start = jax.random.uniform(place_key, (2,)) * (1.0 - sides) * shape
    scale = 1.0 / sides
    return jax.image.scale_and_translate(
        frames, frames.shape, (1, 2), scale, -start * scale, method="linear", antialias=False
    )


def shift_offsets(keys: jax.Array, shift_voxels: tuple[int, int, int]) -> Int[Array, "batch 3"]:
    """Where `augment` with these keys takes each volume from: voxel i shows what was at i + offset.

    Args:
        keys: (B,) as given to `augment`.
        shift_voxels: as given to `augment`.

    Returns:
        (B, 3) voxels along depth, height, width.
    """
    return jax.vmap(lambda key: _shift_offset(key, shift_voxels))(keys)


def shift_cells(
    cells: UInt8[Array, "batch maps depth height width"], offsets: Int[Array, "batch 3"], cell: int
) -> UInt8[Array, "batch maps depth height width"]:
    """Move maps of occupancy as a shift moves the volume that they belong to; nothing moves in.

    A cell that a shift cuts gives each neighbor the share that lands there, as if it were filled evenly.

    Args:
        cells: (B, O, d, h, w) shares of cells x 255.
        offsets: (B, 3) voxels, from `shift_offsets`.
        cell: voxels of a cell along each axis.

    Returns:
        (B, O, d, h, w).
    """
    moved = cells.astype(jnp.float32)
    for axis, size in enumerate(cells.shape[2:]):
        places = jnp.arange(size)
        source = places + offsets[:, axis, None] / cell
        share = jnp.maximum(1.0 - jnp.abs(source[:, :, None] - places), 0.0)
        moved = jnp.moveaxis(
            jnp.einsum("bij,bo...j->bo...i", share, jnp.moveaxis(moved, axis + 2, -1)), -1, axis + 2
        )
    return jnp.round(moved).astype(jnp.uint8)


def _shift_offset(key, shift_voxels):
    largest = jnp.asarray(shift_voxels)
    return jax.random.randint(jax.random.split(key, 5)[0], (3,), 0, 2 * largest + 1) - largest
