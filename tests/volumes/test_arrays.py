"""Volumes that are bare arrays: their axes and spacing come from who knows the archive."""

import zipfile

import numpy as np
import pytest

from medclip_jax.volumes import VolumeRejected, read_volume
from medclip_jax.volumes.arrays import axes_affine
from tests.volumes.made_scans import chest, write_nifti

SPACING = (3.0, 2.0, 1.5)


def reject(path, code, **options):
    with pytest.raises(VolumeRejected) as caught:
        read_volume(path, **{"axes": "SAR", "spacing": SPACING} | options)
    assert caught.value.code == code
    return str(caught.value)


def test_axes_become_an_affine():
    affine = axes_affine("IPL", (0.8, 0.7, 0.6))
    assert (affine @ (1, 0, 0, 1)).tolist() == [0, 0, -0.8, 1]
    assert (affine @ (0, 1, 0, 1)).tolist() == [0, -0.7, 0, 1]
    assert (affine @ (0, 0, 1, 1)).tolist() == [-0.6, 0, 0, 1]
    for wrong in ("", "RA", "RRS", "RAX", "RLS"):
        with pytest.raises(ValueError, match="are none"):
            axes_affine(wrong)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("axes", ["SAR", "IPL", "LPS"])
def test_an_array_is_brought_to_one_orientation(tmp_path, suffix, axes):
    hu = chest()
    canonical = {"SAR": hu, "IPL": hu[::-1, ::-1, ::-1], "LPS": hu[:, ::-1, ::-1].transpose(2, 1, 0)}
    path = tmp_path / f"a{suffix}"
    if suffix == ".npz":
        np.savez_compressed(path, ct=canonical[axes], other=np.zeros(3))
    else:
        np.save(path, canonical[axes])
    volume = read_volume(path, axes=axes, spacing=SPACING)
    np.testing.assert_array_equal(volume.voxels, hu)
    assert volume.spacing == SPACING
    assert volume.notes == ()
    assert volume.provenance["format"] == suffix[1:]


def test_other_layouts_of_arrays(tmp_path):
    hu = chest()
    for name, array in {"f": np.asfortranarray(hu), "b": hu.astype(">i2"), "c": hu[None]}.items():
        np.save(tmp_path / f"{name}.npy", array)
        volume = read_volume(tmp_path / f"{name}.npy", axes="SAR", spacing=SPACING)
        np.testing.assert_array_equal(volume.voxels, hu)
    np.savez(tmp_path / "one.npz", hu)  # numpy names it arr_0
    np.testing.assert_array_equal(read_volume(tmp_path / "one.npz", axes="SAR", spacing=SPACING).voxels, hu)


def test_arrays_that_are_refused(tmp_path):
    hu = chest()
    np.savez_compressed(tmp_path / "a.npz", ct=hu)
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    reject(tmp_path / "cut.npz", "truncated-file")
    damaged = bytearray(content)
    damaged[len(damaged) // 2] ^= 0xFF
    (tmp_path / "damaged.npz").write_bytes(damaged)
    reject(tmp_path / "damaged.npz", "truncated-file")
    np.save(tmp_path / "a.npy", hu)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:5000])
    reject(tmp_path / "cut.npy", "truncated-file")
    (tmp_path / "text.npy").write_text("not an array, whatever its name says")
    reject(tmp_path / "text.npy", "truncated-file")
    (tmp_path / "empty.npz").write_bytes(b"")
    reject(tmp_path / "empty.npz", "truncated-file")
    reject(tmp_path / "nowhere.npz", "missing-file")
    np.save(tmp_path / "flat.npy", hu[0])
    reject(tmp_path / "flat.npy", "not-3d")
    np.save(tmp_path / "complex.npy", hu.astype(complex))
    reject(tmp_path / "complex.npy", "unsupported-type")
    np.savez(tmp_path / "several.npz", a=hu, b=hu)
    assert "none is named 'ct'" in reject(tmp_path / "several.npz", "several-series-in-one")
    with zipfile.ZipFile(tmp_path / "none.npz", "w"):
        pass
    reject(tmp_path / "none.npz", "truncated-file")
    reject(tmp_path / "a.npz", "no-orientation", spacing=None)
    with pytest.raises(ValueError, match="three positive numbers"):
        read_volume(tmp_path / "a.npz", axes="SAR", spacing=(1.0, 0.0, 1.0))


def test_objects_are_never_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was opened",))

    np.save(tmp_path / "trap.npy", np.array([[[Trap()]]], object), allow_pickle=True)
    assert "never opened" in reject(tmp_path / "trap.npy", "unsupported-type")
    np.savez(tmp_path / "trap.npz", ct=np.array([[[Trap()]]], object))
    reject(tmp_path / "trap.npz", "unsupported-type")


def test_an_array_that_would_fill_the_memory_is_not_inflated(tmp_path):
    header = b"{'descr': '<i2', 'fortran_order': False, 'shape': (4096, 4096, 4096), }"
    header += b" " * (118 - len(header)) + b"\n"
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ct.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    assert "that is no scan" in reject(tmp_path / "bomb.npz", "implausible-size")


def test_without_axes_an_array_says_nothing(tmp_path):
    np.savez(tmp_path / "a.npz", ct=chest())
    with pytest.raises(VolumeRejected, match="a bare array"):
        read_volume(tmp_path / "a.npz")


def test_axes_place_a_nifti_whose_header_does_not(tmp_path):
    """CT-RATE v1: an identity affine, and the axes of DICOM's array."""
    hu = chest()
    # Columns to the left, rows to the back, slices up; the file's header says that they run RAS.
    path = write_nifti(tmp_path / "v1.nii.gz", hu[:, ::-1, ::-1], np.eye(4)[[2, 1, 0, 3]])
    told = read_volume(path, axes="LPS", spacing=SPACING)
    np.testing.assert_array_equal(told.voxels, hu)
    assert set(told.notes) == {"orientation-from-table", "spacing-from-table"}
    assert told.provenance["orientation"] == "LPS"
    placed = read_volume(write_nifti(tmp_path / "v2.nii.gz", hu), axes="LPS")
    np.testing.assert_array_equal(placed.voxels, hu)  # a header that says it counts
    assert placed.notes == ()


def test_raw_values_are_rescaled_without_a_look(tmp_path):
    path = write_nifti(tmp_path / "hu.nii.gz", chest())
    assert read_volume(path, rescale=(1, -1024)).notes == ("table-rescale-not-applied",)
    with pytest.raises(VolumeRejected, match="applied twice"):
        read_volume(path, rescale=(1, -1024), raw=True)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_normalized_values_always_take_the_table(tmp_path, kind):
    """0 to 1 is HU for nobody; what the table makes of it is then judged."""
    hu = np.clip(chest(), -1024, 1500)
    np.save(tmp_path / "unit.npy", ((hu + 1024.0) / 2524.0).astype(kind))
    volume = read_volume(tmp_path / "unit.npy", axes="SAR", spacing=SPACING, rescale=(2524, -1024))
    assert np.abs(volume.voxels - hu).max() <= (2 if kind == np.float16 else 0)
    assert "of 0" not in reject(tmp_path / "unit.npy", "not-hounsfield", rescale=(255, 0))
