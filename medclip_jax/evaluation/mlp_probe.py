"""MLP probe: accuracy of a small classifier on frozen features, such as of four diagnoses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int64

from medclip_jax.evaluation import bootstrap
from medclip_jax.evaluation.embeddings import EmbeddedSplit, EncodeTexts
from medclip_jax.evaluation.mlp import Recipe, classify
from medclip_jax.evaluation.results import TOO_FEW, Table, needs, not_scored, number
from medclip_jax.evaluation.scored import Scored
from medclip_jax.evaluation.task_answers import TaskAnswers, answer, flat_metrics, scored_tasks
from medclip_jax.evaluation.tasks import (
    GROUP,
    describe_features,
    features_of,
    find_questions,
)

_OF_CLASSES = ("recall", "one_versus_rest", "one_versus_rest_auroc")


@dataclass(frozen=True)
class MlpProbeResult:
    """MLP probe of a group of classes, and of single findings.

    Attributes:
        tasks: name (`tasks.GROUP` for the group) to what was found.
        lacking: name to the reason why it was not scored.
        conditions: n, labels, features, training, intervals, in words.
        patients: (N,) keyed hash of the patient of each volume of the scored split.
        ids: keyed hashes of these volumes; () where they are not known.
    """

    tasks: Mapping[str, TaskAnswers]
    lacking: Mapping[str, str]
    conditions: Mapping[str, str]
    patients: Int64[np.ndarray, " N"] = field(default_factory=lambda: np.zeros(0, np.int64))
    ids: Sequence[str] = ()
    title: ClassVar[str] = "MLP probe"

    @property
    def group(self) -> TaskAnswers | None:
        """The task of classes that exclude one another; None where there is none."""
        return self.tasks.get(GROUP)

    @property
    def findings(self) -> Mapping[str, TaskAnswers]:
        """The tasks of a single finding."""
        return {name: task for name, task in self.tasks.items() if name != GROUP}

    def metrics(self) -> dict[str, float]:
        """Keys of `task_answers.flat_metrics`."""
        return flat_metrics(self.tasks)

    def scored(self) -> dict[str, Scored]:
        """Of each finding the probability of every volume, of the group whether its class was found."""
        return {"": Scored(self.ids, self.patients, scored_tasks(self.tasks))}

    def group_table(self) -> Table | None:
        """One line for each class and one for all; None without a group."""
        if self.group is None:
            return None
        task, rows = self.group, []
        for name, learned, scored in zip(task.classes, task.learned, task.scored, strict=True):
            cells = [task.shown(f"{metric}/{name}") for metric in _OF_CLASSES]
            rows.append((name, str(learned), str(scored), *cells))
        overall = task.shown("accuracy"), "", task.shown("one_versus_rest_auroc")
        rows.append(("all", str(sum(task.learned)), str(sum(task.scored)), *overall))
        most = max(task.scored) / sum(task.scored)
        rows.append(("chance: the most frequent one", "", "", number(most), "", number(0.5)))
        of_one = "accuracy, one against the rest", "AUROC, one against the rest"
        header = ("class", "learned from", "scored", "share found", *of_one)
        return Table(f"{self.title}: classes", header, tuple(rows), self.conditions)

    def finding_table(self) -> Table | None:
        """One line for each finding, then the mean of what is shown; None where there are none."""
        if not self.findings:
            return None
        names = ("auroc", "average_precision", "accuracy", "balanced_accuracy")
        rows, shown = [], [task for task in self.findings.values() if task.is_enough]
        for name, task in self.findings.items():
            cells = [task.shown(metric) if task.is_enough else TOO_FEW for metric in names]
            rows.append((name, str(task.scored[1]), str(task.scored[0]), *cells))
        means = [
            number(np.mean([task.values[name] for task in shown])) if shown else TOO_FEW for name in names
        ]
        rows.append(("mean", "", "", *means))
        header = ("finding", "present", "absent", "AUROC", *(name.replace("_", " ") for name in names[1:]))
        conditions = {**self.conditions, **not_scored(self.lacking)}
        return Table(f"{self.title}: findings", header, tuple(rows), conditions)

    def tables(self) -> list[Table]:
        """All that there are."""
        return [table for table in (self.group_table(), self.finding_table()) if table is not None]

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.tables()))


@needs("pooled")
def evaluate_mlp_probe(
    data: EmbeddedSplit,
    encode_texts: EncodeTexts,
    *,
    classes: Sequence[str] = (),
    measurement: str = "",
    findings: Sequence[str] = (),
    labels: str = "labels",
    features: str = "embedding",
    train: str = "train",
    holdout: float = 0.0,
    hidden: int = 128,
    epochs: int = 30,
    learning_rate: float = 1e-4,
    draws: int = 1000,
    seed: int = 0,
    load_split: Callable[[str], EmbeddedSplit] | None = None,
) -> MlpProbeResult:
    """Train a small classifier on frozen features, and score it.

    Args:
        data: the split to score.
        encode_texts: not needed.
        classes: findings of which a study has one, such as diagnoses, told apart by one classifier; volumes
            with none or several are left out. () for no such task.
        measurement: whose values are classes, in place of `classes`, such as a grade; "" for none.
        findings: findings to tell present from absent, each by a classifier of its own; () for all columns
            of the shards, or for none where there is a measurement.
        labels: "labels" for ground truth, "findings" for what the reports say.
        features: one of `tasks.FEATURES`, standardized by mean and spread of those that are learned from.
        train: split to learn from.
        holdout: share of the patients of the split that is scored while the others are learned from, where
            there is no other split; 0 for `train`.
        hidden: width of the two hidden layers.
        epochs: passes over what is learned from.
        learning_rate: of Adam.
        draws: bootstrap resamples of patients for the intervals; 0 for none.
        seed: of initial weights and order, of the bootstrap, and of the cut of `holdout`.
        load_split: embeds another split.

    Returns:
        The result.

    Raises:
        NotEvaluable: nothing is known of any finding, or no class has volumes in both splits.
        ValueError: the splits share patients, an unknown finding, or a feature is not finite.
    """
    asked = find_questions(
        data,
        load_split,
        train=train,
        holdout=holdout,
        seed=seed,
        classes=classes,
        measurement=measurement,
        findings=findings,
        labels=labels,
    )
    tasks, scored = asked.tasks, asked.scored
    inputs, queries = _standardized(features_of(asked.learned, features), features_of(scored, features))
    recipe = Recipe(hidden, epochs, learning_rate)
    weights = bootstrap.draw_patients(scored.patients, draws, seed)
    found = {
        name: answer(task, classify(inputs, task.learned, queries, recipe, seed=seed), weights)
        for name, task in tasks.items()
    }
    conditions = {
        **asked.conditions,
        "features": f"{describe_features(data, features)}; standardized",
        "classifier": f"two hidden layers of {hidden}, Adam {learning_rate:g}, {epochs} epochs in batches of "
        f"16, seed {seed}",
        "intervals": bootstrap.described(draws, seed),
    }
    return MlpProbeResult(found, asked.lacking, conditions, scored.patients, scored.ids)


def _standardized(
    inputs: Float[np.ndarray, "N P"], queries: Float[np.ndarray, "M P"]
) -> tuple[np.ndarray, np.ndarray]:
    mean, spread = inputs.astype(np.float64).mean(axis=0), inputs.astype(np.float64).std(axis=0)
    varies = spread > 1e-6 * np.maximum(np.abs(mean), 1e-12)  # else it is what float32 rounds
    scale = np.where(varies, 1 / np.where(varies, spread, 1), 0)
    return (inputs - mean) * scale, (queries - mean) * scale
