"""Scaled dot-product attention, by the means that suit the device, and the modules that attend."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from medclip_jax.models.adapters import FUSED, OUTPUT, Adapter, AdapterSize
from medclip_jax.models.attention_chunks import MASKED, attend_in_chunks
from medclip_jax.models.linear import Linear
from medclip_jax.sharding import batch_sharded, compiled_for

DENSE_SCORES = 4096 * 1024
"""Scores (queries x keys, one head) up to which the full map may lie in memory."""

SPLASH_SCORES = 512 * 512
"""Scores of one head from which the TPU kernel is used: it fills tokens up to blocks of 128 or more."""

LOOP_SCORES = 128 * 128
"""Scores of one head from which a CPU takes one head at a time: a map that stays in its cache is worth more
than large products (measured: 3 times faster at 1153 tokens, equal at 81)."""

SAVED = "attention"
"""Name under which `jax.checkpoint` policies find what attention computed."""


def implementation(
    platform: str,
    dtype: jax.typing.DTypeLike,
    queries: int,
    keys: int,
    features: int,
    compute_capability: str | None = None,
) -> str:
    """How `attend` computes on a platform.

    Args:
        platform: as JAX names it: "cpu", "tpu", "gpu" or "cuda", "rocm".
        dtype: of queries, keys and values.
        queries: tokens that ask.
        keys: number of tokens that are attended to.
        features: of one head.
        compute_capability: of a GPU, as JAX gives it ("9.0"; a name on AMD). None: NVIDIA's since Ampere.

    Returns:
        "cudnn": the fused kernel; on CUDA since Ampere, in 16 bits, heads of at most 128 features in
        multiples of 8. "splash": the fused kernel of TPUs, from `SPLASH_SCORES`. "by-head": on CPUs, from
        `LOOP_SCORES`, one head of one sample at a time, in chunks. "chunked": some queries at a time,
        beyond `DENSE_SCORES`. "plain": the full map in memory. The memory of all but "plain" grows linearly
        with the tokens.
    """
    if platform in ("gpu", "cuda") and jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16):
        # AMD's devices are "gpu" too, but their capability is a name, not a number.
        capability = "8" if compute_capability is None else compute_capability.split(".")[0]
        if capability.isdigit() and int(capability) >= 8 and features <= 128 and features % 8 == 0:
            return "cudnn"
    if platform == "tpu" and queries * keys >= SPLASH_SCORES:
        return "splash"
    if platform == "cpu" and queries * keys >= LOOP_SCORES:
        return "by-head"
    return "plain" if queries * keys <= DENSE_SCORES else "chunked"


def attend(
    query: Float[Array, "batch queries heads features"],
    key: Float[Array, "batch keys heads features"],
    value: Float[Array, "batch keys heads features"],
    mask: Bool[Array, "batch keys"] | None = None,
) -> Float[Array, "batch queries heads features"]:
    """Softmax attention, ``softmax(q k / sqrt(features)) v``, by the `implementation` that suits the device.

    The device is the one of the mesh in force (so that a program can be compiled for a TPU that is not
    there), else JAX's first.

    Args:
        query: (B, T, H, K).
        key: (B, S, H, K).
        value: (B, S, H, K).
        mask: (B, S), True where a key may be attended, False on padding.

    Returns:
        (B, T, H, K) in the type of `query`.
    """
    shape = query.shape[1], key.shape[1], query.shape[-1]
    platform, capability = compiled_for()
    chosen = implementation(platform, query.dtype, *shape, capability)
    if chosen == "splash":
        # Imported here: the kernel's package is large, and only TPUs need it.
        from medclip_jax.models.splash import attend_splash

        return attend_splash(query, key, value, mask, saved=SAVED)
    if chosen == "cudnn":
        return _attend_cudnn(query, key, value, mask)
    return FORMS[chosen](query, key, value, mask)


def filled(
    tokens: Float[Array, "batch tokens features"],
) -> tuple[Float[Array, "batch filled features"], Bool[Array, "batch filled"] | None]:
    """Tokens with as many zeros behind them as the device's kernel would add in each self-attention anew.

    Args:
        tokens: (B, T, W), none of them padding.

    Returns:
        (B, T', W) and (B, T'), False on the filling; the tokens themselves and None where nothing is added.
    """
    count = tokens.shape[1]
    platform, capability = compiled_for()
    if implementation(platform, tokens.dtype, count, count, tokens.shape[-1], capability) != "splash":
        return tokens, None
    from medclip_jax.models.splash import filled_length

    length = filled_length(count)
    if length == count:
        return tokens, None
    real = jnp.broadcast_to(jnp.arange(length) < count, (len(tokens), length))
    return jnp.pad(tokens, ((0, 0), (0, length - count), (0, 0))), real


def _attend_cudnn(query, key, value, mask):
    if mask is None:
        return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
    # With a mask the kernel's backward pass wants even lengths: add a query to cut off, a key to hide.
    queries, more_keys = query.shape[1], key.shape[1] % 2
    query = jnp.pad(query, ((0, 0), (0, queries % 2), (0, 0), (0, 0)))
    key, value = (jnp.pad(x, ((0, 0), (0, more_keys), (0, 0), (0, 0))) for x in (key, value))
    wide = jnp.pad(mask, ((0, 0), (0, more_keys)))[:, None, None, :]
    out = jax.nn.dot_product_attention(query, key, value, mask=wide, implementation="cudnn")
    return out[:, :queries]


def attention_weights(
    query: Float[Array, "batch queries heads features"],
    key: Float[Array, "batch keys heads features"],
    mask: Bool[Array, "batch keys"] | None = None,
) -> Float[Array, "batch heads queries keys"]:
    """Attention probabilities, softmax in float32, rounded to the type of `query`."""
    scaled = query * query.shape[-1] ** -0.5
    scores = jnp.einsum("bthk,bshk->bhts", scaled, key, preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(mask[:, None, None, :], scores, MASKED)
    return jax.nn.softmax(scores, axis=-1).astype(query.dtype)


def attend_plain(
    query: Float[Array, "batch queries heads features"],
    key: Float[Array, "batch keys heads features"],
    value: Float[Array, "batch keys heads features"],
    mask: Bool[Array, "batch keys"] | None = None,
) -> Float[Array, "batch queries heads features"]:
    """`attend` with the whole (T, S) map in memory."""
    mixed = jnp.einsum("bhts,bshk->bthk", attention_weights(query, key, mask), value)
    return checkpoint_name(mixed, SAVED)


FORMS = {
    "plain": attend_plain,
    "chunked": partial(attend_in_chunks, looped=False, saved=SAVED),
    "by-head": partial(attend_in_chunks, looped=True, saved=SAVED),
}
"""Implementations in JAX's own operations, by name."""


