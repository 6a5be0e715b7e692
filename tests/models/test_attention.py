"""Attention: against float64, chunked against plain, and how much memory it compiles to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import softmax

from medclip_jax.models import attention


def sample(queries=5, keys=7, batch=2, heads=3, features=4):
    draw = np.random.default_rng(0)
    shapes = [(batch, n, heads, features) for n in (queries, keys, keys)]
    return [jnp.asarray(draw.normal(size=shape), jnp.float32) for shape in shapes]


def padding(keys=7):
    return jnp.arange(keys)[None] < jnp.array([[keys], [3]])


def reference(query, key, value, mask=None):
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    out = np.zeros(query.shape)
    for b in range(query.shape[0]):
        real = slice(None) if mask is None else np.asarray(mask[b])
        for h in range(query.shape[2]):
            scores = query[b, :, h] @ key[b, real, h].T / np.sqrt(query.shape[3])
            out[b, :, h] = softmax(scores, axis=1) @ value[b, real, h]
    return out


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_values_and_gradients(masked, chunk):
    """5 queries in chunks of 2 leave a chunk with a row of filling."""
    qkv = sample()
    mask = padding() if masked else None

    def score(form):
        return jax.jit(
            jax.value_and_grad(
                lambda q, k, v: (form(q, k, v).astype(jnp.float32) ** 2).sum(), argnums=(0, 1, 2)
            )
        )(*qkv)

    def chunked(q, k, v):
        return attention.attend_chunked(q, k, v, mask, chunk=chunk)

    np.testing.assert_allclose(chunked(*qkv), reference(*qkv, mask), atol=1e-6)
    value, gradient = score(chunked)
    expected, plain = score(lambda q, k, v: attention.attend_plain(q, k, v, mask))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for got, want in zip(gradient, plain, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-6)
    if masked:
        assert float(jnp.abs(gradient[1][1, 3:]).max()) == 0.0


def test_attend_is_the_plain_form_on_small_maps():
    qkv = sample()
    np.testing.assert_allclose(attention.attend(*qkv, padding()), reference(*qkv, padding()), atol=1e-6)


@pytest.mark.parametrize(("queries", "keys"), [(5, 7), (6, 8)])
def test_even_lengths_for_the_fused_kernel(monkeypatch, queries, keys):
    """The kernel itself needs a GPU; what it is handed, and what is cut off again, does not."""
    plain, lengths = jax.nn.dot_product_attention, []

    def kernel(query, key, value, *, mask=None, implementation):
        assert implementation == "cudnn"
        lengths.append((query.shape[1], key.shape[1]))
        return plain(query, key, value, mask=mask)

    monkeypatch.setattr(attention, "implementation", lambda *_: "cudnn")
    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    qkv = sample(queries, keys)
    np.testing.assert_allclose(attention.attend(*qkv), reference(*qkv), atol=1e-6)
    mask = padding(keys)
    np.testing.assert_allclose(attention.attend(*qkv, mask), reference(*qkv, mask), atol=1e-6)
    assert lengths == [(queries, keys), (6, 8)]


class Device:
    def __init__(self, platform, capability):
        self.platform, self.compute_capability = platform, capability


@pytest.mark.parametrize(
    ("dtype", "features", "platform", "capability", "fits"),
    [
        (jnp.bfloat16, 64, "gpu", "9.0", True),
        (jnp.float16, 128, "gpu", "8.6", True),
        (jnp.float32, 64, "gpu", "9.0", False),
        (jnp.bfloat16, 60, "gpu", "9.0", False),
        (jnp.bfloat16, 192, "gpu", "9.0", False),
        (jnp.bfloat16, 64, "gpu", "7.5", False),
        (jnp.bfloat16, 64, "gpu", "gfx90a", False),
        (jnp.bfloat16, 64, "cpu", "9.0", False),
    ],
)
def test_where_the_fused_kernel_is_chosen(monkeypatch, dtype, features, platform, capability, fits):
    monkeypatch.setattr(jax, "devices", lambda: [Device(platform, capability)])
    assert attention._fits_cudnn(jax.ShapeDtypeStruct((1, 4, 2, features), dtype)) is fits


def test_text_of_padding_alone_is_finite():
    nothing = jnp.zeros((2, 7), bool)
    assert bool(jnp.isfinite(attention.attend(*sample(), nothing)).all())


def largest_array(jaxpr):
    """Elements of the largest array that any equation makes, inner programs included."""
    most = 0
    for equation in jaxpr.eqns:
        most = max([most, *(int(np.prod(v.aval.shape)) for v in equation.outvars)])
        for inner in jax.core.jaxprs_in_params(equation.params):
            most = max(most, largest_array(inner))
    return most


@pytest.mark.parametrize("tokens", [4096, 5185])
def test_no_dense_map_at_four_thousand_tokens(tokens):
    """Forward and backward, from shapes alone: no array near tokens x tokens, and little memory."""
    heads, features = 2, 8
    shape = jax.ShapeDtypeStruct((1, tokens, heads, features), jnp.float32)
    step = jax.grad(lambda q, k, v: attention.attend(q, k, v).sum(), argnums=(0, 1, 2))
    assert largest_array(jax.make_jaxpr(step)(shape, shape, shape).jaxpr) <= heads * attention.CHUNK_SCORES
    compiled = jax.jit(step).lower(shape, shape, shape).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < heads * tokens * tokens * 4 / 3


def test_the_guard_sees_a_dense_map():
    shape = jax.ShapeDtypeStruct((1, 5185, 2, 8), jnp.float32)
    step = jax.grad(lambda q, k, v: attention.attend_plain(q, k, v).sum(), argnums=(0, 1, 2))
    assert largest_array(jax.make_jaxpr(step)(shape, shape, shape).jaxpr) >= 2 * 5185**2


def test_width_must_be_a_multiple_of_heads():
    with pytest.raises(ValueError, match="width 10 is no multiple of heads 3"):
        attention.SelfAttention(10, 3, rngs=nnx.Rngs(0))


def test_padding_does_not_leak():
    layer = attention.SelfAttention(12, 3, rngs=nnx.Rngs(0))
    tokens = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 12)), jnp.float32)
    other = jnp.where(padding()[..., None], tokens, 99.0)
    real = np.asarray(padding())
    np.testing.assert_allclose(layer(tokens, padding())[real], layer(other, padding())[real], atol=1e-6)
