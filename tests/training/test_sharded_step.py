"""Loss and gradients on several devices, and in microbatches, equal those of one device in one go.

Float32; only the order of sums differs: 1e-6 relative for the loss; for gradients 1e-5 of each
parameter's norm, and no less than 1e-7 of the norm of all (a gradient that is zero but for rounding).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from toy import SPEC as TOY_SPEC
from toy import Toy, make_config

from medclip_jax import objectives
from medclip_jax.objectives import (
    asap,
    base,
    cardiac_clip,
    clip,
    cmr_clip,
    hipro_ct,
    mae,
    supervised,
    supervised_frames,
    t3d,
)
from medclip_jax.objectives.base import Term
from medclip_jax.objectives.towers import vision_defaults
from medclip_jax.parameters import flatten, split, unflatten
from medclip_jax.planning.collectives import bytes_by_kind, read_collectives
from medclip_jax.training import mesh as meshes
from medclip_jax.training import partition
from medclip_jax.training.microbatches import loss_and_gradients
from tests import any_shape

BATCH = 16
SPEC = base.DataSpec(
    shape=(4, 8, 8),
    spacing=(1.0, 1.0, 1.0),
    findings=cardiac_clip.FINDINGS,
    organs=("heart", "left_lung", "right_lung"),
    vocabulary_size=48,
    mask_token=4,
    views=("cine_sa", "lge_sa"),
    frame_shape=(8, 8),
    measurements=("months", "event"),
)
MODULES = {
    "mae": mae,
    "info_nce": clip,
    "sigmoid": clip,
    "prompts": clip,
    "cardiac_clip": cardiac_clip,
    "hipro_ct": hipro_ct,
    "asap": asap,
    "t3d": t3d,
    "cmr_clip": cmr_clip,
    "supervised": supervised,
    "cox": supervised,
    "supervised_frames": supervised_frames,
}


class Odd(Toy):
    """Features of every kind, one of them unused, and one sample that can be made to break."""

    def encode(self, batch, key, *, train):
        features = super().encode(batch, key, train=train)
        breaking = batch["findings"][:, 0] == 7
        features["volume"] = jnp.where(breaking[:, None], jnp.nan, features["volume"])
        return features | {
            "words": (batch["tokens"] > 0).sum(axis=1),
            "valid": batch["tokens"][:, 0] > 5,
            "unused": features["text"].astype(jnp.bfloat16),
        }

    def couple(self, features, batch):
        terms = super().couple({name: features[name] for name in ("volume", "text")}, batch)
        size = (features["volume"] ** 2).sum(axis=1)
        weight = features["words"] * features["valid"]
        return terms | {"size": Term((size * weight).sum(), features["valid"].sum().astype(jnp.float32))}


def build(name):
    if name == "odd":
        return Odd(make_config().objective, TOY_SPEC, rngs=nnx.Rngs(0))
    config = MODULES[name].default_config()
    if name == "t3d":
        with config.unlocked():
            config.vision = vision_defaults(any_shape.KIND) | {"dtype": "float32"}
        config.views.update(count=2, shape=(3, 5, 6), heads=2)
    elif name in ("cmr_clip", "supervised_frames"):
        config.vision.update(patch=(4, 4), width=16, depth=1, heads=2, dtype="float32")
    else:
        config.vision.update(patch=(4, 4, 4), width=16, depth=1, heads=2, dtype="float32")
    if "decoder" in config:
        config.decoder.update(width=8, depth=1, heads=2)
    if "text" in config:
        config.text.update(width=16, depth=1, heads=2, max_positions=8, dtype="float32")
    if "embedding_width" in config:
        config.embedding_width = 8
    if name in ("sigmoid", "prompts"):
        config.loss = "sigmoid"
    if name == "prompts":
        config.prompts.weight = 0.5
    if name == "supervised":
        config.head.update(layers="mlp", hidden=6, dropout=0.3)
    if name == "cox":
        config.target.update(task="cox", time="months", event="event")
    if name == "hipro_ct":
        config.weights.damage = 0.1
    if name == "asap":
        config.anatomy.block = 1
        config.selection.candidates = (1,)
        config.most_sentences = 3
        config.text_decoder.update(depth=1, heads=2)
    return objectives.create(config, SPEC, rngs=nnx.Rngs(0))


def make_batch(name):
    random = np.random.default_rng(0)
    spec = TOY_SPEC if name == "odd" else SPEC
    batch = {
        "volume": random.integers(-1024, 1000, (BATCH, *spec.shape)).astype(np.int16),
        "tokens": random.integers(0, spec.vocabulary_size, (BATCH, 6)).astype(np.int32),
        "findings": random.integers(-1, 2, (BATCH, len(spec.findings))).astype(np.int8),
        # Two studies have two volumes each.
        "study": np.stack([np.arange(BATCH) // 2 * (np.arange(BATCH) < 4), np.arange(BATCH)], 1) // (1, 2),
        "sample": random.permutation(100)[:BATCH].astype(np.int32),
    }
    if name in ("supervised", "supervised_frames"):
        batch["labels"] = batch["findings"]
    if name == "cox":  # the terms of a patient are of all who were at risk, wherever they lie
        months = random.integers(1, 9, BATCH).astype(np.float32)
        months[3] = np.nan
        batch["measurements"] = np.stack([months, np.arange(BATCH) % 3 > 0], axis=1).astype(np.float32)
    if name == "prompts":
        batch["prompts"] = random.integers(1, spec.vocabulary_size, (BATCH, len(spec.findings), 2, 5))
    if name in ("hipro_ct", "asap"):
        batch["organs"] = random.integers(0, 256, (BATCH, 3, 2, 4, 4)) * (
            random.random((BATCH, 3, 2, 4, 4)) < 0.3
        )
        batch["organs"] = batch["organs"].astype(np.uint8)
        batch["organ"] = random.integers(-1, 3, BATCH).astype(np.int32)
        batch["organ_tokens"] = random.integers(1, spec.vocabulary_size, (BATCH, 5)).astype(np.int32)
        batch["organ_tokens"][batch["organ"] < 0] = spec.pad_token
        batch["organ_normal"] = random.integers(0, 2, BATCH).astype(np.int8)
    if name in ("cmr_clip", "supervised_frames"):
        batch["frames"] = random.integers(0, 4096, (BATCH, 3, *spec.frame_shape)).astype(np.int16)
        batch["frame_valid"] = (np.arange(3) < random.integers(0, 4, (BATCH, 1))).astype(np.int8)
        batch["view"] = np.where(batch["frame_valid"], np.array([0, 1, 1]), -1).astype(np.int32)
    if name == "asap":
        batch["sentence"] = np.broadcast_to(np.array([-1, 0, 0, 1, 2, -1], np.int32), (BATCH, 6))
        batch["sentences"] = np.full(BATCH, 3, np.int32)
        batch["report_tokens"] = batch["tokens"][::-1]
    return batch


def widest_fitting(params, parts):
    """A rule for each matrix that can be split: with the defaults nothing this small would be."""
    flat = flatten(params)
    split_all = {
        name: max(leaf.shape, default=1) % parts == 0 and leaf.size >= 64 for name, leaf in flat.items()
    }
    return tuple(
        (
            f"^{name}$",
            tuple(
                "fsdp" if axis == int(np.argmax(flat[name].shape)) else None
                for axis in range(flat[name].ndim)
            ),
        )
        for name, fits in split_all.items()
        if fits
    )


def compiled(name, data, fsdp, microbatches):
    mesh = meshes.make_mesh(ConfigDict({"data": data, "fsdp": fsdp}), jax.devices()[: data * fsdp])
    graphdef, params, variables = split(build(name))
    shardings = unflatten(
        partition.param_shardings(flatten(params), mesh, widest_fitting(params, fsdp) if fsdp > 1 else ())
    )
    if fsdp > 1:
        assert any("fsdp" in place.spec for place in jax.tree.leaves(shardings))

    def run(params, batch):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return loss_and_gradients(
                graphdef,
                params,
                {},
                variables,
                batch,
                jax.random.key(3),
                mesh=mesh,
                microbatches=microbatches,
                constrain=lambda tree: jax.lax.with_sharding_constraint(tree, shardings),
            )

    step = jax.jit(run, in_shardings=(shardings, meshes.batch_sharding(mesh)))
    params = meshes.put_state(params, shardings)
    return lambda batch: jax.device_get(step(params, meshes.put_batch(batch, mesh)))


@functools.cache
def reference(name):
    return compiled(name, 1, 1, 1)(make_batch(name))


def compare(got, expected):
    np.testing.assert_allclose(got.loss, expected.loss, rtol=1e-6)
    assert got.terms.keys() == expected.terms.keys()
    for name, term in expected.terms.items():
        np.testing.assert_allclose(got.terms[name].sum, term.sum, rtol=2e-6, err_msg=name)
    gradients = flatten(expected.gradients)
    overall = np.sqrt(sum((leaf.astype(np.float64) ** 2).sum() for leaf in gradients.values()))
    assert overall > 0
    for name, leaf in flatten(got.gradients).items():
        error = np.linalg.norm((leaf - gradients[name]).ravel())
        assert error <= max(1e-5 * np.linalg.norm(gradients[name].ravel()), 1e-7 * overall), name
    np.testing.assert_array_equal(got.finite_samples, expected.finite_samples)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(("data", "fsdp"), [(2, 1), (1, 4), (4, 2)])
def test_devices_change_no_loss_and_no_gradient(name, data, fsdp):
    compare(compiled(name, data, fsdp, 1)(make_batch(name)), reference(name))


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (4, 1), (1, 2), (1, 8), (2, 2), (2, 4)])
def test_every_shape_of_the_mesh_does_the_same(data, fsdp):
    compare(compiled("odd", data, fsdp, 1)(make_batch("odd")), reference("odd"))


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("fsdp", [1, 2])
def test_microbatches_change_no_loss_and_no_gradient(name, fsdp):
    compare(compiled(name, 4, fsdp, 2)(make_batch(name)), reference(name))


def test_gradients_cross_the_network_once_however_many_microbatches():
    """Bytes of the compiled program: those of the parameters, and of the features' derivatives."""
    mesh = meshes.make_mesh(ConfigDict({"data": 4, "fsdp": 1}), jax.devices()[:4])
    graphdef, params, variables = split(build("info_nce"))

    def run(params, batch):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            key = jax.random.key(3)
            return loss_and_gradients(
                graphdef, params, {}, variables, batch, key, mesh=mesh, microbatches=4
            ).gradients

    places = (meshes.replicated(mesh), meshes.batch_sharding(mesh))
    step = jax.jit(run, in_shardings=places, out_shardings=meshes.replicated(mesh))
    text = step.lower(params, make_batch("info_nce")).compile().as_text()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert size <= bytes_by_kind(read_collectives(text))["all-reduce"] < 1.1 * size


