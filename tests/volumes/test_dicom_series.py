"""Which slices make a scan: other objects beside it, headers that jitter, mixtures, and the true reasons."""

import zlib

import numpy as np
import pydicom
import pytest
from made_scans import SPACING, chest, dicom_header, lps_stack, write_enhanced, write_slices
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medclip_jax.volumes import VolumeRejected, dicom, read_volume
from medclip_jax.volumes.dicom_choice import kernel_class

SHAPE = (12, 20, 22)
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
RT_DOSE = "1.2.840.10008.5.1.4.1.1.481.2"
ULTRASOUND = "1.2.840.10008.5.1.4.1.1.6.1"
X_RAY = "1.2.840.10008.5.1.4.1.1.1"
REPORT = "1.2.840.10008.5.1.4.1.1.88.11"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
PET = "1.2.840.10008.5.1.4.1.1.128"
MR = "1.2.840.10008.5.1.4.1.1.4"


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    return chest(SHAPE)


def write(folder, voxels, edit=None, **options):
    """A series whose slices are changed by `edit(header, n)`, n counted from below; False leaves one out."""
    options.setdefault("SeriesInstanceUID", "1.2.3.4.5")
    files = write_slices(folder, lps_stack(voxels), **options)
    for n, file in enumerate(files):
        if edit is not None:
            header = pydicom.dcmread(file)
            if edit(header, n) is False:
                file.unlink()
            else:
                header.save_as(file)
    return folder


def put(**tags):
    """An edit that sets elements of every slice: to a value, or to what a function gives for its place."""

    def edit(header, n):
        for name, value in tags.items():
            setattr(header, name, value(n) if callable(value) else value)

    return edit


def rejected(path, **arguments) -> VolumeRejected:
    with pytest.raises(VolumeRejected) as caught:
        read_volume(path, **arguments)
    return caught.value


def assert_read(path, expected, *notes, **arguments):
    volume = read_volume(path, **arguments)
    np.testing.assert_array_equal(volume.voxels, expected)
    assert volume.notes == notes
    return volume


def write_object(path, kind, modality, *, shape=(16, 16), colors=1, photometric="MONOCHROME2", **tags):
    """An object that is no slice: an image without place, or none at all where there is no shape."""
    header = dicom_header(kind)
    header.Modality, header.SeriesInstanceUID = modality, "1.2.99"
    header.ImageType = ["DERIVED", "SECONDARY"]
    if shape:
        header.Rows, header.Columns = shape
        header.SamplesPerPixel, header.PhotometricInterpretation = colors, photometric
        header.PixelData = bytes(2 * shape[0] * shape[1] * colors)
    for name, value in tags.items():
        setattr(header, name, value)
    header.save_as(path, enforce_file_format=True)


