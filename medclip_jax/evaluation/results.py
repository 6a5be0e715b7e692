"""What every evaluator returns: numbers under stable keys, and a table that states how they came about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from medclip_jax.evaluation.metrics import Interval
from medclip_jax.reports.definitions import BUILT_IN, Findings
from medclip_jax.reports.names import UnknownFinding, finding_name

FEWEST = 10
"""So many volumes with a finding, and so many without, tables and pages want before they show its scores.

From two positives an AUROC of 1.000 is as likely as not. Files of numbers hold every value, with its counts.
"""

TOO_FEW = "too few"


def is_enough(present: int, absent: int) -> bool:
    """Whether scores of so many volumes are shown."""
    return min(present, absent) >= FEWEST


class NotEvaluable(ValueError):
    """The shards or the model lack what an evaluator needs; the message says what to do."""


def needs(*what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Mark an evaluator by what a model must be able to embed; with one that cannot, it is skipped.

    Args:
        what: needs that `Embedder.lacks` knows, such as "text"; "pooled" for `EmbeddedSplit.pooled`. Every
            model embeds volumes.
    """

    def mark(evaluator: Callable[..., Any]) -> Callable[..., Any]:
        evaluator.needs = what
        return evaluator

    return mark


def label_source(labels: str) -> str:
    """Where labels are from, for the conditions of a table.

    Args:
        labels: "labels" for ground truth, "findings" for what the reports say.
    """
    return "ground truth" if labels == "labels" else "from the reports, not mentioned left out"


def not_scored(lacking: Mapping[str, str]) -> dict[str, str]:
    """What was not scored and why, for the conditions of a table; {} where there is nothing of the kind.

    Args:
        lacking: name to the reason.
    """
    return {"not scored": "; ".join(f"{name}: {why}" for name, why in lacking.items())} if lacking else {}


def chosen_findings(
    findings: str | Sequence[str], columns: Iterable[str], definitions: Findings = BUILT_IN
) -> tuple[str, ...]:
    """The columns of the shards that are meant.

    Args:
        findings: names as `reports.names.finding_name` understands them, or one text of them with commas
            between; () for all.
        columns: that there are.
        definitions: the findings that are known.

    Raises:
        ValueError: there is no such column; the message says which there are.
    """
    columns = tuple(columns)
    given = [name for name in findings.split(",") if name.strip()] if isinstance(findings, str) else findings
    names, missing = [], []
    for name in given or columns:
        try:
            names.append(finding_name(name, columns, definitions=definitions))
        except UnknownFinding:
            missing.append(name)
    if missing:
        raise ValueError(f"no column for {', '.join(missing)}; the shards have {', '.join(columns)}")
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class Table:
    """A small table with the conditions under which its numbers hold.

    Attributes:
        title: one line.
        header: column names.
        rows: cells, already formatted, one list for each line.
        conditions: name to value: n, prompts, pooling, threshold source, tie rule.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    conditions: Mapping[str, str]

    def __str__(self) -> str:
        lines = [self.header, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.header))]

        def aligned(line: Sequence[str]) -> str:
            cells = [line[0].ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
            return "  ".join(cells).rstrip()

        ruler = "-" * len(aligned(self.header))
        body = [self.title, aligned(self.header), ruler, *map(aligned, self.rows)]
        return "\n".join(body + [f"{name}: {value}" for name, value in self.conditions.items()])


class Result(Protocol):
    """What `run.evaluate_all` collects: `zero_shot`, `retrieval` and `ordinal` each have their own.

    One that has a score of every volume also gives these, by ``scored() -> dict[str, scored.Scored]``. Files
    then keep them, and `medclip compare` and the evaluator `subgroups` take them. How to: for each task (a
    finding, "classes", an event) one of

    * `scored.FindingTask`: labels and scores, compared by AUROC and the like;
    * `scored.ValueTask`: a number for each volume whose mean is the result, such as Dice or whether its class
      was found;
    * `scored.SurvivalTask`: risk, time and event, compared by Harrell's concordance;

    with `data.ids` and `data.patients` of all volumes scored, and ``rows``, the places of those that count.
    Several repetitions (draws of labels, folds that all score every volume) are rows of ``scores`` (R, n).
    """

    def table(self) -> Table:
        """The numbers and their conditions."""

    def metrics(self) -> dict[str, float]:
        """The numbers under stable keys, without the evaluator's name in front."""


def number(value: float, digits: int = 3) -> str:
    """Format a metric; "n/a" where it is undefined.

    Args:
        value: the metric.
        digits: decimals.
    """
    return "n/a" if np.isnan(value) else f"{value:.{digits}f}"


def with_interval(value: float, interval: Interval | None) -> str:
    """Format a metric with its bootstrap interval, as ``0.812 [0.744, 0.871]``.

    Args:
        value: the metric.
        interval: None where no interval was requested.
    """
    if interval is None or interval.defined == 0 or np.isnan(value):
        return number(value)
    return f"{number(value)} [{number(interval.low)}, {number(interval.high)}]"
