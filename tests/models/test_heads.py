"""Projection and temperature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from medclip_jax.models.heads import LogitScale, Projection, common_part
from medclip_jax.training.config import DEFAULT_NO_DECAY
from medclip_jax.training.optimizer import matching


def test_projection_is_linear():
    head = Projection(5, 3, bias=True, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5)), jnp.float32)
    expected = np.asarray(x) @ np.asarray(head.linear.kernel[...]) + np.asarray(head.linear.bias[...])
    np.testing.assert_allclose(head(x), expected, atol=1e-6)
    assert Projection(5, 3, rngs=nnx.Rngs(0)).linear.bias is None


def test_multiplier_is_the_exponential_of_a_parameter():
    scale = LogitScale(1 / 0.07)
    assert float(scale()) == pytest.approx(1 / 0.07, rel=1e-6)
    assert float(scale.log_scale[...]) == pytest.approx(np.log(1 / 0.07), rel=1e-6)
    assert scale.bias is None
    assert float(LogitScale(10.0, bias=-10.0).bias[...]) == -10.0


@pytest.mark.parametrize(("log_scale", "expected"), [(-3.0, 1.0), (9.0, 100.0), (2.0, np.exp(2.0))])
def test_clamped_with_a_way_back(log_scale, expected):
    graph, state = nnx.split(LogitScale(10.0))
    state["log_scale"][...] = jnp.float32(log_scale)
    value, gradient = jax.value_and_grad(lambda s: nnx.merge(graph, s)())(state)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    assert float(gradient["log_scale"][...]) == pytest.approx(expected, rel=1e-5)


def test_weight_decay_leaves_scale_and_bias_alone():
    names = ["logit_scale/log_scale", "logit_scale/bias", "projection/linear/kernel"]
    assert matching(DEFAULT_NO_DECAY, names, "no_decay", may_miss=DEFAULT_NO_DECAY) == set(names[:2])


@pytest.mark.parametrize("initial", [0.07, 101.0])
def test_initial_out_of_range(initial):
    with pytest.raises(ValueError, match="give the multiplier itself"):
        LogitScale(initial)


def test_the_common_part_is_what_differing_vectors_share():
    """Moved to the origin, copies of one vector would have no direction left, and no gradient."""
    vectors = jnp.asarray([[3.0, 1.0], [3.0, -1.0]])
    np.testing.assert_allclose(common_part(vectors), [3.0, 0.0])
    for alike in (vectors[:1], jnp.tile(vectors[:1], (8, 1)) * (1 + 1e-7 * jnp.arange(8.0)[:, None])):
        np.testing.assert_array_equal(common_part(alike), [0.0, 0.0])
