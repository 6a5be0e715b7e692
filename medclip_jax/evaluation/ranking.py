"""Metrics of ranked galleries: ranks, recall and precision among the first k.

Ties count as their expectation over all orders of the tied items, as in `medclip_jax.evaluation.metrics`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float
from scipy.special import gammaln

from medclip_jax.evaluation.checks import Groups, Labels, Scores, labels_and_scores, refuse_nan, some
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
    above, tied, matches = _best_match(similarity, query_groups, gallery_groups)
    gallery = np.asarray(similarity).shape[1]
    recalls = {}
    for k in _checked_ks(ks):
        if k > gallery or above.size == 0:
            recalls[k] = float("nan")
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
        recalls[k] = float(np.mean(1.0 - np.where(places == 0, 1.0, miss)))
    return recalls


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
