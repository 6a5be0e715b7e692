"""The pre-norm transformer blocks, with and without cross-attention, and how a stack of blocks is run."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Shaped

from medclip_jax.models.activations import gelu, quick_gelu
from medclip_jax.models.attention import SAVED, CrossAttention, SelfAttention, filled
from medclip_jax.models.linear import Linear
from medclip_jax.models.norms import LayerNorm
from medclip_jax.sharding import batch_sharded

REMAT = ("none", "block", "attention", "dots")
"""What a block keeps for the backward pass, see `run`: everything, then least first."""


def _is_attention(primitive, *_, **params) -> bool:
    """A remat policy: results of attention, whichever implementation made them."""
    # cuDNN's kernel cannot be named from outside: its log-sum-exp never leaves JAX's own wrapper.
    named = primitive.name == "name" and params["name"] == SAVED
    return named or primitive.name.startswith("dot_product_attention_fwd")


POLICIES = {
    "block": jax.checkpoint_policies.nothing_saveable,
    "attention": _is_attention,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _is_attention
    ),
}


ACTIVATIONS = {"gelu": gelu, "quick_gelu": quick_gelu}
"""Activations of a block's MLP, by the name that a config gives."""


class _WithMlp(nnx.Module):
    """What the kinds of block share: an MLP after a LayerNorm."""

    def _add_mlp(
        self,
        width: int,
        mlp_ratio: float,
        activation: str,
        layer_norm_epsilon: float,
        *,
        dtype,
        rngs: nnx.Rngs,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r} is unknown: use one of {', '.join(ACTIVATIONS)}")
        self.activation = activation
        linear = {"dtype": dtype, "kernel_init": nnx.initializers.xavier_uniform(), "rngs": rngs}
        hidden = round(width * mlp_ratio)
        self.mlp_norm = LayerNorm(width, epsilon=layer_norm_epsilon, dtype=dtype, rngs=rngs)
        self.mlp_in = Linear(width, hidden, **linear)
        self.mlp_out = Linear(hidden, width, **linear)

    def _mlp(self, tokens):
        return self.mlp_out(ACTIVATIONS[self.activation](self.mlp_in(self.mlp_norm(tokens))))


class Block(_WithMlp):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``.

    Args:
        width: features of a token.
        heads: attention heads; must divide `width`.
        mlp_ratio: hidden features of the MLP over `width`.
        activation: one of `ACTIVATIONS`.
        layer_norm_epsilon: of both LayerNorms.
        dtype: compute type; parameters are float32.
        rngs: draws the initial parameters.

    Raises:
        ValueError: unknown `activation`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        activation: str = "gelu",
        layer_norm_epsilon: float = 1e-6,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.attention_norm = LayerNorm(width, epsilon=layer_norm_epsilon, dtype=dtype, rngs=rngs)
        self.attention = SelfAttention(width, heads, dtype=dtype, rngs=rngs)
        self._add_mlp(width, mlp_ratio, activation, layer_norm_epsilon, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        tokens: Float[Array, "batch tokens features"],
        mask: Bool[Array, "batch tokens"] | None = None,
    ) -> Float[Array, "batch tokens features"]:
        """(B, T, W) to (B, T, W); `mask` is False on padding."""
        tokens = tokens + self.attention(self.attention_norm(tokens), mask)
        return tokens + self._mlp(tokens)

    def with_weights(
        self,
        tokens: Float[Array, "batch tokens features"],
        offset: Float[Array, "batch heads tokens tokens"],
    ) -> tuple[Float[Array, "batch tokens features"], Float[Array, "batch heads tokens tokens"]]:
        """See `SelfAttention.with_weights`."""
        mixed, weights = self.attention.with_weights(self.attention_norm(tokens), offset)
        tokens = tokens + mixed
        return tokens + self._mlp(tokens), weights


