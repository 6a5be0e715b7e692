"""Classification tasks from columns of findings: which one of several, or whether one is present."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int8, Int64

from medclip_jax.evaluation.embeddings import EmbeddedSplit, refuse_shared_patients
from medclip_jax.evaluation.results import NotEvaluable, chosen_findings
from medclip_jax.evaluation.similarity import means

GROUP = "classes"
"""Name of the task of those that exclude one another."""

FEATURES = ("embedding", "pooled")
"""What a classifier reads of a volume: its place among the texts, or what the tower pools before that."""


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
) -> tuple[dict[str, Task], dict[str, str]]:
    """The tasks that two splits have the labels for.

    Args:
        learned: to learn from.
        scored: to score.
        classes: findings that exclude one another; () for no such task.
        findings: those to tell present from absent; () for all columns.
        labels: "labels" for ground truth, "findings" for what the reports say.

    Returns:
        Name to task; and name to the reason of those that cannot be.

    Raises:
        NotEvaluable: there is none.
        ValueError: an unknown finding, or a single class.
    """
    sides = learned.findings(labels), scored.findings(labels)
    group = chosen_findings(classes, sides[1], scored.definitions) if classes else ()
    if len(group) == 1:
        raise ValueError(f"classes={group[0]!r} alone: name two or more that exclude one another")
    tasks = {}
    if group:
        tasks[GROUP] = Task(GROUP, group, *(class_of_each(side, group) for side in sides))
    for name in chosen_findings(findings, sides[1], scored.definitions):
        found = [np.where(side[name] == 0, -1, side[name] == 1).astype(np.int64) for side in sides]
        tasks[name] = Task(name, ("absent", "present"), *found)
    lacking = {name: task.lacks for name, task in tasks.items() if task.lacks}
    if len(lacking) == len(tasks):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in lacking.items())
        raise NotEvaluable(f"no finding has labels enough: {reasons}")
    return {name: task for name, task in tasks.items() if name not in lacking}, lacking


def learned_and_scored(
    data: EmbeddedSplit,
    load_split: Callable[[str], EmbeddedSplit] | None,
    *,
    train: str,
    holdout: float,
    seed: int,
) -> tuple[EmbeddedSplit, EmbeddedSplit, str]:
    """What is learned from and what is scored: two splits, or the patients of one cut in two.

    Args:
        data: the split to score.
        load_split: embeds another split.
        train: the one to learn from.
        holdout: share of the patients of `data` that is scored, the others are learned from; 0 for `train`.
        seed: of the cut.

    Returns:
        Both, and how they came about in words.

    Raises:
        ValueError: they share patients, or `load_split` is missing.
    """
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
        ValueError: one of them is not finite.
    """
    found = split.pooled if kind == "pooled" else means(split.volumes)
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
    what = "pooled by the frozen volume tower" if kind == "pooled" else "embedding of length 1"
    return f"{width} numbers, {what}; {data.pooling}"
