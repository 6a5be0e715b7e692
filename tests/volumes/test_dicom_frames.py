"""DICOM series of slices with phases: in order whatever the files' order, and refused where that is open."""

from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import MRImageStorage

from medclip_jax.volumes import VolumeRejected
from medclip_jax.volumes.frames import read_frames
from tests.made_frames import SHORT_AXIS, beating
from tests.volumes.made_scans import SECRETS, dicom_header

SLICES, PHASES = 4, 6


def write_cine(folder: Path, pictures: np.ndarray, change=lambda header, place, phase: True) -> Path:
    """Write (slices, phases, rows, columns), the files in no order; `change` may leave some out."""
    folder.mkdir()
    right, down, through = SHORT_AXIS
    order = np.random.default_rng(3).permutation(len(pictures) * pictures.shape[1])
    for name, number in enumerate(order):
        place, phase = divmod(int(number), pictures.shape[1])
        header = dicom_header(MRImageStorage)
        header.Modality, header.ImageType = "MR", ["ORIGINAL", "PRIMARY", "M"]
        header.InstanceNumber = int(number) + 1
        header.TriggerTime = 33.5 * phase + place / 10
        header.ImageOrientationPatient = [*right, *down]
        header.ImagePositionPatient = list(np.array([-80.0, -60, 40]) + 9.0 * place * through)
        header.PixelSpacing, header.SliceThickness = [1.5, 1.25], 7.0
        header.Rows, header.Columns = pictures.shape[2:]
        header.PixelData = pictures[place, phase].astype("<i2").tobytes()
        if change(header, place, phase):
            header.save_as(folder / f"DOE_{name:03d}", enforce_file_format=True)
    return folder


@pytest.fixture
def pictures() -> np.ndarray:
    return beating(SLICES, PHASES, 24)[:, :, :, :20]


def test_phases_are_in_the_order_of_their_trigger_times(tmp_path, pictures):
    frames = read_frames(write_cine(tmp_path / "cine", pictures))
    np.testing.assert_array_equal(frames.voxels, pictures)
    assert frames.spacing == pytest.approx((9.0, 1.5, 1.25))
    assert frames.notes == ()
    assert frames.provenance["format"] == "dicom"
    assert not any(secret in f"{frames.provenance}{frames.notes}" for secret in SECRETS)


def test_other_elements_order_phases_where_there_are_no_trigger_times(tmp_path, pictures):
    def by_position(header, place, phase):
        del header.TriggerTime
        header.TemporalPositionIdentifier = phase + 1
        header.InstanceNumber = 1
        return True

    assert read_frames(write_cine(tmp_path / "index", pictures, by_position)).notes == ()

    def by_number(header, place, phase):
        del header.TriggerTime
        return True

    frames = read_frames(write_cine(tmp_path / "number", pictures, by_number))
    np.testing.assert_array_equal(frames.voxels, pictures)
    assert frames.notes == ("trigger-times-missing",)

    def not_at_all(header, place, phase):
        del header.TriggerTime, header.InstanceNumber
        return True

    with pytest.raises(VolumeRejected) as caught:
        read_frames(write_cine(tmp_path / "none", pictures, not_at_all))
    assert caught.value.code == "phases-without-order"


def test_series_of_a_slice_each_are_one_stack(tmp_path, pictures):
    def own_series(header, place, phase):
        header.SeriesInstanceUID = f"1.2.3.4.{place + 10}"
        header.SeriesNumber = place + 10
        return True

    folder = write_cine(tmp_path / "cine", pictures, own_series)
    np.testing.assert_array_equal(read_frames(folder).voxels, pictures)
    np.testing.assert_array_equal(read_frames(folder, series="12").voxels, pictures[2:3])


def test_one_slice_with_fewer_phases_is_left_out(tmp_path, pictures):
    folder = write_cine(tmp_path / "cine", pictures, lambda header, place, phase: (place, phase) != (1, 4))
    frames = read_frames(folder)
    np.testing.assert_array_equal(frames.voxels, pictures[[0, 2, 3]])
    assert frames.notes == ("slices-with-other-phases:1", "uneven-slices")