class CrossBlock(_WithMlp):
    """``x + attention(norm(x))``, then ``x + cross_attention(norm(x), context)``, then ``x + mlp(norm(x))``.

    Args:
        width: features of a token.
        heads: attention heads, of either attention; must divide `width`.
        context_width: features of the tokens that are attended to; None for `width`.
        mlp_ratio: hidden features of the MLP over `width`.
        activation: one of `ACTIVATIONS`.
        layer_norm_epsilon: of the three LayerNorms. The context is taken as it is given.
        dtype: compute type; parameters are float32.
        rngs: draws the initial parameters.

    Raises:
        ValueError: unknown `activation`, or `heads` does not divide `width`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        context_width: int | None = None,
        mlp_ratio: float = 4.0,
        activation: str = "gelu",
        layer_norm_epsilon: float = 1e-6,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        norm = {"epsilon": layer_norm_epsilon, "dtype": dtype, "rngs": rngs}
        self.attention_norm = LayerNorm(width, **norm)
        self.attention = SelfAttention(width, heads, dtype=dtype, rngs=rngs)
        self.cross_norm = LayerNorm(width, **norm)
        self.cross_attention = CrossAttention(
            width, heads, context_width=context_width, dtype=dtype, rngs=rngs
        )
        self._add_mlp(width, mlp_ratio, activation, layer_norm_epsilon, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        tokens: Float[Array, "batch tokens features"],
        context: Float[Array, "batch keys seen"],
        mask: Bool[Array, "batch tokens"] | None = None,
        context_mask: Bool[Array, "batch keys"] | None = None,
    ) -> Float[Array, "batch tokens features"]:
        """(B, T, W) and (B, S, context_width) to (B, T, W); the masks are False on padding."""
        tokens = tokens + self.attention(self.attention_norm(tokens), mask)
        tokens = tokens + self.cross_attention(self.cross_norm(tokens), context, context_mask)
        return tokens + self._mlp(tokens)


def stack(depth: int, build) -> nnx.Dict:
    """`depth` blocks under the keys "0", "1", ...: integer keys would break Orbax and jax.export."""
    return nnx.Dict({str(index): build() for index in range(depth)})


def run(
    blocks: nnx.Dict,
    tokens: Float[Array, "batch tokens features"],
    *inputs: Shaped[Array, "batch ..."] | None,
    remat: str = "none",
    scan: bool = False,
    first: int = 0,
    last: int | None = None,
) -> Float[Array, "batch tokens features"]:
    """Pass tokens through blocks "0", "1", ... in turn.

    Args:
        blocks: equal modules called as ``block(tokens, *inputs)``.
        tokens: (B, T, W).
        *inputs: what each block is given beside its tokens: the mask of `Block`; context and masks of
            `CrossBlock`.
        remat: what each block keeps for the backward pass; the rest is computed again. "none" keeps all.
            "dots" keeps the results of the linear maps and of attention (norms and activations again).
            "attention" keeps the block's input and what attention's backward pass needs, not the linear
            maps. "block" keeps the block's input alone.
        scan: one compiled block in a loop. The parameters keep their names and are stacked inside the
            step (one extra copy of them), so a checkpoint fits both ways.
        first: block to begin with.
        last: block to end before; None for all. For the states between two blocks: run up to there, and from
            there on.

    Returns:
        (B, T, W).

    Raises:
        ValueError: unknown `remat`.
    """
    if remat not in REMAT:
        raise ValueError(f"remat={remat!r} is unknown: use one of {REMAT}")
    parts = [nnx.split(blocks[str(index)]) for index in range(len(blocks))[first:last]]
    if not parts:
        return tokens
    graph = parts[0][0]
    count = tokens.shape[1]
    if all(value is None for value in inputs):
        # Once for all blocks; no token sees the filling, and it is cut off again.
        tokens, mask = filled(tokens)
        inputs = inputs if mask is None else (mask, *inputs[1:])

    def apply(state, tokens):
        return batch_sharded(nnx.merge(graph, state)(batch_sharded(tokens), *inputs))

    if remat != "none":
        apply = jax.checkpoint(apply, prevent_cse=not scan, policy=POLICIES[remat])
    if scan:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(state for _, state in parts))
        return jax.lax.scan(lambda carry, state: (apply(state, carry), None), tokens, stacked)[0][:, :count]
    for _, state in parts:
        tokens = apply(state, tokens)
    return tokens[:, :count]
