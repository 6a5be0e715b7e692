"""Preparation in torch puts scans on the grid of `medclip prepare`, voxel for voxel."""

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from medclip_jax.export.torch.loading import MedclipConfig, check_config
from medclip_jax.export.torch.masked import MaskedModel
from medclip_jax.export.torch.prepare import crop_and_resample, to_canonical, to_hu
from medclip_jax.export.torch.vit import VisionTransformer
from medclip_jax.inference.preparation import Preparation
from medclip_jax.shards.scan import crop_and_resample as expected_crop
from medclip_jax.volumes import Volume, VolumeRejected, read_volume
from medclip_jax.volumes.checks import to_int16
from medclip_jax.volumes.geometry import canonical
from tests.export.twins import small

ROUNDED = 1e-4
"""Share of random voxels that may differ by 1 HU: float32 sums near a half, added up in another order."""

TIES = 1e-3
"""The same of scans whose spacing is in a ratio of small numbers to the wanted one: many sums are halves."""


class Model(MaskedModel):
    vision_encoder = VisionTransformer


def model_for(shape, spacing, **entries) -> Model:
    data = {"shape": shape, "spacing": spacing, "pad_token": 0}
    entries = {"crop": "center", "modality": "CT", "text_length": 8, "prompts": {}} | entries
    config = small("mae", vision={"patch": shape, "depth": 0}).to_dict()
    return Model(MedclipConfig(objective=config, data=data, **entries))


def assert_same_voxels(model: Model, voxels, affine, expected: np.ndarray, center=None) -> None:
    """At most 1 HU apart, in at most `TIES` of the voxels, and only where the sum is about a half."""
    found = model.prepare(voxels, affine, center=center)
    assert (found.dtype, tuple(found.shape)) == (torch.int16, expected.shape)
    difference = np.abs(found.numpy().astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).sum() <= TIES * difference.size
    # The same sums to an eighth; as MR, which knows no padding.
    model.config.modality, modality = "MR", model.config.modality
    finer = model.prepare(8 * np.clip(voxels, -1024, 4000).astype(np.int16), affine, center=center)
    model.config.modality = modality
    fraction = (finer.numpy() / 8 % 1)[difference > 0]
    assert (np.abs(fraction - 0.5) <= 1 / 8).all()


def as_volume(voxels, affine, modality="CT") -> Volume:
    voxels, affine = canonical(voxels, affine)
    spacing = tuple(float(x) for x in np.linalg.norm(affine[:3, :3], axis=0))
    return Volume(np.ascontiguousarray(voxels), spacing, affine, {"modality": modality})


def test_any_orientation_spacing_shape_and_center():
    random = np.random.default_rng(0)
    different = voxels_seen = outside = 0
    for trial in range(80):
        shape = random.integers(3, 50, 3)
        spacing = random.uniform(0.4, 6, 3) if trial % 3 else random.choice([0.5, 1, 2, 0.75, 1.5, 3], 3)
        axes = np.eye(3)[:, random.permutation(3)] * random.choice([-1, 1], 3)
        tilt = Rotation.from_euler("xyz", random.uniform(-0.5, 0.5, 3) * (trial % 2)).as_matrix()
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = tilt @ axes * spacing, random.uniform(-300, 300, 3)
        scan = random.integers(-1024, 3000, shape).astype(np.int16)
        size = tuple(int(n) for n in random.integers(2, 40, 3))
        wanted = tuple(random.uniform(0.5, 5, 3)) if trial % 4 else tuple(random.choice([1.0, 2.0, 1.5], 3))
        inside = random.uniform(-0.2, 1.2, 3) * (shape - 1)
        center = None if trial % 5 == 0 else affine[:3, :3] @ inside + affine[:3, 3]
        moved, moved_affine = to_canonical(to_hu(scan, "CT"), torch.from_numpy(affine))
        volume = as_volume(scan, affine)
        np.testing.assert_array_equal(moved.numpy(), volume.voxels)
        np.testing.assert_allclose(moved_affine.numpy(), volume.affine[:3], atol=1e-9)
        try:
            expected = expected_crop(volume, size, wanted, center)[0].voxels
        except VolumeRejected:
            outside += 1
            with pytest.raises(ValueError, match="outside the scan"):
                crop_and_resample(moved, moved_affine, size, wanted, center, -1024)
            continue
        found = crop_and_resample(moved, moved_affine, size, wanted, center, -1024)
        difference = np.abs(found.numpy().astype(int) - expected)
        assert difference.max() <= 1
        different, voxels_seen = different + int((difference > 0).sum()), voxels_seen + difference.size
    assert different <= ROUNDED * voxels_seen
    assert outside < 20


