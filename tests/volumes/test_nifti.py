"""Every NIfTI trap: a file made here, and what `read_volume` makes of it."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from made_scans import RAS, SPACING, chest, write_nifti

from medclip_jax.volumes import VolumeRejected, read_labels, read_volume


def rejected(path, **arguments) -> VolumeRejected:
    with pytest.raises(VolumeRejected) as caught:
        read_volume(path, **arguments)
    assert len(str(caught.value)) > 30  # says what to do
    return caught.value


@pytest.fixture
def voxels() -> np.ndarray:
    return chest()


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
def test_clean_file(tmp_path, voxels, name):
    volume = read_volume(write_nifti(tmp_path / name, voxels))
    np.testing.assert_array_equal(volume.voxels, voxels)
    np.testing.assert_allclose(volume.affine, RAS)
    np.testing.assert_allclose(volume.spacing, SPACING)
    assert volume.voxels.dtype == np.int16
    assert volume.notes == ()
    assert volume.provenance["format"] == "nifti"
    assert volume.provenance["orientation"] == "RAS"


def test_same_as_nibabel(tmp_path, voxels):
    """Left-handed, permuted axes: values and world positions as nibabel gives them."""
    affine = np.array([[0, -1.5, 0, 40], [0, 0, -2.0, 60], [3.0, 0, 0, -7], [0, 0, 0, 1]], float)
    image = nib.Nifti1Image(voxels, affine)  # axes S, L, P
    nib.save(image, tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    expected = nib.as_closest_canonical(nib.load(tmp_path / "a.nii.gz"))
    np.testing.assert_array_equal(volume.voxels, np.asarray(expected.dataobj).transpose(2, 1, 0))
    np.testing.assert_allclose(volume.affine, expected.affine[:, [2, 1, 0, 3]])
    assert volume.provenance["orientation"] == "SLP"


@pytest.mark.parametrize("slope", [0.0, float("nan")])
def test_slope_zero_or_nan_means_no_scaling(tmp_path, voxels, slope):
    volume = read_volume(write_nifti(tmp_path / "a.nii", voxels, scl_slope=slope, scl_inter=slope))
    np.testing.assert_array_equal(volume.voxels, voxels)


def test_header_rescale_is_applied(tmp_path, voxels):
    stored = ((voxels.astype(int) + 1024) * 2).astype(np.int16)
    volume = read_volume(write_nifti(tmp_path / "a.nii", stored, scl_slope=0.5, scl_inter=-1024))
    np.testing.assert_array_equal(volume.voxels, voxels)
    assert volume.provenance["header_rescale"] == (0.5, -1024.0)


def test_slope_without_intercept(tmp_path, voxels):
    path = write_nifti(tmp_path / "a.nii", voxels, scl_slope=1.0, scl_inter=float("nan"))
    assert rejected(path).code == "damaged-header"


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.int64, np.float32, np.float64, ">i2", ">f4"])
def test_number_types(tmp_path, voxels, kind):
    path = tmp_path / "a.nii.gz"
    values = voxels.astype(kind)
    header = nib.Nifti1Header(endianness=">" if np.dtype(kind).byteorder == ">" else "<")
    header.set_data_dtype(values.dtype)
    nib.save(nib.Nifti1Image(values.transpose(2, 1, 0), RAS[:, [2, 1, 0, 3]], header), path)
    volume = read_volume(path)
    assert volume.voxels.dtype == np.int16
    np.testing.assert_array_equal(volume.voxels, voxels)


def test_unsigned_with_table_rescale(tmp_path, voxels):
    path = write_nifti(tmp_path / "a.nii", (voxels.astype(int) + 8192).astype(np.uint16))
    np.testing.assert_array_equal(read_volume(path, rescale=(1, -8192)).voxels, voxels)


def test_nifti2(tmp_path, voxels):
    nib.save(nib.Nifti2Image(voxels.transpose(2, 1, 0), RAS[:, [2, 1, 0, 3]]), tmp_path / "a.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").voxels, voxels)


def test_identity_affine_is_refused_unless_a_table_gives_the_spacing(tmp_path, voxels):
    path = write_nifti(tmp_path / "a.nii", voxels, np.eye(4)[:, [2, 1, 0, 3]])
    assert rejected(path).code == "no-orientation"
    volume = read_volume(path, spacing=SPACING)
    assert set(volume.notes) == {"orientation-assumed", "spacing-from-table"}
    assert volume.spacing == SPACING
    assert volume.provenance["orientation"] == "unknown"


def test_no_sform_and_no_qform(tmp_path, voxels):
    assert (
        rejected(write_nifti(tmp_path / "a.nii", voxels, sform_code=0, qform_code=0)).code == "no-orientation"
    )


def test_zero_spacing(tmp_path, voxels):
    image = nib.Nifti1Image(voxels.transpose(2, 1, 0), RAS[:, [2, 1, 0, 3]])
    content = bytearray(image.to_bytes())
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    header["srow_z"] = 0
    content[:348] = header.binaryblock
    (tmp_path / "a.nii").write_bytes(content)
    assert rejected(tmp_path / "a.nii").code == "zero-spacing"
    assert read_volume(tmp_path / "a.nii", spacing=SPACING).spacing == SPACING


@pytest.mark.parametrize("spacing", [(3000, 2000, 1500), (0.003, 0.002, 0.0015)])
def test_implausible_spacing(tmp_path, voxels, spacing):
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = spacing
    affine[3, 3] = 1
    assert rejected(write_nifti(tmp_path / "a.nii", voxels, affine)).code == "implausible-spacing"


@pytest.mark.parametrize(("unit", "factor"), [(1, 0.001), (3, 1000.0)])
def test_units_of_meters_and_microns(tmp_path, voxels, unit, factor):
    affine = np.diag([factor, factor, factor, 1]) @ RAS
    volume = read_volume(write_nifti(tmp_path / "a.nii", voxels, affine, xyzt_units=unit))
    np.testing.assert_allclose(volume.affine, RAS, atol=1e-4)
    assert volume.notes == ("units-converted-to-mm",)


def test_flat_image(tmp_path, voxels):
    assert rejected(write_nifti(tmp_path / "a.nii", voxels[0])).code == "not-3d"
    assert rejected(write_nifti(tmp_path / "b.nii", voxels[:1])).code == "not-3d"


def test_four_dimensions(tmp_path, voxels):
    volume = read_volume(write_nifti(tmp_path / "a.nii", voxels[..., None]))
    assert volume.notes == ("one-frame-of-4d",)
    np.testing.assert_array_equal(volume.voxels, voxels)
    several = rejected(write_nifti(tmp_path / "b.nii", np.stack([voxels] * 3, axis=-1)))
    assert several.code == "several-frames"
    assert "3 volumes" in str(several)


def test_color(tmp_path, voxels):
    colors = np.zeros(voxels.shape[::-1], [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colors, RAS[:, [2, 1, 0, 3]]), tmp_path / "a.nii")
    assert rejected(tmp_path / "a.nii").code == "color"


def test_complex(tmp_path, voxels):
    assert rejected(write_nifti(tmp_path / "a.nii", voxels.astype(np.complex64))).code == "unsupported-type"


def with_qform(path, voxels, sform, qform):
    image = nib.Nifti1Image(voxels.transpose(2, 1, 0), sform[:, [2, 1, 0, 3]])
    image.set_qform(qform[:, [2, 1, 0, 3]], code=1)
    image.set_sform(sform[:, [2, 1, 0, 3]], code=1, update_affine=False)
    nib.save(image, path)
    return path


def test_sform_and_qform_disagree(tmp_path, voxels):
    other = RAS.copy()
    other[:3, 3] += 50
    volume = read_volume(with_qform(tmp_path / "a.nii", voxels, RAS, other))
    assert volume.notes == ("sform-qform-disagree",)
    np.testing.assert_allclose(volume.affine, RAS, atol=1e-4)  # the sform counts
    identity = np.eye(4)[:, [2, 1, 0, 3]]
    volume = read_volume(with_qform(tmp_path / "b.nii", voxels, identity, RAS))
    np.testing.assert_allclose(volume.affine, RAS, atol=1e-4)  # unless it is the identity
    assert read_volume(with_qform(tmp_path / "c.nii", voxels, RAS, RAS)).notes == ()


def test_pixdim_against_affine(tmp_path, voxels):
    path = write_nifti(tmp_path / "a.nii", voxels, pixdim=[1, 1, 1, 1, 0, 0, 0, 0], qform_code=0)
    assert read_volume(path).notes == ("pixdim-affine-disagree",)


def test_oblique_keeps_its_rotation(tmp_path, voxels):
    angle = np.deg2rad(12)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    volume = read_volume(write_nifti(tmp_path / "a.nii", voxels, turn @ RAS))
    assert volume.notes == ("oblique:12deg",)
    np.testing.assert_array_equal(volume.voxels, voxels)
    np.testing.assert_allclose(volume.affine, turn @ RAS, atol=1e-5)


def test_sheared_slices_are_refused(tmp_path, voxels):
    sheared = RAS.copy()
    sheared[1, 2] = 0.6
    assert rejected(write_nifti(tmp_path / "a.nii", voxels, sheared)).code == "sheared-grid"


def test_truncated(tmp_path, voxels):
    whole = write_nifti(tmp_path / "a.nii.gz", voxels).read_bytes()
    plain = gzip.decompress(whole)
    for name, content in {
        "b.nii.gz": whole[: len(whole) // 2],
        "c.nii.gz": whole[:-4],  # all voxels are there, the check sum is not
        "d.nii": plain[: len(plain) // 2],
        "e.nii": b"",
        "f.nii.gz": gzip.compress(plain[:-100]),
    }.items():
        (tmp_path / name).write_bytes(content)
        assert rejected(tmp_path / name).code == "truncated-file", name
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    (tmp_path / "g.nii.gz").write_bytes(damaged)
    assert rejected(tmp_path / "g.nii.gz").code == "damaged-gzip"


def test_bytes_after_the_voxels_are_noted(tmp_path, voxels):
    """A damaged shape in the header leaves voxels over: never silent."""
    path = write_nifti(tmp_path / "a.nii", voxels)
    path.write_bytes(path.read_bytes() + b"\0" * 32)
    assert read_volume(path).notes == ("bytes-after-voxels:32",)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("offset", [0, 100, 348, 360, -4, float("nan")])
def test_voxel_offset_inside_the_header(tmp_path, voxels, name, offset):
    """The file's length says where voxels start; 0 would show the header as the first voxels."""
    volume = read_volume(write_nifti(tmp_path / name, voxels, vox_offset=offset))
    np.testing.assert_array_equal(volume.voxels, voxels)
    assert volume.notes == ("voxel-offset-mended:352",)


