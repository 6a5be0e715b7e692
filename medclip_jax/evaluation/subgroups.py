"""Subgroups: does a score hold for every scanner, sex and age, or is it the mean of good and bad?

Nothing is scored here: the evaluators that ran before, and that have a score for every volume, are looked at
group by group. A group is compared with the rest, all volumes of the other groups; patients are drawn once
for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from medclip_jax.evaluation import bootstrap
from medclip_jax.evaluation.embeddings import EmbeddedSplit, EncodeTexts
from medclip_jax.evaluation.metrics import Interval, mean_of_defined, percentile_interval
from medclip_jax.evaluation.results import (
    FEWEST,
    TOO_FEW,
    NotEvaluable,
    Table,
    is_enough,
    with_interval,
)
from medclip_jax.evaluation.scored import FindingTask, ScoredTask, SurvivalTask, named
from medclip_jax.evaluation.task_metrics import OF_FINDINGS, drawn, metric_of, value

MEAN = "mean"

_NO_BANDS: dict[str, Sequence[float]] = {}
_NOTHING = Interval(float("nan"), float("nan"), 0)


@dataclass(frozen=True)
class Subgroup:
    """One task, or their mean, in one group.

    Attributes:
        volumes: of the group that the task scores; of the mean, all of the group.
        patients: of those.
        counts: of a finding present and absent, of survival events and others, else ().
        is_enough: whether there are enough volumes to show the value.
        value: of the metric; NaN where it is undefined.
        interval: its bootstrap interval over patients.
        difference: value less that of the rest; NaN where the rest has none, or too few volumes.
        difference_interval: of the difference.
    """

    volumes: int
    patients: int
    counts: tuple[int, ...]
    is_enough: bool
    value: float
    interval: Interval
    difference: float
    difference_interval: Interval


@dataclass(frozen=True)
class Division:
    """One metric of one evaluator, by the groups of one column.

    Attributes:
        evaluator: whose scores, and which part of them.
        metric: its name.
        column: "scanner", or the measurement of bands.
        groups: name of the group to task to what was found; `MEAN` is over the tasks with enough volumes in
            every group.
        in_mean: these tasks.
    """

    evaluator: str
    metric: str
    column: str
    groups: Mapping[str, Mapping[str, Subgroup]]
    in_mean: tuple[str, ...]

    @property
    def widest(self) -> float:
        """Greatest mean less the lowest, of the groups; NaN where there is no mean."""
        found = [tasks[MEAN].value for tasks in self.groups.values()]
        return float(np.max(found) - np.min(found)) if not np.isnan(found).any() else float("nan")

    def table(self, conditions: Mapping[str, str]) -> Table:
        """A line for each task and group.

        Args:
            conditions: how, in words.
        """
        rows = []
        for task in next(iter(self.groups.values())):
            for group, found in self.groups.items():
                one = found[task]
                cells = [TOO_FEW] * 2
                if one.is_enough:
                    apart = TOO_FEW
                    if not np.isnan(one.difference):
                        apart = with_interval(one.difference, one.difference_interval)
                    cells = [with_interval(one.value, one.interval), apart]
                counts = " / ".join(map(str, one.counts))
                rows.append((task, group, str(one.volumes), str(one.patients), counts, *cells))
        header = (
            "task",
            self.column,
            "volumes",
            "patients",
            "present / absent",
            self.metric,
            "less the rest",
        )
        return Table(
            f"Subgroups by {self.column}: {self.evaluator}, {self.metric}", header, tuple(rows), conditions
        )


@dataclass(frozen=True)
class SubgroupsResult:
    """All divisions.

    Attributes:
        divisions: of each evaluator, metric and column.
        conditions: n, groups, what is unknown, intervals, in words.
    """

    divisions: Sequence[Division]
    conditions: Mapping[str, str]

    def metrics(self) -> dict[str, float]:
        """Keys ``zero_shot/scanner/a/auroc/<finding>``, ``.../auroc_mean``, and so on.

        Beside a value stand its ``_low`` and ``_high``, ``_difference`` to the rest with
        ``_difference_low`` and ``_difference_high``; further ``volumes/<task>`` and
        ``<evaluator>/<column>/widest``, the greatest mean of the groups less the lowest.
        """
        flat: dict[str, float] = {}
        for one in self.divisions:
            start = f"{one.evaluator}/{one.column}"
            flat[f"{start}/{one.metric}_widest"] = one.widest
            for group, tasks in one.groups.items():
                for task, found in tasks.items():
                    end = "_mean" if task == MEAN else f"/{task}"
                    key = f"{start}/{group}/{one.metric}"
                    flat |= {
                        f"{key}{end}": found.value,
                        f"{key}_low{end}": found.interval.low,
                        f"{key}_high{end}": found.interval.high,
                        f"{key}_difference{end}": found.difference,
                        f"{key}_difference_low{end}": found.difference_interval.low,
                        f"{key}_difference_high{end}": found.difference_interval.high,
                    }
                    if task != MEAN:
                        flat[f"{start}/{group}/volumes/{task}"] = found.volumes
        return flat

    def tables(self) -> list[Table]:
        """One for each division; the conditions under the last."""
        last = len(self.divisions) - 1
        return [
            one.table(self.conditions if place == last else {}) for place, one in enumerate(self.divisions)
        ]

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.tables()))


def evaluate_subgroups(
    data: EmbeddedSplit,
    encode_texts: EncodeTexts,
    *,
    groups: Sequence[str] = (),
    bands: Mapping[str, Sequence[float]] = _NO_BANDS,
    of: Sequence[str] = (),
    metric: str = "auroc",
    draws: int = 1000,
    seed: int = 0,
    results: Mapping[str, Any] | None = None,
) -> SubgroupsResult:
    """Look at the scores of other evaluators group by group.

    Args:
        data: the split that they scored.
        encode_texts: not needed.
        groups: columns of groups; () for all that the shards have.
        bands: measurement to the edges of bands that it is cut into, such as {"age": (0, 50, 65, 120)}: each
            holds its lower edge, the last one both.
        of: evaluators, or parts of them as files name them ("probe/100%"); () for all with scores.
        metric: of findings, one of `task_metrics.OF_FINDINGS`; other tasks have their own.
        draws: bootstrap resamples of patients for the intervals; 0 for none.
        seed: of the bootstrap.
        results: of the evaluators that ran before, by name.

    Returns:
        The result.

    Raises:
        NotEvaluable: no evaluator with scores ran, or the shards hold no groups.
        ValueError: an unknown column, measurement, metric or evaluator, or edges that do not rise.
    """
    if metric not in OF_FINDINGS:
        raise ValueError(f"metric={metric!r}: use one of {', '.join(OF_FINDINGS)}")
    scored = named(results or {})
    if not scored:
        raise NotEvaluable(
            "no evaluator with scores of volumes ran: name some beside, such as zero_shot or probe"
        )
    if unknown := [name for name in of if not any(_is_part(one, name) for one in scored)]:
        raise ValueError(f"no scores of {', '.join(unknown)}; there are those of {', '.join(scored)}")
    columns = _columns(data, groups, bands)
    where = {name: row for row, name in enumerate(data.ids)}
    divisions = []
    for evaluator, found in scored.items():
        if of and not any(_is_part(evaluator, name) for name in of):
            continue
        rows = np.array([where[name] for name in found.ids])
        weights = bootstrap.draw_patients(found.patients, draws, seed)
        by_metric: dict[str, dict[str, ScoredTask]] = {}
        for name, task in found.tasks.items():
            by_metric.setdefault(metric_of(task, metric), {})[name] = task
        for own, tasks in by_metric.items():
            for column, values in columns.items():
                divisions.append(
                    _divide(evaluator, own, tasks, column, values[rows], found.patients, weights)
                )
    conditions = {
        "n": data.counted,
        "groups": "; ".join(_described(column, values) for column, values in columns.items()),
        "less the rest": "value less that of all volumes of the other groups; of many differences, one in 20 "
        "has an interval without 0 by chance",
        MEAN: "over the tasks with enough volumes in every group",
        TOO_FEW: f"fewer than {FEWEST} present or absent, or fewer than {FEWEST} volumes",
        "intervals": bootstrap.described(draws, seed),
    }
    return SubgroupsResult(divisions, conditions)


def cut_into_bands(measured: Float[np.ndarray, " N"], edges: Sequence[float]) -> np.ndarray:
    """The band of each value, as a text such as "50 to 65"; "" outside of all and where it is unknown.

    Args:
        measured: (N,) values, NaN unknown.
        edges: rising; each band holds its lower edge, the last one both.

    Raises:
        ValueError: fewer than two edges, or edges that do not rise.
    """
    if len(edges) < 2 or any(low >= high for low, high in pairwise(edges)):
        raise ValueError(f"bands {tuple(edges)}: give two edges or more, each above the one before")
    names = [f"{low:g} to {high:g}" for low, high in pairwise(edges)]
    place = np.searchsorted(edges, measured, "right") - 1
    place = np.where(measured == edges[-1], len(names) - 1, place)
    known = ~np.isnan(measured) & (place >= 0) & (place < len(names))
    return np.array([names[at] if is_known else "" for at, is_known in zip(place, known, strict=True)])


def _is_part(evaluator: str, name: str) -> bool:
    return evaluator == name or evaluator.startswith(f"{name}/")


def _columns(
    data: EmbeddedSplit, groups: Sequence[str], bands: Mapping[str, Sequence[float]]
) -> dict[str, np.ndarray]:
    """Column to the group of each volume, "" where it is not known."""
    if missing := [name for name in groups if name not in data.groups]:
        raise ValueError(
            f"no groups {', '.join(missing)}; the shards have {', '.join(data.groups) or 'none'}"
        )
    chosen = groups or ([] if bands else list(data.groups))
    columns = {name: data.groups[name] for name in chosen}
    for name, edges in bands.items():
        if name not in data.measurements:
            have = ", ".join(data.measurements) or "none"
            raise ValueError(f"no measurement {name!r} to cut into bands; the shards have {have}")
        columns[f"{name}, measured" if name in columns else name] = cut_into_bands(
            data.measurements[name], edges
        )
    columns = {name: values for name, values in columns.items() if np.any(values != "")}
    if not columns:
        raise NotEvaluable(
            "the shards hold no groups: prepare a table with columns such as group:scanner or group:sex, or "
            "set bands of a measurement, such as {'age': (0, 50, 65, 120)}"
        )
    return columns


def _described(column: str, values: np.ndarray) -> str:
    unknown = int(np.sum(values == ""))
    counts = ", ".join(f"{name} {int(np.sum(values == name))}" for name in _names(values))
    return f"{column}: {counts}" + (f", unknown and left out {unknown}" if unknown else "")


def _names(values: np.ndarray) -> list[str]:
    """The groups, bands in the order of their numbers."""

    def key(name: str) -> tuple[float, str]:
        low, to, _ = name.partition(" to ")
        try:
            return (float(low), "") if to else (float("inf"), name)
        except ValueError:
            return float("inf"), name

    return sorted((str(name) for name in np.unique(values) if name), key=key)


def _divide(
    evaluator: str,
    metric: str,
    tasks: Mapping[str, ScoredTask],
    column: str,
    values: np.ndarray,
    patients: np.ndarray,
    weights: bootstrap.Weights,
) -> Division:
    """One metric by the groups of one column."""
    sides = {name: (values == name, (values != name) & (values != "")) for name in _names(values)}
    found = {
        (group, name): [_Side.of(task, metric, side, patients, weights) for side in both]
        for group, both in sides.items()
        for name, task in tasks.items()
    }
    enough = tuple(
        name for name in tasks if all(found[group, name][0].is_enough for group in sides)
    ) if len(sides) > 1 else ()  # fmt: skip
    groups = {}
    for group, (inside, _) in sides.items():
        groups[group] = {name: _subgroup(*found[group, name]) for name in tasks}
        groups[group][MEAN] = _mean(
            [found[group, name] for name in enough], int(inside.sum()), len(np.unique(patients[inside]))
        )
    return Division(evaluator, metric, column, groups, enough)


@dataclass(frozen=True)
class _Side:
    """A task in a group, or in the rest."""

    volumes: int
    patients: int
    counts: tuple[int, ...]
    is_enough: bool
    value: float
    drawn: Float[np.ndarray, " draws"]

    @classmethod
    def of(
        cls,
        task: ScoredTask,
        metric: str,
        side: Bool[np.ndarray, " N"],
        patients: np.ndarray,
        weights: bootstrap.Weights,
    ) -> _Side:
        kept = np.flatnonzero(side[task.rows])
        rows = task.rows[kept]
        keys = [key for key in ("rows", "labels", "times", "events") if hasattr(task, key)]
        part = replace(task, scores=task.scores[:, kept], **{key: getattr(task, key)[kept] for key in keys})
        counts: tuple[int, ...] = ()
        enough = len(rows) >= FEWEST
        if isinstance(part, FindingTask):
            counts = int(part.labels.sum()), int((~part.labels).sum())
            enough = is_enough(*counts)
        elif isinstance(part, SurvivalTask):
            counts = int(part.events.sum()), int((~part.events).sum())
            enough = counts[0] >= FEWEST
        known = value(part, metric) if len(rows) else float("nan")
        resampled = drawn(part, metric, weights[:, rows]) if len(rows) else np.full(len(weights), np.nan)
        return cls(len(rows), len(np.unique(patients[rows])), counts, enough, known, resampled)


def _subgroup(group: _Side, rest: _Side) -> Subgroup:
    apart, interval = float("nan"), _NOTHING
    if group.is_enough and rest.is_enough:
        apart, interval = group.value - rest.value, _interval(group.drawn - rest.drawn)
    return Subgroup(
        group.volumes,
        group.patients,
        group.counts,
        group.is_enough,
        group.value,
        _interval(group.drawn),
        apart,
        interval,
    )


def _mean(pairs: Sequence[Sequence[_Side]], volumes: int, patients: int) -> Subgroup:
    """Over tasks; the rest has the same ones, each with enough volumes since the groups have."""
    if not pairs:
        nothing = float("nan")
        return Subgroup(volumes, patients, (), False, nothing, _NOTHING, nothing, _NOTHING)
    values = [mean_of_defined(pair[side].value for pair in pairs) for side in (0, 1)]
    resampled = [np.mean([pair[side].drawn for pair in pairs], axis=0) for side in (0, 1)]
    return Subgroup(
        volumes,
        patients,
        (),
        True,
        values[0],
        _interval(resampled[0]),
        values[0] - values[1],
        _interval(resampled[0] - resampled[1]),
    )


def _interval(resampled: Float[np.ndarray, " draws"]) -> Interval:
    return percentile_interval(resampled) if resampled.size else _NOTHING
