"""Low-rank adapters: nothing at the start, a product after that, and merged the same model without them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from medclip_jax.models.adapters import Adapter, AdapterSize, merge_adapters
from medclip_jax.models.bert import Bert, BertConfig
from medclip_jax.parameters import flatten, merge, split, unflatten
from medclip_jax.training.config import base_config
from medclip_jax.training.optimizer import make_optimizer
from medclip_jax.training.partition import DEFAULT_RULES
from medclip_jax.training.state import initial_state

CONFIG = BertConfig(vocabulary_size=40, width=12, depth=2, heads=3, mlp_width=20, max_positions=9)
SIZE = AdapterSize(rank=3, alpha=6.0)
TOKENS = np.random.default_rng(0).integers(1, 40, (4, 9)).astype(np.int32)
FROZEN = (r"^(?!.*_adapter/)",)


def drawn(**options):
    """An encoder whose adapters have learned something."""
    graph, params, rest = split(Bert(CONFIG, adapters=SIZE, rngs=nnx.Rngs(0), **options))
    random, flat = np.random.default_rng(1), flatten(params)
    for name, leaf in flat.items():
        if "_adapter/" in name:
            flat[name] = jnp.asarray(random.normal(0, 0.3, leaf.shape), jnp.float32)
    return graph, flat, rest


def states(graph, flat, rest):
    return jax.jit(lambda flat: merge(graph, unflatten(flat), rest)(TOKENS))(flat)


def test_an_adapter_adds_its_product():
    adapter = Adapter(5, 7, SIZE, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(2, 5))
    np.testing.assert_array_equal(adapter(x.astype(np.float32)), 0.0)
    adapter.up.kernel[...] = jnp.asarray(np.random.default_rng(1).normal(size=(3, 7)), jnp.float32)
    down, up = (np.asarray(part.kernel[...], np.float64) for part in (adapter.down, adapter.up))
    np.testing.assert_allclose(adapter(x.astype(np.float32)), x @ down @ up * 2.0, rtol=1e-5, atol=1e-6)


def test_with_fresh_adapters_the_encoder_is_what_it_was():
    plain, adapted = Bert(CONFIG, rngs=nnx.Rngs(0)), Bert(CONFIG, adapters=SIZE, rngs=nnx.Rngs(5))
    own = flatten(split(plain)[1])
    graph, params, rest = split(adapted)
    flat = flatten(params)
    assert flat.keys() - own.keys() == {
        f"blocks/{block}/attention/{name}_adapter/{side}/kernel"
        for block in (0, 1)
        for name in ("query", "key", "value", "output")
        for side in ("down", "up")
    }
    np.testing.assert_allclose(states(graph, flat | own, rest), jax.jit(plain.__call__)(TOKENS), atol=2e-6)


@pytest.mark.parametrize("options", [{}, {"scan": True}, {"remat": "block"}])
def test_merged_it_computes_the_same_without_them(options):
    graph, flat, rest = drawn(**options)
    merged = merge_adapters(flat, SIZE.alpha)
    plain, expected, _ = split(Bert(CONFIG, rngs=nnx.Rngs(0)))
    assert merged.keys() == flatten(expected).keys()
    with_them = states(graph, flat, rest)
    np.testing.assert_allclose(states(plain, merged, rest), with_them, atol=2e-6)
    without = states(plain, {name: flat[name] for name in merged}, rest)
    assert np.abs(without - with_them).max() > 0.01
    # Of something that has none, nothing is changed.
    assert merge_adapters(merged, SIZE.alpha) == merged


def test_each_adapter_goes_to_its_own_columns():
    _, flat, _ = drawn()
    merged = merge_adapters(flat, SIZE.alpha)
    for place, name in enumerate(("query", "key", "value")):
        down, up = (
            np.asarray(flat[f"blocks/1/attention/{name}_adapter/{side}/kernel"], np.float64)
            for side in ("down", "up")
        )
        columns = np.s_[:, 12 * place : 12 * (place + 1)]
        kernel = np.asarray(flat["blocks/1/attention/qkv/kernel"], np.float64)[columns]
        np.testing.assert_allclose(
            merged["blocks/1/attention/qkv/kernel"][columns], kernel + down @ up * 2.0, rtol=1e-6
        )


def test_a_frozen_encoder_has_neither_gradient_nor_optimizer_state():
    graph, flat, rest = drawn()
    params = unflatten(flat)
    config = base_config().optimizer
    config.frozen = FROZEN
    optimizer = make_optimizer(config, params, 10)
    assert optimizer.trained == {name for name in flat if "_adapter/" in name}
    state = initial_state(params, {}, optimizer=optimizer, ema=False, statistics=())
    moments = sum(leaf.size for leaf in jax.tree.leaves(state["optimizer"]) if leaf.ndim)
    assert moments == 2 * sum(flat[name].size for name in optimizer.trained)

    def loss(trained):
        return jnp.square(merge(graph, unflatten(flat | trained), rest)(TOKENS)).sum()

    gradients = jax.jit(jax.grad(lambda trained: loss(trained)))({n: flat[n] for n in optimizer.trained})
    assert all(np.any(gradient) for gradient in gradients.values())


def test_adapters_lie_on_the_mesh_like_other_matrices():
    import re

    matrices = re.compile(DEFAULT_RULES[0][0])
    assert all(matrices.search(name) for name in drawn()[1] if "_adapter/" in name)


@pytest.mark.parametrize("changes", [{"rank": 0}, {"rank": -1}, {"alpha": 0.0}])
def test_sizes_that_cannot_be_are_refused(changes):
    with pytest.raises(ValueError, match="give both above 0"):
        replace(SIZE, **changes)
