"""Masked autoencoding: which patches are seen, and the decoder that predicts the others."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from medclip_jax.models import blocks, positions
from medclip_jax.models.encoder import Encoded
from medclip_jax.models.linear import Linear
from medclip_jax.models.norms import LayerNorm
from medclip_jax.sharding import batch_sharded


def random_keep(
    keys: jax.Array, tokens: int, keep: int
) -> tuple[Int[Array, "batch kept"], Int[Array, "batch tokens"], Float[Array, "batch tokens"]]:
    """Draw which patches stay visible, uniformly and for each sample on its own.

    Args:
        keys: (B,) one random key a sample.
        tokens: patches of a volume, N.
        keep: patches that stay visible, K.

    Returns:
        keep_index (B, K): the visible patches; restore_index (B, N): where each patch stands in
        ``concatenate(visible, masked)``; mask (B, N): 1 where masked, 0 where visible.

    Raises:
        ValueError: `keep` is not within 1 .. `tokens`.

    References:
        He et al. 2022, section 3, by sorting noise.
    """
    if not 1 <= keep <= tokens:
        raise ValueError(f"{keep} of {tokens} patches cannot stay visible: lower the mask ratio or the patch")
    noise = jax.vmap(lambda key: jax.random.uniform(key, (tokens,)))(keys)
    order = jnp.argsort(noise, axis=1)
    restore = jnp.argsort(order, axis=1)
    return order[:, :keep], restore, (restore >= keep).astype(jnp.float32)


class MaskedDecoder(nnx.Module):
    """Predicts the voxels of every patch from the visible tokens.

    A linear map to the decoder's width, a learned token in every masked place, fixed sine-cosine
    positions, pre-norm blocks, LayerNorm, a linear map to voxels.

    Args:
        grid: patches along depth, height, width.
        patch: voxels of a patch along depth, height, width.
        channels: intensity windows of a voxel.
        encoder_width: features of the encoder's tokens.
        width: features inside the decoder.
        depth: number of blocks.
        heads: attention heads.
        from_mean: predict how a patch differs from what is usual at its place (`set_means`), at first not at
            all. On volumes that are centered on an organ the first picture is then the average patient.
        dtype: compute type; parameters are float32.
        remat: one of `blocks.REMAT`, see `blocks.run`.
        scan: one compiled block in a loop, see `blocks.run`.
        rngs: draws the initial parameters.
    """

    def __init__(
        self,
        *,
        grid: tuple[int, int, int],
        patch: tuple[int, int, int],
        channels: int,
        encoder_width: int,
        width: int,
        depth: int,
        heads: int,
        from_mean: bool = False,
        dtype=jnp.float32,
        remat: str = "none",
        scan: bool = False,
        rngs: nnx.Rngs,
    ):
        init = nnx.initializers.xavier_uniform()
        self.grid = tuple(grid)
        self.width = width
        self.remat = remat
        self.scan = scan
        self.embed = Linear(encoder_width, width, dtype=dtype, kernel_init=init, rngs=rngs)
        self.mask_token = nnx.Param(0.02 * rngs.params.normal((1, 1, width)))
        self.blocks = blocks.stack(depth, lambda: blocks.Block(width, heads, dtype=dtype, rngs=rngs))
        self.norm = LayerNorm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        voxels = patch[0] * patch[1] * patch[2] * channels
        last = nnx.initializers.zeros if from_mean else init
        self.predict = Linear(width, voxels, dtype=dtype, kernel_init=last, rngs=rngs)
        self.mean_bias = nnx.Param(jnp.zeros((math.prod(self.grid), voxels))) if from_mean else None

    def __call__(
        self,
        encoded: Encoded,
        restore_index: Int[Array, "batch tokens"],
    ) -> Float[Array, "batch tokens voxels"]:
        """Predict all patches.

        Args:
            encoded: (B, K, encoder_width) of the visible patches; a summary has no place.
            restore_index: (B, N) from `random_keep`.

        Returns:
            (B, N, pd * ph * pw * C) in the order of `medclip_jax.models.patches.patchify`.
        """
        return self._predicted(self._run(self._placed(encoded, restore_index)), restore_index)

    def with_states(
        self,
        encoded: Encoded,
        restore_index: Int[Array, "batch tokens"],
        *,
        block: int,
    ) -> tuple[Float[Array, "batch tokens voxels"], Float[Array, "batch tokens features"]]:
        """`__call__`, and what the patches' tokens are after one of the blocks.

        Args:
            encoded, restore_index: as of `__call__`.
            block: counted from 1.

        Returns:
            What `__call__` returns, and (B, N, width).

        Raises:
            ValueError: there is no such block.
        """
        if not 1 <= block <= len(self.blocks):
            raise ValueError(f"block {block}: the decoder has blocks 1 to {len(self.blocks)}")
        states = self._run(self._placed(encoded, restore_index), last=block)
        predicted = self._predicted(self._run(states, first=block), restore_index)
        return predicted, self._patches(states, restore_index)

    def _placed(self, encoded, restore_index):
        """Tokens in the decoder's width, each in its place, blanks in the others; a summary comes first."""
        first = int(encoded.has_summary)
        tokens = batch_sharded(self.embed(batch_sharded(encoded.sequence)))
        batch, seen, width = tokens.shape
        hidden = restore_index.shape[1] - (seen - first)
        blank = jnp.broadcast_to(self.mask_token[...].astype(tokens.dtype), (batch, hidden, width))
        shuffled = batch_sharded(jnp.concatenate([tokens[:, first:], blank], axis=1))
        placed = batch_sharded(jnp.take_along_axis(shuffled, restore_index[..., None], axis=1))
        placed = placed + positions.sincos_3d(self.grid, width).astype(tokens.dtype)
        return jnp.concatenate([tokens[:, :first], placed], axis=1)

    def _run(self, states, **part):
        return blocks.run(self.blocks, states, remat=self.remat, scan=self.scan, **part)

    def _patches(self, states, restore_index):
        """Without the summary."""
        return states[:, -restore_index.shape[1] :]

    def _predicted(self, states, restore_index):
        predicted = self.predict(self._patches(self.norm(states), restore_index))
        if self.mean_bias is not None:
            bias = self.mean_bias[...].astype(predicted.dtype)
            # A product, as the bias's gradient is then one, too: XLA's sum over the batch is slow on CPUs.
            predicted = predicted + jnp.einsum("b,nv->bnv", jnp.ones(len(predicted), bias.dtype), bias)
        return batch_sharded(predicted)

    def set_means(self, target: Float[Array, "batch tokens voxels"]) -> None:
        """Begin with the mean of these patches at each place; without `from_mean` nothing changes.

        Args:
            target: (B, N, pd * ph * pw * C) what is to be predicted.
        """
        if self.mean_bias is not None:
            self.mean_bias[...] = target.astype(jnp.float32).mean(axis=0)
