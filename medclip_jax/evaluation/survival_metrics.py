"""Metrics of time to an event with censoring, in NumPy float64.

`time` (n,) is that of the event where `event` is True, and that at which the patient was last known to be
without it (censored) where it is False. At equal times events come first: who is censored then was still at
risk. What ranks patients takes `weights` (draws, n), from `bootstrap.draw_patients`, and has a value for each
draw; without weights, one in which every row counts once. NaN is where a metric is undefined, such as without
events.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from scipy import stats

from medclip_jax.evaluation import bootstrap

Times = Float[np.ndarray, " n"]
Events = Bool[np.ndarray, " n"]
Weights = Num[np.ndarray, "draws n"]
Draws = Float[np.ndarray, " draws"]

_PAIRS = 2**22
"""Pairs of patients that are looked at in one go: 32 MB of float64."""


def known_outcomes(
    time: Float[np.ndarray, " N"], event: Float[np.ndarray, " N"], names: tuple[str, str] = ("time", "event")
) -> Int[np.ndarray, " n"]:
    """Rows in which both are known.

    Args:
        time: of event or censoring; NaN unknown.
        event: 1 event, 0 censored; NaN unknown.
        names: of both, for messages.

    Raises:
        ValueError: a time below 0 or infinite, or an event that is neither 1 nor 0.
    """
    rows = np.flatnonzero(~(np.isnan(time) | np.isnan(event)))
    wrong = rows[~np.isfinite(time[rows]) | (time[rows] < 0)]
    if wrong.size:
        raise ValueError(
            f"{names[0]!r} is below 0 or infinite in {wrong.size} rows, the first {time[wrong[0]]:g}: it "
            "must be the time from the scan to the event or to the end of observation"
        )
    wrong = rows[~np.isin(event[rows], (0, 1))]
    if wrong.size:
        raise ValueError(
            f"{names[1]!r} is neither 1 nor 0 in {wrong.size} rows, the first {event[wrong[0]]:g}: it must "
            "be 1 where the event came, and 0 where observation ended before it"
        )
    return rows


def harrell_c(time: Times, event: Events, risk: Times, weights: Weights | None = None) -> Draws:
    """Share of comparable pairs whose risks are in the order of their times; equal risks count one half.

    A pair is comparable where one has the event while the other is still under observation without it.

    Args:
        time: of event or censoring.
        event: whether it was the event.
        risk: higher means earlier.
        weights: how often each row is in each draw.

    References:
        Harrell et al. 1996, "Multivariable prognostic models", section 5.5.
    """
    weights = _all_once(weights, len(time))
    return _concordance(time, event, risk, np.where(event, weights, 0.0), weights)


def uno_c(time: Times, event: Events, risk: Times, until: float, weights: Weights | None = None) -> Draws:
    """`harrell_c` of the events before a time, each weighted by 1 / G(its time)^2.

    G is the Kaplan-Meier estimate of being uncensored, in the same rows: unlike Harrell's, the value does not
    depend on who is censored when, as long as that has nothing to do with the event.

    Args:
        time: of event or censoring.
        event: whether it was the event.
        risk: higher means earlier.
        until: events at this time or later do not count.
        weights: how often each row is in each draw.

    References:
        Uno et al. 2011, "On the C-statistics for evaluating overall adequacy of risk prediction procedures
        with censored survival data", equation 6.
    """
    weights = _all_once(weights, len(time))
    uncensored = _uncensored(time, event, weights).at_own_time
    left = _divided(np.where(event & (time < until), weights, 0.0), uncensored**2)
    return _concordance(time, event, risk, left, weights)


def auc_at(time: Times, event: Events, risk: Times, horizon: float, weights: Weights | None = None) -> Draws:
    """AUROC of "had the event by then" among those of whom it is known, events weighted by 1 / G(their time).

    Cumulative cases, dynamic controls: who has the event by the horizon, against who is known to be without
    it then. Who is censored before the horizon is neither, which the weights make up for.

    Args:
        time: of event or censoring.
        event: whether it was the event.
        risk: higher means earlier.
        horizon: in the unit of `time`.
        weights: how often each row is in each draw.

    References:
        Uno et al. 2007, "Evaluating prediction rules for t-year survivors with censored regression models".
    """
    weights = _all_once(weights, len(time))
    cases, controls = _status(time, event, horizon)
    own = _divided(np.where(cases, weights, 0.0), _uncensored(time, event, weights).at_own_time)
    rows = cases | controls
    return bootstrap.auroc(cases[rows], np.asarray(risk)[rows], np.where(cases, own, weights)[:, rows])


def brier_at(
    time: Times, event: Events, probability: Times, horizon: float, weights: Weights | None = None
) -> Draws:
    """Mean squared error of the probability of the event by then, weighted for those censored before.

    Args:
        time: of event or censoring.
        event: whether it was the event.
        probability: of the event by the horizon.
        horizon: in the unit of `time`.
        weights: how often each row is in each draw.

    References:
        Graf et al. 1999, "Assessment and comparison of prognostic classification schemes for survival data".
    """
    weights = _all_once(weights, len(time))
    cases, controls = _status(time, event, horizon)
    uncensored = _uncensored(time, event, weights)
    probability = np.asarray(probability, np.float64)
    missed = _divided(np.where(cases, weights, 0.0), uncensored.at_own_time) @ (1 - probability) ** 2
    alive = np.where(controls, weights, 0.0) @ probability**2
    with np.errstate(invalid="ignore", divide="ignore"):
        # Without controls nothing is divided: everybody may be censored by then.
        alive = np.where(alive > 0, alive / uncensored.before(horizon), 0.0)
        return (missed + alive) / weights.sum(axis=1)


class Curve(NamedTuple):
    """A Kaplan-Meier curve; one entry for each distinct time.

    Attributes:
        times: (k,) increasing.
        at_risk: (k,) rows under observation just before.
        events: (k,) at that time.
        survival: (k,) share without the event from then on.
        low: (k,) lower end of the 95 % interval of it; NaN where the survival is 0.
        high: (k,) upper end.
    """

    times: Float[np.ndarray, " k"]
    at_risk: Int[np.ndarray, " k"]
    events: Int[np.ndarray, " k"]
    survival: Float[np.ndarray, " k"]
    low: Float[np.ndarray, " k"]
    high: Float[np.ndarray, " k"]

    def at(self, time: float) -> tuple[float, float, float]:
        """Survival at a time, with its interval; NaN after the last one unless nobody is left by then."""
        place = int(np.searchsorted(self.times, time, "right")) - 1
        if not len(self.times) or (time > self.times[-1] and self.survival[-1] > 0):
            return float("nan"), float("nan"), float("nan")
        if place < 0:
            return 1.0, 1.0, 1.0
        return float(self.survival[place]), float(self.low[place]), float(self.high[place])

    def number_at_risk(self, time: float) -> int:
        """Rows under observation just before a time."""
        place = int(np.searchsorted(self.times, time, "left"))
        return int(self.at_risk[place]) if place < len(self.times) else 0


def kaplan_meier(time: Times, event: Events) -> Curve:
    """Share without the event over time, as far as patients were observed.

    Args:
        time: of event or censoring.
        event: whether it was the event.

    References:
        Kaplan and Meier 1958, "Nonparametric estimation from incomplete observations"; the interval is that
        of log(-log S) with Greenwood's variance (Kalbfleisch and Prentice 2002, equation 1.13).
    """
    times, own = np.unique(np.asarray(time, np.float64), return_inverse=True)
    events = np.bincount(own, weights=event, minlength=len(times)).astype(int)
    at_risk = np.bincount(own, minlength=len(times))[::-1].cumsum()[::-1]
    survival = np.cumprod(1 - events / at_risk)
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = np.cumsum(events / (at_risk * (at_risk - events)))
        spread = stats.norm.ppf(0.975) * np.sqrt(variance) / np.abs(np.log(survival))
        low, high = survival ** np.exp(spread), survival ** np.exp(-spread)
    low, high = (np.where(survival == 1, 1.0, np.where(survival == 0, np.nan, x)) for x in (low, high))
    return Curve(times, at_risk, events, survival, low, high)


class LogRank(NamedTuple):
    """A test of equal survival in all groups: chi-squared, and how often chance alone would reach it."""

    statistic: float
    p: float


def log_rank(time: Times, event: Events, group: Int[np.ndarray, " n"]) -> LogRank:
    """Log-rank test of several groups; NaN with one group or without an event.

    Args:
        time: of event or censoring.
        event: whether it was the event.
        group: of each row.

    References:
        Peto and Peto 1972, "Asymptotically efficient rank invariant test procedures".
    """
    names, member = np.unique(group, return_inverse=True)
    if len(names) < 2 or not np.any(event):
        return LogRank(float("nan"), float("nan"))
    times, own = np.unique(time, return_inverse=True)
    members = np.zeros((len(times), len(names)))
    np.add.at(members, (own, member), 1)
    died = np.zeros_like(members)
    np.add.at(died, (own, member), np.asarray(event, np.float64))
    at_risk = members[::-1].cumsum(axis=0)[::-1]
    all_at_risk, all_died = at_risk.sum(axis=1), died.sum(axis=1)
    share = at_risk / all_at_risk[:, None]
    excess = (died - share * all_died[:, None]).sum(axis=0)[:-1]
    scale = all_died * (all_at_risk - all_died) / np.maximum(all_at_risk - 1, 1)
    covariance = np.diag(scale @ share) - (share * scale[:, None]).T @ share
    statistic = float(excess @ np.linalg.pinv(covariance[:-1, :-1], hermitian=True) @ excess)
    return LogRank(statistic, float(stats.chi2.sf(statistic, len(names) - 1)))


class Calibration(NamedTuple):
    """Predicted probability and observed frequency of the event by a horizon.

    Attributes:
        counts: (b,) rows of each group, from the lowest to the highest probability.
        probability: (b,) mean of each.
        frequency: (b,) 1 - the Kaplan-Meier estimate of each; NaN where nobody was observed for so long.
        low: (b,) lower end of its 95 % interval.
        high: (b,) upper end.
        expected: mean probability of all.
        observed: frequency of all.
        error: mean over rows of |probability - frequency| of their group; over groups with a frequency.
    """

    counts: Int[np.ndarray, " b"]
    probability: Float[np.ndarray, " b"]
    frequency: Float[np.ndarray, " b"]
    low: Float[np.ndarray, " b"]
    high: Float[np.ndarray, " b"]
    expected: float
    observed: float
    error: float


def calibration(
    time: Times, event: Events, probability: Times, horizon: float, groups: int = 5
) -> Calibration:
    """Group rows by their probability, as many in each, and look what became of them.

    Rows of equal probability stay together, so that there may be fewer groups.

    Args:
        time: of event or censoring.
        event: whether it was the event.
        probability: of the event by the horizon.
        horizon: in the unit of `time`.
        groups: how many.
    """
    member = equal_groups(probability, groups)
    count = int(member.max()) + 1 if len(member) else 0
    means, found = np.empty(count), np.empty((count, 3))
    for place in range(count):
        rows = member == place
        means[place] = np.mean(probability[rows])
        alive, low, high = kaplan_meier(time[rows], event[rows]).at(horizon)
        found[place] = 1 - alive, 1 - high, 1 - low
    counts = np.bincount(member, minlength=count)
    known = ~np.isnan(found[:, 0])
    error = float("nan")
    if known.any():
        error = float(np.average(np.abs(means - found[:, 0])[known], weights=counts[known]))
    expected = float(np.mean(probability)) if len(probability) else float("nan")
    observed = 1 - kaplan_meier(time, event).at(horizon)[0]
    return Calibration(counts, means, *found.T, expected, observed, error)


def equal_groups(values: Times, groups: int) -> Int[np.ndarray, " n"]:
    """Group of each row by its value: 0 for the lowest, as many rows in each as equal values allow.

    Args:
        values: to group by; equal values share a group.
        groups: how many, at most.
    """
    values = np.asarray(values, np.float64)
    first = np.searchsorted(np.sort(values), values, "left")
    last = np.searchsorted(np.sort(values), values, "right")
    wanted = np.floor((first + last - 1) / 2 * groups / max(len(values), 1)).astype(int)
    return np.unique(wanted, return_inverse=True)[1]


class _Uncensored(NamedTuple):
    """Kaplan-Meier estimates of being uncensored, of each draw."""

    times: Float[np.ndarray, " k"]
    values: Float[np.ndarray, "draws k"]
    own: Int[np.ndarray, " n"]

    @property
    def at_own_time(self) -> Float[np.ndarray, "draws n"]:
        return self.values[:, self.own]

    def before(self, time: float) -> Draws:
        """Just before a time: who is censored then counts as observed up to it."""
        place = int(np.searchsorted(self.times, time, "left"))
        return self.values[:, place - 1] if place else np.ones(len(self.values))


def _uncensored(time: Times, event: Events, weights: Weights) -> _Uncensored:
    times, own = np.unique(time, return_inverse=True)
    order = np.argsort(own, kind="stable")
    starts = np.searchsorted(own[order], np.arange(len(times)))
    total = np.add.reduceat(weights[:, order], starts, axis=1)
    events = np.add.reduceat(np.where(event, weights, 0)[:, order], starts, axis=1)
    # Of those under observation, events at the same time come before.
    left = total[:, ::-1].cumsum(axis=1)[:, ::-1] - events
    values = np.cumprod(1 - _divided(total - events, left), axis=1)
    return _Uncensored(times, values, own)


def _status(time: Times, event: Events, horizon: float) -> tuple[np.ndarray, np.ndarray]:
    """Who had the event by the horizon, and who is known to be without it then."""
    return event & (time <= horizon), (time > horizon) | (~event & (time == horizon))


def _concordance(time: Times, event: Events, risk: Times, left: Weights, right: Weights) -> Draws:
    """Share of concordant pairs, each weighted by its event's left and the other row's right weight."""
    concordant, comparable = np.zeros(len(right)), np.zeros(len(right))
    for rows in _parts(np.flatnonzero(np.any(left != 0, axis=0)), len(time)):
        later = (time > time[rows, None]) | ((time == time[rows, None]) & ~event)
        higher = (risk[rows, None] > risk) + 0.5 * (risk[rows, None] == risk)
        comparable += np.einsum("dn,dn->d", left[:, rows] @ later.astype(np.float64), right)
        concordant += np.einsum("dn,dn->d", left[:, rows] @ np.where(later, higher, 0.0), right)
    with np.errstate(invalid="ignore"):
        return concordant / comparable


def _parts(rows: np.ndarray, others: int) -> Iterator[np.ndarray]:
    step = max(1, _PAIRS // max(others, 1))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def _divided(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """Quotients; 0 where the numerator is 0, and infinite where the denominator alone is."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(numerators == 0, 0.0, numerators / denominators)


def _all_once(weights: Weights | None, count: int) -> Weights:
    return np.ones((1, count)) if weights is None else np.asarray(weights, np.float64)