def test_voxel_offset_that_the_length_does_not_tell(tmp_path, voxels):
    path = write_nifti(tmp_path / "a.nii", voxels, vox_offset=0)
    path.write_bytes(path.read_bytes() + b"\0" * 6)
    assert rejected(path).code == "damaged-header"


def test_voxels_after_extensions(tmp_path, voxels):
    image = nib.Nifti1Image(voxels.transpose(2, 1, 0), RAS[:, [2, 1, 0, 3]])
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 100))
    nib.save(image, tmp_path / "a.nii")
    assert read_volume(tmp_path / "a.nii").notes == ()
    content = bytearray((tmp_path / "a.nii").read_bytes())
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    header["vox_offset"] = 352  # now the extension would be read as voxels
    content[:348] = header.binaryblock
    (tmp_path / "b.nii").write_bytes(content)
    volume = read_volume(tmp_path / "b.nii")
    np.testing.assert_array_equal(volume.voxels, voxels)
    assert volume.notes[0].startswith("voxel-offset-mended:")


def test_header_fields_that_contradict_each_other(tmp_path, voxels):
    volume = read_volume(write_nifti(tmp_path / "a.nii", voxels, bitpix=32))
    assert volume.notes == ("bits-per-voxel-ignored",)
    path = write_nifti(tmp_path / "b.nii", voxels, bitpix=32)
    path.write_bytes(path.read_bytes() + b"\0" * 5)
    assert rejected(path).code == "damaged-header"
    flat = rejected(write_nifti(tmp_path / "c.nii", voxels, dim=[2, 44, 40, 16, 1, 1, 1, 1]))
    assert flat.code == "damaged-header"
    volume = read_volume(write_nifti(tmp_path / "d.nii", voxels, dim=[4, 44, 40, 16, 0, 1, 1, 1]))
    assert volume.notes == ("empty-dimension-ignored", "one-frame-of-4d")
    analyze = rejected(write_nifti(tmp_path / "e.nii", voxels, magic=b""))
    assert analyze.code == "not-nifti"
    assert "orientation" in str(analyze)


