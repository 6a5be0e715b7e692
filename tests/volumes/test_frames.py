"""Series of frames from files: hung, windowed, resampled, and refused where they cannot be right."""

import nibabel
import numpy as np
import pytest

from medclip_jax.volumes import VolumeRejected
from medclip_jax.volumes.frames import fit_frames, read_frames
from medclip_jax.volumes.modality import WINDOW_TOP
from tests.made_frames import SHORT_AXIS, affine_of, beating, write_nifti

SPACING = (8.0, 1.5, 1.25)
PLANES = {
    "axial": np.eye(3),
    "coronal": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
    "sagittal": np.array([[0.0, 1, 0], [0, 0, -1], [-1, 0, 0]]),
    "oblique": SHORT_AXIS,
}
"""Right, down and through the plane on screen, LPS."""


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("turned", [False, True])
def test_pictures_hang_as_they_should_however_they_are_stored(tmp_path, plane, turned):
    pictures = beating()[:, :, :30]
    axes = PLANES[plane]
    stored = pictures.transpose(3, 2, 0, 1)
    affine = affine_of(axes, SPACING)
    # Stored upside down, from the last slice, and with rows and columns exchanged.
    for axis in (1, 2) if turned else ():
        stored = np.flip(stored, axis)
        affine[:3, 3] += affine[:3, axis] * (stored.shape[axis] - 1)
        affine[:3, axis] *= -1
    if turned:
        stored, affine = stored.transpose(1, 0, 2, 3), affine[:, [1, 0, 2, 3]]
    nibabel.save(nibabel.Nifti1Image(stored, affine), tmp_path / "cine.nii.gz")
    frames = read_frames(tmp_path / "cine.nii.gz")
    np.testing.assert_array_equal(frames.voxels, pictures)
    np.testing.assert_allclose(frames.spacing, SPACING, rtol=1e-4)
    assert frames.notes == ()
    assert frames.provenance["plane"] == plane
    assert (frames.provenance["slices"], frames.provenance["phases"]) == (5, 8)


def test_a_stack_and_a_single_slice_have_one_phase(tmp_path):
    pictures = beating(phases=1)
    stack = read_frames(write_nifti(tmp_path / "lge.nii", pictures[:, 0]))
    np.testing.assert_array_equal(stack.voxels, pictures)
    image = nibabel.Nifti1Image(pictures[0, 0].T, None)
    image.header.set_sform(np.diag([-1.5, -1.5, 0, 1]), code=1)  # the next slice would lie nowhere
    nibabel.save(image, tmp_path / "one.nii")
    single = read_frames(tmp_path / "one.nii")
    np.testing.assert_array_equal(single.voxels, pictures[:1])
    assert single.spacing == (1.0, 1.5, 1.5)


def test_a_pair_of_files(tmp_path):
    pictures = beating()
    order = pictures.transpose(3, 2, 0, 1)
    nibabel.save(nibabel.Nifti1Pair(order, affine_of(SHORT_AXIS, SPACING)), tmp_path / "cine.img")
    for name in ("cine.hdr", "cine.img"):
        np.testing.assert_array_equal(read_frames(tmp_path / name).voxels, pictures)


def test_the_window_is_of_the_complete_series(tmp_path):
    path = write_nifti(tmp_path / "cine.nii", beating())
    frames = read_frames(path, percentiles=(1, 99))
    assert (frames.voxels.min(), frames.voxels.max()) == (0, WINDOW_TOP)
    low, high = frames.provenance["window"]
    assert 40 < low < 80 < 450 < high
    middle = frames.middle()
    assert middle.voxels.shape == (1, 8, 40, 40)
    np.testing.assert_array_equal(middle.voxels[0], frames.voxels[2])


