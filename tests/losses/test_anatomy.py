"""Shares of organs in patches against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_expit

from medclip_jax.losses import anatomy


def reference(logits, fractions, reduction="sum"):
    """From the definition, patch by patch."""
    total, patches = 0.0, 0
    for sample in range(logits.shape[0]):
        for patch in range(logits.shape[1]):
            x = np.asarray(logits[sample, patch], np.float64)
            share = np.asarray(fractions[sample, patch], np.float64)
            entropy = -(share * log_expit(x) + (1 - share) * log_expit(-x))
            total += entropy.sum() if reduction == "sum" else entropy.mean()
            patches += 1
    return total / patches


def sample(batch=2, tokens=5, organs=3, seed=0):
    draw = np.random.default_rng(seed)
    shape = (batch, tokens, organs)
    return draw.normal(scale=3, size=shape).astype(np.float32), draw.random(shape).astype(np.float32)


@pytest.mark.parametrize("reduction", anatomy.REDUCTIONS)
@pytest.mark.parametrize("shape", [(3, 7, 9), (1, 1, 1), (2, 5, 4)])
def test_value_and_gradient(shape, reduction):
    logits, fractions = sample(*shape)
    fractions[0, 0] = 0.0  # a patch without organs

    def loss(x):
        return anatomy.organ_occupancy(x, jnp.asarray(fractions), organ_reduction=reduction)

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(logits))
    np.testing.assert_allclose(value, reference(logits, fractions, reduction), rtol=1e-6)
    direction = np.random.default_rng(1).normal(size=shape)
    ahead, behind = (
        reference(logits.astype(np.float64) + step * direction, fractions, reduction)
        for step in (1e-5, -1e-5)
    )
    slope = np.sum(np.asarray(gradient) * direction)
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=1e-4, atol=1e-7)


def test_the_mean_over_organs_is_smaller_by_their_number():
    logits, fractions = (jnp.asarray(x) for x in sample(organs=9))
    total = anatomy.organ_occupancy(logits, fractions)
    mean = anatomy.organ_occupancy(logits, fractions, organ_reduction="mean")
    np.testing.assert_allclose(total, 9 * mean, rtol=1e-6)


def test_sums_add_up_over_samples():
    logits, fractions = (jnp.asarray(x) for x in sample(4))
    sums, counts = anatomy.organ_occupancy_sums(logits, fractions)
    assert sums.shape == counts.shape == (4,)
    np.testing.assert_allclose(
        sums.sum() / counts.sum(), anatomy.organ_occupancy(logits, fractions), rtol=1e-6
    )


def test_extreme_logits_are_finite():
    logits = jnp.asarray([[[1e4, -1e4]]])
    value, gradient = jax.value_and_grad(anatomy.organ_occupancy)(logits, jnp.asarray([[[0.0, 1.0]]]))
    np.testing.assert_allclose(value, 2e4)
    np.testing.assert_allclose(gradient, [[[1.0, -1.0]]])


def test_unknown_reduction_names_the_choices():
    logits, fractions = sample()
    with pytest.raises(ValueError, match="'sum' or 'mean'"):
        anatomy.organ_occupancy(logits, fractions, organ_reduction="max")
