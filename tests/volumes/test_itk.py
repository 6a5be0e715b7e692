"""NRRD and MetaImage files."""

import numpy as np
import pytest
import SimpleITK as sitk
from made_scans import RAS, SPACING, chest

from medclip_jax.volumes import VolumeRejected, read_volume


def write(path, voxels, **changes):
    """Write canonical voxels with ITK's axes: x to the left, y to posterior, z up."""
    image = sitk.GetImageFromArray(voxels[:, ::-1, ::-1])
    image.SetSpacing(SPACING[::-1])
    image.SetOrigin((-34.5, -38.0, 100.0))
    for name, value in changes.items():
        getattr(image, f"Set{name}")(value)
    sitk.WriteImage(image, str(path))
    return path


def rejected(path, **arguments) -> str:
    with pytest.raises(VolumeRejected) as caught:
        read_volume(path, **arguments)
    return caught.value.code


@pytest.mark.parametrize("ending", ["nrrd", "mha", "mhd"])
def test_values_and_world_positions(tmp_path, ending):
    voxels = chest()
    path = write(tmp_path / f"a.{ending}", voxels)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.voxels, voxels)
    expected = RAS.copy()
    # The first stored voxel is the last in canonical order along A and R.
    expected[:3, 3] = (34.5 - 43 * 1.5, 38.0 - 39 * 2.0, 100)
    np.testing.assert_allclose(volume.affine, expected)
    assert volume.provenance["orientation"] == "LPS"
    assert volume.notes == ()


def test_flipped_direction(tmp_path):
    voxels = chest()
    path = write(tmp_path / "a.nrrd", voxels[:, ::-1, ::-1], Direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.voxels, voxels)
    assert volume.provenance["orientation"] == "RAS"


def test_no_geometry(tmp_path):
    path = write(tmp_path / "a.nrrd", chest(), Spacing=(1, 1, 1), Origin=(0, 0, 0))
    assert rejected(path) == "no-orientation"
    assert read_volume(path, spacing=SPACING).spacing == SPACING


def test_float_with_padding(tmp_path):
    voxels = chest().astype(np.float32)
    voxels[:, :2] = -3024
    volume = read_volume(write(tmp_path / "a.mha", voxels))
    assert (volume.voxels[:, :2] == -1024).all()
    assert volume.notes == ("padding:-3024:5.0%",)


def test_flat_color_and_several_frames(tmp_path):
    voxels = chest()
    sitk.WriteImage(sitk.GetImageFromArray(voxels[0]), str(tmp_path / "a.nrrd"))
    assert rejected(tmp_path / "a.nrrd") == "not-3d"
    colors = sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True)
    sitk.WriteImage(colors, str(tmp_path / "b.mha"))
    assert rejected(tmp_path / "b.mha") == "color"
    for frames, code in ((2, "several-frames"), (1, None)):
        image = sitk.JoinSeries([sitk.ReadImage(str(write(tmp_path / "c.mha", voxels)))] * frames)
        sitk.WriteImage(image, str(tmp_path / "d.mha"))
        if code:
            assert rejected(tmp_path / "d.mha") == code
        else:
            assert read_volume(tmp_path / "d.mha").notes == ("one-frame-of-4d",)


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.95])
def test_truncated(tmp_path, ending, compressed, keep):
    path = write(tmp_path / f"a.{ending}", chest())
    if compressed:
        sitk.WriteImage(sitk.ReadImage(str(path)), str(path), useCompression=True)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    assert rejected(path) in {"unreadable", "truncated-file"}


def test_data_file_is_missing(tmp_path):
    path = write(tmp_path / "a.mhd", chest())
    (tmp_path / "a.raw").unlink()
    assert rejected(path) == "unreadable"
