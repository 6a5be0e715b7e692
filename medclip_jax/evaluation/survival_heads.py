"""Survival heads on frozen features: proportional hazards, and a logistic regression for each interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from medclip_jax.evaluation.logistic import fit_logistic

Inputs = Float[np.ndarray, "N K"]
Times = Float[np.ndarray, " N"]
Events = Bool[np.ndarray, " N"]


@dataclass(frozen=True)
class CoxHead:
    """A fitted proportional hazards model.

    Attributes:
        weights: (K,) of the inputs; their sum with these is the log hazard up to a constant.
        times: (k,) of the events that it was fitted on, increasing.
        baseline: (k,) cumulative hazard at each of them where the log hazard is 0.
    """

    weights: Float[np.ndarray, " K"]
    times: Float[np.ndarray, " k"]
    baseline: Float[np.ndarray, " k"]

    def risk(self, inputs: Inputs) -> Times:
        """By which patients are ranked: the log hazard."""
        return inputs @ self.weights

    def risk_by(self, inputs: Inputs, horizons: Sequence[float]) -> Float[np.ndarray, "N T"]:
        """By which patients are ranked at each horizon: everywhere the same."""
        return np.tile(self.risk(inputs)[:, None], len(horizons))

    def probabilities(self, inputs: Inputs, horizons: Sequence[float]) -> Float[np.ndarray, "N T"]:
        """Of the event by each horizon."""
        hazard = np.append(0.0, self.baseline)[np.searchsorted(self.times, horizons, "right")]
        return -np.expm1(-np.exp(self.risk(inputs))[:, None] * hazard)

    def loss(self, inputs: Inputs, time: Times, event: Events, horizons: Sequence[float]) -> float:
        """Negative log partial likelihood, mean over events."""
        return partial_likelihood(self.risk(inputs), time, event)[0] / max(int(event.sum()), 1)


def fit_cox(
    inputs: Inputs, time: Times, event: Events, penalties: Sequence[float], horizons: Sequence[float] = ()
) -> list[CoxHead]:
    """Proportional hazards with an L2 penalty, ties after Efron.

    Each minimizes ``negative log partial likelihood + penalty / 2 |w|^2``; the cumulative hazard is
    Breslow's.

    Args:
        inputs: standardized.
        time: of event or censoring.
        event: whether it was the event; at least one.
        penalties: above 0, one for each head. From strong to weak is fastest: each starts where the last
            ended.
        horizons: not needed.

    Returns:
        One head for each penalty.

    References:
        Efron 1977, "The efficiency of Cox's likelihood function for censored data"; Breslow 1972, discussion
        of Cox, "Regression models and life-tables", for the baseline.
    """
    from scipy.optimize import minimize  # takes a while: not for whoever fits nothing

    inputs = np.asarray(inputs, np.float64)
    basis = np.eye(inputs.shape[1])
    if len(inputs) < inputs.shape[1]:
        # The best weights are a sum of inputs: fewer numbers say the same.
        _, _, basis = np.linalg.svd(inputs, full_matrices=False)
        inputs = inputs @ basis.T
    weights, heads = np.zeros(len(basis)), []
    for penalty in penalties:

        def objective(w: np.ndarray, penalty: float = penalty) -> tuple[float, np.ndarray]:
            value, slope = partial_likelihood(inputs @ w, time, event)
            return value + penalty / 2 * (w @ w), inputs.T @ slope + penalty * w

        def curvature(w: np.ndarray, penalty: float = penalty) -> np.ndarray:
            return _curvature(inputs, inputs @ w, time, event) + penalty * np.eye(len(w))

        options = {"gtol": 1e-6, "maxiter": 200}
        if len(basis):  # a collapsed tower leaves no inputs
            weights = minimize(
                objective, weights, jac=True, hess=curvature, method="trust-exact", options=options
            ).x
        heads.append(CoxHead(weights @ basis, *_baseline(inputs @ weights, time, event)))
    return heads


def partial_likelihood(risk: Times, time: Times, event: Events) -> tuple[float, Float[np.ndarray, " N"]]:
    """Negative log partial likelihood, ties after Efron, and its gradient in the risks.

    That of `losses.survival.cox` in float64, and without an array of pairs.

    Args:
        risk: log hazard up to a constant.
        time: of event or censoring.
        event: whether it was the event.
    """
    if not event.any():
        return 0.0, np.zeros(len(risk))
    sets = _RiskSets.of(risk, time, event)
    value = float(np.sum(np.log(sets.total) + risk.max()) - risk[event].sum())
    return value, sets.expected - event


@dataclass(frozen=True)
class _RiskSets:
    """Who is at risk at each event, the l-th of d at one time without l / d of those who have it then.

    Attributes:
        share: (N,) exp(risk), over that of the highest.
        own: (N,) place of each row's time among the distinct times.
        place: (E,) the same of each event.
        removed: (E,) l / d.
        total: (E,) sum of the shares of those at risk.
        expected: (N,) events that each row would have by its time.
    """

    share: Times
    own: np.ndarray
    place: np.ndarray
    removed: np.ndarray
    total: np.ndarray
    expected: Times

    @classmethod
    def of(cls, risk: Times, time: Times, event: Events) -> _RiskSets:
        share = np.exp(risk - risk.max())
        times, own = np.unique(time, return_inverse=True)
        count = len(times)
        at_risk = np.bincount(own, share, count)[::-1].cumsum()[::-1]
        tied = np.bincount(own[event], share[event], count)
        events = np.bincount(own[event], minlength=count)
        place = np.repeat(np.arange(count), events)
        removed = (np.arange(len(place)) - (np.cumsum(events) - events)[place]) / events[place]
        total = at_risk[place] - removed * tied[place]
        reached = np.cumsum(np.bincount(place, 1 / total, count))[own]
        of_own = np.where(event, np.bincount(place, removed / total, count)[own], 0.0)
        return cls(share, own, place, removed, total, share * (reached - of_own))


def _curvature(inputs: Inputs, risk: Times, time: Times, event: Events) -> Float[np.ndarray, "K K"]:
    """Second derivatives of `partial_likelihood` in the weights: covariances of the inputs at the events."""
    sets = _RiskSets.of(risk, time, event)
    weighted = inputs * sets.share[:, None]
    sums = np.zeros((int(sets.own.max()) + 1, inputs.shape[1]))
    tied = np.zeros_like(sums)
    np.add.at(sums, sets.own, weighted)
    np.add.at(tied, sets.own[event], weighted[event])
    at_risk = sums[::-1].cumsum(axis=0)[::-1]
    means = (at_risk[sets.place] - sets.removed[:, None] * tied[sets.place]) / sets.total[:, None]
    return (inputs * sets.expected[:, None]).T @ inputs - means.T @ means


def _baseline(risk: Times, time: Times, event: Events) -> tuple[np.ndarray, np.ndarray]:
    times, own = np.unique(time, return_inverse=True)
    at_risk = np.bincount(own, np.exp(risk), len(times))[::-1].cumsum()[::-1]
    events = np.bincount(own, event, len(times))
    return times[events > 0], np.cumsum(events / at_risk)[events > 0]


@dataclass(frozen=True)
class DiscreteHead:
    """A fitted hazard for each interval.

    Attributes:
        weights: (T, K) of the inputs.
        intercepts: (T,); both together are the logits of the hazards.
    """

    weights: Float[np.ndarray, "T K"]
    intercepts: Float[np.ndarray, " T"]

    def risk(self, inputs: Inputs) -> Times:
        """By which patients are ranked: the cumulative hazard at the last horizon."""
        return self.risk_by(inputs)[:, -1]

    def risk_by(self, inputs: Inputs, horizons: Sequence[float] = ()) -> Float[np.ndarray, "N T"]:
        """By which patients are ranked at each horizon it was fitted with: the cumulative hazard there."""
        return np.cumsum(np.logaddexp(0, self._logits(inputs)), axis=1)

    def probabilities(self, inputs: Inputs, horizons: Sequence[float] = ()) -> Float[np.ndarray, "N T"]:
        """Of the event by each horizon that it was fitted with."""
        return -np.expm1(-self.risk_by(inputs))

    def loss(self, inputs: Inputs, time: Times, event: Events, horizons: Sequence[float]) -> float:
        """Negative log likelihood, mean over rows."""
        logits = self._logits(inputs)
        total = 0.0
        for place, (rows, happened) in enumerate(intervals(time, event, horizons)):
            total += np.logaddexp(0, np.where(happened, -1.0, 1.0) * logits[rows, place]).sum()
        return float(total) / max(len(time), 1)

    def _logits(self, inputs: Inputs) -> np.ndarray:
        return inputs @ self.weights.T + self.intercepts


def fit_discrete(
    inputs: Inputs, time: Times, event: Events, penalties: Sequence[float], horizons: Sequence[float]
) -> list[DiscreteHead]:
    """Hazards in the intervals that end at the horizons, with an L2 penalty.

    The likelihood is that of `losses.survival.discrete_hazards`. It falls apart into a logistic regression
    for each interval, of those who begin it and of whom it is known how they end it. Where one has no events,
    or nothing else, its hazard is the same for all: (events + 1/2) / (rows + 1).

    Args:
        inputs: standardized.
        time: of event or censoring.
        event: whether it was the event.
        penalties: above 0, one for each head; beside the sum over rows.
        horizons: ends of the intervals, increasing.

    Returns:
        One head for each penalty.

    References:
        Gensheimer and Narasimhan 2019, "A scalable discrete-time survival model for neural networks".
    """
    found = np.zeros((len(penalties), len(horizons), inputs.shape[1] + 1))
    for place, (rows, happened) in enumerate(intervals(time, event, horizons)):
        if happened.any() and not happened.all() and inputs.shape[1]:
            found[:, place] = fit_logistic(inputs[rows], np.where(happened, 1, -1), penalties)
        else:
            share = (happened.sum() + 0.5) / (len(rows) + 1)
            found[:, place, -1] = np.log(share / (1 - share))
    return [DiscreteHead(each[:, :-1], each[:, -1]) for each in found]


def intervals(time: Times, event: Events, horizons: Sequence[float]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each interval the rows of which it is known how they end it, and whether it is with the event.

    Args:
        time: of event or censoring.
        event: whether it was the event.
        horizons: ends of the intervals, increasing; the first starts at 0.
    """
    found, began = [], np.ones(len(time), bool)
    for end in horizons:
        happened = began & event & (time <= end)
        survived = (time > end) | (~event & (time == end))
        rows = np.flatnonzero(happened | survived)
        found.append((rows, happened[rows]))
        began &= ~happened
    return found


HEADS = {"cox": fit_cox, "discrete": fit_discrete}
"""What can be fitted: inputs, time, event, penalties, horizons to a head for each penalty."""
