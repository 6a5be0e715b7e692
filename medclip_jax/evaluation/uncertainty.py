"""What the predicted variance is worth: does it grow with damage, and does it tell wrong answers?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int64

from medclip_jax.evaluation.bootstrap import described
from medclip_jax.evaluation.degradation import (
    UNITS,
    Bootstrap,
    Degradation,
    OpenRecords,
    damaged_texts,
    damaged_volumes,
    ladder,
    measure,
)
from medclip_jax.evaluation.embedder import Embedder, VolumeInputs
from medclip_jax.evaluation.embeddings import TEXT_FIELDS, EmbeddedSplit, EncodeTexts, encode_prompts
from medclip_jax.evaluation.metrics import Interval
from medclip_jax.evaluation.results import NotEvaluable, Table, chosen_findings, label_source, with_interval
from medclip_jax.evaluation.similarity import Gaussians, describe
from medclip_jax.evaluation.uncertainty_metrics import Calibration, RiskCoverage, calibration, risk_coverage
from medclip_jax.evaluation.zero_shot import pair_scores
from medclip_jax.reports.prompts import describe_prompts, prompts_of

_ROUNDING = 1e-6
"""Inclusion a dimension that is none: float32 leaves it where an organ has the variance of its volume."""

_POINTS = "the model gives points without variance: evaluate one with Gaussian embeddings, such as hipro_ct"


@dataclass(frozen=True)
class Answers:
    """Zero-shot answers, one for each volume and finding with a known label.

    Attributes:
        labels: (n,) 1 present, 0 absent.
        probabilities: (n,) that the finding is present.
        orders: order of answering ("variance", "margin") to its curve; points have no "variance".
        calibration: of the probabilities.
        intervals: name as in `UncertaintyResult.metrics` to bootstrap interval; empty without draws.
    """

    labels: Float[np.ndarray, " n"]
    probabilities: Float[np.ndarray, " n"]
    orders: Mapping[str, RiskCoverage]
    calibration: Calibration
    intervals: Mapping[str, Interval]


@dataclass(frozen=True)
class Inclusion:
    """How far organs lie inside their volume.

    Attributes:
        organs: names of the columns.
        scores: (n, O) `losses.probabilistic.inclusion` over all dimensions.
        present: (n, O) whether the organ shows.
        inside: (n, O) whether the score is positive, beyond rounding.
        share: of the present ones that are inside.
        interval: None when none was requested.
    """

    organs: Sequence[str]
    scores: Float[np.ndarray, "n O"]
    present: Bool[np.ndarray, "n O"]
    inside: Bool[np.ndarray, "n O"]
    share: float
    interval: Interval | None


@dataclass(frozen=True)
class UncertaintyResult:
    """What the predicted variance is worth.

    Attributes:
        degradations: kind of damage to what the uncertainty makes of it.
        answers: of zero-shot; None where no label is known.
        inclusion: None where the model, or the shards, know no organs.
        missing: part to the reason why it is not there.
        conditions: n, prompts, levels, headline, intervals, in words.
    """

    degradations: Mapping[str, Degradation]
    answers: Answers | None
    inclusion: Inclusion | None
    missing: Mapping[str, str]
    conditions: Mapping[str, str] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Keys ``spearman/noise``, ``risk_coverage/variance``, ``calibration_error``, ``inclusion_share``...

        Those of a part that is missing are not there.
        """
        flat = {f"spearman/{kind}": found.pooled for kind, found in self.degradations.items()}
        flat |= {f"spearman_within/{kind}": found.within for kind, found in self.degradations.items()}
        if self.answers is not None:
            flat |= {f"risk_coverage/{name}": curve.area for name, curve in self.answers.orders.items()}
            flat |= {
                f"risk_coverage/{name}_relative": curve.relative
                for name, curve in self.answers.orders.items()
            }
            any_order = next(iter(self.answers.orders.values()))
            flat |= {"risk_coverage/random": any_order.random, "risk_coverage/oracle": any_order.oracle}
            flat["calibration_error"] = self.answers.calibration.error
        if self.inclusion is not None:
            found = self.inclusion
            flat["inclusion_share"] = found.share
            flat |= {
                f"inclusion_share/{organ}": _share(found.inside[:, i], found.present[:, i])
                for i, organ in enumerate(found.organs)
            }
        return flat

    def table(self) -> Table:
        """One line for each number."""
        intervals: dict[str, Interval | None] = {}
        for kind, found in self.degradations.items():
            intervals[f"spearman/{kind}"] = found.intervals.get("pooled")
            intervals[f"spearman_within/{kind}"] = found.intervals.get("within")
        if self.answers is not None:
            intervals |= self.answers.intervals
        if self.inclusion is not None:
            intervals["inclusion_share"] = self.inclusion.interval
        rows = tuple((key, with_interval(value, intervals.get(key))) for key, value in self.metrics().items())
        missing = {f"no {part}": reason for part, reason in self.missing.items()}
        return Table("Uncertainty", ("number", "value"), rows, {**self.conditions, **missing})

    def __str__(self) -> str:
        return str(self.table())


