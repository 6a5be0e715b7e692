"""Soft Dice and cross entropy against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medclip_jax.losses.dice import overlap_sums, soft_dice


def made(images=2, space=(3, 4, 5), classes=3, seed=0, ignored=0.2):
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, (images, *space)).astype(np.uint8)
    labels[draw.random(labels.shape) < ignored] = 255
    return draw.normal(size=(images, *space, classes)).astype(np.float32), labels


def reference(logits, labels):
    """(dice (N, K), mean cross entropy over all voxels that count), one voxel at a time."""
    logits = np.asarray(logits, np.float64)
    images, classes = logits.shape[0], logits.shape[-1]
    sums, entropy, count = np.zeros((3, images, classes)), 0.0, 0
    for image in range(images):
        for voxel in np.ndindex(labels.shape[1:]):
            label = labels[(image, *voxel)]
            if label == 255:
                continue
            scores = np.exp(logits[(image, *voxel)] - logits[(image, *voxel)].max())
            probability = scores / scores.sum()
            sums[0, image, label] += probability[label]
            sums[1, image] += probability
            sums[2, image, label] += 1
            entropy -= np.log(probability[label])
            count += 1
    return (2 * sums[0] + 1e-5) / (sums[1] + sums[2] + 1e-5), entropy / max(count, 1)


def loss(logits, labels):
    found = overlap_sums(logits, labels)
    entropy = found.cross_entropy.sum() / jnp.maximum(found.voxels.sum(), 1.0)
    return (1 - soft_dice(*found[:3])).mean() + entropy


@pytest.mark.parametrize(
    ("images", "space", "classes", "ignored"),
    [(2, (3, 4, 5), 3, 0.2), (1, (1, 1, 1), 2, 0.0), (3, (7,), 4, 0.5), (2, (2, 3, 2), 3, 1.0)],
)
def test_values_and_gradient(images, space, classes, ignored):
    logits, labels = made(images, space, classes, ignored=ignored)
    found = jax.jit(overlap_sums)(logits, labels)
    dice, entropy = reference(logits, labels)
    np.testing.assert_allclose(soft_dice(*found[:3]), dice, rtol=2e-6)
    mean = found.cross_entropy.sum() / max(found.voxels.sum(), 1)
    np.testing.assert_allclose(mean, entropy, rtol=2e-6, atol=1e-9)
    assert found.voxels.sum() == (labels != 255).sum()
    gradient = jax.jit(jax.grad(loss))(jnp.asarray(logits), labels)
    direction = np.random.default_rng(1).normal(size=logits.shape)

    def moved(step):
        dice, entropy = reference(logits + step * direction, labels)
        return (1 - dice).mean() + entropy

    numeric = (moved(1e-5) - moved(-1e-5)) / 2e-5
    np.testing.assert_allclose(np.sum(np.asarray(gradient) * direction), numeric, rtol=2e-4, atol=1e-7)


def test_ignored_voxels_have_no_gradient():
    logits, labels = made()
    gradient = jax.grad(loss)(jnp.asarray(logits), labels)
    assert not np.asarray(gradient)[labels == 255].any()
    assert np.asarray(gradient)[labels != 255].any(axis=-1).all()


def test_empty_classes():
    """Neither there nor predicted is 1, predicted alone is near 0; and all is finite."""
    logits = np.zeros((1, 4, 3), np.float32)
    logits[..., 0] = 200.0
    labels = np.zeros((1, 4), np.uint8)
    found = soft_dice(*overlap_sums(logits, labels)[:3])
    np.testing.assert_allclose(found[0], [1, 1, 1], atol=1e-6)
    found = soft_dice(*overlap_sums(logits[..., ::-1], labels)[:3])
    np.testing.assert_allclose(found[0], [0, 1, 0], atol=1e-5)
    assert np.isfinite(jax.grad(loss)(jnp.asarray(logits[..., ::-1]), labels)).all()


def test_bfloat16_is_summed_in_float32():
    logits, labels = made(1, (16, 16, 16), 2, ignored=0.0)
    wide = overlap_sums(jnp.asarray(logits, jnp.bfloat16).astype(jnp.float32), labels)
    narrow = overlap_sums(jnp.asarray(logits, jnp.bfloat16), labels)
    assert all(part.dtype == jnp.float32 for part in narrow)
    np.testing.assert_allclose(narrow.predicted, wide.predicted, rtol=1e-6)
