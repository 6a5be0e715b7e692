"""Fused attention as a footprint sees it: what a chip's own kernels hold and compute.

The machine that checks a config is not the one that will run it, so it would trace its own way to attend.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from medclip_jax.models import attention
from medclip_jax.training.chips import Chip

FORWARD, BACKWARD = "fused_attention_forward", "fused_attention_backward"
"""Names of the stand-ins in a traced program."""


def fuses(chip: Chip, dtype: jnp.dtype, tokens: int, features: int) -> bool:
    """Whether a chip attends without holding the map of scores.

    Args:
        chip: that will run it.
        dtype: of the queries.
        tokens: queries.
        features: of a head.
    """
    if chip.kind == "cuda":
        return jnp.dtype(dtype).itemsize == 2 and features <= 128 and features % 8 == 0
    return False


@contextmanager
def fused_attention(chip: Chip) -> Iterator[None]:
    """Inside, models that are traced attend as the chip would."""
    own = attention.attend

    def attend(
        query: Float[Array, "batch queries heads features"],
        key: Float[Array, "batch keys heads features"],
        value: Float[Array, "batch keys heads features"],
        mask: Bool[Array, "batch keys"] | None = None,
    ) -> Float[Array, "batch queries heads features"]:
        if fuses(chip, query.dtype, query.shape[1], query.shape[-1]):
            return _stand_in(query, key, value)
        return own(query, key, value, mask)

    attention.attend = attend
    try:
        yield
    finally:
        attention.attend = own


def kernel_flops(name: str, shapes: list[tuple[int, ...]]) -> float:
    """Matrix products inside a stand-in: two forward; five backward, which computes the scores again.

    Args:
        name: `FORWARD` or `BACKWARD`.
        shapes: of the stand-in's first two arguments, queries and keys.
    """
    batch, queries, heads, features = shapes[0]
    return (2 if name == FORWARD else 5) * 2.0 * batch * heads * queries * shapes[1][1] * features


def _forward(query, key, value):
    batch, queries, heads, _ = query.shape
    sums = jnp.zeros((batch, heads, queries), jnp.float32)  # of each row's exponentials
    return jnp.zeros(query.shape, query.dtype) + 0 * (key.sum() + value.sum()).astype(query.dtype), sums


def _backward(query, key, value, out, sums, gradient):
    scale = (out.sum() + gradient.sum()).astype(query.dtype) * sums.sum().astype(query.dtype)
    return query * scale, key * scale, value * scale


_forward.__name__, _backward.__name__ = FORWARD, BACKWARD
_forward_kernel, _backward_kernel = jax.jit(_forward), jax.jit(_backward)


@jax.custom_vjp
def _stand_in(query, key, value):
    return _forward_kernel(query, key, value)[0]


def _saved(query, key, value):
    out, sums = _forward_kernel(query, key, value)
    return out, (query, key, value, out, sums)


_stand_in.defvjp(_saved, lambda kept, gradient: _backward_kernel(*kept, gradient))
