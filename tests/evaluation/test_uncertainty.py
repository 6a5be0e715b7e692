"""The uncertainty evaluator on objectives whose variance is known."""

import pytest

from medclip_jax.evaluation.embeddings import embed_split
from medclip_jax.evaluation.uncertainty import evaluate_uncertainty
from tests.evaluation.gaussian_toy import FINDINGS, toy_embedder, toy_records


def evaluated(objective=None, rows=None, **settings):
    rows = toy_records() if rows is None else rows
    embedder = toy_embedder(objective)
    data = embed_split("test", rows, embedder, findings=FINDINGS)

    def open_records(fields):
        return [{name: row[name] for name in fields if name in row} for row in rows], ("lung", "heart")

    given = {"embedder": embedder, "open_records": open_records, "draws": 50}
    return evaluate_uncertainty(data, embedder.texts, **{**given, **settings})


def test_damage_that_the_variance_follows():
    flat = evaluated().metrics()
    assert flat["spearman_within/noise"] == pytest.approx(1.0)
    assert flat["spearman/noise"] > 0.9
    print(flat)
