"""What a vision tower asks of its encoder, whatever kind of network that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int


class Encoded(NamedTuple):
    """What an encoder makes of volumes.

    Attributes:
        tokens: (B, N, W), one for each place of the grid that was seen: depth, height, width, the last
            fastest.
        summary: (B, W), what the encoder says of the volume as one more token (a class token's state); None
            where it has no such thing.
    """

    tokens: Float[Array, "batch tokens features"]
    summary: Float[Array, "batch features"] | None = None

    @property
    def sequence(self) -> Float[Array, "batch all features"]:
        """Summary, where there is one, and tokens in one array."""
        if self.summary is None:
            return self.tokens
        return jnp.concatenate([self.summary[:, None], self.tokens], axis=1)


class VisionEncoder(nnx.Module):
    """A network from the voxels of a volume to tokens on a grid.

    A kind of tower is a subclass in a file of its own, named in `objectives.towers.KINDS` or, by whoever
    writes one elsewhere, as ``config.objective.vision.kind = "package.module:Class"``.

    Attributes:
        part: name of the encoder within its tower; parameters are "vision/<part>/...".
        remat_policies: values of `config.objective.vision.remat`: "none", then what holds least first.
        explanation: how heat maps follow it: "attention" (relevance through self-attention; such an encoder
            has `blocks` and `encode_with_maps` as `models.vit.VisionTransformer` has), "gradcam" (the
            gradient of a score by its tokens) or "none".
        drops_patches: whether `encode` takes `keep`, which masked pretraining needs.
        weights_reader: "package.module:function" that reads published checkpoints, called as
            `weights.vision.read_vision_weights` is; "" where none are read.
        width: features of a token.
        pooling: how `pool` reduces tokens to one vector, in a word.
        pooled_width: features of what `pool` returns.
    """

    part: ClassVar[str]
    remat_policies: ClassVar[tuple[str, ...]] = ("none",)
    explanation: ClassVar[str] = "none"
    drops_patches: ClassVar[bool] = False
    weights_reader: ClassVar[str] = ""

    width: int
    pooling: str
    pooled_width: int

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Keys of `config.objective.vision` that this kind has beside those of every tower."""
        raise NotImplementedError

    @classmethod
    def from_config(
        cls, config: Any, shape: tuple[int, int, int], channels: int, *, rngs: nnx.Rngs
    ) -> VisionEncoder:
        """Build the encoder.

        Args:
            config: `config.objective.vision`: the keys of `defaults`, `dtype` and `remat`.
            shape: (D, H, W) of the volumes, in cells of the tower.
            channels: values of a voxel.
            rngs: draws the initial parameters.
        """
        raise NotImplementedError

    def grid_of(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Tokens along depth, height, width for volumes of a shape (D, H, W)."""
        raise NotImplementedError

    def token_centers(self, shape: Sequence[int]) -> tuple[Float[np.ndarray, " tokens"], ...]:
        """Where tokens lie: the coordinate of each along depth, height, width, in voxels from the first.

        By default, tokens divide the volume evenly.
        """
        axes = zip(shape, self.grid_of(shape), strict=True)
        return tuple((np.arange(count) + 0.5) * (size / count) - 0.5 for size, count in axes)

    def encode(
        self,
        voxels: Float[Array, "batch depth height width channels"],
        keep: Int[Array, "batch kept"] | None = None,
        *,
        train: bool = False,
    ) -> Encoded:
        """Volumes to tokens.

        Args:
            voxels: (B, D, H, W, C).
            keep: (B, K) indices of the tokens' places to see; all when None.
            train: normalize by the batch, where the network does, and update its running statistics.
        """
        raise NotImplementedError

    def pool(self, encoded: Encoded) -> Float[Array, "batch pooled"]:
        """One vector a volume, (B, pooled_width)."""
        raise NotImplementedError

    def calibrate(self, voxels: Float[Array, "batch depth height width channels"]) -> None:
        """Set initial values that depend on data, from a run's first volumes. By default there are none."""