def test_resized_scans_of_any_orientation_spacing_and_shape():
    random = np.random.default_rng(4)
    different = voxels_seen = 0
    for trial in range(40):
        shape = random.integers(3, 50, 3)
        axes = np.eye(3)[:, random.permutation(3)] * random.choice([-1, 1], 3)
        tilt = Rotation.from_euler("xyz", random.uniform(-0.5, 0.5, 3) * (trial % 2)).as_matrix()
        affine = np.eye(4)
        affine[:3, :3] = tilt @ axes * random.uniform(0.4, 6, 3)
        affine[:3, 3] = random.uniform(-300, 300, 3)
        scan = random.integers(-1024, 3000, shape).astype(np.int16)
        volume = as_volume(scan, affine)
        size = volume.voxels.shape if trial % 8 == 0 else tuple(int(n) for n in random.integers(2, 60, 3))
        moved, moved_affine = to_canonical(to_hu(scan, "CT"), torch.from_numpy(affine))
        found = crop_and_resample(moved, moved_affine, size, [None] * 3, None, -1024).numpy().astype(int)
        difference = np.abs(found - expected_crop(volume, size, (None,) * 3)[0].voxels)
        assert difference.max() <= 1
        different, voxels_seen = different + int((difference > 0).sum()), voxels_seen + difference.size
        if trial % 8 == 0:
            np.testing.assert_array_equal(found, volume.voxels)
    assert different <= ROUNDED * voxels_seen


def test_spacing_alone_and_its_center():
    model = model_for((5, 9, 7), (3.0, 2.5, 2.0))
    scan = np.random.default_rng(1).integers(-1000, 1000, (14, 19, 23)).astype(np.int16)
    affine = np.array([[0, 0, 1.1, 0], [0, 1.3, 0, 0], [2.0, 0, 0, 0], [0, 0, 0, 1]])
    for center in (None, (11.0, 15.0, 20.0)):
        found = model.prepare(scan, spacing=(2.0, 1.3, 1.1), center=center)
        torch.testing.assert_close(found, model.prepare(torch.from_numpy(scan), affine, center=center))
        at = None if center is None else np.asarray(center)
        expected = expected_crop(as_volume(scan, affine), (5, 9, 7), (3.0, 2.5, 2.0), at)[0].voxels
        assert np.abs(found.numpy() - expected).max() <= 1
        assert (found.numpy() != expected).sum() <= 1
    for wrong in ({}, {"affine": affine, "spacing": (1, 1, 1)}):
        with pytest.raises(ValueError, match="one of the two"):
            model.prepare(scan, **wrong)


def test_kinds_of_arrays():
    """Stored types, byte orders, views, fractions and padding of files, as readers hand them over."""
    model = model_for((4, 6, 8), (1.0, 1.0, 1.0))
    values = np.random.default_rng(2).integers(-1000, 1000, (4, 6, 8)).astype(np.int16)
    affine = np.eye(4)[[2, 1, 0, 3]]
    expected = torch.from_numpy(values)
    for kind in (np.int32, np.int64, np.float32, np.float64, ">i2", ">f4"):
        assert torch.equal(model.prepare(values.astype(kind), affine), expected)
    assert torch.equal(model.prepare(values[::-1], affine), expected.flip(0))
    assert torch.equal(model.prepare(values.astype(np.float64) + 0.4, affine), expected)
    padded = values.astype(np.float32)
    padded[0], padded[1, 0, 0] = -3024, -40000
    found = model.prepare(padded, affine)
    assert (found[0] == -1024).all()
    assert found[1, 0, 0] == -1024
    for wrong, message in ((np.nan, "into NaN"), (40000, "check the rescale")):
        padded[2, 3, 4] = wrong
        with pytest.raises(ValueError, match=message):
            model.prepare(padded, affine)
    with pytest.raises(ValueError, match="no voxel is below 0 HU"):
        model.prepare((values + 1024).astype(np.uint16), affine)
    with pytest.raises(ValueError, match="three axes, not 4"):
        model.prepare(values[None], affine)


