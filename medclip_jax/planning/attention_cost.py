"""Attention as a footprint sees it: what the kernels of a chip hold and compute.

The machine that checks a config is not the one that will run it, and would trace its own way to attend.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from medclip_jax.models import attention
from medclip_jax.planning.chips import Chip
from medclip_jax.planning.cycles import MATRIX_UNIT

FORWARD, BACKWARD = "fused_attention_forward", "fused_attention_backward"
"""Names of the stand-ins in a traced program."""

FUSED = ("cudnn", "splash")
"""Implementations that hold no map of scores; see `models.attention.implementation`."""


@contextmanager
def attention_of(chip: Chip, chosen: set[str] | None = None) -> Iterator[None]:
    """Inside, models that are traced attend as a chip would.

    Args:
        chip: that will run them.
        chosen: gets a line for each way in which something attends.
    """
    own = attention.attend

    def attend(
        query: Float[Array, "batch queries heads features"],
        key: Float[Array, "batch keys heads features"],
        value: Float[Array, "batch keys heads features"],
        mask: Bool[Array, "batch keys"] | None = None,
    ) -> Float[Array, "batch queries heads features"]:
        sizes = query.shape[1], key.shape[1], query.shape[-1]
        how = attention.implementation(chip.kind, query.dtype, *sizes, chip.capability)
        if chosen is not None:
            line = f"{how} at {sizes[0]} tokens, {query.shape[2]} heads of {sizes[2]}, {query.dtype}"
            if how == "splash" and sizes[2] < MATRIX_UNIT:
                share = sizes[2] / MATRIX_UNIT
                line += f"; they fill {share:.0%} of the matrix unit, fewer heads of {MATRIX_UNIT} all of it"
            chosen.add(line)
        if how in FUSED:
            return _stand_in(query, key, value)
        return attention.FORMS[how](query, key, value, mask)

    attention.attend = attend
    try:
        yield
    finally:
        attention.attend = own


def kernel_flops(name: str, query: tuple[int, ...], key: tuple[int, ...]) -> float:
    """Matrix products inside a stand-in: two forward; five backward, which computes the scores again.

    Args:
        name: `FORWARD` or `BACKWARD`.
        query, key: shapes (B, T, H, K) and (B, S, H, K).
    """
    batch, queries, heads, features = query
    return (2 if name == FORWARD else 5) * 2.0 * batch * heads * queries * key[1] * features


# Never run, only traced. Every result depends on every argument, so that tracing neither drops nor moves any.
def _forward(query, key, value):
    every = (query.sum() + key.sum() + value.sum()).astype(jnp.float32)
    batch, queries, heads, _ = query.shape
    sums = jnp.broadcast_to(every, (batch, heads, queries))  # of each row's exponentials
    return query + every.astype(query.dtype), sums


def _backward(query, key, value, out, sums, gradient):
    every = (query.sum() + key.sum() + value.sum() + out.sum() + gradient.sum()).astype(jnp.float32)
    every = (every + sums.sum()).astype(query.dtype)
    return query + every, key + every, value + every


_forward.__name__, _backward.__name__ = FORWARD, BACKWARD
_forward_kernel, _backward_kernel = jax.jit(_forward), jax.jit(_backward)


@jax.custom_vjp
def _stand_in(query, key, value):
    return _forward_kernel(query, key, value)[0]


def _saved(query, key, value):
    out, sums = _forward_kernel(query, key, value)
    out, sums = (checkpoint_name(x, attention.SAVED) for x in (out, sums))
    return out, (query, key, value, out, sums)


_stand_in.defvjp(_saved, lambda kept, gradient: _backward_kernel(*kept, gradient))
