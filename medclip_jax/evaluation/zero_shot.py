"""Zero-shot classification: which of two prompts is a volume nearer to, or how near is it to one?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int8

from medclip_jax.evaluation import metrics
from medclip_jax.evaluation.bootstrap import described
from medclip_jax.evaluation.embeddings import EmbeddedSplit, EncodeTexts, encode_prompts
from medclip_jax.evaluation.metrics import Interval, mean_of_defined
from medclip_jax.evaluation.results import (
    FEWEST,
    TOO_FEW,
    Table,
    chosen_findings,
    is_enough,
    needs,
    number,
    with_interval,
)
from medclip_jax.evaluation.similarity import Embeddings, describe, preference, similarity
from medclip_jax.reports import prompts
from medclip_jax.reports.prompts import Prompts

METRICS = ("auroc", "average_precision", "f1", "accuracy", "sensitivity", "specificity")

SCORES = ("difference", "probability", "positive_only")
"""How a volume's score for a finding comes of its similarities to the prompts."""

_CHOSEN = {
    "f1": "best f1",
    "accuracy": "best accuracy",
    "youden": "best youden",
    "equal": "sensitivity equal to specificity",
}
_AT_THRESHOLD = {
    "f1": metrics.f1,
    "accuracy": metrics.accuracy,
    "sensitivity": metrics.sensitivity,
    "specificity": metrics.specificity,
}


