"""Vision transformer for volumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from medclip_jax.models import blocks, positions
from medclip_jax.models.encoder import Encoded, VisionEncoder
from medclip_jax.models.linear import Linear
from medclip_jax.models.norms import LayerNorm
from medclip_jax.models.patches import PatchEmbedding, grid_of, mean_and_peak
from medclip_jax.sharding import batch_sharded

POOLINGS = ("cls", "mean", "cls_mean", "grid")
"""How tokens become one vector a volume, see `VisionTransformer`."""


class VisionTransformer(VisionEncoder):
    """A 3D ViT: patches, positions, a class token, blocks that normalize first, a final LayerNorm.

    Args:
        shape: (D, H, W) voxels of the volumes.
        patch: voxels of a patch along depth, height, width; must divide `shape`.
        channels: intensity windows of a voxel.
        width: features of a token.
        depth: number of blocks.
        heads: attention heads; must divide `width`.
        peaks: a patch's maxima beside its voxels, see `patches.PatchEmbedding`.
        mlp_ratio: hidden features of the MLP over `width`.
        pooling: what `pool` makes of the tokens: "cls" takes the class token, "mean" the mean of the patch
            tokens, "cls_mean" both, one after the other; "grid" maps every patch token to `grid_features`
            numbers and keeps them in place. The last knows where a finding lies from the first step on, and
            learns far faster on volumes that are centered on an organ; the others have to learn it through
            the positions.
        grid_features: numbers that "grid" keeps of each patch token.
        extremes: tell the class token how unusual the most unusual patch is: of each channel's mean and
            maximum over a patch, relative to what is usual at that place (`calibrate`), the highest and the
            lowest of all patches. "cls", "cls_mean" and "grid" pooling read that token. What may lie
            anywhere and fills little (a nodule, a consolidation) is learned at once for all places, and not
            for each on its own.
        position: "sincos" (fixed, `positions.sincos_3d`) or "learned".
        pre_norm: a LayerNorm between the embedded patches with their positions and the blocks, as in CLIP.
        activation: of the MLPs, one of `blocks.ACTIVATIONS`.
        skip: add the normalized patch embedding to the tokens that come out. What one patch shows (a plaque)
            then reaches the pooling whatever the blocks have learned before, as in masked pretraining.
        dtype: compute type; parameters are float32.
        remat: one of `blocks.REMAT`, see `blocks.run`.
        scan: one compiled block in a loop, see `blocks.run`.
        layer_norm_epsilon: of every LayerNorm.
        rngs: draws the initial parameters.

    Attributes:
        grid: patches along depth, height, width.

    References:
        Dosovitskiy et al. 2021; He et al. 2022 for fixed positions and the initial values.
    """

    part: ClassVar[str] = "transformer"
    remat_policies: ClassVar[tuple[str, ...]] = blocks.REMAT
    explanation: ClassVar[str] = "attention"
    drops_patches: ClassVar[bool] = True
    weights_reader: ClassVar[str] = "medclip_jax.weights.vision:read_vision_weights"
    torch_twin: ClassVar[str] = "medclip_jax.export.torch.vit:VisionTransformer"

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """ViT-B as Cardiac-CLIP was released: patch 8, class token."""
        return {
            "patch": (8, 8, 8),  # in cells; () = one that follows from the volumes, see `training.settle`
            "peaks": False,
            "width": 768,
            "depth": 12,
            "heads": 12,
            "mlp_ratio": 4.0,
            "pooling": "cls",  # "cls" | "mean" | "cls_mean" | "grid"
            "grid_features": 16,
            "skip": False,
            "extremes": False,
            "position": "sincos",  # "sincos" | "learned"
            # For published models: CLIP's towers normalize before the first block, and use the quick GELU
            # and 1e-5.
            "pre_norm": False,
            "activation": "gelu",  # "gelu" | "quick_gelu"
            "layer_norm_epsilon": 1e-6,
            "weights_patch": "inflate",  # what becomes of a checkpoint's patch layer: "inflate" | "fresh"
            "scan": False,  # one compiled block in a loop, see `models.blocks.run`
        }

    @classmethod
    def from_config(
        cls, config: Any, shape: tuple[int, int, int], channels: int, *, rngs: nnx.Rngs
    ) -> VisionTransformer:
        """See `VisionEncoder.from_config`."""
        options = {name: config[name] for name in cls.defaults() if name != "weights_patch"}
        options |= {"patch": tuple(config.patch), "dtype": jnp.dtype(config.dtype), "remat": config.remat}
        return cls(shape=shape, channels=channels, **options, rngs=rngs)

    def __init__(
        self,
        *,
        shape: tuple[int, int, int],
        patch: tuple[int, int, int],
        channels: int,
        width: int,
        depth: int,
        heads: int,
        peaks: bool = False,
        mlp_ratio: float = 4.0,
        pooling: str = "cls",
        grid_features: int = 16,
        skip: bool = False,
        extremes: bool = False,
        position: str = "sincos",
        pre_norm: bool = False,
        activation: str = "gelu",
        dtype=jnp.float32,
        remat: str = "none",
        scan: bool = False,
        layer_norm_epsilon: float = 1e-6,
        rngs: nnx.Rngs,
    ):
        if pooling not in POOLINGS:
            raise ValueError(f"pooling={pooling!r} is unknown: use one of {', '.join(map(repr, POOLINGS))}")
        if position not in ("sincos", "learned"):
            raise ValueError(f"position={position!r} is unknown: use 'sincos' or 'learned'")
        self.grid = grid_of(tuple(shape), tuple(patch))
        self.width = width
        self.pooling = pooling
        self.remat = remat
        self.scan = scan
        self.embed = PatchEmbedding(tuple(patch), channels, width, peaks=peaks, dtype=dtype, rngs=rngs)
        self.class_token = nnx.Param(0.02 * rngs.params.normal((1, 1, width)))
        tokens = self.grid[0] * self.grid[1] * self.grid[2]
        self.positions = (
            nnx.Param(positions.learned(rngs.params(), tokens, width)) if position == "learned" else None
        )
        self.pre_norm = (
            LayerNorm(width, epsilon=layer_norm_epsilon, dtype=dtype, rngs=rngs) if pre_norm else None
        )
        self.blocks = blocks.stack(
            depth,
            lambda: blocks.Block(
                width,
                heads,
                mlp_ratio=mlp_ratio,
                activation=activation,
                layer_norm_epsilon=layer_norm_epsilon,
                dtype=dtype,
                rngs=rngs,
            ),
        )
        self.norm = LayerNorm(width, epsilon=layer_norm_epsilon, dtype=dtype, rngs=rngs)
        self.skip = skip
        if skip:
            self.skip_norm = LayerNorm(width, epsilon=layer_norm_epsilon, dtype=dtype, rngs=rngs)
        self.pooled_width = 2 * width if pooling == "cls_mean" else width
        if pooling == "grid":
            places = tokens + extremes
            self.pooled_width = places * grid_features
            self.grid_pool = Linear(width, grid_features, dtype=dtype, rngs=rngs)
            self.grid_scale = nnx.Param(jnp.ones((places, grid_features)))
            self.grid_shift = nnx.Param(jnp.zeros((places, grid_features)))
        self.extremes = extremes
        if extremes:
            self.extreme_scale = nnx.Param(jnp.ones((tokens, 2 * channels)))
            self.extreme_shift = nnx.Param(jnp.zeros((tokens, 2 * channels)))
            self.extreme_embed = Linear(4 * channels, width, dtype=dtype, rngs=rngs)

    def grid_of(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Patches along depth, height, width. Raises ValueError where the patch does not divide the shape."""
        return grid_of(tuple(shape), self.embed.patch)

    def encode(
        self,
        voxels: Float[Array, "batch depth height width channels"],
        keep: Int[Array, "batch kept"] | None = None,
        *,
        train: bool = False,
    ) -> Encoded:
        """Encode volumes.

        Args:
            voxels: (B, D, H, W, C) intensities, see `medclip_jax.transforms.to_float`.
            keep: (B, K) indices of the patches to see; all N when None. Only these are embedded.
            train: changes nothing here.

        Returns:
            Patch tokens (B, N or K, width) and the class token's state (B, width), after the final LayerNorm.
        """
        embedded = self._tokens(voxels, keep)
        last = blocks.run(self.blocks, embedded, remat=self.remat, scan=self.scan)
        return Encoded(batch_sharded(self._finish(last, embedded)), has_summary=True)

    def last_states(
        self, voxels: Float[Array, "batch depth height width channels"], *, train: bool = False
    ) -> Float[Array, "batch tokens features"]:
        """See `VisionEncoder.last_states`: without the final LayerNorm."""
        tokens = self._tokens(voxels, None)
        return batch_sharded(blocks.run(self.blocks, tokens, remat=self.remat, scan=self.scan))[:, 1:]

    def layer_states(
        self, voxels: Float[Array, "batch depth height width channels"]
    ) -> dict[str, Float[Array, "batch tokens features"]]:
        """See `VisionEncoder.layer_states`: "patches" (what enters the first block), each block, "final"."""
        embedded = tokens = self._tokens(voxels, None)
        states = {"patches": embedded}
        for index in range(len(self.blocks)):
            tokens = blocks.run(self.blocks, tokens, first=index, last=index + 1)
            states[f"block_{index + 1}"] = tokens
        states["final"] = self._finish(tokens, embedded)
        return {name: state[:, 1:] for name, state in states.items()}

    def tapped_tokens(
        self, voxels: Float[Array, "batch depth height width channels"], after: Sequence[int]
    ) -> list[Float[Array, "batch tokens features"]]:
        """Patch tokens (B, N, W) after some blocks and, as the last entry, those that `encode` returns.

        Args:
            voxels: (B, D, H, W, C) intensities.
            after: numbers of blocks, not falling, counted from 1; 0 for what enters the first.
        """
        embedded = tokens = self._tokens(voxels, None)
        found, first = [], 0
        for last in (*after, len(self.blocks)):
            tokens = blocks.run(self.blocks, tokens, remat=self.remat, scan=self.scan, first=first, last=last)
            found.append(tokens)
            first = last
        found[-1] = self._finish(tokens, embedded)
        return [state[:, 1:] for state in found]

    def encode_with_maps(
        self,
        voxels: Float[Array, "batch depth height width channels"],
        offsets: Sequence[Float[Array, "batch heads tokens tokens"] | None],
    ) -> tuple[Encoded, tuple[Float[Array, "batch heads tokens tokens"] | None, ...]]:
        """`encode` with the attention maps of some blocks, for heat maps on small token counts.

        Args:
            voxels: (B, D, H, W, C) intensities.
            offsets: one entry a block: (B, heads, T, T) zeros where the attention map is wanted and None
                elsewhere; T is 1 + N, the class token first. They are added to the attention probabilities,
                so the gradient of a score with respect to them is its gradient with respect to the map.
                Those blocks hold the full map in memory.

        Returns:
            What `encode` returns, and a map (B, heads, T, T) or None for each block.

        Raises:
            ValueError: not one entry a block.
        """
        if len(offsets) != len(self.blocks):
            raise ValueError(
                f"{len(offsets)} attention offsets for {len(self.blocks)} blocks: give one a block,"
                " None to skip it"
            )
        maps = []
        tokens = embedded = self._tokens(voxels, None)
        for index, offset in enumerate(offsets):
            weights = None
            if offset is None:
                tokens = self.blocks[str(index)](tokens)
            else:
                tokens, weights = self.blocks[str(index)].with_weights(tokens, offset)
            maps.append(weights)
        return Encoded(self._finish(tokens, embedded), has_summary=True), tuple(maps)

    def _finish(self, tokens, embedded):
        return self.norm(tokens) + self.skip_norm(embedded) if self.skip else self.norm(tokens)

    def pool(self, encoded: Encoded) -> Float[Array, "batch pooled"]:
        """One vector a volume, (B, pooled_width).

        Raises:
            ValueError: "grid" pooling of volumes of which only some patches were kept.
        """
        if self.pooling == "cls":
            return encoded.summary
        if self.pooling == "mean":
            return encoded.tokens.mean(axis=1)
        if self.pooling == "cls_mean":
            return jnp.concatenate([encoded.summary, encoded.tokens.mean(axis=1)], axis=-1)
        features = self.grid_pool(self._places(encoded))
        if features.shape[1] * features.shape[2] != self.pooled_width:
            raise ValueError("pooling='grid' needs every patch: encode without keep, or pool otherwise")
        features = features * self.grid_scale[...] + self.grid_shift[...]
        return features.reshape(features.shape[0], -1)

    def describe(self) -> str:
        """See `VisionEncoder.describe`."""
        patch = " × ".join(map(str, self.embed.patch))
        size = f"width {self.width}, depth {len(self.blocks)}"
        if len(self.blocks):
            size += f", {self.blocks['0'].attention.heads} heads"
        return f"ViT, {size}, patches of {patch}, pooling {self.pooling}"

    def calibrate(self, voxels: Float[Array, "batch depth height width channels"]) -> None:
        """Bring what differs between places to a common scale, from a batch of volumes.

        Each feature that "grid" pooling keeps gets mean 0 and variance 1 at each place, and so do the patch
        means and maxima that `extremes` compares, and the extremes themselves. What differs between patients
        is small beside what differs between places; a linear head on such features learns in a fraction of
        the steps.

        Args:
            voxels: (B, D, H, W, C) intensities.
        """
        if self.extremes:
            unusual = mean_and_peak(voxels, self.embed.patch).astype(jnp.float32)
            # Plus a quarter of the usual spread: where hardly anything varies, not every change is news.
            spread = unusual.std(axis=0)
            scale = 1.0 / (spread + 0.25 * spread.mean(axis=0) + 1e-6)
            self.extreme_scale[...] = scale
            self.extreme_shift[...] = -unusual.mean(axis=0) * scale
            extremes = self._extremes(voxels, None)
            kernel, bias = self.extreme_embed.kernel, self.extreme_embed.bias
            kernel[...] = kernel[...] / (extremes.std(axis=0) + 1e-6)[:, None]
            bias[...] = bias[...] - extremes.mean(axis=0) @ kernel[...]
        if self.pooling == "grid":
            features = self.grid_pool(self._places(self.encode(voxels))).astype(jnp.float32)
            scale = 1.0 / (features.std(axis=0) + 0.05 * features.std())
            if self.extremes:  # one place that speaks for all: as much weight at the start as the others
                scale = scale.at[0].multiply((scale.shape[0] - 1) ** 0.5)
            self.grid_scale[...] = scale
            self.grid_shift[...] = -features.mean(axis=0) * scale

    def _places(self, encoded):
        """The tokens that "grid" pooling reads."""
        return encoded.sequence if self.extremes else encoded.tokens

    def _extremes(self, volume, keep):
        unusual = mean_and_peak(volume, self.embed.patch)
        unusual = unusual * self.extreme_scale[...] + self.extreme_shift[...]
        if keep is not None:
            unusual = jnp.take_along_axis(unusual, keep[..., None], axis=1)
        return jnp.concatenate([unusual.max(axis=1), unusual.min(axis=1)], axis=-1)

    def _tokens(self, volume, keep):
        tokens = batch_sharded(self.embed(batch_sharded(volume), keep))
        table = (
            positions.sincos_3d(self.grid, self.width) if self.positions is None else self.positions[...]
        ).astype(tokens.dtype)
        tokens = tokens + (table if keep is None else table[keep])
        first = jnp.broadcast_to(self.class_token[...], (tokens.shape[0], 1, self.width))
        if self.extremes:
            first = first + self.extreme_embed(self._extremes(volume, keep))[:, None]
        tokens = batch_sharded(jnp.concatenate([first.astype(tokens.dtype), tokens], axis=1))
        return tokens if self.pre_norm is None else self.pre_norm(tokens)
