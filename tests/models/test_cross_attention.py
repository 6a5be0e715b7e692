"""Cross-attention and its block against PyTorch's parts, and its ways of running against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from medclip_jax.models import attention, blocks

BATCH, QUERIES, KEYS, WIDTH, SEEN, HEADS = 2, 5, 7, 12, 9, 3


def inputs():
    draw = np.random.default_rng(0)
    tokens = jnp.asarray(draw.normal(size=(BATCH, QUERIES, WIDTH)), jnp.float32)
    context = jnp.asarray(draw.normal(size=(BATCH, KEYS, SEEN)), jnp.float32)
    return tokens, context, jnp.arange(KEYS)[None] < jnp.array([[KEYS], [4]])


def perturb(module):
    draw = np.random.default_rng(1)
    graph, state = nnx.split(module)
    return nnx.merge(
        graph, jax.tree.map(lambda x: x + jnp.asarray(0.1 * draw.normal(size=x.shape), x.dtype), state)
    )


def tensor(x):
    return torch.tensor(np.array(x[...]))


def linear(layer, x):
    return torch.nn.functional.linear(x, tensor(layer.kernel).T, tensor(layer.bias))


def attended(module, queries, context, mask):
    """What `module` should give, by PyTorch's multi-head attention."""
    theirs = torch.nn.MultiheadAttention(WIDTH, HEADS, kdim=SEEN, vdim=SEEN, batch_first=True)
    weights = {
        "q_proj_weight": tensor(module.to_query.kernel).T,
        "k_proj_weight": tensor(module.to_key.kernel).T,
        "v_proj_weight": tensor(module.to_value.kernel).T,
        "in_proj_bias": torch.cat(
            [tensor(x.bias) for x in (module.to_query, module.to_key, module.to_value)]
        ),
        "out_proj.weight": tensor(module.output.kernel).T,
        "out_proj.bias": tensor(module.output.bias),
    }
    theirs.load_state_dict(weights)
    with torch.no_grad():
        return theirs(queries, context, context, key_padding_mask=~torch.tensor(np.array(mask)))[0]


def test_equals_pytorch():
    tokens, context, mask = inputs()
    module = perturb(attention.CrossAttention(WIDTH, HEADS, context_width=SEEN, rngs=nnx.Rngs(0)))
    expected = attended(module, tensor(tokens), tensor(context), mask)
    np.testing.assert_allclose(module(tokens, context, mask), expected, atol=1e-5)
    hidden = context.at[1, 4:].add(50.0)
    np.testing.assert_allclose(module(tokens, hidden, mask), expected, atol=1e-5)
    assert float(jnp.abs(module(tokens, hidden) - expected.numpy())[1].max()) > 0.1


def test_a_context_of_padding_alone_stays_finite():
    tokens, context, mask = inputs()
    module = attention.CrossAttention(WIDTH, HEADS, context_width=SEEN, rngs=nnx.Rngs(0))
    alone = mask.at[1].set(False)
    np.testing.assert_allclose(module(tokens, context, alone)[1], module(tokens, context)[1], atol=1e-6)
    gradient = jax.grad(lambda x: module(tokens, x, alone).sum())(context)
    assert np.isfinite(gradient).all()


def test_the_form_follows_the_device(monkeypatch):
    """Queries and keys are of different number: every form gives the same."""
    tokens, context, mask = inputs()
    module = perturb(attention.CrossAttention(WIDTH, HEADS, context_width=SEEN, rngs=nnx.Rngs(0)))
    expected = module(tokens, context, mask)
    for form in ("chunked", "by-head"):
        monkeypatch.setattr(attention, "implementation", lambda *_, form=form: form)
        np.testing.assert_allclose(module(tokens, context, mask), expected, atol=1e-5)


def test_block_by_hand():
    tokens, context, mask = inputs()
    block = perturb(blocks.CrossBlock(WIDTH, HEADS, context_width=SEEN, rngs=nnx.Rngs(0)))
    seen = jnp.arange(QUERIES)[None] < jnp.array([[QUERIES], [3]])

    def norm(layer, x):
        return torch.nn.functional.layer_norm(x, (WIDTH,), tensor(layer.scale), tensor(layer.bias), 1e-6)

    x = tokens + block.attention(block.attention_norm(tokens), seen)
    x = torch.tensor(np.array(x))
    x = x + attended(block.cross_attention, norm(block.cross_norm, x), tensor(context), mask)
    hidden = torch.nn.functional.gelu(linear(block.mlp_in, norm(block.mlp_norm, x)))
    expected = x + linear(block.mlp_out, hidden)
    np.testing.assert_allclose(block(tokens, context, seen, mask), expected, atol=1e-5)


def test_every_way_of_running_gives_the_same_gradients():
    """By the parameters, the tokens, and the context that all blocks share."""
    tokens, context, mask = inputs()
    stack = perturb(
        blocks.stack(2, lambda: blocks.CrossBlock(WIDTH, HEADS, context_width=SEEN, rngs=nnx.Rngs(0)))
    )
    graph, state = nnx.split(stack)

    def loss(state, tokens, context, remat, scan):
        out = blocks.run(nnx.merge(graph, state), tokens, context, None, mask, remat=remat, scan=scan)
        return (out**3).sum()

    ways = [("none", False), ("block", False), ("attention", True), ("dots", True)]

    @jax.jit
    def all_ways(*arguments):
        return [jax.grad(loss, argnums=(0, 1, 2))(*arguments, *way) for way in ways]

    plain, *others = (jax.tree.leaves(gradient) for gradient in all_ways(state, tokens, context))
    by_context = plain[-1]
    assert by_context.shape == context.shape
    assert float(jnp.abs(by_context[0]).min()) > 0
    # Of the largest: a bias of keys moves nothing, and its gradient is rounding.
    atol = 1e-5 * max(float(jnp.abs(leaf).max()) for leaf in plain)
    for way, other in zip(ways[1:], others, strict=True):
        for got, want in zip(other, plain, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=atol, err_msg=str(way))


@pytest.mark.parametrize("build", [attention.CrossAttention, blocks.CrossBlock])
def test_width_must_be_a_multiple_of_heads(build):
    with pytest.raises(ValueError, match="width 10 is no multiple of heads 3"):
        build(10, 3, rngs=nnx.Rngs(0))
