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
from jaxtyping import Bool, Float, Shaped
from scipy.special import gammaln

Labels = Shaped[np.ndarray, " n"]
Scores = Float[np.ndarray, " n"]
Groups = Shaped[np.ndarray, " n"]


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
    positive, scores = _labels_and_scores(labels, scores)
    positives = int(positive.sum())
    negatives = positive.size - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    true_positives, called = _counts_by_threshold(positive, scores)
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
    true_positives, called = _counts_by_threshold(*_labels_and_scores(labels, scores))
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
    positive, scores = _labels_and_scores(labels, scores)
    positives = positive.sum()
    if positives == 0 or positives == positive.size:
        return float("nan")
    true_positives, called = _counts_by_threshold(positive, scores)
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
    actual, called = _binary(labels, "labels"), _binary(predictions, "predictions")
    _same_length(actual, called, "predictions")
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
    actual, called = _binary(labels, "labels"), _binary(predictions, "predictions")
    _same_length(actual, called, "predictions")
    return float(np.mean(actual == called)) if actual.size else float("nan")


def best_threshold(labels: Labels, scores: Scores, *, criterion: str = "f1") -> float:
    """Threshold t such that calling ``score >= t`` positive is best on the given split.

    Candidates lie midway between neighboring distinct scores, and at both ends ("all" and "none"). Of
    equally good ones the highest is taken, the one that calls the fewest positive.

    Args:
        labels: (n,) booleans or 0/1. Take them from a validation split, never from the split that is
            scored with the threshold.
        scores: (n,) higher means more likely positive.
        criterion: "f1", "accuracy", or "youden" (sensitivity + specificity).

    Returns:
        The threshold; NaN when `labels` hold one class only.

    Raises:
        ValueError: as `auroc`, or an unknown criterion.
    """
    positive, scores = _labels_and_scores(labels, scores)
    positives = float(positive.sum())
    negatives = positive.size - positives
    if criterion not in ("f1", "accuracy", "youden"):
        raise ValueError(f'criterion {criterion!r}: use "f1", "accuracy" or "youden"')
    if positives == 0 or negatives == 0:
        return float("nan")
    distinct = np.unique(scores)[::-1]
    middles = (distinct[:-1] + distinct[1:]) / 2
    # A middle may round down to the lower score, which would call that score positive too.
    middles = np.where(middles > distinct[1:], middles, distinct[:-1])
    candidates = np.concatenate([[np.nextafter(distinct[0], np.inf)], middles, [distinct[-1]]])
    true_positives, called = _counts_by_threshold(positive, scores)
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
    return float(candidates[np.argmax(value)])


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
    _same_length(labels, scores, "scores")
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"draws {draws}, level {level}: draws must be at least 1, level between 0 and 1")
    if labels.size == 0:
        return Interval(float("nan"), float("nan"), 0)
    if groups is None:
        order, starts, sizes = np.arange(labels.size), np.arange(labels.size), np.ones(labels.size, int)
    else:
        groups = np.asarray(groups)
        _same_length(labels, groups, "groups")
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


def ranks(
    similarity: Float[np.ndarray, "queries gallery"], query_groups: Groups, gallery_groups: Groups
) -> Float[np.ndarray, " queries"]:
    """Expected rank, from 1, of the first gallery item that shares the query's group.

    With g items above the best match, t others tied with it and r matches in the tie, the mean over all
    orders of the tie is ``g + 1 + t / (r + 1)``.

    Args:
        similarity: (queries, gallery) higher is nearer.
        query_groups: (queries,) study of each query.
        gallery_groups: (gallery,) study of each gallery item.

    Returns:
        (queries,) expected ranks.

    Raises:
        ValueError: shapes disagree, a similarity is NaN, or a query has no item of its group.
    """
    above, tied, matches = _best_match(similarity, query_groups, gallery_groups)
    return above + 1 + tied / (matches + 1)


def median_rank(
    similarity: Float[np.ndarray, "queries gallery"], query_groups: Groups, gallery_groups: Groups
) -> float:
    """Median over queries of `ranks`; arguments and errors as there. NaN for no queries."""
    values = ranks(similarity, query_groups, gallery_groups)
    return float(np.median(values)) if values.size else float("nan")


def mean_rank(
    similarity: Float[np.ndarray, "queries gallery"], query_groups: Groups, gallery_groups: Groups
) -> float:
    """Mean over queries of `ranks`; arguments and errors as there. NaN for no queries."""
    values = ranks(similarity, query_groups, gallery_groups)
    return float(np.mean(values)) if values.size else float("nan")


