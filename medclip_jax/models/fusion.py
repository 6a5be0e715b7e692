"""Masked words, read from the states of a masked report and from the tokens of its volume."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from medclip_jax.losses import masked
from medclip_jax.models import blocks
from medclip_jax.models.activations import gelu
from medclip_jax.models.attention import CrossAttention, SelfAttention
from medclip_jax.models.bert import BertBlock, BertConfig
from medclip_jax.models.linear import Linear
from medclip_jax.models.norms import LayerNorm

LOGITS_AT_ONCE = 2**24
"""Of a sample's words at once, tokens x vocabulary: what is beyond is computed in parts of the text."""


class PriorToken(nnx.Module):
    """What all sentences of a report are aligned with, as one more token of the volume.

    References:
        ASAP, equation 11.
    """

    def __init__(self, initial: float = 0.2):
        self.scale = nnx.Param(jnp.asarray(initial, jnp.float32))

    def __call__(
        self,
        aligned: Float[Array, "batch sentences features"],
        valid: Bool[Array, "batch sentences"],
    ) -> Float[Array, "batch 1 features"]:
        """(B, S, W) to (B, 1, W): the scaled mean over the valid sentences, 0 where there is none."""
        weights = valid.astype(jnp.float32)
        weights = weights / jnp.maximum(weights.sum(axis=1, keepdims=True), 1.0)
        return self.scale[...] * jnp.einsum("bs,bsw->bw", weights, aligned)[:, None]


class FusionBlock(nnx.Module):
    """Self-attention of the text, attention to the volume plus its overall vector, MLP; LayerNorm after each.

    Args:
        config: width, heads, MLP width and LayerNorm epsilon.
        overall: whether the overall vector is added.
        dtype: compute type; parameters are float32.
        rngs: draws the initial parameters.

    References:
        ASAP, section "Semantically-adaptive fusion", equation 13; self-attention and MLP from its released
        code.
    """

    def __init__(self, config: BertConfig, *, overall: bool, dtype=jnp.float32, rngs: nnx.Rngs):
        init = nnx.initializers.xavier_uniform()
        norm = {"epsilon": config.layer_norm_epsilon, "dtype": dtype, "rngs": rngs}
        linear = {"dtype": dtype, "kernel_init": init, "rngs": rngs}
        self.attention = SelfAttention(config.width, config.heads, dtype=dtype, kernel_init=init, rngs=rngs)
        self.attention_norm = LayerNorm(config.width, **norm)
        self.cross_attention = CrossAttention(config.width, config.heads, dtype=dtype, rngs=rngs)
        self.overall = Linear(config.width, config.width, **linear) if overall else None
        self.cross_norm = LayerNorm(config.width, **norm)
        self.mlp_in = Linear(config.width, config.mlp_width, **linear)
        self.mlp_out = Linear(config.mlp_width, config.width, **linear)
        self.mlp_norm = LayerNorm(config.width, **norm)

    def __call__(
        self,
        states: Float[Array, "batch length features"],
        mask: Bool[Array, "batch length"],
        volume: Float[Array, "batch tokens features"],
        overall: Float[Array, "batch features"],
    ) -> Float[Array, "batch length features"]:
        """(B, L, W), attending to a volume's tokens (B, N, W) whose overall vector is (B, W).

        `mask` (B, L) is False on padding.
        """
        states = self.attention_norm(states + self.attention(states, mask))
        found = self.cross_attention.mix(states, volume)
        if self.overall is not None:
            found = found + self.overall(overall)[:, None]
        states = self.cross_norm(states + self.cross_attention.output(found))
        hidden = gelu(self.mlp_in(states))
        return self.mlp_norm(states + self.mlp_out(hidden))


