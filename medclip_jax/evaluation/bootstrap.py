"""Bootstrap over patients, all draws of a metric at once.

A draw is a weight for each row: how often its patient was drawn. The same draws then serve every finding and
every model, so that means over findings and differences between models have intervals, too. The values are
those that `metrics` gives on the repeated rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

Weights = Int[np.ndarray, "draws n"]

_AT_ONCE = 2**17
"""Weights that are worked on at a time: 1 MB of float64, which stays in a core's cache."""

_FEWEST = 16
"""Draws at a time, however many rows there are."""


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
    counts = np.empty((draws, known.size), np.int32)
    for draw in range(draws):
        chosen = generator.integers(known.size, size=known.size)
        counts[draw] = np.bincount(chosen, minlength=known.size)
    # All draws of a row lie together: rows are what metrics sort and pick.
    return np.ascontiguousarray(counts.T)[row].T


def auroc(
    labels: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"], weights: Weights
) -> Float[np.ndarray, " draws"]:
    """`metrics.auroc` in every draw; NaN in those of one class only.

    Args:
        labels: whether present.
        scores: higher means more likely present.
        weights: from `draw_patients`.
    """
    order = _by_score(labels, scores)
    high, low = (-scores[rows] for rows in order)
    above, through = (np.searchsorted(high, low, side) for side in ("left", "right"))
    found = np.full(len(weights), np.nan)
    for part, present, absent in _in_parts(order, weights):
        hits = _from_zero(present)
        # What is tied counts one half.
        before = hits[above] if np.array_equal(above, through) else (hits[above] + hits[through]) / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            found[part] = np.einsum("rd,rd->d", before, absent) / (hits[-1] * absent.sum(axis=0))
    return found


def average_precision(
    labels: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"], weights: Weights
) -> Float[np.ndarray, " draws"]:
    """`metrics.average_precision` in every draw; arguments as of `auroc`."""
    order = _by_score(labels, scores)
    high, low = (-scores[rows] for rows in order)
    # Recall is gained at the scores of present volumes alone.
    thresholds, last = np.unique(high[::-1], return_index=True)
    last = len(high) - 1 - last
    through = np.searchsorted(low, thresholds, "right")
    found = np.full(len(weights), np.nan)
    for part, present, absent in _in_parts(order, weights):
        hits, false = np.cumsum(present, axis=0)[last], _from_zero(absent)
        called = hits + false[through]
        with np.errstate(invalid="ignore", divide="ignore"):
            gain = np.diff(hits, axis=0, prepend=0.0) / hits[-1]
            area = np.sum(gain * hits / np.maximum(called, 1), axis=0)
        found[part] = np.where(false[-1] == 0, np.nan, area)
    return found


def _by_score(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows that are present and those that are absent, each from the highest score down."""
    sides = (np.flatnonzero(labels), np.flatnonzero(~np.asarray(labels, bool)))
    return tuple(rows[np.argsort(-scores[rows], kind="stable")] for rows in sides)


def _in_parts(
    order: tuple[np.ndarray, np.ndarray], weights: np.ndarray
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Some draws at a time: which, and the weights of the rows of both sides in them, (rows, draws)."""
    present, absent = order
    if not present.size or not absent.size:
        return
    step = max(_FEWEST, _AT_ONCE // (present.size + absent.size))
    for start in range(0, len(weights), step):
        part = slice(start, start + step)
        own = weights[part].T
        yield part, own[present].astype(np.float64), own[absent].astype(np.float64)


def _from_zero(rows: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, ... rows."""
    sums = np.zeros((len(rows) + 1, rows.shape[1]))
    np.cumsum(rows, axis=0, out=sums[1:])
    return sums
