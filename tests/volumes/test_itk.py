"""NRRD and MetaImage files."""

import bz2
import gzip
import zlib

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


STORED = chest()[:, ::-1, ::-1].astype("<i2")
"""The chest as x to the left, y to posterior, z up: what files of these formats hold."""

SPACE = (
    "space: left-posterior-superior\nspace directions: (1.5,0,0) (0,2,0) (0,0,3)\n"
    "space origin: (-34.5,-38,100)\n"
)
MATRIX = "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = -34.5 -38 100\n"


def nrrd(path, data=b"", encoding="raw", more="", space=SPACE, endian="little", sizes="44 40 16"):
    head = (
        f"NRRD0004\n# by hand\ntype: short\ndimension: {len(sizes.split())}\n{space}sizes: {sizes}\n"
        f"endian: {endian}\nencoding: {encoding}\n{more}\n"
    )
    path.write_bytes(head.encode() + data)
    return path


def meta(path, data_file, data=b"", more=MATRIX, compressed=False, spacing="ElementSpacing = 1.5 2 3\n"):
    head = (
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = "
        f"{compressed}\n{more}{spacing}DimSize = 44 40 16\nElementType = MET_SHORT\n"
        f"ElementDataFile = {data_file}\n"
    )
    path.write_bytes(head.encode() + data)
    return path


@pytest.fixture
def slices(tmp_path) -> list[str]:
    """The volume, and one file a slice, beside where headers will be."""
    (tmp_path / "all.raw").write_bytes(STORED.tobytes())
    for k, plane in enumerate(STORED):
        (tmp_path / f"s{k:02d}.raw").write_bytes(plane.tobytes())
    return [f"s{k:02d}.raw" for k in range(16)]


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_no_flipped_bit_in_compressed_data_is_overlooked(tmp_path, ending):
    path = write(tmp_path / f"a.{ending}", chest((5, 20, 22)))
    sitk.WriteImage(sitk.ReadImage(str(path)), str(path), useCompression=True)
    whole = path.read_bytes()
    start = whole.index(b"LOCAL\n") + 6 if ending == "mha" else whole.index(b"\n\n") + 2
    generator = np.random.default_rng(0)
    for place in generator.integers(start, len(whole), 60):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << generator.integers(8)
        path.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(read_volume(path).voxels, chest((5, 20, 22)))
        except VolumeRejected as error:
            assert error.code in {"damaged-gzip", "truncated-file"}  # noqa: PT017


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("raw", bytes),
        ("gzip", gzip.compress),
        ("bzip2", bz2.compress),
        ("hex", lambda data: data.hex().encode()),
        ("ascii", lambda data: " ".join(map(str, np.frombuffer(data, "<i2"))).encode()),
    ],
)
def test_encodings_of_nrrd(tmp_path, encoding, pack):
    volume = read_volume(nrrd(tmp_path / "a.nrrd", pack(STORED.tobytes()), encoding))
    np.testing.assert_array_equal(volume.voxels, chest())
    assert volume.notes == ()
    assert rejected(nrrd(tmp_path / "b.nrrd", pack(STORED.tobytes()[:-4]), encoding)) == "truncated-file"
    volume = read_volume(nrrd(tmp_path / "c.nrrd", pack(STORED.tobytes() + b"\0" * 4), encoding))
    assert volume.notes == ("bytes-after-voxels:4",)


def test_byte_order_and_skips(tmp_path):
    data = STORED.tobytes()
    for path in (
        nrrd(tmp_path / "a.nrrd", STORED.astype(">i2").tobytes(), endian="big"),
        nrrd(tmp_path / "b.nrrd", b"12345" + data, more="byte skip: 5\n"),
        nrrd(tmp_path / "c.nrrd", b"12345" + data, more="byte skip: -1\n"),
        nrrd(tmp_path / "d.nrrd", b"one\ntwo\n" + data, more="line skip: 2\n"),
        meta(tmp_path / "e.mha", "LOCAL", zlib.compress(data), compressed=True),
        meta(tmp_path / "f.mha", "LOCAL", gzip.compress(data), compressed=True),
    ):
        np.testing.assert_array_equal(read_volume(path).voxels, chest(), err_msg=path.name)


