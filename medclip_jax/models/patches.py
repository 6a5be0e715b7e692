"""Volumes to rows of voxels, one row a patch, and back."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, Num, UInt8

from medclip_jax.models.linear import Linear
from medclip_jax.sharding import batch_sharded, compiled_for

MOST_TOKENS = 1024
"""Patches of a volume that a laptop still trains on."""

PATCH_MM = 24.0
"""Edge of a patch, as in HiPro-CT (8 x 24 x 24 voxels of 3 x 1 x 1 mm)."""

EXTENT_MM = 336.0
"""What a resized volume is counted as along each axis: as much as `medclip prepare` crops by default."""


def grid_of(shape: tuple[int, int, int], patch: tuple[int, int, int]) -> tuple[int, int, int]:
    """Patches along depth, height, width.

    Raises:
        ValueError: the patch does not divide the shape; the message names the axis.
    """
    for axis, size, step in zip(("depth", "height", "width"), shape, patch, strict=True):
        if size % step:
            raise ValueError(
                f"patch {patch} does not divide the volume {shape}: {axis} {size} leaves {size % step}"
                f" voxels. Prepare the volumes at a multiple of {step} or change the patch"
            )
    return tuple(size // step for size, step in zip(shape, patch, strict=True))


def choose_patch(
    shape: tuple[int, int, int],
    spacing: tuple[float | None, float | None, float | None],
    *,
    tokens: int = MOST_TOKENS,
) -> tuple[int, int, int]:
    """The patch that divides a volume and is nearest to a cube of `PATCH_MM`.

    >>> choose_patch((64, 160, 160), (3.0, 1.5, 1.5))
    (8, 16, 16)

    Args:
        shape: (D, H, W) voxels.
        spacing: mm of a voxel along each axis; None where each volume has its own, and is counted as
            `EXTENT_MM` long.
        tokens: patches that there may be. Where cubes of that size would be more, patches are larger.

    Returns:
        Voxels along depth, height, width.
    """
    spacing = [EXTENT_MM / n if step is None else step for n, step in zip(shape, spacing, strict=True)]
    divisors = [[step for step in range(1, size + 1) if size % step == 0] for size in shape]
    fitting = [patch for patch in itertools.product(*divisors) if math.prod(grid_of(shape, patch)) <= tokens]

    def distance(patch: tuple[int, ...]) -> float:
        edges = [math.log(size * step / PATCH_MM) for size, step in zip(patch, spacing, strict=True)]
        # Slices are thicker than pixels are wide; in the plane, patches are to be square.
        return sum(edge**2 for edge in edges) + 2.0 * (edges[1] - edges[2]) ** 2

    return min(fitting, key=lambda patch: (round(distance(patch), 6), patch))


def patchify(
    volume: Num[Array, "batch depth height width channels"], patch: tuple[int, int, int]
) -> Num[Array, "batch tokens voxels"]:
    """Cut a volume into non-overlapping patches.

    Tokens run over depth, height, width (width fastest); inside a patch the voxels run the same way, the
    channel fastest of all.

    Args:
        volume: (B, D, H, W, C).
        patch: voxels along depth, height, width.

    Returns:
        (B, N, pd * ph * pw * C).
    """
    batch, *shape, channels = volume.shape
    d, h, w = grid_of(tuple(shape), patch)
    pd, ph, pw = patch
    if compiled_for()[0] == "tpu":
        # Whole rows first, then what is inside of them, each in memory before the next reads it: a TPU fills
        # the last axis up to 128, and would hold 16 times the volume where it is as short as a patch.
        rows = volume.reshape(batch, d, pd, h, ph, -1).transpose(0, 1, 3, 2, 4, 5)
        rows = jax.lax.optimization_barrier(rows.reshape(batch * d * h, pd * ph, -1))
        tokens = rows.reshape(batch * d * h, pd * ph, w, pw * channels).transpose(0, 2, 1, 3)
        return jax.lax.optimization_barrier(tokens.reshape(batch, d * h * w, -1))
    cut = volume.reshape(batch, d, pd, h, ph, w, pw, channels)
    return cut.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(batch, d * h * w, pd * ph * pw * channels)


def unpatchify(
    patches: Num[Array, "batch tokens voxels"],
    grid: tuple[int, int, int],
    patch: tuple[int, int, int],
    channels: int,
) -> Num[Array, "batch depth height width channels"]:
    """Undo `patchify`.

    Args:
        patches: (B, N, pd * ph * pw * C).
        grid: patches along depth, height, width.
        patch: voxels along depth, height, width.
        channels: intensity windows of a voxel.

    Returns:
        (B, D, H, W, C).
    """
    d, h, w = grid
    pd, ph, pw = patch
    cut = patches.reshape(-1, d, h, w, pd, ph, pw, channels)
    return cut.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, d * pd, h * ph, w * pw, channels)


def mean_and_peak(
    volume: Float[Array, "batch depth height width channels"], patch: tuple[int, int, int]
) -> Float[Array, "batch tokens {2*channels}"]:
    """Each channel's mean over each patch, then each channel's maximum.

    Args:
        volume: (B, D, H, W, C).
        patch: voxels along depth, height, width.

    Returns:
        (B, N, 2 C).
    """
    channels = volume.shape[-1]
    voxels = patchify(volume, patch)
    voxels = voxels.reshape(*voxels.shape[:2], -1, channels)
    return jnp.concatenate([voxels.mean(axis=2), voxels.max(axis=2)], axis=-1)


def pool_cells(
    organs: UInt8[Array, "batch organs d h w"], cell: int, patch: tuple[int, int, int]
) -> Float32[Array, "batch organs tokens"]:
    """Share of each patch that each organ fills, from its share of each cell.

    Cells are of one size, so a patch's share is the mean over its cells. Their sums are of integers, hence
    exact in any order and on any device.

    Args:
        organs: (B, O, d, h, w) shares of cells x 255, as prepared.
        cell: voxels per cell along each axis.
        patch: voxels per patch along depth, height, width.

    Returns:
        (B, O, N) in [0, 1], tokens in the order of `patchify`.

    Raises:
        ValueError: the cell does not divide the patch, or the patch does not divide the volume.
    """
    if cell < 1 or any(size % cell for size in patch):
        raise ValueError(
            f"organ cells of {cell} voxels do not divide the patch {patch}: prepare with --organ-cell "
            f"{math.gcd(*patch)} or a divisor of it, or change the patch"
        )
    batch, channels, *cells = organs.shape
    steps = tuple(size // cell for size in patch)
    d, h, w = grid_of(tuple(size * cell for size in cells), tuple(patch))
    cut = organs.reshape(batch, channels, d, steps[0], h, steps[1], w, steps[2])
    sums = cut.sum(axis=(3, 5, 7), dtype=jnp.uint32).reshape(batch, channels, d * h * w)
    # The compiler may multiply by a rounded reciprocal instead, which can exceed 1.
    return jnp.minimum(sums.astype(jnp.float32) / (255 * math.prod(steps)), 1.0)


class PatchEmbedding(nnx.Module):
    """A linear map of each patch's voxels: the same numbers as a 3D convolution with stride = patch.

    A convolution's kernel (pd, ph, pw, C, width) is this kernel reshaped. As a matrix product it is
    faster on every device, and it can embed only the patches that are requested.

    Args:
        patch: voxels along depth, height, width.
        channels: intensity windows of a voxel.
        width: features of a token.
        peaks: append each channel's maximum over the patch to its voxels before the map: one bright voxel
            anywhere in the patch then shows, which a linear map of many voxels cannot tell.
        dtype: compute type.
        rngs: draws the initial parameters.
    """

    def __init__(
        self,
        patch: tuple[int, int, int],
        channels: int,
        width: int,
        *,
        peaks: bool = False,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.patch = tuple(patch)
        self.channels = channels
        self.peaks = peaks
        voxels = patch[0] * patch[1] * patch[2] * channels
        self.projection = Linear(
            voxels + channels * peaks,
            width,
            dtype=dtype,
            kernel_init=nnx.initializers.xavier_uniform(),
            rngs=rngs,
        )

    def __call__(
        self,
        volume: Float[Array, "batch depth height width channels"],
        keep: Int[Array, "batch kept"] | None = None,
    ) -> Float[Array, "batch kept features"]:
        """Embed all patches, or only those in `keep`.

        Args:
            volume: (B, D, H, W, C).
            keep: (B, K) token indices. Their voxels are gathered before the product, so that masked
                patches cost nothing.

        Returns:
            (B, N or K, width), without positions.
        """
        patches = patchify(volume, self.patch)
        if keep is not None:
            # Around a gather the compiler loses the batch's sharding most easily.
            patches = batch_sharded(jnp.take_along_axis(batch_sharded(patches), keep[..., None], axis=1))
        if self.peaks:
            channels = patches.reshape(*patches.shape[:2], -1, self.channels)
            # As much weight at the start as all voxels of the channel together.
            highest = channels.max(axis=2) * channels.shape[2] ** 0.5
            patches = jnp.concatenate([patches, highest], axis=-1)
        return self.projection(patches)
