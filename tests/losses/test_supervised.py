"""Losses of labels against plain loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_expit, logsumexp

from medclip_jax.losses.supervised import multi_class, multi_label, ordinal


def label_reference(logits, labels):
    total, count = 0.0, 0
    for row, said in zip(logits, labels, strict=True):
        for logit, label in zip(row, said, strict=True):
            if label:
                total -= log_expit(logit if label > 0 else -logit)
                count += 1
    return total, count


def class_reference(logits, target):
    rows = [(row, int(one)) for row, one in zip(logits, target, strict=True) if one >= 0]
    return sum(logsumexp(row) - row[one] for row, one in rows), len(rows)


def ordinal_reference(logits, grade):
    total, count = 0.0, 0
    for row, one in zip(logits, grade, strict=True):
        if one >= 0:
            count += 1
            for cut, logit in enumerate(row, 1):
                reached = expit(logit)
                total -= np.log(reached if one >= cut else 1 - reached)
    return total, count


CASES = {
    "multi_label": (multi_label, label_reference, lambda draw, b, k: draw.integers(-1, 2, (b, k))),
    "multi_class": (multi_class, class_reference, lambda draw, b, k: draw.integers(-1, k, b)),
    "ordinal": (ordinal, ordinal_reference, lambda draw, b, k: draw.integers(-1, k + 1, b)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (4, 11)])
def test_value_and_gradients_equal_plain_loops(name, shape):
    loss, reference, drawn = CASES[name]
    draw = np.random.default_rng(shape[0])
    logits, target = 3 * draw.normal(size=shape), drawn(draw, *shape)
    target[(0,) * target.ndim] = 1 if name == "multi_label" else 0

    def value(logits):
        return loss(logits, jnp.asarray(target, jnp.int8))[0]

    single = jnp.asarray(logits, jnp.float32)
    total, count = loss(single, jnp.asarray(target, jnp.int8))
    expected, known = reference(logits, target)
    np.testing.assert_allclose(total, expected, rtol=2e-6, atol=1e-6)
    assert float(count) == known > 0
    gradient = jax.grad(value)(single)
    for place in np.ndindex(*shape):
        step = np.zeros(shape)
        step[place] = 1e-5
        numeric = (reference(logits + step, target)[0] - reference(logits - step, target)[0]) / 2e-5
        np.testing.assert_allclose(gradient[place], numeric, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_what_is_unknown_takes_no_part(name):
    loss, _, drawn = CASES[name]
    draw = np.random.default_rng(0)
    target = np.abs(drawn(draw, 6, 4))
    target[3] = 0 if name == "multi_label" else -1
    logits = jnp.asarray(draw.normal(size=(6, 4)), jnp.float32)

    def value(logits):
        return loss(logits, jnp.asarray(target))[0]

    gradient = jax.grad(value)(logits)
    assert not np.any(gradient[3])
    dirty = logits.at[3].set(1e30)
    np.testing.assert_array_equal(value(dirty), value(logits))
    total, count = loss(logits, jnp.full_like(jnp.asarray(target), 0 if name == "multi_label" else -1))
    assert float(total) == float(count) == 0


@pytest.mark.parametrize("name", CASES)
def test_large_logits_stay_finite_in_half_precision(name):
    loss, _, drawn = CASES[name]
    target = drawn(np.random.default_rng(1), 5, 3)
    logits = jnp.full((5, 3), -300.0, jnp.bfloat16).at[:, 0].set(300)
    total, _ = loss(logits, jnp.asarray(target))
    assert total.dtype == jnp.float32
    assert np.isfinite(total)
