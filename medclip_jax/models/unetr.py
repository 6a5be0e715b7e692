"""UNETR: a vision transformer's tokens, from several depths, decoded to classes of voxels."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from medclip_jax.models.unet import LEVELS, Decoder, Enlarge, ResidualBlock
from medclip_jax.models.vit import VisionTransformer

Factor = tuple[int, int, int]


def tapped_blocks(depth: int) -> tuple[int, int, int]:
    """After which blocks tokens are taken beside the last: a quarter, half and three quarters of the way.

    3, 6 and 9 of 12; of fewer than 4 blocks some are the same, and 0 is what enters the first.
    """
    return tuple(round(depth * quarter / 4) for quarter in (1, 2, 3))


def growth(patch: Sequence[int]) -> tuple[tuple[Factor, Factor, Factor], Factor | None]:
    """By how much the four up-blocks enlarge the grid of patches.

    The first three double each axis for as long as the patch leaves a factor of 2 to the last. That is a
    transposed convolution for a cubic patch of a power of 2, and trilinear resizing else.

    Args:
        patch: voxels of a patch along depth, height, width.

    Returns:
        Factors of the first three, and of the last; None for resizing.
    """
    left = list(patch)
    steps = []
    for _ in range(3):
        step = tuple(2 if size >= 4 else 1 for size in left)
        left = [size // factor for size, factor in zip(left, step, strict=True)]
        steps.append(step)
    cubic = len(set(patch)) == 1 and patch[0] & (patch[0] - 1) == 0
    return tuple(steps), tuple(left) if cubic else None


class _Ladder(nnx.Module):
    """Tokens of one depth brought to the grid of their level: enlarged, and looked at after each step."""

    def __init__(self, inputs: int, outputs: int, factors: Sequence[Factor], *, dtype, rngs: nnx.Rngs):
        self.enlarge, self.blocks = nnx.Dict(), nnx.Dict()
        for step, factor in enumerate(factors):
            self.enlarge[str(step)] = Enlarge(inputs, outputs, factor, dtype=dtype, rngs=rngs)
            if step:
                self.blocks[str(step)] = ResidualBlock(outputs, outputs, dtype=dtype, rngs=rngs)
            inputs = outputs

    def __call__(self, x: Float[Array, "B d h w C"]) -> Float[Array, "B D H W F"]:
        for step in range(len(self.enlarge)):
            x = self.enlarge[str(step)](x)
            if step:
                x = self.blocks[str(step)](x)
        return x


class Unetr(nnx.Module):
    """The decoder of UNETR on a vision transformer.

    Args:
        encoder: whose tokens are read; it is given at every call, and no part of this module.
        patch: voxels that a token stands for, at the resolution that is wanted.
        channels: of the voxels.
        classes: K that come out, the background included.
        features: of the finest level.
        dtype: compute type.
        rngs: draws the kernels.

    References:
        Hatamizadeh et al. 2022, "UNETR: transformers for 3D medical image segmentation", figure 2; resizing
        for patches that are not cubic as in ASAP.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        patch: Sequence[int],
        *,
        channels: int,
        classes: int,
        features: int,
        dtype,
        rngs: nnx.Rngs,
    ):
        self.taps = tapped_blocks(len(encoder.blocks))
        steps, last = growth(patch)
        options = {"dtype": dtype, "rngs": rngs}
        widths = [level * features for level in LEVELS]
        self.first = ResidualBlock(channels, features, **options)
        # The deepest tokens need the fewest steps.
        self.ladders = nnx.Dict(
            {
                str(level): _Ladder(encoder.width, widths[level], steps[: level + 1], **options)
                for level in range(3)
            }
        )
        self.decoder = Decoder(
            encoder.width, widths, (*steps, last), classes=classes, features=features, **options
        )

    def __call__(
        self,
        encoder: VisionTransformer,
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
            train: changes nothing here.
        """
        grid = encoder.grid_of(seen.shape[1:4])
        *tapped, last = (
            tokens.reshape(tokens.shape[0], *grid, tokens.shape[-1])
            for tokens in encoder.tapped_tokens(seen, self.taps)
        )
        finer = [self.ladders[str(level)](tokens) for level, tokens in enumerate(reversed(tapped))]
        return self.decoder(last, [*finer, self.first(voxels.astype(last.dtype))]).astype(jnp.float32)
