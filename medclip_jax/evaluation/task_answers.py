"""How well classification tasks were answered: shares, areas and their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from medclip_jax.evaluation import bootstrap, metrics
from medclip_jax.evaluation.metrics import Interval, mean_of_defined, percentile_interval
from medclip_jax.evaluation.results import FEWEST, TOO_FEW, with_interval
from medclip_jax.evaluation.scored import FindingTask, ScoredTask, ValueTask
from medclip_jax.evaluation.tasks import GROUP, Task, class_counts


@dataclass(frozen=True)
class TaskAnswers:
    """One task.

    Attributes:
        classes: the answers.
        learned: volumes of each class that were learned from.
        rows: (n,) which of the volumes of the result were scored: those of a known class.
        truth: (n,) class of each of them.
        probabilities: (n, C) as the classifier gives them.
        values: metric to value: "accuracy" over all volumes, "balanced_accuracy" over classes, and for each
            class "recall/<class>", the share of its volumes that is found, and "one_versus_rest/<class>",
            the share of all volumes that is rightly called it or not; for a finding "auroc" and
            "average_precision", for several classes "one_versus_rest_auroc/<class>", and the mean of these.
        intervals: metric to bootstrap interval over patients; {} when none was requested.
    """

    classes: tuple[str, ...]
    learned: tuple[int, ...]
    rows: Int64[np.ndarray, " n"]
    truth: Int64[np.ndarray, " n"]
    probabilities: Float[np.ndarray, "n C"]
    values: Mapping[str, float]
    intervals: Mapping[str, Interval]

    @property
    def scored(self) -> tuple[int, ...]:
        """Volumes of each class that were scored."""
        return tuple(int(n) for n in class_counts(self.truth, len(self.classes)))

    @property
    def is_enough(self) -> bool:
        """Whether there are enough volumes of each class to show the scores."""
        return min(self.scored) >= FEWEST

    def shown(self, metric: str) -> str:
        """A metric with its interval, formatted; that of a class with too few volumes says so.

        Args:
            metric: a key of `values`.
        """
        _, _, of = metric.partition("/")
        if of and self.scored[self.classes.index(of)] < FEWEST:
            return TOO_FEW
        return with_interval(self.values[metric], self.intervals.get(metric))


def flat_metrics(tasks: Mapping[str, TaskAnswers]) -> dict[str, float]:
    """Keys ``accuracy/<task>``, ``auroc/<finding>``, ``recall/<class>``, ``one_versus_rest/<class>``.

    ``..._low`` and ``..._high`` of the first word are the ends of intervals, ``..._mean`` is over the
    findings, ``scored/<task>`` and ``learned/<task>`` are counts of volumes.

    Args:
        tasks: name (`tasks.GROUP` for the group) to what was found.
    """
    flat: dict[str, float] = {}
    for name, task in tasks.items():
        for metric, value in task.values.items():
            word, _, of = metric.partition("/")
            if of and name != GROUP:
                continue  # of a finding the accuracy says as much
            of = of or name
            flat[f"{word}/{of}"] = value
            if interval := task.intervals.get(metric):
                flat |= {f"{word}_low/{of}": interval.low, f"{word}_high/{of}": interval.high}
        flat |= {f"scored/{name}": sum(task.scored), f"learned/{name}": sum(task.learned)}
    for metric in ("accuracy", "balanced_accuracy", "auroc", "average_precision"):
        found = [task.values[metric] for name, task in tasks.items() if name != GROUP]
        flat[f"{metric}_mean"] = mean_of_defined(found)
    return flat


def answer(task: Task, told: Float[np.ndarray, "M C"], weights: bootstrap.Weights) -> TaskAnswers:
    """What the probabilities of a task's classes are worth.

    A volume whose highest probability several classes have counts as their expectation.

    Args:
        task: with the classes of the M volumes.
        told: their probabilities; NaN of all, where nothing can be told.
        weights: from `bootstrap.draw_patients`, of the M volumes.
    """
    known = task.scored >= 0
    truth, told, weights = task.scored[known], told[known], weights[:, known]
    called = _called(told)
    right = np.take_along_axis(called, truth[:, None], axis=1)[:, 0]
    shares: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for place, name in enumerate(task.classes):
        own = truth == place
        shares[f"recall/{name}"] = right, own
        shares[f"one_versus_rest/{name}"] = (
            np.where(own, called[:, place], 1 - called[:, place]),
            np.ones_like(own),
        )
    shares["accuracy"] = right, np.ones(len(truth), bool)
    values = {name: float(found[among].mean()) for name, (found, among) in shares.items()}
    resampled = {name: _share(weights, *share) for name, share in shares.items()}
    recalls = [f"recall/{name}" for name in task.classes]
    values["balanced_accuracy"] = float(np.mean([values[name] for name in recalls]))
    resampled["balanced_accuracy"] = np.mean([resampled[name] for name in recalls], axis=0)
    defined = not np.isnan(told).any()
    if task.name != GROUP:
        for name in ("auroc", "average_precision"):
            values[name] = getattr(metrics, name)(truth == 1, told[:, 1]) if defined else float("nan")
            if defined:
                resampled[name] = getattr(bootstrap, name)(truth == 1, told[:, 1], weights)
    else:
        areas = {f"one_versus_rest_auroc/{name}": place for place, name in enumerate(task.classes)}
        for name, place in areas.items():
            values[name] = metrics.auroc(truth == place, told[:, place]) if defined else float("nan")
            if defined:
                resampled[name] = bootstrap.auroc(truth == place, told[:, place], weights)
        values["one_versus_rest_auroc"] = float(np.mean([values[name] for name in areas]))
        if defined:
            resampled["one_versus_rest_auroc"] = np.mean([resampled[name] for name in areas], axis=0)
    intervals = {
        name: percentile_interval(drawn)
        for name, drawn in resampled.items()
        if len(weights) and not np.isnan(values[name])
    }
    learned = tuple(int(n) for n in class_counts(task.learned, len(task.classes)))
    return TaskAnswers(task.classes, learned, np.flatnonzero(known), truth, told, values, intervals)


def scored_tasks(tasks: Mapping[str, TaskAnswers]) -> dict[str, ScoredTask]:
    """Of each finding the probability of every volume, of the group whether its class was found.

    Args:
        tasks: name (`tasks.GROUP` for the group) to what was found.
    """
    found: dict[str, ScoredTask] = {}
    for name, task in tasks.items():
        if name == GROUP:
            right = np.take_along_axis(_called(task.probabilities), task.truth[:, None], axis=1).T
            found[name] = ValueTask(task.rows, right, "accuracy")
        else:
            # Even odds are called absent.
            cut = float(np.nextafter(0.5, 1))
            found[name] = FindingTask(task.rows, task.truth == 1, task.probabilities[None, :, 1], cut)
    return found


def _called(told: Float[np.ndarray, "n C"]) -> Float[np.ndarray, "n C"]:
    """Probability that a volume is put into each class: among those that are equally likely, at random."""
    # What rounding cannot tell apart is a tie.
    most = told >= (1 - 1e-9) * told.max(axis=1, keepdims=True)
    return most / np.where(most.any(axis=1), most.sum(axis=1), np.nan)[:, None]


def _share(weights: bootstrap.Weights, right: np.ndarray, among: np.ndarray) -> Float[np.ndarray, " draws"]:
    """Share of right ones among some rows, in every draw of patients; NaN where none of them was drawn."""
    drawn = weights @ among.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return (weights @ np.where(among, right, 0.0)) / drawn