def test_pictures_are_resampled_in_their_plane_alone(tmp_path):
    frames = read_frames(write_nifti(tmp_path / "cine.nii", beating()))
    fitted, notes = fit_frames(frames, (24, 20), (3.0, 3.0))
    assert (fitted.voxels.shape, notes) == ((5, 8, 24, 20), [])
    assert fitted.spacing == pytest.approx((8.0, 3.0, 3.0))
    # 60 mm of rows at 3 mm: 20 of the 24 rows show something, two above and below are filled.
    assert (fitted.voxels[:, :, [0, 1, 22, 23]] == frames.voxels.min()).all()
    pool = [(fitted.voxels[2, phase] > 400).sum() for phase in range(8)]
    assert pool[0] > 1.5 * pool[4]
    alone, _ = fit_frames(frames.middle(), (24, 20), (3.0, 3.0))
    np.testing.assert_array_equal(alone.voxels[0, :, 2:22], fitted.voxels[2, :, 2:22])
    whole, _ = fit_frames(frames, (20, 20), (None, None))
    assert whole.voxels.shape == (5, 8, 20, 20)
    assert whole.spacing == pytest.approx((8.0, 3.0, 3.0))


def rejected(path, **arguments) -> VolumeRejected:
    with pytest.raises(VolumeRejected) as caught:
        read_frames(path, **arguments)
    return caught.value


def test_a_still_picture_is_no_cine(tmp_path):
    still = beating()
    still[:] = still[:, :1]
    assert rejected(write_nifti(tmp_path / "still.nii", still)).code == "still-image"
    still[2, 3, 0, 0] += 1
    assert read_frames(write_nifti(tmp_path / "some.nii", still)).notes == ("still-slices:4",)


def test_files_that_cannot_be_a_series(tmp_path):
    pictures = beating()
    path = write_nifti(tmp_path / "cine.nii", pictures)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 5000])
    assert rejected(path).code == "truncated-file"
    five = np.stack([pictures.transpose(3, 2, 0, 1)] * 2, -1)
    nibabel.save(nibabel.Nifti1Image(five, affine_of(SHORT_AXIS, SPACING)), tmp_path / "five.nii")
    error = rejected(tmp_path / "five.nii")
    assert error.code == "several-series-in-one"
    assert "write each of the 2" in str(error)
    nibabel.save(nibabel.Nifti1Image(pictures[0].T, np.eye(4)), tmp_path / "nowhere.nii")
    assert rejected(tmp_path / "nowhere.nii").code == "no-orientation"
    assert rejected(tmp_path / "away.nii").code == "missing-file"
    assert rejected(write_nifti(tmp_path / "blank.nii", np.zeros_like(pictures))).code == "constant"
    with pytest.raises(ValueError, match="CT is read as volumes"):
        read_frames(path, modality="CT")


def test_a_header_without_orientation_is_taken_as_stored(tmp_path):
    pictures = beating()
    image = nibabel.Nifti1Image(pictures.transpose(3, 2, 0, 1), None)
    image.header.set_zooms((1.5, 1.5, 8.0, 0.03))
    image.header["sform_code"] = image.header["qform_code"] = 0
    nibabel.save(image, tmp_path / "cine.nii")
    frames = read_frames(tmp_path / "cine.nii")
    np.testing.assert_array_equal(frames.voxels, pictures)
    assert (frames.spacing, frames.notes) == ((8.0, 1.5, 1.5), ("orientation-assumed",))
    told = read_frames(tmp_path / "cine.nii", spacing=(10, 2, 2))
    assert (told.spacing, told.notes) == ((10.0, 2.0, 2.0), ("orientation-assumed", "spacing-from-table"))


def test_bare_arrays_need_a_spacing(tmp_path):
    pictures = beating()
    np.save(tmp_path / "cine.npy", pictures.transpose(2, 3, 0, 1))
    frames = read_frames(tmp_path / "cine.npy", spacing=(1, 1, 1))
    np.testing.assert_array_equal(frames.voxels, pictures)
    np.save(tmp_path / "lge.npy", pictures[0, 0])
    assert read_frames(tmp_path / "lge.npy", spacing=(1, 1, 1)).voxels.shape == (1, 1, 40, 40)
    assert rejected(tmp_path / "cine.npy").code == "no-orientation"
    np.save(tmp_path / "five.npy", pictures[None])
    assert rejected(tmp_path / "five.npy", spacing=(1, 1, 1)).code == "several-series-in-one"
    content = (tmp_path / "cine.npy").read_bytes()
    (tmp_path / "cine.npy").write_bytes(content[: len(content) // 2])
    assert rejected(tmp_path / "cine.npy", spacing=(1, 1, 1)).code == "truncated-file"
