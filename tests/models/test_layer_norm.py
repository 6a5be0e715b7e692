"""Layer norm with its own derivative: against NumPy, against flax's, and what it keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from medclip_jax.models.norms import LayerNorm, layer_norm

EPSILON = 1e-3


def drawn(shape, seed=0):
    random = np.random.default_rng(seed)
    width = shape[-1]
    return random.normal(1, 2, shape), random.normal(1, 0.3, width), random.normal(0, 0.5, width)


def by_numpy(x, scale, bias):
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + EPSILON) * scale + bias


@pytest.mark.parametrize("shape", [(5,), (3, 7), (2, 3, 11), (4, 1)])
def test_values_and_gradients(shape):
    """Gradients by central differences of NumPy's float64."""
    given, weights = drawn(shape), np.random.default_rng(1).normal(size=shape)

    def loss(*arrays):
        return (by_numpy(*arrays) * weights).sum()

    @jax.jit
    def both(*arrays):
        value, pull = jax.vjp(lambda *arrays: layer_norm(*arrays, EPSILON), *arrays)
        return value, pull(jnp.float32(weights))

    value, gradients = both(*map(jnp.float32, given))
    np.testing.assert_allclose(value, by_numpy(*given), atol=2e-6)
    for place, found in enumerate(gradients):
        expected = np.zeros(given[place].shape)
        for index in np.ndindex(expected.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = [array.copy() for array in given]
                moved[place][index] += step
                ends.append(loss(*moved))
            expected[index] = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 0.02)])
def test_like_flax(dtype, tolerance):
    x = jnp.asarray(drawn((2, 6, 32))[0], dtype)
    options = {"epsilon": 1e-6, "dtype": jnp.dtype(dtype), "rngs": nnx.Rngs(0)}
    ours, theirs = LayerNorm(32, **options), nnx.LayerNorm(32, **options)
    assert jax.tree.structure(nnx.state(ours)) == jax.tree.structure(nnx.state(theirs))

    def both(norm):
        run = jax.jit(lambda x: (norm(x), jax.grad(lambda x: (norm(x).astype(jnp.float32) ** 3).sum())(x)))
        return run(x)

    for found, expected in zip(both(ours), both(theirs), strict=True):
        assert found.dtype == expected.dtype == jnp.dtype(dtype)
        found, expected = (np.asarray(array, np.float32) for array in (found, expected))
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


def test_a_token_without_spread():
    """All values equal: 0 before the bias, and a finite gradient."""
    x, scale, bias = jnp.full((2, 8), 3.0), jnp.ones(8), jnp.arange(8.0)
    value, gradient = jax.jit(jax.value_and_grad(lambda x: layer_norm(x, scale, bias, 1e-6)[0, 3]))(x)
    assert value == 3.0
    assert np.isfinite(gradient).all()


def test_keeps_the_input_and_two_numbers_a_token():
    x, scale, bias = (jnp.asarray(array, jnp.bfloat16) for array in drawn((4, 64, 128)))
    _, pull = jax.vjp(lambda x: layer_norm(x, jnp.float32(scale), jnp.float32(bias), 1e-6), x)
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(pull))
    assert kept <= x.nbytes + 2 * 4 * x[..., 0].size + 2 * 4 * 128
