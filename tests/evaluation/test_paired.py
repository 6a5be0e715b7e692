"""Differences between two models against brute force."""

import itertools

import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn import metrics as reference

from medclip_jax.evaluation import metrics
from medclip_jax.evaluation.bootstrap import draw_patients
from medclip_jax.evaluation.paired import Pair, compare
from medclip_jax.evaluation.scored import FindingTask, SurvivalTask, ValueTask
from medclip_jax.evaluation.signed_ranks import signed_ranks
from medclip_jax.evaluation.task_metrics import CONCORDANCE, OF_FINDINGS, of_each

SKLEARN = {
    "auroc": reference.roc_auc_score,
    "average_precision": reference.average_precision_score,
    "accuracy": reference.accuracy_score,
    "balanced_accuracy": reference.balanced_accuracy_score,
    "sensitivity": reference.recall_score,
    "specificity": lambda labels, calls: reference.recall_score(~labels, ~calls),
    "precision": lambda labels, calls: reference.precision_score(labels, calls, zero_division=0),
    "f1": lambda labels, calls: reference.f1_score(labels, calls, zero_division=0),
    "weighted_f1": lambda labels, calls: reference.f1_score(
        labels, calls, average="weighted", zero_division=0
    ),
}


def finding_pair(labels, first, second, thresholds=(0.0, 0.0)):
    """One run each, of one repetition each."""
    rows = np.arange(len(labels))
    sides = (np.asarray(first, float), np.asarray(second, float))
    return Pair(
        *(
            (FindingTask(rows, labels, scores[None], cut),)
            for scores, cut in zip(sides, thresholds, strict=True)
        )
    )


def made(n=18, seed=0, digits=1):
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 3 == 0
    first = (generator.normal(size=n) + labels).round(digits)  # many ties
    second = (100 * (generator.normal(size=n) + labels)).round(digits - 2)
    return finding_pair(labels, first, second, (0.3, 40.0))


def sides(pair, metric):
    """What is exchanged: ranks within a model, or calls."""
    found = [task for (task,) in (pair.first, pair.second)]
    if metric in ("auroc", "average_precision"):
        return tuple(rankdata(task.scores[0]) for task in found)
    return tuple(task.scores[0] >= task.threshold for task in found)


@pytest.mark.parametrize("metric", OF_FINDINGS)
def test_all_exchanges_of_a_few_patients(metric):
    pair, patients = made(), np.arange(18) // 3
    found = compare({"x": pair}, patients, metric, draws=50, permutations=64).tasks["x"]
    one, two = sides(pair, metric)
    function = SKLEARN[metric]
    difference = function(pair.task.labels, two) - function(pair.task.labels, one)
    assert found.value == pytest.approx(difference, abs=1e-9)
    extreme = []
    for exchanged in itertools.product([False, True], repeat=6):
        swap = np.array(exchanged)[patients]
        mixed = np.where(swap, two, one), np.where(swap, one, two)
        now = function(pair.task.labels, mixed[1]) - function(pair.task.labels, mixed[0])
        extreme.append(abs(now) >= abs(difference) - 1e-12)
    assert found.p == pytest.approx(np.mean(extreme), abs=1e-12)


@pytest.mark.parametrize("metric", OF_FINDINGS)
def test_interval_is_that_of_the_repeated_rows(metric):
    pair, patients = made(30, 1), np.arange(30) // 2
    found = compare({"x": pair}, patients, metric, draws=80, permutations=9, seed=5).tasks["x"]
    one, two = sides(pair, metric)
    differences = []
    for weights in draw_patients(patients, 80, 5):
        rows = np.repeat(np.arange(30), weights)
        if len(set(pair.task.labels[rows])) < 2:
            continue
        values = [SKLEARN[metric](pair.task.labels[rows], side[rows]) for side in (one, two)]
        differences.append(values[1] - values[0])
    low, high = np.quantile(differences, [0.025, 0.975])
    assert found.interval == pytest.approx((low, high, len(differences)), abs=1e-9)


