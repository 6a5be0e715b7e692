"""Masked reconstruction against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medclip_jax.losses import masked

OPTIONS = ("normalize_patches", "denominator")
reconstruction = jax.jit(masked.reconstruction, static_argnames=OPTIONS)
reconstruction_sums = jax.jit(masked.reconstruction_sums, static_argnames=OPTIONS)


def reference(prediction, target, mask, normalize=True, epsilon=1e-6, denominator="masked"):
    total, count = 0.0, 0.0
    for b in range(mask.shape[0]):
        for n in range(mask.shape[1]):
            count += mask[b, n] if denominator == "masked" else 1
            if mask[b, n]:
                row = np.asarray(target[b, n], np.float64)
                if normalize:
                    row = (row - row.mean()) / np.sqrt(row.var() + epsilon)
                total += np.mean((np.asarray(prediction[b, n], np.float64) - row) ** 2)
    return total / max(count, 1)


def sample(batch=2, tokens=5, voxels=8, seed=0):
    draw = np.random.default_rng(seed)
    prediction, target = draw.normal(size=(2, batch, tokens, voxels)).astype(np.float32)
    return prediction, target * 3 + 1, draw.integers(0, 2, size=(batch, tokens))


@pytest.mark.parametrize(
    ("shape", "normalize", "denominator"),
    [
        ((3, 5, 8), True, "masked"),
        ((3, 5, 8), True, "all"),
        ((2, 7, 3), False, "masked"),
        ((1, 1, 1), True, "masked"),
    ],
)
def test_value_and_gradient(shape, normalize, denominator):
    prediction, target, mask = sample(*shape, seed=3)
    options = {"normalize_patches": normalize, "denominator": denominator}

    def loss(p):
        return reconstruction(p, jnp.asarray(target), jnp.asarray(mask), **options)

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(prediction))
    expected = reference(prediction, target, mask, normalize, denominator=denominator)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)
    direction = np.random.default_rng(0).normal(size=shape)
    numeric = [
        reference(prediction.astype(np.float64) + h * direction, target, mask, normalize, 1e-6, denominator)
        for h in (1e-5, -1e-5)
    ]
    np.testing.assert_allclose(
        np.sum(np.asarray(gradient) * direction), (numeric[0] - numeric[1]) / 2e-5, rtol=1e-4, atol=1e-6
    )


def test_sums_and_counts_are_per_sample_and_add_up():
    prediction, target, mask = (jnp.asarray(x) for x in sample(3))
    for denominator in ("masked", "all"):
        sums, counts = reconstruction_sums(prediction, target, mask, denominator=denominator)
        assert sums.shape == counts.shape == (3,)
        whole = reconstruction(prediction, target, mask, denominator=denominator)
        np.testing.assert_allclose(sums.sum() / counts.sum(), whole, rtol=1e-6)
        one, _ = reconstruction_sums(prediction[1:2], target[1:2], mask[1:2], denominator=denominator)
        np.testing.assert_allclose(one[0], sums[1], rtol=1e-6)
    np.testing.assert_array_equal(reconstruction_sums(prediction, target, mask)[1], mask.sum(axis=1))


def test_visible_patches_get_no_gradient():
    prediction, target, mask = (jnp.asarray(x) for x in sample())
    gradient = jax.jit(jax.grad(reconstruction))(prediction, target, mask)
    assert float(jnp.abs(jnp.where(mask[..., None] == 0, gradient, 0)).max()) == 0.0
    assert float(jnp.abs(jnp.where(mask[..., None] == 1, gradient, 1)).min()) > 0.0


@pytest.mark.parametrize("denominator", ["masked", "all"])
def test_nothing_masked_is_zero_with_finite_gradients(denominator):
    prediction, target, _ = (jnp.asarray(x) for x in sample())
    value, gradient = jax.value_and_grad(reconstruction)(
        prediction, target, jnp.zeros((2, 5)), denominator=denominator
    )
    assert float(value) == 0.0
    assert float(jnp.abs(gradient).max()) == 0.0


def test_patch_of_air_is_finite():
    """A patch of one value has no variance: its target is 0, not NaN."""
    air = jnp.full((1, 2, 4), -1.0)
    value, gradient = jax.value_and_grad(reconstruction)(jnp.ones((1, 2, 4)), air, jnp.ones((1, 2)))
    assert float(value) == pytest.approx(1.0)
    assert bool(jnp.isfinite(gradient).all())


def test_bfloat16_is_computed_in_float32():
    prediction, target, mask = sample()
    half = [jnp.asarray(x, jnp.bfloat16) for x in (prediction, target)]
    got = reconstruction(*half, jnp.asarray(mask))
    assert got.dtype == jnp.float32
    expected = reference(*(np.asarray(x, np.float64) for x in half), mask)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_unknown_denominator_names_the_choices():
    prediction, target, mask = (jnp.asarray(x) for x in sample())
    with pytest.raises(ValueError, match="'masked' or 'all'"):
        reconstruction(prediction, target, mask, denominator="visible")


def language_reference(logits, targets, mask):
    total = 0.0
    for b, place in np.argwhere(mask):
        row = np.asarray(logits[b, place], np.float64)
        total += np.log(np.exp(row - row.max()).sum()) + row.max() - row[targets[b, place]]
    return total / max(mask.sum(), 1)


@pytest.mark.parametrize("shape", [(3, 7, 11), (1, 1, 2), (2, 5, 3)])
def test_masked_words(shape):
    draw = np.random.default_rng(6)
    logits = draw.normal(scale=3, size=shape).astype(np.float32)
    targets, mask = draw.integers(0, shape[2], shape[:2]), draw.integers(0, 2, shape[:2])
    mask[0, 0] = 1
    value, gradient = jax.jit(jax.value_and_grad(masked.language))(jnp.asarray(logits), targets, mask)
    np.testing.assert_allclose(value, language_reference(logits, targets, mask), rtol=1e-5)
    direction = draw.normal(size=shape)
    ahead, behind = (
        language_reference(logits.astype(np.float64) + step * direction, targets, mask)
        for step in (1e-5, -1e-5)
    )
    slope = np.sum(np.asarray(gradient) * direction)
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=1e-4, atol=1e-6)
    assert float(jnp.abs(jnp.where(mask[..., None] == 0, gradient, 0)).max()) == 0.0
    sums, counts = masked.language_sums(jnp.asarray(logits), targets, mask)
    np.testing.assert_allclose(sums.sum() / counts.sum(), value, rtol=1e-6)
    np.testing.assert_array_equal(counts, mask.sum(axis=1))


def test_no_masked_word_is_zero_with_finite_gradients():
    value, gradient = jax.value_and_grad(masked.language)(
        jnp.ones((2, 3, 4)), jnp.zeros((2, 3), int), jnp.zeros((2, 3))
    )
    assert float(value) == 0.0
    assert float(jnp.abs(gradient).max()) == 0.0
