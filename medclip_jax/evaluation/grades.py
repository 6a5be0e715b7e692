"""Ordered grades told by cumulative thresholds: "at least 1", "at least 2", and so on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int8, Int64

from medclip_jax.evaluation import bootstrap
from medclip_jax.evaluation.results import NotEvaluable


def threshold_columns(
    measurements: Mapping[str, Float[np.ndarray, " N"]], name: str, thresholds: Sequence[float]
) -> dict[str, Int8[np.ndarray, " N"]]:
    """A column for each threshold: 1 where the measurement is so high, -1 where it is lower, 0 unknown (NaN).

    Args:
        measurements: of the split.
        name: of the measurement; "" for no columns.
        thresholds: lowest first.

    Raises:
        NotEvaluable: there is no such measurement.
        ValueError: no threshold, or not in ascending order.
    """
    if not name:
        return {}
    if name not in measurements:
        raise NotEvaluable(
            f"no measurement {name!r} in the records; they hold: {', '.join(measurements) or 'none'}"
        )
    if not thresholds or list(thresholds) != sorted(set(thresholds)):
        raise ValueError(f"thresholds={tuple(thresholds)} of {name!r}: give one or more, lowest first")
    values = np.asarray(measurements[name], np.float64)
    return {
        threshold_name(name, cut): np.where(np.isnan(values), 0, np.where(values >= cut, 1, -1)).astype(
            np.int8
        )
        for cut in thresholds
    }


def threshold_name(name: str, threshold: float) -> str:
    """What the column of a threshold is called: ``cac_grade>=1``."""
    return f"{name}>={threshold:g}"


def grade_of(log_odds: Float[np.ndarray, "T n"]) -> Int64[np.ndarray, " n"]:
    """The grade, from 0 to T: the number of thresholds that are reached with even odds or better.

    A threshold counts only where all lower ones are reached, so that the thresholds' regressions, which know
    nothing of one another, never contradict.

    Args:
        log_odds: of each threshold, lowest first.
    """
    return np.logical_and.accumulate(np.asarray(log_odds) >= 0, axis=0).sum(axis=0).astype(np.int64)


def grade_metrics(
    truth: Int64[np.ndarray, " n"], told: Int64[np.ndarray, " n"], grades: int, weights: bootstrap.Weights
) -> dict[str, tuple[float, Float[np.ndarray, " draws"]]]:
    """How far grades agree, and in every draw of patients.

    Args:
        truth: true grades, from 0 to grades - 1.
        told: those that were told.
        grades: how many there are.
        weights: from `bootstrap.draw_patients`, of the volumes; (0, n) for no intervals.

    Returns:
        Value, and that of every draw, of "grade_accuracy", the share of volumes with their own grade;
        "grade_error", the mean of |told - true|; "grade_kappa", Cohen's kappa with quadratic weights, NaN
        where all are of one and the same grade.
    """
    pairs = np.zeros((len(truth), grades, grades))
    pairs[np.arange(len(truth)), truth, told] = 1
    whole = _of_table(pairs.sum(axis=0)[None])
    # Each draw's table of true and told grades.
    drawn = _of_table(np.tensordot(weights.astype(np.float64), pairs, axes=1))
    return {name: (float(value[0]), drawn[name]) for name, value in whole.items()}


def _of_table(counts: Float[np.ndarray, "draws G G"]) -> dict[str, Float[np.ndarray, " draws"]]:
    grades = counts.shape[-1]
    apart = np.abs(np.subtract.outer(np.arange(grades), np.arange(grades)))
    total = counts.sum(axis=(1, 2))
    expected = np.einsum("dt,dg,tg->d", counts.sum(axis=2), counts.sum(axis=1), apart**2) / total
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "grade_accuracy": np.trace(counts, axis1=1, axis2=2) / total,
            "grade_error": (counts * apart).sum(axis=(1, 2)) / total,
            "grade_kappa": np.where(
                expected > 0, 1 - (counts * apart**2).sum(axis=(1, 2)) / expected, np.nan
            ),
        }
