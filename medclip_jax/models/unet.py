"""From feature maps to classes of voxels: the blocks and the decoder that UNETR and U-Nets share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from medclip_jax.models.convolution import convolution
from medclip_jax.models.kernels import variance_scaling
from medclip_jax.models.linear import Linear
from medclip_jax.models.resnet import STAGES, ResNet
from medclip_jax.sharding import batch_sharded

LEVELS = (8, 4, 2, 1)
"""Features of the decoder's levels, coarsest first, in multiples of its feature size."""

_SLOPE = 0.01
"""Of the leaky ReLU below 0."""

_RAREST = 1e-3
"""Share of the voxels that a class is taken to have at least, for one that the first batch does not show."""


def instance_norm(x: Float[Array, "B D H W C"], epsilon: float = 1e-5) -> Float[Array, "B D H W C"]:
    """Give each channel of each volume mean 0 and variance 1, at least in float32. Nothing is learned.

    Raises:
        ValueError: a map of one voxel, of which nothing would be left.

    References:
        Ulyanov et al. 2016, "Instance normalization".
    """
    if math.prod(x.shape[1:4]) == 1:
        raise ValueError(
            "a map of one voxel is all 0 after instance norm: take larger crops "
            "(config.objective.crops.shape), a smaller patch, or a stem with smaller strides"
        )
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centered = wide - wide.mean((1, 2, 3), keepdims=True)
    variance = jnp.square(centered).mean((1, 2, 3), keepdims=True)
    return (centered * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)


def resize(x: Float[Array, "B D H W C"], shape: Sequence[int]) -> Float[Array, "B d h w C"]:
    """Trilinear, voxels taken as cells of one extent: the outer edges of both grids lie on each other."""
    return jax.image.resize(x, (x.shape[0], *shape, x.shape[-1]), "linear", antialias=False)


def _convolution(inputs: int, outputs: int, size: int, *, dtype, rngs: nnx.Rngs) -> nnx.Conv:
    return convolution(inputs, outputs, (size,) * 3, dtype=dtype, initial=_he(_SLOPE), rngs=rngs)


def _he(slope: float) -> nnx.initializers.Initializer:
    return variance_scaling(2.0 / (1.0 + slope**2), "fan_in", "truncated_normal")


class Enlarge(nnx.Module):
    """A transposed convolution whose kernel is its stride: each voxel becomes a block of voxels.

    Blocks do not overlap, so it is a product of matrices, which is fast on every device.

    Args:
        inputs, outputs: channels.
        factor: voxels of a block along depth, height, width.
        dtype: compute type.
        rngs: draws the kernel.
    """

    def __init__(self, inputs: int, outputs: int, factor: Sequence[int], *, dtype, rngs: nnx.Rngs):
        self.factor = tuple(factor)
        self.outputs = outputs
        self.linear = Linear(
            inputs,
            outputs * math.prod(self.factor),
            use_bias=False,
            dtype=dtype,
            kernel_init=_he(1.0),
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "B d h w C"]) -> Float[Array, "B D H W F"]:
        """Each axis multiplied by the factor."""
        batch, d, h, w, _ = x.shape
        p, q, r = self.factor
        x = self.linear(x).reshape(batch, d, h, w, p, q, r, self.outputs)
        return x.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(batch, d * p, h * q, w * r, self.outputs)


class ResidualBlock(nnx.Module):
    """Two 3 x 3 x 3 convolutions with instance norm, beside the identity or a projection."""

    def __init__(self, inputs: int, outputs: int, *, dtype, rngs: nnx.Rngs):
        self.conv1 = _convolution(inputs, outputs, 3, dtype=dtype, rngs=rngs)
        self.conv2 = _convolution(outputs, outputs, 3, dtype=dtype, rngs=rngs)
        self.projection = (
            None if inputs == outputs else _convolution(inputs, outputs, 1, dtype=dtype, rngs=rngs)
        )

    def __call__(self, x: Float[Array, "B D H W C"]) -> Float[Array, "B D H W F"]:
        """The shape stays."""
        y = jax.nn.leaky_relu(instance_norm(self.conv1(x)), _SLOPE)
        y = instance_norm(self.conv2(y))
        beside = x if self.projection is None else instance_norm(self.projection(x))
        return jax.nn.leaky_relu(y + beside, _SLOPE)


