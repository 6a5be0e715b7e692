"""A scan's full extent resized to a shape: world positions, edges, values, masks."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from medclip_jax.volumes import Volume, crop_and_resample, resample_labels
from medclip_jax.volumes.geometry import canonical

OWN = (None, None, None)


def made(voxels: np.ndarray, affine: np.ndarray) -> Volume:
    voxels, affine = canonical(voxels, affine)
    spacing = tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist())
    return Volume(np.ascontiguousarray(voxels), spacing, affine, {"modality": "CT"})


def placed(random: np.random.Generator, *, tilted: bool = True) -> np.ndarray:
    """An affine of any orientation, oblique or not."""
    axes = np.eye(3)[:, random.permutation(3)] * random.choice([-1, 1], 3)
    turn = Rotation.from_euler("xyz", random.uniform(-0.3, 0.3, 3) * tilted).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes * random.uniform(0.6, 4, 3)
    affine[:3, 3] = random.uniform(-200, 200, 3)
    return affine


def world(volume: Volume) -> np.ndarray:
    """(D, H, W, 3) RAS mm of every voxel."""
    index = np.stack(np.meshgrid(*map(np.arange, volume.voxels.shape), indexing="ij"), -1)
    return index @ volume.affine[:3, :3].T + volume.affine[:3, 3]


def corners(volume: Volume) -> np.ndarray:
    """World of the outer corners of the first and of the last voxel."""
    size = np.array(volume.voxels.shape)
    ends = np.array([[-0.5, -0.5, -0.5], size - 0.5])
    return ends @ volume.affine[:3, :3].T + volume.affine[:3, 3]


@pytest.mark.parametrize("seed", range(6))
def test_edges_and_a_ramp_stay_where_they_are_in_the_world(seed):
    random = np.random.default_rng(seed)
    affine = placed(random)
    shape = tuple(random.integers(9, 40, 3))
    blank = made(np.zeros(shape, np.int16), affine)
    slope = random.uniform(-3, 3, 3)
    ramp = np.rint(world(blank) @ slope).astype(np.int16)
    volume = Volume(ramp, blank.spacing, blank.affine, blank.provenance)
    wanted = tuple(int(n) for n in random.integers(6, 48, 3))  # one axis up, another down
    resized, notes = crop_and_resample(volume, wanted, OWN)
    assert (resized.voxels.shape, notes) == (wanted, [])
    np.testing.assert_allclose(corners(resized), corners(volume), atol=1e-6)
    extents = [np.array(v.voxels.shape) * v.spacing for v in (volume, resized)]
    np.testing.assert_allclose(*extents, rtol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(resized.affine[:3, :3], axis=0), resized.spacing, rtol=1e-9)
    # Near the border the edge voxel repeats, by up to one old or new voxel.
    inside = tuple(slice(m, n - m) for n, m in zip(wanted, edge(volume, resized), strict=True))
    expected = (world(resized) @ slope)[inside]
    assert expected.size
    np.testing.assert_allclose(resized.voxels[inside], expected, atol=1.01)


def edge(volume: Volume, resized: Volume) -> np.ndarray:
    """New voxels at each end that look beyond the middle of the last old one."""
    ratio = np.array(resized.spacing) / np.array(volume.spacing)
    return np.ceil((0.5 + np.sqrt(np.maximum(ratio**2 - 1, 0)) / 2) / ratio + 0.5).astype(int)


@pytest.mark.parametrize("shape", [(16, 40, 40), (48, 24, 60), (40, 36, 44)])
def test_a_blob_keeps_its_place_and_its_total(shape):
    random = np.random.default_rng(1)
    affine = placed(random)
    blank = made(np.zeros((40, 36, 44), np.int16), affine)
    middle = blank.affine[:3, :3] @ (19.0, 18.5, 20.0) + blank.affine[:3, 3]
    sigma = 0.12 * (np.array(blank.voxels.shape) * blank.spacing).min()
    squared = ((world(blank) - middle) ** 2).sum(-1)
    blob = np.rint(20000 * np.exp(-squared / (2 * sigma**2))).astype(np.int16)
    volume = Volume(blob, blank.spacing, blank.affine, blank.provenance)
    resized, _ = crop_and_resample(volume, shape, OWN)
    mass, center = [], []
    for each in (volume, resized):
        weight = each.voxels.astype(float)
        mass.append(weight.sum() * np.prod(each.spacing))
        center.append((world(each) * weight[..., None]).sum((0, 1, 2)) / weight.sum())
    # The averages of neighboring voxels do not partition the old ones exactly.
    assert mass[1] == pytest.approx(mass[0], rel=1.5e-2)
    np.testing.assert_allclose(center[1], center[0], atol=0.02 * max(resized.spacing))


def test_finer_is_linear_interpolation_as_scipy_has_it():
    random = np.random.default_rng(2)
    voxels = random.integers(-1000, 1000, (7, 12, 9)).astype(np.int16)
    volume = Volume(voxels, (3.0, 1.0, 2.0), np.diag([3.0, 1.0, 2.0, 1.0])[[2, 1, 0, 3]])
    resized, _ = crop_and_resample(volume, (15, 12, 31), OWN)
    zoom = np.array((15, 12, 31)) / voxels.shape
    expected = ndimage.zoom(voxels.astype(float), zoom, order=1, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(resized.voxels, expected, atol=0.51)


def test_coarser_is_the_mean_over_a_box():
    """Against the average of densely sampled linear interpolation, axis by axis."""
    voxels = np.random.default_rng(3).integers(-1000, 1000, (30, 14, 11)).astype(np.int16)
    volume = Volume(voxels, (1.0, 2.0, 1.5), np.diag([1.5, 2.0, 1.0, 1.0])[[2, 1, 0, 3]])
    shape = (8, 9, 11)
    expected = voxels.astype(float)
    for axis, (old, new) in enumerate(zip(voxels.shape, shape, strict=True)):
        scale = old / new
        width = np.sqrt(scale**2 - 1)
        middles = (np.arange(new) + 0.5) * scale - 0.5  # edges align
        within = (np.arange(4000) + 0.5) / 4000 - 0.5
        positions = middles[:, None] + within * width
        expected = np.apply_along_axis(
            lambda line, at=positions: np.interp(at, np.arange(len(line)), line).mean(1), axis, expected
        )
    resized, _ = crop_and_resample(volume, shape, OWN)
    np.testing.assert_allclose(resized.voxels, expected, atol=0.6)


def test_the_same_shape_changes_nothing():
    random = np.random.default_rng(4)
    volume = made(random.integers(-1024, 3000, (21, 34, 17)).astype(np.int16), placed(random))
    same, _ = crop_and_resample(volume, volume.voxels.shape, OWN)
    np.testing.assert_array_equal(same.voxels, volume.voxels)
    np.testing.assert_allclose(same.affine, volume.affine, atol=1e-9)
    assert same.spacing == volume.spacing


def test_one_axis_resized_another_cropped_and_another_kept():
    random = np.random.default_rng(5)
    voxels = random.integers(-1000, 1000, (10, 20, 24)).astype(np.int16)
    affine = np.eye(4)[[2, 1, 0, 3]]
    found, _ = crop_and_resample(Volume(voxels, (1.0, 1.0, 1.0), affine), (None, 20, 6), (None, None, 1.0))
    np.testing.assert_array_equal(found.voxels, voxels[:, :, 9:15])
    # A center counts where something is cut.
    center = affine[:3, :3] @ np.array((0.0, 0.0, 4.5))
    found, _ = crop_and_resample(
        Volume(voxels, (1.0, 1.0, 1.0), affine), (None, 20, 6), (None, None, 1.0), center
    )
    np.testing.assert_array_equal(found.voxels, voxels[:, :, 2:8])


@pytest.mark.parametrize("shape", [(24, 40, 32), (60, 24, 70)])
def test_masks_follow(shape):
    """A ball on another grid lies where the resized scan has it, and keeps its volume in mm³."""
    random = np.random.default_rng(6)
    blank = made(np.zeros((36, 44, 52), np.int16), placed(random))
    middle = blank.affine[:3, :3] @ ((np.array(blank.voxels.shape) - 1) / 2) + blank.affine[:3, 3]
    radius = 0.35 * (np.array(blank.voxels.shape) * blank.spacing).min()
    ball = (((world(blank) - middle) ** 2).sum(-1) < radius**2).astype(np.int16)
    volume = Volume(1000 * ball, blank.spacing, blank.affine, blank.provenance)
    resized, _ = crop_and_resample(volume, shape, OWN)
    mask = resample_labels(ball.transpose(2, 0, 1), blank.affine[:, [2, 0, 1, 3]], resized)
    volumes = [mask.sum() * np.prod(resized.spacing), ball.sum() * np.prod(blank.spacing)]
    assert volumes[0] == pytest.approx(volumes[1], rel=0.04)
    assert ((resized.voxels > 500) != mask).mean() < 0.01
