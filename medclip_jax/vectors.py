"""What models, losses and objectives do to vectors alike."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num


def normalize(vectors: Num[Array, "... features"]) -> Float[Array, "... features"]:
    """L2-normalize the last axis in float32; a zero vector stays zero, with zero gradient."""
    vectors = vectors.astype(jnp.float32)
    square = jnp.sum(vectors**2, axis=-1, keepdims=True)
    nonzero = square > 1e-30
    return jnp.where(nonzero, vectors * jax.lax.rsqrt(jnp.where(nonzero, square, 1.0)), 0.0)
