"""Real scans, as they come out of scanners and other people's software."""

import nibabel as nib
import numpy as np
import pydicom
import pytest

from medclip_jax.volumes import (
    VolumeRejected,
    check_hu,
    crop_or_pad,
    fraction_in_cells,
    mask_center,
    read_labels,
    read_volume,
    resample,
    resample_labels,
)


def test_contrast_chest(real_data):
    path = real_data / "chest_contrast.nii.gz"
    volume = read_volume(path)
    expected = nib.as_closest_canonical(nib.load(path))
    np.testing.assert_array_equal(volume.voxels, np.asarray(expected.dataobj).transpose(2, 1, 0))
    np.testing.assert_allclose(volume.affine, expected.affine[:, [2, 1, 0, 3]], atol=1e-4)
    assert volume.provenance["orientation"] == "LPS"
    assert volume.notes == ()


def test_masks_fall_on_the_scan(real_data):
    """The pulmonary artery's mask lies on a crop of the grid; contrast makes it bright where it is right."""
    volume = read_volume(real_data / "chest_contrast.nii.gz")
    for spacing in (volume.spacing, (3.0, 2.0, 2.0)):
        coarse = resample(volume, spacing)
        labels, affine = read_labels(real_data / "chest_contrast_masks" / "pulmonary_artery.nii.gz")
        assert labels.shape != volume.voxels.shape
        mask = resample_labels(labels, affine, coarse)
        assert mask.shape == coarse.voxels.shape
        inside = np.median(coarse.voxels[mask > 0])
        assert inside > 200
        assert np.median(coarse.voxels[np.roll(mask, 20, axis=0) > 0]) < inside - 100
        # Nearest look-up keeps the organ's volume and center.
        milliliters = [
            (m > 0).sum() * abs(np.linalg.det(a[:3, :3]))
            for m, a in ((labels, affine), (mask, coarse.affine))
        ]
        assert milliliters[1] == pytest.approx(milliliters[0], rel=0.02)
        np.testing.assert_allclose(mask_center(mask, coarse.affine), mask_center(labels, affine), atol=0.3)


def test_heart_crop(real_data):
    volume = read_volume(real_data / "chest_contrast.nii.gz")
    labels, affine = read_labels(real_data / "chest_contrast_masks" / "heart.nii.gz")
    center = mask_center(labels, affine)
    crop = crop_or_pad(resample(volume, (2.0, 2.0, 2.0)), (64, 64, 64), center=center)
    middle = crop.affine[:3, :3] @ np.full(3, 31.5) + crop.affine[:3, 3]
    assert np.abs(middle - center).max() <= 1.0
    cells = fraction_in_cells(resample_labels(labels, affine, crop), (8, 8, 8))
    assert cells.shape == (8, 8, 8)
    assert cells[4, 4, 4] > 200


def test_abdomen_in_int32(real_data):
    path = real_data / "abdomen.nii.gz"
    volume = read_volume(path)
    assert volume.provenance["stored_type"] == "int32"
    np.testing.assert_array_equal(volume.voxels, np.asarray(nib.load(path).dataobj).transpose(2, 1, 0))
    assert volume.notes == ()


def test_jpeg2000_series(real_data):
    """The gap of 2 mm counts, not the thickness of 3 mm; pixels as SimpleITK decodes them."""
    volume = read_volume(real_data / "dicom_jpeg2000")
    assert volume.spacing == pytest.approx((2.0, 0.9765625, 0.9765625))
    assert volume.provenance["slice_thickness"] == 3.0
    assert volume.voxels.shape == (20, 512, 512)
    headers = [pydicom.dcmread(f, stop_before_pixels=True) for f in (real_data / "dicom_jpeg2000").iterdir()]
    lowest = min(float(h.ImagePositionPatient[2]) for h in headers)
    assert volume.affine[2, 3] == pytest.approx(lowest)
    assert volume.voxels.min() == -1024
    assert set(volume.notes) <= {"little-lung"}


def test_nrrd_with_padding(real_data):
    volume = read_volume(real_data / "chest_small.nrrd")
    assert volume.notes == ("padding:-3024:21.6%",)
    assert volume.voxels.min() >= -1400
    assert volume.spacing == pytest.approx((10.0, 3.047, 3.047), abs=1e-3)


def test_mr_is_noticed(real_data):
    with pytest.raises(VolumeRejected, match="MR") as caught:
        read_volume(real_data / "mr_small.nii.gz")
    assert caught.value.code == "not-hounsfield"
    volume = read_volume(real_data / "mr_small.nii.gz", modality="MR")
    assert volume.voxels.shape == (20, 91, 117)


def test_all_real_ct_passes_the_check_and_none_twice(real_data):
    names = ("chest_contrast.nii.gz", "abdomen.nii.gz", "upper_abdomen.nii.gz", "chest_small.nrrd")
    for name in (*names, "chest_contrast_masks/ct_cropped.nii.gz"):
        volume = read_volume(real_data / name)
        check_hu(volume)
        for intercept in (-1024, -8192):
            again = volume.voxels.astype(np.int16) + np.int16(intercept)
            with pytest.raises(VolumeRejected) as caught:
                check_hu(type(volume)(again, volume.spacing, volume.affine))
            assert caught.value.code == "double-rescale", name
