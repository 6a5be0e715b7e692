"""Random weights to compare with: those a run begins with, where the trained ones lie."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from medclip_jax import objectives
from medclip_jax.evaluation.embedder import Embedder
from medclip_jax.evaluation.random_init import SEED, draw_anew
from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.objectives import mae
from medclip_jax.objectives.base import DataSpec
from medclip_jax.parameters import flatten, split
from medclip_jax.shards.read import open_shards, open_split


def test_weights_are_those_that_a_run_begins_with(tiny_run):
    """The decoder begins with the mean patches of the first volumes, which depends on data."""
    shards = tiny_run / "shards"
    spec = DataSpec.of(open_shards(shards), None)
    config = mae.default_config()
    config.vision.update(patch=(4, 8, 8), width=8, depth=1, heads=2, dtype="float32")
    config.decoder.update(width=8, depth=1, heads=2)
    config.decoder_from_mean = True
    trained, fresh = (objectives.create(config, spec, rngs=nnx.Rngs(seed)) for seed in (SEED + 1, SEED))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    place = NamedSharding(mesh, PartitionSpec())
    graph, state = nnx.split(trained)
    trained = nnx.merge(graph, jax.device_put(state, place))
    data = SimpleNamespace(text_length=6)
    embedder = Embedder(trained, spec, data, batch_size=8, progress=False, objective_config=config)
    drawn = draw_anew(embedder, shards, "train")
    records = open_split(shards, "train", fields=["volume"])
    volumes = np.stack([records[index]["volume"] for index in range(8)])
    before = flatten(split(fresh)[1])
    fresh.calibrate({"volume": jax.device_put(volumes)}, jax.random.key(SEED))
    expected, found = flatten(split(fresh)[1]), flatten(split(drawn)[1])
    assert any(np.any(before[name] != value) for name, value in expected.items())
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)
        assert found[name].sharding == place


def test_without_a_config_there_are_none(tiny_run):
    embedder = SimpleNamespace(objective_config=None)
    with pytest.raises(NotEvaluable, match="baseline='none'"):
        draw_anew(embedder, tiny_run / "shards", "train")
