"""Zero-shot classification: which of two prompts is a volume nearer to, or how near is it to one?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from medclip_jax.evaluation import metrics
from medclip_jax.evaluation.bootstrap import described
from medclip_jax.evaluation.chosen_volumes import choose_volumes
from medclip_jax.evaluation.embeddings import EmbeddedSplit, EncodeTexts, encode_prompts
from medclip_jax.evaluation.finding_metrics import FindingMetrics
from medclip_jax.evaluation.label_mapping import MappedLabels, map_labels
from medclip_jax.evaluation.means_alone import OF_MEANS, ranked_by
from medclip_jax.evaluation.metrics import mean_of_defined
from medclip_jax.evaluation.presets import label_sets, name_tables
from medclip_jax.evaluation.results import NotEvaluable, chosen_findings, label_source, needs
from medclip_jax.evaluation.similarity import Embeddings, averaged, describe, preference, similarity
from medclip_jax.evaluation.zero_shot_result import (
    METRICS,
    THRESHOLD_OF_SCORED,
    FindingScores,
    ZeroShotResult,
)
from medclip_jax.reports import prompts
from medclip_jax.reports.prompts import Prompts

SCORES = ("difference", "probability", "positive_only")
"""How a volume's score for a finding comes of its similarities to the prompts."""

ENSEMBLES = ("", "vectors", "scores")
"""How several prompts of one side become one."""

SAMPLES = ("all", "balanced")
"""Which volumes of known label count."""

TIES = ("present", "absent")
"""What a volume is called that is as near to the one prompt as to the other."""

SAME_SPLIT = "test"
"""The `threshold` that is chosen on the scored split itself, which is marked."""

_CHOSEN = {
    "f1": "best f1",
    "accuracy": "best accuracy",
    "youden": "best youden",
    "equal": "sensitivity equal to specificity",
    "closest": "nearest to ROC (0, 1) of 100 thresholds",
}


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
    return difference if score == "difference" else _softmax(difference)


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


def mean_pair_scores(
    volumes: Embeddings,
    positives: Embeddings,
    negatives: Embeddings,
    *,
    score: str = "difference",
    scale: float = 1.0,
) -> Float[np.ndarray, " N"]:
    """`pair_scores` of the mean similarity to several positive prompts and that to several negative ones.

    Args:
        volumes: N points or Gaussians.
        positives: (P, E) of the same kind.
        negatives: (Q, E) of the same kind; P and Q may differ.
        score: "difference" or "probability".
        scale: multiplier of the similarities.

    Returns:
        (N,) float64.
    """
    sides = (similarity(volumes, side).mean(axis=1) for side in (positives, negatives))
    difference = scale * np.subtract(*sides)
    return difference if score == "difference" else _softmax(difference)