def test_leaning_axes_are_refused():
    model = model_for((4, 6, 8), (1.0, 1.0, 1.0))
    affine = np.eye(4)
    affine[1, 2] = 0.2
    with pytest.raises(ValueError, match="not at right angles"):
        model.prepare(np.full((5, 6, 7), -500, np.int16), affine)
    affine[:3, 2] = 0
    with pytest.raises(ValueError, match="not at right angles"):
        model.prepare(np.full((5, 6, 7), -500, np.int16), affine)


def test_a_model_of_organ_crops_asks_for_the_center():
    model = model_for((4, 6, 8), (1.0, 1.0, 1.0), crop="heart")
    scan = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)
    with pytest.warns(UserWarning, match="crops around 'heart': give center"):
        model.prepare(scan, np.eye(4))


def made_chest() -> tuple[np.ndarray, np.ndarray]:
    """(array, affine): air and soft tissue on an oblique, anisotropic grid."""
    voxels = np.full((20, 24, 12), -1000.0)
    voxels[4:16, 5:20] = 40
    voxels += np.random.default_rng(0).normal(0, 10, voxels.shape)
    affine = np.eye(4)
    turned = Rotation.from_euler("xyz", [10, -8, 15], degrees=True).as_matrix()
    affine[:3, :3], affine[:3, 3] = turned @ np.diag([-4.0, -3.5, 5.0]), [31, 42, -90]
    return voxels.round().astype(np.int16), affine


def test_images_of_nibabel_and_simpleitk(tmp_path):
    import SimpleITK as sitk

    voxels, affine = made_chest()
    model = model_for((8, 16, 16), (6.0, 4.0, 4.0))
    expected = model.prepare(voxels, affine)
    image = nib.Nifti1Image(voxels, affine)
    nib.save(image, tmp_path / "chest.nii.gz")
    for given in (
        image,
        nib.Nifti1Image(voxels[..., None], affine),
        sitk.ReadImage(str(tmp_path / "chest.nii.gz")),
    ):
        assert (model.prepare(given) - expected).abs().max() <= 1
        torch.testing.assert_close(
            model.embed_volumes(given).mean, model.embed_volumes([(voxels, affine)]).mean, atol=1e-2, rtol=0
        )
    with pytest.raises(ValueError, match="has its own affine"):
        model.prepare(image, affine)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda hu: hu + 1024, "below 0 HU|about 1024 off"),
        (lambda hu: np.where(hu < -900, -900, hu) + 1024 - 300 * (hu == hu.min()), "about 1024 off|below 0"),
        (lambda hu: hu / 1000, "are no HU"),
        (lambda hu: hu * 0 - 1024, "are no HU"),
        (lambda hu: np.clip(hu, -160, 240) + 160, "below 0 HU"),
        (lambda hu: hu - 1024.0, "about -1024 off|are no HU"),
    ],
)
def test_values_that_are_no_hu_are_refused(change, message):
    voxels, affine = made_chest()
    with pytest.raises(ValueError, match=message):
        model_for((8, 16, 16), (6.0, 4.0, 4.0)).prepare(change(voxels.astype(np.float32)), affine)


def test_wrong_kinds_are_named():
    voxels, affine = made_chest()
    model = model_for((8, 16, 16), (6.0, 4.0, 4.0))
    for given, kind, message in [
        (None, TypeError, "no volumes"), ("scan.nii.gz", TypeError, "not str: read a file"),
        ({"a": voxels}, TypeError, "not dict"), ([], ValueError, "no volumes"),
        (voxels, ValueError, "`prepare` them, or give affines"), ([None], TypeError, "not NoneType"),
        ((voxels, affine[:3]), ValueError, "is \\(4, 4\\)"),
        ((voxels > 0, affine), TypeError, "real numbers"), ((voxels.tolist(), affine), TypeError, "not list"),
        (np.zeros((8, 16, 16), np.int16), ValueError, "no voxel is below 0"),
    ]:  # fmt: skip
        with pytest.raises(kind, match=message):
            model.embed_volumes(given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 0}, "vision.heads is 0"),
        ({"heads": 5}, "does not divide"),
        ({"width": -24}, "vision.width is -24"),
        ({"width": 10**12}, "vision.width is 1000000000000"),
        ({"patch": [0, 8, 8]}, "vision.patch is"),
    ],
)
def test_sizes_that_no_model_has(change, message):
    vision = small("mae").vision.to_dict() | change
    with pytest.raises(ValueError, match=message):
        check_config({"vision": vision}, {"shape": [8, 16, 16]})


