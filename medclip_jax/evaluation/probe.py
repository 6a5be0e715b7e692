"""Linear probe: how much of a finding can a logistic regression read off the frozen volume tower?"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Int8, Int64

from medclip_jax.evaluation import bootstrap, metrics
from medclip_jax.evaluation.embeddings import EmbeddedSplit, EncodeTexts, refuse_shared_patients
from medclip_jax.evaluation.logistic import fit_logistic
from medclip_jax.evaluation.probe_result import FindingProbe, ProbeResult, ProbeScores, percent
from medclip_jax.evaluation.results import NotEvaluable, chosen_findings, needs

FEWEST_PATIENTS = 2
"""So many with a finding, and so many without, a regression wants to learn from."""


@dataclass(frozen=True)
class _Splits:
    """The features of one model, standardized as its training features are."""

    train: Float[np.ndarray, "N P"]
    validation: Float[np.ndarray, "M P"]
    test: Float[np.ndarray, "K P"]


@needs("pooled")
def evaluate_probe(
    data: EmbeddedSplit,
    encode_texts: EncodeTexts,
    *,
    findings: Sequence[str] = (),
    labels: str = "labels",
    train: str = "train",
    validation: str = "validation",
    shares: Sequence[float] = (0.01, 0.1, 1.0),
    seeds: int = 3,
    penalties: Sequence[float] = (100.0, 10.0, 1.0, 0.1, 0.01, 0.001, 0.0001),
    baseline: str = "none",
    draws: int = 1000,
    seed: int = 0,
    load_split: Callable[[str], EmbeddedSplit] | None = None,
    load_random: Callable[[str, str], EmbeddedSplit] | None = None,
) -> ProbeResult:
    """Fit a logistic regression for each finding on frozen pooled features, with all labels and with few.

    Features are standardized by the mean and standard deviation of all training volumes; what is constant
    there is left out. Each regression has the L2 penalty with the lowest log loss on the validation split.

    Args:
        data: the split to score, with `pooled`.
        encode_texts: not needed.
        findings: names to score; () for all columns of the shards.
        labels: "labels" for ground truth, "findings" for what the reports say.
        train: split to learn from.
        validation: split to choose the penalty on.
        shares: of the training labels, above 0 and up to 1. A share is drawn for each finding by patient, of
            those with the finding and of those without alike, at least `FEWEST_PATIENTS` of each.
        seeds: draws of each share below 1.
        penalties: to choose from: weights of ``|w|^2 / 2`` beside the mean log loss.
        baseline: "random" probes the same architecture with random weights, too; "none".
        draws: bootstrap resamples of patients for the intervals; 0 for none.
        seed: of the first draw of labels, and of the bootstrap.
        load_split: embeds another split.
        load_random: embeds a split by random weights, which begin on the volumes of a second one.

    Returns:
        The result.

    Raises:
        NotEvaluable: a split is not there, or no finding has labels enough.
        ValueError: the splits share patients, an unknown finding or option, or a feature is not finite.
    """
    if load_split is None or (load_random is None and baseline != "none"):
        raise ValueError("load_split, and load_random for a baseline, must say where other splits are")
    learned, chosen_on = load_split(train), load_split(validation)
    _check_apart({train: learned, validation: chosen_on, data.name: data})
    columns = [split.findings(labels) for split in (learned, chosen_on, data)]
    reasons = {
        name: _lacks(learned, *(column[name] for column in columns))
        for name in chosen_findings(findings, columns[2], data.definitions)
    }
    names = [name for name, reason in reasons.items() if not reason]
    too_few = {name: reason for name, reason in reasons.items() if reason}
    if not names:
        raise NotEvaluable(
            "too few labels for every finding: "
            + "; ".join(f"{name}: {reason}" for name, reason in too_few.items())
        )
    shares = sorted(set(shares))
    drawn = {
        share: {
            name: [
                draw_labels(columns[0][name], learned.patients, share, [seed + index, _hash(name)])
                for index in range(seeds if share < 1 else 1)
            ]
            for name in names
        }
        for share in shares
    }
    weights = bootstrap.draw_patients(data.patients, draws, seed)

    def probe(*splits: EmbeddedSplit) -> ProbeScores:
        features = _standardized(*splits)
        return {
            share: {
                name: _probe(features, [c[name] for c in columns], rows, sorted(penalties)[::-1], weights)
                for name, rows in by_name.items()
            }
            for share, by_name in drawn.items()
        }

    trained, random = probe(learned, chosen_on, data), {}
    if baseline == "random":
        random = probe(*(load_random(name, train) for name in (train, validation, data.name)))
    patients = len(np.unique(data.patients))
    conditions = {
        "n": f"{len(data.patients)} volumes of {patients} patients, split {data.name!r}; learned from "
        f"{len(learned.patients)} of {train!r}",
        "labels": "ground truth" if labels == "labels" else "from the reports, not mentioned left out",
        "shares": _describe(trained),
        "features": f"{data.pooled.shape[1]} pooled by the frozen volume tower, {data.pooling}; "
        f"standardized on {train!r}",
        "penalty": f"of {', '.join(f'{p:g}' for p in penalties)} the lowest log loss on {validation!r}",
        "intervals": bootstrap.described(draws, seed),
    }
    if random:
        conditions["random init"] = "the same architecture, untrained, under the same protocol"
    counts = {name: tuple(int((columns[2][name] == status).sum()) for status in (1, -1)) for name in reasons}
    return ProbeResult(counts, trained, random, too_few, conditions)


def draw_labels(
    column: Int8[np.ndarray, " N"], patients: Int64[np.ndarray, " N"], share: float, seed: Sequence[int]
) -> Int[np.ndarray, " rows"]:
    """Rows of a share of the patients with a finding and of those without.

    A patient has the finding where any volume shows it. Of one seed, a smaller share is part of a larger one.

    Args:
        column: 1 present, -1 absent, 0 unknown.
        patients: of each row.
        share: of the patients of each class, rounded, and at least `FEWEST_PATIENTS` where there are as many.
        seed: of the draw.

    Returns:
        Their rows with a known label, in order.
    """
    generator = np.random.default_rng(seed)
    kept = []
    for group in _by_class(column, patients):
        take = max(FEWEST_PATIENTS, math.floor(share * len(group) + 0.5))
        kept.append(generator.permutation(group)[:take])
    return np.flatnonzero((column != 0) & np.isin(patients, np.concatenate(kept)))


def _by_class(column: np.ndarray, patients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Patients with the finding, and those with known labels and without it; sorted."""
    present = np.unique(patients[column == 1])
    return present, np.setdiff1d(patients[column == -1], present)


