"""Bootstrap over patients, all draws of a metric at once.

A draw is a weight for each row: how often its patient was drawn. The same draws then serve every finding and
every model, so that means over findings and differences between models have intervals, too. The values are
those that `metrics` gives on the repeated rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

Weights = Int[np.ndarray, "draws n"]

_AT_ONCE = 2**22
"""Weights that are worked on at a time: 32 MB of float64."""


def described(draws: int, seed: int) -> str:
    """How intervals were drawn, for the conditions of a table."""
    return f"95 % bootstrap over patients, {draws} draws, seed {seed}" if draws else "none"


def draw_patients(patients: Shaped[np.ndarray, " n"], draws: int, seed: int) -> Weights:
    """How often each row is in each draw; the draws are those of `metrics.bootstrap_interval`.

    Args:
        patients: of each row; all rows of a patient are drawn together.
        draws: number of resamples, each of as many patients as there are.
        seed: of the resampling.
    """
    known, row = np.unique(patients, return_inverse=True)
    generator = np.random.default_rng(seed)
    weights = np.empty((draws, len(patients)), np.int32)
    for draw in range(draws):
        chosen = generator.integers(known.size, size=known.size)
        weights[draw] = np.bincount(chosen, minlength=known.size)[row]
    return weights


def auroc(
    labels: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"], weights: Weights
) -> Float[np.ndarray, " draws"]:
    """`metrics.auroc` in every draw; NaN in those of one class only.

    Args:
        labels: whether present.
        scores: higher means more likely present.
        weights: from `draw_patients`.
    """

    def area(hits: np.ndarray, called: np.ndarray) -> np.ndarray:
        false = called - hits
        before = np.concatenate([np.zeros((len(hits), 1)), hits[:, :-1]], axis=1)
        gained = np.diff(false, axis=1, prepend=0.0)
        return np.sum(gained * (hits + before), axis=1) / (2 * hits[:, -1] * false[:, -1])

    return _over_thresholds(area, labels, scores, weights)


def average_precision(
    labels: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"], weights: Weights
) -> Float[np.ndarray, " draws"]:
    """`metrics.average_precision` in every draw; arguments as of `auroc`."""

    def steps(hits: np.ndarray, called: np.ndarray) -> np.ndarray:
        gain = np.diff(hits, axis=1, prepend=0.0) / hits[:, -1:]
        found = np.sum(gain * hits / np.maximum(called, 1), axis=1)
        return np.where(hits[:, -1] == called[:, -1], np.nan, found)

    return _over_thresholds(steps, labels, scores, weights)


def _over_thresholds(
    metric: Callable[[np.ndarray, np.ndarray], np.ndarray],
    labels: np.ndarray,
    scores: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    """A metric of (draws, thresholds) present and all rows at or above each distinct score."""
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    present, found = labels[order], np.full(len(weights), np.nan)
    step = max(1, _AT_ONCE // max(1, scores.size))
    for start in range(0, len(weights) if scores.size else 0, step):
        rows = weights[start : start + step][:, order].astype(np.float64)
        hits = np.cumsum(rows * present, axis=1)[:, last_of_tie]
        called = np.cumsum(rows, axis=1)[:, last_of_tie]
        with np.errstate(invalid="ignore", divide="ignore"):
            found[start : start + step] = metric(hits, called)
    return found