def test_equal_models_do_not_differ():
    pair = made()
    same = finding_pair(pair.task.labels, pair.task.scores[0], 7 * pair.task.scores[0], (0.3, 2.1))
    for metric in OF_FINDINGS:
        found = compare({"x": same}, np.arange(18), metric, draws=20, permutations=50).tasks["x"]
        assert found.value == pytest.approx(0, abs=1e-12)
        assert found.p == 1
        assert found.patients in (None, (0, 1.0))


def test_p_is_uniform_where_models_are_alike_and_small_where_one_is_better():
    """Under exchangeable models p < .2 in a fifth of the trials, within four standard errors."""
    generator = np.random.default_rng(2)
    small = 0
    for seed in range(150):
        labels = np.arange(24) % 2 == 0
        pair = finding_pair(labels, *(generator.normal(size=(2, 24)) + labels))
        small += compare({"x": pair}, np.arange(24), draws=1, permutations=99, seed=seed).tasks["x"].p <= 0.2
    assert abs(small / 150 - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 150)
    labels = np.arange(60) % 2 == 0
    better = finding_pair(labels, generator.normal(size=60), labels + 0.1 * generator.normal(size=60))
    found = compare({"x": better}, np.arange(60), draws=200, permutations=400).tasks["x"]
    assert found.p == pytest.approx(1 / 401, abs=1e-12)
    assert found.patients.p < 0.01  # it finds less than exchanging patients
    assert 0 < found.interval.low < found.value < found.interval.high


def test_the_mean_exchanges_patients_in_all_findings_at_once():
    patients = np.arange(18) // 3
    pairs = {"x": made(seed=0), "y": made(seed=1)}
    found = compare(pairs, patients, draws=50, permutations=64)
    difference = (found.tasks["x"].value + found.tasks["y"].value) / 2
    assert found.mean.value == pytest.approx(difference, abs=1e-12)
    assert found.mean.tasks == signed_ranks(np.array([one.value for one in found.tasks.values()]))
    assert found.mean.runs is None
    extreme = []
    for exchanged in itertools.product([False, True], repeat=6):
        swap = np.array(exchanged)[patients]
        now = 0.0
        for pair in pairs.values():
            one, two = sides(pair, "auroc")
            mixed = np.where(swap, two, one), np.where(swap, one, two)
            now += metrics.auroc(pair.task.labels, mixed[1]) / 2
            now -= metrics.auroc(pair.task.labels, mixed[0]) / 2
        extreme.append(abs(now) >= abs(difference) - 1e-12)
    assert found.mean.p == pytest.approx(np.mean(extreme), abs=1e-12)
    only = compare(pairs, patients, draws=50, permutations=64, mean_of=("y",))
    assert only.mean.value == only.tasks["y"].value
    assert only.mean.interval == only.tasks["y"].interval == only.mean.interval_of_tasks


def test_drawing_tasks_too_makes_the_interval_of_the_mean_wider():
    """Tasks with differences of 0 and 1 in every draw of patients: a mean of four of them, drawn anew."""
    labels = np.arange(40) % 2 == 0
    good, bad = labels.astype(float), (~labels).astype(float)
    pairs = {f"{i}": finding_pair(labels, good, good if i < 2 else bad) for i in range(4)}
    found = compare(pairs, np.arange(40), draws=400, permutations=9).mean
    assert found.value == pytest.approx(-0.5, abs=1e-12)
    assert found.interval[:2] == pytest.approx((-0.5, -0.5), abs=1e-12)
    # Binomial of 4 at one half: its 2.5th and 97.5th percentiles are 0 and 4.
    assert found.interval_of_tasks[:2] == pytest.approx((-1, 0), abs=1e-12)