def _hash(name: str) -> int:
    return zlib.crc32(name.encode())


def _lacks(learned: EmbeddedSplit, train: np.ndarray, validation: np.ndarray, test: np.ndarray) -> str:
    """Why a finding cannot be probed; "" where it can."""
    present, absent = (len(group) for group in _by_class(train, learned.patients))
    if min(present, absent) < FEWEST_PATIENTS:
        return f"{present} patients with it and {absent} without in training"
    for split, column in (("validation", validation), ("the scored split", test)):
        if not (np.any(column == 1) and np.any(column == -1)):
            return f"nowhere present, or nowhere absent, in {split}"
    return ""


def _check_apart(splits: Mapping[str, EmbeddedSplit]) -> None:
    if len(splits) < 3:
        raise ValueError(
            f"probe learns, chooses and scores on splits of their own, not on {', '.join(splits)} alone: set "
            "train and validation to two others"
        )
    *others, scored = splits.values()
    refuse_shared_patients(scored, *others)


def _standardized(train: EmbeddedSplit, validation: EmbeddedSplit, test: EmbeddedSplit) -> _Splits:
    for split in (train, validation, test):
        wrong = np.flatnonzero(~np.isfinite(split.pooled).all(axis=1))
        if wrong.size:
            raise ValueError(
                f"the pooled features of {wrong.size} volumes of split {split.name!r} are not finite, the "
                f"first that of volume {wrong[0]}: look at that volume, or at the model's weights"
            )
    features = train.pooled.astype(np.float64)
    mean, spread = features.mean(axis=0), features.std(axis=0)
    varies = spread > 1e-6 * np.maximum(np.abs(mean), 1e-12)  # else it is what float32 rounds

    def scaled(split: EmbeddedSplit) -> np.ndarray:
        return (split.pooled[:, varies].astype(np.float64) - mean[varies]) / spread[varies]

    return _Splits(scaled(train), scaled(validation), scaled(test))


def _probe(
    features: _Splits,
    columns: Sequence[Int8[np.ndarray, " N"]],
    draws: Sequence[Int[np.ndarray, " rows"]],
    penalties: Sequence[float],
    weights: bootstrap.Weights,
) -> FindingProbe:
    """One finding with one share of its labels."""
    train, validation, test = columns
    known, scored = validation != 0, test != 0
    truth, weights = test[scored] == 1, weights[:, scored]
    scores, chosen = [], []
    for rows in draws:
        # Without features, as of a collapsed tower, there is nothing to tell volumes apart by.
        found = np.zeros((1, 1))
        if features.train.shape[1]:
            found = fit_logistic(features.train[rows], train[rows], [p * len(rows) for p in penalties])
        margins = features.validation[known] @ found[:, :-1].T + found[:, -1]
        losses = np.logaddexp(0, -validation[known, None] * margins).mean(axis=0)
        best = int(np.argmin(losses))  # of equal ones the strongest
        chosen.append(penalties[best])
        scores.append(features.test[scored] @ found[best, :-1] + found[best, -1])
    rows = draws[0]
    return FindingProbe(
        labels=len(rows),
        labels_present=int((train[rows] == 1).sum()),
        penalties=tuple(chosen),
        auroc=np.array([metrics.auroc(truth, s) for s in scores]),
        average_precision=np.array([metrics.average_precision(truth, s) for s in scores]),
        resampled_auroc=np.mean([bootstrap.auroc(truth, s, weights) for s in scores], axis=0),
        resampled_average_precision=np.mean(
            [bootstrap.average_precision(truth, s, weights) for s in scores], axis=0
        ),
    )


def _describe(trained: ProbeScores) -> str:
    parts = []
    for share, found in trained.items():
        least, most = (pick(x.labels for x in found.values()) for pick in (min, max))
        draws = len(next(iter(found.values())).auroc)
        parts.append(
            f"{percent(share)} of the labels, {least if least == most else f'{least} to {most}'} a finding"
            + (f" ({draws} draws)" if draws > 1 else "")
        )
    return "; ".join(parts) + "; by patient, stratified"
