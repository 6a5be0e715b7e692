"""Metrics against scikit-learn, brute force over all orders, and by hand. float64: tolerance 1e-12."""

from itertools import combinations, pairwise, permutations

import numpy as np
import pytest
from sklearn import metrics as reference

from medclip_jax.evaluation import metrics, ranking

EXACT = {"abs": 1e-12}


def drawn(seed, n=40, levels=None):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, n)
    labels[:2] = 0, 1
    scores = generator.normal(size=n) + 0.7 * labels
    return labels, scores if levels is None else np.round(scores * levels) / levels


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("levels", [None, 2, 1])
class TestAgainstScikitLearn:
    def test_auroc(self, seed, levels):
        labels, scores = drawn(seed, levels=levels)
        assert metrics.auroc(labels, scores) == pytest.approx(
            reference.roc_auc_score(labels, scores), **EXACT
        )

    def test_average_precision(self, seed, levels):
        labels, scores = drawn(seed, levels=levels)
        expected = reference.average_precision_score(labels, scores)
        assert metrics.average_precision(labels, scores) == pytest.approx(expected, **EXACT)

    def test_f1_and_accuracy(self, seed, levels):
        labels, scores = drawn(seed, levels=levels)
        called = scores >= 0.3
        assert metrics.f1(labels, called) == pytest.approx(reference.f1_score(labels, called), **EXACT)
        expected = reference.accuracy_score(labels, called)
        assert metrics.accuracy(labels, called) == pytest.approx(expected, **EXACT)

    def test_roc_curve(self, seed, levels):
        labels, scores = drawn(seed, levels=levels)
        found = metrics.roc_curve(labels, scores)
        expected = reference.roc_curve(labels, scores, drop_intermediate=False)
        np.testing.assert_allclose(found[0], expected[0], atol=1e-12)
        np.testing.assert_allclose(found[1], expected[1], atol=1e-12)

    @pytest.mark.parametrize("criterion", ["f1", "accuracy", "youden", "equal"])
    def test_best_threshold_beats_every_other(self, seed, levels, criterion):
        labels, scores = drawn(seed, levels=levels)

        def value(threshold):
            called = scores >= threshold
            hits, wrong = (called & (labels == 1)).sum(), (called & (labels == 0)).sum()
            return {
                "f1": 2 * hits / (called.sum() + labels.sum()),
                "accuracy": (called == labels).mean(),
                "youden": hits / labels.sum() - wrong / (labels == 0).sum(),
                "equal": -abs(hits / labels.sum() + wrong / (labels == 0).sum() - 1),
            }[criterion]

        distinct = np.unique(scores)
        candidates = [*distinct, *(distinct[:-1] + distinct[1:]) / 2, distinct[-1] + 1]
        best = max(map(value, candidates))
        chosen = metrics.best_threshold(labels, scores, criterion=criterion)
        assert value(chosen) == pytest.approx(best, **EXACT)
        if criterion == "equal":
            return  # of equally near ones other things decide, see below
        # Of equally good ones, the one that calls the fewest positive.
        fewest = min((scores >= t).sum() for t in candidates if value(t) > best - 1e-12)
        assert (scores >= chosen).sum() == fewest


def test_equal_threshold_by_hand():
    labels = np.array([1, 1, 0, 1, 0, 0, 0, 0])
    scores = np.array([9.0, 8, 7, 6, 5, 4, 3, 2])
    # At 6: sensitivity 3/3, specificity 4/5; at 8: 2/3 and 5/5; at 7: 2/3 and 4/5, nearest to one another.
    assert 6 < metrics.best_threshold(labels, scores, criterion="equal") <= 7
    perfect = metrics.best_threshold(labels[[0, 1, 4, 5]], scores[[0, 1, 4, 5]], criterion="equal")
    assert 5 < perfect <= 8
    # All called or none: both are 1 apart, and there is nothing between.
    assert np.isfinite(metrics.best_threshold([1, 0, 1, 0], np.zeros(4), criterion="equal"))


