"""Heads that make Gaussians of a tower's tokens: of all of them, or of those of a part."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from medclip_jax.models.attention import CrossAttention
from medclip_jax.models.attention_chunks import MASKED
from medclip_jax.models.heads import Projection, common_part
from medclip_jax.models.linear import Linear
from medclip_jax.sharding import batch_sharded
from medclip_jax.vectors import normalize

INITIAL_LOG_VARIANCE = -10.0
"""Of every dimension at the start, a standard deviation of 0.0067: nearly a point."""


class Gaussian(NamedTuple):
    """Diagonal normal distributions: means and natural logarithms of the variances."""

    mean: Float[Array, "*batch out"]
    log_variance: Float[Array, "*batch out"]


def soft_masked_mean(
    tokens: Float[Array, "batch tokens features"], weights: Float[Array, "batch parts tokens"]
) -> Float[Array, "batch parts features"]:
    """Means of the tokens, each token weighted by how much of its patch belongs to a part.

    Args:
        tokens: (B, N, W).
        weights: (B, P, N), not negative; they need not sum to 1.

    Returns:
        (B, P, W) float32; 0 for a part whose weights are all 0.

    References:
        HiPro-CT, equation 4.
    """
    weights = weights.astype(jnp.float32)
    total = weights.sum(axis=-1, keepdims=True)
    share = weights / jnp.where(total > 0, total, 1.0)
    return jnp.einsum("bpn,bnw->bpw", share, tokens, preferred_element_type=jnp.float32)


class VarianceQuery(CrossAttention):
    """A learned query attends to the tokens; a linear map of what it finds is the log-variance.

    Args:
        width: features of a token.
        out_features: dimensions of the joint space.
        heads: of the attention; must divide `width`.
        dtype: compute type of the attention. The last map is float32: near -10, bfloat16 has steps of 1/16.
        rngs: draws the initial parameters, N(0, 1 / width); the last map's bias is `INITIAL_LOG_VARIANCE`.

    Raises:
        ValueError: `heads` does not divide `width`.

    References:
        HiPro-CT, equations 2 and 3.
    """

    def __init__(self, width: int, out_features: int, heads: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        init = nnx.initializers.normal(width**-0.5)
        self.query = nnx.Param(init(rngs.params(), (width,)))
        super().__init__(width, heads, dtype=dtype, kernel_init=init, rngs=rngs)
        self.log_variance = Linear(
            width,
            out_features,
            kernel_init=init,
            bias_init=nnx.initializers.constant(INITIAL_LOG_VARIANCE),
            rngs=rngs,
        )

    def __call__(
        self, tokens: Float[Array, "batch tokens features"], masks: Bool[Array, "batch parts tokens"]
    ) -> Float[Array, "batch parts out"]:
        """Log-variances of parts, float32.

        Args:
            tokens: (B, N, W).
            masks: (B, P, N), True where the query may look for part p. A part without any token looks
                everywhere: it stays finite, and whoever knows that it is empty leaves it out.

        Returns:
            (B, P, D).
        """
        masks = masks | ~masks.any(axis=-1, keepdims=True)
        query = self.to_query(self.query[...]).reshape(self.heads, -1)
        key, value = self.keys_and_values(tokens)
        # All parts have one query, so the scores are computed once: only which of them count differs.
        scores = jnp.einsum(
            "hk,bnhk->bhn", query * query.shape[-1] ** -0.5, key, preferred_element_type=jnp.float32
        )
        scores = jnp.where(masks[:, :, None, :], scores[:, None], MASKED)
        found = jnp.einsum("bphn,bnhk->bphk", jax.nn.softmax(scores, axis=-1).astype(value.dtype), value)
        found = self.output(batch_sharded(found).reshape(*masks.shape[:2], -1))
        return self.log_variance(found.astype(jnp.float32))


class GaussianHead(nnx.Module):
    """Means and log-variances in the joint space.

    Args:
        pooled_width: features of a pooled vector.
        width: features of a token.
        out_features: dimensions of the joint space.
        heads: of the variance query's attention.
        bias: whether the mean's linear map has one.
        dtype: compute type of the attention.
        rngs: draws the initial parameters.

    References:
        HiPro-CT, section 3.3.
    """

    def __init__(
        self,
        pooled_width: int,
        width: int,
        out_features: int,
        heads: int,
        *,
        bias: bool = False,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.mean = Projection(pooled_width, out_features, bias=bias, rngs=rngs)
        self.variance = VarianceQuery(width, out_features, heads, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        pooled: Float[Array, "batch parts pooled"],
        tokens: Float[Array, "batch tokens features"],
        masks: Bool[Array, "batch parts tokens"],
    ) -> Gaussian:
        """Distributions of parts of each sample.

        Args:
            pooled: (B, P, F), what the means are made of.
            tokens: (B, N, W), what the variances are made of.
            masks: (B, P, N), True on the tokens of a part.

        Returns:
            Means (B, P, D) of length 1 (without bias 0 where `pooled` is 0) and log-variances (B, P, D),
            float32.
        """
        mean = normalize(self.mean(pooled.astype(jnp.float32)))
        return Gaussian(mean, self.variance(tokens, masks))

    def center(self, pooled: Float[Array, "batch pooled"]) -> None:
        """Bring what the linear map makes of a batch of pooled vectors to mean 0, by its bias."""
        bias = self.mean.linear.bias
        bias[...] = bias[...] - common_part(self.mean(pooled.astype(jnp.float32)))