@pytest.mark.parametrize("rarer", [True, False])
def test_what_patients_add(rarer):
    """Places of the rarer class among all volumes, whose mean is a straight function of the AUROC."""
    pair, patients = made(), np.arange(18) // 3
    labels = pair.task.labels if rarer else ~pair.task.labels
    pair = finding_pair(labels, *(task.scores[0] for (task,) in (pair.first, pair.second)))
    found = compare({"x": pair}, patients, draws=5, permutations=5).tasks["x"]
    few = labels == rarer
    places = [rankdata(task.scores[0]) / 18 for (task,) in (pair.first, pair.second)]
    places = [place if rarer else 1 - place for place in places]
    moved = places[1] - places[0]
    assert moved[few].mean() == pytest.approx(found.value * (~few).sum() / 18, abs=1e-12)
    by_patient = np.array([moved[few & (patients == one)].mean() for one in range(6)])
    assert found.patients == signed_ranks(by_patient)


def test_signed_ranks_over_patients_are_not_small_where_models_are_alike():
    """With few present and many absent, and a signal: at most a twentieth of the trials, with four errors."""
    generator = np.random.default_rng(6)
    small, labels = 0, np.arange(90) < 12
    for _ in range(150):
        pair = finding_pair(labels, *(generator.normal(size=(2, 90)) + 1.5 * labels))
        sides = [of_each(task, "auroc") for (task,) in (pair.first, pair.second)]
        small += signed_ranks(sides[1] - sides[0]).p < 0.05
    assert small / 150 < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 150)


def test_values_and_survival():
    generator = np.random.default_rng(4)
    n, patients = 16, np.arange(16) // 2
    rows, one, two = np.arange(n), *generator.normal(size=(2, n)).round(1)
    times, events = generator.integers(1, 9, n).astype(float), generator.random(n) < 0.6

    def concordance(scores):
        right = pairs = 0.0
        for i, j in itertools.permutations(range(n), 2):
            if events[i] and (times[i] < times[j] or (times[i] == times[j] and not events[j])):
                pairs += 1
                right += (scores[i] > scores[j]) + (scores[i] == scores[j]) / 2
        return right / pairs

    dice = Pair(*((ValueTask(rows, side[None], "dice"),) for side in (one, two)))
    risk = Pair(*((SurvivalTask(rows, times, events, side[None]),) for side in (one, two)))
    for pair, metric, function, exchanged in (
        (dice, "dice", np.mean, (one, two)),
        (risk, CONCORDANCE, concordance, (rankdata(one), rankdata(two))),
    ):
        found = compare({"x": pair}, patients, metric, draws=30, permutations=256, seed=1).tasks["x"]
        assert (found.first, found.second) == pytest.approx((function(one), function(two)), abs=1e-6)
        extreme = []
        for chosen in itertools.product([False, True], repeat=8):
            swap = np.array(chosen)[patients]
            mixed = [np.where(swap, *way) for way in (exchanged, exchanged[::-1])]
            extreme.append(abs(function(mixed[0]) - function(mixed[1])) >= abs(found.value) - 1e-9)
        assert found.p == pytest.approx(np.mean(extreme), abs=1e-12)
        assert (found.patients is None) == (metric == CONCORDANCE)
    weights = draw_patients(patients, 30, 1)
    drawn = [np.average(two - one, weights=row) for row in weights]
    found = compare({"x": dice}, patients, "dice", draws=30, permutations=9, seed=1).tasks["x"]
    assert found.interval[:2] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=1e-12)
    assert found.patients == signed_ranks((two - one).reshape(8, 2).mean(axis=1))


