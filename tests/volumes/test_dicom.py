"""Every DICOM trap: a series made here, and what `read_volume` makes of it."""

import numpy as np
import pydicom
import pytest
from made_scans import SPACING, chest, compress, dicom_header, lps_stack, write_enhanced, write_slices
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless
from scipy import ndimage

from medclip_jax.volumes import VolumeRejected, read_volume

ORIGIN = (30 - 43 * 1.5, 40 - 39 * 2.0, 100)
"""RAS mm of voxel (0, 0, 0) of a series written with the default positions."""


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    return chest()


def rejected(path, **arguments) -> VolumeRejected:
    with pytest.raises(VolumeRejected) as caught:
        read_volume(path, **arguments)
    assert len(str(caught.value)) > 30  # says what to do
    return caught.value


def positions(offsets):
    return [(-30.0, -40.0, 100.0 + offset) for offset in offsets]


def rewrite(path, **tags):
    header = pydicom.dcmread(path)
    for name, value in tags.items():
        setattr(header, name, value)
    header.save_as(path, enforce_file_format=True)


def test_files_out_of_order_are_sorted_by_position(tmp_path, voxels):
    write_slices(tmp_path, lps_stack(voxels))
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.voxels, voxels)
    np.testing.assert_allclose(volume.spacing, SPACING)  # the gap of 3 mm, not the thickness of 5 mm
    np.testing.assert_allclose(volume.affine[:3, 3], ORIGIN)
    assert volume.notes == ()
    assert volume.provenance["slice_thickness"] == 5.0
    assert volume.provenance["slices"] == len(voxels)


def test_other_orientations(tmp_path, voxels):
    """Coronal slices from posterior to anterior, rows to the left, columns downwards."""
    coronal = voxels.transpose(1, 0, 2)[:, ::-1, ::-1]
    places = [(0.0, -2.0 * n, 50.0) for n in range(len(coronal))]
    write_slices(
        tmp_path, coronal, positions=places, orientation=(1, 0, 0, 0, 0, -1), PixelSpacing=[3.0, 1.5]
    )
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.voxels, voxels)
    np.testing.assert_allclose(volume.spacing, SPACING)
    assert volume.notes == ("not-axial",)


def test_duplicate_slices(tmp_path, voxels):
    write_slices(tmp_path, lps_stack(voxels))
    write_slices(tmp_path, lps_stack(voxels)[3:5], positions=positions([9, 12]), prefix="COPY")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.voxels, voxels)
    assert volume.notes == ("duplicate-slices:2",)
    write_slices(tmp_path, lps_stack(voxels)[3:4] + 40, positions=positions([9]), prefix="PHASE")
    assert rejected(tmp_path).code == "several-phases"


def test_missing_slices(tmp_path, voxels):
    files = write_slices(tmp_path, lps_stack(voxels))
    files[5].unlink()
    files[6].unlink()
    error = rejected(tmp_path)
    assert error.code == "missing-slices"
    assert "2 slices" in str(error)


def test_uneven_gaps(tmp_path, voxels):
    offsets = 3.0 * np.arange(len(voxels))
    offsets[8:] += 1.7
    write_slices(tmp_path, lps_stack(voxels), positions=positions(offsets))
    assert rejected(tmp_path).code == "uneven-gaps"


def test_rounded_positions_are_even(tmp_path, voxels):
    """A gap of 0.625 mm written with one decimal: gaps of 0.6 and 0.7, slices where they should be."""
    offsets = np.round(0.625 * np.arange(len(voxels)), 1)
    write_slices(tmp_path, lps_stack(voxels), positions=positions(offsets))
    assert read_volume(tmp_path).spacing[0] == pytest.approx(0.625, abs=5e-3)


