"""What zero-shot classification found: numbers of each finding, tables, and the scores of every volume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int8, Int64

from medclip_jax.evaluation.confusion import CALLED
from medclip_jax.evaluation.metrics import Interval, mean_of_defined
from medclip_jax.evaluation.results import FEWEST, TOO_FEW, Table, is_enough, number, with_interval
from medclip_jax.evaluation.scored import FindingTask, Scored
from medclip_jax.reports.prompts import Prompts

RANKED = ("auroc", "average_precision")
"""Metrics of the order of the scores, which need no threshold."""

METRICS = (*RANKED, *CALLED)

THRESHOLD_OF_SCORED = "CHOSEN ON THE SCORED SPLIT"
"""What the condition "threshold" says where thresholds were chosen on the volumes that they are used on."""

_TITLES = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "precision": "precision",
    "f1": "F1",
    "weighted_f1": "weighted F1",
}


@dataclass(frozen=True)
class FindingScores:
    """One finding of one split.

    Attributes:
        labels: (n,) 1 present, 0 absent; volumes with an unknown label are left out.
        scores: (n,) of the positive prompts against the negative, or of the positive ones alone.
        rows: (n,) which of the volumes of the result these are.
        unknown: volumes whose label is unknown.
        unused: volumes with a known label that were left out so that as many are present as absent.
        threshold: calls ``score >= threshold`` present; NaN where none could be chosen.
        prompts: positive and negative, one or several of each.
        values: metric name (`METRICS`) to value.
        intervals: metric name to bootstrap interval; empty when none was requested.
    """

    labels: Int8[np.ndarray, " n"]
    scores: Float[np.ndarray, " n"]
    rows: Int64[np.ndarray, " n"]
    unknown: int
    unused: int
    threshold: float
    prompts: Prompts
    values: Mapping[str, float]
    intervals: Mapping[str, Interval]

    @property
    def present(self) -> int:
        """Volumes with the finding."""
        return int(self.labels.sum())

    @property
    def absent(self) -> int:
        """Volumes without it."""
        return len(self.labels) - self.present

    @property
    def is_enough(self) -> bool:
        """Whether there are enough of both to show the scores."""
        return is_enough(self.present, self.absent)


@dataclass(frozen=True)
class ZeroShotResult:
    """Zero-shot classification of all findings.

    Attributes:
        findings: finding to scores and metrics.
        means: metric name to its mean over the findings where it is defined.
        mean_intervals: metric name to the bootstrap interval of that mean; empty when none was requested.
        crg: CRG score over all findings together.
        crg_interval: its bootstrap interval; None when none was requested.
        conditions: n, prompts, pooling, score, threshold source, intervals, in words.
        patients: (N,) keyed hash of the patient of each volume.
        ids: keyed hashes of the volumes; () where they are not known.
    """

    findings: Mapping[str, FindingScores]
    means: Mapping[str, float]
    mean_intervals: Mapping[str, Interval]
    crg: float
    crg_interval: Interval | None
    conditions: Mapping[str, str]
    patients: Int64[np.ndarray, " N"] = field(default_factory=lambda: np.zeros(0, np.int64))
    ids: Sequence[str] = ()
    title: ClassVar[str] = "Zero-shot classification"

    @property
    def mean_auroc_interval(self) -> Interval | None:
        """Bootstrap interval of the mean AUROC; None when none was requested."""
        return self.mean_intervals.get("auroc")

    def metrics(self) -> dict[str, float]:
        """Keys ``auroc_mean``, ``auroc/<finding>``, and so for each of `METRICS`; ``crg``; the counts.

        The counts are ``present/<finding>`` and ``absent/<finding>``.
        """
        flat = {f"{name}_mean": value for name, value in self.means.items()} | {"crg": self.crg}
        for name in METRICS:
            flat |= {f"{name}/{finding}": scores.values[name] for finding, scores in self.findings.items()}
        for finding, scores in self.findings.items():
            flat |= {f"present/{finding}": scores.present, f"absent/{finding}": scores.absent}
        return flat

    def all_intervals(self) -> dict[str, Interval]:
        """Bootstrap intervals under the keys of `metrics`."""
        found = {f"{name}_mean": interval for name, interval in self.mean_intervals.items()}
        found |= {"crg": self.crg_interval} if self.crg_interval is not None else {}
        for finding, scores in self.findings.items():
            found |= {f"{name}/{finding}": interval for name, interval in scores.intervals.items()}
        return found

    def scored(self) -> dict[str, Scored]:
        """The scores of every volume."""
        tasks = {
            name: FindingTask(one.rows, one.labels == 1, one.scores[None], one.threshold)
            for name, one in self.findings.items()
        }
        return {"": Scored(self.ids, self.patients, tasks)}

    @property
    def shown(self) -> Mapping[str, FindingScores]:
        """The findings with both kinds of volumes; the others have no AUROC."""
        return {name: scores for name, scores in self.findings.items() if scores.present and scores.absent}

    @property
    def shown_mean(self) -> float:
        """Mean AUROC of those with enough volumes of both kinds; NaN where there are none."""
        return mean_of_defined(scores.values["auroc"] for scores in self.shown.values() if scores.is_enough)

    def table(self) -> Table:
        """One line for each finding that has volumes of both kinds, then the mean of what is shown."""
        rows = []
        for finding, scores in self.shown.items():
            counts = (finding, str(scores.present), str(scores.absent))
            rows.append((*counts, *self._cells(scores, RANKED)))
        rows.append(("mean", "", "", *self._mean_cells(RANKED)))
        header = ("finding", "present", "absent", *(_TITLES[name] for name in RANKED))
        return Table(self.title, header, tuple(rows), self.conditions | self._left_out())

    def calls_table(self) -> Table:
        """What is called present at the threshold of each finding, and how much of that is right."""
        rows = [
            (finding, number(scores.threshold, 4), *self._cells(scores, CALLED))
            for finding, scores in self.shown.items()
        ]
        rows.append(("mean", "", *self._mean_cells(CALLED)))
        header = ("finding", "threshold", *(_TITLES[name] for name in CALLED))
        whole = {} if np.isnan(self.crg) else {"CRG": with_interval(self.crg, self.crg_interval)}
        conditions = {
            "threshold": self.conditions.get("threshold", ""),
            **whole,
            "weighted F1": "of presence and absence, by their volumes: high where a rare finding is missed",
        }
        chosen_here = THRESHOLD_OF_SCORED in conditions["threshold"]
        title = f"Calls at the threshold{' (flattered: chosen on the scored split)' if chosen_here else ''}"
        return Table(title, header, tuple(rows), conditions)

    def _cells(self, scores: FindingScores, names: Sequence[str]) -> list[str]:
        cells = [with_interval(scores.values[name], scores.intervals.get(name)) for name in names]
        return cells if scores.is_enough else [TOO_FEW] * len(names)

    def _mean_cells(self, names: Sequence[str]) -> list[str]:
        enough = [scores for scores in self.shown.values() if scores.is_enough]
        if not enough:
            return [TOO_FEW] * len(names)
        cells = []
        for name in names:
            defined = sum(not np.isnan(scores.values[name]) for scores in self.findings.values())
            # The interval is of the mean of all that are defined.
            interval = self.mean_intervals.get(name) if defined == len(enough) else None
            cells.append(with_interval(mean_of_defined(one.values[name] for one in enough), interval))
        return cells

    def _left_out(self) -> dict[str, str]:
        notes = {}
        if few := [name for name, scores in self.shown.items() if not scores.is_enough]:
            notes[TOO_FEW] = f"fewer than {FEWEST} present or absent, not in the mean: {', '.join(few)}"
        if one := [name for name in self.findings if name not in self.shown]:
            notes["not shown"] = f"nowhere present, or nowhere absent: {', '.join(one)}"
        return notes

    def __str__(self) -> str:
        return f"{self.table()}\n\n{self.calls_table()}"