def test_sensitivity_and_specificity():
    labels, called = np.array([1, 1, 1, 0, 0]), np.array([1, 1, 0, 0, 1])
    assert metrics.sensitivity(labels, called) == pytest.approx(2 / 3, **EXACT)
    assert metrics.specificity(labels, called) == 0.5
    assert np.isnan(metrics.sensitivity(np.zeros(2), np.ones(2)))
    assert np.isnan(metrics.specificity(np.ones(2), np.ones(2)))


def test_auroc_counts_a_tie_as_one_half():
    labels, scores = drawn(7, levels=1)
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels == 1] for n in scores[labels == 0]]
    assert metrics.auroc(labels, scores) == pytest.approx(np.mean(pairs), **EXACT)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_is_undefined(label):
    labels, scores = np.full(5, label), np.arange(5.0)
    assert np.isnan(metrics.auroc(labels, scores))
    assert np.isnan(metrics.average_precision(labels, scores))
    assert np.isnan(metrics.best_threshold(labels, scores))


def test_all_ties_score_as_chance():
    labels, scores = np.array([1, 0, 0, 0]), np.zeros(4)
    assert metrics.auroc(labels, scores) == 0.5
    assert metrics.average_precision(labels, scores) == 0.25
    assert ranking.precision_at_k(labels, scores, [1, 2, 4]) == {1: 0.25, 2: 0.25, 4: 0.25}


def test_empty_is_undefined():
    none = np.zeros(0)
    assert np.isnan(metrics.auroc(none, none))
    assert np.isnan(metrics.accuracy(none, none))
    assert np.isnan(metrics.f1(none, none))
    assert metrics.bootstrap_interval(metrics.auroc, none, none, seed=0).defined == 0
    assert np.isnan(ranking.precision_at_k(none, none, [1])[1])


def test_f1_without_positives():
    assert np.isnan(metrics.f1(np.zeros(3), np.zeros(3)))
    assert metrics.f1(np.zeros(3), np.ones(3)) == 0


@pytest.mark.parametrize("function", [metrics.auroc, metrics.average_precision, metrics.best_threshold])
def test_nan_score_is_named(function):
    with pytest.raises(ValueError, match=r"scores hold NaN at 2 \(1 of 4\)"):
        function(np.array([0, 1, 0, 1]), np.array([0.0, 1.0, np.nan, 2.0]))


def test_nan_similarity_is_named():
    similarity = np.zeros((2, 3))
    similarity[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"NaN at \(1, 2\)"):
        ranking.recall_at_k(similarity, [0, 1], [0, 1, 2], [1])


def test_unknown_labels_are_refused():
    with pytest.raises(ValueError, match=r"labels\[1\] = -1.*leave unknown"):
        metrics.auroc(np.array([0, -1, 1]), np.zeros(3))


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="3 labels but scores"):
        metrics.auroc(np.array([0, 1, 1]), np.zeros(2))


def test_unknown_criterion():
    with pytest.raises(ValueError, match="youden"):
        metrics.best_threshold(np.array([0, 1]), np.zeros(2), criterion="best")