@pytest.mark.parametrize(("data", "fsdp", "microbatches"), [(1, 1, 4), (2, 2, 4), (8, 1, 2)])
def test_features_of_any_type_survive_microbatches_in_order(data, fsdp, microbatches):
    run, batch = compiled("odd", data, fsdp, microbatches), make_batch("odd")
    compare(run(batch), reference("odd"))
    batch["findings"][[3, 10], 0] = 7
    assert set(np.flatnonzero(~run(batch).finite_samples)) == {3, 10}


def test_other_variables_pass_through_the_slices_in_order():
    class Chained(Toy):
        def encode(self, batch, key, *, train):
            # Order matters: each slice doubles what the earlier ones left.
            self.seen.value = 2.0 * self.seen.value + batch["sample"].sum()
            text = self.text(self._texts(batch["tokens"]))
            # What a slice computes may depend on it, in both passes alike.
            return {
                "volume": self.vision(self._volumes(batch["volume"])),
                "text": text + self.seen.value / 100.0,
            }

    graphdef, params, _ = split(Chained(make_config().objective, TOY_SPEC, rngs=nnx.Rngs(0)))
    mesh = meshes.make_mesh(ConfigDict({"data": 2, "fsdp": 1}))
    batch = make_batch("odd")

    def run(params, batch, microbatches):
        key = jax.random.key(0)
        return loss_and_gradients(
            graphdef, params, {}, {"seen": jnp.ones(())}, batch, key, mesh=mesh, microbatches=microbatches
        )

    got = jax.jit(run, static_argnums=2)(params, meshes.put_batch(batch, mesh), 2)
    # A slice takes the same share of both devices' samples.
    first, second = (batch["sample"].reshape(2, 2, 4)[:, index].sum() for index in (0, 1))
    assert got.variables["seen"] == 2 * (2 * 1 + first) + second

    # By hand: both slices with the value that they saw, coupled, differentiated as one function.
    def by_hand(params):
        objective = nnx.merge(graphdef, params, {}, {"seen": jnp.ones(())})
        parts = [
            objective.encode(
                {
                    name: value.reshape(2, 2, 4, *value.shape[1:])[:, index].reshape(8, *value.shape[1:])
                    for name, value in batch.items()
                },
                jax.random.key(0),
                train=True,
            )
            for index in (0, 1)
        ]
        features = {
            name: jnp.stack([part[name].reshape(2, 4, -1) for part in parts], 1).reshape(BATCH, -1)
            for name in ("text", "volume")
        }
        return base.total(objective.couple(features, batch))

    loss, gradients = jax.jit(jax.value_and_grad(by_hand))(params)
    np.testing.assert_allclose(got.loss, loss, rtol=1e-6)
    for name, leaf in flatten(gradients).items():
        np.testing.assert_allclose(flatten(got.gradients)[name], leaf, rtol=1e-5, atol=1e-6, err_msg=name)


