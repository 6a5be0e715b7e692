"""Labels of a prepared volume on the grid of the scan that it was made of, as files of all kinds."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medclip_jax.cli.segment import names_of
from medclip_jax.inference.preparation import Preparation
from medclip_jax.inference.scans import Entry
from medclip_jax.inference.segmentation import Segmentation
from medclip_jax.volumes import read_volume
from medclip_jax.volumes.grid import Grid
from tests.volumes.made_scans import RAS, chest, write_nifti, write_slices

CLASSES = ("bone", "lung", "liver")
PREPARATION = Preparation((12, 26, 22), (4.0, 3.0, 2.5))


def segmented(prepared):
    """What a model might tell: bone by its brightness, lungs by their darkness, no liver."""
    voxels = prepared.voxels
    labels = np.where(voxels > 200, 1, np.where((voxels < -600) & (voxels > -950), 2, 0)).astype(np.uint8)
    assert set(np.unique(labels)) == {0, 1, 2}
    return Segmentation(labels, CLASSES, prepared.grid, prepared.source)


def nearest(found, world):
    """Label at a point, RAS mm, by its own formula; 0 outside."""
    index = np.linalg.solve(found.grid.affine, [*world, 1.0])[:3]
    place = np.floor(index + 0.5 + 1e-6).astype(int)
    inside = (place >= 0).all() and (place < found.labels.shape).all()
    return found.labels[tuple(place)] if inside else 0


@pytest.mark.parametrize("flips", [(), (0, 2)])
def test_every_voxel_of_the_scan_has_the_nearest_label(tmp_path, flips):
    voxels, affine = chest(), RAS.copy()
    for axis in flips:  # stored the other way round, the same scan
        voxels = np.flip(voxels, axis)
        affine[:3, 3] += affine[:3, axis] * (voxels.shape[axis] - 1)
        affine[:3, axis] *= -1
    path = write_nifti(tmp_path / "scan.nii.gz", voxels, affine)
    found = segmented(PREPARATION(path))
    found.save(tmp_path / "labels.nii.gz")
    scan, written = nib.load(path), nib.load(tmp_path / "labels.nii.gz")
    assert written.shape == scan.shape
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_allclose(written.affine, scan.affine, atol=1e-5)
    labels = np.asarray(written.dataobj)
    for place in np.random.default_rng(0).integers(0, scan.shape, (400, 3)):
        world = (scan.affine @ [*place, 1.0])[:3]
        assert labels[tuple(place)] == nearest(found, world), place
    values = np.asarray(scan.dataobj)
    assert np.median(values[labels == 1]) > 200
    assert -900 < np.median(values[labels == 2]) < -700
    # The same lines through another format, and another reader.
    found.save(tmp_path / "labels.mha")
    np.testing.assert_array_equal(read_volume(path).voxels.shape, read_labels(tmp_path / "labels.mha").shape)
    np.testing.assert_array_equal(
        read_labels(tmp_path / "labels.mha"), read_labels(tmp_path / "labels.nii.gz")
    )


def read_labels(path):
    from medclip_jax.volumes import read_labels

    return read_labels(path)[0]


def test_outside_of_what_the_model_saw_is_background(tmp_path):
    path = write_nifti(tmp_path / "scan.nii.gz", chest())
    prepared = Preparation((4, 10, 10), (3.0, 2.0, 1.5))(path)
    found = Segmentation(np.full((4, 10, 10), 3, np.uint8), CLASSES, prepared.grid, prepared.source)
    assert (found.on_scan() == 3).sum() == 400
    assert found.milliliters() == {"bone": 0, "lung": 0, "liver": pytest.approx(400 * 9 / 1000)}


def test_a_prepared_array_lies_nowhere(tmp_path):
    found = Segmentation(np.zeros((2, 2, 2), np.uint8), CLASSES)
    for call in (found.on_scan, found.milliliters, lambda: found.save(tmp_path / "a.nii.gz")):
        with pytest.raises(ValueError, match="does not say where it lies"):
            call()
    placed = Segmentation(found.labels, CLASSES, Grid((2, 2, 2), np.eye(4)), Grid((2, 2, 2), np.eye(4)))
    with pytest.raises(ValueError, match="written as"):
        placed.save(tmp_path / "a.png")


def test_names_of_files():
    scans = ("a/scan.nii.gz", "b/scan.nii.gz", "c/ct.nrrd", "series#1234", "..", "x/SCAN.NII.GZ")
    names = list(names_of([Entry(scan, Path(scan)) for scan in scans]))
    assert names == ["scan", "scan-2", "ct", "series_1234", "..", "SCAN"]
    assert len(set(names)) == len(scans)


def test_dicom_segmentation(tmp_path):
    """Read back by highdicom, slice by slice, against the labels on the stack that was read."""
    highdicom = pytest.importorskip("highdicom")
    files = write_slices(tmp_path / "series", chest()[::-1, ::-1], FrameOfReferenceUID="1.2.3.4")
    found = segmented(PREPARATION(tmp_path / "series"))
    found.save_dicom(tmp_path / "out.dcm", files)
    written = highdicom.seg.segread(tmp_path / "out.dcm")
    assert [one.SegmentLabel for one in written.SegmentSequence] == ["bone", "lung"]
    series = nib.Nifti1Image(found.on_scan(), found.source.affine)  # in the order of the stack
    read = 0
    for file in files:
        import pydicom

        header = pydicom.dcmread(file)
        try:
            plane = written.get_pixels_by_source_instance(
                [header.SOPInstanceUID], combine_segments=True, assert_missing_frames_are_empty=True
            )[0]
        except ValueError:
            plane = np.zeros((header.Rows, header.Columns), int)
        for row, column in np.random.default_rng(0).integers(0, plane.shape, (40, 2)):
            x, y, z = map(float, header.ImagePositionPatient)
            world = (-(x + 1.5 * column), -(y + 2.0 * row), z)
            place = np.linalg.solve(series.affine, [*world, 1.0])[:3]
            expected = found.on_scan()[tuple(np.rint(place).astype(int))]
            assert plane[row, column] == expected
            read += expected > 0
    assert read > 20


def test_dicom_segmentation_refusals(tmp_path):
    pytest.importorskip("highdicom")
    files = write_slices(tmp_path / "series", chest(), FrameOfReferenceUID="1.2.3.4")
    found = segmented(PREPARATION(tmp_path / "series"))
    nothing = Segmentation(np.zeros_like(found.labels), CLASSES, found.grid, found.source)
    with pytest.raises(ValueError, match="none of its classes"):
        nothing.save_dicom(tmp_path / "out.dcm", files)
    with pytest.raises(ValueError, match="series of slices"):
        found.save_dicom(tmp_path / "out.dcm", [])
    nowhere = write_slices(tmp_path / "nowhere", chest()[:2])
    with pytest.raises(ValueError, match="no frame of reference"):
        found.save_dicom(tmp_path / "out.dcm", nowhere)
    others = write_slices(tmp_path / "other", chest()[:2], SeriesInstanceUID="1.2.3")
    with pytest.raises(ValueError, match="several series"):
        found.save_dicom(tmp_path / "out.dcm", [*files, *others])


def test_codes_of_classes():
    pytest.importorskip("highdicom")
    from medclip_jax.inference.dicom_seg import SCHEME, property_type

    assert property_type("liver").scheme_designator == "SCT"
    own = property_type("tumor_of_some_kind")
    assert (own.scheme_designator, own.meaning) == (SCHEME, "tumor of some kind")
