"""Systems compared with one of them: the differences, which of them are more than chance, and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medclip_jax.evaluation.compared_files import Matched
from medclip_jax.evaluation.paired import Comparison, Difference, compare, lowest_exchange_p
from medclip_jax.evaluation.results import FEWEST, TOO_FEW, Table, number, with_interval
from medclip_jax.evaluation.scored import FindingTask
from medclip_jax.evaluation.signed_ranks import LEVEL, SignedRanks, holm, shortage
from medclip_jax.evaluation.task_metrics import metric_of

MEAN = "mean"


@dataclass(frozen=True)
class Corrected:
    """The p of one difference after Holm's correction; NaN where there was no test.

    Attributes:
        exchanges: of the permutation test.
        patients: of the signed ranks over patients.
    """

    exchanges: float
    patients: float


@dataclass(frozen=True)
class Compared:
    """One metric of one evaluator, of all systems against a reference.

    Attributes:
        title: evaluator and metric.
        metric: its name.
        reference: name of the system that the others are compared with.
        others: name of each other system to its comparison.
        corrected: system and task to the p after correction; of tasks over all systems and tasks shown, of
            means over the systems.
        shown: tasks with volumes enough.
        lowest: p that exchanges can reach, see `paired.lowest_exchange_p`.
        matched: what was compared.
    """

    title: str
    metric: str
    reference: str
    others: Mapping[str, Comparison]
    corrected: Mapping[tuple[str, str], Corrected]
    shown: tuple[str, ...]
    lowest: float
    matched: Matched

    def table(self, conditions: Mapping[str, str]) -> Table:
        """A line for each task and system, then for the mean of what is shown.

        Args:
            conditions: how, in words.
        """
        several, rows, few, undefined = len(self.others) > 1, [], [], []
        tasks = [*next(iter(self.others.values())).tasks, MEAN]
        for name in tasks:
            for system, comparison in self.others.items():
                one = comparison.mean if name == MEAN else comparison.tasks[name]
                start = (name, *self._counts(name), *([system] if several else []))
                if name != MEAN and math.isnan(one.value):
                    undefined.append(name)
                elif name not in (*self.shown, MEAN) or not self.shown:
                    few += [name] * (name != MEAN)
                    rows.append((*start, *[TOO_FEW] * 7))
                else:
                    rows.append((*start, *self._cells(system, name, one)))
        notes = {}
        if few:
            wanted = "present or absent" if self._is_of_findings else "volumes or events"
            notes[TOO_FEW] = f"fewer than {FEWEST} {wanted}, not in the mean: {', '.join(dict.fromkeys(few))}"
        if undefined:
            names = ", ".join(dict.fromkeys(undefined))
            notes["not compared"] = f"{self.metric} is undefined for a system: {names}"
        if (tests := len(self.shown) * len(self.others)) * self.lowest > LEVEL:
            corrected = min(1.0, tests * self.lowest)
            notes["too few exchanges"] = (
                f"p cannot fall below {self.lowest:.2g}, {corrected:.2g} after correction for {tests} tests: "
                "more --permutations, or more patients, could"
            )
        counted = ("present", "absent") if self._is_of_findings else ("volumes",)
        named = ("system", "value") if several else (next(iter(self.others)),)
        header = ("task", *counted, *(named[:1] if several else ()), self.reference, named[-1])
        header += ("difference", "p", "Holm", "p, patients", "Holm")
        return Table(self.title, header, tuple(rows), dict(conditions) | dict(self.matched.words) | notes)

    def over_tasks(self) -> list[tuple[str, ...]]:
        """Cells of the table over tasks, a line for each system; [] where no task is shown."""
        rows = []
        corrected = holm([one.mean.tasks.p for one in self.others.values()])
        for (system, one), p in zip(self.others.items(), corrected, strict=True):
            mean = one.mean
            if not self.shown or math.isnan(mean.value):
                continue
            runs = "" if mean.runs is None else f"{_p(mean.runs.p)} ({mean.runs.pairs} runs)"
            rows.append(
                (
                    self.title,
                    system,
                    with_interval(mean.value, mean.interval_of_tasks),
                    str(mean.tasks.pairs),
                    _p(mean.tasks.p),
                    _p(p),
                    runs,
                )
            )
        return rows

    def shortages(self) -> dict[str, str]:
        """What cannot be significant, however large the differences are."""
        found = {}
        for system, one in self.others.items():
            if not self.shown:
                continue
            tests = len(self.others)
            for what, ranks in (("tasks", one.mean.tasks), ("runs", one.mean.runs)):
                if ranks is not None and (words := shortage(ranks.pairs, tests if what == "tasks" else 1)):
                    found[f"too few {what}"] = f"{self.title}, {system}: {words}"
        return found

    def plain(self) -> dict[str, dict[str, Any]]:
        """As JSON has it: system to task to numbers, null where one is undefined."""
        return {
            system: {
                name: self._numbers(system, name, one)
                for name, one in [*comparison.tasks.items(), (MEAN, comparison.mean)]
            }
            for system, comparison in self.others.items()
        }

    @property
    def _is_of_findings(self) -> bool:
        return all(isinstance(sides[0][0], FindingTask) for sides in self._own_tasks.values())

    @property
    def _own_tasks(self) -> Mapping[str, Any]:
        names = next(iter(self.others.values())).tasks
        return {name: self.matched.tasks[name] for name in names}

    def _counts(self, name: str) -> tuple[str, ...]:
        if name == MEAN:
            return ("", "") if self._is_of_findings else ("",)
        task = self.matched.tasks[name][0][0]
        if not self._is_of_findings:
            return (str(len(task.rows)),)
        return str(int(task.labels.sum())), str(int((~task.labels).sum()))

    def _cells(self, system: str, name: str, one: Difference) -> tuple[str, ...]:
        corrected = self.corrected.get((system, name), Corrected(float("nan"), float("nan")))
        patients = float("nan") if one.patients is None else one.patients.p
        return (
            _with_spread(one.first, one.first_runs),
            _with_spread(one.second, one.second_runs),
            with_interval(one.value, one.interval),
            _p(one.p),
            _p(corrected.exchanges),
            _p(patients),
            _p(corrected.patients),
        )

    def _numbers(self, system: str, name: str, one: Difference) -> dict[str, Any]:
        corrected = self.corrected.get((system, name), Corrected(float("nan"), float("nan")))
        found = {
            "reference": one.first,
            "value": one.second,
            "reference_runs": list(one.first_runs),
            "value_runs": list(one.second_runs),
            "difference": one.value,
            "low": one.interval.low,
            "high": one.interval.high,
            "p": one.p,
            "p_holm": corrected.exchanges,
            **_ranks("patients", one.patients),
            "p_patients_holm": corrected.patients,
        }
        if name == MEAN:
            mean = self.others[system].mean
            found |= {"low_tasks": mean.interval_of_tasks.low, "high_tasks": mean.interval_of_tasks.high}
            found |= _ranks("tasks", mean.tasks) | _ranks("runs", mean.runs)
        return {key: _finite(value) for key, value in found.items()}


def compare_systems(
    title: str,
    matched: Matched,
    systems: Sequence[str],
    reference: str,
    metrics: Sequence[str],
    *,
    draws: int = 10_000,
    permutations: int = 2_000,
    seed: int = 0,
    progress: bool = False,
) -> list[Compared]:
    """Compare systems with a reference, by each metric.

    Args:
        title: of the evaluator.
        matched: scores of the systems.
        systems: their names, in the order of the scores.
        reference: one of the names.
        metrics: of findings; other tasks are compared by their own metric, once.
        draws: bootstrap resamples of patients.
        permutations: exchanges of patients.
        seed: of both.
        progress: whether to show how far it is.

    Returns:
        One for each metric that a task has.
    """
    groups: dict[str, list[str]] = {}
    for wanted in metrics:
        for name, sides in matched.tasks.items():
            group = groups.setdefault(metric_of(sides[0][0], wanted), [])
            group += [name] * (name not in group)
    found = []
    for metric, names in groups.items():
        shown = tuple(name for name in names if name in matched.shown)
        others = {
            system: compare(
                matched.pairs(names, systems.index(reference), place),
                matched.patients,
                metric,
                mean_of=shown,
                draws=draws,
                permutations=permutations,
                seed=seed,
                progress=progress,
            )
            for place, system in enumerate(systems)
            if system != reference
        }
        corrected = _corrected(others, shown)
        lowest = lowest_exchange_p(len(np.unique(matched.patients)), permutations)
        found.append(
            Compared(f"{title}: {metric}", metric, reference, others, corrected, shown, lowest, matched)
        )
    return found


def tasks_table(compared: Sequence[Compared], conditions: Mapping[str, str]) -> Table | None:
    """Each metric over its tasks, and over runs, a line for each system; None where nothing is shown.

    Args:
        compared: all metrics.
        conditions: how, in words.
    """
    rows = [row for one in compared for row in one.over_tasks()]
    if not rows:
        return None
    header = ("over tasks", "system", "mean difference", "tasks", "p, tasks", "Holm", "p, runs")
    notes = dict(conditions)
    for one in compared:
        for key, words in one.shortages().items():
            notes[key] = f"{notes[key]}; {words}" if key in notes else words
    return Table(f"Over tasks, against {compared[0].reference}", header, tuple(rows), notes)


def _corrected(others: Mapping[str, Comparison], shown: Sequence[str]) -> dict[tuple[str, str], Corrected]:
    of_tasks = [(system, name) for system in others for name in shown]
    of_means = [(system, MEAN) for system in others]
    found = {}
    for family in (of_tasks, of_means):
        differences = [
            others[system].mean if name == MEAN else others[system].tasks[name] for system, name in family
        ]
        exchanges = holm([one.p for one in differences])
        patients = holm([float("nan") if one.patients is None else one.patients.p for one in differences])
        found |= {key: Corrected(*p) for key, *p in zip(family, exchanges, patients, strict=True)}
    return found


def _with_spread(value: float, runs: Sequence[float]) -> str:
    """A mean over runs with their standard deviation."""
    return number(value) + (f" ± {number(float(np.std(runs, ddof=1)))}" if len(runs) > 1 else "")


def _p(p: float) -> str:
    return "n/a" if math.isnan(p) else f"{p:.4f}" if p >= LEVEL / 500 else "< .0001"


def _ranks(what: str, ranks: SignedRanks | None) -> dict[str, Any]:
    if ranks is None:
        return {}
    return {f"p_{what}": ranks.p, f"pairs_{what}": ranks.pairs}


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(one) for one in value]
    if isinstance(value, int):
        return value
    return float(value) if math.isfinite(value) else None
