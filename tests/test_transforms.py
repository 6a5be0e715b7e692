"""Windowing and augmentation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medclip_jax import transforms
from medclip_jax.volumes.volume import AIR_HU

SHAPE = (4, 6, 5)


def volumes(batch=3):
    draw = np.random.default_rng(0)
    return jnp.asarray(draw.integers(-1000, 1500, size=(batch, *SHAPE)), jnp.int16)


def keys(batch=3, seed=0):
    return jax.random.split(jax.random.key(seed), batch)


def test_windows_by_hand():
    volume = jnp.array([-1024, -1000, 0, 500, 1000, 3000], jnp.int16).reshape(1, 1, 2, 3)
    got = transforms.to_float(volume, [(-1000, 1000), (0, 500)])
    assert got.shape == (1, 1, 2, 3, 2)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got[..., 0].ravel(), [-1, -1, 0, 0.5, 1, 1], atol=1e-6)
    np.testing.assert_allclose(got[..., 1].ravel(), [-1, -1, -1, 1, 1, 1], atol=1e-6)


def test_windows_that_make_no_sense():
    with pytest.raises(ValueError, match="at least one"):
        transforms.to_float(volumes(), [])
    with pytest.raises(ValueError, match="low < high"):
        transforms.to_float(volumes(), [(100, 100)])


def test_all_off_is_the_identity():
    got = transforms.augment(volumes(), keys())
    assert got.dtype == jnp.int16
    np.testing.assert_array_equal(got, volumes())


def test_air_is_the_prepared_volumes_air():
    assert transforms.AIR_HU == AIR_HU


def test_shift_moves_air_in():
    """Every result is the volume moved by some offset within the limits, and all offsets occur."""
    batch = 200
    volume = jnp.broadcast_to(volumes(1), (batch, *SHAPE))
    got = np.asarray(transforms.augment(volume, keys(batch), shift_voxels=(1, 0, 2)))
    assert got.dtype == np.int16
    wide = np.pad(np.asarray(volume[0]), ((1, 1), (0, 0), (2, 2)), constant_values=AIR_HU)
    candidates = {(d, w): wide[d : d + 4, :, w : w + 5] for d in range(3) for w in range(5)}
    seen = []
    for one in got:
        matches = [offset for offset, moved in candidates.items() if np.array_equal(moved, one)]
        assert len(matches) == 1
        seen += matches
    assert len(set(seen)) == 15


def test_flip_is_left_and_right_in_half_of_the_samples():
    batch = 100
    volume = jnp.broadcast_to(volumes(1), (batch, *SHAPE))
    got = np.asarray(transforms.augment(volume, keys(batch), flip_width=True))
    flipped = [np.array_equal(one, np.asarray(volume[0])[:, :, ::-1]) for one in got]
    assert all(np.array_equal(one, volume[0]) for one, f in zip(got, flipped, strict=True) if not f)
    assert 30 <= sum(flipped) <= 70  # 4 standard deviations


def test_intensities_stay_within_their_limits():
    batch = 300
    volume = jnp.stack([jnp.zeros(SHAPE), jnp.full(SHAPE, 1000.0)] * (batch // 2))
    keys_twice = jnp.repeat(keys(batch // 2), 2)
    got = transforms.augment(volume, keys_twice, gain=0.1, offset_hu=20.0)
    low, high = got[0::2, 0, 0, 0], got[1::2, 0, 0, 0]
    gain = (high - low) / 1000 - 1
    assert float(jnp.abs(low).max()) <= 20
    assert float(jnp.abs(low).max()) > 18
    assert float(jnp.abs(gain).max()) <= 0.1 + 1e-5
    assert float(jnp.abs(gain).max()) > 0.09
    assert abs(float(jnp.corrcoef(low, gain)[0, 1])) < 0.3


def test_noise_is_white_and_bounded_in_strength():
    got = transforms.augment(jnp.zeros((40, 8, 16, 16)), keys(40), noise_hu=30.0)
    spread = np.asarray(got.std(axis=(1, 2, 3)))
    assert spread.max() <= 33  # the estimate of a standard deviation from 2048 voxels is 1.6 % off
    assert spread.min() < 8
    assert abs(float(got.mean())) < 0.5
    flat = np.asarray(got[int(spread.argmax())])
    assert abs(np.corrcoef(flat[:, :, 1:].ravel(), flat[:, :, :-1].ravel())[0, 1]) < 0.1


def test_a_sample_depends_on_its_key_alone():
    options = {
        "shift_voxels": (1, 2, 2),
        "flip_width": True,
        "noise_hu": 20.0,
        "gain": 0.1,
        "offset_hu": 10.0,
    }
    together = jax.jit(lambda v, k: transforms.augment(v, k, **options))(volumes(), keys())
    for index in range(3):
        alone = transforms.augment(volumes()[index : index + 1], keys()[index : index + 1], **options)
        np.testing.assert_allclose(alone[0], together[index], atol=1e-3)
    other = transforms.augment(volumes(), keys(seed=1), **options)
    assert float(jnp.abs(other - together).max()) > 1


def test_projection_equals_loops_over_cells():
    volume = np.random.default_rng(0).integers(-1024, 2000, (2, 4, 6, 9)).astype(np.int16)
    for how, reduce in (("mean", np.mean), ("max", np.max), ("min", np.min)):
        found = np.asarray(transforms.project(volume, (2, 3, 3), how))
        assert found.shape == (2, 2, 2, 3)
        for b, d, h, w in np.ndindex(found.shape):
            cell = volume[b, 2 * d : 2 * d + 2, 3 * h : 3 * h + 3, 3 * w : 3 * w + 3].astype(np.float64)
            assert abs(found[b, d, h, w] - reduce(cell)) < 1e-3


def test_projection_errors_say_what_to_do():
    volume = np.zeros((1, 4, 6, 9), np.int16)
    with pytest.raises(ValueError, match="choose cells that do"):
        transforms.project(volume, (2, 4, 3), "mean")
    with pytest.raises(ValueError, match="'mean', 'max', 'min' or 'blob'"):
        transforms.project(volume, (2, 3, 3), "median")
    with pytest.raises(ValueError, match="must be even"):
        transforms.project(volume, (2, 3, 3), "blob")


def lung(*structures):
    """Air of a lung with what is told, in HU: pairs of an index and a value."""
    volume = np.full((1, 24, 24, 24), -850, np.int16)
    for place, value in structures:
        volume[(0, *place)] = value
    return volume


NODULE = tuple(slice(10, 14) for _ in range(3))


def test_blobs_equal_loops_over_voxels():
    volume = np.random.default_rng(0).integers(-1200, 2000, (1, 5, 6, 7)).astype(np.int16)
    clipped = np.pad(np.clip(volume[0].astype(np.float64), -1000, 100), 1, mode="edge")
    means = np.array([[[clipped[d : d + 3, h : h + 3, w : w + 3].mean() for w in range(7)] for h in range(6)]
                      for d in range(5)])  # fmt: skip
    around = [(0, 0, 3), (0, 3, 0), (3, 0, 0), (2, 2, 2), (2, 2, -2), (2, -2, 2), (-2, 2, 2)]
    found = np.asarray(transforms.blobs(volume))[0]
    assert found.shape == (3, 3, 4)
    for place in np.ndindex(found.shape):
        middle = 2 * np.array(place)
        others = [np.clip(middle + sign * np.array(way), 0, (4, 5, 6)) for way in around for sign in (-1, 1)]
        expected = means[tuple(middle)] - max(means[tuple(other)] for other in others)
        assert abs(found[place] - expected) < 1e-3


@pytest.mark.parametrize(
    "structure",
    [
        (slice(None), slice(11, 14), slice(11, 14)),  # a vessel along an axis
        (slice(11, 14), slice(11, 14), slice(12, None)),  # one that ends inside
        (slice(None), slice(None), slice(12, None)),  # a wall
        (slice(None), slice(12, None), slice(12, None)),  # an edge of it
    ],
)
def test_a_nodule_stands_out_and_vessels_and_walls_do_not(structure):
    nodule = float(transforms.blobs(lung((NODULE, 40))).max())
    assert nodule > 500
    assert float(transforms.blobs(lung((structure, 40))).max()) < 0.4 * nodule


def test_a_calcified_rib_is_no_brighter_blob_than_a_nodule():
    bright, plain = (transforms.blobs(lung((NODULE, value))).max() for value in (1500, 100))
    assert float(bright) == float(plain)


def test_maps_of_cells_move_with_the_volume():
    """Shifts by whole cells move cells; others split them evenly, as a filled box would be."""
    draw = np.random.default_rng(0)
    filled = draw.random((2, 3, 4, 3, 5)) < 0.4
    cell = 4
    cells = jnp.asarray(filled * 255, jnp.uint8)
    offsets = np.array([[4, -8, 0], [-3, 2, 5]])
    voxels = np.asarray(filled).repeat(cell, 2).repeat(cell, 3).repeat(cell, 4)
    wide = np.pad(voxels, ((0, 0), (0, 0), (8, 8), (8, 8), (8, 8)))
    expected = []
    for n, (d, h, w) in enumerate(offsets):
        moved = wide[n, :, 8 + d : 24 + d, 8 + h : 20 + h, 8 + w : 28 + w]
        expected.append(moved.reshape(3, 4, cell, 3, cell, 5, cell).mean(axis=(2, 4, 6)))
    got = transforms.shift_cells(cells, jnp.asarray(offsets), cell)
    assert got.dtype == jnp.uint8
    np.testing.assert_allclose(np.asarray(got) / 255, expected, atol=0.5 / 255 + 1e-6)


def test_offsets_are_those_of_the_augmentation():
    volume = jnp.broadcast_to(volumes(1), (20, *SHAPE))
    limits = (1, 0, 2)
    got = np.asarray(transforms.augment(volume, keys(20), shift_voxels=limits))
    offsets = np.asarray(transforms.shift_offsets(keys(20), limits))
    assert len({tuple(offset) for offset in offsets}) > 5
    wide = np.pad(np.asarray(volume[0]), ((1, 1), (0, 0), (2, 2)), constant_values=AIR_HU)
    for one, (d, _, w) in zip(got, offsets, strict=True):
        np.testing.assert_array_equal(one, wide[1 + d : 5 + d, :, 2 + w : 7 + w])


class TestBeyondMeanFrame:
    VIEW = np.array([[0, 0, 1, 1, 1, -1], [2, 0, 0, 0, 0, 0], [-1, -1, 1, 1, 1, 1]], np.int32)
    VALID = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]], bool)

    def frames(self):
        return np.random.default_rng(0).uniform(size=(3, 6, 4, 5))

    def moved(self, frames):
        return np.asarray(transforms.beyond_mean_frame(jnp.float32(frames), self.VIEW, self.VALID))

    def test_it_is_the_difference_to_the_mean_of_the_series(self):
        frames = self.frames()
        wanted = np.zeros_like(frames)
        for study, view in np.ndindex(3, 4):
            rows = (self.VIEW[study] == view - 1) & self.VALID[study]
            if rows.any():
                wanted[study, rows] = frames[study, rows] - frames[study, rows].mean(axis=0)
        np.testing.assert_allclose(self.moved(frames), wanted, atol=1e-6)

    def test_padding_has_no_part_and_one_frame_does_not_move(self):
        frames = self.frames()
        dirty = np.where(self.VALID[..., None, None], frames, np.nan)
        np.testing.assert_array_equal(self.moved(dirty)[self.VALID], self.moved(frames)[self.VALID])
        assert not self.moved(dirty)[~self.VALID].any()
        assert not self.moved(frames)[1, 0].any()


def test_label_maps_move_as_their_volumes():
    """The same map in HU and as labels, each by its own function: where one is air, the other is outside."""
    labels = jax.random.randint(jax.random.key(5), (30, 5, 6, 7), 0, 4).astype(jnp.uint8)
    options = {"shift_voxels": (1, 2, 3), "flip_width": True}
    moved = np.asarray(transforms.augment(labels.astype(jnp.int16), keys(30), **options))
    got = transforms.augment_labels(labels, keys(30), **options)
    assert got.dtype == jnp.uint8
    np.testing.assert_array_equal(got, np.where(moved == transforms.AIR_HU, 255, moved))
    assert (np.asarray(got) == 255).any()
    assert (np.asarray(got) != np.asarray(labels)).any()


def test_crops_of_label_maps_are_those_of_their_volumes():
    labels = jax.random.randint(jax.random.key(5), (6, 5, 6, 7), 0, 255).astype(jnp.uint8)
    options = {"count": 3, "shape": (2, 3, 3)}
    volumes = transforms.random_crops(labels.astype(jnp.int16), keys(6), **options)
    got = transforms.random_crops(labels, keys(6), **options)
    assert got.dtype == jnp.uint8
    np.testing.assert_array_equal(got, volumes)


def test_label_maps_without_augmentation_stay():
    labels = jnp.ones((2, 3, 4, 5), jnp.uint8)
    np.testing.assert_array_equal(transforms.augment_labels(labels, keys(2)), labels)
