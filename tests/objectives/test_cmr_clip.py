"""CMR-CLIP: its loss from the equation, studies without frames, series, augmentation, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from medclip_jax import objectives
from medclip_jax.objectives import base, cmr_clip

SPEC = base.DataSpec(
    shape=(),
    spacing=(),
    vocabulary_size=50,
    pad_token=0,
    views=("cine_sa", "lge_sa", "lge_2ch"),
    frame_shape=(12, 20),
)
SIZE, FRAMES = 5, 7


def small(**changes):
    config = cmr_clip.default_config()
    config.vision.update(patch=(4, 5), width=16, depth=2, heads=2, frames=FRAMES, views=3, dtype="float32")
    config.text.update(width=12, depth=1, heads=2, max_positions=16, dtype="float32")
    config.embedding_width = 6
    config.update_from_flattened_dict(changes)
    return config


@functools.cache
def shared():
    """A model that no test changes."""
    return build()


def build(**changes):
    return objectives.create(small(**changes), SPEC, rngs=nnx.Rngs(0))


def make_batch(seed=0, without=()):
    draw = np.random.default_rng(seed)
    tokens = draw.integers(5, 50, (SIZE, 9)).astype(np.int32)
    tokens[:, 6:] = 0
    shown = np.where(np.isin(np.arange(SIZE), without), 0, draw.integers(2, FRAMES + 1, SIZE))
    valid = np.arange(FRAMES) < shown[:, None]
    frames = draw.integers(0, 4096, (SIZE, FRAMES, *SPEC.frame_shape)).astype(np.int16)
    batch = {
        "frames": np.where(valid[..., None, None], frames, 0).astype(np.int16),
        "view": np.where(valid, np.arange(FRAMES) // 3, -1).astype(np.int32),
        "frame_valid": valid.astype(np.int8),
        "tokens": tokens,
        "study": np.arange(2 * SIZE).reshape(SIZE, 2).astype(np.int32),
        "sample": np.arange(20, 20 + SIZE).astype(np.int32),
    }
    return {name: jnp.asarray(value) for name, value in batch.items()}


def step(model, batch, train=False, key=0):
    run = jax.jit(lambda batch: model.couple(model.encode(batch, jax.random.key(key), train=train), batch))
    return run(batch)


def embed(model, batch):
    return jax.jit(lambda batch: model.embed_volumes(batch).mean)(batch)


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def entropy(logits, own):
    return np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[own]


@pytest.mark.parametrize("without", [(), (1,), (0, 3)])
def test_the_loss_is_the_sum_of_both_directions_over_studies_with_frames(without):
    model, batch = shared(), make_batch(without=without)
    kept = [i for i in range(SIZE) if i not in without]
    texts = jax.jit(lambda batch: model.embed_texts(batch["tokens"]).mean)(batch)
    volume, text = (unit(x)[kept] for x in (embed(model, batch), texts))
    logits = volume @ text.T / 0.05
    wanted = np.mean([entropy(logits[i], i) + entropy(logits[:, i], i) for i in range(len(kept))])
    terms = step(model, batch)
    np.testing.assert_allclose(base.total(terms), wanted, rtol=2e-5)
    assert terms["without_frames"].sum / terms["without_frames"].count == pytest.approx(len(without) / SIZE)


def test_without_any_frames_there_is_no_loss_and_nothing_is_learned():
    model, batch = shared(), make_batch(without=range(SIZE))
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params):
        model = nnx.merge(graph, params, rest)
        return base.total(model.couple(model.encode(batch, jax.random.key(0), train=True), batch))

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert value == 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_projections_are_relu_then_linear():
    model, batch = shared(), make_batch()
    pooled = np.maximum(np.asarray(jax.jit(model.pool_volumes)(batch)), 0.0)
    linear = model.vision_projection.linear
    wanted = unit(pooled @ np.asarray(linear.kernel[...]) + np.asarray(linear.bias[...]))
    np.testing.assert_allclose(embed(model, batch), wanted, atol=2e-6)


@pytest.mark.parametrize("motion", [0.0, 5.0])
def test_what_stands_in_padding_changes_nothing(motion):
    model, batch = build(**{"vision.motion": motion}) if motion else shared(), make_batch()
    dirty = jnp.where(batch["frame_valid"][..., None, None] > 0, batch["frames"], 4000).astype(jnp.int16)
    first, second = (embed(model, batch | {"frames": x}) for x in (batch["frames"], dirty))
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_the_series_of_a_frame_is_seen_once_it_has_learned():
    model, batch = build(), make_batch()
    other = batch | {"view": jnp.where(batch["view"] == 0, 2, batch["view"])}
    np.testing.assert_array_equal(embed(model, batch), embed(model, other))
    table = model.vision.video.view_embedding
    table[...] = jax.random.normal(jax.random.key(1), table[...].shape)
    assert np.abs(embed(model, batch) - embed(model, other)).max() > 1e-3


@pytest.mark.parametrize(
    "augment", [{"crop_area": (0.3, 0.6)}, {"flip": True}, {"gain": 0.5}, {"noise": 0.5}]
)
def test_studies_are_varied_in_training_alone(augment):
    changes = {f"vision.augment.{name}": value for name, value in augment.items()}
    models, batch, key = (shared(), build(**changes)), make_batch(), jax.random.key(2)

    def features(train):
        return [jax.jit(lambda b, m=m: m.encode(b, key, train=train)["volume"])(batch) for m in models]

    np.testing.assert_array_equal(*features(False))
    still, varied = features(True)
    assert np.abs(still - varied).max() > 1e-4


def test_one_frame_of_one_series_will_do():
    batch = {name: make_batch()[name][:, :1] for name in ("frames", "view", "frame_valid")}
    assert np.isfinite(embed(shared(), batch)).all()


def test_more_series_than_the_embedding_has_rows_are_refused():
    with pytest.raises(ValueError, match=r"3 series of frames and .* is 2: set it"):
        build(**{"vision.views": 2})


def test_data_without_frames_are_refused():
    spec = base.DataSpec(shape=(8, 8, 8), spacing=(1.0, 1.0, 1.0), vocabulary_size=50)
    with pytest.raises(ValueError, match="--corpus cmr"):
        objectives.create(small(), spec, rngs=nnx.Rngs(0))
