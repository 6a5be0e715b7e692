"""A run with adapters beside a frozen text encoder: what learns, and what is loaded and exported of it."""

import jax
import numpy as np
import pytest
from flax import nnx

import medclip_jax
from medclip_jax import objectives
from medclip_jax.export.folder import write_folder
from medclip_jax.objectives import clip
from medclip_jax.parameters import combine, flatten, merge, split, unflatten
from medclip_jax.training.checkpoints import restore_weights
from medclip_jax.training.config import base_config
from medclip_jax.training.loop import train
from tests.tiny_run import make_shards

FROZEN = (r"^text/encoder/(?!.*_adapter/)",)


def adapted(folder):
    """A short run: sigmoid pairs, prompts, adapters, a frozen text encoder, two slices a batch."""
    config = base_config()
    config.objective = clip.default_config()
    config.objective.vision.update(
        patch=(4, 8, 8), width=24, depth=1, heads=2, pooling="mean", dtype="float32"
    )
    config.objective.text.update(width=24, depth=2, heads=2, max_positions=64, dtype="float32")
    config.objective.text.adapters.update(rank=2, alpha=4.0)
    config.objective.embedding_width = 16
    config.objective.loss = "sigmoid"
    config.objective.prompts.weight = 1.0
    config.optimizer.frozen = FROZEN
    config.optimizer.learning_rate = 1e-2
    config.data.shards = str(folder / "shards")
    config.data.text_length = 24
    config.batch_size = 16
    config.microbatches = 2
    config.steps = 4
    config.evaluation.evaluators = {}
    config.log.tensorboard = config.log.progress = False
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted")
    make_shards(folder / "shards")
    train(adapted(folder), folder / "run")
    return folder


def test_the_encoder_stays_and_its_adapters_learn(folder):
    found = flatten(restore_weights(folder / "run", ema=False, step=None))
    config = adapted(folder)
    info = medclip_jax.load(folder / "run").spec
    fresh = flatten(split(objectives.create(config.objective, info, rngs=nnx.Rngs(config.seed)))[1])
    for name, value in fresh.items():
        same = np.array_equal(found[name], value)
        frozen = name.startswith("text/encoder/") and "_adapter/" not in name
        assert same == frozen, name


def test_what_is_loaded_has_them_merged_and_embeds_the_same(folder):
    model = medclip_jax.load(folder / "run")
    assert model.config["objective"]["text"]["adapters"]["rank"] == 0
    assert not any("_adapter/" in name for name in flatten(split(model.objective)[1]))
    config = adapted(folder)
    shapes = nnx.eval_shape(lambda: objectives.create(config.objective, model.spec, rngs=nnx.Rngs(0)))
    graph = split(shapes)[0]
    raw = merge(graph, unflatten(flatten(restore_weights(folder / "run", ema=False, step=None))))
    tokens = model.tokenizer(["There is cardiomegaly.", "There is no cardiomegaly."], 24)
    expected = jax.jit(lambda ids: raw.embed_texts(ids).mean)(tokens)
    found = jax.jit(lambda ids: model.objective.embed_texts(ids).mean)(tokens)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_what_is_exported_opens_without_them(folder):
    pytest.importorskip("torch")
    model = medclip_jax.load(folder / "run")
    write_folder(model, folder / "export")
    back = medclip_jax.load(folder / "export")
    mine, theirs = (flatten(combine(*split(one.objective)[1:])) for one in (model, back))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)
