"""Metrics as pure functions of NumPy arrays, in float64.

Three rules hold for all of them:

* **Ties count as their expectation.** Where equal scores leave the order open, the value is the mean over
  all orders of the tied items, computed exactly. So a model that gives one score to everything gets the
  score of chance, neither 0 nor 1. (`average_precision` and `f1` take tied scores together instead.)
* **Undefined is NaN.** One class only, nothing predicted and nothing to predict, ``k`` beyond the gallery:
  the value is NaN, never a flattering 0.5 or 1.
* **NaN in is an error** that names the positions: a broken embedding must not turn into a score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from medclip_jax.evaluation.checks import (
    Groups,
    Labels,
    Scores,
    binary,
    labels_and_scores,
    refuse_nan,
    same_length,
)

CRITERIA = ("f1", "accuracy", "youden", "equal", "closest")
"""What a threshold can be the best for."""

_GRID = 100
"""Thresholds from 0 to 1 among which "closest" looks, as CT-CLIP's code does."""


class Interval(NamedTuple):
    """A bootstrap interval; NaN where no draw was defined.

    Attributes:
        low: lower end.
        high: upper end.
        defined: draws in which the metric was defined; the ends are their percentiles.
    """

    low: float
    high: float
    defined: int


class OrdinalAuroc(NamedTuple):
    """One AUROC for each cut of an ordered scale, and their mean.

    Attributes:
        by_threshold: threshold to AUROC of "grade >= threshold"; NaN where one side is empty.
        mean: mean over the defined thresholds; NaN where none is.
    """

    by_threshold: dict[float, float]
    mean: float


def auroc(labels: Labels, scores: Scores) -> float:
    """Probability that a random positive scores above a random negative; a tie counts one half.

    Computed as the area under the straight lines of the ROC curve, to which a tie adds a triangle.

    Args:
        labels: (n,) booleans or 0/1.
        scores: (n,) higher means more likely positive.

    Returns:
        In [0, 1]; NaN when `labels` hold one class only.

    Raises:
        ValueError: lengths differ, a label is neither 0 nor 1, or a score is NaN.

    References:
        Hanley and McNeil 1982, "The meaning and use of the area under a ROC curve".
    """
    positive, scores = labels_and_scores(labels, scores)
    positives = int(positive.sum())
    negatives = positive.size - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    true_positives, called = counts_by_threshold(positive, scores)
    gained = np.diff(called - true_positives, prepend=0.0)
    before = np.concatenate([[0.0], true_positives[:-1]])
    return float(np.sum(gained * (true_positives + before)) / (2 * positives * negatives))


def roc_curve(labels: Labels, scores: Scores) -> tuple[Scores, Scores]:
    """False and true positive rates at every distinct score, from (0, 0) to (1, 1).

    Args:
        labels: (n,) booleans or 0/1.
        scores: (n,) higher means more likely positive.

    Returns:
        (false positive rate, true positive rate), both (distinct scores + 1,). The area under the straight
        lines between them is `auroc`. Both are NaN when `labels` hold one class only.

    Raises:
        ValueError: as `auroc`.
    """
    true_positives, called = counts_by_threshold(*labels_and_scores(labels, scores))
    true_positives = np.concatenate([[0.0], true_positives])
    false_positives = np.concatenate([[0.0], called]) - true_positives
    with np.errstate(invalid="ignore"):
        return false_positives / false_positives[-1], true_positives / true_positives[-1]


def average_precision(labels: Labels, scores: Scores) -> float:
    """Area under the precision-recall steps: sum over thresholds of precision x gain in recall.

    Equal scores enter together, at one threshold. A scorer of pure chance gets about the prevalence.

    Args:
        labels: (n,) booleans or 0/1.
        scores: (n,) higher means more likely positive.

    Returns:
        In (0, 1]; NaN when `labels` hold one class only.

    Raises:
        ValueError: as `auroc`.
    """
    positive, scores = labels_and_scores(labels, scores)
    positives = positive.sum()
    if positives == 0 or positives == positive.size:
        return float("nan")
    true_positives, called = counts_by_threshold(positive, scores)
    gain = np.diff(true_positives, prepend=0.0) / positives
    return float(np.sum(gain * true_positives / called))


def f1(labels: Labels, predictions: Labels) -> float:
    """Harmonic mean of precision and recall: ``2 TP / (2 TP + FP + FN)``.

    Args:
        labels: (n,) booleans or 0/1.
        predictions: (n,) booleans or 0/1.

    Returns:
        In [0, 1]; NaN when nothing is positive and nothing is called positive.

    Raises:
        ValueError: lengths differ, or an entry is neither 0 nor 1.
    """
    actual, called = binary(labels, "labels"), binary(predictions, "predictions")
    same_length(actual, called, "predictions")
    denominator = actual.sum() + called.sum()
    return float(2 * np.sum(actual & called) / denominator) if denominator else float("nan")


