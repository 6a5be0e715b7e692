"""Linear probe of several classes: diagnoses that exclude one another, or the values of a measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from medclip_jax.evaluation import bootstrap
from medclip_jax.evaluation.embeddings import EmbeddedSplit, EncodeTexts
from medclip_jax.evaluation.logistic import fit_softmax
from medclip_jax.evaluation.mlp_probe import MlpProbeResult
from medclip_jax.evaluation.probe_draws import Cut, cut_into_folds, probe_splits
from medclip_jax.evaluation.probe_fit import Sides
from medclip_jax.evaluation.results import NotEvaluable, label_source, needs
from medclip_jax.evaluation.task_answers import answer
from medclip_jax.evaluation.tasks import GROUP, class_counts, describe_features, features_of, find_group


class ClassProbeResult(MlpProbeResult):
    """One task of several classes, by a linear classifier."""

    title: ClassVar[str] = "Linear probe"


@needs("pooled")
def evaluate_class_probe(
    data: EmbeddedSplit,
    encode_texts: EncodeTexts,
    *,
    classes: Sequence[str] = (),
    measurement: str = "",
    labels: str = "labels",
    features: str = "pooled",
    train: str = "train",
    validation: str = "validation",
    folds: int = 0,
    penalties: Sequence[float] = (10.0, 1.0, 0.1, 0.01, 0.001, 0.0001),
    draws: int = 1000,
    seed: int = 0,
    load_split: Callable[[str], EmbeddedSplit] | None = None,
) -> ClassProbeResult:
    """Fit one linear classifier of all classes on frozen features, and score it.

    Args:
        data: the split to score.
        encode_texts: not needed.
        classes: findings of which a study has one; volumes with none or several are left out.
        measurement: whose values are the classes, in place of `classes`, such as a grade.
        labels: "labels" for ground truth, "findings" for what the reports say.
        features: one of `tasks.FEATURES`; standardized by what is learned from.
        train: split to learn from.
        validation: split to choose the penalty on.
        folds: cut the scored split itself into so many by patient, stratified: each is scored once, with the
            next one in place of `validation` and the others in place of `train`; 0 for those two splits.
        penalties: to choose from: weights of ``|W|^2 / 2`` beside the mean cross-entropy.
        draws: bootstrap resamples of patients for the intervals; 0 for none.
        seed: of the folds and of the bootstrap.
        load_split: embeds another split.

    Returns:
        The result.

    Raises:
        NotEvaluable: there are no classes, or one has no volumes in a split.
        ValueError: the splits share patients, an unknown finding or option, or a feature is not finite.
    """
    if not classes and not measurement:
        raise NotEvaluable("no classes to tell apart: set classes to findings, or measurement to a grade")
    splits = probe_splits(data, load_split, train, validation, folds)

    task, judge = (
        find_group(splits[0], split, classes=classes, labels=labels, measurement=measurement)
        for split in (data, splits[1])
    )
    if task.lacks:
        raise NotEvaluable(task.lacks)
    cuts = [Cut(*(np.arange(len(split.patients)) for split in splits))]
    if folds:
        cuts = cut_into_folds(data.patients, task.scored, folds, seed)
    sides = Sides(*(features_of(split, features).astype(np.float64) for split in splits))
    told = np.full((len(data.patients), len(task.classes)), np.nan)
    taken = []
    for cut in cuts:
        learned, chosen = task.learned[cut.learned], judge.scored[cut.chosen]
        if not class_counts(learned, len(task.classes)).all() or not (chosen >= 0).any():
            raise NotEvaluable(
                "a class has no volume in what is learned from, or no class is known of what the penalty is "
                "chosen on: take fewer folds, or fewer classes"
            )
        penalty, told[cut.scored] = _classify(
            sides.standardized(cut), learned, chosen, sorted(penalties)[::-1]
        )
        taken.append(penalty)
    weights = bootstrap.draw_patients(data.patients, draws, seed)
    how = f"{folds} folds by patient" if folds else f"learned from {len(splits[0].patients)} of {train!r}"
    conditions = {
        "n": f"{data.counted}; {how}",
        "labels": f"values of {measurement}" if measurement else label_source(labels),
        "features": f"{describe_features(data, features)}; standardized on what is learned from",
        "classifier": "multinomial logistic regression",
        "penalty": f"of {', '.join(f'{p:g}' for p in penalties)} the lowest cross-entropy on "
        + ("the next fold" if folds else repr(validation))
        + f": {', '.join(f'{p:g}' for p in taken)}",
        "intervals": bootstrap.described(draws, seed),
    }
    return ClassProbeResult({GROUP: answer(task, told, weights)}, {}, conditions, data.patients, data.ids)


def _classify(
    sides: Sides, learned: np.ndarray, chosen: np.ndarray, penalties: Sequence[float]
) -> tuple[float, Float[np.ndarray, "K C"]]:
    """The penalty that is taken, and the probabilities of what is scored."""
    known, judged = learned >= 0, chosen >= 0
    count = int(known.sum())
    # Without features, as of a collapsed tower, a constant one tells as little.
    inputs, judges, queries = (
        side if side.shape[1] else np.zeros((len(side), 1))
        for side in (sides.learned, sides.chosen, sides.scored)
    )
    fitted = fit_softmax(inputs[known], learned[known], [penalty * count for penalty in penalties])
    losses = [-model(judges[judged])[np.arange(judged.sum()), chosen[judged]].mean() for model in fitted]
    best = int(np.argmin(losses))  # of equal ones the strongest
    return penalties[best], np.exp(fitted[best](queries))
