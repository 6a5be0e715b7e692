"""Nearest neighbors: do the volumes that lie nearest tell what a volume has?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int64

from medclip_jax.evaluation import bootstrap
from medclip_jax.evaluation.embeddings import EmbeddedSplit, EncodeTexts
from medclip_jax.evaluation.results import TOO_FEW, Table, needs, not_scored, number
from medclip_jax.evaluation.scored import Scored
from medclip_jax.evaluation.task_answers import TaskAnswers, answer, flat_metrics, scored_tasks
from medclip_jax.evaluation.tasks import (
    GROUP,
    describe_features,
    features_of,
    find_questions,
)

DISTANCES = ("cosine", "euclidean")
"""How far two volumes lie from one another."""

_ROWS = 256
"""Volumes whose distances to all others are held at a time."""


@dataclass(frozen=True)
class KnnResult:
    """Classification of a group of classes, and of single findings, by the nearest volumes.

    Attributes:
        answers: k to task (`tasks.GROUP` for the group) to what was found; probabilities are the shares of
            the classes among the k nearest.
        lacking: name to the reason why it was not scored.
        conditions: n, labels, features, distance, protocol, intervals, in words.
        patients: (N,) keyed hash of the patient of each volume of the scored split.
        ids: keyed hashes of these volumes; () where they are not known.
    """

    answers: Mapping[int, Mapping[str, TaskAnswers]]
    lacking: Mapping[str, str]
    conditions: Mapping[str, str]
    patients: Int64[np.ndarray, " N"] = field(default_factory=lambda: np.zeros(0, np.int64))
    ids: Sequence[str] = ()

    @property
    def ks(self) -> tuple[int, ...]:
        """Numbers of neighbors."""
        return tuple(self.answers)

    def task(self, name: str) -> dict[int, TaskAnswers]:
        """One task at every k.

        Args:
            name: the finding, or `tasks.GROUP`.
        """
        return {k: tasks[name] for k, tasks in self.answers.items()}

    @property
    def has_group(self) -> bool:
        """Whether there is a task of classes that exclude one another."""
        return GROUP in self.answers[self.ks[0]]

    @property
    def findings(self) -> list[str]:
        """The tasks of a single finding."""
        return [name for name in self.answers[self.ks[0]] if name != GROUP]

    def metrics(self) -> dict[str, float]:
        """Keys ``5_nearest/...``, and behind that those of `task_answers.flat_metrics`."""
        return {
            f"{k}_nearest/{key}": value
            for k, tasks in self.answers.items()
            for key, value in flat_metrics(tasks).items()
        }

    def scored(self) -> dict[str, Scored]:
        """Of every k, as far as there are so many neighbors."""
        return {
            f"{k}_nearest": Scored(self.ids, self.patients, scored_tasks(defined))
            for k, tasks in self.answers.items()
            if (defined := {name: one for name, one in tasks.items() if not np.isnan(one.values["accuracy"])})
        }

    def group_table(self) -> Table | None:
        """Share of each class that is found, and accuracy over all; None without a group."""
        if not self.has_group:
            return None
        task = self.task(GROUP)
        first = task[self.ks[0]]
        rows = [
            (name, str(learned), str(scored), *(one.shown(f"recall/{name}") for one in task.values()))
            for name, learned, scored in zip(first.classes, first.learned, first.scored, strict=True)
        ]
        counts = str(sum(first.learned)), str(sum(first.scored))
        rows.append(("all", *counts, *(one.shown("accuracy") for one in task.values())))
        most = max(first.scored) / sum(first.scored)
        rows.append(("chance: the most frequent one", "", "", *[number(most)] * len(self.ks)))
        header = ("class", "learned from", "scored", *self._columns())
        return Table("Nearest neighbors: share found of each class", header, tuple(rows), self.conditions)

    def finding_table(self, metric: str = "auroc") -> Table | None:
        """One line for each finding, then the mean of what is shown; None where there are none.

        Args:
            metric: a key of `TaskAnswers.values`.
        """
        if not self.findings:
            return None
        rows, shown = [], []
        for name in self.findings:
            task = self.task(name)
            absent, present = task[self.ks[0]].scored
            cells = [TOO_FEW] * len(self.ks)
            if task[self.ks[0]].is_enough:
                cells = [one.shown(metric) for one in task.values()]
                shown.append([one.values[metric] for one in task.values()])
            rows.append((name, str(present), str(absent), *cells))
        means = [number(mean) for mean in np.mean(shown, axis=0)] if shown else [TOO_FEW] * len(self.ks)
        rows.append(("mean", "", "", *means))
        title = {"auroc": "AUROC"}.get(metric, metric.replace("_", " "))
        header = ("finding", "present", "absent", *self._columns())
        conditions = {**self.conditions, **not_scored(self.lacking)}
        return Table(f"Nearest neighbors: {title}", header, tuple(rows), conditions)

    def tables(self) -> list[Table]:
        """All that there are."""
        found = (self.group_table(), self.finding_table(), self.finding_table("average_precision"))
        return [table for table in found if table is not None]

    def _columns(self) -> list[str]:
        return [f"{k} nearest" for k in self.ks]

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.tables()))


@needs("pooled")
def evaluate_knn(
    data: EmbeddedSplit,
    encode_texts: EncodeTexts,
    *,
    classes: Sequence[str] = (),
    measurement: str = "",
    findings: Sequence[str] = (),
    labels: str = "labels",
    features: str = "pooled",
    distance: str = "cosine",
    train: str = "train",
    holdout: float = 0.0,
    ks: Sequence[int] = (1, 5, 10, 20, 50),
    draws: int = 1000,
    seed: int = 0,
    load_split: Callable[[str], EmbeddedSplit] | None = None,
) -> KnnResult:
    """Tell what a volume has by the k volumes that lie nearest to it. Nothing is trained, and no k is chosen.

    The score of a class, or of a finding's presence, is its share among the k nearest whose label is known.

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
        distance: one of `DISTANCES`.
        train: split whose volumes are the neighbors.
        holdout: share of the patients of the split that is scored while the others are the neighbors, where
            there is no other split; 0 for `train`.
        ks: numbers of neighbors. One beyond the volumes to learn from is undefined.
        draws: bootstrap resamples of patients for the intervals; 0 for none.
        seed: of the bootstrap, and of the cut of `holdout`.
        load_split: embeds another split.

    Returns:
        The result.

    Raises:
        NotEvaluable: nothing is known of any finding, or no class has volumes in both splits.
        ValueError: the splits share patients, an unknown finding or option, or a feature is not finite.
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
    ks = tuple(sorted(set(ks)))
    told = {
        name: {k: np.full((len(queries), len(task.classes)), np.nan) for k in ks}
        for name, task in tasks.items()
    }
    for rows, near in nearness(queries, support, distance):
        for name, task in tasks.items():
            known = task.learned >= 0
            found = neighbor_shares(near[:, known], task.learned[known], len(task.classes), ks)
            for k, shares in found.items():
                told[name][k][rows] = shares
    weights = bootstrap.draw_patients(scored.patients, draws, seed)
    answers = {k: {name: answer(task, told[name][k], weights) for name, task in tasks.items()} for k in ks}
    conditions = {
        **asked.conditions,
        "features": describe_features(data, features),
        "protocol": f"share of the class among the k nearest whose label is known, by {distance} distance; "
        "ties count as their expectation",
        "intervals": bootstrap.described(draws, seed),
    }
    return KnnResult(answers, asked.lacking, conditions, scored.patients, scored.ids)