def test_axis_of_channels_first(tmp_path, voxels):
    """(1, X, Y, Z): the affine's columns belong to other axes than was meant."""
    nib.save(
        nib.Nifti1Image(voxels.transpose(2, 1, 0)[None], np.diag([1.5, 2.0, 3.0, 1.0])), tmp_path / "a.nii"
    )
    error = rejected(tmp_path / "a.nii")
    assert error.code == "channel-first"
    assert "without that axis" in str(error)


def test_negative_pixdim_and_invalid_qform(tmp_path, voxels):
    """The sform counts; a qform that nibabel refuses does not make the file unreadable."""
    for pixdim in ([1, -1.5, 2, 3, 0, 0, 0, 0], [7, 1.5, 2, 3, 0, 0, 0, 0]):
        volume = read_volume(write_nifti(tmp_path / "a.nii", voxels, pixdim=pixdim, qform_code=1))
        np.testing.assert_allclose(volume.affine, RAS)
        assert volume.notes == ("invalid-qform-ignored",)


def test_pairs_of_files(tmp_path, voxels):
    nib.save(nib.Nifti1Pair(voxels.transpose(2, 1, 0), RAS[:, [2, 1, 0, 3]]), tmp_path / "a.img")
    for name in ("a.hdr", "a.img"):
        volume = read_volume(tmp_path / name)
        np.testing.assert_array_equal(volume.voxels, voxels)
        assert volume.notes == ()
    (tmp_path / "a.img").unlink()
    assert rejected(tmp_path / "a.hdr").code == "missing-file"


