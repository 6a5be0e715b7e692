"""What `prognosis` found, and its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Int64

from medclip_jax.evaluation.metrics import Interval, mean_of_defined
from medclip_jax.evaluation.results import FEWEST, TOO_FEW, Table, is_enough, number, with_interval
from medclip_jax.evaluation.scored import Scored, SurvivalTask
from medclip_jax.evaluation.survival_metrics import Calibration, LogRank, kaplan_meier


@dataclass(frozen=True)
class RiskScores:
    """How well one risk ranks the patients.

    Attributes:
        risk: (n,) higher means earlier.
        values: "harrell_c", "uno_c" and "auc/<horizon>".
        intervals: the same to bootstrap intervals over patients; {} when none was requested.
    """

    risk: Float[np.ndarray, " n"]
    values: Mapping[str, float]
    intervals: Mapping[str, Interval]

    def shown(self, metric: str) -> str:
        """A metric with its interval, formatted."""
        return with_interval(self.values[metric], self.intervals.get(metric))


@dataclass(frozen=True)
class HorizonScores:
    """What becomes of the patients by one horizon, and what was predicted.

    Attributes:
        events: rows with the event by then.
        without: rows known to be without it then.
        censored: rows that were lost to follow-up before.
        brier: of the predicted probabilities.
        brier_interval: bootstrap interval over patients; None when none was requested.
        brier_of_all_alike: the same where everybody gets the frequency of the training split.
        calibration: predicted against observed.
    """

    events: int
    without: int
    censored: int
    brier: float
    brier_interval: Interval | None
    brier_of_all_alike: float
    calibration: Calibration

    @property
    def is_enough(self) -> bool:
        """Whether there are enough of both to show an AUC."""
        return is_enough(self.events, self.without)


@dataclass(frozen=True)
class AucCurve:
    """AUC at many times.

    Attributes:
        times: (k,) increasing.
        auc: name of a risk to (k,) values.
        low: (k,) lower end of the model's interval; NaN where none was requested.
        high: (k,) upper end.
    """

    times: Float[np.ndarray, " k"]
    auc: Mapping[str, Float[np.ndarray, " k"]]
    low: Float[np.ndarray, " k"]
    high: Float[np.ndarray, " k"]


@dataclass(frozen=True)
class PrognosisResult:
    """Survival heads on frozen features.

    Attributes:
        ids: keyed hashes of all N volumes of the split; () where the records hold none.
        patients: (N,) keyed hash of the patient of each.
        rows: (n,) those whose outcome is known; all that follows is of these.
        time: (n,) of event or censoring.
        event: (n,) whether it was the event.
        group: (n,) risk group, 0 for the lowest risk.
        group_count: how many there are; one may be empty.
        scores: "model" and what is set beside it, by name.
        gains: metric to (model less the clinical head, its interval); {} without one.
        horizons: horizon to what was found there.
        curve: AUC over time.
        log_rank: test of equal survival in the risk groups.
        unit: of time.
        conditions: n, outcome, head, intervals, in words.
    """

    ids: Sequence[str]
    patients: Int64[np.ndarray, " N"]
    rows: Int64[np.ndarray, " n"]
    time: Float[np.ndarray, " n"]
    event: Bool[np.ndarray, " n"]
    group: Int[np.ndarray, " n"]
    group_count: int
    scores: Mapping[str, RiskScores]
    gains: Mapping[str, tuple[float, Interval | None]]
    horizons: Mapping[float, HorizonScores]
    curve: AucCurve
    log_rank: LogRank
    unit: str
    conditions: Mapping[str, str]

    @property
    def is_enough(self) -> bool:
        """Whether there are enough events to show a concordance."""
        return int(self.event.sum()) >= FEWEST

    def metrics(self) -> dict[str, float]:
        """Keys ``harrell_c``, ``uno_c``, ``auc/<horizon>``, ``auc_mean``, ``brier/<horizon>`` and others.

        What is set beside the model has its name in front, such as ``clinical/harrell_c``; ``gain/...`` is
        the model less the clinical head. ``..._low`` and ``..._high`` are the ends of intervals.
        """
        flat: dict[str, float] = {}
        for name, one in self.scores.items():
            front = "" if name == "model" else f"{name}/"
            flat |= {front + key: value for key, value in one.values.items()}
            flat[f"{front}auc_mean"] = mean_of_defined(
                value for key, value in one.values.items() if key.startswith("auc/")
            )
        flat |= {f"gain/{key}": value for key, (value, _) in self.gains.items()}
        for horizon, one in self.horizons.items():
            flat |= {
                f"brier/{horizon:g}": one.brier,
                f"brier_of_all_alike/{horizon:g}": one.brier_of_all_alike,
                f"calibration_error/{horizon:g}": one.calibration.error,
                f"predicted/{horizon:g}": one.calibration.expected,
                f"observed/{horizon:g}": one.calibration.observed,
                f"events/{horizon:g}": one.events,
                f"without/{horizon:g}": one.without,
            }
        flat |= {"log_rank": self.log_rank.statistic, "log_rank_p": self.log_rank.p}
        flat |= {
            "rows": len(self.time),
            "unknown": len(self.patients) - len(self.rows),
            "events": int(self.event.sum()),
        }
        for key, interval in self.all_intervals().items():
            word, slash, rest = key.partition("/")
            if word in self.scores or word == "gain":
                inner, slash, last = rest.partition("/")
                word, rest = f"{word}/{inner}", last
            flat |= {f"{word}_low{slash}{rest}": interval.low, f"{word}_high{slash}{rest}": interval.high}
        return flat

    def all_intervals(self) -> dict[str, Interval]:
        """Bootstrap intervals under the keys of `metrics`."""
        found = {}
        for name, one in self.scores.items():
            front = "" if name == "model" else f"{name}/"
            found |= {front + key: interval for key, interval in one.intervals.items()}
        found |= {f"gain/{key}": interval for key, (_, interval) in self.gains.items() if interval}
        return found | {
            f"brier/{horizon:g}": one.brier_interval
            for horizon, one in self.horizons.items()
            if one.brier_interval is not None
        }

    def scored(self) -> dict[str, Scored]:
        """The risk of every volume whose outcome is known: the model's, and what is set beside it."""
        found = {}
        for name, one in self.scores.items():
            task = SurvivalTask(self.rows, self.time, self.event, one.risk[None])
            found["" if name == "model" else name] = Scored(self.ids, self.patients, {"event": task})
        return found

    def table(self) -> Table:
        """One line for the model and for each risk beside it."""
        rows = []
        for name, one in self.scores.items():
            rows.append((name, *self._cells(one.shown)))
        if self.gains:
            rows.append(("model - clinical", *self._cells(lambda key: with_interval(*self.gains[key]))))
        header = ("risk", "Harrell's C", "Uno's C", *(f"AUC at {h:g} {self.unit}" for h in self.horizons))
        return Table("Prognosis: ranking", header, tuple(rows), self.conditions)

    def horizon_table(self) -> Table:
        """One line for each horizon: how many, and how far the probabilities are what they say."""
        rows = []
        for horizon, one in self.horizons.items():
            found, cells = one.calibration, [TOO_FEW] * 5
            if one.is_enough:
                cells = [
                    number(found.expected),
                    number(found.observed),
                    number(found.error),
                    with_interval(one.brier, one.brier_interval),
                    number(one.brier_of_all_alike),
                ]
            counts = (one.events, one.without, one.censored)
            rows.append((f"{horizon:g} {self.unit}", *map(str, counts), *cells))
        header = ("by", "events", "without", "censored before", "predicted", "observed")
        header += ("calibration error", "Brier score", "Brier, all alike")
        notes = {
            "observed": "1 - Kaplan-Meier",
            "Brier score": "weighted by the inverse probability of being uncensored; all alike: everybody "
            "has the frequency of the training split",
        }
        return Table("Prognosis: probabilities", header, tuple(rows), notes)

    def group_table(self) -> Table:
        """One line for each risk group: how many, and the Kaplan-Meier estimate at each horizon."""
        rows = []
        for place, name in self.groups().items():
            own = self.group == place
            curve = kaplan_meier(self.time[own], self.event[own])
            cells = []
            for horizon in self.horizons:
                value, low, high = curve.at(horizon)
                cells.append(with_interval(value, Interval(low, high, 1)) if own.any() else "n/a")
            rows.append((name, str(int(own.sum())), str(int(self.event[own].sum())), *cells))
        header = ("risk", "rows", "events", *(f"without at {h:g} {self.unit}" for h in self.horizons))
        notes = {
            "groups": self.conditions["risk groups"],
            "intervals": "95 %, log(-log) with Greenwood's variance, over rows",
            "log-rank test": f"chi-squared {number(self.log_rank.statistic, 1)}, "
            f"{describe_p(self.log_rank.p)}",
        }
        return Table("Prognosis: risk groups", header, tuple(rows), notes)

    def groups(self) -> dict[int, str]:
        """Risk group to its name, from the lowest risk to the highest."""
        if self.group_count == 3:
            return dict(enumerate(("low", "middle", "high")))
        return {place: f"group {place + 1} of {self.group_count}" for place in range(self.group_count)}

    def tables(self) -> list[Table]:
        """All three."""
        return [self.table(), self.horizon_table(), self.group_table()]

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.tables()))

    def _cells(self, shown: Callable[[str], str]) -> list[str]:
        cells = [shown(key) if self.is_enough else TOO_FEW for key in ("harrell_c", "uno_c")]
        return cells + [
            shown(f"auc/{horizon:g}") if one.is_enough else TOO_FEW for horizon, one in self.horizons.items()
        ]


def describe_p(p: float) -> str:
    """A p-value in words: "p = 0.012", "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {number(p)}"
