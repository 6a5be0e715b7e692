"""Is it HU? Rescale applied twice, forgotten, or to the wrong files; padding; emptiness; modality."""

import numpy as np
import pytest
from made_scans import RAS, SPACING, chest, write_nifti

from medclip_jax.volumes import Volume, VolumeRejected, check_hu, read_volume, resolve_rescale


def volume_of(voxels) -> Volume:
    return Volume(np.asarray(voxels, np.int16), SPACING, RAS)


def rejected(call, *arguments, **options) -> VolumeRejected:
    with pytest.raises(VolumeRejected) as caught:
        call(*arguments, **options)
    assert len(str(caught.value)) > 30
    return caught.value


def mr(shape=(16, 40, 44)) -> np.ndarray:
    """Dark background, tissue of several hundred units: what an MR scan looks like."""
    values = chest(shape).astype(float)
    tissue = np.where(values > -200, 350 + values, np.where(values > -900, 60, 5))
    return np.rint(np.abs(tissue)).astype(np.int16)


def test_a_chest_passes():
    assert check_hu(volume_of(chest())) == ()


@pytest.mark.parametrize("intercept", [-1024, -1000, -8192])
def test_rescale_applied_twice(intercept):
    error = rejected(check_hu, volume_of(chest().astype(int) + intercept))
    assert error.code == "double-rescale"
    assert "twice" in str(error)


@pytest.mark.parametrize("offset", [1024, 1000, 8192])
def test_rescale_forgotten(offset):
    error = rejected(check_hu, volume_of(chest().astype(int) + offset))
    assert error.code == "missing-rescale"
    assert f"about {8192 if offset == 8192 else 1024} too high" in str(error)


@pytest.mark.parametrize("rescale", [(1.0, -8192.0), (1.0, -1024.0), (0.5, -1024.0), (2.0, -8192.0)])
def test_version_is_found_from_the_values(tmp_path, rescale):
    """v1: raw values, the table applies. v2: HU already, the table is left aside with a note."""
    hu = chest()
    slope, intercept = rescale
    raw = np.rint((hu - intercept) / slope).astype(np.int16)
    assert resolve_rescale(raw, rescale) == (rescale, ())
    assert resolve_rescale(hu, rescale) == ((1.0, 0.0), ("table-rescale-not-applied",))
    for name, stored in (("v1.nii.gz", raw), ("v2.nii.gz", hu)):
        found = read_volume(write_nifti(tmp_path / name, stored), rescale=rescale)
        assert np.abs(found.voxels.astype(int) - hu).max() <= slope / 2
        assert found.notes == (() if name.startswith("v1") else ("table-rescale-not-applied",))


def test_version_given():
    assert resolve_rescale(chest(), (1, -1024), version="v1") == ((1.0, -1024.0), ())
    assert resolve_rescale(chest(), (1, -1024), version="v2")[0] == (1.0, 0.0)
    with pytest.raises(ValueError, match="version"):
        resolve_rescale(chest(), (1, -1024), version="v3")
    with pytest.raises(ValueError, match="finite"):
        resolve_rescale(chest(), (float("nan"), -1024))


def test_neither_reading_is_hu():
    assert rejected(resolve_rescale, chest() + 5000, (1.0, -1024.0)).code == "ambiguous-rescale"


def test_a_table_does_not_let_mr_through(tmp_path):
    path = write_nifti(tmp_path / "a.nii", mr())
    assert rejected(read_volume, path, rescale=(1.0, -8192.0)).code in {"not-hounsfield", "missing-rescale"}


def test_crop_without_air_still_finds_the_version():
    """Inside the body there is no air to look at; soft tissue decides."""
    inside = chest()[:, 25:33, 12:32]
    inside = np.where(inside < -200, 45, inside).astype(np.int16)
    assert resolve_rescale(inside + 1024, (1.0, -1024.0))[0] == (1.0, -1024.0)
    assert resolve_rescale(inside, (1.0, -1024.0))[0] == (1.0, 0.0)


