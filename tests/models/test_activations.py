"""GELU against SciPy's normal distribution in float64, its derivative, and what the backward pass keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from medclip_jax.models.activations import gelu

POINTS = np.concatenate([np.linspace(-12, 12, 4801), [0.0, -0.0, 1e-30, -1e-30, 1e-4, -1e-4, 300.0, -300.0]])


def reference(x):
    return x * ndtr(x)


def reference_slope(x):
    """By the difference quotient, whose own error is below 1e-9."""
    return (reference(x + 1e-5) - reference(x - 1e-5)) / 2e-5


def assert_near(got, expected, dtype):
    """Off by 1e-6, and for bfloat16 by the one rounding to it; both relative above 1."""
    allowed = 1e-6 + (2.0**-8 if dtype == jnp.bfloat16 else 0)
    off = np.abs(np.asarray(got, np.float64) - expected) / np.maximum(1, np.abs(expected))
    assert off.max() <= allowed, POINTS[off.argmax()]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("run", [gelu, jax.jit(gelu)], ids=["at once", "compiled"])
def test_value_and_derivative(dtype, run):
    x = jnp.asarray(POINTS, dtype)
    given = np.asarray(x, np.float64)
    value, pull = jax.vjp(run, x)
    gradient = jnp.asarray(np.random.default_rng(0).normal(size=x.shape), dtype)
    (slope,) = pull(jnp.ones_like(x))
    (pulled,) = pull(gradient)
    assert value.dtype == slope.dtype == dtype
    assert_near(value, reference(given), dtype)
    assert_near(slope, reference_slope(given), dtype)
    assert_near(pulled, reference_slope(given) * np.asarray(gradient, np.float64), dtype)


def test_bfloat16_is_rounded_once():
    """Each value is one of the two that stand beside the exact one."""
    x = jnp.asarray(POINTS, jnp.bfloat16)
    exact = reference(np.asarray(x, np.float64))
    off = np.abs(np.asarray(gelu(x), np.float64) - exact)
    assert (off <= 1e-6 + 2.0**-8 * np.abs(exact)).all()
    # Computing in bfloat16 throughout, as differentiation of the formula does, is off by more.
    rough = np.abs(np.asarray(jax.nn.gelu(x, approximate=False), np.float64) - exact)
    assert off.mean() < rough.mean()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_backward_pass_keeps_the_input_alone(dtype):
    x = jnp.ones((7, 5), dtype)
    _, pull = jax.vjp(gelu, x)
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(pull)] == [((7, 5), dtype)]


def temporary_bytes(activation):
    def loss(weights, x):
        for first, second in weights:
            x = x + activation(x @ first) @ second
        return (x**2).sum()

    weights = [(jnp.ones((32, 128)), jnp.ones((128, 32)))] * 4
    compiled = jax.jit(jax.grad(loss)).lower(weights, jnp.ones((2048, 32))).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_a_step_needs_less_memory_than_with_what_differentiation_keeps():
    assert temporary_bytes(gelu) < 0.85 * temporary_bytes(lambda x: jax.nn.gelu(x, approximate=False))


def test_it_can_be_mapped_and_sliced_and_rematerialized():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4, 5)), jnp.float32)
    expected = reference_slope(np.asarray(x, np.float64))
    for function in (jax.vmap(gelu), jax.checkpoint(gelu), lambda x: jax.lax.map(gelu, x)):
        slope = jax.grad(lambda x, function=function: function(x).sum())(x)
        np.testing.assert_allclose(slope, expected, rtol=0, atol=1e-6)
