"""The 3D ResNet on a mesh, inside the training state, and without PyTorch. Its numbers: tests/weights."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from medclip_jax.models.norms import BatchNorm, GroupNorm
from medclip_jax.models.resnet import ResNet


def test_statistics_are_those_of_all_devices():
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    # Each device's samples lie elsewhere: statistics of a part would be far off.
    x = np.random.default_rng(0).normal(size=(8, 3, 2, 5, 6)).astype(np.float32)
    x += 10 * np.arange(8, dtype=np.float32)[:, None, None, None, None]
    whole, parted = BatchNorm(6), BatchNorm(6)
    expected = nnx.jit(lambda norm, x: norm(x, train=True))(whole, x)
    placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
    graphdef, state = nnx.split(parted)

    @jax.jit
    def step(state, x):
        norm = nnx.merge(graphdef, state)
        return norm(x, train=True), nnx.state(norm)

    found, state = step(jax.device_put(state, NamedSharding(mesh, PartitionSpec())), placed)
    nnx.update(parted, state)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(parted.running_mean[...], whole.running_mean[...], rtol=1e-6)
    np.testing.assert_allclose(parted.running_var[...], whole.running_var[...], rtol=1e-5)
    np.testing.assert_allclose(whole.running_mean[...], 0.1 * x.mean((0, 1, 2, 3)), rtol=1e-5)
    variance = x.reshape(-1, 6).var(0, ddof=1)
    np.testing.assert_allclose(whole.running_var[...], 0.9 + 0.1 * variance, rtol=1e-5)


def test_16_bits_in_and_out_with_statistics_in_float32():
    norm = BatchNorm(3)
    x = jnp.asarray(np.random.default_rng(0).normal(300, 1, size=(64, 4, 4, 4, 3)), jnp.bfloat16)
    y = norm(x, train=True)
    assert y.dtype == jnp.bfloat16
    assert norm.running_var[...].dtype == jnp.float32
    wide = np.asarray(x, np.float32).reshape(-1, 3)
    np.testing.assert_allclose(norm.running_var[...], 0.9 + 0.1 * wide.var(0, ddof=1), rtol=1e-4)


def test_tokens_and_pooled_mean():
    resnet = ResNet(18, width=4, channels=2, stem_stride=(1, 2, 2), rngs=nnx.Rngs(0))
    volume = np.random.default_rng(0).normal(size=(2, 20, 40, 70, 2)).astype(np.float32)
    maps = np.asarray(nnx.jit(resnet)(volume))
    assert maps.shape == (2, 2, 2, 3, 32)
    assert resnet.grid_of((20, 40, 70)) == (2, 2, 3)
    encoded = nnx.jit(lambda resnet, volume: resnet.encode(volume))(resnet, volume)
    # Two programs of the compiler, so not to the last bit; neighbors are thousands of times farther apart.
    np.testing.assert_allclose(encoded.tokens[:, 1 * 6 + 1 * 3 + 2], maps[:, 1, 1, 2], atol=2e-6)
    np.testing.assert_allclose(resnet.pool(encoded), maps.mean((1, 2, 3)), atol=1e-6)


def test_group_norm_sees_one_volume_at_a_time_as_pytorch_does():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(3, 2, size=(3, 3, 4, 5, 48)).astype(np.float32)
    norm, theirs = GroupNorm(48), torch.nn.GroupNorm(8, 48)
    assert norm.groups == 8
    assert [GroupNorm(features).groups for features in (64, 2048, 4, 1)] == [32, 32, 2, 1]
    scale, bias = np.random.default_rng(1).normal(size=(2, 48)).astype(np.float32)
    norm.scale[...], norm.bias[...] = jnp.asarray(scale), jnp.asarray(bias)
    theirs.load_state_dict({"weight": torch.tensor(scale), "bias": torch.tensor(bias)})
    expected = np.moveaxis(theirs(torch.tensor(np.moveaxis(x, -1, 1))).detach().numpy(), 1, -1)
    found = norm(x, train=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(norm(x, train=False), found)
    # Up to the rounding of float32: the compiler sums a batch of one in another order.
    np.testing.assert_allclose(norm(x[1:2], train=True), found[1:2], rtol=1e-6, atol=1e-6)


def test_group_norm_has_no_statistics_and_is_exact_in_slices():
    resnet = ResNet(18, width=8, norm="group", rngs=nnx.Rngs(0))
    assert not jax.tree.leaves(nnx.state(resnet, nnx.BatchStat))
    assert "group norm" in resnet.describe()
    volume = np.random.default_rng(0).normal(size=(4, 33, 40, 37, 1)).astype(np.float32)
    run = nnx.jit(lambda resnet, volume: resnet(volume, train=True))
    full = np.asarray(run(resnet, volume))
    assert full.std(axis=0).max() > 1e-2
    parts = np.concatenate([run(resnet, volume[:2]), run(resnet, volume[2:])])
    np.testing.assert_allclose(parts, full, atol=1e-5 * np.abs(full).max())


def test_feature_maps_of_every_stage():
    resnet = ResNet(18, width=4, stem_stride=(1, 2, 2), rngs=nnx.Rngs(0))
    shape = (9, 40, 37)
    volume = np.random.default_rng(0).normal(size=(2, *shape, 1)).astype(np.float32)
    maps, last, states = nnx.jit(
        lambda resnet, volume: (resnet.feature_maps(volume), resnet(volume), resnet.layer_states(volume))
    )(resnet, volume)
    grids = resnet.grids_of(shape)
    assert list(grids) == ["stem", "layer1", "layer2", "layer3", "layer4"]
    assert grids["stem"] == (5, 10, 10)
    assert grids["layer4"] == resnet.grid_of(shape) == (1, 2, 2)
    for name, width in zip(grids, (4, 4, 8, 16, 32), strict=True):
        assert maps[name].shape == (2, *grids[name], width)
        np.testing.assert_array_equal(states[name], maps[name].reshape(2, -1, width))
    np.testing.assert_array_equal(last, maps["layer4"])
    before = np.asarray(resnet.layer4["0"].bn1.running_mean[...])
    moved = nnx.jit(lambda resnet, volume: resnet.feature_maps(volume, train=True))(resnet, volume)
    assert np.abs(moved["layer1"] - maps["layer1"]).max() > 1e-2
    assert np.abs(resnet.layer4["0"].bn1.running_mean[...] - before).max() > 1e-3


def test_settings_that_do_not_exist():
    with pytest.raises(
        ValueError, match=r"no ResNet of 77 layers: choose one of \(10, 18, 34, 50, 101, 152\)"
    ):
        ResNet(77, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="remat='block' is unknown"):
        ResNet(18, remat="block", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"norm='layer' is unknown: use one of \('batch', 'group'\)"):
        ResNet(18, norm="layer", rngs=nnx.Rngs(0))


def test_parameters_and_statistics_in_the_training_state():
    """String keys, parameters that the default rules cover, statistics among the variables."""
    from medclip_jax.parameters import flatten, split
    from medclip_jax.training.partition import param_shardings

    _, params, variables = split(nnx.eval_shape(lambda: ResNet(50, width=8, rngs=nnx.Rngs(0))))
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    param_shardings(flatten(params), mesh)
    assert {name.split("/")[-1] for name in flatten(variables)} == {"running_mean", "running_var"}
    assert len(flatten(variables)) == 2 * 53


def test_without_pytorch():
    code = "import sys; sys.modules['torch'] = None; import medclip_jax.models.resnet; print('fine')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "fine\n", done.stderr
