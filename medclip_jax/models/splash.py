"""Attention on TPUs by JAX's splash kernel: no map of scores ever leaves the chip's fast memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as static_mask
from jaxtyping import Array, Bool, Float

from medclip_jax.models.fast_memory import most_keys
from medclip_jax.sharding import on_batch_shards

BLOCKS = (512, 384, 256, 128)
"""Tokens that the kernel may hold at a time: multiples of a TPU's 128 lanes, the largest first."""


MOST_SCORES = 512 * 512
"""Scores that the kernel computes at a time."""


def block_of(tokens: int) -> int:
    """The largest block whose filling exceeds that of the smallest by at most a 24th of the tokens."""
    least = -tokens % BLOCKS[-1]
    return next(block for block in BLOCKS if 24 * (-tokens % block - least) <= tokens)


def filled_length(tokens: int) -> int:
    """Tokens with the filling that makes whole blocks of them."""
    return tokens + -tokens % block_of(tokens)


def key_blocks(keys: int, block: int, itemsize: int = 2) -> tuple[int, int]:
    """Keys that lie in fast memory at a time, and those of them whose scores are computed at a time.

    Args:
        keys: a multiple of 128.
        block: queries at a time.
        itemsize: bytes of one feature of a key.
    """

    def largest_part(whole: int, most: int) -> int:
        return next(part for part in range(most - most % 128, 0, -128) if whole % part == 0)

    held = largest_part(keys, min(keys, most_keys(itemsize)))
    return held, largest_part(held, min(held, MOST_SCORES // block))


def attend_splash(
    query: Float[Array, "batch queries heads features"],
    key: Float[Array, "batch keys heads features"],
    value: Float[Array, "batch keys heads features"],
    mask: Bool[Array, "batch keys"] | None = None,
    *,
    saved: str | None = None,
    interpret: bool = False,
) -> Float[Array, "batch queries heads features"]:
    """`attention.attend` by the kernel, each device of the mesh in force on its part of the batch.

    Tokens are padded to whole blocks; filling takes part nowhere and is cut off again. The result of a
    sample whose keys are all masked is finite and means nothing.

    Args:
        query: (B, T, H, K).
        key: (B, S, H, K).
        value: (B, S, H, K).
        mask: (B, S), True where a key may be attended.
        saved: name under which `jax.checkpoint` policies find what the kernel's backward pass needs, its
            output and log-sum-exp.
        interpret: run the kernel step by step in plain JAX, on any device (for tests).

    Returns:
        (B, T, H, K) in the type of `query`.

    References:
        The kernel's own documentation: it multiplies no scale into the scores, takes one sample (heads
        first), and lets a query see the keys of its own segment.
    """
    # The compiler cannot split a kernel of its own accord.
    return on_batch_shards(lambda *arrays: _attend(*arrays, saved, interpret), query, key, value, mask)


def _attend(query, key, value, mask, saved, interpret):
    batch, queries, heads, features = query.shape
    keys = key.shape[1]
    block = block_of(queries)
    scaled = (query.astype(jnp.float32) * features**-0.5).astype(query.dtype)
    padded_query = _blocks(scaled, block)
    padded_key, padded_value = (_blocks(x, block_of(keys)) for x in (key, value))
    segments, rows = None, padded_key.shape[2]
    held, at_once = key_blocks(rows, block, key.dtype.itemsize)
    if mask is not None or rows != keys:
        mask = jnp.ones((batch, keys), bool) if mask is None else mask
        real = jnp.pad(mask.astype(jnp.int32), ((0, 0), (0, rows - keys)))
        segments = kernel.SegmentIds(jnp.ones((batch, padded_query.shape[2]), jnp.int32), real)
    attend = kernel.make_splash_mha(
        static_mask.MultiHeadMask([static_mask.FullMask((padded_query.shape[2], rows))] * heads),
        block_sizes=kernel.BlockSizes(
            block_q=block,
            block_kv=held,
            block_kv_compute=at_once,
            block_q_dkv=block,
            block_kv_dkv=held,
            block_kv_dkv_compute=at_once,
            # One backward kernel: five products, where two of them would compute seven.
            use_fused_bwd_kernel=True,
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=saved,
        interpret=interpret,
    )
    out = jax.vmap(attend)(padded_query, padded_key, padded_value, segments)
    return jnp.swapaxes(out, 1, 2)[:, :queries]


def _blocks(tokens, block):
    """(B, T, H, K) to (B, H, T filled to whole blocks, K)."""
    filled = jnp.pad(tokens, ((0, 0), (0, -tokens.shape[1] % block), (0, 0), (0, 0)))
    return jnp.swapaxes(filled, 1, 2)
