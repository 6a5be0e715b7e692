"""Small heads on towers: projections into the joint space, organs, and the temperature of the contrast."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


def common_part(vectors: Float[Array, "batch features"]) -> Float[Array, " features"]:
    """The mean of vectors; 0 where all are alike, of one sample or of copies of one.

    Without the mean of vectors that are alike, nothing would be left whose direction could be learned.
    """
    mean = vectors.mean(axis=0)
    spread = jnp.linalg.norm(vectors - mean, axis=1).max()
    return jnp.where(spread > 1e-4 * jnp.linalg.norm(mean), mean, 0.0)


class Projection(nnx.Module):
    """A linear map from a tower's features to the joint space."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = False,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        init = nnx.initializers.normal(in_features**-0.5)
        self.linear = nnx.Linear(
            in_features, out_features, use_bias=bias, dtype=dtype, kernel_init=init, rngs=rngs
        )

    def __call__(self, features: Float[Array, "batch in"]) -> Float[Array, "batch out"]:
        """(B, in) to (B, out), not normalized."""
        return self.linear(features)


LARGEST_SCALE = 100.0
"""Of similarities before a softmax, as in CLIP."""


class LogitScale(nnx.Module):
    """The multiplier of cosine similarities, learned as its logarithm and kept within [1, 100].

    The clamp passes the gradient through: a scale that was pushed beyond its limit can come back.
    To hold it fixed, freeze it: `config.optimizer.frozen = (r"^logit_scale/log_scale$",)`.

    Args:
        initial: the multiplier at the start, e.g. ``1 / 0.07``.
        bias: initial offset of the logits (sigmoid loss), or None for no such parameter.
        rngs: taken as by every module; nothing is drawn.

    Raises:
        ValueError: `initial` is outside [1, 100].
    """

    def __init__(
        self,
        initial: float,
        *,
        bias: float | None = None,
        rngs: nnx.Rngs | None = None,
    ):
        if not 1.0 <= initial <= LARGEST_SCALE:
            raise ValueError(
                f"the initial logit scale {initial} is outside [1, {LARGEST_SCALE:g}]: give the multiplier "
                "itself, e.g. 14.3 for a temperature of 0.07"
            )
        self.log_scale = nnx.Param(jnp.asarray(math.log(initial), jnp.float32))
        self.bias = None if bias is None else nnx.Param(jnp.asarray(bias, jnp.float32))

    def __call__(self) -> Float[Array, ""]:
        """The multiplier, float32."""
        log_scale = self.log_scale[...]
        clamped = jnp.clip(log_scale, 0.0, math.log(LARGEST_SCALE))
        return jnp.exp(log_scale + jax.lax.stop_gradient(clamped - log_scale))


class OrganHead(nnx.Module):
    """Linear, LayerNorm, ReLU, Linear: logits of the share of a patch that each organ fills.

    References:
        ASAP, section "Anatomy-aware knowledge injection"; the layers from its released code.
    """

    def __init__(self, in_features: int, organs: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.xavier_uniform()
        self.first = nnx.Linear(in_features, organs, kernel_init=init, rngs=rngs)
        # Over few numbers, E[x^2] - E[x]^2 would lose the digits that matter.
        self.norm = nnx.LayerNorm(organs, epsilon=1e-6, use_fast_variance=False, rngs=rngs)
        self.second = nnx.Linear(organs, organs, kernel_init=init, rngs=rngs)

    def __call__(self, tokens: Float[Array, "batch tokens in"]) -> Float[Array, "batch tokens organs"]:
        """(B, N, in) to (B, N, organs), float32."""
        tokens = tokens.astype(jnp.float32)
        return self.second(jax.nn.relu(self.norm(self.first(tokens))))