def evaluate_uncertainty(
    data: EmbeddedSplit,
    encode_texts: EncodeTexts,
    *,
    samples: int = 100,
    noise: Sequence[float] = (25.0, 50.0, 100.0, 200.0),
    lost_slices: Sequence[float] = (0.1, 0.25, 0.5),
    cropped: Sequence[float] = (0.1, 0.25, 0.5),
    truncated: Sequence[float] = (0.25, 0.5, 0.75),
    vague: Sequence[float] = (0.5, 1.0),
    text: str = "report",
    findings: Sequence[str] = (),
    labels: str = "labels",
    template: str = "there_is",
    scale: float = 0.0,
    bins: int = 10,
    draws: int = 1000,
    seed: int = 0,
    embedder: Embedder | None = None,
    open_records: OpenRecords | None = None,
) -> UncertaintyResult:
    """Compare predicted uncertainty, the trace of the covariance, with damage and with error.

    Args:
        data: the split.
        encode_texts: the model's text side; where it has none, volumes alone are damaged.
        samples: volumes and texts that are damaged, drawn from the split; 0 for all. Each is embedded once
            for every level.
        noise: standard deviations of white noise, HU; () leaves this damage out.
        lost_slices: shares of the axial slices that become air.
        cropped: shares of each edge of the field of view that become air.
        truncated: shares of a text's words that are cut off its end.
        vague: shares of a text's sentences about findings that become vague ones.
        text: which text is damaged, one of `TEXT_FIELDS`.
        findings: of the zero-shot answers; () for all columns of the shards.
        labels: "labels" for ground truth, "findings" for what the reports say.
        template: prompt wording.
        scale: multiplier of the similarities; 0 for the model's own.
        bins: of the reliability diagram.
        draws: bootstrap resamples of patients; 0 for no intervals.
        seed: of samples, damage and bootstrap.
        embedder: of the model; None leaves out what needs volumes to be embedded again.
        open_records: opens the split's records again; None as above.

    Returns:
        The result.

    Raises:
        NotEvaluable: nothing of it can be evaluated.
        ValueError: an unknown option, levels that do not ascend from above 0, or a NaN embedding.
    """
    if text not in TEXT_FIELDS:
        raise ValueError(f"text={text!r}: use one of {', '.join(TEXT_FIELDS)}")
    ladders = {
        kind: ladder(kind, levels)
        for kind, levels in (
            ("noise", noise),
            ("lost_slices", lost_slices),
            ("cropped", cropped),
            ("truncated", truncated),
            ("vague", vague),
        )
        if len(levels)
    }
    generator = np.random.default_rng(seed)
    count = len(data.volumes)
    chosen = np.sort(generator.permutation(count)[: samples or count])
    missing: dict[str, str] = {}
    degradations: dict[str, Degradation] = {}
    answers = inclusion = None
    bootstrap = Bootstrap(draws, seed)
    try:
        if not isinstance(data.volumes, Gaussians):
            raise NotEvaluable(_POINTS)
        try:
            found = damaged_texts(data, encode_texts, chosen, ladders, text, seed)
        except NotEvaluable as reason:
            found, missing["damaged texts"] = {}, str(reason)
        if embedder is not None and open_records is not None:
            found |= damaged_volumes(data, chosen, ladders, embedder, open_records, seed)
        degradations = {
            kind: measure(ladders[kind], found[kind], data.patients, bootstrap)
            for kind in ladders
            if kind in found
        }
    except NotEvaluable as reason:
        missing["degradation"] = str(reason)
    try:
        answers = _answers(data, encode_texts, findings, labels, template, scale, bins, bootstrap)
    except NotEvaluable as reason:
        missing["zero-shot"] = str(reason)
    try:
        inclusion = _inclusion(data, chosen, embedder, open_records, bootstrap)
    except NotEvaluable as reason:
        missing["inclusion"] = str(reason)
    if answers is None and inclusion is None and not degradations:
        raise NotEvaluable("; ".join(f"{part}: {reason}" for part, reason in missing.items()))
    conditions = {
        "n": f"{count} volumes of {len(np.unique(data.patients))} patients, split {data.name!r}; "
        f"{len(chosen)} damaged, {text}",
        "uncertainty": "trace of the covariance",
        "headline": "spearman: over samples and levels together; spearman_within: mean over the samples",
        **{kind: ", ".join(f"{level:g}" for level in steps) + UNITS[kind] for kind, steps in ladders.items()},
        "labels": label_source(labels),
        "prompts": describe_prompts(data.labels, template, definitions=data.definitions),
        "pooling": data.pooling,
        "score": f"probability of {describe(data.volumes)}, scale {scale or data.logit_scale:g}"
        + ("" if scale else ", the model's own"),
        "intervals": described(draws, seed),
    }
    return UncertaintyResult(degradations, answers, inclusion, missing, conditions)


