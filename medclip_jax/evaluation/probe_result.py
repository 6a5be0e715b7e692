"""What a linear probe found: numbers, intervals and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int64

from medclip_jax.evaluation.metrics import Interval, percentile_interval
from medclip_jax.evaluation.results import FEWEST, TOO_FEW, Table, is_enough, number, with_interval
from medclip_jax.evaluation.scored import FindingTask, Scored


@dataclass(frozen=True)
class FindingProbe:
    """One finding with one share of its labels.

    Attributes:
        labels: training volumes of the first draw.
        labels_present: those of them with the finding.
        penalties: chosen in each draw.
        rows: (n,) which of the scored volumes have a known label.
        truth: (n,) whether they have the finding.
        scores: (S, n) log odds that each draw's regression gives them.
        auroc: (S,) of each draw.
        average_precision: (S,) likewise.
        resampled_auroc: (draws,) mean over the draws of labels in each bootstrap draw of patients, NaN where
            it holds one class only; (0,) without intervals.
        resampled_average_precision: (draws,) likewise.
    """

    labels: int
    labels_present: int
    penalties: tuple[float, ...]
    rows: Int64[np.ndarray, " n"]
    truth: Bool[np.ndarray, " n"]
    scores: Float[np.ndarray, "S n"]
    auroc: Float[np.ndarray, " S"]
    average_precision: Float[np.ndarray, " S"]
    resampled_auroc: Float[np.ndarray, " draws"]
    resampled_average_precision: Float[np.ndarray, " draws"]


ProbeScores = Mapping[float, Mapping[str, FindingProbe]]
"""Share of the labels to finding to what was found; of one model."""


@dataclass(frozen=True)
class Summary:
    """A metric of one finding or the mean over several.

    Attributes:
        value: mean over the draws of labels.
        deviation: standard deviation over them (of a sample); NaN where there is one alone.
        interval: bootstrap interval of the value; None where none was requested.
        resampled: the bootstrap draws behind it.
    """

    value: float
    deviation: float
    interval: Interval | None
    resampled: Float[np.ndarray, " draws"]

    def __str__(self) -> str:
        spread = "" if np.isnan(self.deviation) else f" ± {number(self.deviation)}"
        value, _, interval = with_interval(self.value, self.interval).partition(" ")
        return f"{value}{spread} {interval}".rstrip()


def summarize(found: Sequence[FindingProbe], metric: str = "auroc") -> Summary:
    """Mean over findings of a metric, in each draw of labels and each of patients.

    Args:
        found: at one share; at least one finding.
        metric: "auroc" or "average_precision".
    """
    values = np.mean([getattr(x, metric) for x in found], axis=0)
    # In a draw without the one or the other class of a finding, the mean is over the others.
    return summary_of(values, [getattr(x, f"resampled_{metric}") for x in found])


def summary_of(
    values: Sequence[float] | Float[np.ndarray, " S"], resampled: Sequence[Float[np.ndarray, " draws"]]
) -> Summary:
    """A metric's mean over draws of labels.

    Args:
        values: of each draw of labels.
        resampled: bootstrap draws of what is averaged, NaN where undefined; the mean is over the others.
    """
    means = mean_of_defined_draws(resampled)
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    interval = percentile_interval(means) if means.size else None
    return Summary(float(np.mean(values)), deviation, interval, means)


def mean_of_defined_draws(
    resampled: Sequence[Float[np.ndarray, " draws"]],
) -> Float[np.ndarray, " draws"]:
    """In every bootstrap draw the mean over what is defined there; NaN where nothing is.

    Args:
        resampled: draws of each of several numbers.
    """
    stacked = np.stack(resampled)
    defined = (~np.isnan(stacked)).sum(axis=0)
    return np.where(defined, np.nansum(stacked, axis=0) / np.maximum(defined, 1), np.nan)


def percent(share: float) -> str:
    """A share as keys and tables spell it: "1%"."""
    return f"{100 * share:g}%"


@dataclass(frozen=True)
class ProbeResult:
    """Linear probe of all findings, with several shares of the labels.

    Attributes:
        counts: finding to volumes with it and without it in the scored split.
        trained: what was found, by share and finding.
        random: the same for random weights; {} where they were not probed.
        too_few: finding to the reason why it was not probed.
        conditions: n, labels, shares, features, penalty, intervals, in words.
        patients: (N,) keyed hash of the patient of each scored volume.
        ids: keyed hashes of the scored volumes; () where they are not known.
        grades: by share what all thresholds of a measurement tell together, metrics of
            `grades.grade_metrics`; {} where no measurement was asked for.
    """

    counts: Mapping[str, tuple[int, int]]
    trained: ProbeScores
    random: ProbeScores
    too_few: Mapping[str, str]
    conditions: Mapping[str, str]
    patients: Int64[np.ndarray, " N"] = field(default_factory=lambda: np.zeros(0, np.int64))
    ids: Sequence[str] = ()
    grades: Mapping[float, Mapping[str, Summary]] = field(default_factory=dict)

    @property
    def shown(self) -> list[str]:
        """The findings that were probed, with enough volumes of both kinds to show their scores."""
        return [name for name, pair in self.counts.items() if name not in self.too_few and is_enough(*pair)]

    def mean(self, share: float, metric: str = "auroc", *, random: bool = False) -> Summary | None:
        """Over the findings that are shown; None where there are none.

        Args:
            share: of the labels.
            metric: "auroc" or "average_precision".
            random: of the random weights instead of the trained ones.
        """
        found = (self.random if random else self.trained)[share]
        return summarize([found[name] for name in self.shown], metric) if self.shown else None

    def gain(self, share: float) -> Summary | None:
        """Mean AUROC of the trained weights less that of the random ones; None where either is missing."""
        if not (self.random and self.shown):
            return None
        ours, theirs = self.mean(share), self.mean(share, random=True)
        resampled = ours.resampled - theirs.resampled
        interval = percentile_interval(resampled) if resampled.size else None
        return Summary(ours.value - theirs.value, float("nan"), interval, resampled)

    def metrics(self) -> dict[str, float]:
        """Keys ``10%/auroc_mean``, ``10%/auroc/<finding>`` and so on; ``random/10%/...`` of random weights.

        Beside ``auroc`` stand ``auroc_sd`` over the draws of labels and the ends of its interval,
        ``auroc_low`` and ``auroc_high``; further ``average_precision``, the numbers of ``labels`` and of
        ``labels_present`` among them, and ``present/<finding>`` and ``absent/<finding>`` of the scored split.
        NaN where there was too little. Of the grades of a measurement ``10%/grade_kappa`` and so on.
        """
        flat: dict[str, float] = {}
        for prefix, scores in (("", self.trained), ("random/", self.random)):
            for share, found in scores.items():
                flat |= {f"{prefix}{percent(share)}/{k}": v for k, v in self._numbers(found).items()}
        for name, (present, absent) in self.counts.items():
            flat |= {f"present/{name}": present, f"absent/{name}": absent}
        for share, found in self.grades.items():
            for metric, summary in found.items():
                low, high, _ = summary.interval or (float("nan"), float("nan"), 0)
                start = f"{percent(share)}/{metric}"
                flat |= {start: summary.value, f"{start}_sd": summary.deviation}
                flat |= {f"{start}_low": low, f"{start}_high": high}
        return flat

    def scored(self) -> dict[str, Scored]:
        """Log odds of every volume: parts ``10%``, ``random/10%``, ... Called present from even odds on."""
        parts = {}
        for prefix, scores in (("", self.trained), ("random/", self.random)):
            for share, found in scores.items():
                tasks = {name: FindingTask(x.rows, x.truth, x.scores, 0.0) for name, x in found.items()}
                parts[f"{prefix}{percent(share)}"] = Scored(self.ids, self.patients, tasks)
        return parts

    def _numbers(self, found: Mapping[str, FindingProbe]) -> dict[str, float]:
        flat = {}
        for name in (None, *self.counts):
            chosen = list(found.values()) if name is None else [found[name]] if name in found else []
            suffix = "_mean" if name is None else f"/{name}"
            nothing = Summary(float("nan"), float("nan"), None, np.zeros(0))
            area = summarize(chosen) if chosen else nothing
            precision = summarize(chosen, "average_precision") if chosen else nothing
            low, high, _ = area.interval or (float("nan"), float("nan"), 0)
            flat |= {
                f"auroc{suffix}": area.value,
                f"auroc_sd{suffix}": area.deviation,
                f"auroc_low{suffix}": low,
                f"auroc_high{suffix}": high,
                f"average_precision{suffix}": precision.value,
            }
            if name in found:
                flat[f"labels/{name}"] = found[name].labels
                flat[f"labels_present/{name}"] = found[name].labels_present
        return flat

    def table(self, metric: str = "auroc") -> Table:
        """One line for each finding and one column for each share, then the means of what is shown.

        Args:
            metric: "auroc" or "average_precision".
        """
        shares, shown = list(self.trained), self.shown
        rows = []
        for name, pair in self.counts.items():
            cells = [TOO_FEW] * len(shares)
            if name in shown:
                cells = [str(summarize([self.trained[share][name]], metric)) for share in shares]
            rows.append((name, *map(str, pair), *cells))

        def line(name: str, summaries: Sequence[Summary | None]) -> tuple[str, ...]:
            return (name, "", "", *(TOO_FEW if summary is None else str(summary) for summary in summaries))

        rows.append(line("mean", [self.mean(share, metric) for share in shares]))
        if self.random:
            rows.append(
                line("mean, random init", [self.mean(share, metric, random=True) for share in shares])
            )
            if metric == "auroc":
                rows.append(line("gain over random init", [self.gain(share) for share in shares]))
        title = {"auroc": "AUROC", "average_precision": "average precision"}[metric]
        header = ("finding", "present", "absent", *(f"{percent(share)} of labels" for share in shares))
        return Table(f"Linear probe: {title}", header, tuple(rows), {**self.conditions, **self._left_out()})

    def _left_out(self) -> dict[str, str]:
        notes = {}
        few = [name for name in self.counts if name not in (*self.shown, *self.too_few)]
        if few:
            notes[TOO_FEW] = f"fewer than {FEWEST} present or absent, not in the mean: {', '.join(few)}"
        if self.too_few:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.too_few.items())
            notes["not probed"] = reasons
        if any(len(x.auroc) > 1 for found in self.trained.values() for x in found.values()):
            notes["±"] = (
                f"standard deviation over the {'folds' if 'folds' in self.conditions else 'draws of labels'}"
            )
        return notes

    def grade_table(self) -> Table | None:
        """Of the grades of a measurement; None where none was asked for."""
        if not self.grades:
            return None
        titles = {
            "grade_accuracy": "share with its own grade",
            "grade_error": "mean distance, in grades",
            "grade_kappa": "kappa, quadratic weights",
        }
        rows = tuple(
            (title, *(str(found[metric]) for found in self.grades.values()))
            for metric, title in titles.items()
        )
        header = ("grades", *(f"{percent(share)} of labels" for share in self.grades))
        return Table("Linear probe: grades", header, rows, {})

    def tables(self) -> list[Table]:
        """Of AUROC, of grades, and of average precision, with the conditions, which are those of all."""
        first = self.table()
        found = [Table(first.title, first.header, first.rows, {}), self.grade_table()]
        return [*(table for table in found if table is not None), self.table("average_precision")]

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.tables()))
