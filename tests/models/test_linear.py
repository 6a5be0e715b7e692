"""The linear map against NumPy in float64, and its form on CPUs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from medclip_jax.models import linear

ROWS = ((3,), (2, 3), (2, 3, 1), (0, 3), (2, 0, 3), ())


@pytest.fixture
def layer():
    made = linear.Linear(4, 5, rngs=nnx.Rngs(0))
    made.bias[...] = jnp.arange(5.0)
    return made


@pytest.mark.parametrize("rows", ROWS)
def test_value_and_gradients(layer, rows):
    draw = np.random.default_rng(0)
    inputs, outer = draw.normal(size=(*rows, 4)), draw.normal(size=(*rows, 5))
    graph, state = nnx.split(layer)

    def loss(state, inputs):
        found = nnx.merge(graph, state)(inputs)
        return (found * outer).sum(), found

    (_, found), (of_layer, of_inputs) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
        state, jnp.asarray(inputs, jnp.float32)
    )
    kernel = np.asarray(layer.kernel[...], np.float64)
    assert found.shape == outer.shape
    np.testing.assert_allclose(found, inputs @ kernel + np.arange(5.0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_inputs, outer @ kernel.T, rtol=1e-5, atol=1e-5)
    want = inputs.reshape(-1, 4).T @ outer.reshape(-1, 5)
    np.testing.assert_allclose(of_layer["kernel"][...], want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_layer["bias"][...], outer.reshape(-1, 5).sum(axis=0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("platform", "axes"), [("cpu", 2), ("gpu", 3), ("tpu", 3)])
def test_rows_are_those_of_one_matrix_on_cpus_alone(layer, monkeypatch, platform, axes):
    monkeypatch.setattr(linear, "compiled_for", lambda: (platform, None))
    program = jax.make_jaxpr(layer)(jnp.zeros((2, 3, 4)))
    products = [step for step in program.eqns if step.primitive.name == "dot_general"]
    assert [step.invars[0].aval.ndim for step in products] == [axes]


def test_half_precision_computes_in_its_type():
    made = linear.Linear(4, 5, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert made(jnp.zeros((2, 3, 4))).dtype == jnp.bfloat16