def test_slices_that_drift_sideways(tmp_path, voxels):
    places = [(-30.0 + (4 if n == 7 else 0), -40.0, 100.0 + 3 * n) for n in range(len(voxels))]
    write_slices(tmp_path, lps_stack(voxels), positions=places)
    assert rejected(tmp_path).code == "uneven-gaps"


@pytest.mark.parametrize("degrees", [-18, 12])
def test_gantry_tilt_keeps_world_positions(tmp_path, degrees):
    """Tilted slices advance along the table. Three bright balls must stay where they are in the world."""
    angle = np.deg2rad(degrees)
    columns = np.array([0, np.cos(angle), np.sin(angle)])  # LPS
    shape, pixel, gap = (40, 60, 60), 2.0, 3.0
    n, r, c = np.meshgrid(*(np.arange(k) for k in shape), indexing="ij")
    place = (
        np.array([-59.0, -59.0, -20.0])
        + n[..., None] * np.array([0, 0, gap])
        + r[..., None] * pixel * columns
        + c[..., None] * pixel * np.array([1.0, 0, 0])
    )
    centers = [(-24.0, -10.0, 30.0), (20.0, 16.0, 42.0), (2.0, -22.0, 33.0)]
    glow = sum(np.exp(-((place - p) ** 2).sum(-1) / (2 * 5.0**2)) for p in map(np.array, centers))
    # As MR: three balls in the dark are no HU, and the geometry alone is under test.
    write_slices(
        tmp_path,
        2500 * glow + np.random.default_rng(0).uniform(0, 20, shape),
        positions=[tuple(place[k, 0, 0]) for k in range(shape[0])],
        orientation=(1, 0, 0, *columns),
        PixelSpacing=[pixel, pixel],
        Modality="MR",
        rescale=(1.0, 0.0),
    )
    volume = read_volume(tmp_path, modality="MR")
    assert volume.notes[-1] == f"gantry-tilt-corrected:{abs(degrees)}deg"
    axes = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    assert volume.spacing[0] == pytest.approx(gap * np.cos(angle))
    for center in centers:
        ras = np.array([-center[0], -center[1], center[2]])
        index = np.linalg.solve(volume.affine[:3, :3], ras - volume.affine[:3, 3])
        low = np.rint(index).astype(int) - 4
        box = volume.voxels[tuple(slice(a, a + 9) for a in low)].astype(float)
        found = low + np.array(ndimage.center_of_mass(np.where(box > 600, box, 0)))
        np.testing.assert_allclose((found - index) * volume.spacing, 0, atol=0.5)


def test_several_series_picks_the_largest_axial_one(tmp_path, voxels):
    write_slices(tmp_path / "a", lps_stack(voxels))
    write_slices(tmp_path / "b", lps_stack(chest((6, 40, 44))), SeriesInstanceUID="1.2.3.9")
    coronal = chest((30, 20, 44))
    places = [(0.0, -2.0 * n, 50.0) for n in range(len(coronal))]
    write_slices(
        tmp_path / "c",
        coronal,
        positions=places,
        orientation=(1, 0, 0, 0, 0, -1),
        SeriesInstanceUID="1.2.3.7",
    )
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.voxels, voxels)
    assert volume.notes == ("several-series:3",)


@pytest.mark.parametrize("series", ["1.2.3.4.5", "1.2.3.8"])
def test_localizers_are_left_out(tmp_path, voxels, series):
    """In a series of their own, or inside the scan's."""
    write_slices(tmp_path / "a", lps_stack(voxels))
    scout = np.zeros((2, 50, 44), np.int16)
    places = [(0.0, 0.0, 50.0), (0.0, -5.0, 50.0)]
    write_slices(
        tmp_path / "b",
        scout,
        positions=places,
        orientation=(1, 0, 0, 0, 0, -1),
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
        SeriesInstanceUID=series,
    )
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.voxels, voxels)
    assert volume.notes == ()
    assert rejected(tmp_path / "b").code == "only-localizers"