class TestOtherObjects:
    @pytest.mark.parametrize(
        "options",
        [
            {"kind": CAPTURE, "modality": "CT"},
            {"kind": CAPTURE, "modality": "CT", "photometric": "MONOCHROME1"},
            {"kind": CAPTURE, "modality": "OT", "colors": 3, "photometric": "RGB"},
            {"kind": CAPTURE, "modality": "CT", "SeriesInstanceUID": "1.2.3.4.5"},
            {"kind": "1.2.840.10008.5.1.4.1.1.2", "modality": "CT", "SeriesInstanceUID": "1.2.3.4.5"},
            {"kind": "1.2.840.10008.5.1.4.1.1.2", "modality": "CT", "colors": 3, "photometric": "RGB"},
            {"kind": RT_DOSE, "modality": "RTDOSE", "ImagePositionPatient": [0, 0, 0], "NumberOfFrames": 1},
            {"kind": ULTRASOUND, "modality": "US", "photometric": "PALETTE COLOR"},
            {"kind": X_RAY, "modality": "CR", "photometric": "MONOCHROME1"},
            {"kind": SEGMENTATION, "modality": "SEG"},
            {"kind": REPORT, "modality": "SR", "shape": None},
        ],
    )
    def test_beside_a_scan(self, tmp_path, voxels, options):
        write(tmp_path, voxels)
        write_object(tmp_path / "other", **options)
        assert_read(tmp_path, voxels, "other-objects:1")

    def test_a_slice_of_the_scan_itself_is_no_other_object(self, tmp_path, voxels):
        def lose(header, n):
            if n == len(voxels) - 1:
                del header.ImagePositionPatient

        error = rejected(write(tmp_path, voxels, lose))
        assert error.code == "no-positions"
        assert "1 of 12 files" in str(error)

    def test_pet_with_more_slices_does_not_hide_the_ct(self, tmp_path, voxels):
        write(tmp_path / "ct", voxels)
        pet = put(SOPClassUID=PET, Modality="PT", SeriesInstanceUID="1.2.7")
        write(tmp_path / "pet", np.abs(chest((30, 20, 22))), pet, rescale=(2.5, 0.0))
        assert_read(tmp_path, voxels, "several-series:2")

    def test_a_ct_that_cannot_be_read_beside_pet(self, tmp_path, voxels):
        write(tmp_path / "ct", voxels, put(PhotometricInterpretation="MONOCHROME1"))
        pet = put(SOPClassUID=PET, Modality="PT", SeriesInstanceUID="1.2.7")
        write(tmp_path / "pet", np.abs(voxels), pet, rescale=(2.5, 0.0))
        assert rejected(tmp_path).code == "inverted"

    def test_nothing_but_other_objects(self, tmp_path):
        write_object(tmp_path / "a", REPORT, "SR", shape=None)
        write_object(tmp_path / "b", ULTRASOUND, "US")
        assert "(1 SR, 1 US)" in str(rejected(tmp_path))


class TestOneGrid:
    """Tolerances in mm: what headers jitter by does not cut a series."""

    @pytest.mark.parametrize("name", ["orientation", "spacing", "position"])
    def test_jitter(self, tmp_path, voxels, name):
        def jitter(header, n):
            if name == "orientation":
                lean = 0.005 + (-1) ** n * 1e-6
                header.ImageOrientationPatient = [0.9999875, lean, 0, -lean, 0.9999875, 0]
            elif name == "spacing":
                header.PixelSpacing = [2.0 + 1e-7 * (n > 5), 1.5]
            else:
                shift = 0.01 * (n % 3)
                header.ImagePositionPatient = [-30 + shift, -40 - shift, 100 + 3 * n + shift]

        volume = read_volume(write(tmp_path, voxels, jitter))
        np.testing.assert_array_equal(volume.voxels, voxels)
        np.testing.assert_allclose(volume.spacing, SPACING, rtol=1e-3)

    @pytest.mark.parametrize("groups", [(range(0, 4), range(4, 12)), (range(0, 12, 2), range(1, 12, 2))])
    def test_a_series_in_several_enhanced_files(self, tmp_path, voxels, groups):
        for n, frames in enumerate(groups):
            rescale = [(1.0, -1024.0 - n) for n in range(len(voxels))]
            write_enhanced(tmp_path / f"{n}.dcm", lps_stack(voxels), rescale, frames)
        assert_read(tmp_path, voxels)

    def test_one_frame_in_each_file(self, tmp_path, voxels):
        for n in range(len(voxels)):
            write_enhanced(tmp_path / f"{n}", lps_stack(voxels), [(1.0, -1024.0)] * len(voxels), [n])
        assert_read(tmp_path, voxels)

    def test_a_deviating_slice_at_an_end_is_noted(self, tmp_path, voxels):
        last = len(voxels) - 1
        write(tmp_path, voxels, put(PixelSpacing=lambda n: [2.0, 1.5] if n < last else [2.2, 1.5]))
        assert_read(tmp_path, voxels[:last], "slices-left-out:1")

    @pytest.mark.parametrize("deviating", [{5}, set(range(6, 12))])
    def test_deviating_slices_that_leave_a_hole_or_are_many(self, tmp_path, voxels, deviating):
        edit = put(PixelSpacing=lambda n: [2.2 if n in deviating else 2.0, 1.5])
        error = rejected(write(tmp_path, voxels, edit))
        assert error.code == "deviating-slices"
        assert f"{len(deviating)} of 12" in str(error)


