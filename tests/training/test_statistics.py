"""Running statistics of batch norm: wherever parameters go, they go along.

An objective with a batch norm between two linear layers, trained for a few steps on shards of noise, so that
its statistics are far from the fresh 0 and 1.
"""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

import medclip_jax
from medclip_jax import objectives
from medclip_jax.export.folder import write_folder
from medclip_jax.export.parity import largest_difference
from medclip_jax.fields import Layout
from medclip_jax.models.norms import BatchNorm
from medclip_jax.models.resnet import ResNet
from medclip_jax.objectives.base import DataSpec, Embedding, Objective, Term
from medclip_jax.parameters import combine, flatten, merge, split, unflatten
from medclip_jax.pipeline import train_batches
from medclip_jax.shards.read import open_shards
from medclip_jax.shards.record import Schema
from medclip_jax.shards.write import write_shards
from medclip_jax.training.checkpoints import CheckpointError, restore_weights
from medclip_jax.training.config import base_config
from medclip_jax.training.data import open_data
from medclip_jax.training.loop import train
from medclip_jax.training.mesh import make_mesh, put_batch, put_state, replicated
from medclip_jax.training.partition import param_shardings
from medclip_jax.weights.exported import read_folder
from tests.tiny_run import FINDINGS, SHAPE, SPACING, made_records

MEAN, VARIANCE = "tower/norm/running_mean", "tower/norm/running_var"
MOMENTUM = 0.1


def default_config():
    return ConfigDict({"name": "normed", "vision": {"windows": ((-1000.0, 1000.0),)}, "shift": False})


class Tower(nnx.Module):
    def __init__(self, inputs: int, *, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(inputs, 8, rngs=rngs)
        self.norm = BatchNorm(8, momentum=MOMENTUM)
        self.out = nnx.Linear(8, len(FINDINGS), rngs=rngs)

    def __call__(self, x, *, train):
        return self.out(jnp.tanh(self.norm(self.hidden(x), train=train)))


class Normed(Objective):
    """Findings from volumes."""

    torch_twin = "medclip_jax.export.torch.masked:MaskedModel"  # travels along; nothing here runs it

    @classmethod
    def batch_fields(cls, config):
        return ("volume", "findings")

    def __init__(self, config, spec: DataSpec, *, rngs: nnx.Rngs):
        self.tower = Tower(int(np.prod(spec.shape)), rngs=rngs)
        self.shift = config.shift

    def _volumes(self, volumes):
        return volumes.reshape(len(volumes), -1).astype(jnp.float32) / 1000.0

    def calibrate(self, batch, key):
        if self.shift:
            self.tower.norm.running_mean[...] = jnp.full(8, 7.0)

    def encode(self, batch, key, *, train):
        return {"volume": self.tower(self._volumes(batch["volume"]), train=train)}

    def couple(self, features, batch):
        error = jnp.square(features["volume"] - batch["findings"])
        return {"error": Term(error.sum(), jnp.float32(error.size))}

    def embed_volumes(self, inputs):
        vectors = self.tower(self._volumes(inputs["volume"]), train=False)
        return Embedding(vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True))


