"""Assignment of views to volumes against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medclip_jax.losses import contrastive, views
from tests.losses.comparing import assert_equal


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def sample(batch=5, count=3, width=7, seed=0):
    draw = np.random.default_rng(seed)
    return draw.normal(size=(batch, count, width)), draw.normal(size=(batch, width))


def prototypes(seen, volumes, temperature=0.07, groups=None, same_group="positive"):
    """View by view."""
    batch, count, _ = seen.shape
    found = np.zeros((batch, count))
    for i in range(batch):
        alike = [groups is not None and (groups[i] == groups[j]).all() for j in range(batch)]
        own = [j for j in range(batch) if j == i or (alike[j] and same_group == "positive")]
        among = [j for j in range(batch) if j == i or same_group == "positive" or not alike[j]]
        for m in range(count):
            logits = np.array([unit(seen[i, m]) @ unit(volumes[j]) / temperature for j in among])
            divisor = np.log(np.exp(logits - logits.max()).sum()) + logits.max()
            found[i, m] = np.mean([divisor - logits[among.index(j)] for j in own])
    return found


@pytest.mark.parametrize("shape", [(5, 3, 7), (1, 1, 2), (4, 2, 3), (3, 4, 5)])
def test_prototypes_of_any_number_of_views(shape):
    seen, volumes = sample(*shape, seed=2)
    found = views.prototype_assignment(jnp.asarray(seen), jnp.asarray(volumes))
    assert found.shape == shape[:2]
    np.testing.assert_allclose(found, prototypes(seen, volumes), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("same_group", ["positive", "ignore"])
def test_volumes_of_one_study(same_group):
    seen, volumes = sample()
    groups = np.array([[0, 1], [2, 3], [0, 1], [4, 5], [0, 9]])
    found = views.prototype_assignment(
        seen, volumes, temperature=0.2, groups=jnp.asarray(groups), same_group=same_group
    )
    want = prototypes(seen, volumes, 0.2, groups, same_group)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=2e-6)


def test_gradients_reach_views_and_volumes():
    seen, volumes = sample(4, 2, 3, seed=5)

    def loss(*x):
        return views.prototype_assignment(*x, temperature=0.3).sum()

    gradients = jax.grad(loss, (0, 1))(jnp.asarray(seen), jnp.asarray(volumes))
    for part, gradient in enumerate(gradients):
        arrays = [seen, volumes]
        for place in np.ndindex(*arrays[part].shape):
            moved = [x.copy() for x in arrays]
            ends = []
            for step in (1e-5, -1e-5):
                moved[part][place] = arrays[part][place] + step
                ends.append(prototypes(*moved, temperature=0.3).sum())
            np.testing.assert_allclose(gradient[place], (ends[0] - ends[1]) / 2e-5, rtol=1e-3, atol=1e-4)


def test_chunks_change_nothing():
    seen, volumes = map(jnp.asarray, sample(6, 2, 5, seed=3))

    def run(rows):
        def loss(x):
            return views.prototype_assignment(x["seen"], x["volumes"], chunk_rows=rows).sum()

        return jax.value_and_grad(loss)({"seen": seen, "volumes": volumes})

    assert_equal({"chunks": run(5)}, {"chunks": run(0)})


def test_a_view_without_direction_is_undecided():
    _, volumes = sample(4, 1, 3)

    def loss(x):
        return views.prototype_assignment(x, jnp.asarray(volumes)).sum()

    value, gradient = jax.value_and_grad(loss)(jnp.zeros((4, 1, 3)))
    np.testing.assert_allclose(value, 4 * np.log(4), rtol=1e-6)
    assert np.isfinite(gradient).all()


def test_places_of_the_batch():
    logits = np.random.default_rng(0).normal(size=(4, 3, 4))
    want = np.zeros((4, 3))
    for i, m in np.ndindex(4, 3):
        row = logits[i, m] / 0.5
        want[i, m] = np.log(np.exp(row).sum()) - row[i]
    np.testing.assert_allclose(views.slot_assignment(logits, temperature=0.5), want, rtol=1e-5)
    gradient = jax.grad(lambda x: views.slot_assignment(x, temperature=0.5).sum())(jnp.asarray(logits))
    share = np.exp(logits / 0.5) / np.exp(logits / 0.5).sum(-1, keepdims=True)
    np.testing.assert_allclose(gradient, (share - np.eye(4)[:, None]) / 0.5, rtol=1e-4, atol=1e-5)


def test_one_way_by_dot_products():
    draw = np.random.default_rng(1)
    rows, columns = draw.normal(size=(3, 4)), draw.normal(size=(3, 4))
    logits = 2.0 * rows @ columns.T
    want = np.log(np.exp(logits).sum(axis=1)) - np.diag(logits)
    found = contrastive.one_way(jnp.asarray(rows), jnp.asarray(columns), 2.0, normalized=False)
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_one_way_there_and_back_is_the_symmetric_loss():
    draw = np.random.default_rng(4)
    volume, text = (jnp.asarray(draw.normal(size=(5, 6))) for _ in range(2))
    both = contrastive.one_way(volume, text, 10.0) + contrastive.one_way(text, volume, 10.0)
    np.testing.assert_allclose(both.mean() / 2, contrastive.info_nce(volume, text, 10.0), rtol=1e-6)