@pytest.mark.parametrize(("shape", "code"), [((2000, 2000, 2000), "implausible-size"), ((44, 40, 16), "")])
def test_little_is_inflated_where_the_header_states_much(tmp_path, voxels, shape, code, monkeypatch):
    """A small file that claims 16 GB is refused before anything is inflated."""
    path = write_nifti(tmp_path / "a.nii.gz", voxels, dim=[3, *shape, 1, 1, 1, 1])

    def fail(*_):
        raise AssertionError("inflated")

    if code:
        monkeypatch.setattr("medclip_jax.volumes.nifti.inflate", fail)
        assert rejected(path).code == code
    else:
        np.testing.assert_array_equal(read_volume(path).voxels, voxels)


def test_more_is_stored_than_stated(tmp_path, voxels):
    plain = write_nifti(tmp_path / "a.nii", voxels).read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(plain + b"\0" * (3 << 20)))
    assert rejected(tmp_path / "b.nii.gz").code == "size-mismatch"
    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(plain + b"\0" * 32))
    assert read_volume(tmp_path / "c.nii.gz").notes == ("bytes-after-voxels:32",)


def test_no_room_in_memory(tmp_path, voxels, monkeypatch):
    monkeypatch.setattr("medclip_jax.volumes.content._LARGE", 1000)
    monkeypatch.setattr("medclip_jax.volumes.content._free_memory", lambda: 90_000)
    error = rejected(write_nifti(tmp_path / "a.nii.gz", voxels))
    assert error.code == "out-of-memory"
    assert "--workers" in str(error)


def test_gzip_of_two_members_and_plain_file_named_gz(tmp_path, voxels):
    plain = write_nifti(tmp_path / "a.nii", voxels).read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(plain[:5000]) + gzip.compress(plain[5000:]))
    (tmp_path / "c.nii.gz").write_bytes(plain)
    for name in ("b.nii.gz", "c.nii.gz"):
        np.testing.assert_array_equal(read_volume(tmp_path / name).voxels, voxels)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path, voxels, bad):
    values = voxels.astype(np.float32)
    values[3, 4, 5] = bad
    assert rejected(write_nifti(tmp_path / "a.nii", values)).code == "not-finite"


def test_not_nifti_and_missing(tmp_path):
    (tmp_path / "a.nii").write_bytes(b"hello" * 200)
    assert rejected(tmp_path / "a.nii").code == "not-nifti"
    assert rejected(tmp_path / "b.nii").code == "missing-file"


def test_labels_are_canonical_whole_numbers(tmp_path, voxels):
    labels = np.random.default_rng(0).integers(0, 9, voxels.shape).astype(np.float32)
    found, affine = read_labels(write_nifti(tmp_path / "a.nii.gz", labels))
    np.testing.assert_array_equal(found, labels)
    assert found.dtype.kind in "iu"
    np.testing.assert_allclose(affine, RAS)
    with pytest.raises(VolumeRejected) as caught:
        read_labels(write_nifti(tmp_path / "b.nii.gz", labels + np.float32(0.4)))
    assert caught.value.code == "not-labels"


def test_a_scan_among_masks_is_no_mask(tmp_path, voxels):
    with pytest.raises(VolumeRejected, match="is this a scan") as caught:
        read_labels(write_nifti(tmp_path / "a.nii.gz", voxels))
    assert caught.value.code == "not-labels"


def test_wrong_arguments(tmp_path, voxels):
    path = write_nifti(tmp_path / "a.nii", voxels)
    with pytest.raises(ValueError, match="modality"):
        read_volume(path, modality="PET")
    with pytest.raises(ValueError, match="spacing"):
        read_volume(path, spacing=(1, 0, 1))
