"""Convolutions over three axes, laid out so that no device is slow at them.

XLA's convolutions on CPUs take 2 to 15 times as long as products of matrices of the same result where
channels are few, and its gradients where there are strides. Parameters are those of `flax.nnx.Conv`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

_LAYOUT = ("NDHWC", "DHWIO", "NDHWC")


def convolution(
    inputs: int,
    outputs: int,
    sizes: Sequence[int],
    strides: Sequence[int] = (1, 1, 1),
    *,
    dtype,
    initial: nnx.initializers.Initializer,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """Without bias, padded alike on both sides, so that stride 1 keeps the size.

    Args:
        inputs, outputs: channels.
        sizes: odd; of the kernel along depth, height, width.
        strides: along the same.
        dtype: compute type.
        initial: draws the kernel.
        rngs: its source.
    """
    kind: type[nnx.Conv] = UnitStrideConv
    if math.prod(strides) > 1:
        kind = SpaceToDepthConv if inputs == 1 else StridedConv
    return kind(
        inputs,
        outputs,
        kernel_size=tuple(sizes),
        strides=tuple(strides),
        padding=tuple((size // 2, size // 2) for size in sizes),  # hashable, as a static argument is
        use_bias=False,
        dtype=dtype,
        kernel_init=initial,
        rngs=rngs,
    )


class UnitStrideConv(nnx.Conv):
    """A convolution of stride 1, which on CPUs is a product with a banded matrix."""

    def __call__(self, x: Float[Array, "B D H W C"]) -> Float[Array, "B D H W F"]:
        """The shape stays."""
        kernel = self.kernel[...].astype(self.dtype)
        # What the products are made of is several times as large as x: made again for the gradient.
        banded = jax.checkpoint(banded_convolution)
        return jax.lax.platform_dependent(
            x.astype(self.dtype), kernel, cpu=banded, default=partial(_plain, self)
        )


def banded_convolution(
    x: Float[Array, "B D H W C"], kernel: Float[Array, "p q r C F"]
) -> Float[Array, "B D H W F"]:
    """A convolution of stride 1 with odd sizes, padded to keep the shape, as products of matrices.

    Along the last axis a few neighboring outputs are made at once: they see the same few voxels, by a matrix
    that holds the kernel once for each of them, shifted, and 0 elsewhere. More outputs make wider matrices,
    which are faster, and more zeros.

    Args:
        x: volumes.
        kernel: of odd sizes along depth, height, width; channels in, channels out.

    Returns:
        What `jax.lax.conv_general_dilated` gives with padding "SAME".
    """
    p, q, r, inputs, outputs = kernel.shape
    batch, depth, height, width, _ = x.shape
    # Outputs at once: at least so many that what the last of them sees begins in the next run.
    run = max(1, r - 1, 4 if r > 1 and outputs <= 32 else 1)
    seen, runs = run + r - 1, -(-width // run)
    fill = [(size // 2, size // 2) for size in (p, q, r)]
    fill[2] = (r // 2, (runs + 1) * run - width)
    x = jnp.pad(x, [(0, 0), *fill, (0, 0)])
    rows = (batch, depth + p - 1, height + q - 1, runs, -1)
    own, later = x[:, :, :, : runs * run].reshape(rows), x[:, :, :, run : run + runs * run].reshape(rows)
    x = jnp.concatenate([own, later[..., : (r - 1) * inputs]], axis=-1)
    # From (q, C) neighbors along height to one row; along depth, products are added up.
    x = jnp.concatenate([x[:, :, row : row + height] for row in range(q)], axis=-1)
    offsets = np.arange(seen)[:, None] - np.arange(run)
    there = (offsets >= 0) & (offsets < r)
    band = kernel[:, :, np.clip(offsets, 0, r - 1)] * there[:, :, None, None].astype(kernel.dtype)
    band = band.transpose(0, 1, 2, 4, 3, 5).reshape(p, q * seen * inputs, run * outputs)
    found = sum(x[:, plane : plane + depth] @ band[plane] for plane in range(p))
    return found.reshape(batch, depth, height, runs * run, outputs)[:, :, :, :width]


def _plain(conv: nnx.Conv, x: Float[Array, "B D H W C"], kernel: Float[Array, "p q r C F"]):
    return jax.lax.conv_general_dilated(x, kernel, conv.strides, conv.padding, dimension_numbers=_LAYOUT)


class StridedConv(nnx.Conv):
    """A convolution with strides, which on CPUs is a product of matrices.

    There XLA's gradient of a 3D convolution with strides takes 15 to 35 times as long as the product's.
    """

    def __call__(self, x: Float[Array, "B D H W C"]) -> Float[Array, "B d h w F"]:
        """Each axis divided by the stride, rounded up."""
        kernel = self.kernel[...].astype(self.dtype)
        return jax.lax.platform_dependent(
            x.astype(self.dtype), kernel, cpu=self._as_product, default=partial(_plain, self)
        )

    def _as_product(self, x, kernel):
        sizes = [-(-size // stride) for size, stride in zip(x.shape[1:4], self.strides, strict=True)]
        x = jnp.pad(x, [(0, 0), *self.padding, (0, 0)])
        columns = [
            # Of each output, the voxel at one place of the kernel.
            x[(slice(None), *map(_every, place, sizes, self.strides))]
            for place in np.ndindex(*self.kernel_size)
        ]
        return jnp.concatenate(columns, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


class SpaceToDepthConv(nnx.Conv):
    """A convolution with strides of volumes of one channel: the same sums, laid out to be faster.

    2 x 2 x 2 voxels (what the strides say) become the channels of one place, and a kernel of 7 x 7 x 7 one of
    4 x 4 x 4 such places, filled up with zeros: one input channel leaves most of a vector or matrix unit
    idle. The parameter remains the kernel of 7 x 7 x 7.
    """

    def __call__(self, x: Float[Array, "B D H W 1"]) -> Float[Array, "B d h w F"]:
        """Each axis divided by the stride, rounded up."""
        kernel = self.kernel[...].astype(self.dtype)
        reach = [size // 2 for size in self.kernel_size]
        pairs = tuple(zip(reach, self.strides, strict=True))
        # Output i sees the voxels from i * stride - reach to i * stride + reach.
        around = [(-(-far // stride), far // stride) for far, stride in pairs]
        fill = []
        for (before, after), (far, stride) in zip(around, pairs, strict=True):
            fill.append((before * stride - far, (after + 1) * stride - 1 - far))
        kernel = _space_to_depth(jnp.pad(kernel, [*fill, (0, 0), (0, 0)])[None, ..., 0, :], self.strides)[0]
        ends = [(0, -size % stride) for size, stride in zip(x.shape[1:4], self.strides, strict=True)]
        x = _space_to_depth(jnp.pad(x.astype(self.dtype), [(0, 0), *ends, (0, 0)]), self.strides)
        # A kernel's features follow its channels; a volume has the one that it began with.
        kernel = kernel.reshape(*kernel.shape[:3], x.shape[-1], -1)
        return jax.lax.conv_general_dilated(x, kernel, (1, 1, 1), around, dimension_numbers=_LAYOUT)


def _every(first: int, count: int, stride: int) -> slice:
    return slice(first, first + stride * (count - 1) + 1, stride)


def _space_to_depth(x: Float[Array, "B D H W C"], cell: Sequence[int]) -> Float[Array, "B d h w F"]:
    """The voxels of each cell side by side in the last axis, C values of each."""
    batch, depth, height, width, channels = x.shape
    p, q, r = cell
    x = x.reshape(batch, depth // p, p, height // q, q, width // r, r, channels)
    x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(batch, depth // p, height // q, width // r, p * q * r * channels)