def test_a_copy_is_dropped(tmp_path, pictures):
    folder = write_cine(tmp_path / "cine", pictures)
    (folder / "copy").write_bytes(next(folder.iterdir()).read_bytes())
    frames = read_frames(folder)
    np.testing.assert_array_equal(frames.voxels, pictures)
    assert frames.notes == ("duplicate-slices:1",)


def test_a_picture_of_another_size_is_left_out_with_its_slice(tmp_path, pictures):
    def smaller(header, place, phase):
        if (place, phase) == (3, 0):
            header.Rows = 12
            header.PixelData = header.PixelData[: len(header.PixelData) // 2]
        return True

    frames = read_frames(write_cine(tmp_path / "cine", pictures, smaller))
    np.testing.assert_array_equal(frames.voxels, pictures[:3])
    assert frames.notes == ("frames-left-out:1", "slices-with-other-phases:1")


def two_times(header, place, phase):
    header.TriggerTime = 10.0 * (phase // 2)
    return True


def half(header, place, phase):
    return phase < PHASES // 2 or place % 2


def turned(header, place, phase):
    if place % 2:
        header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    return True


def with_phase_images(header, place, phase):
    if phase % 2:
        header.ImageType = ["ORIGINAL", "PRIMARY", "P"]
        header.TriggerTime -= 33.5
    return True


def truncated(header, place, phase):
    if (place, phase) == (2, 2):
        header.PixelData = header.PixelData[:100]
    return True


def two_patients(header, place, phase):
    header.PatientID = f"P{place % 2}"
    return True


def lost_positions(header, place, phase):
    header.ImagePositionPatient = [0, 0, 0]
    return True


def of_ct(header, place, phase):
    header.Modality = "CT"
    return True


@pytest.mark.parametrize(
    ("change", "code", "fix"),
    [
        (two_times, "same-place-and-time", "series_uid"),
        (half, "uneven-phases", "2 with 3, 2 with 6"),
        (turned, "deviating-slices", "12 of 24 pictures"),
        (with_phase_images, "several-reconstructions", "ImageType differs"),
        (truncated, "damaged-dicom", "copy the series again"),
        (two_patients, "several-patients", "one folder each"),
        (lost_positions, "no-positions", "Export the series again"),
        (of_ct, "wrong-modality", "The header says CT"),
    ],
)
def test_what_cannot_be_a_series(tmp_path, pictures, change, code, fix):
    with pytest.raises(VolumeRejected, match=fix) as caught:
        read_frames(write_cine(tmp_path / "cine", pictures, change))
    assert caught.value.code == code


def test_a_folder_without_pictures_says_what_it_holds(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(VolumeRejected) as caught:
        read_frames(tmp_path)
    assert caught.value.code == "no-dicom-images"


def test_an_enhanced_file_of_slices_and_phases(tmp_path, pictures):
    from pydicom.dataset import Dataset
    from pydicom.uid import EnhancedMRImageStorage

    header = dicom_header(EnhancedMRImageStorage)
    header.Modality, header.ImageType = "MR", ["ORIGINAL", "PRIMARY", "CARDIAC", "NONE"]
    header.Rows, header.Columns = pictures.shape[2:]
    header.NumberOfFrames = SLICES * PHASES
    right, down, through = SHORT_AXIS
    frames, pixels = [], []
    for number in np.random.default_rng(1).permutation(SLICES * PHASES):
        place, phase = divmod(int(number), PHASES)
        frame, position, orientation, measures, timing = (Dataset() for _ in range(5))
        position.ImagePositionPatient = list(9.0 * place * through)
        orientation.ImageOrientationPatient = [*right, *down]
        measures.PixelSpacing, measures.SliceThickness = [1.5, 1.25], 7.0
        timing.NominalCardiacTriggerDelayTime = 30.0 * phase
        frame.PlanePositionSequence, frame.PlaneOrientationSequence = [position], [orientation]
        frame.PixelMeasuresSequence, frame.CardiacSynchronizationSequence = [measures], [timing]
        frames.append(frame)
        pixels.append(pictures[place, phase].astype("<i2"))
    header.SharedFunctionalGroupsSequence = [Dataset()]
    header.PerFrameFunctionalGroupsSequence = frames
    header.PixelData = np.stack(pixels).tobytes()
    header.save_as(tmp_path / "enhanced.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_frames(tmp_path / "enhanced.dcm").voxels, pictures)