class SelfAttention(nnx.Module):
    """Multi-head self-attention with one fused projection to queries, keys and values.

    Args:
        width: features of a token.
        heads: attention heads; must divide `width`.
        dtype: compute type; parameters are float32.
        kernel_init: of both maps; Xavier-uniform by default.
        adapters: size of low-rank adapters of queries, keys, values and output; None for none.
        rngs: draws the initial parameters.

    Raises:
        ValueError: `heads` does not divide `width`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        dtype=jnp.float32,
        kernel_init=None,
        adapters: AdapterSize | None = None,
        rngs: nnx.Rngs,
    ):
        if width % heads:
            raise ValueError(f"width {width} is no multiple of heads {heads}: change one of them")
        init = kernel_init or nnx.initializers.xavier_uniform()
        self.heads = heads
        self.qkv = Linear(width, 3 * width, dtype=dtype, kernel_init=init, rngs=rngs)
        self.output = Linear(width, width, dtype=dtype, kernel_init=init, rngs=rngs)
        self.adapted = adapters is not None
        for name in (*FUSED, OUTPUT) if adapters else ():
            setattr(self, name, Adapter(width, width, adapters, dtype=dtype, rngs=rngs))

    def __call__(
        self,
        tokens: Float[Array, "batch tokens features"],
        mask: Bool[Array, "batch tokens"] | None = None,
    ) -> Float[Array, "batch tokens features"]:
        """(B, T, W) to (B, T, W); `mask` is False on padding."""
        if compiled_for()[0] == "tpu" and not self.adapted:
            return self._few_sums(tokens, mask)
        mixed = attend(*self.queries_keys_values(tokens), mask)
        return self._from_heads(batch_sharded(mixed.reshape(tokens.shape)))

    def _few_sums(self, tokens, mask):
        """The same with fewer sums over all tokens, which gradients of biases are, and TPUs are slow at.

        The keys' bias moves all similarities of a query alike, which the softmax does not see: it is left
        out. The values' is the same in every mean, and joins the bias of the output.
        """
        query, key, value = self._by_head(tokens)
        of_queries, _, of_values = self.qkv.bias[...].reshape(3, -1)
        query = query + of_queries.astype(query.dtype).reshape(self.heads, -1)
        mixed = batch_sharded(attend(query, key, value, mask).reshape(tokens.shape))
        kernel = self.output.kernel[...]
        bias = self.output.bias[...] + of_values @ kernel
        return mixed @ kernel.astype(mixed.dtype) + bias.astype(mixed.dtype)

    def _from_heads(
        self, mixed: Float[Array, "batch tokens features"]
    ) -> Float[Array, "batch tokens features"]:
        found = self.output(mixed)
        return found + getattr(self, OUTPUT)(mixed) if self.adapted else found

    def with_weights(
        self,
        tokens: Float[Array, "batch tokens features"],
        offset: Float[Array, "batch heads tokens tokens"],
    ) -> tuple[Float[Array, "batch tokens features"], Float[Array, "batch heads tokens tokens"]]:
        """The same with the attention probabilities out in the open.

        Args:
            tokens: (B, T, W).
            offset: (B, H, T, T) added to the probabilities, normally zeros: the gradient of a score with
                respect to it is the score's gradient with respect to the attention map.

        Returns:
            The output (B, T, W) and the probabilities (B, H, T, T) without the offset.
        """
        query, key, value = self.queries_keys_values(tokens)
        weights = attention_weights(query, key)
        mixed = jnp.einsum("bhts,bshk->bthk", weights + offset.astype(weights.dtype), value)
        return self._from_heads(mixed.reshape(tokens.shape)), weights

    def queries_keys_values(
        self, tokens: Float[Array, "batch tokens features"]
    ) -> tuple[Float[Array, "batch tokens heads features"], ...]:
        """Queries, keys and values by head: (B, T, H, W / H) each."""
        batch, count, _ = tokens.shape
        if compiled_for()[0] == "tpu" and not self.adapted:
            bias = self.qkv.bias[...].reshape(3, self.heads, -1)
            products = zip(self._by_head(tokens), bias, strict=True)
            return tuple(product + part.astype(product.dtype) for product, part in products)
        fused = self.qkv(tokens)
        if self.adapted:
            fused = fused + jnp.concatenate([getattr(self, name)(tokens) for name in FUSED], axis=-1)
        fused = fused.reshape(batch, count, 3, self.heads, -1)
        return fused[:, :, 0], fused[:, :, 1], fused[:, :, 2]

    def _by_head(self, tokens):
        """Without biases, by three products: a TPU's compiler lays heads out as it makes them."""
        dtype = self.qkv.dtype
        kernel = self.qkv.kernel[...].astype(dtype).reshape(tokens.shape[-1], 3, self.heads, -1)
        tokens = tokens.astype(dtype)
        return tuple(jnp.einsum("btw,whk->bthk", tokens, kernel[:, part]) for part in range(3))


