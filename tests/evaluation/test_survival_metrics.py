"""Metrics of survival against scikit-survival and lifelines, on ties, censoring and few events."""

import numpy as np
import pytest
from lifelines import KaplanMeierFitter
from lifelines.statistics import multivariate_logrank_test
from lifelines.utils import concordance_index
from sksurv import metrics as reference
from sksurv.nonparametric import kaplan_meier_estimator
from sksurv.util import Surv

from medclip_jax.evaluation import bootstrap
from medclip_jax.evaluation import survival_metrics as found

EXACT = 1e-9
NAN = float("nan")


def made(n=60, seed=0, times=None, risks=None, censored=0.4):
    """Outcomes that follow the risk; `times` and `risks` are numbers of distinct values, for ties."""
    draw = np.random.default_rng(seed)
    risk = draw.normal(size=n)
    time = draw.exponential(12 * np.exp(-risk))
    event = draw.random(n) >= censored
    if times:
        time = np.ceil(time / time.max() * times)
    if risks:
        risk = np.round(risk * risks / 4)
    return time, event, risk


CASES = {
    "no ties": made(),
    "ties in time": made(seed=1, times=9),
    "ties in risk": made(seed=2, risks=3),
    "ties in both": made(seed=3, times=6, risks=3),
    "no censored": made(seed=4, censored=0.0, times=12),
    "mostly censored": made(seed=5, censored=0.9),
    "one event": (np.array([3.0, 1, 2, 5]), np.array([False, True, False, False]), np.array([1.0, 2, 2, 0])),
    "two rows": (np.array([1.0, 2.0]), np.array([True, False]), np.array([0.0, 1.0])),
    "all alike": (np.array([1.0, 2, 3]), np.array([True, True, False]), np.zeros(3)),
}
cases = pytest.mark.parametrize("case", CASES)


def between(time):
    """A horizon at which nobody's time lies, and which some are observed beyond."""
    times = np.unique(time)
    middle = len(times) // 2
    return float((times[middle - 1] + times[middle]) / 2)


@cases
def test_harrell(case):
    time, event, risk = CASES[case]
    value = found.harrell_c(time, event, risk)[0]
    assert value == pytest.approx(reference.concordance_index_censored(event, time, risk)[0], abs=EXACT)
    assert value == pytest.approx(concordance_index(time, -risk, event), abs=EXACT)


@cases
def test_uno(case):
    time, event, risk = CASES[case]
    outcomes = Surv.from_arrays(event, time)
    for until in (between(time), float(np.max(time[event])) if len(time) > 4 else 1.5):
        expected = reference.concordance_index_ipcw(outcomes, outcomes, risk, tau=until)[0]
        assert found.uno_c(time, event, risk, until)[0] == pytest.approx(expected, abs=EXACT)


@cases
def test_auc_at_a_horizon(case):
    time, event, risk = CASES[case]
    outcomes = Surv.from_arrays(event, time)
    horizons = [between(time)]
    if case == "no ties":
        horizons += np.sort(time[event])[[3, 15]].tolist()  # an event at the horizon has come by then
    for horizon in horizons:
        expected = reference.cumulative_dynamic_auc(outcomes, outcomes, risk, horizon)[0][0]
        assert found.auc_at(time, event, risk, horizon)[0] == pytest.approx(expected, abs=EXACT)


@cases
def test_brier(case):
    time, event, risk = CASES[case]
    outcomes, horizon = Surv.from_arrays(event, time), between(time)
    probability = 1 / (1 + np.exp(-risk))
    expected = reference.brier_score(outcomes, outcomes, 1 - probability[:, None], horizon)[1][0]
    assert found.brier_at(time, event, probability, horizon)[0] == pytest.approx(expected, abs=EXACT)


@cases
def test_kaplan_meier(case):
    time, event, _ = CASES[case]
    curve = found.kaplan_meier(time, event)
    times, survival, bounds = kaplan_meier_estimator(event, time, conf_type="log-log")
    np.testing.assert_array_equal(curve.times, times)
    np.testing.assert_allclose(curve.survival, survival, atol=EXACT)
    inside = (survival > 0) & (survival < 1)
    np.testing.assert_allclose(np.stack([curve.low, curve.high])[:, inside], bounds[:, inside], atol=EXACT)
    fitted = KaplanMeierFitter().fit(time, event)
    np.testing.assert_array_equal(curve.at_risk, fitted.event_table["at_risk"].to_numpy()[-len(times) :])
    for t in (0.0, between(time), float(times[-1])):
        assert curve.at(t)[0] == pytest.approx(float(fitted.predict(t)), abs=EXACT)
        assert curve.number_at_risk(t) == int((time >= t).sum())


