"""Retrieval against brute force: every order of every tie, pools cut by hand, published scripts' sums."""

import itertools

import numpy as np
import pytest

from medclip_jax.evaluation import ranking
from medclip_jax.evaluation.chosen_volumes import choose_volumes
from medclip_jax.evaluation.embeddings import EmbeddedSplit
from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.evaluation.retrieval import evaluate_retrieval
from medclip_jax.evaluation.settings import check_evaluators
from medclip_jax.evaluation.volume_retrieval import evaluate_volume_retrieval

NAMES = ("cardiomegaly", "pericardial_effusion", "atherosclerosis")


def orders(scores):
    """Every order of the items that the scores allow, each as likely as any other."""
    for order in itertools.permutations(range(len(scores))):
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order)):
            yield list(order)


def expected(scores, value):
    """Mean of a value of an order over all orders that the scores allow."""
    return np.mean([value(order) for order in orders(scores)])


def average_precision(order, relevant, k, most):
    hits = [relevant[item] for item in order]
    return sum(hit * sum(hits[: n + 1]) / (n + 1) for n, hit in enumerate(hits[:k])) / most


def unit(rows):
    rows = np.asarray(rows, np.float64)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def encode_texts(texts):
    return unit([np.random.default_rng(list(text.encode())).normal(size=8) for text in texts])


def split_of(volumes, texts, studies=None, patients=None, table=None):
    count = len(volumes)
    studies = np.arange(count) if studies is None else np.asarray(studies)
    labels = {} if table is None else {name: table[:, n] for n, name in enumerate(NAMES)}
    return EmbeddedSplit(
        name="test",
        volumes=unit(volumes),
        studies=studies,
        patients=studies if patients is None else np.asarray(patients),
        labels=labels,
        texts={"report": list(texts)},
        ids=[f"v{n}" for n in range(count)],
    )


def manifest(count):
    return lambda: {f"v{n}": {"row": n, "notes": ()} for n in range(count)}


