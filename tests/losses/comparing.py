"""What two computations of the same losses must agree in."""

import jax.numpy as jnp
import numpy as np


def assert_equal(some, others):
    """Name to (value, gradients by parameter): values to 1e-6 relative, gradients to 1e-5 of the largest."""
    for name, (value, gradient) in others.items():
        np.testing.assert_allclose(some[name][0], value, rtol=1e-6, err_msg=name)
        for part, want in gradient.items():
            atol = 1e-5 * float(jnp.abs(want).max())
            np.testing.assert_allclose(some[name][1][part], want, rtol=0, atol=atol, err_msg=f"{name} {part}")
