"""What a vision tower asks of its encoder, whatever kind of network that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Encoded:
    """What an encoder makes of volumes.

    Attributes:
        sequence: (B, N, W), one token for each place of the grid that was seen, by depth, height and
            width (fastest). With a summary (B, 1 + N, W), the summary first.
        has_summary: whether the encoder says something of the volume as one more token (a class token).
    """

    sequence: Float[Array, "batch all features"]
    has_summary: bool = field(default=False, metadata={"static": True})

    @classmethod
    def of(
        cls,
        tokens: Float[Array, "batch tokens features"],
        summary: Float[Array, "batch features"] | None = None,
    ) -> Encoded:
        """Put together from tokens (B, N, W) and a summary (B, W), None for none."""
        if summary is None:
            return cls(tokens)
        return cls(jnp.concatenate([summary[:, None], tokens], axis=1), has_summary=True)

    @property
    def tokens(self) -> Float[Array, "batch tokens features"]:
        """(B, N, W), one for each place of the grid that was seen."""
        return self.sequence[:, 1:] if self.has_summary else self.sequence

    @property
    def summary(self) -> Float[Array, "batch features"] | None:
        """(B, W), None where the encoder has no such token."""
        return self.sequence[:, 0] if self.has_summary else None


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
        any_shape: whether `encode` takes volumes of any shape, which local views need.
        weights_reader: "package.module:function" that reads published checkpoints, called as
            `weights.vision.read_vision_weights` is; "" where none are read.
        torch_twin: "package.module:Class", the torch class that computes likewise and travels with an
            exported model, see `export.torch.vision.VisionTower`; "" where there is none, and then no export.
        width: features of a token.
        pooling: how `pool` reduces tokens to one vector, in a word.
        pooled_width: features of what `pool` returns.
    """

    part: ClassVar[str]
    remat_policies: ClassVar[tuple[str, ...]] = ("none",)
    explanation: ClassVar[str] = "none"
    drops_patches: ClassVar[bool] = False
    any_shape: ClassVar[bool] = False
    weights_reader: ClassVar[str] = ""
    torch_twin: ClassVar[str] = ""

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

    def layer_states(
        self, voxels: Float[Array, "batch depth height width channels"]
    ) -> dict[str, Float[Array, "batch tokens features"]]:
        """The tokens after each layer, first to last, to be looked at: `encode` passes through them.

        Args:
            voxels: (B, D, H, W, C).

        Returns:
            Layer to its tokens (B, N, W), a summary left out; N and W may differ between layers. The last
            entry is `encode(voxels).tokens`. By default there is only that one.
        """
        return {"final": self.encode(voxels).tokens}

    def last_states(
        self, voxels: Float[Array, "batch depth height width channels"], *, train: bool = False
    ) -> Float[Array, "batch tokens features"]:
        """Tokens (B, N, W) as they leave the last block, a summary left out, before any norm of the end.

        By default `encode(voxels).tokens`: most encoders have no such norm.

        Args:
            voxels: (B, D, H, W, C).
            train: as for `encode`.
        """
        return self.encode(voxels, train=train).tokens

    def pool(self, encoded: Encoded) -> Float[Array, "batch pooled"]:
        """One vector a volume, (B, pooled_width)."""
        raise NotImplementedError

    def describe(self) -> str:
        """What the network is, in words, for tables and cards."""
        return f"{type(self).__name__}, width {self.width}, pooling {self.pooling}"

    def calibrate(self, voxels: Float[Array, "batch depth height width channels"]) -> None:
        """Set initial values that depend on data, from a run's first volumes. By default there are none."""
