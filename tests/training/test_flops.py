import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from medclip_jax.training.flops import count_flops, utilization


def test_products_and_convolutions_count_two_for_each_multiplication():
    a, b = jnp.zeros((5, 2, 3)), jnp.zeros((5, 3, 7))
    assert count_flops(lambda a, b: jnp.tanh(a @ b), a, b) == 2 * 5 * 2 * 3 * 7
    convolution = nnx.Conv(3, 4, (2, 2, 2), padding="VALID", rngs=nnx.Rngs(0))
    assert count_flops(lambda x: convolution(x), jnp.zeros((1, 5, 5, 5, 3))) == 2 * 4**3 * 4 * 3 * 8


def test_a_scan_counts_each_turn_and_a_conditional_its_dearest_branch():
    w, x = jnp.zeros((6, 4, 4)), jnp.zeros((3, 4))
    once = 2 * 3 * 4 * 4

    def layers(x, w):
        return jax.lax.scan(jax.checkpoint(lambda carry, layer: (carry @ layer, None)), x, w)[0]

    assert count_flops(jax.jit(layers), x, w) == 6 * once
    branch = lambda p, x: jax.lax.cond(p, lambda x: x @ w[0] @ w[1], lambda x: x @ w[0], x)  # noqa: E731
    assert count_flops(branch, True, x) == 2 * once


def test_utilization_is_three_forwards_by_time_and_peak():
    assert utilization(1e12, 0.5, 2, 10.0) == pytest.approx(3e12 / 0.5 / 20e12)
