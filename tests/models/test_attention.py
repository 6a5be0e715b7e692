"""Attention: against float64, chunked against plain, and how much memory it compiles to."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import softmax

from medclip_jax.models import attention, blocks, fast_memory, splash
from medclip_jax.models.attention_chunks import LOOPED_CHUNK_SCORES, attend_in_chunks
from medclip_jax.models.bert import Bert, BertConfig
from medclip_jax.models.encoder import Encoded
from medclip_jax.models.mae import MaskedDecoder
from medclip_jax.models.vit import VisionTransformer


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
@pytest.mark.parametrize(
    "form",
    [
        partial(attend_in_chunks, looped=looped, chunk=chunk)
        for looped in (False, True)
        for chunk in (None, 1, 2)
    ],
)
def test_values_and_gradients(masked, form):
    """5 queries in chunks of 2 leave a chunk with a row of filling."""
    qkv = sample()
    mask = padding() if masked else None

    def score(attend):
        return jax.jit(
            jax.value_and_grad(
                lambda q, k, v: (attend(q, k, v).astype(jnp.float32) ** 2).sum(), argnums=(0, 1, 2)
            )
        )(*qkv)

    def formed(q, k, v):
        return form(q, k, v, mask)

    np.testing.assert_allclose(formed(*qkv), reference(*qkv, mask), atol=1e-6)
    value, gradient = score(formed)
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


@pytest.mark.parametrize(
    ("platform", "dtype", "tokens", "features", "capability", "chosen"),
    [
        ("gpu", jnp.bfloat16, 4097, 64, "9.0", "cudnn"),
        ("gpu", jnp.float16, 65, 128, "8.6", "cudnn"),
        ("cuda", "bfloat16", 4097, 64, None, "cudnn"),
        ("gpu", jnp.float32, 4097, 64, "9.0", "chunked"),
        ("gpu", jnp.float32, 65, 64, "9.0", "plain"),
        ("gpu", jnp.bfloat16, 65, 60, "9.0", "plain"),
        ("gpu", jnp.bfloat16, 65, 192, "9.0", "plain"),
        ("gpu", jnp.bfloat16, 4097, 64, "7.5", "chunked"),
        ("gpu", jnp.bfloat16, 65, 64, "gfx90a", "plain"),
        ("rocm", jnp.bfloat16, 65, 64, None, "plain"),
        ("tpu", jnp.bfloat16, 4097, 64, None, "splash"),
        ("tpu", jnp.float32, 512, 80, None, "splash"),
        ("tpu", jnp.bfloat16, 511, 64, None, "plain"),
        ("cpu", jnp.bfloat16, 127, 64, "9.0", "plain"),
        ("cpu", jnp.bfloat16, 128, 64, None, "by-head"),
        ("cpu", jnp.float32, 4096, 64, None, "by-head"),
    ],
)
def test_which_implementation_is_chosen(platform, dtype, tokens, features, capability, chosen):
    assert attention.implementation(platform, dtype, tokens, tokens, features, capability) == chosen


def test_the_device_compiled_for_decides(monkeypatch):
    """The mesh's devices where they are others than this machine's, else the first device here."""
    assert attention.compiled_for() == ("cpu", None)
    other = jax.sharding.AbstractMesh(
        (2,), ("data",), abstract_device=jax.sharding.AbstractDevice("TPU v5 lite", 1, "tpu")
    )
    with jax.sharding.use_abstract_mesh(other):
        assert attention.compiled_for() == ("tpu", None)


@pytest.mark.parametrize(
    ("tokens", "block"),
    [(1, 128), (129, 256), (344, 384), (512, 512), (1153, 256), (1297, 128), (4097, 384), (5185, 384)],
)
def test_block_of_the_tpu_kernel(tokens, block):
    assert splash.block_of(tokens) == block


def kernel_sample(batch, dtype):
    draw = np.random.default_rng(0)
    shapes = [(batch, n, 2, 8) for n in (130, 200, 200)]
    return [jnp.asarray(draw.normal(size=shape), dtype) for shape in shapes]


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("form", [partial(splash.attend_splash, interpret=True), attention.FORMS["by-head"]])
def test_forms_that_the_compiler_cannot_split(form, split):
    """130 queries, 200 keys, some of them padding; on one device and on eight, with the batch split.

    The TPU's kernel runs step by step here.
    """
    qkv = kernel_sample(8 if split else 2, jnp.float32)
    mask = jnp.arange(200)[None] < (17 + 20 * jnp.arange(len(qkv[0])))[:, None]

    def graded(form):
        def loss(q, k, v):
            out = form(q, k, v, mask)
            return (out**2).mean(), out

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))

    expected, out = graded(attention.attend_plain)(*qkv)
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))
    if split:
        with jax.set_mesh(mesh):
            gradient, got = graded(form)(*(jax.device_put(x, rows) for x in qkv))
        assert got.sharding.is_equivalent_to(rows, 4)
    else:
        gradient, got = graded(form)(*qkv)
        np.testing.assert_allclose(got, reference(*qkv, mask), atol=5e-6)
    np.testing.assert_allclose(got, out, atol=5e-6)
    for some, want in zip(gradient, expected, strict=True):
        np.testing.assert_allclose(some, want, atol=5e-6 * float(jnp.abs(want).max()))
    assert float(jnp.abs(gradient[1][0, 17:]).max()) == 0.0


@pytest.mark.parametrize(
    ("keys", "block", "expected"),
    [
        (128, 128, (128, 128)),
        (512, 512, (512, 512)),
        (1408, 128, (1408, 1408)),
        (4096, 512, (2048, 512)),
        (5376, 384, (2688, 384)),
    ],
)
def test_key_blocks_of_the_tpu_kernel(keys, block, expected):
    assert splash.key_blocks(keys, block) == expected


def test_a_step_on_a_chip_with_much_fast_memory_holds_all_keys():
    roomy, other = (fast_memory.program_options(kind) for kind in ("TPU v5 lite", "TPU v4"))
    assert (dict(roomy), dict(other)) == ({"xla_tpu_scoped_vmem_limit_kib": 32768}, {})
    assert splash.key_blocks(5376, 384)[0] == 2688
    assert splash.key_blocks(5376, 384, itemsize=4)[0] == 896
    with fast_memory.held_by(roomy):
        assert splash.key_blocks(5376, 384)[0] == 5376
        assert splash.key_blocks(11264, 512)[0] == 5632
        with fast_memory.held_by(other):
            assert splash.key_blocks(5376, 384)[0] == 2688
    assert splash.key_blocks(5376, 384)[0] == 2688


def test_gradients_of_the_tpu_kernel_with_keys_in_several_blocks(monkeypatch):
    """The one backward kernel gives the queries' gradient in parts, one for each block of keys."""
    monkeypatch.setattr(splash, "most_keys", lambda itemsize: 128)
    qkv = kernel_sample(1, jnp.float32)

    def gradients(form):
        return jax.jit(jax.grad(lambda *x: (form(*x) ** 2).mean(), argnums=(0, 1, 2)))(*qkv)

    expected = gradients(attention.attend_plain)
    for got, want in zip(gradients(partial(splash.attend_splash, interpret=True)), expected, strict=True):
        np.testing.assert_allclose(got, want, atol=5e-6 * float(jnp.abs(want).max()))