@pytest.mark.parametrize("seed", range(12))
def test_ranked_means_are_those_over_all_orders_of_ties(seed):
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 3, 7).astype(float)
    relevant = generator.random(7) < 0.5
    gains = generator.random(7)
    ks = (1, 2, 3, 5, 7)
    shared = ranking.average_precision_at_k(relevant, scores, ks)
    over_k = ranking.average_precision_at_k(relevant, scores, ks, over_k=True)
    gained = ranking.mean_gain_at_k(gains, scores, ks)
    for k in ks:
        most = min(k, relevant.sum())
        if most:
            value = expected(scores, lambda o, k=k, most=most: average_precision(o, relevant, k, most))
            assert shared[k] == pytest.approx(value, abs=1e-9)
        value = expected(scores, lambda o, k=k: average_precision(o, relevant, k, k))
        assert over_k[k] == pytest.approx(value, abs=1e-9)
        assert gained[k] == pytest.approx(expected(scores, lambda o, k=k: gains[o[:k]].mean()), abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_recall_and_ranks_are_those_over_all_orders_of_ties(seed):
    generator = np.random.default_rng(seed)
    similarity = generator.integers(0, 3, (4, 7)).astype(float)
    gallery = np.array([0, 0, 1, 1, 2, 3, 3])
    recall = ranking.recall_at_k(similarity, np.arange(4), gallery, (1, 2, 5))
    ranks = ranking.ranks(similarity, np.arange(4), gallery)
    first = [
        [
            next(n for n, item in enumerate(order) if gallery[item] == query)
            for order in orders(similarity[query])
        ]
        for query in range(4)
    ]
    for k, value in recall.items():
        assert value == pytest.approx(np.mean([np.mean(np.array(f) < k) for f in first]), abs=1e-9)
    np.testing.assert_allclose(ranks, [np.mean(f) + 1 for f in first], atol=1e-9)


def test_edges_of_ranked_means():
    assert np.isnan(ranking.average_precision_at_k([0, 0], [1.0, 2.0], (1,))[1])
    assert ranking.average_precision_at_k([0, 0], [1.0, 2.0], (1,), over_k=True)[1] == 0
    assert np.isnan(ranking.average_precision_at_k([1, 0], [1.0, 2.0], (3,))[3])
    assert np.isnan(ranking.average_precision_at_k([], [], (1,))[1])
    assert np.isnan(ranking.mean_gain_at_k([], [], (1,))[1])
    with pytest.raises(ValueError, match="NaN"):
        ranking.mean_gain_at_k([1.0], [np.nan], (1,))
    with pytest.raises(ValueError, match="at least 1"):
        ranking.average_precision_at_k([1], [1.0], (0,))


def test_massive_ties_are_exact():
    """2000 volumes with one of three structured texts: R@k is that of a random order within each text."""
    count = 1999
    texts = [("a", "b", "c")[n % 3] for n in range(count)]
    data = split_of(encode_texts(texts), texts)
    flat = evaluate_retrieval(data, encode_texts, pairs="volumes", ks=(1, 5, 50), subset=0).metrics()
    sizes = np.bincount([n % 3 for n in range(count)])
    for k in (1, 5, 50):
        wanted = sum(size * k / size for size in sizes) / count
        assert flat[f"text_to_image/R@{k}"] == pytest.approx(wanted, abs=1e-9)
        assert flat[f"image_to_text/R@{k}"] == pytest.approx(wanted, abs=1e-9)
    assert flat["text_to_image/mean_rank"] == pytest.approx(
        sum(s * (s + 1) / 2 for s in sizes) / count, abs=1e-6
    )


def test_each_volume_its_own_pair_as_the_released_script_counts():
    generator = np.random.default_rng(1)
    texts = [f"report {n // 2}" for n in range(40)]
    data = split_of(generator.normal(size=(40, 8)), texts, studies=np.arange(40) // 2)
    flat = evaluate_retrieval(data, encode_texts, pairs="volumes", ks=(5, 10), subset=0).metrics()
    similarity = encode_texts(texts).astype(float) @ data.volumes.astype(float).T
    for k in (5, 10):
        found = np.mean([n in np.argsort(-row)[:k] for n, row in enumerate(similarity)])
        assert flat[f"text_to_image/R@{k}"] == pytest.approx(found, abs=1e-9)
    # With duplicates the study's other volume is no hit, so that less is found than by study.
    by_study = evaluate_retrieval(data, encode_texts, ks=(5, 10), subset=0).metrics()
    assert by_study["text_to_image/R@5"] >= flat["text_to_image/R@5"]


def test_the_hits_of_all_queries_have_the_recall_as_their_mean():
    texts = ["" if n == 3 else f"report {n // 2}" for n in range(20)]
    data = split_of(np.random.default_rng(2).normal(size=(20, 8)), texts, studies=np.arange(20) // 2)
    result = evaluate_retrieval(data, encode_texts, ks=(1, 5, 50), subset=0)
    similarity = data.volumes.astype(float) @ encode_texts([f"report {n}" for n in range(10)]).astype(float).T
    for name, part in result.scored().items():
        assert list(part.ids) == [f"v{n}" for n in range(20) if n != 3]
        assert sorted(part.tasks) == ["R@1", "R@5"]  # 50 are more than there are
        for key, task in part.tasks.items():
            assert task.scores.mean() == pytest.approx(result.metrics()[f"{name}/{key}"], abs=1e-12)
    # A text stands for the first volume of its study, by brute force.
    task = result.scored()["text_to_image"].tasks["R@5"]
    assert [result.ids[row] for row in task.rows] == [f"v{2 * n}" for n in range(10)]
    kept = [n for n in range(20) if n != 3]
    for query, hit in enumerate(task.scores[0]):
        nearest = sorted(kept, key=lambda n, query=query: -similarity[n, query])[:5]
        assert hit == any(n // 2 == query for n in nearest)


def test_without_duplicates_the_first_volume_of_each_text_is_taken():
    texts = [f"Report  {n % 7}" if n % 2 else f"report {n % 7}" for n in range(20)]
    data = split_of(np.random.default_rng(0).normal(size=(20, 8)), texts)
    rows, words = choose_volumes(data, "one_per_text", manifest(20))
    assert rows.tolist() == list(range(7))
    assert "13 others left out" in words
    result = evaluate_retrieval(
        data,
        encode_texts,
        pairs="volumes",
        volumes="one_per_text",
        ks=(1,),
        subset=0,
        open_manifest=manifest(20),
    )
    assert result.text_to_image.queries == result.text_to_image.gallery == 7
    assert "the first volume of each report text" in result.conditions["n"]


def test_pools_against_pools_cut_by_hand():
    generator = np.random.default_rng(3)
    texts = [f"report {n % 9}" for n in range(23)]  # some are the same: ties in a pool
    data = split_of(generator.normal(size=(23, 8)), texts)
    result = evaluate_retrieval(
        data, encode_texts, subset=0, pools=(5, 8), pool_repeats=300, pool_ks=(1, 3), seed=4
    )
    other = np.random.default_rng(11)
    vectors = encode_texts(texts).astype(float)
    drawn = {(size, k): [] for size in (5, 8) for k in (1, 3)}
    for _ in range(300):
        rows = other.permutation(23)
        for size in (5, 8):
            pools = [rows[start : start + size] for start in range(0, 23 - size + 1, size)]
            for k in (1, 3):
                values = [
                    ranking.recall_at_k(
                        vectors[p] @ data.volumes[p].astype(float).T, np.arange(size), np.arange(size), (k,)
                    )[k]
                    for p in pools
                ]
                drawn[size, k].append(np.mean(values))
    flat = result.metrics()
    for (size, k), values in drawn.items():
        error = 4 * np.std(values) * np.sqrt(2 / 300)
        assert flat[f"pool{size}/text_to_image/R@{k}"] == pytest.approx(np.mean(values), abs=error)
        assert flat[f"pool{size}/text_to_image/R@{k}_std"] == pytest.approx(np.std(values), rel=0.25)
    assert [pools.count for pools in result.pools] == [4, 2]
    assert "pool" in str(result)


def test_one_pool_of_all_pairs_is_the_plain_evaluation():
    texts = [f"report {n % 9}" for n in range(12)]
    data = split_of(np.random.default_rng(5).normal(size=(12, 8)), texts)
    flat = evaluate_retrieval(
        data,
        encode_texts,
        ks=(1, 4),
        pairs="volumes",
        subset=0,
        pools=(12, 20),
        pool_repeats=2,
        pool_ks=(1, 4),
    ).metrics()
    for direction in ("image_to_text", "text_to_image"):
        for k in (1, 4):
            assert flat[f"pool12/{direction}/R@{k}"] == pytest.approx(flat[f"{direction}/R@{k}"], abs=1e-9)
            assert np.isnan(flat[f"pool20/{direction}/R@{k}"])


def test_a_pool_never_has_two_volumes_of_one_study():
    texts = ["same"] * 12
    data = split_of(encode_texts(texts), texts, studies=np.arange(12) // 4)
    result = evaluate_retrieval(data, encode_texts, subset=0, pools=(3,), pool_repeats=5, pool_ks=(1,))
    assert result.pools[0].count == 1
    np.testing.assert_allclose(result.pools[0].recall["text_to_image"][1], 1 / 3, atol=1e-9)


def labeled(count=40, seed=0, unknown=False):
    generator = np.random.default_rng(seed)
    table = generator.choice([-1, 1], (count, 3)).astype(np.int8)
    if unknown:
        table[0, 0] = 0
    volumes = generator.normal(size=(count, 8))
    return split_of(volumes, ["x"] * count, patients=np.arange(count) // 2, table=table), table == 1


def cosines(data):
    rows = data.volumes.astype(float)
    return rows @ rows.T


def test_overlap_as_ct_clip_computes_it():
    data, present = labeled()
    result = evaluate_volume_retrieval(data, match="overlap", leave_out="nothing", ks=(1, 5, 10))
    gallery = np.flatnonzero(present.any(1))
    similarity = cosines(data)
    for k, value in result.scores.items():
        means = []
        for query in range(40):
            nearest = gallery[np.argsort(-similarity[query, gallery])][:k]
            ratios = []
            for other in nearest:
                both = sum(a and b for a, b in zip(present[query], present[other], strict=True))
                one = sum(a != b for a, b in zip(present[query], present[other], strict=True))
                ratios.append(both / (both + one))
            means.append(np.mean(ratios))
        assert value == pytest.approx(np.mean(means), abs=1e-9)
    assert result.queries == 40
    assert result.gallery == len(gallery)


@pytest.mark.parametrize("leave_out", ["volume", "patient"])
def test_identical_labels_as_spectre_computes_it(leave_out):
    data, present = labeled(seed=2)
    result = evaluate_volume_retrieval(data, match="identical", leave_out=leave_out, ks=(1, 5, 50))
    groups = np.arange(40) if leave_out == "volume" else data.patients
    similarity = cosines(data)
    for k in (1, 5):
        values = []
        for query in range(40):
            others = np.flatnonzero(groups != groups[query])
            order = others[np.argsort(-similarity[query, others])]
            hits = (present[order] == present[query]).all(1)
            if hits.any():
                precision = np.cumsum(hits) / (np.arange(len(hits)) + 1)
                values.append((precision[:k] * hits[:k]).sum() / min(hits.sum(), k))
        assert result.scores[k] == pytest.approx(np.mean(values), abs=1e-9)
        assert result.queries == len(values)
    assert np.isnan(result.scores[50])


def test_any_shared_finding_as_radfinder_computes_it():
    data, present = labeled(seed=3)
    result = evaluate_volume_retrieval(data, match="any", leave_out="volume", ks=(5, 10))
    abnormal = np.flatnonzero(present.any(1))
    similarity = cosines(data)[np.ix_(abnormal, abnormal)]
    np.fill_diagonal(similarity, -np.inf)
    for k, value in result.scores.items():
        scores = []
        for row, query in zip(similarity, abnormal, strict=True):
            hits = (present[abnormal[np.argsort(-row)[:k]]] & present[query]).any(1)
            scores.append((np.cumsum(hits) / np.arange(1, k + 1) * hits).sum() / k)
        assert value == pytest.approx(np.mean(scores), abs=1e-9)


def test_chance_is_what_equal_volumes_give():
    data, _ = labeled()
    flat = EmbeddedSplit(**{**vars(data), "volumes": np.tile(data.volumes[:1], (40, 1))})
    for match in ("overlap", "any", "identical"):
        result = evaluate_volume_retrieval(flat, match=match, ks=(1, 5))
        assert result.scores == pytest.approx(result.chance, abs=1e-9)
        assert "random" in str(result)


def test_unknown_labels_and_refusals():
    data, _ = labeled(unknown=True)
    result = evaluate_volume_retrieval(data, ks=(1,))
    assert "1 with an unknown label left out" in result.conditions["n"]
    with pytest.raises(NotEvaluable, match="known"):
        evaluate_volume_retrieval(split_of(np.eye(3), "abc", table=np.zeros((3, 3), np.int8)), ks=(1,))
    with pytest.raises(ValueError, match="match="):
        evaluate_volume_retrieval(data, match="all")
    with pytest.raises(ValueError, match="leave_out="):
        check_evaluators({"volume_retrieval": {"leave_out": "all"}})
    with pytest.raises(ValueError, match="pairs="):
        evaluate_retrieval(data, encode_texts, pairs="all")