def test_every_slice_has_its_own_rescale(tmp_path, voxels):
    rescale = [(1.0, -1024.0 + 8 * n) if n % 2 else (0.5, -1000.0) for n in range(len(voxels))]
    write_slices(tmp_path, lps_stack(voxels), rescale=rescale)
    np.testing.assert_array_equal(read_volume(tmp_path).voxels, voxels)


def test_fractional_rescale(tmp_path, voxels):
    write_slices(tmp_path, lps_stack(voxels), rescale=(0.25, -1024.5))
    assert np.abs(read_volume(tmp_path).voxels.astype(int) - voxels).max() <= 1


def test_missing_rescale_is_noticed(tmp_path, voxels):
    write_slices(tmp_path, lps_stack(voxels), RescaleSlope=None, RescaleIntercept=None)
    assert rejected(tmp_path).code == "missing-rescale"


def test_enhanced_multi_frame(tmp_path, voxels):
    order = np.random.default_rng(0).permutation(len(voxels))
    rescale = [(1.0, -1024.0 - n) for n in range(len(voxels))]
    path = write_enhanced(tmp_path / "a.dcm", lps_stack(voxels), rescale, order)
    for source in (path, tmp_path):
        volume = read_volume(source)
        np.testing.assert_array_equal(volume.voxels, voxels)
        np.testing.assert_allclose(volume.affine[:3, 3], ORIGIN)
        np.testing.assert_allclose(volume.spacing, SPACING)


@pytest.mark.parametrize("compressor", ["JPEG2000", "JPEG"])
def test_compressed_pixels(tmp_path, voxels, compressor):
    rescale = [(1.0, -1024.0 + 2 * n) for n in range(len(voxels))]
    for file, pair in zip(write_slices(tmp_path, lps_stack(voxels), rescale=rescale), rescale, strict=True):
        compress(file, compressor, pair)
        assert pydicom.dcmread(file).file_meta.TransferSyntaxUID.is_compressed
    np.testing.assert_array_equal(read_volume(tmp_path).voxels, voxels)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless])
def test_other_transfer_syntaxes(tmp_path, voxels, syntax):
    for file in write_slices(tmp_path, lps_stack(voxels)):
        header = pydicom.dcmread(file)
        if syntax == RLELossless:
            header.compress(RLELossless, generate_instance_uid=False)
        header.file_meta.TransferSyntaxUID = syntax
        header.save_as(file, enforce_file_format=True, implicit_vr=syntax == ImplicitVRLittleEndian)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.voxels, voxels)
    assert volume.provenance["transfer_syntax"] == syntax.name


@pytest.mark.parametrize("same", [True, False])
def test_enhanced_and_compressed(tmp_path, same):
    """SimpleITK applies one rescale to all frames: right when there is one, refused when there are more."""
    voxels = chest((6, 24, 28))
    files = write_slices(tmp_path / "single", lps_stack(voxels))
    for file in files:
        compress(file, "JPEG2000", (1.0, -1024.0))
    first = pydicom.dcmread(files[0])
    frames = [next(generate_frames(pydicom.dcmread(f).PixelData, number_of_frames=1)) for f in files]
    rescale = [(1.0, -1024.0)] * 5 + [(1.0, -1024.0 if same else -1000.0)]
    path = write_enhanced(tmp_path / "a.dcm", lps_stack(voxels), rescale, range(6))
    header = pydicom.dcmread(path)
    header.file_meta.TransferSyntaxUID = first.file_meta.TransferSyntaxUID
    header.PixelData = encapsulate(frames)
    header["PixelData"].VR = "OB"
    header["PixelData"].is_undefined_length = True
    header.save_as(path, enforce_file_format=True)
    if same:
        np.testing.assert_array_equal(read_volume(path).voxels, voxels)
    else:
        assert rejected(path).code == "unsupported-rescale"


