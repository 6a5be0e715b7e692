"""What is unusual in feature maps, against NumPy in float64; the ResNet that pools it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from medclip_jax.models.extremes import Extremes, Standard
from medclip_jax.models.resnet import ResNet
from medclip_jax.weights.resnet import from_torch, to_torch

SIZES = ((35, 2), (6, 5), (1, 3))


def standard(x, mean, variance):
    spread = np.sqrt(variance + 1e-8)
    return (x - mean) / (spread + 0.25 * spread.mean(axis=0) + 1e-6)


def extremes(module, maps, moments):
    """The vector that `module` makes of maps (B, N, C), whose place statistics are `moments`."""
    found = []
    for x, (mean, variance) in zip(maps, moments, strict=True):
        unusual = standard(x, mean, variance)
        found += [x.mean(axis=1), unusual.max(axis=1), unusual.min(axis=1)]
    found = np.concatenate(found, axis=1)
    normal = (found - found.mean(axis=0)) / np.sqrt(found.var(axis=0) + 1e-5)
    weights = [np.asarray(x[...], np.float64) for x in (module.linear.kernel, module.linear.bias)]
    return found, normal @ weights[0] + weights[1]


def made_maps(batch=7, seed=0):
    random = np.random.default_rng(seed)
    return [random.normal(random.normal(size=size), 0.5, (batch, *size)) for size in SIZES]


def test_as_in_numpy():
    module, maps = Extremes(SIZES, 4, rngs=nnx.Rngs(0)), made_maps()
    moments = [(x.mean(axis=0), x.var(axis=0)) for x in maps]
    given = [jnp.asarray(x, jnp.float32) for x in maps]
    found = nnx.jit(lambda module, maps: module(maps, train=True))(module, given)
    np.testing.assert_allclose(found, extremes(module, maps, moments)[1], atol=1e-5)
    for one, x in zip(module.standards.values(), maps, strict=True):
        np.testing.assert_allclose(one.running_mean[...], 0.1 * x.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(one.running_var[...], 0.9 + 0.1 * x.var(axis=0, ddof=1), atol=1e-6)


def test_running_statistics_in_evaluation():
    module, maps = Extremes(SIZES, 4, rngs=nnx.Rngs(0)), made_maps()
    random = np.random.default_rng(1)
    moments = [(random.normal(size=size), random.uniform(0.5, 2, size)) for size in SIZES]
    for one, (mean, variance) in zip(module.standards.values(), moments, strict=True):
        one.running_mean[...], one.running_var[...] = (jnp.asarray(x, jnp.float32) for x in (mean, variance))
    numbers, expected = extremes(module, maps, moments)
    module.norm.running_mean[...] = jnp.asarray(numbers.mean(axis=0), jnp.float32)
    module.norm.running_var[...] = jnp.asarray(numbers.var(axis=0), jnp.float32)
    run = nnx.jit(lambda module, maps: module(maps, train=False))
    given = [jnp.asarray(x, jnp.float32) for x in maps]
    np.testing.assert_allclose(run(module, given), expected, atol=1e-5)
    # A volume's vector is its own: nothing of the batch is left in it.
    np.testing.assert_allclose(run(module, [x[2:3] for x in given]), expected[2:3], atol=1e-5)


def test_a_faint_spot_anywhere_outdoes_bright_places():
    random = np.random.default_rng(0)
    x = 100 * random.normal(size=(40, 1)) + random.normal(size=(64, 40, 1))
    has = np.arange(64) % 2 == 0
    x[has, random.integers(0, 40, 64)[has], 0] += 8
    plain, unusual = (
        x.max(axis=1)[:, 0],
        np.asarray(Standard(40, 1)(jnp.asarray(x), train=True)).max(axis=1)[:, 0],
    )
    assert (unusual[has][:, None] > unusual[~has]).mean() > 0.95
    assert (plain[has][:, None] > plain[~has]).mean() < 0.7


def test_gradient():
    module, maps = Extremes(SIZES, 4, rngs=nnx.Rngs(0)), [jnp.asarray(x) for x in made_maps(3)]
    weights = np.random.default_rng(2).normal(size=(3, 4))

    def loss(scale, maps):
        return (module([scale * maps[0], *maps[1:]], train=False) * weights).sum()

    slope = jax.grad(loss)(1.0, maps)
    step = 1e-2
    expected = (loss(1 + step, maps) - loss(1 - step, maps)) / (2 * step)
    np.testing.assert_allclose(slope, expected, rtol=1e-2)


@pytest.mark.parametrize("batch", [1, 3])
def test_features_that_never_vary_are_nothing_unusual(batch):
    module, maps = Extremes(SIZES, 4, rngs=nnx.Rngs(0)), [jnp.ones((batch, *size)) for size in SIZES]
    slope = jax.grad(lambda maps: nnx.clone(module)(maps, train=True).sum())(maps)
    assert all(np.isfinite(x).all() for x in slope)
    np.testing.assert_array_equal(Standard(*SIZES[0])(maps[0], train=True), 0)


def test_what_is_usual_is_that_of_all_devices():
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    x = np.random.default_rng(0).normal(size=(8, 5, 3)).astype(np.float32)
    x += 10 * np.arange(8, dtype=np.float32)[:, None, None]
    run = nnx.jit(lambda module, x: module(x, train=True))
    whole, parted = Standard(5, 3), Standard(5, 3)
    expected = run(whole, jnp.asarray(x))
    placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
    nnx.update(parted, jax.device_put(nnx.state(parted), NamedSharding(mesh, PartitionSpec())))
    np.testing.assert_allclose(run(parted, placed), expected, atol=1e-5)
    np.testing.assert_allclose(parted.running_mean[...], whole.running_mean[...], rtol=1e-5)


def test_a_resnet_pools_the_mean_and_what_is_unusual():
    shape = (9, 20, 13)
    options = {"width": 4, "channels": 2, "stem_stride": (1, 2, 1)}
    plain = ResNet(10, **options, rngs=nnx.Rngs(0))
    resnet = ResNet(10, **options, pooling="extremes", shape=shape, rngs=nnx.Rngs(0))
    from_torch(to_torch(plain), resnet)  # the network of a checkpoint; pooling is no part of it
    volume = np.random.default_rng(0).normal(size=(3, *shape, 2)).astype(np.float32)
    run = nnx.jit(lambda resnet, volume: resnet.encode(volume))
    encoded, without = run(resnet, volume), run(plain, volume)
    np.testing.assert_allclose(encoded.tokens, without.tokens, atol=1e-6)
    assert resnet.pooled_width == resnet.width == encoded.summary.shape[1]
    np.testing.assert_allclose(resnet.pool(encoded) - plain.pool(without), encoded.summary, atol=1e-5)
    assert "pooling extremes" in resnet.describe()
    smaller = run(resnet, volume[:, 1:])
    assert smaller.summary is None, "crops have tokens alone"
    with pytest.raises(ValueError, match=r"knows what is usual in volumes of \(9, 20, 13\) cells alone"):
        resnet.pool(smaller)


def test_settings_that_do_not_exist():
    with pytest.raises(ValueError, match="pooling='max' is unknown"):
        ResNet(10, pooling="max", rngs=nnx.Rngs(0))
    for options in ({"norm": "group", "shape": (8, 8, 8)}, {}):
        with pytest.raises(ValueError, match="it needs norm='batch' and their shape"):
            ResNet(10, pooling="extremes", **options, rngs=nnx.Rngs(0))