def _softmax(difference: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Of a pair. Through tanh, which does not overflow: 1 / (1 + exp(-x)) = (1 + tanh(x / 2)) / 2."""
    return (1 + np.tanh(difference / 2)) / 2


@needs("text")
def evaluate_zero_shot(
    data: EmbeddedSplit,
    encode_texts: EncodeTexts,
    *,
    findings: Sequence[str] = (),
    label_set: str = "",
    labels: str = "labels",
    template: str = "there_is",
    names: str = "",
    ensemble: str = "",
    score: str = "difference",
    scale: float = 1.0,
    ranking: str = "similarity",
    threshold: str = "argmax",
    criterion: str = "f1",
    ties: str = "present",
    volumes: str = "all",
    sample: str = "all",
    draws: int = 1000,
    seed: int = 0,
    load_split: Callable[[str], EmbeddedSplit] | None = None,
    open_manifest: Callable[[], Mapping[str, Mapping[str, Any]]] | None = None,
) -> ZeroShotResult:
    """Classify every finding by its prompts, without training.

    Args:
        data: the split to score.
        encode_texts: the model's text side.
        findings: names to score; () for all columns of the shards, or all of the label set.
        label_set: a set of `presets.label_sets`, which says what stands for each finding; "" for the columns
            of the shards as they are.
        labels: "labels" for ground truth, "findings" for what the reports say.
        template: prompt wording, one of `medclip_jax.reports.prompts.WORDINGS`, of findings that have no
            prompts of their own.
        names: a table of `presets.name_tables` that says what stands for X in it; "" for the findings'
            phrases.
        ensemble: of several prompts, "vectors" averages their vectors and brings the mean to length 1,
            "scores" averages the similarities to them. "" is "vectors" for pairs, and "scores" where there
            are positive prompts alone.
        score: "difference" or "probability", see `pair_scores`; "positive_only", see `positive_scores`.
        scale: multiplier of the similarities; 0 for the model's own.
        ranking: "similarity", or "means": Gaussians by their means alone, see `means_alone.ranked_by`.
        threshold: "argmax" calls the prompt with the higher similarity, and nothing where there is one side
            alone. Any other value names a split, e.g. "validation", on which the best threshold of each
            finding is chosen. "test" chooses it on the scored split itself, whatever its name, and says so.
        criterion: what is best there, see `metrics.best_threshold`.
        ties: what "argmax" calls a volume that is as near to one prompt as to the other.
        volumes: which volumes are scored, one of `chosen_volumes.VOLUMES`.
        sample: "balanced" takes as many absent as present volumes of each finding, at random by `seed`.
        draws: bootstrap resamples of patients for the intervals; 0 for none.
        seed: of the bootstrap, and of the balanced sample.
        load_split: embeds the split that `threshold` names.
        open_manifest: reads the manifest of the shards, which some choices of `volumes` need.

    Returns:
        The result.

    Raises:
        NotEvaluable: nothing is known of any finding, or the shards lack what `volumes` depends on.
        ValueError: an unknown finding or option, or a NaN embedding.
    """
    rows, taken = choose_volumes(data, volumes, open_manifest)
    data = data.take(rows) if volumes != "all" else data
    whole_texts = encode_texts
    data, encode_texts = ranked_by(ranking, data, whole_texts)
    mapped = _labels_of(data, label_set, labels, findings)
    whose = "" if scale else ", the model's own"
    scale = scale or data.logit_scale
    chosen_on = thresholds_from(threshold, data, load_split)
    if chosen_on is not None and chosen_on is not data:
        chosen_on = chosen_on.take(choose_volumes(chosen_on, volumes, open_manifest)[0])
        chosen_on, _ = ranked_by(ranking, chosen_on, whole_texts)

    positive_only = score == "positive_only"
    ensemble = ensemble or ("scores" if positive_only else "vectors")
    tables = name_tables().get(names, {})
    wordings: dict[str, Prompts] = {}
    scorers: dict[str, Callable[[EmbeddedSplit], np.ndarray]] = {}
    for name in dict.fromkeys(one for parts in mapped.scored_by.values() for one in parts):
        wording = prompts.prompts_of(
            name, template, called=tables.get(name, ""), definitions=data.definitions
        )
        wordings[name] = wording._replace(negative=()) if positive_only else wording
        scorers[name] = _scorer(encode_texts, wordings[name], score, scale, ensemble)

    def score_of(split: EmbeddedSplit, finding: str) -> np.ndarray:
        return np.max([scorers[one](split) for one in mapped.scored_by[finding]], axis=0)

    threshold_labels = None
    if chosen_on is data:
        threshold_labels = mapped.columns
    elif chosen_on is not None:
        threshold_labels = _labels_of(chosen_on, label_set, labels, tuple(mapped.columns)).columns
    scored: dict[str, FindingScores] = {}
    measured = FindingMetrics(data.patients, draws, seed)
    for name, column in mapped.columns.items():
        raw = score_of(data, name)
        if chosen_on is None:
            cut = {"difference": 0.0, "probability": 0.5}.get(score, float("nan"))
            cut = np.nextafter(cut, np.inf) if ties == "absent" else cut
        else:
            other = threshold_labels[name]
            cut = metrics.best_threshold(
                other[other != 0] == 1, score_of(chosen_on, name)[other != 0], criterion=criterion
            )
        parts = tuple(dict.fromkeys(wordings[one] for one in mapped.scored_by[name]))
        wording = Prompts(*(tuple(dict.fromkeys(sum(sides, ()))) for sides in zip(*parts, strict=True)))
        known = np.flatnonzero(column)
        used = _balanced(column, known, seed) if sample == "balanced" else known
        values, intervals = measured.measure(name, column, raw, used, cut)
        scored[name] = FindingScores(
            (column[used] == 1).astype(np.int8),
            raw[used],
            used,
            len(column) - len(known),
            len(known) - len(used),
            float(cut),
            wording,
            values,
            intervals,
        )
    means = {
        metric: mean_of_defined(result.values[metric] for result in scored.values()) for metric in METRICS
    }
    conditions = {
        "n": _counted(data) + ("" if volumes == "all" else f"; {taken}"),
        "labels": label_source(labels)
        + (f"; {mapped.words}" if label_set else "")
        + (f"; as many absent as present of each finding, seed {seed}" if sample == "balanced" else ""),
        "prompts": prompts.describe_prompts(
            mapped.columns, template, positive=positive_only, definitions=data.definitions
        )
        + (f"; X as in {names}" if names else ""),
        "pooling": data.pooling,
        "score": f"{'mean to the positive prompts' if positive_only else score} of "
        f"{describe(data.volumes)}{OF_MEANS[ranking]}, scale {scale:g}{whose}"
        + (f"; several prompts: mean of {ensemble}" if _several(wordings) else ""),
        "threshold": threshold_source(threshold, criterion, positive_only, ties, data.name),
        "intervals": described(draws, seed),
    }
    return ZeroShotResult(
        scored,
        means,
        measured.mean_intervals(scored),
        measured.crg_value(),
        measured.crg_interval(),
        conditions,
        data.patients,
        data.ids,
    )


def _counted(data: EmbeddedSplit) -> str:
    studies, patients = (len(np.unique(groups)) for groups in (data.studies, data.patients))
    return f"{len(data.volumes)} volumes of {patients} patients in {studies} studies, split {data.name!r}"


def _several(wordings: Mapping[str, Prompts]) -> bool:
    return any(len(side) > 1 for wording in wordings.values() for side in wording)


def threshold_source(threshold: str, criterion: str, positive_only: bool, ties: str, split: str) -> str:
    """Where the threshold is from, in words.

    Args:
        threshold, criterion, ties: of `evaluate_zero_shot`.
        positive_only: whether there are prompts for presence alone.
        split: that is scored.
    """
    if threshold == SAME_SPLIT:
        return (
            f"{_CHOSEN[criterion]}, {THRESHOLD_OF_SCORED} {split!r} ITSELF: what depends on it is flattered, "
            "and compares with such numbers alone"
        )
    if threshold != "argmax":
        return f"{_CHOSEN[criterion]} on split {threshold!r}"
    if positive_only:
        return "none: set threshold to a split to choose it on"
    return "argmax of the pair" + (", a tie is absent" if ties == "absent" else "")


def _labels_of(data: EmbeddedSplit, label_set: str, labels: str, findings: Sequence[str]) -> MappedLabels:
    """What is scored, and against which labels.

    Raises:
        NotEvaluable: nothing is known of any finding.
        ValueError: an unknown finding or label set.
    """
    columns = data.findings(labels)
    if not label_set:
        names = chosen_findings(findings, columns, data.definitions)
        return MappedLabels(
            {name: columns[name] for name in names}, {name: (name,) for name in names}, (), ""
        )
    if label_set not in label_sets():
        raise ValueError(f"label_set={label_set!r}: use one of {', '.join(label_sets())}")
    mapped = map_labels(label_sets()[label_set], columns, data.definitions)
    if not mapped.columns:
        raise NotEvaluable(
            f"the shards have no column of label set {label_set!r}: {', '.join(mapped.missing)}. They have "
            f"{', '.join(columns)}"
        )
    if not findings:
        return mapped
    names = chosen_findings(findings, mapped.columns, data.definitions)
    return MappedLabels(
        {name: mapped.columns[name] for name in names},
        {name: mapped.scored_by[name] for name in names},
        mapped.missing,
        f"{mapped.words}, of which {len(names)} chosen",
    )


def thresholds_from(
    threshold: str, data: EmbeddedSplit, load_split: Callable[[str], EmbeddedSplit] | None
) -> EmbeddedSplit | None:
    """The split that thresholds are chosen on; None for argmax.

    Args:
        threshold: of `evaluate_zero_shot`.
        data: the split that is scored.
        load_split: embeds another.

    Raises:
        ValueError: it is the scored one, by its name.
    """
    if threshold == "argmax":
        return None
    if threshold == SAME_SPLIT:
        return data
    if threshold == data.name:
        raise ValueError(
            f"threshold={threshold!r} is the split being scored: a threshold chosen there flatters "
            'F1 and accuracy; use another split or "argmax", or "test", which chooses on the scored split '
            "and is marked as such"
        )
    if load_split is None:
        raise ValueError(f"threshold={threshold!r} names a split, but load_split is missing")
    return load_split(threshold)


def _balanced(column: np.ndarray, known: np.ndarray, seed: int) -> np.ndarray:
    """As many rows of either kind, at random of the kind that there are more of."""
    sides = [known[column[known] == sign] for sign in (1, -1)]
    count = min(map(len, sides))
    generator = np.random.default_rng(seed)
    kept = [side if len(side) == count else generator.choice(side, count, replace=False) for side in sides]
    return np.sort(np.concatenate(kept))


def _scorer(
    encode_texts: EncodeTexts, wording: Prompts, score: str, scale: float, ensemble: str
) -> Callable[[EmbeddedSplit], Float[np.ndarray, " N"]]:
    """Scores of any split's volumes by a finding's prompts."""
    if score == "positive_only":
        positives = encode_texts(wording.positive)
        if ensemble == "vectors":
            positives = positives if len(positives) == 1 else _row(averaged(positives))
        return lambda split: positive_scores(split.volumes, positives, scale=scale)
    positive, negative = encode_prompts(encode_texts, wording)
    if ensemble == "vectors":
        return lambda split: pair_scores(split.volumes, positive, negative, score=score, scale=scale)
    sides = encode_texts(wording.positive), encode_texts(wording.negative)
    return lambda split: mean_pair_scores(split.volumes, *sides, score=score, scale=scale)


def _row(single: Embeddings) -> Embeddings:
    """One embedding as a table of one row."""
    return single[None]
