"""Activations of MLPs."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_HALF_ROOT = math.sqrt(0.5)
_DENSITY_AT_ZERO = 1 / math.sqrt(2 * math.pi)


@jax.custom_vjp
def gelu(x: Float[Array, ...]) -> Float[Array, ...]:
    """``x * P(Z < x)`` of a standard normal Z, exact (Hendrycks and Gimpel 2016, section 2).

    By `erf`, in float32, rounded once to the type of `x`. The backward pass keeps `x` alone, which lies in
    memory anyway, and computes the derivative P(Z < x) + x p(x) anew. So a step needs less memory than with
    what differentiation keeps of `jax.nn.gelu`. It has no forward-mode derivative.

    Args:
        x: any shape, floating point.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * _below(wide)).astype(x.dtype)


def _below(x: Float[Array, ...]) -> Float[Array, ...]:
    """P(Z < x)."""
    return 0.5 + 0.5 * jax.lax.erf(x * _HALF_ROOT)


def _forward(x: Float[Array, ...]) -> tuple[Float[Array, ...], Float[Array, ...]]:
    return gelu(x), x


def _backward(x: Float[Array, ...], gradient: Float[Array, ...]) -> tuple[Float[Array, ...]]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    slope = _below(wide) + wide * (_DENSITY_AT_ZERO * jnp.exp(-0.5 * wide * wide))
    return ((gradient * slope).astype(x.dtype),)


gelu.defvjp(_forward, _backward)


def quick_gelu(x: Float[Array, ...]) -> Float[Array, ...]:
    """``x * sigmoid(1.702 x)``, the approximation of GELU (Hendrycks and Gimpel 2016) that CLIP uses."""
    return x * jax.nn.sigmoid(1.702 * x)