def recall_at_k(
    similarity: Float[np.ndarray, "queries gallery"],
    query_groups: Groups,
    gallery_groups: Groups,
    ks: Iterable[int],
) -> dict[int, float]:
    """Share of queries with an item of their own study among the k nearest.

    Any gallery item of the query's study is a hit: reconstructions of one scan share one report, and the
    report of another reconstruction is the right report. A tie that straddles the k-th place counts with
    the probability that a random order of the tie puts a hit among the first k.

    Args:
        similarity: (queries, gallery) higher is nearer.
        query_groups: (queries,) study of each query.
        gallery_groups: (gallery,) study of each gallery item.
        ks: the k of R@k.

    Returns:
        k to recall in [0, 1]; NaN for k greater than the gallery, and for no queries.

    Raises:
        ValueError: as `ranks`, or k < 1.
    """
    above, tied, matches = _best_match(similarity, query_groups, gallery_groups)
    gallery = np.asarray(similarity).shape[1]
    recalls = {}
    for k in _checked_ks(ks):
        if k > gallery or above.size == 0:
            recalls[k] = float("nan")
            continue
        places = np.clip(k - above, 0, tied + matches)
        # All `places` go to non-matches in C(tied, places) of C(tied + matches, places) equally likely ways.
        possible = places <= tied
        inside = np.minimum(places, tied)
        log_miss = (
            gammaln(tied + 1)
            - gammaln(tied - inside + 1)
            - gammaln(tied + matches + 1)
            + gammaln(tied + matches - inside + 1)
        )
        miss = np.where(possible, np.exp(log_miss), 0.0)
        recalls[k] = float(np.mean(1.0 - np.where(places == 0, 1.0, miss)))
    return recalls


def precision_at_k(relevant: Labels, scores: Scores, ks: Iterable[int]) -> dict[int, float]:
    """Share of relevant items among the k highest scores, for one query.

    A tie that straddles the k-th place gives its places in proportion to the relevant items in it, the
    expectation over random orders.

    Args:
        relevant: (n,) booleans or 0/1.
        scores: (n,) similarity of the query to each item.
        ks: the k of P@k.

    Returns:
        k to precision in [0, 1]; NaN for k greater than n.

    Raises:
        ValueError: as `auroc`, or k < 1.
    """
    positive, scores = _labels_and_scores(relevant, scores)
    true_positives, called = _counts_by_threshold(positive, scores)
    true_positives = np.concatenate([[0.0], true_positives])
    called = np.concatenate([[0.0], called])
    # Inside a tie the expected number of relevant items grows in a straight line with the places taken.
    return {
        k: float(np.interp(k, called, true_positives) / k) if k <= positive.size else float("nan")
        for k in _checked_ks(ks)
    }


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
    _no_nan(grades, "grades")
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


def _best_match(
    similarity: np.ndarray, query_groups: np.ndarray, gallery_groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each query: items above its best match, non-matches tied with it, matches tied with it."""
    similarity = np.asarray(similarity, np.float64)
    query_groups, gallery_groups = np.asarray(query_groups), np.asarray(gallery_groups)
    if similarity.shape != (query_groups.size, gallery_groups.size):
        raise ValueError(
            f"similarity is {similarity.shape}, but there are {query_groups.size} query groups and "
            f"{gallery_groups.size} gallery groups: rows are queries, columns the gallery"
        )
    _no_nan(similarity, "similarity")
    if query_groups.size == 0:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    match = query_groups[:, None] == gallery_groups[None, :]
    orphans = np.flatnonzero(~match.any(axis=1))
    if orphans.size:
        raise ValueError(
            f"queries {_some(orphans)} have no gallery item of their group: leave them out of the queries"
        )
    best = np.max(similarity, axis=1, where=match, initial=-np.inf)[:, None]
    tie = similarity == best
    above = np.sum(similarity > best, axis=1)
    return above.astype(float), np.sum(tie & ~match, axis=1) * 1.0, np.sum(tie & match, axis=1) * 1.0


def _counts_by_threshold(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True positives and all calls at each distinct score, from the highest score down."""
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True)) if scores.size else order
    return np.cumsum(positive[order])[last_of_tie].astype(float), last_of_tie + 1.0


def _labels_and_scores(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    positive = _binary(labels, "labels")
    scores = np.asarray(scores, np.float64)
    _same_length(positive, scores, "scores")
    _no_nan(scores, "scores")
    return positive, scores


def _binary(values: np.ndarray, name: str) -> Bool[np.ndarray, " n"]:
    values = np.asarray(values)
    if values.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, not {values.shape}")
    wrong = np.flatnonzero((values != 0) & (values != 1))
    if wrong.size:
        raise ValueError(
            f"{name}[{_some(wrong)}] = {values[wrong[0]]}: {name} must be 0 or 1; leave unknown entries out "
            "and write -1 (absent) as 0"
        )
    return values.astype(bool)


def _same_length(labels: np.ndarray, other: np.ndarray, name: str) -> None:
    if labels.shape[:1] != other.shape or other.ndim != 1:
        raise ValueError(f"{labels.shape[0]} labels but {name} of shape {other.shape}: give one for each")


def _no_nan(values: np.ndarray, name: str) -> None:
    broken = np.flatnonzero(np.isnan(values.ravel()))
    if broken.size:
        where = [tuple(int(i) for i in np.unravel_index(b, values.shape)) for b in broken[:5]]
        places = ", ".join(str(w[0]) if len(w) == 1 else str(w) for w in where)
        raise ValueError(
            f"{name} hold NaN at {places}{', ...' if broken.size > 5 else ''} ({broken.size} of "
            f"{values.size}): find the volume or text whose embedding is not finite"
        )


def _some(indices: np.ndarray) -> str:
    return ", ".join(str(int(i)) for i in indices[:5]) + (", ..." if indices.size > 5 else "")


def _checked_ks(ks: Iterable[int]) -> list[int]:
    ks = [int(k) for k in ks]
    if any(k < 1 for k in ks):
        raise ValueError(f"k must be at least 1, not {min(ks)}")
    return ks
