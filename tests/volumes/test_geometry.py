"""Orientation, resampling, cropping and masks against float64 references."""

from itertools import permutations, product

import numpy as np
import pytest
from scipy import ndimage

from medclip_jax.volumes import (
    AIR_HU,
    Volume,
    canonical,
    crop_or_pad,
    fraction_in_cells,
    mask_center,
    resample,
    resample_labels,
)

ORIENTATIONS = [
    (order, flips) for order in permutations(range(3)) for flips in product((False, True), repeat=3)
]


def volume_of(voxels, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0)) -> Volume:
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = spacing
    affine[:3, 3] = origin
    affine[3, 3] = 1
    return Volume(np.asarray(voxels, np.int16), tuple(spacing), affine)


def reference_axis(values: np.ndarray, old: float, new: float) -> np.ndarray:
    """Box average of the linear interpolant by brute-force quadrature, float64, one axis."""
    n, scale = len(values), new / old
    m = max(1, int(np.ceil(n * old / new - 0.5 - 1e-6)))
    width = np.sqrt(max(scale**2 - 1, 0))
    steps = (np.arange(4000) + 0.5) / 4000 - 0.5
    centers = (n - 1) / 2 + (np.arange(m) - (m - 1) / 2) * scale
    return np.array([np.interp(c + width * steps, np.arange(n), values).mean() for c in centers])


def world(affine: np.ndarray, index) -> np.ndarray:
    return affine[:3, :3] @ np.asarray(index, float) + affine[:3, 3]


def turned(voxels, affine, order, flips):
    """The same scan stored with its axes permuted and flipped."""
    result = voxels.transpose(order)
    moved = affine[:, [*order, 3]].copy()
    for axis, flip in enumerate(flips):
        if flip:
            moved[:3, 3] += moved[:3, axis] * (result.shape[axis] - 1)
            moved[:3, axis] *= -1
            result = np.flip(result, axis)
    return result, moved


@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS)
def test_canonical_is_the_same_from_all_48_orientations(order, flips):
    voxels = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7), dtype=np.int16)
    volume = volume_of(voxels, (3.0, 1.5, 0.7), (-30, 12, 5))
    found, affine = canonical(*turned(voxels, volume.affine, order, flips))
    np.testing.assert_array_equal(found, voxels)
    np.testing.assert_allclose(affine, volume.affine, atol=1e-12)


@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS)
def test_bright_point_keeps_its_world_position(order, flips):
    """Through reorientation, resampling and cropping around it, to 0.05 mm."""
    spacing, origin = np.array([2.0, 1.0, 0.8]), np.array([-20.0, 35.0, 110.0])
    point = np.array([-4.3, 52.6, 142.1])  # RAS mm
    d, h, w = np.meshgrid(*(np.arange(n) for n in (31, 40, 45)), indexing="ij")
    distance2 = sum(
        (index * s + o - p) ** 2
        for index, s, o, p in zip((d, h, w), spacing, origin[::-1], point[::-1], strict=True)
    )
    voxels = np.rint(8000 * np.exp(-distance2 / (2 * 4.0**2))).astype(np.int16)
    voxels, affine = canonical(*turned(voxels, volume_of(voxels, spacing, origin).affine, order, flips))
    volume = Volume(voxels, tuple(np.linalg.norm(affine[:3, :3], axis=0)), affine)
    cropped = crop_or_pad(resample(volume, (3.0, 1.7, 1.9)), (11, 17, 19), center=point, fill=0)
    center = world(cropped.affine, ndimage.center_of_mass(cropped.voxels.astype(float)))
    np.testing.assert_allclose(center, point, atol=0.05)
    brightest = np.unravel_index(cropped.voxels.argmax(), cropped.voxels.shape)
    assert (np.abs(np.asarray(brightest) - (5, 8, 9)) <= 1).all()