def nearness(
    queries: Float[np.ndarray, "M P"], support: Float[np.ndarray, "N P"], distance: str
) -> Iterator[tuple[slice, Float[np.ndarray, "m N"]]]:
    """How near each query lies to each volume, some queries at a time; higher is nearer.

    Args:
        queries: features of the volumes that look.
        support: of those that are looked at.
        distance: one of `DISTANCES`.

    Yields:
        Which queries, and the negative squared Euclidean distance: of the cosine, that of vectors brought to
        length 1, whose order is the same. What differs by less than float64 can tell is equal.

    Raises:
        ValueError: another distance.
    """
    if distance not in DISTANCES:
        raise ValueError(f"distance={distance!r}: use one of {', '.join(DISTANCES)}")
    sides = [np.asarray(side, np.float64) for side in (queries, support)]
    if distance == "cosine":
        sides = [side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-12) for side in sides]
    else:
        # Distances stay the same, and differences of large numbers become small ones.
        sides = [side - sides[1].mean(axis=0) for side in sides]
    queries, support = sides
    lengths, others = ((side**2).sum(axis=1) for side in sides)
    step = 1e-12 * max(lengths.max(), others.max(), 1e-300)
    for start in range(0, len(queries), _ROWS):
        rows = slice(start, start + _ROWS)
        apart = lengths[rows, None] + others - 2 * queries[rows] @ support.T
        yield rows, -np.round(apart / step)


def neighbor_shares(
    near: Float[np.ndarray, "M N"], classes: Int64[np.ndarray, " N"], count: int, ks: Sequence[int]
) -> dict[int, Float[np.ndarray, "M C"]]:
    """Share of each class among the k nearest.

    A tie that straddles the k-th place gives its places to its classes in proportion: the expectation over
    random orders.

    Args:
        near: how near each volume is to each query; higher is nearer.
        classes: of each volume, from 0 to count - 1.
        count: of classes.
        ks: numbers of neighbors.

    Returns:
        k to the shares; NaN for k beyond the volumes.
    """
    found = {}
    one_hot = np.eye(count)[classes]
    for k in ks:
        if k > near.shape[1]:
            found[k] = np.full((len(near), count), np.nan)
            continue
        last = np.partition(near, -k, axis=1)[:, -k, None]
        above, tied = near > last, near == last
        places = k - above.sum(axis=1, keepdims=True)
        found[k] = (above @ one_hot + places * (tied @ one_hot) / tied.sum(axis=1, keepdims=True)) / k
    return found
