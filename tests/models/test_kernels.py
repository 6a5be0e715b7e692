"""Kernels' initial values are those of JAX's own initializer."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from medclip_jax.models.kernels import variance_scaling


@pytest.mark.parametrize("shape", [(3, 3, 3, 5, 7), (1, 2, 1, 4, 3), (6, 5)])
@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
@pytest.mark.parametrize("distribution", ["normal", "truncated_normal"])
def test_values_are_those_of_jax(shape, mode, distribution):
    options, key = (1.7, mode, distribution), jax.random.key(3)
    draw = partial(nnx.initializers.variance_scaling(*options), shape=shape)
    expected = jax.jit(draw)(key)
    np.testing.assert_allclose(variance_scaling(*options)(key, shape), expected, rtol=1e-6, atol=0)