def test_left_handed_and_oblique_axes_keep_the_rotation():
    angle = np.deg2rad(20)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-0.7, 0.8, 3.0])  # first axis to the left: determinant < 0
    affine[:3, 3] = (10, -20, 30)
    voxels = np.zeros((6, 7, 8), np.int16)
    voxels[1, 2, 3] = 1
    found, moved = canonical(voxels, affine)
    index = np.argwhere(found)[0]
    assert tuple(index) == (3, 2, 4)
    np.testing.assert_allclose(world(moved, index), world(affine, (1, 2, 3)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(moved[:3, :3], axis=0), (3.0, 0.8, 0.7))


@pytest.mark.parametrize("bad", [np.zeros((4, 4)), np.ones((4, 4))])
def test_canonical_refuses_a_broken_affine(bad):
    with (
        np.errstate(invalid="ignore", divide="ignore"),
        pytest.raises(ValueError, match="parallel axes or an axis of no length"),
    ):
        canonical(np.zeros((2, 2, 2), np.int16), bad)


@pytest.mark.parametrize(
    "spacing", [(2.0, 1.0, 1.0), (1.0, 2.3, 0.6), (0.5, 0.9, 3.1), (4.0, 3.7, 2.2), (1.0, 1.0, 1.0)]
)
def test_resample_equals_quadrature(spacing):
    """Box-averaged linear interpolation in float64; only the final rounding to int16 differs."""
    old = (1.0, 0.9, 1.1)
    voxels = np.random.default_rng(1).integers(-1000, 2000, (13, 18, 21)).astype(np.int16)
    expected = voxels.astype(np.float64)
    for axis in range(3):
        expected = np.apply_along_axis(reference_axis, axis, expected, old[axis], spacing[axis])
    found = resample(volume_of(voxels, old), spacing)
    assert found.spacing == spacing
    assert found.voxels.shape == expected.shape
    assert np.abs(found.voxels - expected).max() <= 0.5 + 0.05  # rounding + 4000-point quadrature


@pytest.mark.parametrize("new", [0.37, 0.5, 1.0, 1.3, 2.0, 2.5, 3.9])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_linear_ramp_is_exact_in_world_coordinates(new, axis):
    shape = [9, 8, 7]
    shape[axis] = 40
    ramp = 20 * np.arange(40).reshape([-1 if a == axis else 1 for a in range(3)])
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = new
    volume = volume_of(np.broadcast_to(ramp, shape), (1.0, 1.0, 1.0), (3.0, 4.0, 5.0))
    found = resample(volume, spacing)
    ends = [np.zeros(3), np.zeros(3)]
    ends[1][axis] = found.voxels.shape[axis] - 1
    first, last = (world(found.affine, end)[2 - axis] - volume.affine[2 - axis, 3] for end in ends)
    expected = 20 * np.linspace(first, last, found.voxels.shape[axis])
    line = np.moveaxis(found.voxels, axis, 0)[:, 3, 3]
    inner = slice(3, -3)  # the border repeats the edge voxel
    assert np.abs(line[inner] - expected[inner]).max() <= 0.5 + 1e-3


def test_constant_stays_and_same_spacing_is_identity():
    voxels = np.full((9, 11, 5), -777, np.int16)
    assert (resample(volume_of(voxels), (2.7, 0.3, 1.9)).voxels == -777).all()
    noise = np.random.default_rng(2).integers(-32768, 32767, (6, 7, 9)).astype(np.int16)
    volume = volume_of(noise, (3.0, 1.5, 0.7))
    same = resample(volume, volume.spacing)
    np.testing.assert_array_equal(same.voxels, noise)
    np.testing.assert_allclose(same.affine, volume.affine)


def test_coarsening_does_not_alias():
    """Stripes one voxel wide: sampling without a low-pass returns +-1000, the mean of three voxels +-333.

    The filter here leaves 8/pi**2 * sinc(sqrt(8)/2) = 0.176 of the fundamental.
    """
    stripes = np.where(np.arange(120) % 2, 1000, -1000)
    for axis in range(3):
        shape = [6, 6, 6]
        shape[axis] = 120
        spacing = [1.0, 1.0, 1.0]
        spacing[axis] = 3.0
        striped = np.broadcast_to(stripes.reshape([-1 if a == axis else 1 for a in range(3)]), shape)
        found = np.moveaxis(resample(volume_of(striped), spacing).voxels, axis, 0)
        assert np.abs(found[2:-2]).max() <= 180


def test_odd_shapes_cover_the_old_extent():
    for shape in [(2, 2, 2), (3, 5, 7), (1, 9, 4), (17, 2, 33)]:
        volume = volume_of(np.zeros(shape), (2.0, 0.7, 0.9))
        found = resample(volume, (3.0, 1.5, 1.5))
        middle = [world(v.affine, (np.asarray(v.voxels.shape) - 1) / 2) for v in (volume, found)]
        np.testing.assert_allclose(*middle, atol=1e-9)
        for n, old, m, new in zip(shape, volume.spacing, found.voxels.shape, found.spacing, strict=True):
            assert abs(m * new - n * old) <= 0.5 * new + 1e-9 or m == 1


def test_smooth_field_survives_there_and_back():
    d, h, w = np.meshgrid(*(np.linspace(0, np.pi, n) for n in (30, 36, 40)), indexing="ij")
    volume = volume_of(np.rint(1000 * np.sin(d) * np.sin(h) * np.sin(w)), (2.0, 1.0, 1.0))
    back = resample(resample(volume, (1.0, 0.5, 0.5)), (2.0, 1.0, 1.0))
    assert back.voxels.shape == volume.voxels.shape
    inner = (slice(2, -2),) * 3
    assert np.abs(back.voxels[inner].astype(int) - volume.voxels[inner]).max() <= 15


def test_resample_reads_flipped_views():
    noise = np.random.default_rng(3).integers(-1000, 1000, (12, 14, 16)).astype(np.int16)
    plain = resample(volume_of(noise[::-1, ::-1, ::-1].copy()), (2.0, 2.0, 2.0))
    view = resample(volume_of(noise), (2.0, 2.0, 2.0))
    np.testing.assert_array_equal(plain.voxels[::-1, ::-1, ::-1], view.voxels)


@pytest.mark.parametrize("spacing", [(0, 1, 1), (1, -1, 1), (1, 1), (1, 1, float("nan"))])
def test_resample_refuses_impossible_spacing(spacing):
    with pytest.raises(ValueError, match="three positive numbers"):
        resample(volume_of(np.zeros((3, 3, 3))), spacing)


@pytest.mark.parametrize("shape", [(5, 6, 7), (9, 9, 9), (4, 12, 3), (1, 1, 1)])
@pytest.mark.parametrize("center", [None, (3.0, 2.0, 4.0), (-100.0, 0.0, 0.0)])
def test_crop_keeps_every_voxel_in_place(shape, center):
    voxels = np.random.default_rng(4).integers(0, 1000, (6, 7, 8)).astype(np.int16)
    volume = volume_of(voxels, (2.0, 1.0, 0.5), (1.0, -2.0, 3.0))
    found = crop_or_pad(volume, shape, center=center)
    assert found.voxels.shape == shape
    for index in np.ndindex(shape):
        old = np.linalg.solve(volume.affine, [*world(found.affine, index), 1])[:3]
        np.testing.assert_allclose(old, np.rint(old), atol=1e-9)
        old = np.rint(old).astype(int)
        inside = (old >= 0).all() and (old < voxels.shape).all()
        assert found.voxels[index] == (voxels[tuple(old)] if inside else AIR_HU)
    if center is not None:
        middle = world(found.affine, (np.asarray(shape) - 1) / 2)
        assert (np.abs(middle - center) <= np.array([0.5, 1.0, 2.0]) / 2 + 1e-9).all()


def test_pad_then_crop_returns_the_volume():
    voxels = np.random.default_rng(5).integers(0, 1000, (5, 8, 7)).astype(np.int16)
    volume = volume_of(voxels, (2.0, 1.0, 0.5))
    back = crop_or_pad(crop_or_pad(volume, (9, 12, 11)), (5, 8, 7))
    np.testing.assert_array_equal(back.voxels, voxels)
    np.testing.assert_allclose(back.affine, volume.affine)


def test_crop_refuses_nonsense():
    volume = volume_of(np.zeros((3, 3, 3)))
    with pytest.raises(ValueError, match="positive integers"):
        crop_or_pad(volume, (3, 0, 3))
    with pytest.raises(ValueError, match="finite"):
        crop_or_pad(volume, (3, 3, 3), center=(float("nan"), 0, 0))


def nearest_reference(labels, labels_affine, like):
    result = np.zeros(like.voxels.shape, labels.dtype)
    to_label = np.linalg.inv(labels_affine) @ like.affine
    for index in np.ndindex(like.voxels.shape):
        source = np.floor(world(to_label, index) + 0.5 + 1e-6).astype(int)
        if (source >= 0).all() and (source < labels.shape).all():
            result[index] = labels[tuple(source)]
    return result


@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS[::5])
@pytest.mark.parametrize("angle", [0, 17])
def test_labels_from_any_grid(order, flips, angle):
    """A crop, in another orientation and spacing, straight or oblique, equals the brute-force look-up."""
    labels = np.random.default_rng(6).integers(0, 118, (6, 9, 8)).astype(np.uint8)
    affine = volume_of(labels, (2.5, 1.1, 0.9), (1.3, 2.2, 0.7)).affine
    turn = np.eye(4)
    radians = np.deg2rad(angle)
    turn[:2, :2] = [[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]]
    labels, affine = turned(labels, turn @ affine, order, flips)
    like = volume_of(np.zeros((9, 11, 12)), (1.7, 1.3, 1.0))
    found = resample_labels(labels, affine, like)
    np.testing.assert_array_equal(found, nearest_reference(labels, affine, like))
    assert found.dtype == np.uint8
    assert found.any()


