"""Metrics of tasks of any kind: of all volumes, in every draw of a bootstrap, and what each volume adds.

Findings have AUROC, average precision and the metrics of calls; values their mean; survival Harrell's
concordance. What several repetitions scored is averaged over them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from medclip_jax.evaluation import bootstrap, metrics
from medclip_jax.evaluation.bootstrap import Weights
from medclip_jax.evaluation.confusion import CALLED, count_calls
from medclip_jax.evaluation.scored import FindingTask, ScoredTask, SurvivalTask, ValueTask

RANKED = ("auroc", "average_precision")
"""Metrics of findings that depend on the order of the scores alone."""

OF_FINDINGS = (*RANKED, *CALLED)

CONCORDANCE = "concordance"

_OF_EACH = ("auroc", "accuracy", "balanced_accuracy", "sensitivity", "specificity")
"""Metrics of findings that are a mean over volumes, or over those present and those absent."""


def metric_of(task: ScoredTask, wanted: str) -> str:
    """The metric that a task is compared by.

    Args:
        task: a finding is compared by what is wanted, any other by its own.
        wanted: one of `OF_FINDINGS`.
    """
    if isinstance(task, FindingTask):
        return wanted
    return task.metric if isinstance(task, ValueTask) else CONCORDANCE


def value(task: ScoredTask, metric: str) -> float:
    """A metric of a task; NaN where it is undefined.

    Args:
        task: with its scores.
        metric: of its kind, see `metric_of`.

    Raises:
        ValueError: a score is NaN.
    """
    if np.isnan(task.scores).any():
        raise ValueError(f"scores hold NaN at {np.flatnonzero(np.isnan(task.scores))[0] % len(task.rows)}")
    if isinstance(task, FindingTask) and metric in RANKED:
        return float(np.mean([getattr(metrics, metric)(task.labels, run) for run in task.scores]))
    return float(drawn(task, metric, np.ones((1, len(task.rows)), np.int32))[0])


def drawn(task: ScoredTask, metric: str, weights: Weights) -> Float[np.ndarray, " draws"]:
    """A metric in every draw.

    Args:
        task: with its scores.
        metric: of its kind.
        weights: (draws, n) how often each of its volumes is in each draw.
    """
    return np.mean([_drawn(task, run, metric, weights) for run in task.scores], axis=0)


def exchangeable(task: ScoredTask, metric: str) -> ScoredTask:
    """A task with scores that can be exchanged with those of another model, whose metric is the same.

    These are ranks within the model, or calls at its threshold where the metric is one of calls.

    Args:
        task: with its scores.
        metric: of its kind.
    """
    if isinstance(task, ValueTask):
        return task
    if isinstance(task, FindingTask) and metric not in RANKED:
        return replace(task, scores=(task.scores >= task.threshold).astype(np.float64), threshold=0.5)
    return replace(task, scores=rankdata(task.scores, axis=1))


def stacked(first: ScoredTask, second: ScoredTask) -> ScoredTask:
    """Two models' scores of one task in one column, the first's above; of one repetition each.

    Args:
        first: from `exchangeable`.
        second: likewise.
    """
    columns = {"rows": np.tile(first.rows, 2), "scores": np.concatenate([first.scores, second.scores], 1)}
    if isinstance(first, FindingTask):
        columns["labels"] = np.tile(first.labels, 2)
    elif isinstance(first, SurvivalTask):
        columns |= {"times": np.tile(first.times, 2), "events": np.tile(first.events, 2)}
    return replace(first, **columns)


def of_each(task: ScoredTask, metric: str) -> Float[np.ndarray, " n"] | None:
    """What each volume adds to a metric, for tests that take patients as independent.

    Of an AUROC this is the place of each volume of the rarer class among all volumes, as a share of them. Not
    the share of the other class that it is on the right side of (placement values): these sum to the AUROC in
    each class, so that chance in one class moves all of the other, and signed ranks of their differences are
    below .05 in a third of the trials in which both models are alike. Concordance has the same fault, and
    nothing here. Of calls it is whether each is right.

    Args:
        task: with its scores.
        metric: of its kind.

    Returns:
        NaN for volumes that add nothing; None where no such number is known.
    """
    if isinstance(task, ValueTask):
        return task.scores.mean(axis=0)
    if isinstance(task, SurvivalTask) or metric not in _OF_EACH:
        return None
    if metric == "auroc":
        return np.mean([_places(task.labels, run) for run in task.scores], axis=0)
    if np.isnan(task.threshold):
        return None
    right = ((task.scores >= task.threshold) == task.labels).mean(axis=0)
    among = {"sensitivity": task.labels, "specificity": ~task.labels}.get(metric, True)
    return np.where(among, right, np.nan)


def _drawn(task: ScoredTask, scores: np.ndarray, metric: str, weights: Weights) -> np.ndarray:
    """Of one repetition."""
    if isinstance(task, FindingTask):
        if metric in RANKED:
            return getattr(bootstrap, metric)(task.labels, scores, weights)
        if np.isnan(task.threshold):
            return np.full(len(weights), np.nan)
        return getattr(count_calls(task.labels, scores >= task.threshold, weights), metric)
    with np.errstate(invalid="ignore"):
        if isinstance(task, ValueTask):
            return weights @ scores / weights.sum(axis=1)
        compared, right = _pairs(task, scores)
        own = weights.astype(np.float32)
        return _quadratic(own, right) / _quadratic(own, compared)


def _quadratic(weights: np.ndarray, table: np.ndarray) -> np.ndarray:
    return np.einsum("dn,dn->d", weights @ table, weights, dtype=np.float64)


def _pairs(task: SurvivalTask, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, n) whether the row's event came before what is known of the column; and how rightly it is told.

    Harrell et al. 1982. At equal times an event comes before the end of an observation.
    """
    earlier = task.times[:, None] < task.times
    tied = (task.times[:, None] == task.times) & ~task.events
    compared = task.events[:, None] & (earlier | tied)
    right = (scores[:, None] > scores) + 0.5 * (scores[:, None] == scores)
    return compared.astype(np.float32), (compared * right).astype(np.float32)


def _places(labels: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> np.ndarray:
    rarer = labels if 2 * labels.sum() <= len(labels) else ~labels
    place = rankdata(scores) / len(scores)
    return np.where(rarer, np.where(labels, place, 1 - place), np.nan)
