"""What an evaluator says of every volume: what files keep, comparisons pair, and subgroups divide.

A result that has such scores gives them by a method ``scored()``:

    def scored(self) -> dict[str, Scored]

The keys are "" for the evaluator itself, or a part of it, such as "10%" of a probe with several shares of the
labels; `named` puts the evaluator's name in front. Ids are keyed hashes, by which volumes of two files are
brought together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64, Shaped


@dataclass(frozen=True)
class FindingTask:
    """Present or absent. Scored by AUROC and the like.

    Attributes:
        rows: (n,) which of the volumes of `Scored` these are: those whose label is known.
        labels: (n,) whether present.
        scores: (R, n), the higher the more likely present; of R repetitions, such as draws of labels, whose
            metrics are averaged.
        threshold: calls ``score >= threshold`` present, in all repetitions; NaN where there is none.
    """

    rows: Int64[np.ndarray, " n"]
    labels: Bool[np.ndarray, " n"]
    scores: Float[np.ndarray, "R n"]
    threshold: float = float("nan")


@dataclass(frozen=True)
class ValueTask:
    """A number for each volume, whose mean is the result: whether its class was found, or a Dice score.

    Attributes:
        rows: (n,) which of the volumes of `Scored` these are.
        scores: (R, n) the numbers, of R repetitions.
        metric: what the mean is called, such as "accuracy".
    """

    rows: Int64[np.ndarray, " n"]
    scores: Float[np.ndarray, "R n"]
    metric: str


@dataclass(frozen=True)
class SurvivalTask:
    """A risk for each volume, and what came of it. Scored by Harrell's concordance.

    Attributes:
        rows: (n,) which of the volumes of `Scored` these are.
        times: (n,) to the event or to the end of observation.
        events: (n,) whether the event was seen.
        scores: (R, n) risks, the higher the sooner; of R repetitions.
    """

    rows: Int64[np.ndarray, " n"]
    times: Float[np.ndarray, " n"]
    events: Bool[np.ndarray, " n"]
    scores: Float[np.ndarray, "R n"]


ScoredTask = FindingTask | ValueTask | SurvivalTask


@dataclass(frozen=True)
class Scored:
    """The scores of all volumes.

    Attributes:
        ids: keyed hashes of the volumes.
        patients: (N,) keyed hash of the patient of each volume.
        tasks: finding, or other name, to its scores.
    """

    ids: Sequence[str]
    patients: Int64[np.ndarray, " N"]
    tasks: Mapping[str, ScoredTask]

    def __post_init__(self) -> None:
        for name, task in self.tasks.items():
            shape = (len(task.scores), len(task.rows))
            if np.ndim(task.scores) != 2 or task.scores.shape != shape or not shape[0]:
                raise ValueError(
                    f"scores of {name!r} have shape {np.shape(task.scores)}: they must be (repetitions, "
                    f"volumes) for {len(task.rows)} volumes, with one repetition at least"
                )


def named(results: Mapping[str, Any]) -> dict[str, Scored]:
    """The scores of all results that have some, under the evaluator's name and the part's.

    Args:
        results: evaluator name to result.
    """
    found = {}
    for name, result in results.items():
        if hasattr(result, "scored"):
            for part, scored in result.scored().items():
                if scored.ids and scored.tasks:
                    found[f"{name}/{part}" if part else name] = scored
    return found


def to_json(scored: Scored) -> dict[str, Any]:
    """As files hold it: a column for each task with a value for each volume, null where it does not count.

    Args:
        scored: to write.
    """
    count = len(scored.ids)
    content: dict[str, Any] = {
        "ids": list(scored.ids),
        "patients": [f"{patient & (2**64 - 1):016x}" for patient in scored.patients.tolist()],
        "findings": {},
    }
    for name, task in scored.tasks.items():
        scores = [_spread(count, task.rows, run) for run in task.scores]
        columns: dict[str, Any] = {"scores": scores if len(scores) > 1 else scores[0]}
        if isinstance(task, FindingTask):
            threshold = None if np.isnan(task.threshold) else float(task.threshold)
            labels = _spread(count, task.rows, task.labels.astype(np.int8))
            content["findings"][name] = {"threshold": threshold, "labels": labels, **columns}
        elif isinstance(task, ValueTask):
            content.setdefault("values", {})[name] = {"metric": task.metric, **columns}
        else:
            times = _spread(count, task.rows, task.times)
            events = _spread(count, task.rows, task.events.astype(np.int8))
            content.setdefault("survival", {})[name] = {"times": times, "events": events, **columns}
    return content


def from_json(content: Mapping[str, Any]) -> Scored:
    """Read what `to_json` made.

    Args:
        content: decoded JSON.

    Raises:
        KeyError, TypeError, ValueError: it is something else.
    """
    ids = [str(name) for name in content["ids"]]
    patients = np.array([int(name, 16) for name in content["patients"]], np.uint64).astype(np.int64)
    tasks: dict[str, ScoredTask] = {}
    for name, one in content.get("findings", {}).items():
        rows, (labels,), scores = _columns([one["labels"]], one["scores"], len(ids))
        threshold = float("nan") if one["threshold"] is None else float(one["threshold"])
        tasks[name] = FindingTask(rows, labels == 1, scores, threshold)
    for name, one in content.get("values", {}).items():
        rows, _, scores = _columns([], one["scores"], len(ids))
        tasks[name] = ValueTask(rows, scores, str(one["metric"]))
    for name, one in content.get("survival", {}).items():
        rows, (times, events), scores = _columns([one["times"], one["events"]], one["scores"], len(ids))
        tasks[name] = SurvivalTask(rows, times, events == 1, scores)
    return Scored(ids, patients, tasks)


def _spread(count: int, rows: np.ndarray, values: Shaped[np.ndarray, " n"]) -> list[Any]:
    """A column of all volumes, None where there is no value."""
    column: list[Any] = [None] * count
    for row, value in zip(rows.tolist(), values.tolist(), strict=True):
        column[row] = value
    return column


def _columns(
    columns: Sequence[Sequence[Any]], scores: Sequence[Any], count: int
) -> tuple[Int64[np.ndarray, " n"], Float[np.ndarray, "C n"], Float[np.ndarray, "R n"]]:
    """The rows where all is known, and what stands there."""
    runs = scores if scores and isinstance(scores[0], list) else [scores]
    table = np.array([*columns, *runs], np.float64)  # None becomes NaN
    if table.shape != (len(columns) + len(runs), count):
        raise ValueError(f"columns of {table.shape[-1]} values for {count} volumes")
    rows = np.flatnonzero(~np.isnan(table).any(axis=0))
    return rows, table[: len(columns), rows], table[len(columns) :, rows]
