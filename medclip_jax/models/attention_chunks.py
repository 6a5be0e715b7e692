"""Attention some queries at a time in JAX's own operations: no map of scores outlives its chunk."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from medclip_jax.sharding import on_batch_shards

CHUNK_SCORES, LOOPED_CHUNK_SCORES = 1024 * 1024, 2048 * 1024
"""Scores of one head that a chunk of queries makes, where all heads are computed together and in a loop."""

HEADS_AT_ONCE = 2
"""Heads of a loop's turn: products of one alone are thin for several cores (measured on two: together with
the larger chunks 0.81 of the time at 1153 tokens, 0.84 at 2745; more heads at once gained nothing)."""

MASKED = -1e30
"""Score of a padded key: no weight beside any real key, and a row of padding alone stays finite."""


def attend_in_chunks(
    query: Float[Array, "batch queries heads features"],
    key: Float[Array, "batch keys heads features"],
    value: Float[Array, "batch keys heads features"],
    mask: Bool[Array, "batch keys"] | None = None,
    *,
    looped: bool,
    chunk: int | None = None,
    saved: str = "",
) -> Float[Array, "batch queries heads features"]:
    """`attention.attend` a chunk of queries at a time.

    The forward pass keeps its output, and each row's maximum and sum of exponentials; from these the backward
    pass makes the weights of a chunk again in one go.

    Args:
        query: (B, T, H, K).
        key: (B, S, H, K).
        value: (B, S, H, K).
        mask: (B, S), True where a key may be attended.
        looped: `HEADS_AT_ONCE` after the other, on each device's part of the batch, instead of all heads of
            all samples together. A CPU's cache then holds a chunk's scores.
        chunk: queries at a time, at most; by default such that chunk x S is about `CHUNK_SCORES`, or
            `LOOPED_CHUNK_SCORES`.
        saved: name under which `jax.checkpoint` policies find what the backward pass needs.

    Returns:
        (B, T, H, K) in the type of `query`.

    References:
        Rabe and Staats 2021, "Self-attention does not need O(n^2) memory"; Dao et al. 2022,
        "FlashAttention", section 3.1, for the backward pass.
    """
    scores = LOOPED_CHUNK_SCORES if looped else CHUNK_SCORES
    chunks = -(-query.shape[1] // (chunk or max(scores // key.shape[1], 1)))
    attend = partial(_attend, looped=looped, chunks=chunks, saved=saved)
    # The compiler cannot split a loop over samples by itself.
    return on_batch_shards(attend, query, key, value, mask) if looped else attend(query, key, value, mask)


def _attend(query, key, value, mask, *, looped, chunks, saved):
    batch, queries, heads, features = query.shape

    def rows(x):
        """(B, T, H, K) to (B x H, T, K)."""
        return x.transpose(0, 2, 1, 3).reshape(batch * heads, -1, features)

    scaled = (query.astype(jnp.float32) * features**-0.5).astype(query.dtype)
    masks = None if mask is None else jnp.repeat(mask, heads, axis=0)
    out = _attend_rows(looped, chunks, saved, rows(scaled), rows(key), rows(value), masks)
    return out.reshape(batch, heads, queries, features).transpose(0, 2, 1, 3)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attend_rows(looped, chunks, saved, query, key, value, mask):
    return _forward(looped, chunks, saved, query, key, value, mask)[0]


def _forward(looped, chunks, saved, query, key, value, mask):
    def head(query, key, value, mask):
        def part(query):
            scores = _scores(query, key, mask)
            highest = scores.max(axis=-1, keepdims=True)
            weights = jnp.exp(scores - highest)
            total = weights.sum(axis=-1, keepdims=True)
            mixed = jnp.matmul(weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
            return (mixed / total).astype(query.dtype), highest, total

        return tuple(_joined(x, len(query)) for x in jax.lax.map(part, _parts(query, chunks)))

    kept = _over_heads(looped, head, query, key, value, mask)
    if saved:
        kept = tuple(checkpoint_name(x, saved) for x in kept)
    return kept[0], (query, key, value, mask, *kept)


def _backward(looped, chunks, saved, kept, gradient):
    def head(query, key, value, mask, out, highest, total, gradient):
        def part(sums, of_chunk):
            query, out, highest, total, gradient = of_chunk
            weights = jnp.exp(_scores(query, key, mask) - highest) / total
            by_weights = jnp.matmul(gradient, value.T, preferred_element_type=jnp.float32)
            along = (gradient.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1, keepdims=True)
            by_scores = weights * (by_weights - along)
            if mask is not None:
                by_scores = jnp.where(mask, by_scores, 0.0)
            by_scores, weights = by_scores.astype(query.dtype), weights.astype(query.dtype)
            sums = (
                sums[0] + jnp.matmul(by_scores.T, query, preferred_element_type=jnp.float32),
                sums[1] + jnp.matmul(weights.T, gradient, preferred_element_type=jnp.float32),
            )
            return sums, by_scores @ key

        rows = len(query)
        cut = tuple(_parts(x, chunks) for x in (query, out, highest, total, gradient))
        # Filling rows have a gradient of 0, and a total that may be divided by.
        cut = (*cut[:3], jnp.maximum(cut[3], jnp.finfo(jnp.float32).tiny), cut[4])
        nothing = jnp.zeros(key.shape, jnp.float32)
        (by_key, by_value), by_query = jax.lax.scan(part, (nothing, nothing), cut)
        return _joined(by_query, rows), by_key.astype(key.dtype), by_value.astype(value.dtype)

    return (*_over_heads(looped, head, *kept, gradient), None)


_attend_rows.defvjp(_forward, _backward)


def _scores(query, key, mask):
    scores = jnp.matmul(query, key.T, preferred_element_type=jnp.float32)
    return scores if mask is None else jnp.where(mask, scores, MASKED)


def _over_heads(looped, head, *arrays):
    heads = jax.vmap(head, in_axes=tuple(None if x is None else 0 for x in arrays))
    if not looped:
        return heads(*arrays)
    count = len(arrays[0])
    group = HEADS_AT_ONCE if count % HEADS_AT_ONCE == 0 else 1
    grouped = jax.tree.map(lambda x: x.reshape(count // group, group, *x.shape[1:]), arrays)
    found = jax.lax.map(lambda rows: heads(*rows), grouped)
    return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), found)


def _parts(rows, chunks):
    """(T, X) to (chunks, T / chunks, X), filled up with zeros."""
    size = -(-len(rows) // chunks)
    return jnp.pad(rows, ((0, chunks * size - len(rows)), (0, 0))).reshape(chunks, size, -1)


def _joined(parts, rows):
    return parts.reshape(-1, parts.shape[-1])[:rows]
