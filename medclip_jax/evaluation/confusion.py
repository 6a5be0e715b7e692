"""Counts of right and wrong calls, and the metrics that follow from them, for all bootstrap draws at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from medclip_jax.evaluation.checks import Labels, binary, same_length

Values = Float[np.ndarray, "*draws"]


@dataclass(frozen=True)
class Confusion:
    """How many volumes are called what. One number each, or one for each draw of a bootstrap.

    What is undefined is NaN: sensitivity, balanced accuracy and weighted F1 where a class has no volume,
    precision and F1 where nothing is present and nothing is called. Where something is present and nothing is
    called, precision and F1 are 0.

    Attributes:
        true_positives: present and called present.
        false_positives: absent and called present.
        false_negatives: present and not called.
        true_negatives: absent and not called.
    """

    true_positives: Values
    false_positives: Values
    false_negatives: Values
    true_negatives: Values

    @property
    def present(self) -> Values:
        """Volumes with the finding."""
        return self.true_positives + self.false_negatives

    @property
    def absent(self) -> Values:
        """Volumes without it."""
        return self.true_negatives + self.false_positives

    @property
    def count(self) -> Values:
        """All volumes."""
        return self.present + self.absent

    @property
    def accuracy(self) -> Values:
        """Share of right calls."""
        return _ratio(self.true_positives + self.true_negatives, self.count)

    @property
    def sensitivity(self) -> Values:
        """Share of the present that are called, the recall."""
        return _ratio(self.true_positives, self.present)

    @property
    def specificity(self) -> Values:
        """Share of the absent that are not called."""
        return _ratio(self.true_negatives, self.absent)

    @property
    def balanced_accuracy(self) -> Values:
        """Mean of sensitivity and specificity."""
        return (self.sensitivity + self.specificity) / 2

    @property
    def precision(self) -> Values:
        """Share of the called that are present."""
        called = self.true_positives + self.false_positives
        return np.where((called == 0) & (self.present > 0), 0.0, _ratio(self.true_positives, called))

    @property
    def f1(self) -> Values:
        """Harmonic mean of precision and sensitivity."""
        wrong = self.false_positives + self.false_negatives
        return _ratio(2 * self.true_positives, 2 * self.true_positives + wrong)

    @property
    def weighted_f1(self) -> Values:
        """F1 of presence and F1 of absence, weighted by the number of volumes of each.

        A rare finding that is never called has a weighted F1 near 1: it is no F1 of the finding.
        """
        wrong = self.false_positives + self.false_negatives
        absence = _ratio(2 * self.true_negatives, 2 * self.true_negatives + wrong)
        weighted = (self.present * np.nan_to_num(self.f1) + self.absent * np.nan_to_num(absence)) / np.where(
            self.count > 0, self.count, np.nan
        )
        return np.where((self.present > 0) & (self.absent > 0), weighted, np.nan)


CALLED = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "precision", "f1", "weighted_f1")
"""The metrics of a `Confusion`."""


def count_calls(
    labels: Labels, calls: Labels, weights: Int[np.ndarray, "draws n"] | None = None
) -> Confusion:
    """Count calls.

    Args:
        labels: (n,) whether present, booleans or 0/1.
        calls: (n,) whether called present, likewise.
        weights: how often each volume is in each draw, from `bootstrap.draw_patients`; None for once each,
            which gives single numbers.

    Raises:
        ValueError: lengths differ, or an entry is neither 0 nor 1.
    """
    actual, called = binary(labels, "labels"), binary(calls, "calls")
    same_length(actual, called, "calls")
    cells = np.stack([actual & called, ~actual & called, actual & ~called, ~actual & ~called])
    if weights is None:
        counts = cells.sum(axis=1).astype(np.float64)
    else:
        # In float32, sums of draws are exact up to 2**24 volumes, and BLAS adds them up.
        counts = (cells.astype(np.float32) @ weights.astype(np.float32).T).astype(np.float64)
    return Confusion(*counts)


def crg(confusions: Iterable[Confusion]) -> Values:
    """CRG score: the calls of all findings of all volumes together, errors weighted by how rare findings are.

    With X = labels of all volumes, A = those that are present, r = (X - A) / 2A, U = (X - A) / 2 and
    s = r TP - r FN - FP, the score is U / (2U - s): 1 where every call is right, 1/3 where nothing is called
    and also where everything is, 1/5 where every call is wrong. NaN where nothing or everything is present.

    Args:
        confusions: of each finding.

    References:
        Hamamci et al. 2025, "CRG Score: A Distribution-Aware Clinical Metric for Radiology Report
        Generation"; X and A as in the evaluation code of the VLM3D challenge.
    """
    confusions = tuple(confusions)
    if not confusions:
        return np.float64("nan")
    present = sum(one.present for one in confusions)
    absent = sum(one.absent for one in confusions)
    found = sum(one.true_positives - one.false_negatives for one in confusions)
    called_wrongly = sum(one.false_positives for one in confusions)
    best = absent / 2
    score = _ratio(absent, 2 * present) * found - called_wrongly
    return np.where(absent > 0, _ratio(best, 2 * best - score), np.nan)


def _ratio(numerator: Values, denominator: Values) -> Values:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator == 0, np.nan, numerator / np.where(denominator == 0, 1, denominator))