@pytest.fixture(scope="module", autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(objectives.OBJECTIVES, "normed", f"{__name__}:Normed")
        yield


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards") / "shards"
    schema = Schema(SHAPE, SPACING, FINDINGS, (), ("cac_grade",))
    write_shards(folder, schema, {"train": list(made_records(16, 0))})
    return folder


def make_config(shards, **changes):
    config = base_config()
    config.objective = default_config()
    config.data.shards = str(shards)
    config.batch_size, config.steps, config.mesh.data = 8, 6, 1
    config.optimizer.learning_rate, config.optimizer.schedule = 1e-2, "constant"
    config.ema.decay = 0.5
    config.log.tensorboard = config.log.progress = False
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def workdir(shards, tmp_path_factory):
    """A run of six steps."""
    folder = tmp_path_factory.mktemp("run") / "workdir"
    train(make_config(shards), folder)
    return folder


@pytest.fixture(scope="module")
def volumes():
    return np.stack([record["volume"] for record in made_records(5, 3)])


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    model = medclip_jax.load(workdir, progress=False)
    return write_folder(model, tmp_path_factory.mktemp("exported") / "normed")


def weights(workdir, **options):
    return flatten(restore_weights(workdir, **options))


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def first_batches(config, count):
    data = open_data(config.data, Normed.batch_fields(config.objective))
    layout = Layout(Normed.batch_fields(config.objective), data.spec, config.data)
    batches = train_batches(data.source, layout, seed=config.seed, batch_size=config.batch_size)
    found = [next(batches) for _ in range(count)]
    batches.close()
    return found


def statistics_by_hand(config, steps):
    """Float64, from the batches: one update for each slice, which takes its share of every device.

    Returns them, and their average over the batches.
    """
    objective = Normed(config.objective, DataSpec.of(open_shards(config.data.shards), None), rngs=nnx.Rngs(0))
    hidden = {
        name: np.asarray(value, np.float64)
        for name, value in nnx.to_pure_dict(nnx.state(objective.tower.hidden)).items()
    }
    found = {MEAN: np.zeros(8), VARIANCE: np.ones(8)}
    averages = dict(found)
    devices, parts = config.mesh.data, config.microbatches
    for n, batch in enumerate(first_batches(config, steps)):
        x = batch["volume"].reshape(devices, parts, -1, np.prod(SHAPE)) / 1000.0
        for part in x.swapaxes(0, 1):
            y = part.reshape(-1, np.prod(SHAPE)) @ hidden["kernel"] + hidden["bias"]
            for name, newest in ((MEAN, y.mean(0)), (VARIANCE, y.var(0, ddof=1))):
                found[name] = found[name] + MOMENTUM * (newest - found[name])
        decay = min(config.ema.decay, (1 + n) / (10 + n))
        averages = {name: decay * averages[name] + (1 - decay) * found[name] for name in found}
    return found, averages


@pytest.mark.parametrize(("devices", "microbatches"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_they_are_those_of_the_whole_batch_or_slice_on_any_devices(shards, tmp_path, devices, microbatches):
    """So two devices give what one gives, but for the order of sums; with slices, if these are the same."""
    changes = {"mesh.data": devices, "microbatches": microbatches, "steps": 3, "optimizer.learning_rate": 0.0}
    config = make_config(shards, **changes)
    train(config, tmp_path)
    for ema, expected in zip((False, True), statistics_by_hand(config, steps=3), strict=True):
        found = weights(tmp_path, ema=ema)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def resnet():
    """A ResNet in double precision (in float32 a ReLU may open on one mesh only), volumes, and its step."""
    with jax.enable_x64(True):
        network = ResNet(18, width=4, stem_size=(3, 3, 3), dtype=jnp.float64, rngs=nnx.Rngs(0))
        nnx.update(network, jax.tree.map(lambda leaf: leaf.astype(jnp.float64), nnx.state(network)))
        graphdef, params, variables = split(network)
        # Each device's samples lie elsewhere: statistics of a part would be far off.
        x = (
            np.random.default_rng(0).normal(size=(8, 9, 20, 17, 1))
            + np.arange(8.0)[:, None, None, None, None]
        )
        weights = np.random.default_rng(1).normal(size=network(x).shape)

        def loss(params, variables, x):
            network = merge(graphdef, params, variables)
            maps = network(x, train=True)
            return (maps * weights).sum(), (maps, split(network)[2])

        step = jax.value_and_grad(loss, has_aux=True)
        return params, variables, x, step, jax.jit(step)(params, variables, x)


@pytest.mark.slow
@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (2, 4)])
def test_a_resnet_on_eight_devices_is_that_of_one(resnet, data, fsdp):
    """Maps, statistics and gradients, the batch over all devices and parameters split over "fsdp"."""
    params, variables, x, step, expected = resnet
    mesh = make_mesh(ConfigDict({"data": data, "fsdp": fsdp}))
    shardings = param_shardings(flatten(params), mesh)
    assert any(not sharding.is_fully_replicated for sharding in shardings.values()) == (fsdp > 1)
    with jax.enable_x64(True), jax.set_mesh(mesh):
        placed = put_state(params, unflatten(shardings))
        found = jax.jit(step)(
            placed, jax.device_put(variables, replicated(mesh)), put_batch({"x": x}, mesh)["x"]
        )
    assert len(found[0][1][0].sharding.device_set) == 8
    ((_, (maps, moved)), gradients), ((_, (maps_of_one, moved_of_one)), gradients_of_one) = found, expected
    for kind, ours, theirs in (
        ("maps", {"": maps}, {"": maps_of_one}),
        ("statistics", flatten(moved), flatten(moved_of_one)),
        ("gradients", flatten(gradients), flatten(gradients_of_one)),
    ):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            scale = np.abs(value).max()
            np.testing.assert_allclose(ours[name], value, atol=1e-9 * scale, err_msg=f"{kind} {name}")


def test_a_resumed_run_keeps_them(shards, workdir, tmp_path):
    train(make_config(shards, steps=3), tmp_path)
    early = weights(tmp_path)
    train(make_config(shards, steps=6), tmp_path)
    for ema in (False, True):
        assert_same(weights(tmp_path, ema=ema), weights(workdir, ema=ema))
    assert (early[MEAN] != weights(tmp_path)[MEAN]).all()


def test_a_loaded_run_embeds_by_them(workdir, volumes):
    model = medclip_jax.load(workdir, progress=False)
    graphdef, _, variables = split(Normed(default_config(), model.spec, rngs=nnx.Rngs(0)))
    trained = merge(graphdef, restore_weights(workdir, ema=True))
    expected = jax.jit(lambda given: trained.embed_volumes({"volume": given}).mean)(volumes)
    np.testing.assert_allclose(model.embed_volumes(volumes), expected, atol=1e-6)
    # Fresh ones would give other vectors.
    forgotten = merge(graphdef, combine(restore_weights(workdir, ema=True), variables))
    assert np.abs(forgotten.embed_volumes({"volume": volumes}).mean - expected).max() > 0.05


def test_a_new_run_takes_them_from_a_run_and_from_an_export(shards, workdir, exported, tmp_path):
    still = {"steps": 1, "optimizer.learning_rate": 0.0, "initial_weights.ema": True}
    expected = statistics_after_one_step(shards, workdir)
    for source in (workdir, exported):
        config = make_config(shards, **still)
        config.initial_weights.workdir = str(source)
        train(config, tmp_path / source.name)
        found = weights(tmp_path / source.name)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)
        for name, value in weights(workdir, ema=True).items():
            if name not in expected:
                np.testing.assert_array_equal(found[name], value, err_msg=name)


