"""Classes of the voxels of full volumes, from a model that looks at crops: a window slides over them."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int16, UInt8

from medclip_jax.evaluation.embedder import Embedder
from medclip_jax.objectives.base import Inputs, Objective

OVERLAP = 0.75
"""Of neighboring windows along each axis."""

_WIDTH = 0.125
"""Standard deviation of a window's weights, over its length."""

_LEAST = 1e-3
"""Weight of a window's corners; that of its middle is 1."""


def window_starts(
    shape: Sequence[int], window: Sequence[int], overlap: float = OVERLAP
) -> list[tuple[int, int, int]]:
    """First voxels of the windows that cover a volume; the last along an axis ends with it.

    Args:
        shape: (D, H, W) of the volume.
        window: (d, h, w), no larger.
        overlap: share of a window that its neighbor covers too, at least; 0 or more and below 1.

    Raises:
        ValueError: the window does not fit, or no such overlap.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap={overlap!r}: it is the share of a window, 0 or more and below 1")
    if any(part > size for part, size in zip(window, shape, strict=True)):
        raise ValueError(f"windows of {tuple(window)} voxels do not fit into a volume of {tuple(shape)}")
    axes = []
    for size, part in zip(shape, window, strict=True):
        step = max(1, int(part * (1 - overlap)))
        count = math.ceil((size - part) / step) + 1
        axes.append([min(index * step, size - part) for index in range(count)])
    return list(itertools.product(*axes))


@functools.cache
def window_weights(window: tuple[int, int, int]) -> Float32[np.ndarray, "d h w"]:
    """How much a window counts for each of its voxels: a Gaussian, as the middle sees most around it.

    Args:
        window: (d, h, w).

    References:
        Isensee et al. 2021, "nnU-Net", supplement, "Inference".
    """
    axes = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (_WIDTH * n)) ** 2) for n in window]
    weights = np.einsum("i,j,k->ijk", *axes)
    return np.maximum(weights, _LEAST).astype(np.float32)


def slide(
    embedder: Embedder,
    volumes: Sequence[Any],
    read: Callable[[int], Int16[np.ndarray, "D H W"]],
    *,
    overlap: float = OVERLAP,
) -> Iterator[UInt8[np.ndarray, "D H W"]]:
    """Class of each voxel of volumes, one volume after the other.

    Logits of the windows that see a voxel are averaged by `window_weights`; the class with the highest wins,
    of equal ones the first.

    Args:
        embedder: of a model that segments.
        volumes: what `read` is given; their number counts, and their order.
        read: index to a prepared volume, HU, of the model's shape.
        overlap: see `window_starts`.
    """
    window = tuple(embedder.objective.crop_shape())
    shape = tuple(embedder.layout.spec.shape)
    starts = window_starts(shape, window, overlap)
    weights = window_weights(window)[..., None]
    # Threads read ahead, and a window's neighbors are of the same volume.
    read = functools.lru_cache(maxsize=2)(read)

    def crop(index: int) -> tuple[dict[str, np.ndarray]]:
        volume, place = divmod(index, len(starts))
        return ({"volume": np.ascontiguousarray(read(volume)[_box(starts[place], window)])},)

    sums: Float32[np.ndarray, "D H W K"] | None = None
    total = np.zeros((*shape, 1), np.float32)
    for start in starts:
        total[_box(start, window)] += weights
    index = 0
    count = len(volumes) * len(starts)
    for logits in embedder.each(_segment, count, crop, label="segment", unit="window"):
        for one in np.asarray(logits):
            place = index % len(starts)
            if place == 0:
                sums = np.zeros((*shape, one.shape[-1]), np.float32)
            sums[_box(starts[place], window)] += one * weights
            index += 1
            if place == len(starts) - 1:
                yield (sums / total).argmax(axis=-1).astype(np.uint8)


def _box(start: Sequence[int], window: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(low, low + size) for low, size in zip(start, window, strict=True))


def _segment(objective: Objective, inputs: Inputs) -> jax.Array:
    return objective.segment(inputs)
