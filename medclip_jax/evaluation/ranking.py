"""Metrics of ranked galleries: ranks, recall and precision among the first k.

Ties count as their expectation over all orders of the tied items, as in `medclip_jax.evaluation.metrics`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Int64
from scipy.special import gammaln

from medclip_jax.evaluation.checks import (
    Groups,
    Labels,
    Scores,
    labels_and_scores,
    refuse_nan,
    same_length,
    some,
)
from medclip_jax.evaluation.metrics import counts_by_threshold


def ranks(
    similarity: Float[np.ndarray, "queries gallery"], query_groups: Groups, gallery_groups: Groups
) -> Float[np.ndarray, " queries"]:
    """Expected rank, from 1, of the first gallery item that shares the query's group.

    With g items above the best match, t others tied with it and r matches in the tie, the mean over all
    orders of the tie is ``g + 1 + t / (r + 1)``.

    Args:
        similarity: (queries, gallery) higher is nearer.
        query_groups: (queries,) study of each query.
        gallery_groups: (gallery,) study of each gallery item.

    Returns:
        (queries,) expected ranks.

    Raises:
        ValueError: shapes disagree, a similarity is NaN, or a query has no item of its group.
    """
    above, tied, matches = _best_match(similarity, query_groups, gallery_groups)
    return above + 1 + tied / (matches + 1)


def median_rank(
    similarity: Float[np.ndarray, "queries gallery"], query_groups: Groups, gallery_groups: Groups
) -> float:
    """Median over queries of `ranks`; arguments and errors as there. NaN for no queries."""
    values = ranks(similarity, query_groups, gallery_groups)
    return float(np.median(values)) if values.size else float("nan")


def mean_rank(
    similarity: Float[np.ndarray, "queries gallery"], query_groups: Groups, gallery_groups: Groups
) -> float:
    """Mean over queries of `ranks`; arguments and errors as there. NaN for no queries."""
    values = ranks(similarity, query_groups, gallery_groups)
    return float(np.mean(values)) if values.size else float("nan")


def recall_at_k(
    similarity: Float[np.ndarray, "queries gallery"],
    query_groups: Groups,
    gallery_groups: Groups,
    ks: Iterable[int],
) -> dict[int, float]:
    """Share of queries with an item of their own study among the k nearest.

    Any gallery item of the query's study is a hit: reconstructions of one scan share one report, and the
    report of another reconstruction is the right report. A tie that straddles the k-th place counts with
    the probability that a random order of the tie puts a hit among the first k.

    Args:
        similarity: (queries, gallery) higher is nearer.
        query_groups: (queries,) study of each query.
        gallery_groups: (gallery,) study of each gallery item.
        ks: the k of R@k.

    Returns:
        k to recall in [0, 1]; NaN for k greater than the gallery, and for no queries.

    Raises:
        ValueError: as `ranks`, or k < 1.
    """
    hits = hits_at_k(similarity, query_groups, gallery_groups, ks)
    return {k: float(np.mean(found)) if found.size else float("nan") for k, found in hits.items()}


def hits_at_k(
    similarity: Float[np.ndarray, "queries gallery"],
    query_groups: Groups,
    gallery_groups: Groups,
    ks: Iterable[int],
) -> dict[int, Float[np.ndarray, " queries"]]:
    """Whether each query has a hit among the k nearest; with ties, the probability in a random order of them.

    Args:
        similarity, query_groups, gallery_groups, ks: as of `recall_at_k`, which is the mean.

    Returns:
        k to (queries,), NaN for k greater than the gallery.

    Raises:
        ValueError: as `recall_at_k`.
    """
    above, tied, matches = _best_match(similarity, query_groups, gallery_groups)
    gallery = np.asarray(similarity).shape[1]
    found = {}
    for k in _checked_ks(ks):
        if k > gallery:
            found[k] = np.full(above.size, np.nan)
            continue
        places = np.clip(k - above, 0, tied + matches)
        # All `places` go to non-matches in C(tied, places) of C(tied + matches, places) equally likely ways.
        possible = places <= tied
        inside = np.minimum(places, tied)
        log_miss = (
            gammaln(tied + 1)
            - gammaln(tied - inside + 1)
            - gammaln(tied + matches + 1)
            + gammaln(tied + matches - inside + 1)
        )
        miss = np.where(possible, np.exp(log_miss), 0.0)
        found[k] = 1.0 - np.where(places == 0, 1.0, miss)
    return found


def precision_at_k(relevant: Labels, scores: Scores, ks: Iterable[int]) -> dict[int, float]:
    """Share of relevant items among the k highest scores, for one query.

    A tie that straddles the k-th place gives its places in proportion to the relevant items in it, the
    expectation over random orders.

    Args:
        relevant: (n,) booleans or 0/1.
        scores: (n,) similarity of the query to each item.
        ks: the k of P@k.

    Returns:
        k to precision in [0, 1]; NaN for k greater than n.

    Raises:
        ValueError: as `auroc`, or k < 1.
    """
    positive, scores = labels_and_scores(relevant, scores)
    true_positives, called = counts_by_threshold(positive, scores)
    true_positives = np.concatenate([[0.0], true_positives])
    called = np.concatenate([[0.0], called])
    # Inside a tie the expected number of relevant items grows in a straight line with the places taken.
    return {
        k: float(np.interp(k, called, true_positives) / k) if k <= positive.size else float("nan")
        for k in _checked_ks(ks)
    }


def mean_gain_at_k(gains: Float[np.ndarray, " n"], scores: Scores, ks: Iterable[int]) -> dict[int, float]:
    """Mean gain of the k highest scores, for one query; `precision_at_k` where gains are 0 and 1.

    A tie that straddles the k-th place gives its places the mean gain of the tie, the expectation over random
    orders.

    Args:
        gains: (n,) what each item is worth, such as the overlap of its labels with the query's.
        scores: (n,) similarity of the query to each item.
        ks: the k.

    Returns:
        k to the mean; NaN for k greater than n.

    Raises:
        ValueError: lengths differ, a value is NaN, or k < 1.
    """
    gains, scores = np.asarray(gains, np.float64), np.asarray(scores, np.float64)
    same_length(gains, scores, "scores")
    refuse_nan(scores, "scores")
    refuse_nan(gains, "gains")
    order = np.argsort(-scores, kind="stable")
    ends = _ends_of_ties(scores[order])
    total = np.concatenate([[0.0], np.cumsum(gains[order])[ends - 1]])
    called = np.concatenate([[0], ends])
    return {
        k: float(np.interp(k, called, total) / k) if k <= gains.size else float("nan")
        for k in _checked_ks(ks)
    }


def average_precision_at_k(
    relevant: Labels, scores: Scores, ks: Iterable[int], *, over_k: bool = False
) -> dict[int, float]:
    """Sum of the precisions at the relevant ones of the k highest scores, over how many there can be.

    Ties count as their expectation over random orders: of a tie of n items, r of them relevant, behind N
    items of which R are relevant, the j-th place adds ``r / n (R + 1 + (j - 1)(r - 1) / (n - 1)) / (N + j)``.

    Args:
        relevant: (n,) booleans or 0/1.
        scores: (n,) similarity of the query to each item.
        ks: the k.
        over_k: divide by k; else by the lesser of k and the number of relevant items.

    Returns:
        k to a value in [0, 1]; NaN for k greater than n, and, unless `over_k`, where nothing is relevant.

    Raises:
        ValueError: as `auroc`, or k < 1.

    References:
        McSherry and Najork, Computing information retrieval performance measures efficiently in the presence
        of tied scores, ECIR 2008.
    """
    positive, scores = labels_and_scores(relevant, scores)
    ks = _checked_ks(ks)
    count = positive.size
    order = np.argsort(-scores, kind="stable")
    ends = _ends_of_ties(scores[order])
    found = np.concatenate([[0], np.cumsum(positive[order])[ends - 1]])
    starts = np.concatenate([[0], ends[:-1]])
    place = np.arange(1, min(max(ks, default=1), count) + 1)
    tie = np.searchsorted(ends, place)
    size, hits = (ends - starts)[tie], np.diff(found)[tie]
    before = (place - starts[tie] - 1) * (hits - 1) / np.maximum(size - 1, 1)
    gained = np.cumsum(hits / np.maximum(size, 1) * (found[tie] + 1 + before) / place)
    total = int(positive.sum())
    values = {}
    for k in ks:
        most = k if over_k else min(k, total)
        values[k] = float(gained[k - 1] / most) if k <= count and most else float("nan")
    return values


def _ends_of_ties(ordered: Float[np.ndarray, " n"]) -> Int64[np.ndarray, " ties"]:
    """Behind which place each tie of ordered scores ends."""
    if not ordered.size:
        return np.zeros(0, np.int64)
    return np.append(np.flatnonzero(np.diff(ordered)) + 1, ordered.size)


def _best_match(
    similarity: np.ndarray, query_groups: np.ndarray, gallery_groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each query: items above its best match, non-matches tied with it, matches tied with it."""
    similarity = np.asarray(similarity, np.float64)
    query_groups, gallery_groups = np.asarray(query_groups), np.asarray(gallery_groups)
    if similarity.shape != (query_groups.size, gallery_groups.size):
        raise ValueError(
            f"similarity is {similarity.shape}, but there are {query_groups.size} query groups and "
            f"{gallery_groups.size} gallery groups: rows are queries, columns the gallery"
        )
    refuse_nan(similarity, "similarity")
    if query_groups.size == 0:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    match = query_groups[:, None] == gallery_groups[None, :]
    orphans = np.flatnonzero(~match.any(axis=1))
    if orphans.size:
        raise ValueError(
            f"queries {some(orphans)} have no gallery item of their group: leave them out of the queries"
        )
    best = np.max(similarity, axis=1, where=match, initial=-np.inf)[:, None]
    tie = similarity == best
    above = np.sum(similarity > best, axis=1)
    return above.astype(float), np.sum(tie & ~match, axis=1) * 1.0, np.sum(tie & match, axis=1) * 1.0


def _checked_ks(ks: Iterable[int]) -> list[int]:
    ks = [int(k) for k in ks]
    if any(k < 1 for k in ks):
        raise ValueError(f"k must be at least 1, not {min(ks)}")
    return ks
