"""One step, on one device and on eight."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from toy import SPEC, Toy, make_config, make_layout, make_records

from medclip_jax.parameters import flatten, split
from medclip_jax.pipeline import train_batches
from medclip_jax.training import mesh as meshes
from medclip_jax.training.optimizer import make_optimizer
from medclip_jax.training.partition import state_shardings
from medclip_jax.training.state import averaged, initial_state
from medclip_jax.training.step import make_train_step, trained_paths


def assert_placed(leaf, place):
    assert leaf.sharding.is_equivalent_to(place, leaf.ndim), (leaf.sharding, place)


def run(config, devices=8, steps=3):
    """State and metrics after some steps, and the paths of what was trained."""
    mesh = meshes.make_mesh(config.mesh, jax.devices()[:devices])
    meshes.check_batch_size(config.batch_size, mesh, config.microbatches)
    graphdef, params, variables = split(Toy(config.objective, SPEC, rngs=nnx.Rngs(config.seed)))
    optimizer = make_optimizer(config.optimizer, params, config.steps)
    state = initial_state(params, variables, optimizer, ema=config.ema.decay > 0)
    shardings = state_shardings(state, mesh, config.mesh.rules)
    state = meshes.put_state(state, shardings)
    step = make_train_step(
        graphdef,
        optimizer,
        mesh,
        shardings=shardings,
        microbatches=config.microbatches,
        ema_decay=config.ema.decay,
        skip_nonfinite=not config.stop_on_nan,
    )
    batches = train_batches(
        make_records(24), make_layout(config), seed=config.seed, batch_size=config.batch_size
    )
    key = jax.random.key(config.seed)
    history = []
    for _ in range(steps):
        state, metrics = step(state, meshes.put_batch(next(batches), mesh), key)
        history.append(jax.device_get(metrics))
    batches.close()
    jax.tree.map(lambda leaf, place: assert_placed(leaf, place), state, shardings)
    return jax.device_get(state), history, trained_paths(optimizer, params)


SPLIT = (("hidden/kernel", (None, "fsdp")), ("out/kernel", "largest"))


@pytest.mark.parametrize(
    ("fsdp", "microbatches", "accumulate"), [(1, 1, 1), (8, 1, 1), (2, 2, 2)], ids=["data", "fsdp", "all"]
)
def test_eight_devices_equal_one(fsdp, microbatches, accumulate):
    config = make_config(ema__decay=0.9, batch_size=16, optimizer__accumulate=accumulate)
    one, one_metrics, _ = run(config, 1)
    config.microbatches, config.mesh.fsdp, config.mesh.rules = microbatches, fsdp, SPLIT
    eight, eight_metrics, _ = run(config, 8)
    # Float32; only the order of the sums over the batch differs.
    for a, b in zip(one_metrics, eight_metrics, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-6)
        np.testing.assert_allclose(a["gradient_norm"], b["gradient_norm"], rtol=1e-5)
        assert a["terms/sample_sum"] == b["terms/sample_sum"]
    # The first step's gradient, before Adam's sign-like first update amplifies what rounding is left.
    np.testing.assert_allclose(
        one_metrics[0]["squares"]["gradients"],
        eight_metrics[0]["squares"]["gradients"],
        rtol=1e-5,
        atol=1e-12,
    )
    assert jax.tree.structure(one) == jax.tree.structure(eight)
    for path, value in flatten(one["ema"]).items():
        # Three updates of 1e-2, whose size Adam takes from the sign where a gradient is next to nothing.
        np.testing.assert_allclose(flatten(eight["ema"])[path], value, atol=1e-4, err_msg=path)


def test_metrics_are_what_they_say():
    config = make_config(optimizer__frozen=(r"^text/",), optimizer__warmup_steps=4)
    before, _, _ = run(config, 1, steps=0)
    after, (metrics,), paths = run(config, 1, steps=1)
    old, new = flatten(before["params"]), flatten(after["params"])
    trained = [name for name in old if not name.startswith("text/")]
    assert sorted(paths) == sorted(trained)
    update = np.sqrt(sum(((new[name] - old[name]).astype(np.float64) ** 2).sum() for name in trained))
    np.testing.assert_allclose(metrics["update_norm"], update, rtol=1e-4)  # differences of rounded values
    norm = np.sqrt(sum((new[name].astype(np.float64) ** 2).sum() for name in trained))
    np.testing.assert_allclose(metrics["parameter_norm"], norm, rtol=1e-6)
    np.testing.assert_allclose(metrics["learning_rate"], 1e-2 / 4, rtol=1e-6)
    assert metrics["loss"] == metrics["terms/contrast"]
    for name, square in zip(paths, metrics["squares"]["params"], strict=True):
        np.testing.assert_allclose(square, (new[name].astype(np.float64) ** 2).sum(), rtol=1e-5)


def test_frozen_parameters_stay_to_the_bit():
    config = make_config(optimizer__frozen=(r"^text/",), optimizer__warmup_steps=4)
    before, _, _ = run(config, 1, steps=0)
    after, _, _ = run(config, 1, steps=3)
    for name, value in flatten(before["params"]).items():
        same = np.array_equal(value, flatten(after["params"])[name])
        assert same == name.startswith("text/"), name


def test_variables_that_are_no_parameters_move_too():
    state, _, _ = run(make_config(ema__decay=0.9), 1, steps=3)
    assert state["variables"]["seen"] != 0


def test_the_moving_average_follows_the_parameters():
    config = make_config(ema__decay=0.9)
    trail = [flatten(run(config, 1, steps=n)[0]["params"]) for n in range(4)]
    expected = {name: value.astype(np.float64) for name, value in trail[0].items()}
    for n, params in enumerate(trail[1:]):
        decay = min(0.9, (1 + n) / (10 + n))
        expected = {name: decay * expected[name] + (1 - decay) * params[name] for name in expected}
    got = flatten(averaged(run(config, 1, steps=3)[0]))
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-5, atol=1e-7, err_msg=name)


def test_a_step_that_is_not_finite_can_be_skipped():
    batches = train_batches(make_records(24), make_layout(make_config()), seed=0, batch_size=8)
    culprit = int(next(batches)["sample"][0])
    batches.close()
    config = make_config(stop_on_nan=False, objective__poison=culprit)
    before, _, _ = run(config, 1, steps=0)
    after, (metrics,), _ = run(config, 1, steps=1)
    assert np.isnan(metrics["loss"])
    assert metrics["skipped"] == 1
    assert after["step"] == 1
    for tree in ("params", "variables", "optimizer"):
        jax.tree.map(np.testing.assert_array_equal, before[tree], after[tree])
    # The next batch of this order does not hold the culprit, and is learned from.
    _, history, _ = run(config, 1, steps=2)
    assert history[1]["skipped"] == 0


def test_the_mesh_takes_all_devices_or_as_many_as_asked():
    config = make_config()
    assert meshes.make_mesh(config.mesh).shape == {"data": 8, "fsdp": 1}
    config.mesh.data = 2
    assert meshes.make_mesh(config.mesh).size == 2
    config.mesh.data = 9
    with pytest.raises(ValueError, match="there are 8 cpu devices"):
        meshes.make_mesh(config.mesh)


def test_a_batch_that_cannot_be_split_says_what_to_change():
    mesh = meshes.make_mesh(make_config().mesh)
    with pytest.raises(ValueError, match=re.escape("set it to 8 or 16, or config.mesh.data to 6")):
        meshes.check_batch_size(12, mesh)
    with pytest.raises(ValueError, match=re.escape("set it to 8, or config.mesh.data to 3")):
        meshes.check_batch_size(3, mesh)
    meshes.check_batch_size(16, mesh)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([nnx.Linear(2, 2, rngs=rngs)])


class Dropping(nnx.Module):
    def __init__(self, rngs):
        self.drop = nnx.Dropout(0.5, rngs=rngs)


def test_modules_that_cannot_be_saved_or_repeated_are_refused():
    with pytest.raises(TypeError, match="name blocks with strings"):
        split(Block(nnx.Rngs(0)))
    with pytest.raises(TypeError, match="drop/rngs keeps a random stream"):
        split(Dropping(nnx.Rngs(0)))


def test_the_step_needs_no_data_libraries():
    # A bare training machine has jax, flax, optax and numpy only.
    code = (
        "import sys\n"
        "for name in ('grain', 'ml_collections', 'nibabel', 'tensorflow_datasets', 'orbax.checkpoint'):\n"
        "    sys.modules[name] = None\n"
        "import medclip_jax.training.step, medclip_jax.training.mesh, medclip_jax.training.partition\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sharding_reaches_the_features():
    config = make_config()
    mesh = meshes.make_mesh(config.mesh)
    batch = meshes.put_batch({"volume": np.zeros((16, 2), np.int16)}, mesh)
    assert {shard.data.shape for shard in batch["volume"].addressable_shards} == {(2, 2)}
    state = meshes.put_state({"w": jnp.ones(3)}, mesh)
    assert {shard.data.shape for shard in state["w"].addressable_shards} == {(3,)}
