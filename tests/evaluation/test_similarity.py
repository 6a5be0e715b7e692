"""One place decides how embeddings are compared: against the losses' definition, and in every evaluator."""

import jax.numpy as jnp
import numpy as np
import pytest

from medclip_jax.evaluation.embedder import Embedder
from medclip_jax.evaluation.embeddings import EmbeddedSplit, embed_split
from medclip_jax.evaluation.metrics import auroc
from medclip_jax.evaluation.ordinal import evaluate_ordinal
from medclip_jax.evaluation.retrieval import evaluate_retrieval
from medclip_jax.evaluation.similarity import Gaussians, joined, means, preference, similarity
from medclip_jax.evaluation.zero_shot import evaluate_zero_shot, pair_scores
from medclip_jax.losses import probabilistic
from medclip_jax.reports.prompts import pair
from tests.evaluation.gaussian_toy import (
    DATA,
    FINDINGS,
    SPEC,
    ToyGaussian,
    tokenize,
    toy_embedder,
    toy_records,
)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def gaussians(n, seed=0, width=6):
    generator = np.random.default_rng(seed)
    spread = generator.normal(-2, 1, (n, width)).astype(np.float32)
    return Gaussians(unit(generator.normal(size=(n, width))), spread)


def csd(a, b):
    """Pair by pair, from the definition."""

    def distance(one, other):
        traces = sum(np.exp(x.log_variance.astype(float)).sum() for x in (one, other))
        return np.sum((one.mean.astype(float) - other.mean) ** 2) + traces

    return np.array([[distance(one, other) for other in b] for one in a])


class TestSimilarity:
    def test_is_the_losses_distance(self):
        a, b = gaussians(5), gaussians(7, seed=1)
        found = similarity(a, b)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, 1 - csd(a, b) / 2, atol=1e-12)
        arrays = [jnp.asarray(x) for g in (a, b) for x in (g.mean, g.log_variance)]
        np.testing.assert_allclose(found, 1 - np.asarray(probabilistic.csd(*arrays)) / 2, atol=1e-5)
        logits = np.asarray(probabilistic.pair_logits(*arrays, 10.0, -3.0))
        np.testing.assert_allclose(10 * found - 3, logits, atol=1e-4)

    def test_without_variance_it_is_the_cosine(self):
        a, b = gaussians(5), gaussians(7, seed=1)
        points = similarity(a.mean, b.mean)
        np.testing.assert_allclose(points, a.mean.astype(float) @ b.mean.astype(float).T, atol=0)
        certain = [Gaussians(g.mean, np.full_like(g.log_variance, -60)) for g in (a, b)]
        np.testing.assert_allclose(similarity(*certain), points, atol=1e-6)

    def test_points_against_gaussians_are_refused(self):
        with pytest.raises(ValueError, match="hand over the Gaussians"):
            similarity(gaussians(2).mean, gaussians(2))
        with pytest.raises(ValueError, match="hand over the Gaussians"):
            preference(gaussians(2), gaussians(1)[0], gaussians(1).mean[0])

    def test_preference_is_the_difference(self):
        a, b = gaussians(5), gaussians(2, seed=1)
        both = similarity(a, b)
        np.testing.assert_allclose(preference(a, *b), both[:, 0] - both[:, 1], atol=1e-12)
        np.testing.assert_allclose(preference(means(a), *b), both[:, 0] - both[:, 1], atol=1e-12)
        points = similarity(a.mean, b.mean)
        np.testing.assert_allclose(preference(a.mean, *b.mean), points[:, 0] - points[:, 1], atol=1e-12)

    def test_equal_prompts_tie_exactly(self):
        one = gaussians(1, seed=1)[0]
        assert not preference(gaussians(50), one, one).any()

    def test_rows_behave_as_those_of_an_array(self):
        a = gaussians(5)
        assert len(a) == 5
        np.testing.assert_array_equal(a[[True, False, True, False, False]].mean, a.mean[[0, 2]])
        np.testing.assert_array_equal(joined([a[:2], a[2:]]).log_variance, a.log_variance)
        np.testing.assert_allclose(a.trace, np.exp(a.log_variance.astype(float)).sum(axis=1))
        np.testing.assert_allclose(a.trace, probabilistic.trace(jnp.asarray(a.log_variance)), rtol=1e-5)
        assert a[3].trace == a.trace[3]


def split(volumes, **changes):
    n = len(volumes)
    generator = np.random.default_rng(5)
    fields = {
        "name": "test",
        "volumes": volumes,
        "studies": np.arange(n),
        "patients": np.arange(n),
        "labels": {finding: generator.choice([-1, 1], n).astype(np.int8) for finding in FINDINGS},
        "measurements": {"cac_grade": np.arange(n) % 5.0},
        "texts": {"report": [f"report {i}" for i in range(n)]},
        "logit_scale": 7.0,
    }
    return EmbeddedSplit(**{**fields, **changes})


