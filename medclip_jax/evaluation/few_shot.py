"""Few-shot classification: how much do one to 32 examples of each class tell, without training?

Of each class some examples are drawn, with replacement. Features are centered by the mean of all examples and
brought to length 1; a class is the mean of its examples, and a volume belongs to the class that is nearest
in the L3 norm (CMR-CLIP, after SimpleShot).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int64
from scipy.stats import rankdata

from medclip_jax.evaluation.embeddings import EmbeddedSplit, EncodeTexts
from medclip_jax.evaluation.metrics import mean_of_defined
from medclip_jax.evaluation.results import FEWEST, TOO_FEW, Table, needs, not_scored, number
from medclip_jax.evaluation.scored import Scored, ValueTask
from medclip_jax.evaluation.tasks import (
    GROUP,
    Task,
    class_counts,
    describe_features,
    features_of,
    find_questions,
)


@dataclass(frozen=True)
class TaskShots:
    """One task at all numbers of shots.

    Attributes:
        classes: the answers.
        learned: volumes of each class to draw examples from.
        scored: volumes of each class that were scored.
        recall: shots to (draws, C) share of each class' volumes that is found.
        accuracy: shots to (draws,) share of all volumes.
        auroc: shots to (draws,) AUROC of "present", {} for a task of several classes.
        rows: (n,) which of the volumes of the result were scored: those of a known class.
        right: shots to (n,) share of the draws in which a volume was put into its class.
    """

    classes: tuple[str, ...]
    learned: tuple[int, ...]
    scored: tuple[int, ...]
    recall: Mapping[int, Float[np.ndarray, "draws C"]]
    accuracy: Mapping[int, Float[np.ndarray, " draws"]]
    auroc: Mapping[int, Float[np.ndarray, " draws"]]
    rows: Int64[np.ndarray, " n"]
    right: Mapping[int, Float[np.ndarray, " n"]]

    @property
    def is_enough(self) -> bool:
        """Whether there are enough volumes of each class to show the scores."""
        return min(self.scored) >= FEWEST


@dataclass(frozen=True)
class FewShotResult:
    """Few-shot classification of a group of classes, and of single findings.

    Attributes:
        shots: examples of each class.
        tasks: name (`tasks.GROUP` for the group) to what was found.
        lacking: name to the reason why it was not scored.
        conditions: n, labels, features, protocol, in words.
        patients: (N,) keyed hash of the patient of each volume of the scored split.
        ids: keyed hashes of these volumes; () where they are not known.
    """

    shots: tuple[int, ...]
    tasks: Mapping[str, TaskShots]
    lacking: Mapping[str, str]
    conditions: Mapping[str, str]
    patients: Int64[np.ndarray, " N"] = field(default_factory=lambda: np.zeros(0, np.int64))
    ids: Sequence[str] = ()

    @property
    def group(self) -> TaskShots | None:
        """The task of classes that exclude one another; None where there is none."""
        return self.tasks.get(GROUP)

    @property
    def findings(self) -> Mapping[str, TaskShots]:
        """The tasks of a single finding."""
        return {name: task for name, task in self.tasks.items() if name != GROUP}

    def metrics(self) -> dict[str, float]:
        """Keys ``1_shot/accuracy/<task>``, ``1_shot/accuracy_sd/<task>`` and so on.

        Beside ``accuracy`` stand ``balanced_accuracy``, for findings ``auroc``, and for the group
        ``recall/<class>``; ``_sd`` is over the draws. ``..._mean`` is over the findings.
        """
        flat: dict[str, float] = {}
        for shots in self.shots:
            start = f"{shots}_shot"
            for name, task in self.tasks.items():
                values = {"accuracy": task.accuracy, "balanced_accuracy": _balanced(task.recall)}
                for metric, found in (values | ({"auroc": task.auroc} if task.auroc else {})).items():
                    flat[f"{start}/{metric}/{name}"] = float(found[shots].mean())
                    flat[f"{start}/{metric}_sd/{name}"] = _spread(found[shots])
            if self.group:
                recall = self.group.recall[shots].mean(axis=0)
                for name, value in zip(self.group.classes, recall, strict=True):
                    flat[f"{start}/recall/{name}"] = float(value)
            for metric in ("accuracy", "balanced_accuracy", "auroc"):
                found = [flat[f"{start}/{metric}/{name}"] for name in self.findings]
                flat[f"{start}/{metric}_mean"] = mean_of_defined(found)
        return flat

    def scored(self) -> dict[str, Scored]:
        """How often each volume was put into its class, which the accuracy is the mean of, by shots."""
        return {
            f"{shots}_shot": Scored(
                self.ids,
                self.patients,
                {
                    name: ValueTask(task.rows, task.right[shots][None], "accuracy")
                    for name, task in self.tasks.items()
                },
            )
            for shots in self.shots
        }

    def group_table(self) -> Table | None:
        """Share of each class that is found, and accuracy over all; None without a group."""
        if self.group is None:
            return None
        task, rows = self.group, []
        for place, name in enumerate(task.classes):
            cells = [TOO_FEW] * len(self.shots)
            if task.scored[place] >= FEWEST:
                cells = [_mean_and_spread(task.recall[shots][:, place]) for shots in self.shots]
            rows.append((name, str(task.learned[place]), str(task.scored[place]), *cells))
        rows.append(self._means("accuracy", sum(task.learned), sum(task.scored), task.accuracy))
        rows.append(("chance", "", "", *[number(1 / len(task.classes))] * len(self.shots)))
        header = ("class", "to draw from", "scored", *self._columns())
        return Table("Few-shot: share found of each class", header, tuple(rows), self.conditions)

    def finding_table(self, metric: str = "auroc") -> Table | None:
        """One line for each finding, then the mean of what is shown; None where there are none.

        Args:
            metric: "auroc" or "balanced_accuracy".
        """
        if not self.findings:
            return None
        rows, shown = [], []
        for name, task in self.findings.items():
            found = task.auroc if metric == "auroc" else _balanced(task.recall)
            cells = [TOO_FEW] * len(self.shots)
            if task.is_enough:
                cells = [_mean_and_spread(found[shots]) for shots in self.shots]
                shown.append([found[shots].mean() for shots in self.shots])
            rows.append((name, str(task.scored[1]), str(task.scored[0]), *cells))
        cells = map(number, np.mean(shown, axis=0)) if shown else [TOO_FEW] * len(self.shots)
        rows.append(("mean", "", "", *cells))
        title = {"auroc": "AUROC", "balanced_accuracy": "balanced accuracy"}[metric]
        header = ("finding", "present", "absent", *self._columns())
        return Table(
            f"Few-shot: {title}", header, tuple(rows), {**self.conditions, **not_scored(self.lacking)}
        )

    def tables(self) -> list[Table]:
        """All that there are."""
        found = (self.group_table(), self.finding_table(), self.finding_table("balanced_accuracy"))
        return [table for table in found if table is not None]

    def _columns(self) -> list[str]:
        return [f"{shots} {'shots' if shots > 1 else 'shot'}" for shots in self.shots]

    def _means(
        self, name: str, learned: int, scored: int, found: Mapping[int, np.ndarray]
    ) -> tuple[str, ...]:
        return (name, str(learned), str(scored), *(_mean_and_spread(found[shots]) for shots in self.shots))

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.tables()))


@needs("pooled")
def evaluate_few_shot(
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
    shots: Sequence[int] = (1, 2, 4, 8, 16, 32),
    repeats: int = 100,
    seed: int = 0,
    load_split: Callable[[str], EmbeddedSplit] | None = None,
) -> FewShotResult:
    """Classify volumes by the nearest mean of a few examples of each class.

    Args:
        data: the split to score.
        encode_texts: not needed.
        classes: findings of which a study has one, such as diagnoses; volumes with none or several are left
            out. () for no such task.
        measurement: whose values are classes, in place of `classes`, such as a grade; "" for none.
        findings: findings to tell present from absent; () for all columns of the shards,
            or for none where there is a measurement.
        labels: "labels" for ground truth, "findings" for what the reports say.
        features: one of `tasks.FEATURES`.
        train: split to draw examples from.
        holdout: share of the patients of the split that is scored while examples come from the others,
            where there is no other split; 0 for `train`.
        shots: examples of each class. Of one draw, fewer are part of more.
        repeats: draws of examples.
        seed: of the draws, and of the cut of `holdout`.
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
    support, queries = (features_of(split, features) for split in (asked.learned, scored))
    shots = tuple(sorted(set(shots)))
    found = {name: _task_shots(support, queries, task, shots, repeats, seed) for name, task in tasks.items()}
    conditions = {
        **asked.conditions,
        "features": describe_features(data, features),
        "protocol": f"{repeats} draws with replacement, seed {seed}; centered by the examples' mean, length "
        "1, nearest class mean in the L3 norm; ties count as their expectation",
        "±": "standard deviation over the draws",
    }
    return FewShotResult(shots, found, asked.lacking, conditions, scored.patients, scored.ids)