def test_blocks_are_filled_once_for_the_tpu_kernel(monkeypatch):
    """130 tokens, in whole blocks 256: the same result and gradients as without filling."""
    graph, state = nnx.split(blocks.stack(2, lambda: blocks.Block(16, 2, rngs=nnx.Rngs(0))))
    tokens = jnp.asarray(np.random.default_rng(0).normal(size=(2, 130, 16)), jnp.float32)

    def graded(state, tokens):
        out = blocks.run(nnx.merge(graph, state), tokens, remat="dots")
        return (out**3).mean(), out

    def found():
        return jax.jit(jax.grad(graded, argnums=(0, 1), has_aux=True))(state, tokens)

    gradients, out = found()
    monkeypatch.setattr(attention, "implementation", lambda *_: "splash")
    monkeypatch.setattr(splash, "attend_splash", partial(splash.attend_splash, interpret=True))
    lengths = []
    monkeypatch.setattr(splash, "_blocks", lambda x, n: lengths.append(x.shape[1]) or jnp.swapaxes(x, 1, 2))
    again, got = found()
    assert set(lengths) == {256}
    np.testing.assert_allclose(got, out, atol=1e-5)
    for some, want in zip(jax.tree.leaves(again), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(some, want, atol=1e-5 * float(jnp.abs(want).max()) + 1e-9)


def test_projections_by_head_are_those_of_the_fused_matrix(monkeypatch):
    module = attention.SelfAttention(12, 3, rngs=nnx.Rngs(0))
    module.qkv.bias[...] = jnp.linspace(-1.0, 1.0, 36)
    tokens = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 12)), jnp.float32)
    expected = module.queries_keys_values(tokens)
    monkeypatch.setattr(attention, "compiled_for", lambda: ("tpu", None))
    for got, want in zip(module.queries_keys_values(tokens), expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_biases_of_keys_and_values_on_tpus(monkeypatch, masked):
    """Left out, and moved behind the means: the same output and gradients."""
    module = attention.SelfAttention(12, 3, rngs=nnx.Rngs(0))
    random = np.random.default_rng(0)
    for linear in (module.qkv, module.output):
        linear.bias[...] = jnp.asarray(random.normal(size=linear.bias.shape), jnp.float32)
    tokens = jnp.asarray(random.normal(size=(2, 5, 12)), jnp.float32)
    mask = jnp.arange(5)[None] < jnp.array([[5], [3]]) if masked else None
    weights = random.normal(size=tokens.shape)
    graph, params = nnx.split(module)

    def graded():
        def loss(params, tokens):
            found = nnx.merge(graph, params)(tokens, mask)
            return (found * weights).sum(), found

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, tokens)

    expected = graded()
    monkeypatch.setattr(attention, "compiled_for", lambda: ("tpu", None))
    for got, want in zip(*map(jax.tree.leaves, (graded(), expected)), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_tpu_kernel_in_16_bits_without_mask():
    """Values of bfloat16 have 8 bits: 2^-8 of values up to about 1."""
    qkv = kernel_sample(1, jnp.bfloat16)
    got = jax.jit(lambda *x: splash.attend_splash(*x, interpret=True))(*qkv)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float32), reference(*qkv), atol=8e-3)


