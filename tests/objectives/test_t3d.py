"""T3D: its terms from the equations, crops, heads, batch norm in slices, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from medclip_jax import objectives, transforms
from medclip_jax.objectives import base, t3d
from medclip_jax.parameters import flatten, split
from medclip_jax.training import mesh as meshes
from medclip_jax.training.microbatches import loss_and_gradients

SPEC = base.DataSpec(shape=(9, 20, 14), spacing=(4.0, 3.0, 3.0), vocabulary_size=50, pad_token=0)
SIZE = 4


def small(**changes):
    config = t3d.default_config()
    config.vision.update(depth=18, width=2, dtype="float32")
    config.text.update(width=12, depth=1, heads=2, max_positions=16, dtype="float32")
    config.embedding_width = 6
    config.views.update(count=2, shape=(6, 11, 8), heads=2)
    config.update_from_flattened_dict(changes)
    return config


def build(**changes):
    return objectives.create(small(**changes), SPEC, rngs=nnx.Rngs(0))


def make_batch(size=SIZE, seed=0):
    draw = np.random.default_rng(seed)
    tokens = draw.integers(5, 50, (size, 9)).astype(np.int32)
    tokens[np.arange(9) >= draw.integers(3, 10, (size, 1))] = 0
    batch = {
        "volume": draw.integers(-1024, 1500, (size, *SPEC.shape)).astype(np.int16),
        "tokens": tokens,
        "study": np.arange(2 * size).reshape(size, 2).astype(np.int32),
        "sample": np.arange(20, 20 + size).astype(np.int32),
    }
    return {name: jnp.asarray(value) for name, value in batch.items()}


def step(model, batch, key=0, train=False):
    @jax.jit
    def run(batch):
        return model.couple(model.encode(batch, jax.random.key(key), train=train), batch)

    return run(batch)


def double(x):
    return np.asarray(x, np.float64)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def entropy(logits, own):
    return np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[own]


@functools.partial(jax.jit, static_argnums=0)
def seen(graph, state, volume, crops):
    """What the tower makes of volumes and of crops, each crop encoded by itself: vectors, tokens."""
    vision = nnx.merge(graph, state)
    tokens = jax.lax.map(lambda crop: vision.encode(vision.to_voxels(crop[None])).tokens[0], crops)
    return vision(volume), tokens


def reference(model, batch, config):
    """The terms, crop by crop: (sum, count) of both."""
    project = (
        double(model.vision_projection.linear.kernel[...]),
        double(model.text_projection.linear.kernel[...]),
    )
    _, crop_key, _ = jax.random.split(jax.random.key(0), 3)
    keys = [jax.random.fold_in(crop_key, sample) for sample in batch["sample"]]
    crops = jnp.concatenate([
        transforms.random_crops(volume[None], key[None], count=2, shape=(6, 11, 8))[0]
        for volume, key in zip(batch["volume"], keys, strict=True)
    ])  # fmt: skip
    pooled, views = seen(*nnx.split(model.vision), batch["volume"], crops)
    volume = double(pooled) @ project[0]
    mask = batch["tokens"] != 0
    states = model.text.encoder(batch["tokens"], mask)
    text = double(states[:, 0]) @ project[1]
    temperature, size = config.temperature, len(volume)
    if config.similarity == "cosine":
        logits = unit(volume) @ unit(text).T / temperature
        contrast = sum(entropy(logits[i], i) + entropy(logits[:, i], i) for i in range(size)) / 2
    else:
        logits = volume @ text.T / temperature
        contrast = sum(entropy(logits[i], i) for i in range(size))
    loss = 0.0
    for i in range(size):
        for tokens in views[2 * i : 2 * i + 2, None]:
            if model.view_blocks is not None:
                for index in range(len(model.view_blocks)):
                    block = model.view_blocks[str(index)]
                    tokens = block(tokens, states[i : i + 1], None, mask[i : i + 1])
            z = double(tokens[0]).mean(axis=0) @ double(model.view_projection.linear.kernel[...])
            if config.views.head == "prototype":
                z = unit(z) @ unit(volume).T
            loss += entropy(z / temperature, i)
    return {"contrast": (contrast, size), "views": (loss, size)}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"similarity": "dot", "views.depth": 2, "temperature": 0.5},
        {"views.read_report": False},
        {"views.head": "batch_linear", "views.batch_size": SIZE, "temperature": 0.3},
    ],
)
def test_terms_are_those_of_the_equations(changes):
    config, batch = small(**changes), make_batch()
    model = objectives.create(config, SPEC, rngs=nnx.Rngs(0))
    found, want = step(model, batch), reference(model, batch, config)
    for name, (value, count) in want.items():
        np.testing.assert_allclose(float(found[name].sum), value, rtol=2e-4, err_msg=name)
        assert (float(found[name].count), found[name].weight) == (count, 1.0)
    assert ("views_top1" in found) == (config.views.head == "prototype")


@pytest.mark.parametrize("left_out", ["contrast", "views"])
def test_a_weight_of_0_leaves_a_term_out(left_out):
    model = build(**{f"weights.{left_out}": 0.0})
    found = step(model, make_batch())
    assert left_out not in found
    names = flatten(split(model)[1])
    assert any(name.startswith("view_") for name in names) == (left_out != "views")


def test_crops_lie_inside_and_depend_on_their_sample_alone():
    volume = jnp.arange(3 * 5 * 6 * 7).reshape(3, 5, 6, 7)
    keys = jax.random.split(jax.random.key(1), 3)
    crops = np.asarray(transforms.random_crops(volume, keys, count=200, shape=(5, 2, 3)))
    starts = crops[:, :, 0, 0, 0] - 5 * 6 * 7 * np.arange(3)[:, None]
    assert set((starts // 7 % 6).ravel()) == set(range(5))
    assert set((starts % 7).ravel()) == set(range(5))
    assert set((starts // 42).ravel()) == {0}
    steps = np.arange(5)[:, None, None] * 42 + np.arange(2)[:, None] * 7 + np.arange(3)
    np.testing.assert_array_equal(crops, crops[:, :, :1, :1, :1] + steps)
    again = transforms.random_crops(volume[1:2], keys[1:2], count=200, shape=(5, 2, 3))
    np.testing.assert_array_equal(again[0], crops[1])
    with pytest.raises(ValueError, match="do not fit"):
        transforms.random_crops(volume, keys, count=1, shape=(6, 2, 3))


def test_intensities_are_0_to_1():
    voxels = build().vision.to_voxels(jnp.asarray([[[[-1500, -1000, 0, 500, 2000]]]]))
    np.testing.assert_allclose(np.ravel(voxels), [0, 0, 0.5, 0.75, 1], atol=1e-6)


def gradients_in_slices(model, batch, microbatches):
    graph, params, variables = split(model)
    mesh = meshes.make_mesh(ConfigDict({"data": 1, "fsdp": 1}), jax.devices()[:1])

    @jax.jit
    def run(params, variables, batch):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return loss_and_gradients(
                graph, params, {}, variables, batch, jax.random.key(0), mesh=mesh, microbatches=microbatches
            )

    return run(params, variables, meshes.put_batch(batch, mesh))


def assert_close(found, want, tolerance):
    scale = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in flatten(want).values()))
    for name, leaf in flatten(want).items():
        error = float(jnp.linalg.norm((flatten(found)[name] - leaf).ravel()))
        assert error <= tolerance * scale, name


def test_batch_norm_in_slices_is_exact_for_the_statistics_of_the_slices():
    """Gradient caching: the gradient of the loss in which each slice is normalized by itself."""
    # At the usual temperature and width, gradients are huge, and so is their rounding.
    model, batch = build(**{"temperature": 1.0, "vision.width": 8}), make_batch(8)
    graph, params, variables = split(model)
    key = jax.random.key(0)

    def sliced(params):
        def encode(part):
            objective = nnx.merge(graph, nnx.clone(params), nnx.clone(variables))
            return objective.encode(part, key, train=True)

        parts = jax.lax.map(encode, jax.tree.map(lambda x: x.reshape(2, 4, *x.shape[1:]), batch))
        features = jax.tree.map(lambda x: x.reshape(8, *x.shape[2:]), parts)
        return base.total(model.couple(features, batch))

    value, gradient = jax.jit(jax.value_and_grad(sliced))(params)
    found = gradients_in_slices(model, batch, 2)
    np.testing.assert_allclose(found.loss, value, rtol=1e-5)
    assert_close(found.gradients, gradient, 1e-4)
    at_once = gradients_in_slices(model, batch, 1)
    assert abs(float(at_once.loss - found.loss)) > 1e-3  # not that of the full batch


def test_other_options_are_refused():
    for changes, message in (
        ({"similarity": "euclid"}, "similarity"),
        ({"views.head": "slots"}, "views.head"),
        ({"views.head": "batch_linear"}, "views.batch_size=0"),
        ({"views.shape": (10, 11, 8)}, "no larger than the volumes"),
        ({"views.count": 0}, "count of 1 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            build(**changes)
    with pytest.raises(ValueError, match=r"views\.batch_size=3"):
        step(build(**{"views.head": "batch_linear", "views.batch_size": 3}), make_batch())


def test_a_tower_of_one_shape_takes_no_views():
    given = {"vision": {"kind": "vit"}}
    config = objectives.default_config("t3d", given)
    config.vision.update(patch=(3, 5, 7), width=12, depth=1, heads=2, dtype="float32")
    config.text.update(width=12, depth=1, heads=2, max_positions=16, dtype="float32")
    with pytest.raises(ValueError, match="kind 'resnet'"):
        objectives.create(config, SPEC, rngs=nnx.Rngs(0))
    config.weights.views = 0.0
    assert "contrast" in step(objectives.create(config, SPEC, rngs=nnx.Rngs(0)), make_batch())


def test_controls_of_the_views():
    model, batch = build(), make_batch()
    found = {image: model.match_views(batch, jax.random.key(2), image=image) for image in base.VIEWS}
    for match in found.values():
        np.testing.assert_allclose(np.linalg.norm(match.views, axis=-1), 1, rtol=1e-5)
        np.testing.assert_array_equal(match.volumes, model.embed_volumes(batch).mean)
    assert len({np.asarray(match.views).tobytes() for match in found.values()}) == 3
    deaf = build(**{"views.read_report": False})
    own, other = (deaf.match_views(batch, jax.random.key(2), image=x).views for x in ("own", "other"))
    np.testing.assert_allclose(np.roll(own, 1, axis=0), other, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="'own', 'other' or 'noise'"):
        model.match_views(batch, jax.random.key(2), image="none")
    linear = build(**{"views.head": "batch_linear", "views.batch_size": SIZE})
    assert not linear.matches_views