def statistics_after_one_step(shards, workdir):
    """Of the first batch of a run that begins with the averaged weights of another."""
    held = {name: value.astype(np.float64) for name, value in weights(workdir, ema=True).items()}
    (batch,) = first_batches(make_config(shards), 1)
    y = batch["volume"].reshape(8, -1) / 1000.0 @ held["tower/hidden/kernel"] + held["tower/hidden/bias"]
    newest = {MEAN: y.mean(0), VARIANCE: y.var(0, ddof=1)}
    return {name: held[name] + MOMENTUM * (value - held[name]) for name, value in newest.items()}


def test_parameters_without_their_statistics_are_refused(shards, workdir, tmp_path):
    config = make_config(shards)
    config.initial_weights.update({"workdir": str(workdir), "include": (r"^tower/norm/scale$",)})
    with pytest.raises(ValueError, match=r"gives 'tower/norm/scale', but not .* 'tower/norm/running_mean'"):
        train(config, tmp_path)
    config.initial_weights.include = (r"^tower/(hidden|out)/",)
    train(config, tmp_path)  # both fresh


def test_calibration_may_set_them(shards, tmp_path):
    config = make_config(shards, steps=1)
    config.objective.shift = True
    train(config, tmp_path)
    assert (weights(tmp_path)[MEAN] > 5).all()


def test_an_export_holds_them_and_gives_them_back(workdir, exported, volumes):
    file = load_file(exported / "model.safetensors")
    held = weights(workdir, ema=True)
    for name in (MEAN, VARIANCE):
        np.testing.assert_array_equal(file[name.replace("/", ".")], held[name])
    found = read_folder(exported)
    assert_same(flatten(combine(found.params, found.variables)), held)
    assert flatten(found.variables).keys() == {MEAN, VARIANCE}
    expected = medclip_jax.load(workdir, progress=False).embed_volumes(volumes)
    np.testing.assert_array_equal(medclip_jax.load(exported, progress=False).embed_volumes(volumes), expected)
    embedded = jax.jit(lambda given: found.objective().embed_volumes({"volume": given}).mean)(volumes)
    np.testing.assert_allclose(embedded, expected, atol=1e-6)


def test_a_file_without_them_is_refused(workdir, exported, tmp_path):
    folder = tmp_path / "export"
    shutil.copytree(exported, folder)
    file = load_file(folder / "model.safetensors")
    del file["tower.norm.running_var"]
    save_file(file, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 missing: tower\.norm\.running_var"):
        medclip_jax.load(folder)

    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    for step in (run / "checkpoints").glob("[0-9]*"):
        shutil.rmtree(step / "variables")
    with pytest.raises(CheckpointError, match="copy one back from a backup"):
        medclip_jax.load(run)
    # Written so, by an early version that knew of neither statistics nor checksums.
    for step in (run / "checkpoints").glob("[0-9]*"):
        (step / "checksums.json").unlink()
        metadata = json.loads((step / "run" / "metadata").read_text())
        del metadata["sealed"]
        (step / "run" / "metadata").write_text(json.dumps(metadata))
        shutil.rmtree(step / "ema")
    with pytest.raises(ValueError, match=f"{MEAN!r} is missing there"):
        medclip_jax.load(run)


def test_an_export_with_other_statistics_is_found_out(workdir, exported):
    objective = medclip_jax.load(workdir, progress=False).objective
    objective.tower.norm.running_var[...] = jnp.ones(8)
    with pytest.raises(ValueError, match=rf"\['{VARIANCE}'\] did not come back"):
        largest_difference(exported, objective)
