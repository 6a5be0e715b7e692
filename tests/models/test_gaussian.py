"""Gaussian heads against NumPy in float64: pooling by weights, and attention of one query under masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from medclip_jax.models import gaussian
from medclip_jax.parameters import flatten, split
from medclip_jax.training.config import DEFAULT_NO_DECAY
from medclip_jax.training.optimizer import matching

# float32 through four maps of width 6 against float64.
CLOSE = {"rtol": 2e-5, "atol": 2e-5}
BATCH, TOKENS, WIDTH, OUT, HEADS = 2, 7, 6, 5, 3


def inputs(parts=3):
    """Weights of part 0 are all 1, those of the last are all 0."""
    draw = np.random.default_rng(0)
    tokens = draw.normal(size=(BATCH, TOKENS, WIDTH))
    weights = draw.random((BATCH, parts, TOKENS)) * (draw.random((BATCH, parts, TOKENS)) < 0.5)
    weights[:, 0] = 1.0
    weights[:, -1] = 0.0
    weights[:, 1, 2] = 0.25
    return tokens, weights


def head(dtype=jnp.float32):
    return gaussian.GaussianHead(WIDTH, WIDTH, OUT, HEADS, dtype=dtype, rngs=nnx.Rngs(0))


def by_hand(model, tokens, weights):
    """One sample, one part, one head at a time."""
    numbers = {
        name: np.asarray(x[...], np.float64)
        for name, x in flatten(nnx.to_pure_dict(nnx.state(model))).items()
    }

    def linear(name, x):
        return x @ numbers[f"variance/{name}/kernel"] + numbers[f"variance/{name}/bias"]

    size = WIDTH // HEADS
    query = linear("to_query", numbers["variance/query"])
    mean, log_variance = np.zeros((*weights.shape[:2], OUT)), np.zeros((*weights.shape[:2], OUT))
    for b, p in np.ndindex(weights.shape[:2]):
        inside = weights[b, p] > 0
        if inside.any():
            pooled = (weights[b, p][:, None] * tokens[b]).sum(axis=0) / weights[b, p].sum()
            vector = pooled @ numbers["mean/linear/kernel"]
            mean[b, p] = vector / np.linalg.norm(vector)
        else:
            inside = np.ones(TOKENS, bool)
        key, value = linear("to_key", tokens[b][inside]), linear("to_value", tokens[b][inside])
        found = np.zeros(WIDTH)
        for h in range(HEADS):
            part = slice(h * size, (h + 1) * size)
            scores = np.exp(key[:, part] @ query[part] / np.sqrt(size))
            found[part] = (scores / scores.sum()) @ value[:, part]
        log_variance[b, p] = linear("log_variance", linear("output", found))
    return mean, log_variance


def test_head_against_loops():
    tokens, weights = inputs()
    model = head()
    pooled = gaussian.soft_masked_mean(jnp.asarray(tokens, jnp.float32), jnp.asarray(weights, jnp.float32))
    found = model(pooled, jnp.asarray(tokens, jnp.float32), jnp.asarray(weights > 0))
    mean, log_variance = by_hand(model, tokens, weights)
    np.testing.assert_allclose(found.mean, mean, **CLOSE)
    np.testing.assert_allclose(found.log_variance, log_variance, **CLOSE)
    # The whole is a part like any other; an empty part has mean 0.
    np.testing.assert_allclose(pooled[:, 0], tokens.mean(axis=1), **CLOSE)
    assert not np.asarray(found.mean[:, -1]).any()


def test_start_is_nearly_a_point():
    tokens = jnp.asarray(np.random.default_rng(1).normal(size=(4, 50, 96)), jnp.float32)
    model = gaussian.VarianceQuery(96, 64, 4, rngs=nnx.Rngs(0))
    found = np.asarray(model(tokens, jnp.ones((4, 1, 50), bool)))
    assert abs(found.mean() - gaussian.INITIAL_LOG_VARIANCE) < 0.1
    assert 0 < found.std() < 1
    deviations = {
        name: float(np.std(np.asarray(leaf)))
        for name, leaf in flatten(split(model)[1]).items()
        if name.endswith(("kernel", "query"))
    }
    assert len(deviations) == 6
    np.testing.assert_allclose(list(deviations.values()), 96**-0.5, rtol=0.25)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_lies_outside_of_a_part_changes_nothing(dtype):
    """Values and gradients; also an empty part is finite, and gives the tokens no gradient by its mean."""
    tokens, weights = inputs()
    model, masks = head(dtype), jnp.asarray(weights > 0)
    tokens, weights = jnp.asarray(tokens, dtype), jnp.asarray(weights, jnp.float32)

    def run(tokens, part):
        found = model(gaussian.soft_masked_mean(tokens, weights), tokens, masks)
        return (found.mean[:, part] * jnp.arange(OUT)).sum(), found.log_variance[:, part].sum()

    outside = ~masks[:, 1, :, None]
    other = jnp.where(outside, 7.0, tokens)
    np.testing.assert_array_equal(run(tokens, 1), run(other, 1))
    for kind in (0, 1):
        gradient = np.asarray(jax.grad(lambda x, kind=kind: run(x, 1)[kind])(tokens), np.float32)
        assert np.isfinite(gradient).all()
        assert not np.where(outside, gradient, 0).any()
        assert np.where(outside, 0, gradient).any()
    empty = [
        np.asarray(jax.grad(lambda x, kind=kind: run(x, 2)[kind])(tokens), np.float32) for kind in (0, 1)
    ]
    assert not empty[0].any()
    assert np.isfinite(empty[1]).all()


def test_the_log_variance_keeps_its_digits_in_bfloat16():
    """Steps of bfloat16 at -10 are 1/16: with an untouched bias, small differences must survive."""
    model = gaussian.VarianceQuery(WIDTH, OUT, HEADS, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    tokens = jnp.asarray(inputs()[0], jnp.bfloat16)
    found = np.asarray(model(tokens, jnp.ones((BATCH, 1, TOKENS), bool)))
    assert found.dtype == np.float32
    assert np.abs(found * 16 - np.round(found * 16)).max() > 1e-3


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="width 6 is no multiple of heads 4"):
        gaussian.VarianceQuery(6, 5, 4, rngs=nnx.Rngs(0))


def test_weight_decay_leaves_the_query_and_the_biases_alone():
    names = list(flatten(split(head())[1]))
    spared = matching(DEFAULT_NO_DECAY, names, "no_decay", may_miss=DEFAULT_NO_DECAY)
    assert spared == {name for name in names if name.endswith(("bias", "query"))}
    assert "variance/query" in spared