class TestMixtures:
    def test_kernels_in_turn_on_an_even_grid(self, tmp_path, voxels):
        write(tmp_path, voxels, put(ConvolutionKernel=lambda n: "B30f" if n % 2 else "B70f"))
        volume = assert_read(tmp_path, voxels[1::2], "several-series:2")
        assert volume.spacing[0] == pytest.approx(6.0)
        assert volume.provenance["kernel"] == "soft"

    @pytest.mark.parametrize(
        ("name", "values"),
        [("AcquisitionNumber", (1, 2)), ("TemporalPositionIdentifier", (1, 2)), ("TriggerTime", (100, 500))],
    )
    def test_phases_at_the_same_positions(self, tmp_path, voxels, name, values):
        for n, value in enumerate(values):
            write(tmp_path, voxels + 40 * n, put(**{name: value}), prefix=f"p{n}")
        error = rejected(tmp_path)
        assert error.code == "several-phases"
        assert name in str(error)

    def test_passes_in_turn_on_an_even_grid(self, tmp_path, voxels):
        write(tmp_path, voxels, put(AcquisitionNumber=lambda n: n % 2))
        assert rejected(tmp_path).code == "several-phases"

    @pytest.mark.parametrize("count", [lambda n: n // 4, lambda n: n])
    def test_table_positions_of_a_sequential_scan_are_one(self, tmp_path, voxels, count):
        assert_read(write(tmp_path, voxels, put(AcquisitionNumber=count)), voxels)

    def test_kernels_in_blocks_are_noted(self, tmp_path, voxels):
        write(tmp_path, voxels, put(ConvolutionKernel=lambda n: "B30f" if n < 6 else "B70f"))
        assert_read(tmp_path, voxels, "mixed-kernels")

    def test_remarks_of_makers_in_the_image_type_cut_nothing(self, tmp_path, voxels):
        remark = lambda n: ["ORIGINAL", "PRIMARY", "AXIAL", *["CT_SOM5 SPI"] * (n % 2)]  # noqa: E731
        assert_read(write(tmp_path, voxels, put(ImageType=remark)), voxels)

    def test_bolus_tracking_within_the_series(self, tmp_path, voxels):
        write(tmp_path, voxels, put(AcquisitionNumber=1))
        track = put(AcquisitionNumber=lambda n: 2 + n, ImagePositionPatient=[-30, -40, 103])
        write(tmp_path, voxels[:3] + 50, track, prefix="track")
        assert_read(tmp_path, voxels, "slices-left-out:3")

    @pytest.mark.parametrize("rule", ["best", "largest"])
    def test_a_time_series_and_bolus_tracking_stand_behind_the_scan(self, tmp_path, voxels, rule):
        write(tmp_path / "scan", voxels, put(ConvolutionKernel="B70f"))
        for n in range(3):
            edit = put(ConvolutionKernel="B30f", TemporalPositionIdentifier=n, SeriesInstanceUID="1.2.8")
            write(tmp_path / "time", chest((20, 20, 22), n), edit, prefix=f"t{n}")
        track = put(ImagePositionPatient=[-30, -40, 103], SeriesInstanceUID="1.2.9")
        write(tmp_path / "track", chest((30, 20, 22)), track)
        assert_read(tmp_path, voxels, "several-series:5", rule=rule)

    def test_echoes(self, tmp_path, voxels):
        bright = np.abs(voxels)
        for n in (1, 2):
            edit = put(SOPClassUID=MR, Modality="MR", EchoNumbers=n)
            write(tmp_path, bright + n, edit, prefix=f"e{n}", rescale=(1.0, 0.0))
        assert_read(tmp_path, bright + 1, "several-series:2", modality="MR")

    @pytest.mark.parametrize("names", [("RescaleSlope", "RescaleIntercept"), ("RescaleIntercept",)])
    def test_a_slice_without_its_rescale(self, tmp_path, voxels, names):
        def lose(header, n):
            for name in names if n == 7 else ():
                del header[name]

        error = rejected(write(tmp_path, voxels, lose))
        assert error.code == "mixed-rescale"
        assert "1 of 12" in str(error)

    def test_a_map_of_another_quantity(self, tmp_path, voxels):
        write(tmp_path, voxels)
        write(tmp_path / "z", voxels + 1, put(RescaleType="Z_EFF", SeriesInstanceUID="1.2.8"))
        assert_read(tmp_path, voxels, "other-objects:12")
        assert rejected(tmp_path / "z").code == "not-hounsfield"


class TestChoice:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        """A thin noisy lung series, a soft one, a thick one, a projection."""
        folder = tmp_path_factory.mktemp("study")
        for number, (shape, gap, kernel, kind) in enumerate(
            [
                ((24, 20, 22), 1.5, "B70f", "AXIAL"),
                ((12, 20, 22), 3.0, "B30f", "AXIAL"),
                ((7, 20, 22), 6.0, "B30f", "AXIAL"),
                ((30, 20, 22), 1.2, "B30f", "MIP"),
            ],
            start=1,
        ):
            edit = put(
                ConvolutionKernel=kernel,
                SeriesNumber=number,
                ImageType=["ORIGINAL", "PRIMARY", kind],
                ImagePositionPatient=lambda n, gap=gap: [-30.0, -40.0, 100 + gap * n],
            )
            write(folder / str(number), chest(shape), edit, SeriesInstanceUID=f"1.2.3.{number}")
        return folder

    @pytest.mark.parametrize(
        ("options", "slices"),
        [
            ({}, 12),
            ({"rule": "largest"}, 24),
            ({"rule": "thinnest"}, 24),
            ({"rule": "original"}, 24),
            ({"kernel": "sharp"}, 24),
            ({"kernel": "b7*"}, 24),
            ({"kernel": "B30f"}, 12),
            ({"series": "1.2.3.3"}, 7),
            ({"series": "3"}, 7),
            ({"series": "3.0"}, 7),
            ({"series": "4"}, 30),
        ],
    )
    def test_one_of_several(self, folder, options, slices):
        assert len(read_volume(folder, **options).voxels) == slices

    def test_of_a_named_series_alone_the_headers_are_read(self, tmp_path, voxels, monkeypatch):
        """And the notes say nothing about what lies beside it."""
        for n in range(3):
            write(tmp_path, voxels + n, prefix=f"s{n}", SeriesInstanceUID=f"1.2.{n}")
        write_object(tmp_path / "report", REPORT, "SR", shape=None)
        opened = []
        before = dicom.read_file
        monkeypatch.setattr(dicom, "read_file", lambda path: opened.append(path.name[:2]) or before(path))
        for n in (1, 2):
            assert_read(tmp_path, voxels + n, series=f"1.2.{n}")
        assert opened == ["s1"] * 12 + ["s2"] * 12
        write(tmp_path, voxels + 3, prefix="s3", SeriesInstanceUID="1.2.3")
        assert_read(tmp_path, voxels + 3, series="1.2.3")

    def test_a_damaged_file_beside_a_named_series(self, tmp_path, voxels):
        write(tmp_path, voxels)
        (tmp_path / "cut").write_bytes(next(tmp_path.iterdir()).read_bytes()[:160])
        assert rejected(tmp_path).code == "damaged-dicom"
        assert_read(tmp_path, voxels, "damaged-files:1", series="1.2.3.4.5")

    def test_what_is_not_there(self, folder):
        assert rejected(folder, series="77").code == "no-such-series"
        assert rejected(folder, kernel="FC13").code == "no-such-kernel"
        with pytest.raises(ValueError, match="rule must be one of best"):
            read_volume(folder, rule="first")

    @pytest.mark.parametrize("name", ["PatientID", "StudyInstanceUID"])
    def test_of_whom_must_be_said(self, tmp_path, voxels, name):
        for n in range(2):
            write(tmp_path, voxels + n, put(**{name: f"1.{n}"}), prefix=f"p{n}", SeriesInstanceUID=f"1.2.{n}")
        code = {"PatientID": "several-patients", "StudyInstanceUID": "several-studies"}[name]
        assert rejected(tmp_path).code == code
        assert_read(tmp_path, voxels + 1, series="1.2.1")

    def test_patients_under_one_series_uid(self, tmp_path, voxels):
        error = rejected(write(tmp_path, voxels, put(PatientID=lambda n: "A" if n else "B")))
        assert error.code == "several-patients"

    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("B30f", "soft"),
            ("Br40d\\3", "soft"),
            ("['I31f', '3']", "soft"),
            ("B50f", "medium"),
            ("Bl64", "sharp"),
            ("FC08", "soft"),
            ("FC52", "sharp"),
            ("STANDARD", "soft"),
            ("BONEPLUS", "sharp"),
            ("B", "soft"),
            ("YC", "medium"),
            ("something new", None),
            ("", None),
        ],
    )
    def test_kernels_by_name(self, name, kind):
        assert kernel_class(name) == kind