def _task_shots(
    support: np.ndarray, queries: np.ndarray, task: Task, shots: tuple[int, ...], draws: int, seed: int
) -> TaskShots:
    examples = draw_examples(task.learned, len(task.classes), max(shots), draws, seed=[seed, _hash(task)])
    known = task.scored >= 0
    truth, recall, accuracy, auroc, found = task.scored[known], {}, {}, {}, {}
    for count in shots:
        distances = prototype_distances(support, examples[..., :count], queries)[:, known]
        right = _share_right(distances, truth)
        recall[count] = np.stack(
            [right[:, truth == place].mean(axis=1) for place in range(len(task.classes))], axis=1
        )
        accuracy[count] = right.mean(axis=1)
        found[count] = right.mean(axis=0)
        if task.name != GROUP:
            auroc[count] = _aurocs(distances, truth)
    counts = (
        tuple(int(n) for n in class_counts(side, len(task.classes))) for side in (task.learned, task.scored)
    )
    return TaskShots(task.classes, *counts, recall, accuracy, auroc, np.flatnonzero(known), found)


def draw_examples(
    found: Int64[np.ndarray, " N"], classes: int, shots: int, draws: int, *, seed: Sequence[int]
) -> Int[np.ndarray, "draws C shots"]:
    """Rows of examples of each class, with replacement.

    Args:
        found: class of each row, -1 where it is unknown; at least one row of each.
        classes: number of them.
        shots: examples of each.
        draws: how often.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    drawn = [generator.choice(np.flatnonzero(found == place), (draws, shots)) for place in range(classes)]
    return np.stack(drawn, axis=1).astype(np.int32)


def prototype_distances(
    support: Float[np.ndarray, "N P"],
    examples: Int[np.ndarray, "draws C shots"],
    queries: Float[np.ndarray, "M P"],
) -> Float[np.ndarray, "draws M C"]:
    """L3 distance of each query to the mean of each class' examples, in every draw.

    Both are centered by the mean of the draw's examples and brought to length 1 first.

    Args:
        support: features to draw from.
        examples: rows of them.
        queries: features to classify.
    """
    # Explicit transfers: the training loop forbids implicit ones.
    return np.asarray(jax.device_get(_distances(*jax.device_put((support, examples, queries)))), np.float64)


@jax.jit
def _distances(
    support: Float[Array, "N P"], examples: Int[Array, "R C S"], queries: Float[Array, "M P"]
) -> Float[Array, "R M C"]:
    def of_draw(rows: Int[Array, "C S"]) -> Float[Array, "M C"]:
        drawn = support[rows]
        center = drawn.mean(axis=(0, 1))
        classes = _unit(drawn - center).mean(axis=1)
        apart = _unit(queries - center)[:, None] - classes
        return jnp.cbrt((jnp.abs(apart) ** 3).sum(axis=-1))

    return jax.lax.map(of_draw, examples)


def _unit(vectors: Float[Array, "*N P"]) -> Float[Array, "*N P"]:
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _share_right(distances: np.ndarray, truth: np.ndarray) -> Float[np.ndarray, "draws M"]:
    """Probability that a random one of the nearest classes is the true one."""
    # What float32 cannot tell apart is a tie.
    nearest = distances <= (1 + 1e-6) * distances.min(axis=-1, keepdims=True)
    own = np.take_along_axis(nearest, truth[None, :, None], axis=-1)[..., 0]
    return own / nearest.sum(axis=-1)


def _aurocs(distances: np.ndarray, truth: np.ndarray) -> Float[np.ndarray, " draws"]:
    """AUROC of the share that the way to "absent" has of both ways, in every draw."""
    total = distances.sum(axis=-1)
    score = np.divide(distances[..., 0], total, out=np.full(total.shape, 0.5), where=total > 0)
    present = truth == 1
    positives, negatives = int(present.sum()), int((~present).sum())
    places = rankdata(score, axis=1)[:, present].sum(axis=1)
    return (places - positives * (positives + 1) / 2) / (positives * negatives)


def _balanced(recall: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    return {shots: found.mean(axis=1) for shots, found in recall.items()}


def _spread(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def _mean_and_spread(values: np.ndarray) -> str:
    spread = _spread(values)
    return number(float(values.mean())) + ("" if np.isnan(spread) else f" ± {number(spread)}")


def _hash(task: Task) -> int:
    return zlib.crc32(task.name.encode())