class TestBootstrap:
    def test_against_a_plain_loop(self):
        labels, scores = drawn(3)
        groups = np.random.default_rng(1).integers(0, 12, len(labels))
        names = np.unique(groups)
        generator = np.random.default_rng(5)
        values = []
        for _ in range(200):
            chosen = generator.integers(len(names), size=len(names))
            index = np.concatenate([np.flatnonzero(groups == names[c]) for c in chosen])
            values.append(
                reference.roc_auc_score(labels[index], scores[index])
                if len(set(labels[index])) == 2
                else np.nan
            )
        found = metrics.bootstrap_interval(metrics.auroc, labels, scores, draws=200, seed=5, groups=groups)
        assert found.defined == np.isfinite(values).sum()
        assert found[:2] == pytest.approx(np.nanpercentile(values, [2.5, 97.5]), **EXACT)

    def test_copies_of_a_patient_do_not_narrow_it(self):
        labels, scores = drawn(2, n=30)
        alone = metrics.bootstrap_interval(metrics.auroc, labels, scores, seed=0)
        copied = [np.repeat(a, 5) for a in (labels, scores, np.arange(30))]
        grouped = metrics.bootstrap_interval(metrics.auroc, *copied[:2], seed=0, groups=copied[2])
        naive = metrics.bootstrap_interval(metrics.auroc, *copied[:2], seed=0)
        assert grouped == pytest.approx(alone, **EXACT)
        assert naive.high - naive.low < 0.7 * (alone.high - alone.low)

    def test_covers_the_truth(self):
        # Binormal scores with AUROC Phi(1 / sqrt 2) = 0.760; 95 % intervals, 100 samples of 120.
        hits = 0
        for seed in range(100):
            generator = np.random.default_rng(seed)
            labels = np.arange(120) % 2
            scores = generator.normal(size=120) + labels
            low, high, _ = metrics.bootstrap_interval(metrics.auroc, labels, scores, draws=200, seed=seed)
            hits += low <= 0.7602 <= high
        assert 87 <= hits <= 100

    def test_undefined_draws_are_counted_out(self):
        labels = np.array([1, 0, 0, 0, 0])
        found = metrics.bootstrap_interval(metrics.auroc, labels, np.arange(5.0), draws=500, seed=0)
        # A draw lacks the one positive with probability (4/5)^5, and the negatives with (1/5)^5.
        assert found.defined == pytest.approx(500 * (1 - 0.8**5 - 0.2**5), abs=45)

    def test_seed_decides(self):
        labels, scores = drawn(0)
        one, two, other = (
            metrics.bootstrap_interval(metrics.auroc, labels, scores, draws=50, seed=s) for s in (1, 1, 2)
        )
        assert one == two
        assert one != other

    @pytest.mark.parametrize("wrong", [{"draws": 0}, {"level": 1.0}, {"groups": np.zeros(3)}])
    def test_wrong_arguments(self, wrong):
        with pytest.raises(ValueError, match=r"draws|groups"):
            metrics.bootstrap_interval(metrics.auroc, *drawn(0), seed=0, **wrong)


def tied_orders(similarity):
    """Every order of the gallery that sorts the similarities from high to low."""
    for order in permutations(range(len(similarity))):
        if all(similarity[a] >= similarity[b] for a, b in pairwise(order)):
            yield list(order)


