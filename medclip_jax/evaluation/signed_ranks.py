"""Wilcoxon's signed-rank test of paired numbers, how low its p can get, and Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata, wilcoxon

LEVEL = 0.05
"""Level of significance of all notes."""


class SignedRanks(NamedTuple):
    """A signed-rank test.

    Attributes:
        pairs: that differ; those that are equal say nothing.
        p: two-sided; NaN without any pair.
    """

    pairs: int
    p: float


def signed_ranks(differences: Float[np.ndarray, " n"]) -> SignedRanks:
    """Whether paired differences lie about zero (Wilcoxon 1945); equal pairs are left out.

    Up to 50 pairs the p is exact where no two differences have the same size, else up to 13; beyond, it is
    that of the normal distribution, as in `scipy.stats.wilcoxon`.

    Args:
        differences: NaN where a pair is not known.
    """
    # What rounding parts is a tie.
    known = np.round(differences[~np.isnan(differences)], 12)
    unequal = known[known != 0]
    if not known.size:
        return SignedRanks(0, float("nan"))
    sizes = np.abs(unequal)
    if unequal.size <= (50 if np.unique(sizes).size == unequal.size else 13):
        return SignedRanks(unequal.size, _exact_p(2 * rankdata(sizes), unequal > 0))
    return SignedRanks(unequal.size, float(wilcoxon(unequal).pvalue))


def _exact_p(ranks: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> float:
    """Two-sided p by counting all 2^n signs; ranks are doubled, so that those of ties are whole, too.

    SciPy instead goes through all signs where there are ties, which takes some 400 times as long.
    """
    ranks = ranks.astype(np.int64)
    ways = np.zeros(ranks.sum() + 1)  # that give each sum of positive ranks
    ways[0] = 1.0
    for rank in ranks:
        ways[rank:] += ways[:-rank].copy()
    total = ranks[positive].sum()
    tail = min(ways[: total + 1].sum(), ways[total:].sum())
    return min(1.0, float(2.0 * tail / ways.sum()))


def lowest_p(pairs: int) -> float:
    """The lowest two-sided p that so many pairs can reach: all of them on one side, one of 2^pairs orders.

    Args:
        pairs: that differ.
    """
    return min(1.0, 2.0 ** (1 - pairs))


def shortage(pairs: int, tests: int = 1) -> str:
    """Why so few pairs cannot be significant, and how many could; "" where they can.

    Args:
        pairs: of a signed-rank test.
        tests: that Holm's correction is for: the lowest p is multiplied by them.
    """
    lowest = lowest_p(pairs)
    if lowest * tests <= LEVEL:
        return ""
    needed = next(n for n in range(1, 100) if lowest_p(n) * tests <= LEVEL)
    corrected = f", {min(1.0, lowest * tests):g} after correction for {tests} tests" if tests > 1 else ""
    return (
        f"{pairs} pairs cannot reach p {LEVEL:g}, whatever the values: the lowest two-sided p is {lowest:g}"
        f"{corrected}; {needed} pairs could"
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction for several tests (Holm 1979): the chance of any false finding stays below the level.

    Args:
        p_values: of all tests; NaN where there was none, which counts as no test and stays NaN.

    Returns:
        Corrected ones, in the same order.
    """
    given = np.asarray(p_values, np.float64)
    corrected = np.full(given.shape, np.nan)
    tests = np.flatnonzero(~np.isnan(given))
    order = tests[np.argsort(given[tests], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1, np.maximum.accumulate(given[order] * factors))
    return corrected.tolist()