def test_weighted_concordance_is_that_of_repeated_rows():
    from lifelines.utils import concordance_index

    generator = np.random.default_rng(5)
    times, events = generator.exponential(size=20), generator.random(20) < 0.7
    risks = generator.normal(size=(2, 20))
    pair = Pair(*((SurvivalTask(np.arange(20), times, events, side[None]),) for side in risks))
    patients = np.arange(20) // 2
    found = compare({"x": pair}, patients, CONCORDANCE, draws=40, permutations=9).tasks["x"]
    assert found.first == pytest.approx(concordance_index(times, -risks[0], events), abs=1e-6)
    differences = []
    for weights in draw_patients(patients, 40, 0):
        # Copies of a patient share time and risk: lifelines counts such pairs where both are events, and so
        # pairs of different volumes alone are compared here.
        rows = np.flatnonzero(weights)
        i, j = (rows[side] for side in np.nonzero(events[rows, None] & (times[rows, None] < times[rows])))
        shares = weights[i] * weights[j]
        right = [(side[i] > side[j]) @ shares / shares.sum() for side in risks]
        differences.append(right[1] - right[0])
    assert found.interval[:2] == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=1e-6)


def test_runs_of_a_system_are_averaged():
    """The mean over runs, exchanges of the first with the first, repetitions as further runs."""
    patients = np.arange(18) // 3
    pairs = [made(seed=seed) for seed in range(3)]
    runs = zip(*((pair.first, pair.second) for pair in pairs), strict=True)
    several = Pair(*(tuple(task for (task,) in side) for side in runs))
    found = compare({"x": several}, patients, draws=60, permutations=64)
    single = [compare({"x": pair}, patients, draws=60, permutations=64).tasks["x"] for pair in pairs]
    one = found.tasks["x"]
    assert one.first_runs == tuple(x.first for x in single)
    assert one.value == pytest.approx(np.mean([x.value for x in single]), abs=1e-12)
    assert found.mean.runs == signed_ranks(np.array([x.value for x in single]))
    extreme = []
    for exchanged in itertools.product([False, True], repeat=6):
        swap, now = np.array(exchanged)[patients], []
        for pair in pairs:
            first, second = sides(pair, "auroc")
            mixed = [np.where(swap, *way) for way in ((first, second), (second, first))]
            areas = [metrics.auroc(pair.task.labels, scores) for scores in mixed]
            now.append(areas[0] - areas[1])
        extreme.append(abs(np.mean(now)) >= abs(one.value) - 1e-12)
    assert one.p == pytest.approx(np.mean(extreme), abs=1e-12)
    repeated = Pair(*(
        (FindingTask(np.arange(18), several.task.labels, np.concatenate([run.scores for run in side])),)
        for side in (several.first, several.second)
    ))  # fmt: skip
    as_draws = compare({"x": repeated}, patients, draws=60, permutations=64)
    assert as_draws.tasks["x"].p == one.p
    assert as_draws.tasks["x"].interval == pytest.approx(one.interval, abs=1e-12)
    assert as_draws.mean.runs is None
    uneven = Pair(several.first, several.second[:1])
    uneven = compare({"x": uneven}, patients, draws=60, permutations=64)
    assert uneven.mean.runs is None
    assert uneven.tasks["x"].value == pytest.approx(
        single[0].second - np.mean([x.first for x in single]), abs=1e-12
    )


def test_undefined_and_refused():
    one_class = finding_pair(np.ones(4, bool), np.arange(4.0), np.arange(4.0))
    found = compare({"x": one_class}, np.arange(4), draws=5, permutations=5)
    assert np.isnan([found.tasks["x"].first, found.tasks["x"].p, found.mean.value, found.mean.p]).all()
    pair = made()
    no_threshold = finding_pair(pair.task.labels, pair.task.scores[0], pair.task.scores[0], (np.nan, 0.0))
    found = compare({"x": no_threshold}, np.arange(18), "f1", draws=5, permutations=5)
    assert np.isnan(found.tasks["x"].p)
    broken = finding_pair(np.arange(4) < 2, np.array([0, 1, np.nan, 2]), np.arange(4.0))
    with pytest.raises(ValueError, match="scores hold NaN at 2"):
        compare({"x": broken}, np.arange(4))
    with pytest.raises(ValueError, match="at least 1"):
        compare({"x": made()}, np.arange(18), draws=0)