def test_magnetic_resonance(real_data):
    path = real_data / "mr_small.nii.gz"
    model = model_for((20, 40, 36), (3.0, 2.0, 2.5), modality="MR")
    expected = expected_crop(read_volume(path, modality="MR"), (20, 40, 36), (3.0, 2.0, 2.5))[0].voxels
    image = nib.load(path)
    assert_same_voxels(model, np.asarray(image.dataobj), image.affine, expected)
    for scale in (5000, 0.01):  # fractions, or beyond int16: spread over 0 .. 4095
        values = image.get_fdata(dtype=np.float32) / scale
        np.testing.assert_array_equal(to_hu(values, "MR").numpy(), to_int16(values, "MR")[0])


@pytest.mark.parametrize("percentiles", [(1.0, 99.0), (0.0, 100.0), (12.3, 45.6)])
def test_magnetic_resonance_windowed_by_percentiles(percentiles):
    random = np.random.default_rng(3)
    voxels = (random.gamma(2.0, 300.0, (21, 18, 16)) - 90).astype(np.int16)
    model = model_for((12, 16, 20), (2.0, 1.5, 1.0), modality="MR", percentiles=list(percentiles))
    preparation = Preparation((12, 16, 20), (2.0, 1.5, 1.0), "center", "MR", percentiles)
    affine = np.diag([1.25, 1.5, 2.0, 1.0])
    found, expected = model.prepare(voxels, affine).numpy(), preparation((voxels, affine)).voxels
    assert 4095 >= expected.max() > 3500 > 150 > expected.min() >= 0
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert (found != expected).mean() <= TIES
    with pytest.raises(ValueError, match="nearly empty"):
        model.prepare(np.full((4, 4, 4), 7, np.int16), affine)


@pytest.mark.parametrize("name", ["abdomen.nii.gz", "upper_abdomen.nii.gz"])
def test_real_scans_resized(real_data, name):
    model = model_for((32, 64, 48), (None, None, None))
    volume, image = read_volume(real_data / name), nib.load(real_data / name)
    expected = expected_crop(volume, (32, 64, 48), (None, None, None))[0].voxels
    assert_same_voxels(model, image.get_fdata(dtype=np.float32), image.affine, expected)


@pytest.mark.parametrize("name", ["chest_contrast.nii.gz", "abdomen.nii.gz", "upper_abdomen.nii.gz"])
@pytest.mark.parametrize("spacing", [(4.0, 3.5, 3.0), (2.0, 1.7, 1.3)])
def test_real_nifti_scans(real_data, name, spacing):
    """nibabel's array and affine, against our own reader."""
    model = model_for((40, 56, 64), spacing)
    volume, image = read_volume(real_data / name), nib.load(real_data / name)
    aside = volume.affine[:3, :3] @ (np.array(volume.voxels.shape) * 0.6) + volume.affine[:3, 3]
    for center in (None, aside):
        expected = expected_crop(volume, (40, 56, 64), spacing, center)[0].voxels
        assert_same_voxels(model, image.get_fdata(dtype=np.float32), image.affine, expected, center)


def test_a_real_dicom_series(real_data):
    """SimpleITK's array and geometry as docs/how-to/export.md turns them to RAS, against our own reader."""
    sitk = pytest.importorskip("SimpleITK")
    lines = (Path(__file__).parents[2] / "docs/how-to/export.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(image = sitk.*?)```", lines, re.DOTALL).group(1)
    folder = real_data / "dicom_jpeg2000"
    scope = {"sitk": sitk, "np": np, "SERIES": str(folder)}
    exec(code.replace("volume = model.prepare(voxels, affine)", ""), scope)
    model = model_for((12, 60, 72), (6.0, 3.0, 3.5))
    expected = expected_crop(read_volume(folder), (12, 60, 72), (6.0, 3.0, 3.5))[0].voxels
    assert_same_voxels(model, scope["voxels"], scope["affine"], expected)