class TestTrueReasons:
    def test_a_gap_that_changes_on_purpose(self, tmp_path, voxels):
        place = lambda n: [-30, -40, 2.5 * n if n < 6 else 15 + 5.0 * (n - 6)]  # noqa: E731
        error = rejected(write(tmp_path, voxels, put(ImagePositionPatient=place)))
        assert error.code == "uneven-gaps"
        assert "from 2.5 to 5 mm" in str(error)

    @pytest.mark.parametrize("numbers", [True, False])
    def test_slices_that_are_missing(self, tmp_path, voxels, numbers):
        def lose(header, n):
            if not numbers:
                header.InstanceNumber = None
            return n not in (4, 7, 8)

        error = rejected(write(tmp_path, voxels, lose))
        assert error.code == "missing-slices"
        assert "3 slices" in str(error)

    def test_a_series_uid_for_each_slice(self, tmp_path, voxels):
        write(tmp_path, voxels, put(SeriesInstanceUID=lambda n: f"1.2.3.{n}", SeriesNumber=4))
        error = rejected(tmp_path)
        assert error.code == "series-uid-per-slice"
        assert "12 slices" in str(error)
        assert_read(tmp_path, voxels, series="4")

    def test_a_position_that_is_no_number(self, tmp_path, voxels):
        place = lambda n: [-30, -40, 3 * n if n != 4 else "NaN"]  # noqa: E731
        assert rejected(write(tmp_path, voxels, put(ImagePositionPatient=place))).code == "damaged-dicom"

    @pytest.mark.parametrize("place", [[0, 0, 0], [-30, -40, 7]])
    def test_one_position_for_all(self, tmp_path, voxels, place):
        each = {"SliceLocation": lambda n: 3 * n, "AcquisitionNumber": lambda n: n}
        write(tmp_path, voxels, put(ImagePositionPatient=place, **each))
        error = rejected(tmp_path)
        assert error.code == "no-positions"
        assert "SliceLocation" in str(error)

    @pytest.mark.parametrize(
        ("syntax", "text"),
        [
            ("1.2.840.10008.1.2.4.110", "JPEG XL"),
            ("1.2.840.10008.1.2.4.201", "pip install pylibjpeg"),
            ("1.2.840.113619.5.2", "GE"),
            ("1.3.9999.1", "a maker's private"),
        ],
    )
    def test_a_compression_that_is_not_read(self, tmp_path, voxels, syntax, text):
        write(tmp_path, voxels)
        for file in tmp_path.iterdir():
            header = pydicom.dcmread(file)
            # pydicom writes no syntax that it does not list: a name of the same length is put in afterwards.
            listed = "1.2.840.10008.1.2.4.201" if syntax.startswith("1.2.840.10008.") else syntax
            header.file_meta.TransferSyntaxUID = listed
            header.PixelData = encapsulate([header.PixelData])
            header["PixelData"].VR, header["PixelData"].is_undefined_length = "OB", True
            with file.open("wb") as opened:
                pydicom.dcmwrite(opened, header, implicit_vr=False, little_endian=True)
            file.write_bytes(file.read_bytes().replace(listed.encode(), syntax.encode()))
        error = rejected(tmp_path)
        assert error.code == "unsupported-compression"
        assert text in str(error)
        assert "not damaged" in str(error)

    @pytest.mark.parametrize("implicit", [True, False])
    def test_files_without_meta_header(self, tmp_path, voxels, implicit):
        for file in write(tmp_path, voxels).iterdir():
            content = DicomBytesIO()
            content.is_little_endian, content.is_implicit_VR = True, implicit
            elements = Dataset()
            elements.update(pydicom.dcmread(file))
            write_dataset(content, elements)
            file.write_bytes(content.getvalue())
        (tmp_path / "notes.txt").write_text("no header here " * 20)
        assert_read(tmp_path, voxels)

    @pytest.mark.parametrize(
        ("name", "content", "text"),
        [
            ("a.txt", b"words", "a text"),
            ("words", b"a few words", "a text"),
            ("scan.dcm", b"\x89PNG\r\n", "a picture"),
            ("a.png", b"", "a picture"),
            ("a.mgz", b"\x1f\x8b", "FreeSurfer"),
            ("a.npz", b"PK\x03\x04", "a bare array"),
            ("a.nii.bz2", b"BZh9", "bunzip2"),
            ("a.pkl", b"\x80\x04", "never opened"),
            ("unknown", bytes(600), "no kind that is read"),
        ],
    )
    def test_files_of_other_kinds(self, tmp_path, name, content, text):
        (tmp_path / name).write_bytes(content + b" ")
        error = rejected(tmp_path / name)
        assert error.code == "unsupported-format"
        assert text in str(error)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], "no file: check the path"),
        (["a.txt"], "no DICOM file among its 1 files: point to"),
        (["a.nii.gz", "b.nii.gz", "c.txt"], "2 such as *.nii.gz: give the file itself"),
        (["series.zip"], "unpack the archive"),
    ],
)
def test_folders_of_other_kinds(tmp_path, names, text):
    for name in names:
        (tmp_path / name).write_bytes(b"words")
    error = rejected(tmp_path)
    assert error.code == "no-dicom-images"
    assert text in str(error)