def accuracy(labels: Labels, predictions: Labels) -> float:
    """Share of entries that agree.

    Args:
        labels: (n,) booleans or 0/1.
        predictions: (n,) booleans or 0/1.

    Returns:
        In [0, 1]; NaN for no entries.

    Raises:
        ValueError: lengths differ, or an entry is neither 0 nor 1.
    """
    actual, called = binary(labels, "labels"), binary(predictions, "predictions")
    same_length(actual, called, "predictions")
    return float(np.mean(actual == called)) if actual.size else float("nan")


def sensitivity(labels: Labels, predictions: Labels) -> float:
    """Share of the positives that are called positive; NaN where there are none.

    Arguments and errors as of `accuracy`.
    """
    actual, called = binary(labels, "labels"), binary(predictions, "predictions")
    same_length(actual, called, "predictions")
    return float(np.mean(called[actual])) if actual.any() else float("nan")


def specificity(labels: Labels, predictions: Labels) -> float:
    """Share of the negatives that are called negative; NaN where there are none.

    Arguments and errors as of `accuracy`.
    """
    actual, called = binary(labels, "labels"), binary(predictions, "predictions")
    same_length(actual, called, "predictions")
    return float(np.mean(~called[~actual])) if not actual.all() else float("nan")


def best_threshold(labels: Labels, scores: Scores, *, criterion: str = "f1") -> float:
    """Threshold t such that calling ``score >= t`` positive is best on the given split.

    Candidates lie midway between neighboring distinct scores, and at both ends ("all" and "none"). Of
    equally good ones the highest is taken, the one that calls the fewest positive.

    Args:
        labels: (n,) booleans or 0/1. Take them from a validation split, never from the split that is
            scored with the threshold.
        scores: (n,) higher means more likely positive.
        criterion: "f1", "accuracy", "youden" (sensitivity + specificity), "equal" (sensitivity and
            specificity differ least; of equally near ones those with the greatest sum are the best), or
            "closest" (see `closest_threshold`, which has its own candidates).

    Returns:
        The threshold; NaN when `labels` hold one class only.

    Raises:
        ValueError: as `auroc`, or an unknown criterion.
    """
    if criterion == "closest":
        return closest_threshold(labels, scores)
    positive, scores = labels_and_scores(labels, scores)
    positives = float(positive.sum())
    negatives = positive.size - positives
    if criterion not in CRITERIA:
        raise ValueError(f"criterion {criterion!r}: use one of {', '.join(CRITERIA)}")
    if positives == 0 or negatives == 0:
        return float("nan")
    distinct = np.unique(scores)[::-1]
    middles = (distinct[:-1] + distinct[1:]) / 2
    # A middle may round down to the lower score, which would call that score positive too.
    middles = np.where(middles > distinct[1:], middles, distinct[:-1])
    candidates = np.concatenate([[np.nextafter(distinct[0], np.inf)], middles, [distinct[-1]]])
    true_positives, called = counts_by_threshold(positive, scores)
    true_positives = np.concatenate([[0.0], true_positives])
    called = np.concatenate([[0.0], called])
    false_positives = called - true_positives
    if criterion == "f1":
        value = 2 * true_positives / (positives + called)
    elif criterion == "accuracy":
        value = true_positives - false_positives
    else:
        # In whole numbers, times P N: rounding must not decide between equally good thresholds.
        value = true_positives * negatives - false_positives * positives
        if criterion == "equal":
            apart = np.abs(true_positives * negatives - (negatives - false_positives) * positives)
            value = np.where(apart == apart.min(), value, -np.inf)
    return float(candidates[np.argmax(value)])


