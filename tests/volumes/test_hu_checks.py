"""Is it HU? Rescale applied twice, forgotten, or to the wrong files; padding; emptiness; modality."""

import re

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


@pytest.mark.parametrize("offset", [1024, 1000, 8192, 500])
def test_rescale_forgotten(offset):
    """The number told is the file's own: 1000 and 1024 are 24 HU apart."""
    error = rejected(check_hu, volume_of(chest().astype(int) + offset))
    assert error.code == "missing-rescale"
    found = int(re.search(r"about (\d+) too high", str(error))[1])
    assert abs(found - offset) <= 4
    advised = re.findall(r"rescale_intercept (-\d+)", str(error))
    assert advised == ([f"-{offset}"] if offset != 500 else [])


def test_two_intercepts_that_both_fit_are_both_named():
    """Air cut off at the lowest value says nothing; fat and muscle alone do not tell 1000 from 1024."""
    voxels = chest().astype(int)
    error = rejected(check_hu, volume_of(np.where(voxels < -900, -1024, voxels + 12) + 1000))
    assert "-1000 and -1024 both fit" in str(error)


def test_a_table_that_is_24_off_is_noted(tmp_path):
    path = write_nifti(tmp_path / "a.nii", (chest().astype(int) + 1000).astype(np.int16))
    assert read_volume(path, rescale=(1, -1024)).notes == ("hu-offset:-24",)
    assert read_volume(path, rescale=(1, -1000)).notes == ()


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


@pytest.mark.parametrize(("low", "high"), [(-160, 240), (-1000, 1000), (-1350, 150)])
@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_windowed_to_bytes(tmp_path, low, high, kind):
    values = (chest().clip(low, high) - low) / (high - low) * 255 + np.iinfo(kind).min
    error = rejected(read_volume, write_nifti(tmp_path / "a.nii", np.rint(values).astype(kind)))
    assert error.code == "not-hounsfield"
    assert "8 bits" in str(error)


@pytest.mark.parametrize(
    ("low", "high", "where"),
    [
        (-125, 275, "below"),
        (-160, 240, "below"),
        (-500, 500, "below"),
        (-500, 1300, "below"),
        (-1350, 150, "above"),
        (-1000, 200, "above"),
    ],
)
def test_windowed(low, high, where):
    error = rejected(check_hu, volume_of(chest().clip(low, high)))
    assert error.code == "not-hounsfield"
    cut = low if where == "below" else high
    assert f"hold exactly {cut}, and nothing lies {where}" in str(error)


@pytest.mark.parametrize(
    ("low", "high", "note"),
    [(-1000, 400, "clipped:-1000,400"), (-1000, 3000, "clipped:-1000"), (-1024, 350, "clipped:350")],
)
def test_clipped_beyond_air_and_soft_tissue_is_a_note(low, high, note):
    noisy = chest().astype(int) + np.random.default_rng(1).normal(0, 12, chest().shape).round().astype(int)
    noisy[noisy < -1000] = -1024
    assert check_hu(volume_of(noisy.clip(low, high))) == (note,)


def test_eight_bits_stretched_to_hu_are_a_note():
    steps = np.rint((chest().clip(-1000, 1000) + 1000) / 2000 * 255)
    notes = check_hu(volume_of(np.rint(steps * 2000 / 255 - 1000)))
    assert "coarse-steps:8HU" in notes


@pytest.mark.parametrize("factor", [2, 0.5, 4, 0.25, 10])
def test_slope_applied_twice(factor):
    error = rejected(check_hu, volume_of(np.rint(chest() * float(factor)).clip(-32768, 32767)))
    assert error.code == "not-hounsfield"
    assert f"HU x {factor:g}" in str(error)
    assert f"rescale_slope (here {1 / factor:g})" in str(error)


@pytest.mark.parametrize("top", [0, 3071])
def test_inverted(top):
    assert "inverted" in str(rejected(check_hu, volume_of(top - chest().astype(int))))