@dataclass(frozen=True)
class FindingScores:
    """One finding of one split.

    Attributes:
        labels: (n,) 1 present, 0 absent; volumes with an unknown label are left out.
        scores: (n,) of the positive prompt against the negative, or of the positive ones alone.
        unknown: volumes left out.
        threshold: calls ``score >= threshold`` present; NaN where none could be chosen.
        prompts: positive and negative, one or several of each.
        values: metric name (`METRICS`) to value.
        intervals: metric name to bootstrap interval; empty when none was requested.
    """

    labels: Int8[np.ndarray, " n"]
    scores: Float[np.ndarray, " n"]
    unknown: int
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
        mean_auroc_interval: bootstrap interval of the mean AUROC; None when none was requested.
        conditions: n, prompts, pooling, score, threshold source, intervals, in words.
    """

    findings: Mapping[str, FindingScores]
    means: Mapping[str, float]
    mean_auroc_interval: Interval | None
    conditions: Mapping[str, str]

    def metrics(self) -> dict[str, float]:
        """Keys ``auroc_mean``, ``auroc/<finding>``, and so for each of `METRICS`; the counts behind them.

        The counts are ``present/<finding>`` and ``absent/<finding>``.
        """
        flat = {f"{name}_mean": value for name, value in self.means.items()}
        for name in METRICS:
            flat |= {f"{name}/{finding}": scores.values[name] for finding, scores in self.findings.items()}
        for finding, scores in self.findings.items():
            flat |= {f"present/{finding}": scores.present, f"absent/{finding}": scores.absent}
        return flat

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
            cells = [with_interval(scores.values[name], scores.intervals.get(name)) for name in METRICS]
            cells = cells if scores.is_enough else [TOO_FEW] * len(METRICS)
            rows.append(
                (finding, str(scores.present), str(scores.absent), *cells, number(scores.threshold, 4))
            )
        enough = [scores for scores in self.shown.values() if scores.is_enough]
        means = {name: mean_of_defined(scores.values[name] for scores in enough) for name in METRICS}
        # The interval is of the mean of all that are defined.
        interval = self.mean_auroc_interval if len(enough) == len(self.shown) else None
        cells = [with_interval(means["auroc"], interval), *(number(means[name]) for name in METRICS[1:])]
        rows.append(("mean", "", "", *(cells if enough else [TOO_FEW] * len(METRICS)), ""))
        names = ("AUROC", "average precision", "F1", "accuracy", "sensitivity", "specificity")
        header = ("finding", "present", "absent", *names, "threshold")
        return Table("Zero-shot classification", header, tuple(rows), self.conditions | self._left_out())

    def _left_out(self) -> dict[str, str]:
        notes = {}
        if few := [name for name, scores in self.shown.items() if not scores.is_enough]:
            notes[TOO_FEW] = f"fewer than {FEWEST} present or absent, not in the mean: {', '.join(few)}"
        if one := [name for name in self.findings if name not in self.shown]:
            notes["not shown"] = f"nowhere present, or nowhere absent: {', '.join(one)}"
        return notes

    def __str__(self) -> str:
        return str(self.table())


def pair_scores(
    volumes: Embeddings,
    positive: Embeddings,
    negative: Embeddings,
    *,
    score: str = "difference",
    scale: float = 1.0,
) -> Float[np.ndarray, " N"]:
    """Score of the positive prompt against the negative one.

    With similarities p and n (`similarity.similarity`: cosines of points): ``scale (p - n)`` for
    "difference", or the softmax over the pair, ``1 / (1 + exp(-scale (p - n)))``, for "probability". One is
    a monotone function of the other, so AUROC and average precision agree; only the threshold's scale
    differs.

    Args:
        volumes: N points or Gaussians; of Gaussians the means are enough.
        positive: a single one, (E,), of "There is X."
        negative: a single one, (E,), of "There is no X."
        score: "difference" or "probability".
        scale: multiplier of the similarities, the model's logit scale for calibrated probabilities.

    Returns:
        (N,) float64.

    Raises:
        ValueError: an unknown score.
    """
    if score not in ("difference", "probability"):
        raise ValueError(f'score {score!r}: use "difference" or "probability"')
    difference = scale * preference(volumes, positive, negative)
    # Through tanh, which does not overflow: 1 / (1 + exp(-x)) = (1 + tanh(x / 2)) / 2.
    return difference if score == "difference" else (1 + np.tanh(difference / 2)) / 2


def positive_scores(
    volumes: Embeddings, positives: Embeddings, *, scale: float = 1.0
) -> Float[np.ndarray, " N"]:
    """Mean similarity to the positive prompts, without a negative one to compare with.

    Args:
        volumes: N points or Gaussians.
        positives: P of the same kind, (P, E).
        scale: multiplier of the similarities.

    Returns:
        (N,) float64.
    """
    return scale * similarity(volumes, positives).mean(axis=1)


@needs("text")
def evaluate_zero_shot(
    data: EmbeddedSplit,
    encode_texts: EncodeTexts,
    *,
    findings: Sequence[str] = (),
    labels: str = "labels",
    template: str = "there_is",
    score: str = "difference",
    scale: float = 1.0,
    threshold: str = "argmax",
    criterion: str = "f1",
    draws: int = 1000,
    seed: int = 0,
    load_split: Callable[[str], EmbeddedSplit] | None = None,
) -> ZeroShotResult:
    """Classify every finding by its prompts, without training.

    Args:
        data: the split to score.
        encode_texts: the model's text side.
        findings: names to score; () for all columns of the shards.
        labels: "labels" for ground truth, "findings" for what the reports say.
        template: prompt wording, one of `medclip_jax.reports.prompts.WORDINGS`, of findings that have no
            prompts of their own. Where there are several, their vectors are averaged.
        score: "difference" or "probability", see `pair_scores`; "positive_only", see `positive_scores`.
        scale: multiplier of the similarities; 0 for the model's own.
        threshold: "argmax" calls the prompt with the higher similarity, and nothing where there is one side
            alone; any other value names a split, e.g. "validation", on which the best threshold of each
            finding is chosen.
        criterion: what is best there, see `metrics.best_threshold`.
        draws: bootstrap resamples of patients for the intervals; 0 for none.
        seed: of the bootstrap.
        load_split: embeds the split that `threshold` names.

    Returns:
        The result.

    Raises:
        NotEvaluable: nothing is known of any finding.
        ValueError: an unknown finding or option, or a NaN embedding.
    """
    columns = data.findings(labels)
    whose = "" if scale else ", the model's own"
    scale = scale or data.logit_scale
    names = chosen_findings(findings, columns, data.definitions)
    chosen_on = None
    if threshold != "argmax":
        if threshold == data.name:
            raise ValueError(
                f"threshold={threshold!r} is the split being scored: a threshold chosen there flatters "
                'F1 and accuracy; use another split or "argmax"'
            )
        if load_split is None:
            raise ValueError(f"threshold={threshold!r} names a split, but load_split is missing")
        chosen_on = load_split(threshold)

    positive_only = score == "positive_only"
    scored: dict[str, FindingScores] = {}
    raw: dict[str, np.ndarray] = {}
    for name in names:
        wording = prompts.prompts_of(name, template, definitions=data.definitions)
        if positive_only:
            wording = wording._replace(negative=())
        score_of = _scorer(encode_texts, wording, score, scale)
        raw[name] = score_of(data)
        if chosen_on is None:
            cut = {"difference": 0.0, "probability": 0.5}.get(score, float("nan"))
        else:
            other = chosen_on.findings(labels)[name]
            cut = metrics.best_threshold(
                other[other != 0] == 1, score_of(chosen_on)[other != 0], criterion=criterion
            )
        scored[name] = _score(columns[name], raw[name], data.patients, cut, wording, draws, seed)

    means = {
        metric: mean_of_defined(result.values[metric] for result in scored.values()) for metric in METRICS
    }
    if chosen_on is not None:
        source = f"{_CHOSEN[criterion]} on split {threshold!r}"
    else:
        source = "none: set threshold to a split to choose it on" if positive_only else "argmax of the pair"
    conditions = {
        "n": f"{len(data.volumes)} volumes of {len(np.unique(data.patients))} patients, split {data.name!r}",
        "labels": "ground truth" if labels == "labels" else "from the reports, not mentioned left out",
        "prompts": prompts.describe_prompts(
            names, template, positive=positive_only, definitions=data.definitions
        ),
        "pooling": data.pooling,
        "score": f"{'mean to the positive prompts' if positive_only else score} of "
        f"{describe(data.volumes)}, scale {scale:g}{whose}",
        "threshold": source,
        "intervals": described(draws, seed),
    }
    interval = _mean_interval(names, columns, raw, data.patients, draws, seed) if draws else None
    return ZeroShotResult(scored, means, interval, conditions)


def _scorer(
    encode_texts: EncodeTexts, wording: Prompts, score: str, scale: float
) -> Callable[[EmbeddedSplit], Float[np.ndarray, " N"]]:
    """Scores of any split's volumes by a finding's prompts."""
    if score == "positive_only":
        positives = encode_texts(wording.positive)
        return lambda split: positive_scores(split.volumes, positives, scale=scale)
    positive, negative = encode_prompts(encode_texts, wording)
    return lambda split: pair_scores(split.volumes, positive, negative, score=score, scale=scale)


def _score(
    column: np.ndarray,
    scores: np.ndarray,
    patients: np.ndarray,
    threshold: float,
    wording: Prompts,
    draws: int,
    seed: int,
) -> FindingScores:
    known = column != 0
    labels, scores, patients = (column[known] == 1).astype(np.int8), scores[known], patients[known]
    functions: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
        "auroc": metrics.auroc,
        "average_precision": metrics.average_precision,
        **{name: _cut(metric, threshold) for name, metric in _AT_THRESHOLD.items()},
    }
    values = {name: function(labels, scores) for name, function in functions.items()}
    if np.isnan(threshold):
        values |= dict.fromkeys(_AT_THRESHOLD, float("nan"))
    intervals = {}
    if draws:
        intervals = {
            name: metrics.bootstrap_interval(
                function, labels, scores, draws=draws, seed=seed, groups=patients
            )
            for name, function in functions.items()
            if not np.isnan(values[name])
        }
    return FindingScores(labels, scores, int((~known).sum()), threshold, wording, values, intervals)


def _cut(
    metric: Callable[[np.ndarray, np.ndarray], float], threshold: float
) -> Callable[[np.ndarray, np.ndarray], float]:
    """A metric of calls, of scores."""
    return lambda labels, scores: metric(labels, scores >= threshold)


def _mean_interval(
    names: Sequence[str],
    columns: Mapping[str, np.ndarray],
    raw: Mapping[str, np.ndarray],
    patients: np.ndarray,
    draws: int,
    seed: int,
) -> Interval:
    """Interval of the mean AUROC: patients are drawn once for all findings, which are not independent."""
    # A finding with one class on the full split is in no draw, as it is not in the mean itself.
    names = [name for name in names if {1, -1} <= set(np.unique(columns[name]).tolist())]

    def mean_auroc(rows: np.ndarray, _: np.ndarray) -> float:
        values = []
        for name in names:
            column = columns[name][rows]
            values.append(metrics.auroc(column[column != 0] == 1, raw[name][rows][column != 0]))
        return mean_of_defined(values)

    rows = np.arange(len(patients))
    return metrics.bootstrap_interval(mean_auroc, rows, rows, draws=draws, seed=seed, groups=patients)
