"""How many directions a set of tokens really uses: singular values and what follows from them, in float64."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

_TOKEN_PRECISION = float(np.finfo(np.float32).eps)
"""Of the tokens: what differs by less, relative to their mean, differs by rounding alone."""


class Moments:
    """Count, mean and scatter of tokens that come in parts, each part centered before it is squared.

    Sums of squares less the square of a sum would lose the small singular values of tokens that are nearly
    alike, which are those of interest.

    Attributes:
        count: tokens so far.
        mean: (W,) of them.
        scatter: (W, W) sum over tokens of (x - mean) (x - mean)^T.

    References:
        Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance", equation 2.1.
    """

    def __init__(self, width: int):
        self.count = 0
        self.mean = np.zeros(width)
        self.scatter = np.zeros((width, width))

    def add(self, tokens: Float[np.ndarray, "N W"]) -> None:
        """Take in tokens (N, W)."""
        tokens = np.asarray(tokens, np.float64)
        if not len(tokens):
            return
        mean = tokens.mean(axis=0)
        centered = tokens - mean
        shift, total = mean - self.mean, self.count + len(tokens)
        self.scatter += centered.T @ centered
        self.scatter += np.outer(shift, shift) * (self.count * len(tokens) / total)
        self.mean = self.mean + shift * (len(tokens) / total)
        self.count = total

    def singular_values(self) -> Float[np.ndarray, " k"]:
        """Those of the centered token matrix, (min(count, W),), highest first."""
        return _singular_values(self.scatter, self.count, self.mean)[: min(self.count, len(self.mean))]


def singular_values(tokens: Float[np.ndarray, "N W"]) -> Float[np.ndarray, " k"]:
    """Singular values of a token matrix less its mean token.

    From the eigenvalues of the smaller of its two Gram matrices, so that values below 4e-7 of the highest are
    lost and come out as 0, as do differences of tokens that float32 cannot hold.

    Args:
        tokens: (N, W).

    Returns:
        (min(N, W),) highest first.
    """
    tokens = np.asarray(tokens, np.float64)
    count, width = tokens.shape
    mean = tokens.mean(axis=0) if count else np.zeros(width)
    centered = tokens - mean
    gram = centered @ centered.T if count < width else centered.T @ centered
    return _singular_values(gram, count, mean)


def _singular_values(
    gram: Float[np.ndarray, "k k"], count: int, mean: Float[np.ndarray, " W"]
) -> Float[np.ndarray, " k"]:
    eigenvalues = np.linalg.eigvalsh(gram)[::-1]
    highest = max(eigenvalues[0], 0.0) if len(eigenvalues) else 0.0
    lost = len(gram) * np.finfo(np.float64).eps * highest + _TOKEN_PRECISION**2 * count * (mean @ mean)
    return np.sqrt(np.where(eigenvalues > lost, eigenvalues, 0.0))


def effective_rank(singular: Float[np.ndarray, " k"]) -> float:
    """exp of the entropy of the singular values, divided by their sum: from 1 to their number.

    It is the rank where all singular values are alike, and less where a few stand out.

    Args:
        singular: (k,) singular values.

    Returns:
        The effective rank; 0 where all are 0, as the rank is.

    References:
        Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality".
    """
    singular = np.asarray(singular, np.float64)
    share = singular[singular > 0] / singular.sum()
    return float(np.exp(-(share * np.log(share)).sum())) if len(share) else 0.0


def participation_ratio(singular: Float[np.ndarray, " k"]) -> float:
    """(sum of variances)^2 / sum of their squares, the variances being squared singular values.

    Args:
        singular: (k,) singular values.

    Returns:
        From 1 to k; 0 where all are 0. Never above the effective rank of the variances.
    """
    variance = _relative(singular) ** 2
    return float(variance.sum() ** 2 / (variance**2).sum()) if len(variance) else 0.0


def first_share(singular: Float[np.ndarray, " k"]) -> float:
    """Share of the variance that lies along the first direction; NaN where there is none.

    Args:
        singular: (k,) singular values.
    """
    variance = _relative(singular) ** 2
    return float(variance.max() / variance.sum()) if len(variance) else float("nan")


def mean_cosine(tokens: Float[np.ndarray, "N W"]) -> float:
    """Mean cosine over all pairs of different tokens: near 1 where tokens have become alike.

    Args:
        tokens: (N, W); tokens of length 0 are left out.

    Returns:
        The mean; NaN with fewer than two tokens.
    """
    tokens = np.asarray(tokens, np.float64)
    length = np.linalg.norm(tokens, axis=1)
    unit = tokens[length > 0] / length[length > 0, None]
    if len(unit) < 2:
        return float("nan")
    # The square of the sum is the sum over all pairs, each token with itself (a cosine of 1) included.
    total = unit.sum(axis=0)
    return float((total @ total - len(unit)) / (len(unit) * (len(unit) - 1)))


def _relative(singular: Float[np.ndarray, " k"]) -> Float[np.ndarray, " kept"]:
    """Those above 0, over the highest: squares of squares then neither overflow nor vanish."""
    singular = np.asarray(singular, np.float64)
    kept = singular[singular > 0]
    return kept / kept.max() if len(kept) else kept
