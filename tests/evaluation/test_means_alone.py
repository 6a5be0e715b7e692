"""Rankings by the means of Gaussians alone: those of the points, whatever the variances are."""

import numpy as np
import pytest

from medclip_jax.evaluation.embeddings import EmbeddedSplit
from medclip_jax.evaluation.means_alone import ranked_by
from medclip_jax.evaluation.retrieval import evaluate_retrieval
from medclip_jax.evaluation.similarity import Gaussians
from medclip_jax.evaluation.zero_shot import evaluate_zero_shot


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def points_of(texts):
    return unit(np.array([np.random.default_rng(list(text.encode())).normal(size=8) for text in texts]))


def gaussians_of(texts):
    spread = [np.random.default_rng(len(text)).normal(size=8) for text in texts]
    return Gaussians(points_of(texts), np.array(spread) - 2.0)


def split(volumes):
    draw = np.random.default_rng(0)
    return EmbeddedSplit(
        "test",
        volumes,
        np.arange(40),
        np.arange(40),
        {"cardiomegaly": draw.choice([-1, 1], 40).astype(np.int8)},
        texts={"report": ["word " * (i % 7 + 1) + str(i) for i in range(40)]},
    )


MEANS = unit(np.random.default_rng(1).normal(size=(40, 8)))
WITH_VARIANCE = split(Gaussians(MEANS, np.random.default_rng(2).normal(size=(40, 8))))


@pytest.mark.parametrize(
    ("evaluate", "options"),
    [(evaluate_zero_shot, {"draws": 0}), (evaluate_retrieval, {"subset": 20, "subset_draws": 3})],
)
def test_means_are_ranked_as_points_are(evaluate, options):
    points = evaluate(split(MEANS), points_of, **options)
    alone = evaluate(WITH_VARIANCE, gaussians_of, ranking="means", **options)
    whole = evaluate(WITH_VARIANCE, gaussians_of, **options)
    assert alone.metrics() == pytest.approx(points.metrics(), nan_ok=True)
    assert whole.metrics() != pytest.approx(points.metrics(), nan_ok=True)
    said = [text for text in alone.conditions.values() if "cosine of the means" in text]
    assert len(said) == 1
    # For points, both rankings are one.
    same = evaluate(split(MEANS), points_of, ranking="means", **options)
    assert same.metrics() == pytest.approx(points.metrics(), nan_ok=True)


def test_thresholds_from_another_split_are_of_the_means_too():
    options = {"draws": 0, "threshold": "validation"}
    of_points = evaluate_zero_shot(split(MEANS), points_of, load_split=lambda name: split(MEANS), **options)
    alone = evaluate_zero_shot(
        WITH_VARIANCE, gaussians_of, ranking="means", load_split=lambda name: WITH_VARIANCE, **options
    )
    assert alone.metrics() == pytest.approx(of_points.metrics(), nan_ok=True)


def test_another_ranking_is_refused():
    with pytest.raises(ValueError, match="use 'similarity' or 'means'"):
        ranked_by("variance", WITH_VARIANCE, gaussians_of)