@pytest.mark.parametrize("factor", [10, 100, 255, 1000])
def test_z_scores(factor):
    hu = chest().astype(float)
    values = np.rint((hu - hu.mean()) / hu.std() * factor)
    assert rejected(check_hu, volume_of(values)).code == "not-hounsfield"


def test_gray_values_of_equal_frequency():
    hu = chest()
    ranks = np.searchsorted(np.sort(hu.ravel()), hu) / hu.size
    for low, high in ((0, 255), (0, 4095), (-1000, 1000)):
        values = np.rint(low + ranks * (high - low))
        assert rejected(check_hu, volume_of(values)).code == "not-hounsfield"


@pytest.mark.parametrize("kind", [np.uint16, np.uint32])
def test_negative_values_in_an_unsigned_type(tmp_path, kind):
    """What lies just below 65536 in a CT is air that was written without its sign."""
    volume = read_volume(write_nifti(tmp_path / "a.nii", chest().astype(kind)))
    np.testing.assert_array_equal(volume.voxels, chest())
    assert volume.notes == ("wrapped-integers",)


def test_padding_that_ran_over(tmp_path):
    stored = (chest().astype(int) + 1024).astype(np.int16)
    stored[:, :3] = -32768
    volume = read_volume(write_nifti(tmp_path / "a.nii", stored - np.int16(1024)))
    np.testing.assert_array_equal(volume.voxels[:, 3:], chest()[:, 3:])
    assert (volume.voxels[:, :3] == -1024).all()
    assert volume.notes == ("wrapped-integers", "padding:-32768:7.5%")


@pytest.mark.parametrize(("modality", "fill"), [("CT", -1024), ("MR", None)])
def test_nan_outside_the_field_of_view_is_no_data(tmp_path, modality, fill):
    values = chest().astype(np.float32)
    values[:, :4], values[0] = np.nan, np.nan
    volume = read_volume(write_nifti(tmp_path / "a.nii", values), modality=modality)
    lowest = int(np.nanmin(values)) if fill is None else fill
    np.testing.assert_array_equal(volume.voxels, np.where(np.isnan(values), lowest, values))
    assert f"no-data:{100 * np.isnan(values).mean():.1f}%" in volume.notes
    values[8, 20, 20] = np.nan  # inside: damage
    error = rejected(read_volume, write_nifti(tmp_path / "b.nii", values), modality=modality)
    assert error.code == "not-finite"
    assert ("-1024" in str(error)) == (modality == "CT")


def test_drawings_without_noise_pass():
    """A water cylinder, or a chest of five values: a tissue's value is no clipping."""
    assert check_hu(volume_of(np.where(chest() > -500, 0, -1000))) is not None
    levels = np.array([-1000, -830, -100, 45, 400])
    drawn = levels[np.abs(chest()[..., None].astype(int) - levels).argmin(-1)]
    assert check_hu(volume_of(drawn)) == ()


@pytest.mark.parametrize("noise", [0, 30, 60, 100])
def test_noise_is_no_reason_to_refuse(noise):
    noisy = chest() + np.random.default_rng(2).normal(0, noise, chest().shape)
    check_hu(volume_of(np.rint(noisy).clip(-1024, 3071)))


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


@pytest.mark.parametrize(("fat", "marrow", "muscle"), [(-97, -45, 57), (-90, -25, 67)])
def test_marrow_between_fat_and_water_is_no_reason_to_refuse(fat, marrow, muscle):
    """Where fat and muscle have their values, a third mode is a tissue."""
    draw = np.random.default_rng(0)
    tissues = ((-1000, 12, 20), (-850, 40, 20), (fat, 9, 20), (marrow, 8, 12), (muscle, 9, 28))
    values = [draw.normal(mean, spread, 280 * share) for mean, spread, share in tissues]
    voxels = np.rint(np.concatenate(values)).astype(np.int16).reshape(16, 35, 50)
    assert check_hu(volume_of(voxels)) == ()
    # The same values at half their size are refused still.
    rejected(check_hu, volume_of(voxels // 2))
