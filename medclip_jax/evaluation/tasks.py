"""Classification tasks from columns of findings: which one of several, or whether one is present."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int8, Int64

from medclip_jax.evaluation.embeddings import EmbeddedSplit, refuse_shared_patients
from medclip_jax.evaluation.results import NotEvaluable, chosen_findings, label_source
from medclip_jax.evaluation.similarity import means

GROUP = "classes"
"""Name of the task of those that exclude one another."""

FEATURES = ("embedding", "pooled", "asap")
"""What a classifier reads of a volume: its place among the texts; what the tower pools before that; or the
mean patch token of the tower's last block, see `volume_features.KINDS`."""

MOST_CLASSES = 20
"""Values of a measurement that can be classes, at most."""

_OF_FEATURES = {
    "embedding": "embedding of length 1",
    "pooled": "pooled by the frozen volume tower",
    "asap": "mean patch token of the frozen tower's last block before a final norm, standardized",
}


@dataclass(frozen=True)
class Task:
    """A question with one answer for each volume.

    Attributes:
        name: the finding, or `GROUP`.
        classes: the answers; ("absent", "present") of a finding.
        learned: (N,) class of each volume to learn from, -1 where it is unknown.
        scored: (M,) the same of each volume to score.
    """

    name: str
    classes: tuple[str, ...]
    learned: Int64[np.ndarray, " N"]
    scored: Int64[np.ndarray, " M"]

    @property
    def lacks(self) -> str:
        """Why it cannot be learned or scored; "" where it can."""
        for what, found in (("to learn from", self.learned), ("to score", self.scored)):
            counts = class_counts(found, len(self.classes))
            if (counts == 0).any():
                none = ", ".join(name for name, count in zip(self.classes, counts, strict=True) if not count)
                return f"no volume {what} is {none}"
        return ""


def class_counts(found: Int64[np.ndarray, " N"], classes: int) -> Int64[np.ndarray, " C"]:
    """Volumes of each class.

    Args:
        found: class of each volume, -1 where it is unknown.
        classes: number of them.
    """
    return np.bincount(found[found >= 0], minlength=classes)


def class_of_each(
    columns: Mapping[str, Int8[np.ndarray, " N"]], classes: Sequence[str]
) -> Int64[np.ndarray, " N"]:
    """The one class that is present; -1 where none is, or several are.

    Args:
        columns: finding to 1 present, -1 absent, 0 unknown.
        classes: findings that exclude one another.
    """
    present = np.stack([columns[name] == 1 for name in classes])
    return np.where(present.sum(axis=0) == 1, present.argmax(axis=0), -1).astype(np.int64)


def find_tasks(
    learned: EmbeddedSplit,
    scored: EmbeddedSplit,
    *,
    classes: Sequence[str],
    findings: Sequence[str],
    labels: str,
    measurement: str = "",
) -> tuple[dict[str, Task], dict[str, str]]:
    """The tasks that two splits have the labels for.

    Args:
        learned: to learn from.
        scored: to score.
        classes: findings that exclude one another; () for no such task.
        findings: those to tell present from absent; () for all columns.
        labels: "labels" for ground truth, "findings" for what the reports say.
        measurement: whose values are the classes, instead of `classes`; "" for none.

    Returns:
        Name to task; and name to the reason of those that cannot be.

    Raises:
        NotEvaluable: there is none, or no such measurement.
        ValueError: an unknown finding, a single class, or both classes and a measurement.
    """
    group = find_group(learned, scored, classes=classes, labels=labels, measurement=measurement)
    tasks = {GROUP: group} if group else {}
    sides = ({}, {})
    if findings or not measurement:
        sides = learned.findings(labels), scored.findings(labels)
    names = chosen_findings(findings, sides[1], scored.definitions) if sides[1] else ()
    for name in names:
        found = [np.where(side[name] == 0, -1, side[name] == 1).astype(np.int64) for side in sides]
        tasks[name] = Task(name, ("absent", "present"), *found)
    lacking = {name: task.lacks for name, task in tasks.items() if task.lacks}
    if len(lacking) == len(tasks):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in lacking.items())
        raise NotEvaluable(f"no finding has labels enough: {reasons}")
    return {name: task for name, task in tasks.items() if name not in lacking}, lacking


def find_group(
    learned: EmbeddedSplit,
    scored: EmbeddedSplit,
    *,
    classes: Sequence[str] = (),
    labels: str = "labels",
    measurement: str = "",
) -> Task | None:
    """The task of classes that exclude one another; None where none was asked for.

    Args:
        learned: to learn from.
        scored: to score.
        classes: findings that exclude one another; () for none.
        labels: "labels" for ground truth, "findings" for what the reports say.
        measurement: whose values are the classes, lowest first, instead of `classes`; one that is never
            learned from is unknown. "" for none.

    Raises:
        NotEvaluable: there is no such measurement, or it has too many values, or one.
        ValueError: an unknown finding, a single class, or both classes and a measurement.
    """
    if measurement and classes:
        raise ValueError(f"classes={classes!r} and measurement={measurement!r}: give one of them")
    if measurement:
        return _values_task(learned, scored, measurement)
    if not classes:
        return None
    sides = learned.findings(labels), scored.findings(labels)
    group = chosen_findings(classes, sides[1], scored.definitions)
    if len(group) == 1:
        raise ValueError(f"classes={group[0]!r} alone: name two or more that exclude one another")
    return Task(GROUP, group, *(class_of_each(side, group) for side in sides))


