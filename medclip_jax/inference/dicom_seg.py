"""Labels of a scan as a DICOM segmentation object (SEG), by highdicom: the extra `seg`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from medclip_jax.volumes.grid import Grid, transfer_labels

_LPS = np.diag([-1.0, -1.0, 1.0])
"""DICOM's world is LPS, ours RAS."""

SCHEME = "99MEDCLIP"
"""Coding scheme of classes that have no code of SNOMED CT here; its values are their names."""

_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
"""Attributes that DICOM wants in every object, with a value or without (type 2)."""


def write_dicom_seg(
    path: Path,
    labels: UInt8[np.ndarray, "D H W"],
    grid: Grid,
    classes: Sequence[str],
    files: Sequence[str | os.PathLike],
) -> None:
    """Write labels as a binary SEG object, one segment a class that was found.

    Each slice of the series is looked up at its own place, so that the order of the files, and slices that
    the model did not see, make no difference.

    Args:
        path: of the file.
        labels: classes of voxels, 0 the background.
        grid: where they lie.
        classes: names of the classes 1, 2, ...
        files: the slices of the series, one a file.

    Raises:
        ImportError: highdicom is not installed; the message says what to do.
        ValueError: no class on any slice, or files that are no slices of one series.
    """
    try:
        import highdicom
    except ImportError as error:
        raise ImportError(
            'DICOM segmentations are written by highdicom: pip install "medclip-jax[seg]"'
        ) from error
    from pydicom.uid import generate_uid

    slices = _read(files)
    planes = [_on_slice(labels, grid, one) for one in slices]
    found = [value for value in range(1, len(classes) + 1) if any((plane == value).any() for plane in planes)]
    if not found:
        raise ValueError("the model found none of its classes in this scan: there is nothing to write")
    # Segments are numbered without gaps.
    numbers = np.zeros(256, np.uint8)
    numbers[found] = np.arange(1, len(found) + 1)
    version = _version()
    segmentation = highdicom.seg.Segmentation(
        source_images=slices,
        pixel_array=numbers[np.stack(planes)],
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _description(highdicom, number, classes[value - 1], version)
            for number, value in enumerate(found, 1)
        ],
        series_instance_uid=generate_uid(),
        series_number=1000,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="medclip_jax",
        manufacturer_model_name="medclip segment",
        software_versions=version,
        device_serial_number="0",
        content_label="SEGMENTATION",
        series_description="Segmentation by a model; not for diagnosis",
    )
    segmentation.save_as(path)


def _read(files: Sequence[str | os.PathLike]) -> list[Any]:
    """The slices, in the order of their places.

    Raises:
        ValueError: they are no slices of one series.
    """
    from pydicom import dcmread
    from pydicom.uid import CTImageStorage

    slices = [dcmread(file) for file in files]
    if not slices or any("ImagePositionPatient" not in one or "NumberOfFrames" in one for one in slices):
        raise ValueError("a DICOM segmentation belongs to a series of slices, one a file: give these files")
    if len({one.SeriesInstanceUID for one in slices}) > 1:
        raise ValueError("the files are of several series: give those of the one that was segmented")
    if any("FrameOfReferenceUID" not in one for one in slices):
        raise ValueError(
            "the slices name no frame of reference (FrameOfReferenceUID), to which a segmentation refers: "
            "write one that all slices of the series share"
        )
    for one in slices:
        if not one.get("SOPClassUID"):  # emptied in some archives; the file's own header mostly has it
            one.SOPClassUID = one.file_meta.get("MediaStorageSOPClassUID") or CTImageStorage
        if not one.get("SOPInstanceUID"):
            raise ValueError("the slices have no SOPInstanceUID, by which a segmentation refers to them")
        for name in _MAY_BE_EMPTY:
            if name not in one:  # stripped from many archives, and highdicom copies them
                setattr(one, name, "")
    normal = np.cross(*np.reshape(slices[0].ImageOrientationPatient, (2, 3)).astype(float))
    return sorted(slices, key=lambda one: float(np.dot(normal, np.array(one.ImagePositionPatient, float))))


def _on_slice(labels: UInt8[np.ndarray, "D H W"], grid: Grid, one: Any) -> UInt8[np.ndarray, "rows columns"]:
    target = Grid((int(one.Rows), int(one.Columns), 1), slice_affine(one))
    return transfer_labels(labels, grid, target)[..., 0]


def slice_affine(one: Any) -> Float[np.ndarray, "4 4"]:
    """From (row, column, 0) of a slice to RAS mm, by its header."""
    along_row, along_column = np.reshape(one.ImageOrientationPatient, (2, 3)).astype(float)
    affine = np.eye(4)
    # The first number of the pixel spacing is the distance of rows, which lie along a column.
    affine[:3, 0] = _LPS @ along_column * float(one.PixelSpacing[0])
    affine[:3, 1] = _LPS @ along_row * float(one.PixelSpacing[1])
    affine[:3, 2] = _LPS @ np.cross(along_row, along_column)
    affine[:3, 3] = _LPS @ np.array(one.ImagePositionPatient, float)
    return affine


def _description(highdicom: Any, number: int, name: str, version: str) -> Any:
    from pydicom.sr.codedict import codes

    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=property_type(name),
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="medclip_jax", version=version, family=codes.DCM.ArtificialIntelligence
        ),
    )


def property_type(name: str) -> Any:
    """Code of a class: SNOMED CT's where pydicom's dictionary has one of that name, else a private one.

    Args:
        name: such as "liver" or "kidney_left".
    """
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes

    words = name.split("_")
    for order in (words, [words[-1], *words[:-1]]):
        known = getattr(codes.SCT, "".join(word.capitalize() for word in order), None)
        if known is not None:
            return known
    return CodedConcept(name.upper(), SCHEME, name.replace("_", " ")[:64])


def _version() -> str:
    from medclip_jax import __version__

    return __version__