class UpBlock(nnx.Module):
    """Enlarge a map, put a finer one beside it, and look at both.

    Args:
        inputs: channels of the coarse map.
        beside: channels of the finer map.
        outputs: channels that come out.
        factor: by how much the coarse map is enlarged along each axis; None to resize it to the finer one,
            trilinearly, with a convolution after.
        dtype: compute type.
        rngs: draws the kernels.
    """

    def __init__(
        self,
        inputs: int,
        beside: int,
        outputs: int,
        factor: Sequence[int] | None,
        *,
        dtype,
        rngs: nnx.Rngs,
    ):
        if factor is None:
            self.enlarge = _convolution(inputs, outputs, 3, dtype=dtype, rngs=rngs)
        else:
            self.enlarge = Enlarge(inputs, outputs, factor, dtype=dtype, rngs=rngs)
        self.block = ResidualBlock(outputs + beside, outputs, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B d h w C"], finer: Float[Array, "B D H W S"]
    ) -> Float[Array, "B D H W F"]:
        """Of the shape of the finer map; where enlarging goes beyond it, the end is cut."""
        shape = finer.shape[1:4]
        if isinstance(self.enlarge, Enlarge):
            depth, height, width = shape
            x = self.enlarge(x)[:, :depth, :height, :width]
        else:
            x = self.enlarge(resize(x, shape))
        return batch_sharded(self.block(jnp.concatenate([x, finer], axis=-1)))


class Decoder(nnx.Module):
    """Four up-blocks from the coarsest map to the voxels, and a linear map to the classes.

    Args:
        inputs: channels of the coarsest map.
        beside: channels of the finer maps, coarsest first; the last one has the voxels' grid.
        factors: of the four up-blocks, see `UpBlock`.
        classes: K that come out.
        features: of the finest level; the coarser have 2, 4 and 8 times as many.
        dtype: compute type.
        rngs: draws the kernels.
    """

    def __init__(
        self,
        inputs: int,
        beside: Sequence[int],
        factors: Sequence[Sequence[int] | None],
        *,
        classes: int,
        features: int,
        dtype,
        rngs: nnx.Rngs,
    ):
        self.up = nnx.Dict()
        for level, (width, skip, factor) in enumerate(zip(LEVELS, beside, factors, strict=True)):
            outputs = width * features
            self.up[str(level)] = UpBlock(inputs, skip, outputs, factor, dtype=dtype, rngs=rngs)
            inputs = outputs
        self.classify = Linear(inputs, classes, dtype=dtype, rngs=rngs)

    def start_at(self, counts: Int[Array, " K"]) -> None:
        """Set the biases of the classes to the logs of their shares, of a decoder that has learned nothing.

        One that was trained has biases other than 0, and keeps them.

        Args:
            counts: voxels of each class, the background first.
        """
        counts = counts.astype(jnp.float32)
        shares = jnp.maximum(counts / jnp.maximum(counts.sum(), 1.0), _RAREST)
        bias = self.classify.bias
        bias[...] = jnp.where(jnp.all(bias[...] == 0.0), jnp.log(shares).astype(bias.dtype), bias[...])

    def __call__(
        self, coarsest: Float[Array, "B d h w C"], finer: Sequence[Float[Array, "B _ _ _ _"]]
    ) -> Float[Array, "B D H W K"]:
        """Logits, float32."""
        x = coarsest
        for level, skip in enumerate(finer):
            x = self.up[str(level)](x, skip)
        return self.classify(x).astype(jnp.float32)


class UNet(nnx.Module):
    """A decoder on the stages of a residual network, with the voxels themselves beside the last level.

    Args:
        encoder: whose maps are read; it is given at every call, and no part of this module.
        channels: of the voxels.
        classes: K that come out, the background included.
        features: of the finest level.
        dtype: compute type.
        rngs: draws the kernels.

    References:
        Ronneberger et al. 2015, "U-Net"; on a residual network as in T3D.
    """

    def __init__(self, encoder: ResNet, *, channels: int, classes: int, features: int, dtype, rngs: nnx.Rngs):
        self.first = ResidualBlock(channels, features, dtype=dtype, rngs=rngs)
        deepest = encoder.width
        self.decoder = Decoder(
            deepest,
            (deepest // 2, deepest // 4, deepest // 8, features),
            # Stages halve the grid; the first one's is four times as coarse as the voxels, or otherwise.
            ((2, 2, 2), (2, 2, 2), (2, 2, 2), None),
            classes=classes,
            features=features,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self,
        encoder: ResNet,
        seen: Float[Array, "B d h w C"],
        voxels: Float[Array, "B D H W V"],
        *,
        train: bool = False,
    ) -> Float[Array, "B D H W K"]:
        """Logits of each voxel.

        Args:
            encoder: as given before.
            seen: what the encoder takes.
            voxels: at the resolution that is wanted.
            train: as of `ResNet.__call__`.
        """
        maps = encoder.feature_maps(seen, train=train)
        coarsest, *finer = (maps[name] for name in reversed(STAGES))
        return self.decoder(coarsest, [*finer, self.first(voxels)])