class TestRetrieval:
    @pytest.mark.parametrize("seed", range(6))
    def test_ties_are_the_mean_over_all_orders(self, seed):
        generator = np.random.default_rng(seed)
        similarity = generator.integers(0, 3, (4, 6)) / 2
        queries, gallery = np.array([0, 1, 2, 2]), generator.permutation([0, 1, 2, 0, 1, 3])
        first = [
            [1 + min(np.flatnonzero(gallery[order] == q)) for order in tied_orders(row)]
            for row, q in zip(similarity, queries, strict=True)
        ]
        found = ranking.recall_at_k(similarity, queries, gallery, [1, 2, 3, 5, 6])
        for k, value in found.items():
            expected = np.mean([np.mean(np.array(ranks) <= k) for ranks in first])
            assert value == pytest.approx(expected, **EXACT), k
        expected = [np.mean(ranks) for ranks in first]
        np.testing.assert_allclose(ranking.ranks(similarity, queries, gallery), expected, atol=1e-12)
        assert ranking.mean_rank(similarity, queries, gallery) == pytest.approx(np.mean(expected), **EXACT)
        assert ranking.median_rank(similarity, queries, gallery) == pytest.approx(
            np.median(expected), **EXACT
        )

    def test_any_item_of_the_study_is_a_hit(self):
        similarity = np.array([[0.1, 0.9, 0.5], [0.9, 0.1, 0.5]])
        assert ranking.recall_at_k(similarity, [7, 8], [7, 8, 7], [1, 2]) == {1: 0.0, 2: 0.5}
        np.testing.assert_array_equal(ranking.ranks(similarity, [7, 8], [7, 8, 7]), [2, 3])

    def test_a_collapsed_model_scores_as_chance(self):
        found = ranking.recall_at_k(np.ones((100, 100)), np.arange(100), np.arange(100), [1, 5, 50])
        assert found == pytest.approx({1: 0.01, 5: 0.05, 50: 0.5}, **EXACT)
        assert ranking.median_rank(np.ones((100, 100)), np.arange(100), np.arange(100)) == 50.5

    def test_k_beyond_the_gallery_is_undefined(self):
        found = ranking.recall_at_k(np.eye(3), np.arange(3), np.arange(3), [3, 4])
        assert found[3] == 1
        assert np.isnan(found[4])

    def test_orphan_is_named(self):
        with pytest.raises(ValueError, match="queries 1 have no gallery item"):
            ranking.ranks(np.zeros((2, 2)), [0, 5], [0, 1])

    def test_transposed_similarity_is_told(self):
        with pytest.raises(ValueError, match="rows are queries"):
            ranking.ranks(np.zeros((3, 2)), [0, 1], [0, 1, 2])

    def test_no_queries(self):
        assert np.isnan(ranking.recall_at_k(np.zeros((0, 2)), [], [0, 1], [1])[1])
        assert np.isnan(ranking.median_rank(np.zeros((0, 2)), [], [0, 1]))

    def test_large_ties_do_not_overflow(self):
        n = 20_000
        found = ranking.recall_at_k(np.zeros((1, n)), [0], np.arange(n), [10, 5000])
        assert found == pytest.approx({10: 10 / n, 5000: 5000 / n}, abs=1e-9)

    @pytest.mark.parametrize("seed", range(4))
    def test_precision_is_the_mean_over_ties(self, seed):
        generator = np.random.default_rng(seed)
        relevant, scores = generator.integers(0, 2, 6), generator.integers(0, 3, 6) / 2
        orders = list(tied_orders(scores))
        found = ranking.precision_at_k(relevant, scores, [1, 2, 3, 5, 6, 7])
        assert np.isnan(found.pop(7))
        for k, value in found.items():
            expected = np.mean([relevant[order[:k]].mean() for order in orders])
            assert value == pytest.approx(expected, **EXACT), k

    def test_k_below_one(self):
        with pytest.raises(ValueError, match="at least 1"):
            ranking.precision_at_k(np.array([1, 0]), np.zeros(2), [0])


class TestOrdinal:
    def test_against_scikit_learn(self):
        generator = np.random.default_rng(0)
        grades = generator.integers(0, 5, 80)
        scores = grades + 2 * generator.normal(size=80)
        found = metrics.ordinal_auroc(grades, scores, (1, 2, 3, 4))
        expected = {cut: reference.roc_auc_score(grades >= cut, scores) for cut in (1, 2, 3, 4)}
        assert found.by_threshold == pytest.approx(expected, **EXACT)
        assert found.mean == pytest.approx(np.mean(list(expected.values())), **EXACT)

    def test_counts_pairs_across_the_cut(self):
        grades, scores = np.array([0, 1, 2, 2]), np.array([0.0, 3.0, 1.0, 3.0])
        pairs = [(a, b) for a, b in combinations(range(4), 2) if grades[a] < 2 <= grades[b]]
        expected = np.mean([(scores[b] > scores[a]) + 0.5 * (scores[b] == scores[a]) for a, b in pairs])
        assert metrics.ordinal_auroc(grades, scores, (2,)).by_threshold[2] == expected

    def test_missing_grade_is_left_out_of_the_mean(self):
        found = metrics.ordinal_auroc(np.array([0, 0, 1]), np.array([0.0, 1.0, 2.0]), (1, 2))
        assert found.by_threshold[1] == 1
        assert np.isnan(found.by_threshold[2])
        assert found.mean == 1

    def test_unknown_grade_is_refused(self):
        with pytest.raises(ValueError, match="grades hold NaN at 1"):
            metrics.ordinal_auroc(np.array([0, np.nan]), np.zeros(2), (1,))