def test_temporary_memory_follows_the_slice_and_not_the_batch():
    class Deep(Toy):
        """Much inside `encode`, little comes out."""

        def encode(self, batch, key, *, train):
            x = batch["volume"].reshape(len(batch["volume"]), -1).astype(jnp.float32)
            x = jnp.tile(x[:, :, None] / 1000.0, (1, 1, 1024))
            for _ in range(4):
                x = jnp.tanh(x + self.vision(x[..., :24]).sum())
            return {"volume": x[:, :8, 0], "text": self.text(self._texts(batch["tokens"]))}

    graphdef, params, variables = split(Deep(make_config().objective, TOY_SPEC, rngs=nnx.Rngs(0)))
    mesh = meshes.make_mesh(ConfigDict({"data": 8, "fsdp": 1}))

    def temporary(size, microbatches):
        batch = {
            name: jax.ShapeDtypeStruct((size, *value.shape[1:]), value.dtype)
            for name, value in make_batch("odd").items()
        }

        def run(params, batch):
            return loss_and_gradients(
                graphdef,
                params,
                {},
                variables,
                batch,
                jax.random.key(0),
                mesh=mesh,
                microbatches=microbatches,
            )

        places = (meshes.replicated(mesh), meshes.batch_sharding(mesh))
        program = jax.jit(run, in_shardings=places).lower(params, batch).compile()
        return program.memory_analysis().temp_size_in_bytes

    slice_alone = temporary(16, 1)
    assert temporary(128, 1) > 6 * slice_alone
    # Eight times the batch in eight slices: beyond one slice's, only features and what a slice adds up to.
    assert temporary(128, 8) < 1.25 * slice_alone