@pytest.mark.parametrize("looped", [False, True])
def test_text_of_padding_alone(looped):
    """Finite, and the same in every form: all keys weigh alike, and queries and keys have no gradient."""
    nothing = jnp.arange(7)[None] < jnp.array([[4], [0]])

    def graded(form):
        return jax.value_and_grad(lambda *qkv: (form(*qkv, nothing) ** 2).sum(), argnums=(0, 1, 2))(*sample())

    value, gradient = graded(partial(attend_in_chunks, looped=looped, chunk=2))
    expected, plain = graded(attention.attend_plain)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for got, want in zip(gradient, plain, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-6)
    assert float(jnp.abs(gradient[0][1]).max()) == float(jnp.abs(gradient[1][1]).max()) == 0.0


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
    assert largest_array(jax.make_jaxpr(step)(shape, shape, shape).jaxpr) <= heads * LOOPED_CHUNK_SCORES
    compiled = jax.jit(step).lower(shape, shape, shape).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < heads * tokens * tokens * 4 / 3


def test_the_guard_sees_a_dense_map():
    shape = jax.ShapeDtypeStruct((1, 5185, 2, 8), jnp.float32)
    step = jax.grad(lambda q, k, v: attention.attend_plain(q, k, v).sum(), argnums=(0, 1, 2))
    assert largest_array(jax.make_jaxpr(step)(shape, shape, shape).jaxpr) >= 2 * 5185**2


def big_vit(tokens):
    vit = VisionTransformer(
        shape=(16, 16, 16), patch=(1, 1, 1), channels=1, width=6, depth=1, heads=1, rngs=nnx.Rngs(0)
    )
    return vit, lambda m, x: m.encode(x).sequence, jax.ShapeDtypeStruct((1, 16, 16, 16, 1), jnp.float32)


def big_decoder(tokens):
    decoder = MaskedDecoder(
        grid=(16, 16, 16),
        patch=(1, 1, 1),
        channels=1,
        encoder_width=6,
        width=6,
        depth=1,
        heads=1,
        rngs=nnx.Rngs(0),
    )
    restore = jnp.arange(tokens)[None]
    return (
        decoder,
        lambda m, x: m(Encoded(x, has_summary=True), restore),
        jax.ShapeDtypeStruct((1, 9, 6), jnp.float32),
    )


def big_bert(tokens):
    config = BertConfig(vocabulary_size=9, width=6, depth=1, heads=1, mlp_width=6, max_positions=tokens)
    return Bert(config, rngs=nnx.Rngs(0)), lambda m, x: m(x), jax.ShapeDtypeStruct((1, tokens), jnp.int32)


@pytest.mark.parametrize("build", [big_vit, big_decoder, big_bert])
def test_no_buffer_of_tokens_squared_in_any_tower(build):
    """The optimized program, forward and backward, at 4096 tokens: every shape in it, and its memory."""
    tokens = 4096
    module, forward, inputs = build(tokens)
    graph, state = nnx.split(module)
    step = jax.jit(jax.grad(lambda state, x: (forward(nnx.merge(graph, state), x) ** 2).sum()))
    compiled = step.lower(state, inputs).compile()
    sizes = [
        int(np.prod([int(side) for side in shape.split(",")]))
        for shape in re.findall(r"\b(?:f|bf|s|u|pred)\d*\[([\d,]+)\]", compiled.as_text())
    ]
    assert tokens <= max(sizes) < tokens**2 / 2
    assert compiled.memory_analysis().temp_size_in_bytes < tokens**2 * 4


def test_width_must_be_a_multiple_of_heads():
    with pytest.raises(ValueError, match="width 10 is no multiple of heads 3"):
        attention.SelfAttention(10, 3, rngs=nnx.Rngs(0))


def test_padding_does_not_leak():
    layer = attention.SelfAttention(12, 3, rngs=nnx.Rngs(0))
    tokens = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 12)), jnp.float32)
    other = jnp.where(padding()[..., None], tokens, 99.0)
    real = np.asarray(padding())
    np.testing.assert_allclose(layer(tokens, padding())[real], layer(other, padding())[real], atol=1e-6)
