"""Linear probe: how much of a finding can a logistic regression read off the frozen volume tower?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int8

from medclip_jax.evaluation import bootstrap
from medclip_jax.evaluation.embeddings import EmbeddedSplit, EncodeTexts
from medclip_jax.evaluation.grades import grade_metrics, grade_of, threshold_columns
from medclip_jax.evaluation.probe_draws import (
    FEWEST_PATIENTS,
    Cut,
    cut_into_folds,
    draw_labels,
    patients_by_class,
    probe_splits,
    seed_of,
)
from medclip_jax.evaluation.probe_fit import Sides, joined_folds, probe_finding
from medclip_jax.evaluation.probe_result import ProbeResult, ProbeScores, Summary, percent, summary_of
from medclip_jax.evaluation.results import NotEvaluable, chosen_findings, label_source, needs
from medclip_jax.evaluation.tasks import describe_features, features_of


@needs("pooled")
def evaluate_probe(
    data: EmbeddedSplit,
    encode_texts: EncodeTexts,
    *,
    findings: Sequence[str] = (),
    labels: str = "labels",
    measurement: str = "",
    thresholds: Sequence[float] = (1.0, 2.0, 3.0, 4.0),
    features: str = "pooled",
    train: str = "train",
    validation: str = "validation",
    folds: int = 0,
    shares: Sequence[float] = (0.01, 0.1, 1.0),
    seeds: int = 3,
    penalties: Sequence[float] = (100.0, 10.0, 1.0, 0.1, 0.01, 0.001, 0.0001),
    baseline: str = "none",
    draws: int = 1000,
    seed: int = 0,
    load_split: Callable[[str], EmbeddedSplit] | None = None,
    load_random: Callable[[str, str], EmbeddedSplit] | None = None,
) -> ProbeResult:
    """Fit a logistic regression for each finding on frozen features, with all labels and with few.

    Features are standardized by the mean and standard deviation of all training volumes; what is constant
    there is left out. Each regression has the L2 penalty with the lowest log loss on the validation split.

    Args:
        data: the split to score, with `features`.
        encode_texts: not needed.
        findings: names to score; () for all columns of the shards.
        labels: "labels" for ground truth, "findings" for what the reports say.
        measurement: an ordered grade, each of whose `thresholds` is asked for as a finding is, beside those
            that `findings` names; "" for none.
        thresholds: of the measurement, lowest first.
        features: one of `tasks.FEATURES`.
        train: split to learn from.
        validation: split to choose the penalty on.
        folds: cut the scored split itself into so many by patient, stratified: each is scored once, with the
            next one in place of `validation` and the others in place of `train`; 0 for those two splits.
        shares: of the training labels, above 0 and up to 1. A share is drawn for each finding by patient, of
            those with the finding and of those without alike, at least `FEWEST_PATIENTS` of each.
        seeds: draws of each share below 1.
        penalties: to choose from: weights of ``|w|^2 / 2`` beside the mean log loss.
        baseline: "random" probes the same architecture with random weights, too; "none".
        draws: bootstrap resamples of patients for the intervals; 0 for none.
        seed: of the first draw of labels, of the folds, and of the bootstrap.
        load_split: embeds another split.
        load_random: embeds a split by random weights, which begin on the volumes of a second one.

    Returns:
        The result.

    Raises:
        NotEvaluable: a split is not there, no finding has labels enough, or there is no such measurement.
        ValueError: the splits share patients, an unknown finding or option, or a feature is not finite.
    """
    if load_random is None and baseline != "none":
        raise ValueError("load_random, for a baseline, must say where features of random weights are")
    splits = probe_splits(data, load_split, train, validation, folds)
    columns = [split.findings(labels) for split in splits] if findings or not measurement else [{}, {}, {}]
    names = chosen_findings(findings, columns[2], data.definitions) if columns[2] else ()
    grades = [threshold_columns(split.measurements, measurement, thresholds) for split in splits]
    columns = [{**side, **more} for side, more in zip(columns, grades, strict=True)]
    whole = [Cut(*(np.arange(len(split.patients)) for split in splits))]
    cuts = dict.fromkeys((*names, *grades[2]), whole)
    if folds:
        cuts |= {name: cut_into_folds(data.patients, columns[2][name], folds, seed) for name in names}
        passed = np.sum([column == 1 for column in grades[2].values()], axis=0)
        of_grades = cut_into_folds(data.patients, passed, folds, seed) if grades[2] else whole
        cuts |= dict.fromkeys(grades[2], of_grades)
    reasons = {
        name: _lacks([side[name] for side in columns], splits[0].patients, found)
        for name, found in cuts.items()
    }
    too_few = {name: reason for name, reason in reasons.items() if reason}
    if len(too_few) == len(reasons):
        raise NotEvaluable(
            "too few labels for every finding: "
            + "; ".join(f"{name}: {reason}" for name, reason in too_few.items())
        )
    weights = bootstrap.draw_patients(data.patients, draws, seed)

    def probe(embedded: Sequence[EmbeddedSplit]) -> ProbeScores:
        sides = Sides(*(features_of(split, features).astype(np.float64) for split in embedded))
        found: dict[float, dict] = {share: {} for share in sorted(set(shares))}
        standardized: dict[int, Sides] = {}
        for name in (name for name in reasons if name not in too_few):
            parts: dict[float, list] = {share: [] for share in found}
            for cut in cuts[name]:
                if id(cut) not in standardized:
                    standardized = {id(cut): sides.standardized(cut)}
                rows = (cut.learned, cut.chosen, cut.scored)
                own = [side[name][row] for side, row in zip(columns, rows, strict=True)]
                owners = splits[0].patients[cut.learned]
                for share in found:
                    drawn = [
                        draw_labels(own[0], owners, share, [seed + index, seed_of(name)])
                        for index in range(seeds if share < 1 else 1)
                    ]
                    parts[share].append(
                        probe_finding(
                            standardized[id(cut)], own, drawn, sorted(penalties)[::-1], weights[:, cut.scored]
                        )
                    )
            for share, fitted in parts.items():
                found[share][name] = joined_folds(fitted, cuts[name]) if folds else fitted[0]
        return found

    trained, random = probe(splits), {}
    if baseline == "random":
        order = [data.name] if folds else [train, validation, data.name]
        blind = [load_random(name, order[0]) for name in order]
        random = probe(blind * 3 if folds else blind)
    conditions = {
        "n": f"{data.counted}; "
        + (f"{folds} folds by patient" if folds else f"learned from {len(splits[0].patients)} of {train!r}"),
        "labels": label_source(labels),
        "shares": _describe(trained, seeds),
        "features": f"{describe_features(data, features)}; standardized on what is learned from",
        "penalty": f"of {', '.join(f'{p:g}' for p in penalties)} the lowest log loss on "
        + ("the next fold" if folds else repr(validation)),
        "intervals": bootstrap.described(draws, seed),
    }
    if folds:
        conditions["folds"] = (
            "values are means over the folds, ± their standard deviation; the score of a volume comes from "
            "the regression that did not learn from its fold"
        )
    if random:
        conditions["random init"] = "the same architecture, untrained, under the same protocol"
    counts = {name: tuple(int((columns[2][name] == status).sum()) for status in (1, -1)) for name in reasons}
    result = ProbeResult(counts, trained, random, too_few, conditions, data.patients, data.ids)
    kept = [name for name in grades[2] if name not in too_few]
    return replace(result, grades=_graded(trained, kept, weights)) if kept else result


def _lacks(columns: Sequence[Int8[np.ndarray, " N"]], patients: np.ndarray, cuts: Sequence[Cut]) -> str:
    """Why a finding cannot be probed; "" where it can."""
    for place, cut in enumerate(cuts):
        where = f", fold {place}" if len(cuts) > 1 else ""
        groups = patients_by_class(columns[0][cut.learned], patients[cut.learned])
        present, absent = map(len, groups)
        if min(present, absent) < FEWEST_PATIENTS:
            return f"{present} patients with it and {absent} without in training{where}"
        sides = ("validation", columns[1][cut.chosen]), ("the scored split", columns[2][cut.scored])
        for split, column in sides:
            if not (np.any(column == 1) and np.any(column == -1)):
                return f"nowhere present, or nowhere absent, in {split}{where}"
    return ""


def _graded(
    trained: ProbeScores, thresholds: Sequence[str], weights: bootstrap.Weights
) -> dict[float, dict[str, Summary]]:
    """The grades that the regressions of all thresholds tell together, with each share of the labels."""
    found = {}
    for share, by_name in trained.items():
        fitted = [by_name[name] for name in thresholds]
        rows = fitted[0].rows  # the same of all: where the measurement is known
        truth = np.sum([one.truth for one in fitted], axis=0)
        each = [
            grade_metrics(truth, grade_of(np.stack(odds)), len(fitted) + 1, weights[:, rows])
            for odds in zip(*(one.scores for one in fitted), strict=True)
        ]
        found[share] = {
            metric: summary_of([one[metric][0] for one in each], [one[metric][1] for one in each])
            for metric in each[0]
        }
    return found


def _describe(trained: ProbeScores, draws: int) -> str:
    parts = []
    for share, found in trained.items():
        least, most = (pick(x.labels for x in found.values()) for pick in (min, max))
        parts.append(
            f"{percent(share)} of the labels, {least if least == most else f'{least} to {most}'} a finding"
            + (f" ({draws} draws)" if share < 1 and draws > 1 else "")
        )
    return "; ".join(parts) + "; by patient, stratified"
