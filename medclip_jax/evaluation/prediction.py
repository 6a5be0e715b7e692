"""What a supervised model predicts, against the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float

from medclip_jax.evaluation import metrics
from medclip_jax.evaluation.bootstrap import Weights, described, draw_patients
from medclip_jax.evaluation.checks import refuse_nan
from medclip_jax.evaluation.embedder import Embedder
from medclip_jax.evaluation.embeddings import EmbeddedSplit, EncodeTexts
from medclip_jax.evaluation.finding_metrics import FindingMetrics
from medclip_jax.evaluation.metrics import Interval, mean_of_defined, percentile_interval
from medclip_jax.evaluation.results import NotEvaluable, Table, needs, with_interval
from medclip_jax.evaluation.scored import Scored, SurvivalTask
from medclip_jax.evaluation.survival_metrics import harrell_c, known_outcomes
from medclip_jax.evaluation.zero_shot import threshold_source, thresholds_from
from medclip_jax.evaluation.zero_shot_result import METRICS, FindingScores, ZeroShotResult
from medclip_jax.reports.prompts import Prompts

_CLASSES = "of_classes"
"""Ending of the keys of what is computed over classes that exclude one another."""


@dataclass(frozen=True)
class PredictionResult(ZeroShotResult):
    """Predictions of a supervised model, scored as those of prompts are.

    Attributes:
        classes: "accuracy" and "balanced_accuracy" of the most probable class, where the answers exclude one
            another; {} where they do not.
        class_intervals: their bootstrap intervals; {} when none was requested.
        survival: times, events and risks, where the model tells a risk; None where it does not.
        concordance: Harrell's, of these; NaN without them, or where no pair can be compared.
        concordance_interval: its bootstrap interval; None when none was requested.
    """

    title: ClassVar[str] = "Predictions"
    classes: Mapping[str, float] = field(default_factory=dict)
    class_intervals: Mapping[str, Interval] = field(default_factory=dict)
    survival: SurvivalTask | None = None
    concordance: float = float("nan")
    concordance_interval: Interval | None = None

    def metrics(self) -> dict[str, float]:
        """Keys of `ZeroShotResult.metrics`; of classes ``accuracy_of_classes`` and ``balanced_...``.

        Of a risk ``concordance``, and ``events`` and ``censored``, the volumes with and without the event.
        """
        found = super().metrics() if self.findings else {}
        found |= {f"{name}_{_CLASSES}": value for name, value in self.classes.items()}
        if self.survival is not None:
            events = int(self.survival.events.sum())
            found |= {"concordance": self.concordance, "events": events}
            found["censored"] = len(self.survival.events) - events
        return found

    def scored(self) -> dict[str, Scored]:
        """The scores of every volume."""
        if self.survival is None:
            return super().scored()
        tasks = super().scored()[""].tasks
        return {"": Scored(self.ids, self.patients, {**tasks, "time to the event": self.survival})}

    def all_intervals(self) -> dict[str, Interval]:
        """Bootstrap intervals under the keys of `metrics`."""
        found = super().all_intervals() if self.findings else {}
        found |= {f"{name}_{_CLASSES}": interval for name, interval in self.class_intervals.items()}
        if self.concordance_interval is not None:
            found["concordance"] = self.concordance_interval
        return found

    def survival_table(self) -> Table | None:
        """Whether those with the higher risk have the event first; None where the model tells no risk."""
        if self.survival is None:
            return None
        events = int(self.survival.events.sum())
        value = with_interval(self.concordance, self.concordance_interval)
        row = (str(events), str(len(self.survival.events) - events), value)
        return Table("Time to the event", ("events", "censored", "concordance"), (row,), self.conditions)

    def class_table(self) -> Table | None:
        """How often the most probable class is the true one; None where answers may go together."""
        if not self.classes:
            return None
        titles = {
            "accuracy": "accuracy",
            "balanced_accuracy": "balanced accuracy (mean recall of the classes)",
        }
        rows = tuple(
            (titles[name], with_interval(value, self.class_intervals.get(name)))
            for name, value in self.classes.items()
        )
        return Table("The most probable class", ("metric", "value"), rows, {})

    def __str__(self) -> str:
        return "\n\n".join(str(table) for table in self.tables())

    def tables(self) -> list[Table]:
        """All that there is to show."""
        tables = [self.survival_table(), self.class_table()]
        if self.findings:
            tables = [self.table(), *tables, self.calls_table()]
        return [table for table in tables if table is not None]


@needs("predictions")
def evaluate_prediction(
    data: EmbeddedSplit,
    encode_texts: EncodeTexts,
    *,
    threshold: str = "argmax",
    criterion: str = "f1",
    draws: int = 1000,
    seed: int = 0,
    load_split: Callable[[str], EmbeddedSplit] | None = None,
    embedder: Embedder | None = None,
) -> PredictionResult:
    """Score what the model predicts: AUROC and average precision of each answer, and calls at a threshold.

    Args:
        data: the split to score, with `predicted` and `truths`.
        encode_texts: not needed.
        threshold: "argmax" calls what is as probable as not, or more. Any other value names a split, e.g.
            "validation", on which the best threshold of each answer is chosen; "test" chooses it on the
            scored split itself, whatever its name, and says so.
        criterion: what is best there, see `metrics.best_threshold`.
        draws: bootstrap resamples of patients for the intervals; 0 for none.
        seed: of the bootstrap.
        load_split: embeds the split that `threshold` names.
        embedder: of the model.

    Returns:
        The result.

    Raises:
        NotEvaluable: the split holds nothing to score the answers by.
        ValueError: an unknown option, or a NaN among the predictions.
    """
    truths = {name: truth for name, truth in data.truths.items() if truth.any()}
    survival = _survival(data, embedder.outcome) if embedder is not None and embedder.outcome else None
    if not truths and survival is None:
        raise NotEvaluable(
            f"split {data.name!r} holds no truth of what the model predicts ({', '.join(data.predicted)}): "
            "prepare it with those labels or measurements"
        )
    chosen_on = thresholds_from(threshold, data, load_split)
    measured = FindingMetrics(data.patients, draws, seed)
    scored: dict[str, FindingScores] = {}
    for name, truth in truths.items():
        scores = np.asarray(data.predicted[name], np.float64)
        known = np.flatnonzero(truth)
        cut = 0.5
        if chosen_on is not None:
            other = chosen_on.truths[name]
            cut = metrics.best_threshold(
                other[other != 0] == 1, chosen_on.predicted[name][other != 0], criterion=criterion
            )
        values, intervals = measured.measure(name, truth, scores, known, cut)
        labels = (truth[known] == 1).astype(np.int8)
        unknown = len(truth) - len(known)
        scored[name] = FindingScores(
            labels, scores[known], known, unknown, 0, float(cut), Prompts((), ()), values, intervals
        )
    classes, class_intervals = {}, {}
    if embedder is not None and embedder.exclusive and len(truths) == len(data.predicted):
        weights = draw_patients(data.patients, draws, seed) if draws else None
        classes, class_intervals = _most_probable(data, weights)
    patients = len(np.unique(data.patients))
    conditions = {
        "n": f"{len(data.patients)} volumes of {patients} patients, split {data.name!r}",
        "score": "probability that the model's own head gives",
        "pooling": data.pooling,
        "threshold": "probability of 1/2"
        if chosen_on is None
        else threshold_source(threshold, criterion, False, "present", data.name),
        "intervals": described(draws, seed),
    }
    return PredictionResult(
        scored,
        {name: mean_of_defined(one.values[name] for one in scored.values()) for name in METRICS},
        measured.mean_intervals(scored),
        measured.crg_value(),
        measured.crg_interval(),
        conditions,
        data.patients,
        data.ids,
        classes,
        class_intervals,
        survival,
        *_concordance(survival, data, draws, seed),
    )


def _most_probable(
    data: EmbeddedSplit, weights: Weights | None
) -> tuple[dict[str, float], dict[str, Interval]]:
    """Accuracy, and mean recall of the classes that there are, of the most probable class."""
    truths = np.stack(list(data.truths.values()), axis=1)
    known = (truths != 0).all(axis=1)
    truth = truths[known].argmax(axis=1)
    right = np.stack(list(data.predicted.values()), axis=1)[known].argmax(axis=1) == truth
    classes = [truth == one for one in np.unique(truth)]
    values = {
        "accuracy": float(right.mean()),
        "balanced_accuracy": float(np.mean([right[own].mean() for own in classes])),
    }
    if weights is None:
        return values, {}
    drawn = weights[:, known]
    shares = np.stack([_share(drawn, right, own) for own in classes])
    # As of the AUROC of a single class: a draw without one of the classes says nothing.
    resampled = {
        "accuracy": _share(drawn, right, np.ones_like(right)),
        "balanced_accuracy": shares.mean(axis=0),
    }
    return values, {name: percentile_interval(one) for name, one in resampled.items()}


def _share(
    weights: Weights, right: Bool[np.ndarray, " n"], among: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, " draws"]:
    """Share of right ones among some rows, in every draw of patients; NaN where none of them was drawn."""
    total = weights @ among.astype(np.float64)
    return np.divide(weights @ (right & among), total, out=np.full(len(total), np.nan), where=total > 0)


def _survival(data: EmbeddedSplit, outcome: Sequence[str]) -> SurvivalTask | None:
    """Times, events and risks of the volumes in which they are known; None where nobody's are."""
    if any(name not in data.measurements for name in outcome):
        return None
    times, events = (np.asarray(data.measurements[name], np.float64) for name in outcome)
    rows = known_outcomes(times, events, tuple(outcome))
    if not rows.size:
        return None
    risk = np.asarray(list(data.predicted.values())[-1], np.float64)[rows]
    refuse_nan(risk, "risks")
    return SurvivalTask(rows, times[rows], events[rows] == 1, risk[None])


def _concordance(
    survival: SurvivalTask | None, data: EmbeddedSplit, draws: int, seed: int
) -> tuple[float, Interval | None]:
    if survival is None:
        return float("nan"), None
    outcome = survival.times, survival.events, survival.scores[0]
    value = float(harrell_c(*outcome)[0])
    if not draws:
        return value, None
    weights = draw_patients(data.patients[survival.rows], draws, seed)
    return value, percentile_interval(harrell_c(*outcome, weights))
