"""Sentences of a report: their vectors, and how many patches of the volume each is about."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from medclip_jax.models.activations import gelu
from medclip_jax.models.linear import Linear
from medclip_jax.models.norms import LayerNorm


class AlignHead(nnx.Module):
    """Linear, GELU, LayerNorm, Linear: from a tower's features to those in which towers are compared."""

    def __init__(self, in_features: int, out_features: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        linear = {"dtype": dtype, "kernel_init": nnx.initializers.xavier_uniform(), "rngs": rngs}
        self.first = Linear(in_features, out_features, **linear)
        self.norm = LayerNorm(out_features, epsilon=1e-12, dtype=dtype, rngs=rngs)
        self.second = Linear(out_features, out_features, **linear)

    def __call__(self, features: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        """(..., in) to (..., out), not normalized."""
        return self.second(self.norm(gelu(self.first(features))))


def sentence_means(
    states: Float[Array, "batch length features"], sentence: Int[Array, "batch length"], count: int
) -> tuple[Float[Array, "batch sentences features"], Bool[Array, "batch sentences"]]:
    """Mean state of the tokens of each sentence.

    Args:
        states: (B, L, W).
        sentence: (B, L), the sentence of each token; -1 and what is not below `count` are of none.
        count: S, sentences of a report, at most.

    Returns:
        (B, S, W) float32, 0 where a report has no such sentence, and (B, S) True where it has.
    """
    belongs = (sentence[:, None] == jnp.arange(count)[:, None]).astype(jnp.float32)
    size = belongs.sum(axis=-1, keepdims=True)
    means = jnp.einsum("bsl,blw->bsw", belongs / jnp.maximum(size, 1.0), states.astype(jnp.float32))
    return means, size[..., 0] > 0


class PatchBudget(nnx.Module):
    """Chooses among a few numbers how many patches a sentence is about.

    With z = sigmoid(linear(sentence)) and M candidates, the one at floor(M z). A choice has no gradient; with
    `learned`, the gradient of a soft choice passes instead: candidate m, the middle of whose interval is
    m + 1/2, with the weight softmax(-(M z - m - 1/2)^2).

    Args:
        width: features of a sentence.
        candidates: numbers of patches, ascending.
        learned: whether a gradient passes. As the paper writes it, and in its released code, none does.
        rngs: draws the initial parameters.

    Raises:
        ValueError: candidates that are not positive and ascending.

    References:
        ASAP, equations 5 to 7; Bengio et al. 2013, "Estimating or propagating gradients through stochastic
        neurons" (straight-through).
    """

    def __init__(self, width: int, candidates: Sequence[int], *, learned: bool, rngs: nnx.Rngs):
        self.candidates = tuple(int(candidate) for candidate in candidates)
        if not self.candidates or list(self.candidates) != sorted({*self.candidates}) or candidates[0] < 1:
            raise ValueError(
                f"config.objective.selection.candidates is {self.candidates}: give ascending numbers of "
                "patches, such as (16, 32, 64)"
            )
        self.learned = learned
        init = nnx.initializers.xavier_uniform()
        self.score = Linear(width, 1, kernel_init=init, rngs=rngs)

    def __call__(
        self, sentences: Float[Array, "batch sentences features"]
    ) -> tuple[Int[Array, "batch sentences"], Float[Array, "batch sentences candidates"]]:
        """Numbers of patches, and which candidate each is.

        Args:
            sentences: (B, S, W).

        Returns:
            (B, S) numbers, and (B, S, M) 1 at the candidate chosen, 0 elsewhere; only the second has a
            gradient.
        """
        count = len(self.candidates)
        place = count * jax.nn.sigmoid(self.score(sentences)[..., 0])
        index = jnp.minimum(jnp.floor(place).astype(jnp.int32), count - 1)
        chosen = jax.nn.one_hot(index, count)
        if self.learned:
            soft = jax.nn.softmax(-((place[..., None] - jnp.arange(count) - 0.5) ** 2))
            chosen = chosen + soft - jax.lax.stop_gradient(soft)
        return jnp.asarray(self.candidates)[index], chosen