def _values_task(learned: EmbeddedSplit, scored: EmbeddedSplit, measurement: str) -> Task:
    sides = []
    for split in (learned, scored):
        if measurement not in split.measurements:
            raise NotEvaluable(
                f"no measurement {measurement!r} in split {split.name!r}; it has: "
                f"{', '.join(split.measurements) or 'none'}"
            )
        sides.append(np.asarray(split.measurements[measurement], np.float64))
    values = np.unique(sides[0][~np.isnan(sides[0])])
    if not 2 <= len(values) <= MOST_CLASSES:
        raise NotEvaluable(
            f"measurement {measurement!r} has {len(values)} values in split {learned.name!r}: 2 to "
            f"{MOST_CLASSES} can be classes; evaluator probe asks for thresholds of more"
        )
    found = [
        np.where(np.isin(side, values), np.searchsorted(values, np.nan_to_num(side)), -1).astype(np.int64)
        for side in sides
    ]
    return Task(GROUP, tuple(f"{measurement} {value:g}" for value in values), *found)


@dataclass(frozen=True)
class Questions:
    """Tasks, with the volumes that they are learned from and those that they are scored on.

    Attributes:
        learned: volumes to learn from.
        scored: volumes to score.
        tasks: name to task.
        lacking: name to the reason of those that cannot be learned or scored.
        conditions: n and labels, in words.
    """

    learned: EmbeddedSplit
    scored: EmbeddedSplit
    tasks: Mapping[str, Task]
    lacking: Mapping[str, str]
    conditions: Mapping[str, str]


def find_questions(
    data: EmbeddedSplit,
    load_split: Callable[[str], EmbeddedSplit] | None,
    *,
    train: str,
    holdout: float,
    seed: int,
    classes: Sequence[str],
    measurement: str,
    findings: Sequence[str],
    labels: str,
) -> Questions:
    """The tasks of two splits, or of one whose patients are cut in two.

    Args:
        data: the split to score.
        load_split: embeds another split.
        train: the one to learn from.
        holdout: share of the patients of `data` that is scored, the others are learned from; 0 for `train`.
        seed: of the cut.
        classes: see `find_tasks`, as of the others.
        measurement: likewise.
        findings: likewise.
        labels: likewise.

    Raises:
        NotEvaluable: see `find_tasks`.
        ValueError: the splits share patients, or `load_split` is missing; and see `find_tasks`.
    """
    learned, scored, how = _learned_and_scored(data, load_split, train, holdout, seed)
    tasks, lacking = find_tasks(
        learned, scored, classes=classes, findings=findings, labels=labels, measurement=measurement
    )
    conditions = {"n": f"{scored.counted}; {how}", "labels": label_source(labels)}
    return Questions(learned, scored, tasks, lacking, conditions)


def _learned_and_scored(
    data: EmbeddedSplit,
    load_split: Callable[[str], EmbeddedSplit] | None,
    train: str,
    holdout: float,
    seed: int,
) -> tuple[EmbeddedSplit, EmbeddedSplit, str]:
    """What is learned from, what is scored, and how they came about in words."""
    if not holdout:
        if load_split is None:
            raise ValueError("load_split must say where the split to learn from is")
        learned = load_split(train)
        refuse_shared_patients(data, learned)
        return learned, data, f"learned from {len(learned.patients)} of split {train!r}"
    patients = np.random.default_rng(seed).permutation(np.unique(data.patients))
    kept = np.isin(data.patients, patients[: max(1, round(holdout * len(patients)))])
    learned, scored = data.take(np.flatnonzero(~kept)), data.take(np.flatnonzero(kept))
    how = f"learned from the {len(learned.patients)} of the other patients of this split, seed {seed}"
    return learned, scored, how


def features_of(split: EmbeddedSplit, kind: str) -> Float[np.ndarray, "N P"]:
    """What a classifier reads.

    Args:
        split: with `pooled` where that is wanted.
        kind: one of `FEATURES`.

    Raises:
        NotEvaluable: the split has none of that kind.
        ValueError: one of them is not finite.
    """
    found = means(split.volumes) if kind == "embedding" else getattr(split, kind)
    if found is None:
        raise NotEvaluable(f"split {split.name!r} was embedded without features={kind!r}")
    wrong = np.flatnonzero(~np.isfinite(found).all(axis=1))
    if wrong.size:
        raise ValueError(
            f"the features of {wrong.size} volumes of split {split.name!r} are not finite, the first that of "
            f"volume {wrong[0]}: look at that volume, or at the model's weights"
        )
    return np.asarray(found, np.float32)


def describe_features(data: EmbeddedSplit, kind: str) -> str:
    """The same in words, for the conditions of a table.

    Args:
        data: of the model.
        kind: one of `FEATURES`.
    """
    width = features_of(data, kind).shape[1]
    pooling = "" if kind == "asap" else f"; {data.pooling}"
    return f"{width} numbers, {_OF_FEATURES[kind]}{pooling}"