def test_labels_out_of_reach_are_background_and_bool_becomes_uint8():
    like = volume_of(np.zeros((4, 4, 4)))
    far = volume_of(np.zeros((3, 3, 3)), origin=(500, 0, 0)).affine
    found = resample_labels(np.ones((3, 3, 3), bool), far, like)
    assert found.dtype == np.uint8
    assert not found.any()


def test_fractions_are_exact_counts():
    mask = np.random.default_rng(7).random((8, 6, 12)) < 0.4
    found = fraction_in_cells(mask, (4, 3, 2))
    assert found.shape == (2, 2, 6)
    for index in np.ndindex(found.shape):
        cell = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, (4, 3, 2), strict=True))
        assert found[index] == int(np.floor(255 * mask[cell].mean() + 0.5))
    np.testing.assert_array_equal(fraction_in_cells(np.ones((4, 4, 4), np.uint8) * 7, (2, 2, 2)), 255)
    with pytest.raises(ValueError, match="must divide"):
        fraction_in_cells(mask, (3, 3, 2))


def test_mask_center_in_world():
    mask = np.random.default_rng(8).random((7, 5, 6)) < 0.3
    affine = volume_of(mask, (3.0, 1.5, 0.7), (-5, 8, 2)).affine
    np.testing.assert_allclose(
        mask_center(mask, affine), world(affine, ndimage.center_of_mass(mask)), atol=1e-9
    )
    with pytest.raises(ValueError, match="empty"):
        mask_center(np.zeros((2, 2, 2), bool), np.eye(4))