@pytest.mark.parametrize("keep", [0.2, 0.6, 0.98])
@pytest.mark.parametrize("compressor", [None, "JPEG2000"])
@pytest.mark.parametrize("which", [0, 7])
def test_truncated_slice(tmp_path, voxels, keep, compressor, which):
    files = write_slices(tmp_path, lps_stack(voxels))
    if compressor:
        compress(files[which], compressor, (1.0, -1024.0))
    content = files[which].read_bytes()
    files[which].write_bytes(content[: int(keep * len(content))])
    assert rejected(tmp_path).code == "damaged-dicom"


def test_single_slice(tmp_path, voxels):
    files = write_slices(tmp_path, lps_stack(voxels))
    assert rejected(files[0]).code == "single-slice"
    same = write_slices(tmp_path / "same", voxels[[3, 3]], positions=positions([0, 0]))
    assert rejected(same[0].parent).code == "single-slice"


def test_no_positions_or_no_pixel_spacing(tmp_path, voxels):
    write_slices(tmp_path / "a", lps_stack(voxels), ImagePositionPatient=None)
    assert rejected(tmp_path / "a").code == "no-positions"
    write_slices(tmp_path / "b", lps_stack(voxels), PixelSpacing=None)
    assert rejected(tmp_path / "b").code == "zero-spacing"
    write_slices(tmp_path / "c", lps_stack(voxels), PixelSpacing=[0, 0])
    assert rejected(tmp_path / "c").code == "zero-spacing"


def test_other_files_beside_the_series(tmp_path, voxels):
    write_slices(tmp_path, lps_stack(voxels))
    (tmp_path / "notes.txt").write_text("JANE DOE")
    (tmp_path / "empty").write_bytes(b"")
    report = dicom_header("1.2.840.10008.5.1.4.1.1.88.11")  # a structured report
    report.Modality = "SR"
    report.save_as(tmp_path / "report.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_volume(tmp_path).voxels, voxels)


def test_folder_without_dicom(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    assert rejected(tmp_path).code == "no-dicom-images"
    assert rejected(tmp_path / "notes.txt").code == "unsupported-format"


def test_color_and_inverted(tmp_path, voxels):
    write_slices(tmp_path / "a", lps_stack(voxels), SamplesPerPixel=3, PhotometricInterpretation="RGB")
    assert rejected(tmp_path / "a").code == "color"
    write_slices(tmp_path / "b", lps_stack(voxels), PhotometricInterpretation="MONOCHROME1")
    assert rejected(tmp_path / "b").code == "inverted"


def test_modality_of_the_header(tmp_path, voxels):
    write_slices(tmp_path, lps_stack(voxels), Modality="MR")
    assert rejected(tmp_path).code == "wrong-modality"
    assert read_volume(tmp_path, modality="MR").provenance["modality"] == "MR"
    for file in tmp_path.iterdir():
        rewrite(file, Modality="DOE^JANE"[:7])
    assert "DOE" not in str(rejected(tmp_path))


@pytest.mark.parametrize(("padding", "stored"), [(-2000, -2000), (63536, -2000), (32767, 32767)])
def test_padding_value_of_the_header(tmp_path, voxels, padding, stored):
    """Declared padding becomes air, also where it is written unsigned (63536 is -2000)."""
    values = voxels.astype(int)
    outside = np.zeros(voxels.shape, bool)
    outside[:, :3] = True
    values[outside] = stored
    write_slices(tmp_path, lps_stack(values), rescale=(1.0, 0.0))
    for file in tmp_path.iterdir():
        header = pydicom.dcmread(file)
        header.add_new("PixelPaddingValue", "SS" if padding < 0 else "US", padding)
        header.save_as(file, enforce_file_format=True)
    volume = read_volume(tmp_path)
    assert (volume.voxels[outside] == -1024).all()
    np.testing.assert_array_equal(volume.voxels[~outside], voxels[~outside])
    assert any(note.startswith("padding:") for note in volume.notes)
