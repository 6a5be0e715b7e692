"""What predicted uncertainty is worth, as pure functions of NumPy arrays, under the rules of `metrics`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from medclip_jax.evaluation.metrics import auroc


class RiskCoverage(NamedTuple):
    """Mean loss of the most certain entries, as ever more of them are answered.

    Attributes:
        coverage: (n,) share that is answered, 1/n to 1.
        risk: (n,) mean loss of those.
        area: mean of `risk`; NaN for no entries.
        random: area of a random order, the mean loss.
        oracle: area of the best order, all losses last.
    """

    coverage: Float[np.ndarray, " n"]
    risk: Float[np.ndarray, " n"]
    area: float
    random: float
    oracle: float

    @property
    def relative(self) -> float:
        """``(area - oracle) / (random - oracle)``: 0 is the best order, 1 worth no more than a random one.

        NaN where all losses are equal: then no order is better than another.
        """
        spread = self.random - self.oracle
        return (self.area - self.oracle) / spread if spread > 0 else float("nan")


class Calibration(NamedTuple):
    """Predicted probability against observed frequency, in bins of equal width.

    Attributes:
        counts: (bins,) entries.
        probability: (bins,) mean predicted probability; NaN in an empty bin.
        frequency: (bins,) share that is positive; NaN in an empty bin.
        error: expected calibration error, ``sum of counts |probability - frequency| / n``; NaN for n = 0.
    """

    counts: Int[np.ndarray, " bins"]
    probability: Float[np.ndarray, " bins"]
    frequency: Float[np.ndarray, " bins"]
    error: float


def spearman(one: Float[np.ndarray, " n"], other: Float[np.ndarray, " n"]) -> float:
    """Spearman's rank correlation: Pearson's of the ranks, equal values sharing their mean rank.

    Args:
        one: (n,).
        other: (n,).

    Returns:
        In [-1, 1]; NaN where either holds fewer than two distinct values.

    Raises:
        ValueError: lengths differ, or a value is NaN.
    """
    one, other = _checked(one, "one"), _checked(other, "other")
    if one.size != other.size:
        raise ValueError(f"{one.size} values against {other.size}: give one for each")
    if np.unique(one).size < 2 or np.unique(other).size < 2:
        return float("nan")
    first, second = (ranked - ranked.mean() for ranked in (_ranks(one), _ranks(other)))
    return float(np.sum(first * second) / np.sqrt(np.sum(first**2) * np.sum(second**2)))


def risk_coverage(losses: Float[np.ndarray, " n"], uncertainty: Float[np.ndarray, " n"]) -> RiskCoverage:
    """Selective prediction: answer the most certain first, and see what is wrong among the answers.

    Equal uncertainties are taken in a random order, and the risk is its expectation.

    Args:
        losses: (n,) of each entry, e.g. 1 for a wrong call and 0 for a right one.
        uncertainty: (n,) higher is answered later; any monotone scale.

    Returns:
        The curve and its area.

    Raises:
        ValueError: lengths differ, or a value is NaN.

    References:
        Geifman and El-Yaniv 2017, "Selective classification for deep neural networks"; the area and its
        oracle: Geifman, Uziel and El-Yaniv 2019, "Bias-reduced uncertainty estimation", section 4.
    """
    losses, uncertainty = _checked(losses, "losses"), _checked(uncertainty, "uncertainty")
    if losses.size != uncertainty.size:
        raise ValueError(f"{losses.size} losses but {uncertainty.size} uncertainties: give one for each")
    if not losses.size:
        nan = float("nan")
        return RiskCoverage(np.zeros(0), np.zeros(0), nan, nan, nan)
    risk, best = _selective_risk(losses, uncertainty), _selective_risk(losses, losses)
    coverage = np.arange(1, losses.size + 1) / losses.size
    return RiskCoverage(coverage, risk, float(risk.mean()), float(losses.mean()), float(best.mean()))


def calibration(
    labels: Shaped[np.ndarray, " n"], probabilities: Float[np.ndarray, " n"], bins: int = 10
) -> Calibration:
    """Reliability diagram and expected calibration error of probabilities that something is present.

    Args:
        labels: (n,) booleans or 0/1.
        probabilities: (n,) in [0, 1].
        bins: of equal width; a value on an edge belongs to the upper bin, 1 to the last.

    Returns:
        The bins and the error.

    Raises:
        ValueError: lengths differ, a label is neither 0 nor 1, a probability is none, or `bins` < 1.

    References:
        Guo et al. 2017, "On calibration of modern neural networks", equation 3.
    """
    probabilities = _checked(probabilities, "probabilities")
    auroc(labels, probabilities)  # its checks of labels and lengths
    if bins < 1:
        raise ValueError(f"bins={bins}: give at least 1")
    if probabilities.size and (probabilities.min() < 0 or probabilities.max() > 1):
        raise ValueError('probabilities lie outside [0, 1]: take score="probability"')
    place = np.minimum((probabilities * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        probability = np.bincount(place, probabilities, bins) / counts
        frequency = np.bincount(place, np.asarray(labels, np.float64), bins) / counts
    gaps = counts * np.abs(probability - frequency)
    error = float(np.nansum(gaps) / probabilities.size) if probabilities.size else float("nan")
    return Calibration(counts, probability, frequency, error)


def _selective_risk(losses: np.ndarray, uncertainty: np.ndarray) -> np.ndarray:
    order = np.argsort(uncertainty, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(uncertainty[order]) != 0, True)) + 1
    answered = np.arange(1, losses.size + 1)
    # Inside a tie the expected loss grows in a straight line.
    lost = np.interp(answered, np.append(0, ends), np.append(0.0, np.cumsum(losses[order])[ends - 1]))
    return lost / answered


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - 0.5 * (counts - 1))[place]


def _checked(values: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or np.isnan(values).any():
        broken = "hold NaN: find the embedding that is not finite" if values.ndim == 1 else "must be (n,)"
        raise ValueError(f"{name} {broken}")
    return values