def encode_texts(texts):
    parts = [gaussians(1, seed=list(text.encode())) for text in texts]
    return joined(parts)


class TestEvaluators:
    def test_zero_shot_ranks_by_csd(self):
        data = split(gaussians(40))
        result = evaluate_zero_shot(data, encode_texts, draws=0, template="is_present")
        for finding in FINDINGS:
            positive, negative = pair(finding, "is_present")
            assert positive.endswith(" is present")
            assert negative.endswith(" is not present")
            distance = csd(data.volumes, encode_texts([positive, negative]))
            score = (distance[:, 1] - distance[:, 0]) / 2
            np.testing.assert_allclose(result.findings[finding].scores, score, atol=1e-12)
            assert result.metrics()[f"auroc/{finding}"] == auroc(data.labels[finding] == 1, score)
        assert "1 - CSD / 2" in result.conditions["score"]

    def test_scale_0_is_the_models_own(self):
        data = split(gaussians(40))
        result = evaluate_zero_shot(data, encode_texts, score="probability", scale=0.0, draws=0)
        prompts = encode_texts(pair(FINDINGS[0]))
        expected = pair_scores(data.volumes, *prompts, score="probability", scale=7.0)
        np.testing.assert_array_equal(result.findings[FINDINGS[0]].scores, expected)
        logits = 7 * similarity(data.volumes, prompts)
        softmax = np.exp(logits[:, 0]) / np.exp(logits).sum(axis=1)
        np.testing.assert_allclose(expected, softmax, atol=1e-12)
        assert "scale 7, the model's own" in result.conditions["score"]

    def test_retrieval_and_grades_take_the_variances(self):
        data = split(gaussians(30))
        distance = csd(data.volumes, encode_texts(data.texts["report"]))
        result = evaluate_retrieval(data, encode_texts, ks=(1, 5), subset=0)
        for matrix, direction in ((distance, result.image_to_text), (distance.T, result.text_to_image)):
            ranks = 1 + (matrix < np.diag(matrix)[:, None]).sum(axis=1)
            assert direction.mean_rank == ranks.mean()
            assert direction.recall[5] == np.mean(ranks <= 5)
        points = evaluate_retrieval(split(means(data.volumes)), lambda t: means(encode_texts(t)), subset=0)
        assert points.image_to_text.mean_rank != result.image_to_text.mean_rank
        grades = evaluate_ordinal(data, encode_texts, draws=0)
        distance = csd(data.volumes, encode_texts(["There is coronary calcification."]))[:, 0]
        np.testing.assert_allclose(grades.scores, 1 - distance / 2, atol=1e-12)


class TestEmbedder:
    def test_keeps_variances_of_volumes_and_texts(self):
        rows, objective = toy_records(), ToyGaussian()
        embedder = toy_embedder(objective)
        data = embed_split("test", rows, embedder, findings=FINDINGS)
        expected = objective.embed_volumes({"volume": jnp.asarray(np.stack([row["volume"] for row in rows]))})
        np.testing.assert_allclose(data.volumes.mean, expected.mean, atol=1e-5)
        np.testing.assert_allclose(data.volumes.log_variance, expected.log_variance, atol=1e-5)
        assert data.logit_scale == pytest.approx(20.0, rel=1e-6)
        texts = ["one two", "three", "one two"]
        found = embedder.texts(texts)
        expected = objective.embed_texts(jnp.asarray(tokenize(texts, 32)))
        np.testing.assert_allclose(found.log_variance, expected.log_variance, atol=1e-6)
        np.testing.assert_array_equal(found.mean[0], found.mean[2])

    def test_stream_and_mesh(self):
        import jax
        from flax import nnx
        from jax.sharding import AxisType, NamedSharding, PartitionSpec

        mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
        graph, state = nnx.split(ToyGaussian())
        placed = nnx.merge(graph, jax.device_put(state, NamedSharding(mesh, PartitionSpec())))
        embedder = Embedder(placed, SPEC, DATA, tokenize, batch_size=8, progress=False)
        rows = toy_records()
        found = embedder.volumes(len(rows), lambda i: {"volume": rows[i]["volume"]})
        alone = toy_embedder().volumes(len(rows), lambda i: {"volume": rows[i]["volume"]})
        np.testing.assert_allclose(found.log_variance, alone.log_variance, atol=1e-5)
        batch = np.stack([row["volume"] for row in rows[:8]])
        (streamed,) = embedder.stream([{"volume": batch}])
        np.testing.assert_array_equal(streamed.mean, found.mean[:8])
        assert embedder.logit_scale() == pytest.approx(20.0, rel=1e-6)
        scores, present = embedder.organ_inclusion(
            3, lambda i: ({"volume": rows[i]["volume"]}, rows[i]["organs"])
        )
        assert scores.shape == present.shape == (3, 2)
