"""Rank correlation, risk-coverage and calibration against scipy and brute force."""

import itertools

import numpy as np
import pytest
from scipy import stats

from medclip_jax.evaluation.uncertainty_metrics import calibration, risk_coverage, spearman


class TestSpearman:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("values", [4, 1000])
    def test_against_scipy(self, seed, values):
        generator = np.random.default_rng(seed)
        one, other = generator.integers(0, values, (2, 40)).astype(float)
        assert spearman(one, other) == pytest.approx(stats.spearmanr(one, other).statistic, abs=1e-12)

    def test_only_the_order_counts(self):
        x = np.array([1.0, 5.0, 2.0, 9.0])
        assert spearman(x, np.exp(x)) == pytest.approx(1.0)
        assert spearman(x, -(x**3)) == pytest.approx(-1.0)

    @pytest.mark.parametrize("one", [[], [1.0], [3.0, 3.0, 3.0]])
    def test_undefined(self, one):
        assert np.isnan(spearman(np.array(one), np.arange(len(one), dtype=float)))
        assert np.isnan(spearman(np.arange(len(one), dtype=float), np.array(one)))

    def test_wrong_arguments(self):
        with pytest.raises(ValueError, match="3 values against 2"):
            spearman(np.arange(3.0), np.arange(2.0))
        with pytest.raises(ValueError, match="one hold NaN"):
            spearman(np.array([1.0, np.nan]), np.arange(2.0))


class TestRiskCoverage:
    @pytest.mark.parametrize("seed", range(4))
    def test_ties_are_the_mean_over_all_orders(self, seed):
        generator = np.random.default_rng(seed)
        losses, uncertainty = generator.integers(0, 2, 6) * 1.0, generator.integers(0, 3, 6) * 1.0
        curves = [
            np.cumsum(losses[list(order)]) / np.arange(1, 7)
            for order in itertools.permutations(range(6))
            if np.all(np.diff(uncertainty[list(order)]) >= 0)
        ]
        found = risk_coverage(losses, uncertainty)
        np.testing.assert_allclose(found.risk, np.mean(curves, axis=0), atol=1e-12)
        assert found.area == pytest.approx(np.mean(curves), abs=1e-12)
        orders = [np.cumsum(order) / np.arange(1, 7) for order in itertools.permutations(losses)]
        assert found.random == pytest.approx(np.mean(orders), abs=1e-12)
        assert found.oracle == pytest.approx(np.mean(orders, axis=1).min(), abs=1e-12)

    def test_best_worst_and_useless_order(self):
        losses = np.array([0.0, 1.0, 0.0, 1.0, 1.0])
        assert risk_coverage(losses, losses).relative == pytest.approx(0.0)
        assert risk_coverage(losses, -losses).relative > 1
        assert risk_coverage(losses, np.zeros(5)).relative == pytest.approx(1.0)
        assert risk_coverage(losses, losses).coverage[-1] == 1

    def test_undefined(self):
        assert np.isnan(risk_coverage(np.zeros(0), np.zeros(0)).area)
        assert np.isnan(risk_coverage(np.zeros(0), np.zeros(0)).relative)
        all_right = risk_coverage(np.zeros(4), np.arange(4.0))
        assert all_right.area == 0
        assert np.isnan(all_right.relative)

    def test_wrong_arguments(self):
        with pytest.raises(ValueError, match="3 losses but 2"):
            risk_coverage(np.zeros(3), np.zeros(2))
        with pytest.raises(ValueError, match="uncertainty hold NaN"):
            risk_coverage(np.zeros(1), np.array([np.nan]))


class TestCalibration:
    def test_against_brute_force(self):
        generator = np.random.default_rng(0)
        p = np.concatenate([generator.random(200), [0.0, 0.1, 0.5, 1.0]])
        y = (generator.random(204) < p**2).astype(int)
        found = calibration(y, p, 10)
        error = 0.0
        for i in range(10):
            inside = (p >= i / 10) & ((p < (i + 1) / 10) | (i == 9))
            assert found.counts[i] == inside.sum()
            assert found.probability[i] == pytest.approx(p[inside].mean(), abs=1e-12)
            assert found.frequency[i] == pytest.approx(y[inside].mean(), abs=1e-12)
            error += inside.mean() * abs(p[inside].mean() - y[inside].mean())
        assert found.error == pytest.approx(error, abs=1e-12)

    def test_a_calibrated_model_has_a_small_error(self):
        generator = np.random.default_rng(1)
        p = generator.random(100_000)
        assert calibration(generator.random(100_000) < p, p).error < 0.01
        assert calibration(np.ones(50), np.full(50, 0.8)).error == pytest.approx(0.2)

    def test_empty_bins_and_no_entries(self):
        found = calibration(np.array([1, 0]), np.array([0.95, 0.97]), 4)
        assert list(found.counts) == [0, 0, 0, 2]
        assert np.isnan(found.frequency[:3]).all()
        assert found.error == pytest.approx(0.46)
        assert np.isnan(calibration(np.zeros(0), np.zeros(0)).error)

    def test_wrong_arguments(self):
        with pytest.raises(ValueError, match='score="probability"'):
            calibration(np.array([1]), np.array([1.2]))
        with pytest.raises(ValueError, match="must be 0 or 1"):
            calibration(np.array([-1]), np.array([0.5]))
        with pytest.raises(ValueError, match="at least 1"):
            calibration(np.array([1]), np.array([0.5]), 0)
