"""Heads that make a Gaussian of a tower's tokens, and pooling over a part of a volume."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Num

from medclip_jax.losses.contrastive import normalize
from medclip_jax.models.attention import attend_plain
from medclip_jax.models.constraints import batch_sharded
from medclip_jax.models.heads import Projection

INITIAL_LOG_VARIANCE = -10.0
"""Of every dimension at the start, a standard deviation of 0.0067: nearly a point."""


class Gaussian(NamedTuple):
    """A diagonal normal distribution for each sample."""

    mean: Float[Array, "batch out"]
    log_variance: Float[Array, "batch out"]


def soft_masked_mean(
    tokens: Float[Array, "batch tokens features"], weights: Num[Array, "batch tokens"]
) -> Float[Array, "batch features"]:
    """Mean of the tokens, each weighted by how much of its patch lies inside.

    Args:
        tokens: (B, N, W) of the patches.
        weights: (B, N), not negative; they need not sum to 1.

    Returns:
        (B, W) in the type of `tokens`; 0 for a sample whose weights are all 0.

    References:
        HiPro-CT, equation 4.
    """
    weights = weights.astype(jnp.float32)
    total = weights.sum(axis=1, keepdims=True)
    share = weights / jnp.where(total > 0, total, 1.0)
    return jnp.einsum("bn,bnw->bw", share, tokens.astype(jnp.float32)).astype(tokens.dtype)


class VarianceQuery(nnx.Module):
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
        if width % heads:
            raise ValueError(f"width {width} is no multiple of heads {heads}: change one of them")
        init = nnx.initializers.normal(width**-0.5)
        linear = {"kernel_init": init, "dtype": dtype, "rngs": rngs}
        self.heads = heads
        self.query = nnx.Param(init(rngs.params(), (1, 1, width)))
        self.to_query = nnx.Linear(width, width, **linear)
        self.to_key = nnx.Linear(width, width, **linear)
        self.to_value = nnx.Linear(width, width, **linear)
        self.output = nnx.Linear(width, width, **linear)
        self.log_variance = nnx.Linear(
            width,
            out_features,
            kernel_init=init,
            bias_init=nnx.initializers.constant(INITIAL_LOG_VARIANCE),
            rngs=rngs,
        )

    def __call__(
        self,
        tokens: Float[Array, "batch tokens features"],
        mask: Bool[Array, "batch tokens"] | None = None,
    ) -> Float[Array, "batch out"]:
        """Log-variances, float32.

        Args:
            tokens: (B, N, W).
            mask: (B, N), True where the query may look. A row without any True looks everywhere: finite, and
                to be left out by whoever knows that the row is empty.

        Returns:
            (B, D).
        """
        batch, _, width = tokens.shape
        if mask is not None:
            mask = mask | ~mask.any(axis=1, keepdims=True)
        query = self.to_query(jnp.broadcast_to(self.query[...], (batch, 1, width)))

        def split(x):
            return batch_sharded(x.reshape(batch, -1, self.heads, width // self.heads))

        # One query a sample: its whole map is as small as a token, so no kernel is worth its rules.
        found = attend_plain(split(query), split(self.to_key(tokens)), split(self.to_value(tokens)), mask)
        found = self.output(found.reshape(batch, width))
        return self.log_variance(found.astype(jnp.float32))


class GaussianHead(nnx.Module):
    """Mean and log-variance of a tower's output in the joint space.

    Args:
        pooled_width: features of a pooled vector.
        width: features of a token.
        out_features: dimensions of the joint space.
        heads: of the variance query's attention.
        bias: whether the map to the mean has one.
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
        pooled: Float[Array, "batch pooled"],
        tokens: Float[Array, "batch tokens features"],
        mask: Bool[Array, "batch tokens"] | None = None,
    ) -> Gaussian:
        """The distribution of each sample.

        Args:
            pooled: (B, P), what the mean is made of.
            tokens: (B, N, W), what the variance is made of.
            mask: (B, N), True on the tokens that belong to it; all by default.

        Returns:
            Mean (B, D) of length 1 (0 where `pooled` is 0) and log-variance (B, D), float32.
        """
        mean = normalize(self.mean(pooled.astype(jnp.float32)))
        return Gaussian(mean, self.variance(tokens, mask))