class CrossAttention(nnx.Module):
    """Multi-head attention of queries to other tokens, each with a projection of its own.

    Args:
        width: features of a query, and of the result.
        heads: attention heads; must divide `width`.
        context_width: features of the tokens that are attended to; None for `width`.
        dtype: compute type; parameters are float32.
        kernel_init: of every map; Xavier-uniform by default.
        rngs: draws the initial parameters.

    Raises:
        ValueError: `heads` does not divide `width`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        context_width: int | None = None,
        dtype=jnp.float32,
        kernel_init=None,
        rngs: nnx.Rngs,
    ):
        if width % heads:
            raise ValueError(f"width {width} is no multiple of heads {heads}: change one of them")
        seen = context_width or width
        linear = {
            "dtype": dtype,
            "kernel_init": kernel_init or nnx.initializers.xavier_uniform(),
            "rngs": rngs,
        }
        self.heads = heads
        self.to_query = Linear(width, width, **linear)
        self.to_key = Linear(seen, width, **linear)
        self.to_value = Linear(seen, width, **linear)
        self.output = Linear(width, width, **linear)

    def __call__(
        self,
        queries: Float[Array, "batch queries features"],
        context: Float[Array, "batch keys seen"],
        mask: Bool[Array, "batch keys"] | None = None,
    ) -> Float[Array, "batch queries features"]:
        """What each query finds in the context.

        Args:
            queries: (B, T, W).
            context: (B, S, context_width).
            mask: (B, S), False on padding. A sample whose context is all padding attends to all of it: the
                result is finite, and the caller leaves it out.

        Returns:
            (B, T, W).
        """
        return self.output(self.mix(queries, context, mask))

    def mix(
        self,
        queries: Float[Array, "batch queries features"],
        context: Float[Array, "batch keys seen"],
        mask: Bool[Array, "batch keys"] | None = None,
    ) -> Float[Array, "batch queries features"]:
        """The same before the last map, `output`."""
        if mask is not None:
            mask = mask | ~mask.any(axis=-1, keepdims=True)
        query = self._by_head(self.to_query(queries))
        mixed = attend(query, *self.keys_and_values(context), mask)
        return batch_sharded(mixed.reshape(queries.shape))

    def keys_and_values(
        self, context: Float[Array, "batch keys seen"]
    ) -> tuple[Float[Array, "batch keys heads features"], Float[Array, "batch keys heads features"]]:
        """Keys and values of the context, by head: (B, S, H, W / H) each."""
        return self._by_head(self.to_key(context)), self._by_head(self.to_value(context))

    def _by_head(self, x):
        return batch_sharded(x.reshape(*x.shape[:2], self.heads, -1))