@pytest.mark.parametrize("value", [0, -1024, 77])
def test_constant(tmp_path, value):
    voxels = np.full((8, 9, 10), value, np.int16)
    assert rejected(check_hu, volume_of(voxels)).code == "constant"
    assert rejected(read_volume, write_nifti(tmp_path / "a.nii", voxels)).code == "constant"
    assert rejected(read_volume, write_nifti(tmp_path / "a.nii", voxels), modality="MR").code == "constant"


def test_mostly_empty_and_some_empty_slices():
    voxels = chest()
    voxels[:10] = 0
    assert rejected(check_hu, volume_of(voxels)).code == "mostly-empty"
    voxels = chest()
    voxels[:2] = -1024
    assert check_hu(volume_of(voxels)) == ("empty-slices:2",)


@pytest.mark.parametrize("padding", [-2000, -2048, -3024, -32768])
def test_padding_becomes_air_with_a_note(tmp_path, padding):
    voxels = chest()
    expected = voxels.copy()
    h, w = np.mgrid[-1:1:40j, -1:1:44j]
    outside = h**2 + w**2 > 1.1
    voxels[:, outside] = padding
    expected[:, outside] = -1024
    found = read_volume(write_nifti(tmp_path / "a.nii", voxels))
    np.testing.assert_array_equal(found.voxels, expected)
    assert found.notes == (f"padding:{padding}:{100 * outside.mean():.1f}%",)


def test_padding_in_float_below_int16(tmp_path):
    voxels = chest().astype(np.float32)
    voxels[:, :2] = -1e6
    found = read_volume(write_nifti(tmp_path / "a.nii", voxels))
    assert (found.voxels[:, :2] == -1024).all()


def test_values_beyond_int16(tmp_path):
    voxels = chest().astype(np.int32)
    voxels[4, 5, 6] = 40000
    assert rejected(read_volume, write_nifti(tmp_path / "a.nii", voxels)).code == "out-of-range"


def test_mr_is_noticed_and_can_be_wanted(tmp_path):
    path = write_nifti(tmp_path / "a.nii", mr())
    error = rejected(read_volume, path)
    assert error.code in {"not-hounsfield", "missing-rescale"}
    assert "MR" in str(error)
    found = read_volume(path, modality="MR")
    np.testing.assert_array_equal(found.voxels, mr())
    assert found.notes == ()


def test_mr_in_fractions_keeps_its_contrast(tmp_path):
    values = (mr() / mr().max()).astype(np.float32)
    found = read_volume(write_nifti(tmp_path / "a.nii", values), modality="MR")
    factor = found.provenance["intensity_scale"]
    np.testing.assert_allclose(found.voxels / factor, values, atol=0.5001 / factor)


@pytest.mark.parametrize("low", [0, -1])
def test_already_normalized(tmp_path, low):
    values = ((chest().clip(-1000, 1000) + 1000) / 2000).astype(np.float32) * (1 - low) + low
    assert rejected(read_volume, write_nifti(tmp_path / "a.nii", values)).code == "not-hounsfield"


def test_windowed_to_bytes(tmp_path):
    values = ((chest().clip(-160, 240) + 160) / 400 * 255).astype(np.uint8)
    assert rejected(read_volume, write_nifti(tmp_path / "a.nii", values)).code == "not-hounsfield"


def test_little_lung_is_only_a_note():
    """A head or an abdomen has no lung: the histogram can only warn."""
    voxels = chest()
    voxels[(voxels < -600) & (voxels > -930)] = 40
    assert check_hu(volume_of(voxels)) == ("little-lung",)


def test_zero_filled_region_is_noted():
    voxels = chest()
    voxels[:, :8] = 0
    assert "zero-filled-region" in check_hu(volume_of(voxels))


def test_little_air_and_air_too_low_are_noted():
    inside = chest((16, 60, 66))[:, 16:44, 14:52]
    inside = np.where(inside < -600, inside + 400, inside)  # partial volume: lung, but no pure air
    assert "little-air" in check_hu(volume_of(inside))
    low = chest()
    low[low < -900] -= 250
    assert "air-below-range" in check_hu(volume_of(low))


def test_body_without_air_needs_fat_to_pass():
    voxels = chest()
    voxels[voxels < -200] = 45
    assert "no-air" in check_hu(volume_of(voxels))
    voxels[voxels < -30] = 45
    assert rejected(check_hu, volume_of(voxels)).code == "not-hounsfield"
