"""Metrics of calls against scikit-learn, in every bootstrap draw too; CRG against the sum written out."""

import warnings

import numpy as np
import pytest
from sklearn import metrics as reference

from medclip_jax.evaluation import metrics
from medclip_jax.evaluation.bootstrap import draw_patients
from medclip_jax.evaluation.confusion import CALLED, count_calls, crg

REFERENCE = {
    "accuracy": reference.accuracy_score,
    "balanced_accuracy": reference.balanced_accuracy_score,
    "sensitivity": reference.recall_score,
    "specificity": lambda labels, calls: reference.recall_score(1 - labels, 1 - calls),
    "precision": lambda labels, calls: reference.precision_score(labels, calls, zero_division=0),
    "f1": lambda labels, calls: reference.f1_score(labels, calls, zero_division=0),
    "weighted_f1": lambda labels, calls: reference.f1_score(
        labels, calls, average="weighted", zero_division=0
    ),
}


def made(n, seed, share=0.3):
    generator = np.random.default_rng(seed)
    return (generator.random(n) < share).astype(int), (generator.random(n) < 0.5).astype(int)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_against_scikit_learn(share):
    assert set(REFERENCE) == set(CALLED)
    for seed in range(20):
        labels, calls = made(61, seed, share)
        if labels.min() == labels.max():
            continue
        confusion = count_calls(labels, calls)
        for name, function in REFERENCE.items():
            assert getattr(confusion, name) == pytest.approx(function(labels, calls), abs=1e-9), name


def test_nothing_called_and_everything_called():
    labels = np.array([1, 0, 0, 1, 0])
    for calls in (np.zeros(5, int), np.ones(5, int)):
        confusion = count_calls(labels, calls)
        for name, function in REFERENCE.items():
            assert getattr(confusion, name) == pytest.approx(function(labels, calls), abs=1e-9), name


def test_one_class_is_undefined_where_the_other_is_needed():
    nothing = count_calls(np.zeros(4, int), np.zeros(4, int))
    assert np.isnan([nothing.sensitivity, nothing.balanced_accuracy, nothing.weighted_f1]).all()
    assert np.isnan([nothing.precision, nothing.f1]).all()
    assert (nothing.specificity, nothing.accuracy) == (1, 1)
    everything = count_calls(np.ones(4, int), np.zeros(4, int))
    assert np.isnan([everything.specificity, everything.weighted_f1]).all()
    assert (everything.precision, everything.f1, everything.sensitivity) == (0, 0, 0)
    assert np.isnan(count_calls(np.zeros(0, int), np.zeros(0, int)).accuracy)


def test_every_draw_is_the_metric_of_the_repeated_rows():
    labels, calls = made(40, 3, 0.1)
    patients = np.arange(40) // 3
    weights = draw_patients(patients, 200, 7)
    drawn = count_calls(labels, calls, weights)
    for name, function in REFERENCE.items():
        values = getattr(drawn, name)
        assert values.shape == (200,)
        for draw in range(200):
            rows = np.repeat(np.arange(40), weights[draw])
            if len(set(labels[rows])) < 2:
                assert np.isnan(values[draw]) or name in ("accuracy", "precision", "f1", "specificity")
                continue
            assert values[draw] == pytest.approx(function(labels[rows], calls[rows]), abs=1e-9), name


def test_unknown_labels_and_other_lengths_are_refused():
    with pytest.raises(ValueError, match="leave unknown entries out"):
        count_calls(np.array([1, -1]), np.array([1, 0]))
    with pytest.raises(ValueError, match="2 labels but calls of shape"):
        count_calls(np.array([1, 0]), np.array([1, 0, 1]))


class TestCrg:
    def test_as_the_challenge_writes_it(self):
        generator = np.random.default_rng(0)
        labels, calls = (generator.random((2, 50, 18)) < 0.3).astype(int)
        found = crg(count_calls(labels[:, i], calls[:, i]) for i in range(18))
        everything, present = labels.size, labels.sum()
        hits = (labels & calls).sum()
        missed, false = present - hits, (calls & (1 - labels)).sum()
        weight = (everything - present) / (2 * present)
        best = (everything - present) / 2
        assert found == pytest.approx(best / (2 * best - (weight * hits - weight * missed - false)), abs=1e-9)

    def test_the_sign(self):
        """The better the calls, the higher the score; calling nothing is worth as much as calling all."""
        labels = np.array([1] * 3 + [0] * 9)
        right = crg([count_calls(labels, labels)])
        none, all_of_them = (crg([count_calls(labels, np.full(12, value))]) for value in (0, 1))
        wrong = crg([count_calls(labels, 1 - labels)])
        assert (right, none, all_of_them, wrong) == pytest.approx((1, 1 / 3, 1 / 3, 1 / 5), abs=1e-12)
        one_missed = labels.copy()
        one_missed[0] = 0
        one_false = labels.copy()
        one_false[-1] = 1
        # A missed one of three weighs as much as three false ones of nine.
        three_false = np.array([1] * 3 + [1] * 3 + [0] * 6)
        scores = [crg([count_calls(labels, calls)]) for calls in (one_missed, one_false, three_false)]
        assert scores[0] == pytest.approx(scores[2], abs=1e-12)
        assert right > scores[1] > scores[0] > none

    def test_undefined(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.isnan(crg([]))
            assert np.isnan(crg([count_calls(np.zeros(3, int), np.ones(3, int))]))
            assert np.isnan(crg([count_calls(np.ones(3, int), np.ones(3, int))]))


class TestClosest:
    @pytest.mark.parametrize("seed", range(30))
    def test_against_a_loop_over_the_grid(self, seed):
        generator = np.random.default_rng(seed)
        labels = generator.integers(0, 2, 37)
        scores = generator.random(37).round(generator.integers(1, 4))
        best, nearest = None, np.inf
        for threshold in np.linspace(0, 1, 100):
            calls = scores > threshold
            missed, false = (~calls)[labels == 1].mean(), calls[labels == 0].mean()
            if missed**2 + false**2 <= nearest + 1e-12:
                best, nearest = threshold, missed**2 + false**2
        found = metrics.best_threshold(labels, scores, criterion="closest")
        assert found == pytest.approx(best, abs=1e-9)
        np.testing.assert_array_equal(scores >= found, scores > best)

    def test_one_class_and_what_is_no_probability(self):
        assert np.isnan(metrics.closest_threshold(np.ones(3, int), np.array([0.1, 0.2, 0.3])))
        with pytest.raises(ValueError, match='score="probability"'):
            metrics.closest_threshold(np.array([0, 1]), np.array([-0.2, 0.3]))
        with pytest.raises(ValueError, match="NaN"):
            metrics.closest_threshold(np.array([0, 1]), np.array([np.nan, 0.3]))