def _answers(
    data: EmbeddedSplit,
    encode_texts: EncodeTexts,
    findings: Sequence[str],
    labels: str,
    template: str,
    scale: float,
    bins: int,
    bootstrap: Bootstrap,
) -> Answers:
    columns = data.findings(labels)
    names = chosen_findings(findings, columns, data.definitions)
    probabilities = np.stack(
        [
            pair_scores(
                data.volumes,
                *encode_prompts(encode_texts, prompts_of(name, template, definitions=data.definitions)),
                score="probability",
                scale=scale or data.logit_scale,
            )
            for name in names
        ],
        axis=1,
    )
    table = np.stack([columns[name] for name in names], axis=1)
    volume, finding = np.nonzero(table)
    truth, p = (table[volume, finding] == 1).astype(float), probabilities[volume, finding]
    wrong = ((p >= 0.5) != truth).astype(float)
    doubt = {"margin": -np.abs(p - 0.5)}
    if isinstance(data.volumes, Gaussians):
        doubt = {"variance": data.volumes.trace[volume], **doubt}
    patients = data.patients[volume]
    asked = {"calibration_error": lambda rows: calibration(truth[rows], p[rows], bins).error}
    for name, by in doubt.items():
        asked[f"risk_coverage/{name}"] = lambda rows, by=by: risk_coverage(wrong[rows], by[rows]).area
        asked[f"risk_coverage/{name}_relative"] = lambda rows, by=by: (
            risk_coverage(wrong[rows], by[rows]).relative
        )
    intervals = {name: bootstrap(metric, patients) for name, metric in asked.items()}
    return Answers(
        truth,
        p,
        {name: risk_coverage(wrong, by) for name, by in doubt.items()},
        calibration(truth, p, bins),
        {name: interval for name, interval in intervals.items() if interval is not None},
    )


def _inclusion(
    data: EmbeddedSplit,
    chosen: Int64[np.ndarray, " n"],
    embedder: Embedder | None,
    open_records: OpenRecords | None,
    bootstrap: Bootstrap,
) -> Inclusion:
    if not isinstance(data.volumes, Gaussians):
        raise NotEvaluable(_POINTS)
    if embedder is None or open_records is None:
        raise NotEvaluable("volumes are not to be embedded again")
    if reason := embedder.lacks("organs"):
        raise NotEvaluable(reason)
    records, organs = open_records((*embedder.layout.reads, "organs"))
    if not organs:
        raise NotEvaluable("the shards hold no organs: prepare from a table with organ masks and --cell")

    def read(place: int) -> tuple[VolumeInputs, np.ndarray]:
        index = int(chosen[place])
        record = records[index]
        return embedder.inputs(record, index), record["organs"]

    scores, present = embedder.organ_inclusion(len(chosen), read)
    if not present.any():
        raise NotEvaluable("no organ shows in any of the volumes: check the organ masks with medclip inspect")
    inside = scores > _ROUNDING * data.volumes.mean.shape[1]
    interval = bootstrap(lambda rows: _share(inside[rows], present[rows]), data.patients[chosen])
    return Inclusion(tuple(organs), scores, present, inside, _share(inside, present), interval)


def _share(inside: np.ndarray, present: np.ndarray) -> float:
    """Of the present ones; NaN where none is."""
    return float(np.mean(inside[present])) if present.any() else float("nan")
