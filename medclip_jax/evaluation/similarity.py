"""How a volume and a text are compared: every evaluator, and `medclip_jax.inference.model`, asks here.

Points are plain (N, E) arrays of length 1 and are compared by their cosine. Gaussians are compared by
``1 - CSD / 2``, with CSD the closed-form sampled distance of `losses.probabilistic.csd`: the order is that
of -CSD, and the scale that of a cosine. Without variance it is the cosine, and times the model's logit scale
it is `losses.probabilistic.pair_logits` less the bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Gaussians:
    """Diagonal normal distributions, one for each row.

    ``len``, indexing by numbers, slices and masks, and unpacking work on rows, as with an array.

    Attributes:
        mean: (N, E), or (E,) for a single one.
        log_variance: the same shape, natural logarithm.
    """

    mean: Float[np.ndarray, "*N E"]
    log_variance: Float[np.ndarray, "*N E"]

    @property
    def trace(self) -> Float[np.ndarray, "*N"]:
        """Trace of the covariance, float64: the uncertainty in one number."""
        return np.exp(self.log_variance.astype(np.float64)).sum(axis=-1)

    def __len__(self) -> int:
        return len(self.mean)

    def __getitem__(self, rows) -> Gaussians:
        return Gaussians(self.mean[rows], self.log_variance[rows])


Embeddings = Float[np.ndarray, "N E"] | Gaussians
"""Points of length 1, or Gaussians, as the objective gives them."""


def describe(embeddings: Embeddings) -> str:
    """What `similarity` is of such embeddings, as results print it."""
    return "1 - CSD / 2" if isinstance(embeddings, Gaussians) else "cosine"


def means(embeddings: Embeddings) -> Float[np.ndarray, "N E"]:
    """The points themselves, or the middles of the Gaussians."""
    return embeddings.mean if isinstance(embeddings, Gaussians) else embeddings


def joined(parts: Sequence[Embeddings]) -> Embeddings:
    """Concatenate along the rows.

    Args:
        parts: all of one kind; at least one.
    """
    if isinstance(parts[0], Gaussians):
        return Gaussians(
            np.concatenate([part.mean for part in parts]),
            np.concatenate([part.log_variance for part in parts]),
        )
    return np.concatenate(parts)


def averaged(embeddings: Embeddings) -> Embeddings:
    """One embedding for several of the same meaning, such as the prompts of a finding.

    Args:
        embeddings: N points or Gaussians, at least one.

    Returns:
        A single one, (E,): the mean of points, of length 1 again; of Gaussians with the mean of their
        variances. Of one embedding, itself.
    """
    if len(embeddings) == 1:
        return embeddings[0]
    mean = means(embeddings).mean(axis=0)
    mean = mean / np.maximum(np.linalg.norm(mean), 1e-12)
    if not isinstance(embeddings, Gaussians):
        return mean
    return Gaussians(mean, np.log(np.exp(embeddings.log_variance).mean(axis=0)))


def similarity(rows: Embeddings, columns: Embeddings) -> Float[np.ndarray, "N M"]:
    """Similarity of all pairs, higher is nearer: the cosine of points, ``1 - CSD / 2`` of Gaussians.

    Args:
        rows: N points or Gaussians.
        columns: M of the same kind.

    Returns:
        (N, M) float64.

    Raises:
        ValueError: one side has variances and the other has none.
    """
    _same_kind(rows, columns)
    products = means(rows).astype(np.float64) @ means(columns).astype(np.float64).T
    if not isinstance(rows, Gaussians):
        return products
    return products - _half(rows)[:, None] - _half(columns)[None, :] + 1.0


def preference(volumes: Embeddings, positive: Embeddings, negative: Embeddings) -> Float[np.ndarray, " N"]:
    """`similarity` to one embedding less `similarity` to another, exactly 0 where those two are equal.

    The variance of a volume is the same in both and falls out: its mean is enough.

    Args:
        volumes: N points or Gaussians.
        positive: a single one, (E,).
        negative: a single one, (E,).

    Returns:
        (N,) float64.

    Raises:
        ValueError: `positive` has a variance and `negative` has none, or the reverse.
    """
    _same_kind(positive, negative)
    direction = means(positive).astype(np.float64) - means(negative)
    found = means(volumes).astype(np.float64) @ direction
    if not isinstance(positive, Gaussians):
        return found
    return found - (_half(positive) - _half(negative))


def _half(gaussians: Gaussians) -> Float[np.ndarray, "*N"]:
    """What a Gaussian's own size takes from its similarity to any other."""
    return 0.5 * (np.sum(gaussians.mean.astype(np.float64) ** 2, axis=-1) + gaussians.trace)


def _same_kind(one: Embeddings, other: Embeddings) -> None:
    if isinstance(one, Gaussians) != isinstance(other, Gaussians):
        raise ValueError(
            "one side has variances and the other has none: embed both with the same model, and hand over "
            "the Gaussians as they are, not their means"
        )