@pytest.mark.parametrize(
    ("ending", "make"),
    [("nhdr", lambda path, names: nrrd(path, more=f"data file: {names}")), ("mhd", meta)],
)
def test_data_in_other_files(tmp_path, slices, ending, make):
    listed = "LIST\n" + "\n".join(slices)
    for names in ("all.raw", listed, "s%02d.raw 0 15 1"):
        np.testing.assert_array_equal(read_volume(make(tmp_path / f"a.{ending}", names)).voxels, chest())
    for names in ("LIST\n" + "\n".join(slices[:-1]), listed + "\ns00.raw", "s%02d.raw 0 14 1"):
        assert rejected(make(tmp_path / f"a.{ending}", names)) in {"damaged-header", "unreadable"}
    (tmp_path / "s07.raw").write_bytes(STORED[7].tobytes()[:-2])
    assert rejected(make(tmp_path / f"a.{ending}", listed)) == "truncated-file"
    (tmp_path / "s07.raw").unlink()
    assert rejected(make(tmp_path / f"a.{ending}", listed)) == "unreadable"
    (tmp_path / "inner").mkdir()
    for names in ("../all.raw", str(tmp_path / "all.raw")):
        assert rejected(make(tmp_path / "inner" / f"a.{ending}", names)) == "data-elsewhere"


def test_orientation_that_is_not_said_is_noted(tmp_path):
    data = STORED.tobytes()
    spaced = "space directions: (1.5,0,0) (0,2,0) (0,0,3)\nspace origin: (0,0,0)\n"
    for path in (
        nrrd(tmp_path / "a.nrrd", data, space="spacings: 1.5 2 3\n"),
        nrrd(tmp_path / "b.nrrd", data, space="space dimension: 3\n" + spaced),
        nrrd(tmp_path / "c.nrrd", data, space="space: scanner-xyz\n" + spaced),
        meta(tmp_path / "d.mha", "LOCAL", data, more=""),
    ):
        volume = read_volume(path)
        assert volume.notes == ("orientation-assumed",), path.name
        np.testing.assert_array_equal(volume.voxels, chest())
    assert rejected(nrrd(tmp_path / "e.nrrd", data, space="")) == "no-orientation"
    assert rejected(meta(tmp_path / "f.mha", "LOCAL", data, spacing="")) == "no-orientation"


def test_spaces_of_nrrd(tmp_path):
    """The same world, said in three ways."""
    for name, stored, origin in (
        ("RAS", chest(), "(-30,-40,100)"),
        ("left-anterior-superior", chest()[:, :, ::-1], "(-34.5,-40,100)"),
        ("LPS", STORED, "(-34.5,-38,100)"),
    ):
        space = f"space: {name}\nspace directions: (1.5,0,0) (0,2,0) (0,0,3)\nspace origin: {origin}\n"
        volume = read_volume(nrrd(tmp_path / "a.nrrd", stored.astype("<i2").tobytes(), space=space))
        np.testing.assert_array_equal(volume.voxels, chest())
        np.testing.assert_allclose(volume.affine, RAS, err_msg=name)
        assert volume.notes == ()


def test_axis_of_one_value_is_no_color(tmp_path):
    space = SPACE.replace("directions: ", "directions: none ") + "kinds: list domain domain domain\n"
    volume = read_volume(nrrd(tmp_path / "a.nrrd", STORED.tobytes(), space=space, sizes="1 44 40 16"))
    np.testing.assert_array_equal(volume.voxels, chest())
    assert volume.notes == ("one-frame-of-4d",)
    assert (
        rejected(nrrd(tmp_path / "b.nrrd", STORED.tobytes() * 2, space=space, sizes="2 44 40 16")) == "color"
    )


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (MATRIX + "AnatomicalOrientation = RAI\n", ()),
        (MATRIX + "AnatomicalOrientation = LPS\n", ()),  # the same, by where axes go to
        (MATRIX + "AnatomicalOrientation = ???\n", ()),
        (MATRIX + "AnatomicalOrientation = RAS\n", ("anatomical-orientation-ignored",)),
        ("AnatomicalOrientation = RAI\n", ()),
        ("AnatomicalOrientation = LPI\n", "no-orientation"),
    ],
)
def test_anatomical_orientation_of_meta_image(tmp_path, more, expected):
    path = meta(tmp_path / "a.mha", "LOCAL", STORED.tobytes(), more=more)
    if isinstance(expected, str):
        assert rejected(path) == expected
    else:
        volume = read_volume(path)
        assert volume.notes == expected
        np.testing.assert_array_equal(volume.voxels, chest())
