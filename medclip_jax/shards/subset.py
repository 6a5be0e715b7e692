"""Which rows of a split a run learns from, and which it is scored on: shares and folds, by patient.

The choice is a pure function of the patients' hashed ids, their strata and the settings: not of the order of
the rows, nor of the machine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, Int64

FOLD = "fold"
"""Name of the split that a choice with folds holds out."""


@dataclass(frozen=True)
class Subset:
    """What of a split to learn from; see `subset_rows`.

    Attributes:
        split: that is chosen from.
        share: of its patients, above 0 and up to 1. Of one seed, a smaller share is part of a larger one.
        folds: into how many the split is cut; 0 for no folds.
        fold: the one that is held out, from 0: it is the split `FOLD`.
        seed: of the cut and of the share.
        by: a finding, measurement or group whose values each share and each fold have alike; "" for none.
    """

    split: str = "train"
    share: float = 1.0
    folds: int = 0
    fold: int = 0
    seed: int = 0
    by: str = ""

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise ValueError(f"subset.share={self.share}: a share is above 0 and at most 1")
        if self.folds < 0 or self.folds == 1:
            raise ValueError(f"subset.folds={self.folds}: give 2 or more, or 0 for no folds")
        if not 0 <= self.fold < max(self.folds, 1):
            of = f"the {self.folds} folds are 0 to {self.folds - 1}" if self.folds else "there are no folds"
            raise ValueError(f"subset.fold={self.fold}: {of}")

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Subset | None:
        """From `config.data`; None where it takes all of the split.

        Raises:
            ValueError: a setting that makes no sense.
        """
        found = cls(config["train_split"], **dict(config.get("subset") or {}))
        return None if found.takes_all else found

    @property
    def takes_all(self) -> bool:
        """Whether the split stays as it is."""
        return self.share == 1 and not self.folds

    def to_json(self) -> dict[str, Any]:
        """As results hold it."""
        return asdict(self)

    def __str__(self) -> str:
        parts = [f"{100 * self.share:g} % of the patients"] * (self.share < 1)
        parts += [f"without fold {self.fold} of {self.folds}"] * bool(self.folds)
        strata = f", stratified by {self.by}" if self.by else ""
        return f"{' '.join(parts)} of {self.split!r}, seed {self.seed}{strata}"


def subset_rows(
    patients: Int64[np.ndarray, " N"],
    strata: Int[np.ndarray, " N"] | None = None,
    *,
    share: float = 1.0,
    folds: int = 0,
    fold: int = 0,
    seed: int = 0,
    held_out: bool = False,
) -> Int64[np.ndarray, " M"]:
    """Rows to learn from, or those of the fold that is held out. No patient is in both.

    In each stratum the patients stand in an order that the seed draws. Folds deal them out in turn, one
    stratum after the other, so that folds differ by one patient at most, and in each stratum by one; what is
    left without `fold` keeps its order, and a share takes the first of each stratum: rounded, and one at
    least.

    Args:
        patients: of each row.
        strata: a whole number for each row; a patient is of the highest that its rows have. None for one.
        share: of the patients, above 0 and up to 1.
        folds: 0 for none.
        fold: held out, from 0.
        seed: of the order.
        held_out: the rows of `fold`, of all of its patients, instead.

    Returns:
        Numbers of the rows, ascending.

    Raises:
        ValueError: fewer patients than folds.
    """
    owners, places = np.unique(patients, return_inverse=True)
    if folds and len(owners) < folds:
        raise ValueError(f"{len(owners)} patients cannot be cut into {folds} folds: take fewer folds")
    kind = np.zeros(len(owners), np.int64)
    if strata is not None:
        codes = np.unique(strata, return_inverse=True)[1]
        np.maximum.at(kind, places, codes)
    drawn = [_place(seed, owner) for owner in owners.tolist()]
    order = np.array(sorted(range(len(owners)), key=lambda one: (kind[one], drawn[one])), np.int64)
    dealt = np.arange(len(order)) % folds if folds else np.full(len(order), -1)
    if held_out:
        return np.flatnonzero(np.isin(places, order[dealt == fold]))
    left = order[dealt != fold]
    taken = [
        group[: max(1, math.floor(share * len(group) + 0.5))]
        for group in np.split(left, np.flatnonzero(np.diff(kind[left])) + 1)
    ]
    return np.flatnonzero(np.isin(places, np.concatenate(taken)))


def _place(seed: int, patient: int) -> bytes:
    return hashlib.blake2b(f"{seed}/{patient}".encode(), digest_size=8).digest()