def closest_threshold(labels: Labels, scores: Scores) -> float:
    """The one of 100 thresholds whose place in the ROC plane is nearest to (0, 1), every call right.

    The thresholds lie evenly from 0 to 1, and a score above one of them is called positive, equal ones are
    not; of equally near ones the highest is taken.

    Args:
        labels: (n,) booleans or 0/1.
        scores: (n,) probabilities.

    Returns:
        t such that ``score >= t`` calls the same, the next number after the threshold itself; NaN when
        `labels` hold one class only.

    Raises:
        ValueError: as `auroc`, or a score is no probability.

    References:
        Hamamci et al. 2024, CT-CLIP; fVLM and HLIP choose their thresholds likewise.
    """
    positive, scores = labels_and_scores(labels, scores)
    if scores.size and (scores.min() < 0 or scores.max() > 1):
        raise ValueError(
            f'criterion "closest" wants probabilities, and scores go from {scores.min():.3g} to '
            f'{scores.max():.3g}: set score="probability"'
        )
    present, absent = np.sort(scores[positive]), np.sort(scores[~positive])
    if not present.size or not absent.size:
        return float("nan")
    grid = np.linspace(0, 1, _GRID)
    missed = np.searchsorted(present, grid, side="right").tolist()
    false = (absent.size - np.searchsorted(absent, grid, side="right")).tolist()
    # In whole numbers, times P N and squared: rounding must not decide between equally near ones.
    distances = [(m * absent.size) ** 2 + (f * present.size) ** 2 for m, f in zip(missed, false, strict=True)]
    best = max(place for place, distance in enumerate(distances) if distance == min(distances))
    return float(np.nextafter(grid[best], np.inf))


def bootstrap_interval(
    metric: Callable[[np.ndarray, np.ndarray], float],
    labels: Labels,
    scores: Scores,
    *,
    draws: int = 1000,
    seed: int,
    groups: Groups | None = None,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap interval of ``metric(labels, scores)``.

    Whole groups are drawn with replacement, as many as there are: two volumes of one patient are no
    independent evidence, and drawing them apart makes the interval too narrow. Draws in which the metric
    is NaN (one class only) are left out and counted.

    Args:
        metric: any metric of this module with two array arguments, or a closure over one.
        labels: (n,) first argument of the metric.
        scores: (n,) second argument of the metric.
        draws: number of resamples.
        seed: of the resampling.
        groups: (n,) patient or study of each entry; None resamples entries.
        level: of the interval, 0.95 for the 2.5th to the 97.5th percentile.

    Returns:
        The interval.

    Raises:
        ValueError: lengths differ, or `level` or `draws` is out of range.

    References:
        Efron and Tibshirani 1993, "An introduction to the bootstrap", section 13.3; cluster resampling as
        in Davison and Hinkley 1997, section 3.8.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    same_length(labels, scores, "scores")
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"draws {draws}, level {level}: draws must be at least 1, level between 0 and 1")
    if labels.size == 0:
        return Interval(float("nan"), float("nan"), 0)
    if groups is None:
        order, starts, sizes = np.arange(labels.size), np.arange(labels.size), np.ones(labels.size, int)
    else:
        groups = np.asarray(groups)
        same_length(labels, groups, "groups")
        order = np.argsort(groups, kind="stable")
        _, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    generator = np.random.default_rng(seed)
    values = np.empty(draws)
    for draw in range(draws):
        chosen = generator.integers(starts.size, size=starts.size)
        lengths = sizes[chosen]
        before = np.cumsum(lengths) - lengths
        index = order[np.repeat(starts[chosen] - before, lengths) + np.arange(lengths.sum())]
        values[draw] = metric(labels[index], scores[index])
    return percentile_interval(values, level=level)


def percentile_interval(values: Float[np.ndarray, " draws"], *, level: float = 0.95) -> Interval:
    """Interval between the percentiles of a metric's bootstrap draws; NaN draws are left out.

    Args:
        values: of the metric, one for each draw.
        level: of the interval, as of `bootstrap_interval`.
    """
    values = values[~np.isnan(values)]
    if values.size == 0:
        return Interval(float("nan"), float("nan"), 0)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), int(values.size))


def ordinal_auroc(
    grades: Float[np.ndarray, " n"], scores: Scores, thresholds: Sequence[float]
) -> OrdinalAuroc:
    """AUROC of one score at every cut of an ordered scale.

    Args:
        grades: (n,) ordered grades, such as the five of coronary artery calcium.
        scores: (n,) higher means a higher grade.
        thresholds: each cut calls ``grade >= threshold`` positive; five grades have four.

    Returns:
        The AUROC of each cut and their mean.

    Raises:
        ValueError: lengths differ, or a grade or score is NaN.
    """
    grades = np.asarray(grades, np.float64)
    refuse_nan(grades, "grades")
    by_threshold = {threshold: auroc(grades >= threshold, scores) for threshold in thresholds}
    return OrdinalAuroc(by_threshold, mean_of_defined(by_threshold.values()))


def mean_of_defined(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; NaN when none is left.

    Args:
        values: metric values, NaN where undefined.

    Returns:
        Their mean.
    """
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def counts_by_threshold(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True positives and all calls at each distinct score, from the highest score down."""
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True)) if scores.size else order
    return np.cumsum(positive[order])[last_of_tie].astype(float), last_of_tie + 1.0