@pytest.mark.parametrize("place", [5, 11])
def test_a_wrong_intercept_in_one_slice(tmp_path, voxels, place):
    edit = put(RescaleIntercept=lambda n: 0 if n == place else -1024)
    error = rejected(write(tmp_path, voxels, edit))
    assert error.code == "mixed-rescale"
    assert "off their neighbors" in str(error)


def test_examinations_under_one_series_uid(tmp_path, voxels):
    for n in range(2):
        write(tmp_path, voxels + n, put(StudyInstanceUID=f"1.{n}"), prefix=f"p{n}")
    assert rejected(tmp_path).code == "several-studies"


def test_deflated_data_end_where_the_header_says(tmp_path, voxels):
    """A small file must not fill the memory: 48 MB of zeros behind the pixels are not inflated."""
    write(tmp_path, voxels)
    for file in tmp_path.iterdir():
        header = pydicom.dcmread(file)
        header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        header.save_as(file)
    assert_read(tmp_path, voxels)
    content = file.read_bytes()
    start = 144 + pydicom.dcmread(file).file_meta.FileMetaInformationGroupLength
    deflate = zlib.compressobj(1, zlib.DEFLATED, -15)
    parts = [deflate.compress(zlib.decompress(content[start:], -15))]
    parts += [deflate.compress(bytes(1 << 24)) for _ in range(3)]
    file.write_bytes(content[:start] + b"".join(parts) + deflate.flush())
    assert rejected(tmp_path).code == "damaged-dicom"