@pytest.mark.parametrize("case", ["no ties", "ties in time", "no censored", "mostly censored"])
def test_log_rank(case):
    time, event, risk = CASES[case]
    for groups in (2, 3):
        group = found.equal_groups(risk, groups)
        expected = multivariate_logrank_test(time, group, event)
        value = found.log_rank(time, event, group)
        assert value.statistic == pytest.approx(expected.test_statistic, rel=EXACT)
        assert value.p == pytest.approx(expected.p_value, rel=1e-7)


@cases
def test_draws_are_repeated_rows(case):
    """The value of a draw is that of its rows, with as many copies as it has of each."""
    time, event, risk = CASES[case]
    weights = bootstrap.draw_patients(np.arange(len(time)) // 2, 12, seed=0)
    probability, horizon = 1 / (1 + np.exp(-risk)), between(time)
    for metric, arguments in (
        (found.harrell_c, (risk,)),
        (found.uno_c, (risk, horizon)),
        (found.auc_at, (risk, horizon)),
        (found.brier_at, (probability, horizon)),
    ):
        values = metric(time, event, *arguments, weights)
        for row, value in zip(weights, values, strict=True):
            drawn = np.repeat(np.arange(len(time)), row)
            columns = [x[drawn] if isinstance(x, np.ndarray) else x for x in arguments]
            alone = metric(time[drawn], event[drawn], *columns)[0]
            assert value == pytest.approx(alone, abs=EXACT, nan_ok=True)


def test_many_pairs_are_taken_in_parts(monkeypatch):
    time, event, risk = made(n=50, times=9, risks=4)
    whole = found.harrell_c(time, event, risk)
    monkeypatch.setattr(found, "_PAIRS", 120)
    np.testing.assert_allclose(found.harrell_c(time, event, risk), whole, atol=1e-12)


def test_pairs_by_hand():
    """Equal times: an event against a censored one is comparable, two events are not."""
    time, event = np.array([2.0, 2, 2, 1, 5]), np.array([True, True, False, False, True])
    risk = np.array([3.0, 1, 1, 9, 0])
    concordant = comparable = 0.0
    for i in range(5):
        for j in range(5):
            if event[i] and (time[j] > time[i] or (time[j] == time[i] and not event[j])):
                comparable += 1
                concordant += (risk[i] > risk[j]) + 0.5 * (risk[i] == risk[j])
    assert comparable == 4
    assert found.harrell_c(time, event, risk)[0] == concordant / comparable == 3.5 / 4


def test_who_is_censored_at_the_horizon_has_reached_it():
    """All observation ends at the horizon, as that of a study of twelve months does."""
    time, event = np.array([3.0, 12, 12, 6]), np.array([True, False, False, True])
    risk = np.array([2.0, 1, 2, 3])
    assert found.auc_at(time, event, risk, 12)[0] == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    probability = np.array([0.7, 0.1, 0.2, 0.9])
    expected = np.mean((np.array([1, 0, 0, 1]) - probability) ** 2)
    assert found.brier_at(time, event, probability, 12)[0] == pytest.approx(expected)
    late = np.array([3.0, 12.5, 13, 6])
    assert found.brier_at(late, event, probability, 12)[0] == pytest.approx(expected)


def test_undefined_is_nan():
    time, risk = np.array([1.0, 2, 3]), np.array([1.0, 2, 3])
    nobody, everybody = np.zeros(3, bool), np.ones(3, bool)
    for value in (
        found.harrell_c(time, nobody, risk),
        found.uno_c(time, nobody, risk, 2.5),
        found.auc_at(time, nobody, risk, 2.5),  # no case
        found.auc_at(time, everybody, risk, 3.0),  # no control
        found.uno_c(time, everybody, risk, 0.5),
    ):
        assert np.isnan(value).all()
    assert np.isnan(found.log_rank(time, nobody, np.array([0, 1, 1])).p)
    assert np.isnan(found.log_rank(time, everybody, np.zeros(3, int)).p)
    curve = found.kaplan_meier(time, nobody)
    assert curve.at(2.0) == (1.0, 1.0, 1.0)
    assert np.isnan(curve.at(4.0)[0])
    assert found.kaplan_meier(time, everybody).at(4.0)[0] == 0.0
    assert found.brier_at(time, nobody, np.zeros(3), 2.5)[0] == 0.0
    empty = np.zeros(0)
    assert np.isnan(found.harrell_c(empty, empty.astype(bool), empty)).all()
    assert np.isnan(found.kaplan_meier(empty, empty.astype(bool)).at(1.0)[0])


def test_censoring_at_random_does_not_move_uno_and_auc():
    """With and without censoring, the same ranking of many patients has about the same values."""
    draw = np.random.default_rng(0)
    risk = draw.normal(size=1500)
    death, lost = draw.exponential(10 * np.exp(-risk)), draw.exponential(12, size=1500)
    time, event = np.minimum(death, lost), death <= lost
    every = np.ones(1500, bool)
    for horizon in (2.0, 8.0):
        auc = found.auc_at(time, event, risk, horizon)[0]
        assert auc == pytest.approx(found.auc_at(death, every, risk, horizon)[0], abs=0.015)
        uno = found.uno_c(time, event, risk, horizon)[0]
        assert uno == pytest.approx(found.uno_c(death, every, risk, horizon)[0], abs=0.015)


def test_calibration_of_true_probabilities():
    draw = np.random.default_rng(1)
    risk = draw.normal(size=6000)
    death, lost = draw.exponential(10 * np.exp(-risk)), draw.uniform(1, 20, size=6000)
    time, event = np.minimum(death, lost), death <= lost
    probability = 1 - np.exp(-6 / (10 * np.exp(-risk)))
    result = found.calibration(time, event, probability, 6.0, groups=5)
    assert result.counts.tolist() == [1200] * 5
    np.testing.assert_allclose(result.probability, result.frequency, atol=0.04)
    assert ((result.low < result.frequency) & (result.frequency < result.high)).all()
    assert result.error < 0.02
    assert result.expected == pytest.approx(result.observed, abs=0.02)
    worse = found.calibration(time, event, probability**2, 6.0)
    assert worse.error > 0.1
    first = found.equal_groups(probability, 5) == 0
    fitted = KaplanMeierFitter().fit(time[first], event[first])
    assert result.frequency[0] == pytest.approx(1 - float(fitted.predict(6.0)), abs=EXACT)


def test_calibration_where_nobody_was_observed_so_long():
    time, event = np.array([1.0, 2, 3, 4]), np.array([True, False, True, False])
    result = found.calibration(time, event, np.array([0.1, 0.1, 0.9, 0.9]), 3.5, groups=2)
    assert np.isnan(result.frequency[0])
    assert result.frequency[1] == pytest.approx(0.5)
    assert result.error == pytest.approx(0.4)


def test_groups_of_equal_size():
    assert found.equal_groups(np.array([5.0, 1, 3, 2, 4, 6]), 3).tolist() == [2, 0, 1, 0, 1, 2]
    assert found.equal_groups(np.array([1.0, 1, 1, 1]), 3).tolist() == [0] * 4
    assert found.equal_groups(np.array([1.0, 1, 1, 2]), 2).tolist() == [0, 0, 0, 1]


def test_unknown_rows_and_wrong_ones():
    time, event = np.array([1.0, NAN, 2.0, 0.0]), np.array([1.0, 0.0, NAN, 0.0])
    assert found.known_outcomes(time, event).tolist() == [0, 3]
    with pytest.raises(ValueError, match="'months' is below 0 or infinite in 1 rows, the first -1"):
        found.known_outcomes(np.array([1.0, -1]), np.zeros(2), ("months", "died"))
    with pytest.raises(ValueError, match="below 0 or infinite"):
        found.known_outcomes(np.array([np.inf]), np.ones(1))
    with pytest.raises(ValueError, match="'died' is neither 1 nor 0 in 1 rows, the first 2"):
        found.known_outcomes(np.array([1.0, 1]), np.array([2.0, NAN]), ("months", "died"))
