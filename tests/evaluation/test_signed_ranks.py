"""Signed ranks against all signs, Holm's correction against its definition."""

import itertools

import numpy as np
import pytest
from scipy.stats import rankdata, wilcoxon

from medclip_jax.evaluation.signed_ranks import holm, lowest_p, shortage, signed_ranks


def brute(differences):
    """Share of all ways to give the sizes signs whose rank sum is as far from the middle."""
    kept = differences[differences != 0]
    ranks = rankdata(np.abs(kept))
    middle = ranks.sum() / 2
    off = abs(ranks[kept > 0].sum() - middle)
    sums = [ranks[list(signs)].sum() for signs in itertools.product([False, True], repeat=len(kept))]
    return np.mean([abs(total - middle) >= off - 1e-9 for total in sums])


@pytest.mark.parametrize("digits", [1, 8])
def test_equals_all_signs(digits):
    """Without ties, and with ties and zeros, which are left out."""
    differences = np.random.default_rng(3).normal(0.4, 1, 11).round(digits)
    differences[4] = 0.0
    found = signed_ranks(differences)
    assert found == (10, pytest.approx(brute(differences), abs=1e-12))
    assert signed_ranks(np.append(differences, np.nan)) == found


@pytest.mark.parametrize("digits", [1, 8])
@pytest.mark.parametrize("pairs", [2, 7, 13, 14, 50, 51, 80])
def test_is_that_of_scipy(pairs, digits):
    differences = np.random.default_rng(pairs).normal(0.2, 1, pairs).round(digits)
    differences[differences == 0] = 0.1
    assert signed_ranks(differences) == (pairs, pytest.approx(wilcoxon(differences).pvalue, rel=1e-9))


def test_rounding_makes_no_difference():
    assert signed_ranks(np.array([0.1 + 0.2 - 0.3, 1e-16])) == (0, 1.0)
    tied = signed_ranks(np.array([0.1, 0.3 - 0.2, 0.5 - 0.4, -0.1]))
    assert tied.p == pytest.approx(brute(np.array([0.1, 0.1, 0.1, -0.1])), abs=1e-12)
    nothing = signed_ranks(np.array([np.nan]))
    assert nothing.pairs == 0
    assert np.isnan(nothing.p)


@pytest.mark.parametrize("pairs", [1, 5, 6, 9])
def test_the_lowest_p_is_that_of_one_sign(pairs):
    assert lowest_p(pairs) == pytest.approx(signed_ranks(np.arange(1.0, pairs + 1)).p, abs=1e-12)
    assert lowest_p(pairs) == pytest.approx(signed_ranks(np.ones(pairs)).p, abs=1e-12)


def test_five_runs_cannot_be_significant():
    assert lowest_p(5) == 0.0625
    assert "5 pairs cannot reach p 0.05" in shortage(5)
    assert "the lowest two-sided p is 0.0625; 6 pairs could" in shortage(5)
    assert shortage(6) == ""
    assert "0.0625 after correction for 2 tests; 7 pairs could" in shortage(6, tests=2)
    assert "the lowest two-sided p is 1" in shortage(0)


def test_holm():
    """Step by step: the lowest times n, the next times n - 1, never below the one before."""
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([0.02]) == [0.02]
    found = holm([float("nan"), 0.02, 0.03])
    assert np.isnan(found[0])
    assert found[1:] == pytest.approx([0.04, 0.04])
    assert holm([]) == []


def test_holm_keeps_the_chance_of_any_false_finding():
    p_values = np.random.default_rng(0).uniform(size=(4000, 6))
    any_false = np.mean([min(holm(row)) < 0.05 for row in p_values])
    assert abs(any_false - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 4000)
