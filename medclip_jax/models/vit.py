"""Vision transformer for volumes."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from medclip_jax.models import blocks, positions
from medclip_jax.models.patches import PatchEmbedding, grid_of, mean_and_peak
from medclip_jax.sharding import batch_sharded


class VisionTransformer(nnx.Module):
    """A 3D ViT: patches, positions, a class token, blocks that normalise first, a final LayerNorm.

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
            tokens, "grid" maps every patch token to `grid_features` numbers and keeps them in place. The
            last knows where a finding lies from the first step on, and learns far faster on volumes that
            are centered on an organ; the others have to learn it through the positions.
        grid_features: numbers that "grid" keeps of each patch token.
        extremes: tell the class token how unusual the most unusual patch is: of each channel's mean and
            maximum over a patch, relative to what is usual at that place (`calibrate`), the highest and the
            lowest of all patches. "grid" pooling then reads the class token, too. What may lie anywhere and
            fills little (a nodule, a consolidation) is learned at once for all places, and not for each on
            its own.
        position: "sincos" (fixed, `positions.sincos_3d`) or "learned".
        pre_norm: a LayerNorm between the embedded patches with their positions and the blocks, as in CLIP.
        activation: of the MLPs, one of `blocks.ACTIVATIONS`.
        skip: add the normalised patch embedding to the tokens that come out. What one patch shows (a plaque)
            then reaches the pooling whatever the blocks have learned before, as in masked pretraining.
        dtype: compute type; parameters are float32.
        remat: one of `blocks.REMAT`, see `blocks.run`.
        scan: one compiled block in a loop, see `blocks.run`.
        layer_norm_epsilon: of every LayerNorm.
        rngs: draws the initial parameters.

    Attributes:
        grid: patches along depth, height, width.
        width: features of a token.
        pooled_width: features of what `pool` returns.

    References:
        Dosovitskiy et al. 2021; He et al. 2022 for fixed positions and the initial values.
    """

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
        if pooling not in ("cls", "mean", "grid"):
            raise ValueError(f"pooling={pooling!r} is unknown: use 'cls', 'mean' or 'grid'")
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
            nnx.LayerNorm(width, epsilon=layer_norm_epsilon, dtype=dtype, rngs=rngs) if pre_norm else None
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
        self.norm = nnx.LayerNorm(width, epsilon=layer_norm_epsilon, dtype=dtype, rngs=rngs)
        self.skip = skip
        if skip:
            self.skip_norm = nnx.LayerNorm(width, epsilon=layer_norm_epsilon, dtype=dtype, rngs=rngs)
        self.pooled_width = width
        if pooling == "grid":
            places = tokens + extremes
            self.pooled_width = places * grid_features
            self.grid_pool = nnx.Linear(width, grid_features, dtype=dtype, rngs=rngs)
            self.grid_scale = nnx.Param(jnp.ones((places, grid_features)))
            self.grid_shift = nnx.Param(jnp.zeros((places, grid_features)))
        self.extremes = extremes
        if extremes:
            self.extreme_scale = nnx.Param(jnp.ones((tokens, 2 * channels)))
            self.extreme_shift = nnx.Param(jnp.zeros((tokens, 2 * channels)))
            self.extreme_embed = nnx.Linear(4 * channels, width, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        volume: Float[Array, "batch depth height width channels"],
        keep: Int[Array, "batch kept"] | None = None,
        *,
        attention_offsets: Sequence[Float[Array, "batch heads tokens tokens"] | None] | None = None,
    ):
        """Encode volumes.

        Args:
            volume: (B, D, H, W, C) intensities, see `medclip_jax.transforms.to_float`.
            keep: (B, K) indices of the patches to see; all N when None. Only these are embedded.
            attention_offsets: for heat maps on small token counts: one entry a block, (B, heads, T, T)
                zeros where the attention map is wanted and None elsewhere. They are added to the
                attention probabilities, so the gradient of a score with respect to them is its gradient
                with respect to the map. Those blocks hold the whole map in memory.

        Returns:
            tokens (B, 1 + K, width) after the final LayerNorm, the class token first. With
            `attention_offsets`: (tokens, maps), maps a tuple with (B, heads, T, T) or None for each block.
        """
        tokens = self._tokens(volume, keep)
        if attention_offsets is None:
            last = blocks.run(self.blocks, tokens, remat=self.remat, scan=self.scan)
            return batch_sharded(self._finish(last, tokens))
        if len(attention_offsets) != len(self.blocks):
            raise ValueError(
                f"{len(attention_offsets)} attention offsets for {len(self.blocks)} blocks: give one a block,"
                " None to skip it"
            )
        maps = []
        embedded = tokens
        for index, offset in enumerate(attention_offsets):
            weights = None
            if offset is None:
                tokens = self.blocks[str(index)](tokens)
            else:
                tokens, weights = self.blocks[str(index)].with_weights(tokens, offset)
            maps.append(weights)
        return self._finish(tokens, embedded), tuple(maps)

    def _finish(self, tokens, embedded):
        return self.norm(tokens) + self.skip_norm(embedded) if self.skip else self.norm(tokens)

    def pool(self, tokens: Float[Array, "batch tokens features"]) -> Float[Array, "batch pooled"]:
        """One vector a volume from what `__call__` returned: (B, 1 + K, width) to (B, pooled_width).

        Raises:
            ValueError: "grid" pooling of volumes of which only some patches were kept.
        """
        if self.pooling == "cls":
            return tokens[:, 0]
        if self.pooling == "mean":
            return tokens[:, 1:].mean(axis=1)
        features = self.grid_pool(self._places(tokens))
        if features.shape[1] * features.shape[2] != self.pooled_width:
            raise ValueError("pooling='grid' needs every patch: encode without keep, or pool otherwise")
        features = features * self.grid_scale[...] + self.grid_shift[...]
        return features.reshape(tokens.shape[0], -1)

    def calibrate(self, volume: Float[Array, "batch depth height width channels"]) -> None:
        """Bring what differs between places to a common scale, from a batch of volumes.

        Each feature that "grid" pooling keeps gets mean 0 and variance 1 at each place, and so do the patch
        means and maxima that `extremes` compares, and the extremes themselves. What differs between patients
        is small beside what differs between places; a linear head on such features learns in a fraction of
        the steps.

        Args:
            volume: (B, D, H, W, C) intensities.
        """
        if self.extremes:
            unusual = mean_and_peak(volume, self.embed.patch).astype(jnp.float32)
            # Plus a quarter of the usual spread: where hardly anything varies, not every change is news.
            spread = unusual.std(axis=0)
            scale = 1.0 / (spread + 0.25 * spread.mean(axis=0) + 1e-6)
            self.extreme_scale[...] = scale
            self.extreme_shift[...] = -unusual.mean(axis=0) * scale
            extremes = self._extremes(volume, None)
            kernel, bias = self.extreme_embed.kernel, self.extreme_embed.bias
            kernel[...] = kernel[...] / (extremes.std(axis=0) + 1e-6)[:, None]
            bias[...] = bias[...] - extremes.mean(axis=0) @ kernel[...]
        if self.pooling == "grid":
            features = self.grid_pool(self._places(self(volume))).astype(jnp.float32)
            scale = 1.0 / (features.std(axis=0) + 0.05 * features.std())
            if self.extremes:  # one place that speaks for all: as much weight at the start as the others
                scale = scale.at[0].multiply((scale.shape[0] - 1) ** 0.5)
            self.grid_scale[...] = scale
            self.grid_shift[...] = -features.mean(axis=0) * scale

    def _places(self, tokens):
        """The tokens that "grid" pooling reads."""
        return tokens if self.extremes else tokens[:, 1:]

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
