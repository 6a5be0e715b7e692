"""What a probe learns from, chooses on and is scored on: shares of labels, and folds of patients."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int8, Int64

from medclip_jax.evaluation.embeddings import EmbeddedSplit, refuse_shared_patients
from medclip_jax.shards.subset import subset_rows

FEWEST_PATIENTS = 2
"""So many with a finding, and so many without, a regression wants to learn from."""


@dataclass(frozen=True)
class Cut:
    """Rows to learn from, to choose on and to score, of three splits or of one; no patient is in two of them.

    Attributes:
        learned: rows of the split to learn from.
        chosen: of that to choose on.
        scored: of that to score.
    """

    learned: Int64[np.ndarray, " N"]
    chosen: Int64[np.ndarray, " M"]
    scored: Int64[np.ndarray, " K"]


def cut_into_folds(
    patients: Int64[np.ndarray, " N"], strata: Int[np.ndarray, " N"], folds: int, seed: int
) -> list[Cut]:
    """Each fold once scored, with the next one to choose on, and all others to learn from.

    Args:
        patients: of each row of the split.
        strata: what each fold shall have alike, see `shards.subset.subset_rows`.
        folds: three or more.
        seed: of the folds.

    Raises:
        ValueError: fewer folds, or fewer patients than folds.
    """
    if folds < 3:
        raise ValueError(
            f"folds={folds}: one is scored, one chooses, the others are learned from: give 3 or more"
        )
    held = [
        subset_rows(patients, strata, folds=folds, fold=fold, seed=seed, held_out=True)
        for fold in range(folds)
    ]
    cuts = []
    for fold in range(folds):
        chosen = held[(fold + 1) % folds]
        others = [rows for place, rows in enumerate(held) if place not in (fold, (fold + 1) % folds)]
        cuts.append(Cut(np.sort(np.concatenate(others)), chosen, held[fold]))
    return cuts


def probe_splits(
    data: EmbeddedSplit,
    load_split: Callable[[str], EmbeddedSplit] | None,
    train: str,
    validation: str,
    folds: int,
) -> tuple[EmbeddedSplit, EmbeddedSplit, EmbeddedSplit]:
    """To learn from, to choose on, to score: with folds one and the same.

    Args:
        data: to score.
        load_split: embeds another split.
        train: to learn from.
        validation: to choose on.
        folds: 0 for these splits.

    Raises:
        ValueError: they are not three, or share patients; or `load_split` is missing.
    """
    if folds:
        return data, data, data
    if load_split is None:
        raise ValueError("load_split must say where other splits are")
    learned, chosen_on = load_split(train), load_split(validation)
    if len({train, validation, data.name}) < 3:
        raise ValueError(
            f"a probe learns, chooses and scores on splits of their own, not on {train}, {validation} and "
            f"{data.name}: set train and validation to two others"
        )
    refuse_shared_patients(data, learned, chosen_on)
    return learned, chosen_on, data


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
    for group in patients_by_class(column, patients):
        take = max(FEWEST_PATIENTS, math.floor(share * len(group) + 0.5))
        kept.append(generator.permutation(group)[:take])
    return np.flatnonzero((column != 0) & np.isin(patients, np.concatenate(kept)))


def patients_by_class(column: np.ndarray, patients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Patients with the finding, and those with known labels and without it; sorted.

    Args:
        column: 1 present, -1 absent, 0 unknown.
        patients: of each row.
    """
    present = np.unique(patients[column == 1])
    return present, np.setdiff1d(patients[column == -1], present)


def seed_of(name: str) -> int:
    """A number that follows from the name of a finding, so that each has draws of its own."""
    return zlib.crc32(name.encode())
