"""The loss of prompts against plain loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medclip_jax.losses.prompts import finding_prompts

run = jax.jit(finding_prompts)


def unit(rows):
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)


def reference(volume, positive, negative, status, scale):
    volume, positive, negative = (unit(np.asarray(x, np.float64)) for x in (volume, positive, negative))
    total, known = 0.0, 0
    for i, row in enumerate(status):
        for finding, said in enumerate(row):
            if said:
                both = scale * np.array([volume[i] @ positive[finding], volume[i] @ negative[finding]])
                # Softmax over the two prompts: what zero-shot classification reports.
                right = both[0] if said > 0 else both[1]
                total += np.log(np.exp(both - both.max()).sum()) + both.max() - right
                known += 1
    return total, known


def made(batch, findings, width=5, seed=0):
    draw = np.random.default_rng(seed)
    status = draw.integers(-1, 2, (batch, findings))
    return (*(draw.normal(size=(n, width)) * 3 for n in (batch, findings, findings)), status, 7.0)


@pytest.mark.parametrize(("batch", "findings"), [(1, 1), (7, 3), (4, 11)])
def test_value_and_gradients_equal_plain_loops(batch, findings):
    *arrays, status, scale = made(batch, findings, seed=batch)
    status[0, 0] = 1
    point = [*arrays, np.float64(scale)]

    def loss(volume, positive, negative, scale):
        return run(volume, positive, negative, jnp.asarray(status, jnp.int8), scale)[0]

    def expected(volume, positive, negative, scale):
        return reference(volume, positive, negative, status, scale)[0]

    single = [jnp.asarray(x, jnp.float32) for x in point]
    total, known, logits = run(*single[:3], jnp.asarray(status, jnp.int8), scale)
    np.testing.assert_allclose(total, expected(*point), rtol=2e-6)
    assert float(known) == (status != 0).sum()
    assert logits.shape == status.shape
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(*single)
    draw = np.random.default_rng(1)
    for which, gradient in enumerate(gradients):
        for _ in range(3):
            direction = draw.normal(size=np.shape(point[which]))
            ahead, behind = ([*point] for _ in range(2))
            ahead[which], behind[which] = point[which] + 1e-5 * direction, point[which] - 1e-5 * direction
            numeric = (expected(*ahead) - expected(*behind)) / 2e-5
            np.testing.assert_allclose(np.sum(gradient * direction), numeric, rtol=2e-4, atol=2e-5)


def test_what_is_unknown_takes_no_part():
    volume, positive, negative, status, scale = made(6, 4)
    status[:, 2] = 0
    status[3] = 0
    arguments = [jnp.asarray(x, jnp.float32) for x in (volume, positive, negative)]

    def loss(volume, positive, negative):
        return run(volume, positive, negative, jnp.asarray(status), scale)[0]

    of_volume, of_positive, _ = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arguments)
    assert not np.any(of_volume[3])
    assert np.all(np.any(of_volume[np.array([0, 1, 2, 4, 5])], axis=1))
    assert not np.any(of_positive[2])
    dirty = arguments[0].at[3].set(1e20)  # not even numbers that overflow
    np.testing.assert_array_equal(
        run(dirty, *arguments[1:], jnp.asarray(status), scale)[0],
        run(*arguments, jnp.asarray(status), scale)[0],
    )


def test_nothing_known_is_zero_with_zero_gradients():
    volume, positive, negative, status, scale = made(3, 2)
    arguments = [jnp.asarray(x, jnp.float32) for x in (volume, positive, negative)]
    total, known, _ = run(*arguments, jnp.zeros_like(status), scale)
    assert (float(total), float(known)) == (0.0, 0.0)
    gradient = jax.grad(lambda v: run(v, *arguments[1:], jnp.zeros_like(status), scale)[0])(arguments[0])
    assert not np.any(gradient)


def test_zero_vectors_and_great_scales_stay_finite():
    zeros = jnp.zeros((2, 3))
    status = jnp.array([[1, -1], [-1, 1]])
    total, *_ = run(zeros, zeros, jnp.eye(2, 3), status, 100.0)
    np.testing.assert_allclose(total, 4 * np.log(2), rtol=1e-6)  # a zero vector is as near to either prompt
    sides = jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    graded = jax.value_and_grad(lambda v: run(v, sides, -sides, status, 100.0)[0])
    value, gradient = graded(sides)
    # Two of four are right beyond float32, two wrong by a logit of 0 (the other axis).
    np.testing.assert_allclose(value, 2 * np.log(2), rtol=1e-6)
    assert np.all(np.isfinite(gradient))


def test_bfloat16_comes_out_in_float32():
    volume, positive, negative, status, scale = made(5, 3)
    half = [jnp.asarray(x, jnp.bfloat16) for x in (volume, positive, negative)]
    total, _, logits = run(*half, jnp.asarray(status), scale)
    assert total.dtype == logits.dtype == jnp.float32
    exact = [np.asarray(x, np.float64) for x in half]
    np.testing.assert_allclose(total, reference(*exact, status, scale)[0], rtol=2e-6)
