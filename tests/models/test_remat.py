"""What blocks keep for the backward pass: the same gradients, and memory in the order that was promised."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from medclip_jax.models import attention, blocks, splash
from medclip_jax.models.bert import BertBlock, BertConfig

WAYS = [(remat, scan) for scan in (False, True) for remat in blocks.REMAT]


def pre_norm(width=8):
    return blocks.Block(width, 2, rngs=nnx.Rngs(0))


def post_norm():
    return BertBlock(BertConfig(width=8, heads=2, mlp_width=16), rngs=nnx.Rngs(0))


def stack(depth, build):
    graph, state = nnx.split(blocks.stack(depth, build))
    draw = np.random.default_rng(0)
    state = jax.tree.map(lambda x: x + jnp.asarray(0.1 * draw.normal(size=x.shape), x.dtype), state)
    return graph, state


def loss_of(graph, remat, scan, mask=None):
    def loss(state, tokens):
        return (blocks.run(nnx.merge(graph, state), tokens, mask, remat=remat, scan=scan) ** 3).sum()

    return loss


@pytest.mark.parametrize("build", [pre_norm, post_norm])
def test_every_way_gives_the_same_gradients(build):
    """One set of parameters, stored a block at a time, fits all of them."""
    graph, state = stack(2, build)
    tokens = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 8)), jnp.float32)
    mask = jnp.arange(5)[None] < jnp.array([[5], [3]])

    @jax.jit
    def all_ways(state, tokens):
        return [jax.grad(loss_of(graph, *way, mask), argnums=(0, 1))(state, tokens) for way in WAYS]

    plain, *others = (jax.tree.leaves(gradient) for gradient in all_ways(state, tokens))
    for way, other in zip(WAYS[1:], others, strict=True):
        for got, want in zip(other, plain, strict=True):
            atol = 1e-6 * float(jnp.abs(want).max()) + 1e-6
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=atol, err_msg=str(way))


def sizes(depth=3):
    graph, state = nnx.split(nnx.eval_shape(lambda: blocks.stack(depth, lambda: pre_norm(32))))
    return graph, state, jax.ShapeDtypeStruct((4, 64, 32), jnp.float32)


def test_what_is_kept_is_in_order():
    """Beside each block's input: attention's output, then the results of the linear maps."""
    graph, state, tokens = sizes()
    kept = {}
    for remat, scan in WAYS:
        loss = loss_of(graph, remat, scan)
        leaves = jax.eval_shape(
            lambda s, x, loss=loss: jax.tree.leaves(jax.vjp(loss, s, x)[1]), state, tokens
        )
        kept[remat, scan] = sum(x.size * x.dtype.itemsize for x in leaves)
    one = 4 * 64 * 32 * 4  # bytes of the tokens
    for scan in (False, True):
        block, attended, dots, everything = (
            kept[remat, scan] for remat in ("block", "attention", "dots", "none")
        )
        assert attended == block + 3 * one  # attention's output in each of 3 blocks
        assert dots == attended + 3 * 8 * one  # 3 (qkv) + 4 (hidden) + 1 (either output is added onwards)
        assert everything > 2 * dots


def test_compiled_memory_is_in_the_same_order():
    """Of the scanned stack: without a loop, the CPU's compiler undoes the recomputation."""
    graph, state, tokens = sizes(4)
    block, attended, dots, everything = (
        jax.jit(jax.grad(loss_of(graph, remat, True)))
        .lower(state, tokens)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
        for remat in ("block", "attention", "dots", "none")
    )
    assert block < attended < dots < everything


def live_kernels(jaxpr):
    """Kernels in equations that make something: the compiler drops the others."""
    count = 0
    for equation in jaxpr.eqns:
        if equation.outvars:
            count += equation.primitive.name == "pallas_call"
            count += sum(live_kernels(inner) for inner in jax.core.jaxprs_in_params(equation.params))
    return count


@pytest.mark.parametrize(("remat", "kernels"), [("none", 2), ("block", 3), ("attention", 2), ("dots", 2)])
def test_the_tpu_kernel_runs_forward_once_where_its_result_is_kept(monkeypatch, remat, kernels):
    """Forward, backward, and the forward again only when a block keeps its input alone."""
    monkeypatch.setattr(attention, "implementation", lambda *_: "splash")
    interpreted = functools.partial(splash.attend_splash, interpret=True)
    monkeypatch.setattr(splash, "attend_splash", interpreted)
    graph, state, tokens = sizes(1)
    program = jax.make_jaxpr(jax.grad(loss_of(graph, remat, False)))(state, tokens)
    assert live_kernels(program.jaxpr) == kernels


def test_unknown_policy():
    graph, state, tokens = sizes(1)
    with pytest.raises(ValueError, match="remat='all' is unknown: use one of"):
        jax.eval_shape(loss_of(graph, "all", False), state, tokens)
