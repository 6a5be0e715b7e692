"""MLP probe: accuracy of a small classifier on frozen features, such as of four diagnoses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from medclip_jax.evaluation import bootstrap, metrics
from medclip_jax.evaluation.embeddings import EmbeddedSplit, EncodeTexts
from medclip_jax.evaluation.metrics import Interval, mean_of_defined, percentile_interval
from medclip_jax.evaluation.mlp import Recipe, classify
from medclip_jax.evaluation.results import FEWEST, TOO_FEW, Table, needs, number, with_interval
from medclip_jax.evaluation.tasks import (
    GROUP,
    Task,
    class_counts,
    describe_features,
    features_of,
    find_tasks,
    learned_and_scored,
)


@dataclass(frozen=True)
class TaskAnswers:
    """One task.

    Attributes:
        classes: the answers.
        learned: volumes of each class that were learned from.
        truth: (n,) class of each volume that was scored.
        probabilities: (n, C) as the classifier gives them.
        values: metric to value: "accuracy" over all volumes, "balanced_accuracy" over classes, and for each
            class "recall/<class>", the share of its volumes that is found, and "one_versus_rest/<class>",
            the share of all volumes that is rightly called it or not; for a finding "auroc" and
            "average_precision".
        intervals: metric to bootstrap interval over patients; {} when none was requested.
    """

    classes: tuple[str, ...]
    learned: tuple[int, ...]
    truth: Int64[np.ndarray, " n"]
    probabilities: Float[np.ndarray, "n C"]
    values: Mapping[str, float]
    intervals: Mapping[str, Interval]

    @property
    def scored(self) -> tuple[int, ...]:
        """Volumes of each class that were scored."""
        return tuple(int(n) for n in class_counts(self.truth, len(self.classes)))

    @property
    def is_enough(self) -> bool:
        """Whether there are enough volumes of each class to show the scores."""
        return min(self.scored) >= FEWEST

    def shown(self, metric: str) -> str:
        """A metric with its interval, formatted."""
        return with_interval(self.values[metric], self.intervals.get(metric))


@dataclass(frozen=True)
class MlpProbeResult:
    """MLP probe of a group of classes, and of single findings.

    Attributes:
        tasks: name (`tasks.GROUP` for the group) to what was found.
        lacking: name to the reason why it was not scored.
        conditions: n, labels, features, training, intervals, in words.
    """

    tasks: Mapping[str, TaskAnswers]
    lacking: Mapping[str, str]
    conditions: Mapping[str, str]

    @property
    def group(self) -> TaskAnswers | None:
        """The task of classes that exclude one another; None where there is none."""
        return self.tasks.get(GROUP)

    @property
    def findings(self) -> Mapping[str, TaskAnswers]:
        """The tasks of a single finding."""
        return {name: task for name, task in self.tasks.items() if name != GROUP}

    def metrics(self) -> dict[str, float]:
        """Keys ``accuracy/<task>``, ``auroc/<finding>``, ``recall/<class>``, ``one_versus_rest/<class>``.

        ``..._low`` and ``..._high`` of the first word are the ends of intervals, ``..._mean`` is over the
        findings, ``scored/<task>`` and ``learned/<task>`` are counts of volumes.
        """
        flat: dict[str, float] = {}
        for name, task in self.tasks.items():
            for metric, value in task.values.items():
                word, _, of = metric.partition("/")
                if of and name != GROUP:
                    continue  # of a finding the accuracy says as much
                of = of or name
                flat[f"{word}/{of}"] = value
                if interval := task.intervals.get(metric):
                    flat |= {f"{word}_low/{of}": interval.low, f"{word}_high/{of}": interval.high}
            flat |= {f"scored/{name}": sum(task.scored), f"learned/{name}": sum(task.learned)}
        for metric in ("accuracy", "balanced_accuracy", "auroc", "average_precision"):
            found = [task.values[metric] for task in self.findings.values()]
            flat[f"{metric}_mean"] = mean_of_defined(found)
        return flat

    def group_table(self) -> Table | None:
        """One line for each class and one for all; None without a group."""
        if self.group is None:
            return None
        task, rows = self.group, []
        for name, learned, scored in zip(task.classes, task.learned, task.scored, strict=True):
            cells = [TOO_FEW] * 2
            if scored >= FEWEST:
                cells = [task.shown(f"{metric}/{name}") for metric in ("recall", "one_versus_rest")]
            rows.append((name, str(learned), str(scored), *cells))
        rows.append(("all", str(sum(task.learned)), str(sum(task.scored)), task.shown("accuracy"), ""))
        most = max(task.scored) / sum(task.scored)
        rows.append(("chance: the most frequent one", "", "", number(most), ""))
        header = ("class", "learned from", "scored", "share found", "accuracy, one against the rest")
        return Table("MLP probe: classes", header, tuple(rows), self.conditions)

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
        notes = {"not scored": "; ".join(f"{name}: {reason}" for name, reason in self.lacking.items())}
        conditions = {**self.conditions, **(notes if self.lacking else {})}
        return Table("MLP probe: findings", header, tuple(rows), conditions)

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
        findings: findings to tell present from absent, each by a classifier of its own; () for all columns
            of the shards.
        labels: "labels" for ground truth, "findings" for what the reports say.
        features: "embedding" for the place among the texts, "pooled" for what the tower pools before that;
            standardized by mean and spread of those that are learned from.
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
    learned, scored, how = learned_and_scored(data, load_split, train=train, holdout=holdout, seed=seed)
    tasks, lacking = find_tasks(learned, scored, classes=classes, findings=findings, labels=labels)
    inputs, queries = _standardized(features_of(learned, features), features_of(scored, features))
    recipe = Recipe(hidden, epochs, learning_rate)
    weights = bootstrap.draw_patients(scored.patients, draws, seed)
    found = {
        name: _answers(task, classify(inputs, task.learned, queries, recipe, seed=seed), weights)
        for name, task in tasks.items()
    }
    conditions = {
        "n": f"{len(scored.patients)} volumes of {len(np.unique(scored.patients))} patients, split "
        f"{data.name!r}; {how}",
        "labels": "ground truth" if labels == "labels" else "from the reports, not mentioned left out",
        "features": f"{describe_features(data, features)}; standardized",
        "classifier": f"two hidden layers of {hidden}, Adam {learning_rate:g}, {epochs} epochs in batches of "
        f"16, seed {seed}",
        "intervals": bootstrap.described(draws, seed),
    }
    return MlpProbeResult(found, lacking, conditions)


def _standardized(
    inputs: Float[np.ndarray, "N P"], queries: Float[np.ndarray, "M P"]
) -> tuple[np.ndarray, np.ndarray]:
    mean, spread = inputs.astype(np.float64).mean(axis=0), inputs.astype(np.float64).std(axis=0)
    varies = spread > 1e-6 * np.maximum(np.abs(mean), 1e-12)  # else it is what float32 rounds
    scale = np.where(varies, 1 / np.where(varies, spread, 1), 0)
    return (inputs - mean) * scale, (queries - mean) * scale


def _answers(task: Task, told: Float[np.ndarray, "M C"], weights: bootstrap.Weights) -> TaskAnswers:
    known = task.scored >= 0
    truth, told, weights = task.scored[known], told[known], weights[:, known]
    called = told.argmax(axis=1)
    shares: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for place, name in enumerate(task.classes):
        own = truth == place
        shares[f"recall/{name}"] = (called == truth), own
        shares[f"one_versus_rest/{name}"] = (called == place) == own, np.ones_like(own)
    shares["accuracy"] = (called == truth), np.ones(len(truth), bool)
    values = {name: float(right[among].mean()) for name, (right, among) in shares.items()}
    resampled = {name: _share(weights, *share) for name, share in shares.items()}
    recalls = [f"recall/{name}" for name in task.classes]
    values["balanced_accuracy"] = float(np.mean([values[name] for name in recalls]))
    resampled["balanced_accuracy"] = np.mean([resampled[name] for name in recalls], axis=0)
    if task.name != GROUP:
        present, score = truth == 1, told[:, 1]
        values |= {
            "auroc": metrics.auroc(present, score),
            "average_precision": metrics.average_precision(present, score),
        }
        resampled |= {
            "auroc": bootstrap.auroc(present, score, weights),
            "average_precision": bootstrap.average_precision(present, score, weights),
        }
    intervals = {name: percentile_interval(drawn) for name, drawn in resampled.items() if len(weights)}
    learned = tuple(int(n) for n in class_counts(task.learned, len(task.classes)))
    return TaskAnswers(task.classes, learned, truth, told, values, intervals)


def _share(weights: bootstrap.Weights, right: np.ndarray, among: np.ndarray) -> Float[np.ndarray, " draws"]:
    """Share of right ones among some rows, in every draw of patients; NaN where none of them was drawn."""
    drawn = weights @ among.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return (weights @ (right & among).astype(np.float64)) / drawn
