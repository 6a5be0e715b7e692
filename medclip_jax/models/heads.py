"""Small heads on towers: projections into the joint space, its temperature, organs, classifiers."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from medclip_jax.models.linear import Linear
from medclip_jax.models.norms import LayerNorm


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
        self.linear = Linear(
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
        self.first = Linear(in_features, organs, kernel_init=init, rngs=rngs)
        # Over few numbers, E[x^2] - E[x]^2 would lose the digits that matter.
        self.norm = nnx.LayerNorm(organs, epsilon=1e-6, use_fast_variance=False, rngs=rngs)
        self.second = Linear(organs, organs, kernel_init=init, rngs=rngs)

    def __call__(self, tokens: Float[Array, "batch tokens in"]) -> Float[Array, "batch tokens organs"]:
        """(B, N, in) to (B, N, organs), float32."""
        tokens = tokens.astype(jnp.float32)
        return self.second(jax.nn.relu(self.norm(self.first(tokens))))


HEADS = ("linear", "mlp")
"""Layers of a `ClassifierHead`."""


def standardized(features: Float[Array, "batch features"]) -> Float[Array, "batch features"]:
    """LayerNorm without learned scale and shift: each row has mean 0 and variance 1; float32."""
    features = features.astype(jnp.float32)
    mean = features.mean(axis=-1, keepdims=True)
    return (features - mean) / jnp.sqrt(features.var(axis=-1, keepdims=True) + 1e-6)


class ClassifierHead(nnx.Module):
    """Features of a volume to logits, in float32.

    Args:
        in_features: of the tower.
        outputs: logits.
        layers: "linear"; "mlp", Linear - LayerNorm - GELU - Linear as Cardiac-CLIP fine-tunes.
        hidden: features between the two of "mlp"; 0 for as many as come in.
        dropout: share of what enters the last layer that is left out in training.
        rngs: source of the initial weights.

    Raises:
        ValueError: unknown layers.
    """

    def __init__(
        self,
        in_features: int,
        outputs: int,
        *,
        layers: str = "linear",
        hidden: int = 0,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        if layers not in HEADS:
            raise ValueError(f"config.objective.head.layers={layers!r}: use one of {', '.join(HEADS)}")
        self.layers, self.dropout = layers, float(dropout)
        width = in_features
        if layers == "mlp":
            width = hidden or in_features
            self.hidden = Linear(in_features, width, rngs=rngs)
            self.norm = LayerNorm(width, epsilon=1e-6, rngs=rngs)
        # Small, so that the first probabilities are near to 1/2 whatever the scale of the features is.
        init = nnx.initializers.normal(0.01)
        self.out = Linear(width, outputs, kernel_init=init, rngs=rngs)

    def __call__(
        self, features: Float[Array, "batch in"], keys: jax.Array | None = None
    ) -> Float[Array, "batch out"]:
        """(B, in) to (B, outputs); with keys (B,) some features are left out."""
        x = features.astype(jnp.float32)
        if self.layers == "mlp":
            x = jax.nn.gelu(self.norm(self.hidden(x)), approximate=False)
        if keys is not None and self.dropout:
            stays = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.dropout, x.shape[1:]))(keys)
            x = jnp.where(stays, x / (1 - self.dropout), 0.0)
        return self.out(x)


class OrderedCuts(nnx.Module):
    """One score to the logits of "grade k or more" for k = 1, 2, ..., which never increase with k.

    The logit is ``score - cut_k`` with ``0 = cut_1 < cut_2 < ...`` by construction: proportional odds.

    Args:
        count: cuts.
        rngs: taken as by every module; nothing is drawn.

    References:
        McCullagh 1980, "Regression models for ordinal data".
    """

    def __init__(self, count: int, *, rngs: nnx.Rngs | None = None):
        # softplus(0.54) is about 1: the first distances.
        self.bias = nnx.Param(jnp.full(count - 1, 0.54)) if count > 1 else None

    def __call__(self, score: Float[Array, "batch 1"]) -> Float[Array, "batch cuts"]:
        """(B, 1) to (B, count)."""
        if self.bias is None:
            return score
        cuts = jnp.cumsum(jax.nn.softplus(self.bias[...]))
        return score - jnp.concatenate([jnp.zeros(1), cuts])