class TextDecoder(nnx.Module):
    """A `FusionBlock`, BERT blocks, and BERT's head for masked words.

    Args:
        config: vocabulary, width, depth of the blocks after the fusion, heads, MLP width.
        volume_width: features of the volume's tokens.
        overall: whether the mean of the volume's tokens is added to what each word finds there.
        dtype: compute type; parameters are float32.
        remat: one of `blocks.REMAT`, see `blocks.run`.
        scan: one compiled block in a loop, see `blocks.run`.
        rngs: draws the initial parameters.

    References:
        ASAP, equations 12 to 14; Devlin et al. 2019.
    """

    def __init__(
        self,
        config: BertConfig,
        volume_width: int,
        *,
        overall: bool = True,
        dtype=jnp.float32,
        remat: str = "none",
        scan: bool = False,
        rngs: nnx.Rngs,
    ):
        linear = {"dtype": dtype, "kernel_init": nnx.initializers.xavier_uniform(), "rngs": rngs}
        self.remat = remat
        self.scan = scan
        self.vocabulary_size = config.vocabulary_size
        self.to_volume = Linear(volume_width, config.width, **linear)
        self.fusion = FusionBlock(config, overall=overall, dtype=dtype, rngs=rngs)
        self.blocks = blocks.stack(config.depth, lambda: BertBlock(config, dtype=dtype, rngs=rngs))
        self.transform = Linear(config.width, config.width, **linear)
        self.norm = LayerNorm(config.width, epsilon=config.layer_norm_epsilon, dtype=dtype, rngs=rngs)
        self.words = Linear(config.width, config.vocabulary_size, **linear)

    def __call__(
        self,
        states: Float[Array, "batch length features"],
        mask: Bool[Array, "batch length"],
        tokens: Float[Array, "batch tokens seen"],
        prior: Float[Array, "batch 1 features"] | None,
    ) -> Float[Array, "batch length features"]:
        """States from which `logits` reads words.

        Args:
            states: (B, L, W) of the masked text.
            mask: (B, L), False on padding.
            tokens: (B, N, volume_width) of the volume.
            prior: (B, 1, W) one more token of the volume, from `PriorToken`; None for none.

        Returns:
            (B, L, W).
        """
        volume = self.to_volume(tokens)
        overall = volume.mean(axis=1)
        if prior is not None:
            volume = jnp.concatenate([prior.astype(volume.dtype), volume], axis=1)
        states = self.fusion(states, mask, volume, overall)
        states = blocks.run(self.blocks, states, mask, remat=self.remat, scan=self.scan)
        return self.norm(gelu(self.transform(states)))

    def logits(
        self, states: Float[Array, "batch length features"]
    ) -> Float[Array, "batch length vocabulary"]:
        """Of every word of the vocabulary in every place."""
        return self.words(states)

    def word_sums(
        self,
        states: Float[Array, "batch length features"],
        targets: Int[Array, "batch length"],
        hidden: Bool[Array, "batch length"],
    ) -> tuple[Float[Array, " batch"], Float[Array, " batch"], Float[Array, " batch"]]:
        """Loss and hits of the hidden words, the logits (B, L, V) never in memory at once.

        Args:
            states: (B, L, W) from `__call__`.
            targets: (B, L) ids of the true words.
            hidden: (B, L), True on the words that count.

        Returns:
            (B,) each: sum of the cross-entropy, hidden words whose most probable word is the true one, hidden
            words.
        """
        batch, length, _ = states.shape
        parts = -(-length * self.vocabulary_size // LOGITS_AT_ONCE)
        size = -(-length // parts)
        more = parts * size - length

        def split(x):
            wide = jnp.pad(x, ((0, 0), (0, more)) + ((0, 0),) * (x.ndim - 2))
            return jnp.moveaxis(wide.reshape(batch, parts, size, *x.shape[2:]), 1, 0)

        @jax.checkpoint  # else the logits of all parts would be kept for the backward pass
        def part(states, targets, hidden):
            logits = self.logits(states)
            loss, count = masked.language_sums(logits, targets, hidden)
            hits = (hidden & (logits.argmax(axis=-1) == targets)).sum(axis=1)
            return loss, hits.astype(jnp.float32), count

        sums = jax.lax.map(lambda xs: part(*xs), (split(states), split(targets), split(hidden)))
        return tuple(x.sum(axis=0) for x in sums)
