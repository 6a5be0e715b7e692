"""Crops that look for their volume: an objective that goes by what it sees, or by the report alone."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from medclip_jax.evaluation.embedder import Embedder
from medclip_jax.evaluation.embeddings import EmbeddedSplit
from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.evaluation.views import _scores, evaluate_views
from medclip_jax.objectives.base import VIEWS, DataSpec, Embedding, Objective, ViewMatch

SPEC = DataSpec((2, 2, 2), (1.0, 1.0, 1.0), vocabulary_size=100)
DATA = SimpleNamespace(text={"report": 1.0}, text_length=3, most_statements=0)
WIDTH = 16


class Tokenizer:
    """A report is the number of its volume."""

    pad = 0

    def __call__(self, texts, length):
        return np.array([[int(text), 0, 0] for text in texts], np.int32)


class Seeker(Objective):
    """Two crops of each volume: the first goes by what is seen, the second by the report."""

    matches_views = True

    def embed_volumes(self, inputs):
        return Embedding(jnp.eye(WIDTH)[inputs["volume"][:, 0, 0, 0]])

    def match_views(self, batch, key, *, image="own"):
        volumes = self.embed_volumes(batch).mean
        seen = {"own": volumes, "other": jnp.roll(volumes, 1, axis=0), "noise": jnp.zeros_like(volumes)}
        return ViewMatch(jnp.stack([seen[image], jnp.eye(WIDTH)[batch["tokens"][:, 0]]], axis=1), volumes)

    def similarity_scale(self):
        return jnp.float32(2.0)


def match(count=5, patients=None, studies=None, batch_size=2, **settings):
    records = [
        {
            "volume": np.full((2, 2, 2), row, np.int16),
            "study": np.int64(row),
            "report": str(row),
            "findings_text": str(row),
            "impression": "",
            "statements": "",
        }
        for row in range(count)
    ]
    embedder = Embedder(Seeker(), SPEC, DATA, Tokenizer(), batch_size=batch_size, progress=False)
    rows = np.arange(count)
    split = EmbeddedSplit(
        "test",
        np.ones((count, 2), np.float32),
        rows if studies is None else np.array(studies),
        rows if patients is None else np.array(patients),
    )
    return evaluate_views(
        split,
        embedder.texts,
        **{"draws": 0, **settings},
        embedder=embedder,
        open_records=lambda fields: (records, ()),
    )


def test_what_is_seen_and_what_is_read():
    result = match(among=4)
    # Noise is alike to all volumes, of which the first is then the nearest: to volume 0, and to the one that
    # fills up the last group.
    assert result.top1["own"] == 1.0
    assert result.top1["other"] == 0.5
    assert 0.5 <= result.top1["noise"] <= 0.5 + 0.5 * 2 / 5
    assert result.metrics()["gain_over_noise"] == pytest.approx(1.0 - result.top1["noise"])
    found, chance = -np.log(np.exp(2) / (np.exp(2) + 3)), np.log(4)
    missed = np.log(np.exp(2) + 3)
    assert result.loss["own"] == pytest.approx(found, rel=1e-5)
    assert result.loss["noise"] == pytest.approx((found + chance) / 2, rel=1e-5)
    assert found < result.loss["other"] <= (found + missed) / 2 + 1e-6
    assert "chance 0.250, whose loss is 1.386" in str(result)


def test_volumes_beside_their_own_patient_have_no_other():
    alone = match(batch_size=1, draws=10)
    assert np.isnan([alone.top1["other"], alone.loss["other"]]).all()
    assert "other" not in alone.intervals
    assert alone.top1["own"] == 1.0
    assert "5 volumes beside their own patient left out" in str(alone)
    some = match(count=4, patients=[0, 0, 0, 1])  # in the order 0 3 | 1 2
    assert "2 volumes beside" in str(some)
    assert some.top1["other"] == 0.5


def test_intervals_are_of_patients():
    result = match(count=6, patients=[0, 0, 1, 1, 2, 2], draws=20)
    assert result.intervals.keys() == {*VIEWS, "gain_over_noise"}
    assert result.intervals["own"].low == 1.0


def test_scores_group_by_group():
    draw = np.random.default_rng(0)
    views, volumes = draw.normal(size=(7, 2, 3)), draw.normal(size=(7, 3))
    studies = np.array([0, 1, 0, 3, 4, 5, 6])
    hits, losses = _scores(views, volumes, studies, 3, 1.5)
    for row in range(7):
        group = [[0, 1, 2], [0, 1, 2], [0, 1, 2], [3, 4, 5], [3, 4, 5], [3, 4, 5], [4, 5, 6]][row]
        own = [other for other in group if studies[other] == studies[row]]
        right, loss = [], []
        for view in views[row]:
            logits = {other: 1.5 * view @ volumes[other] for other in group}
            right.append(max(logits, key=logits.get) in own)
            total = np.log(sum(np.exp(list(logits.values()))))
            loss.append(np.mean([total - logits[other] for other in own]))
        assert hits[row] == np.mean(right)
        assert losses[row] == pytest.approx(np.mean(loss))


def test_where_there_is_nothing_to_choose():
    with pytest.raises(NotEvaluable, match="no other volume"):
        match(count=1)
    Seeker.matches_views = False
    try:
        embedder = Embedder(Seeker(), SPEC, DATA, Tokenizer(), batch_size=2)
        assert "assigns no crops" in embedder.lacks("views")
    finally:
        Seeker.matches_views = True
