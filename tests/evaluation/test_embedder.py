"""The embedder on hand-made records."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from medclip_jax.evaluation.embeddings import embed_split
from medclip_jax.objectives.base import Embedding
from tests.evaluation.point_toy import FINDINGS, Toy, embedder_of, expected_vectors, records, tokenize, unit


@pytest.mark.parametrize("batch_size", [4, 16])
def test_every_volume_in_its_place(batch_size):
    objective, rows = Toy(), records()
    embedder = embedder_of(objective, tokenize, batch_size=batch_size)
    data = embed_split("test", rows, embedder, findings=FINDINGS, measurements=("cac_grade",))
    np.testing.assert_allclose(data.volumes, expected_vectors(objective, rows), atol=1e-5)
    np.testing.assert_array_equal(data.labels["cardiomegaly"], [row["labels"][0] for row in rows])
    np.testing.assert_array_equal(data.studies, [row["study"] for row in rows])
    assert data.texts["report"][3] == "report 1"


def test_parameters_on_a_mesh_split_the_batch():
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    objective, rows = Toy(), records()
    graph, state = nnx.split(objective)
    placed = nnx.merge(graph, jax.device_put(state, NamedSharding(mesh, PartitionSpec())))
    embedder = embedder_of(placed, tokenize, batch_size=5)
    assert embedder.batch_size == 8
    data = embed_split("test", rows, embedder)
    np.testing.assert_allclose(data.volumes, expected_vectors(objective, rows), atol=1e-5)
    assert embedder.texts(["a", "b", "c"]).shape == (3, 6)


TRACED: list[str] = []


class Weighted(Toy):
    """Its texts and its scale depend on its parameters, too; says when it is traced."""

    def embed_volumes(self, inputs):
        TRACED.append("volumes")
        return super().embed_volumes(inputs)

    def embed_texts(self, tokens):
        TRACED.append("texts")
        return Embedding(super().embed_texts(tokens).mean @ self.weight[:6])

    def similarity_scale(self):
        TRACED.append("scale")
        return self.weight[0, 0]


def vectors_of(embedder):
    """All that an embedder can say of records: volumes, streamed volumes, texts, the scale."""
    rows = records()
    split = embed_split("test", rows, embedder)
    (streamed,) = embedder.stream([{"volume": np.stack([row["volume"] for row in rows[:4]])}])
    return [split.volumes, streamed, embedder.texts(["a", "b"]), np.float32(split.logit_scale)]


@pytest.mark.parametrize("how", ["update", "in place"])
def test_vectors_are_of_the_present_parameters_and_nothing_is_compiled_again(how):
    objective = Weighted()
    embedder = embedder_of(objective)
    TRACED.clear()
    before = vectors_of(embedder)
    assert sorted(TRACED) == ["scale", "texts", "volumes"]
    if how == "update":
        embedder.update(None)
        objective = Weighted()
    objective.weight[...] = -objective.weight[...]
    if how == "update":
        embedder.update(objective)
    for found, old in zip(vectors_of(embedder), before, strict=True):
        np.testing.assert_allclose(found, -old, atol=1e-6)
    assert sorted(TRACED) == ["scale", "texts", "volumes"]


def test_equal_texts_are_embedded_once():
    calls = []

    def counting(texts, length):
        calls.extend(texts)
        return tokenize(texts, length)

    embedder = embedder_of(Toy(), counting, batch_size=2)
    vectors = embedder.texts(["a", "b", "a", "c"])
    embedder.texts(["b"])
    assert calls == ["a", "b", "c"]
    np.testing.assert_array_equal(vectors[0], vectors[2])
    expected = unit(tokenize(["c"], 6)[0].astype(float) - 20)
    np.testing.assert_allclose(vectors[3], expected, atol=1e-6)


def test_a_volume_that_cannot_be_read_stops_the_evaluation():
    rows = records()

    class Broken(list):
        def __getitem__(self, index):
            if index == 7:
                raise OSError("record 7 is damaged")
            return super().__getitem__(index)

    embedder = embedder_of(Toy(), tokenize, batch_size=4)
    with pytest.raises(OSError, match="record 7"):
        embed_split("test", Broken(rows), embedder)
