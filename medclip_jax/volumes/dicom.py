"""DICOM series: which files belong together, in which order, and whether any is missing.

pydicom reads headers and native or RLE pixels; SimpleITK decodes the JPEG families.
"""

from __future__ import annotations

import logging
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from jaxtyping import Float, Real
from pydicom.uid import UID, UID_dictionary

from medclip_jax.volumes.scan import Scan
from medclip_jax.volumes.volume import VolumeRejected

_TAGS = [
    "SOPClassUID", "ImageType", "Modality", "SeriesInstanceUID", "SliceThickness", "KVP", "SamplesPerPixel",
    "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "PixelSpacing", "BitsAllocated",
    "PixelRepresentation", "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope",
    "RescaleIntercept", "PixelPaddingValue", "PixelPaddingRangeLimit", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]  # fmt: skip
"""All that is ever read of a header. Nothing that names a person, a place or a date is among them."""

_NATIVE = {
    "1.2.840.10008.1.2",  # implicit little endian
    "1.2.840.10008.1.2.1",  # explicit little endian
    "1.2.840.10008.1.2.1.99",  # deflated
    "1.2.840.10008.1.2.2",  # explicit big endian
    "1.2.840.10008.1.2.5",  # RLE
}
_DIRECTORY = "1.2.840.10008.1.3.10"
_SAME_POSITION_MM = 0.01
_PADDING_HU = -32768
"""Stands for declared padding until `fill_padding` counts it and writes air."""

_MODALITIES = ("CT", "MR", "PT", "NM", "US", "CR", "DX", "MG", "XA", "RF", "SEG", "OT", "SC", "RTDOSE")
"""Any other text in the Modality tag is not quoted: it may be anything."""


@dataclass(frozen=True)
class _Slice:
    """One slice: a file of its own, or one frame of a multi-frame file."""

    path: Path
    frame: int | None
    transfer_syntax: str
    modality: str
    localizer: bool
    key: tuple
    position: Float[np.ndarray, " 3"]
    rows: Float[np.ndarray, " 3"]  # direction of growing column index
    columns: Float[np.ndarray, " 3"]  # direction of growing row index
    pixel_spacing: tuple[float, float]
    shape: tuple[int, int]
    slope: float
    intercept: float
    padding: tuple[float, float] | None
    thickness: float | None

    @property
    def normal(self) -> Float[np.ndarray, " 3"]:
        """Unit vector at right angles to the slice, LPS."""
        return np.cross(self.rows, self.columns)


def read_dicom(path: Path) -> Scan:
    """Read the largest axial series of a folder, or a multi-frame file, in HU.

    Raises:
        VolumeRejected: see the table of codes in `docs/volumes.md`.
    """
    with _quiet():
        slices, notes = _choose(_slices(path))
        return _assemble(slices, notes)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence ITK and pydicom: their warnings and log lines quote header values and paths."""
    sitk.ProcessObject.GlobalWarningDisplayOff()
    logger = logging.getLogger("pydicom")
    before = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def _files(path: Path) -> Iterator[Path]:
    candidates = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in candidates:
        with file.open("rb") as stream:
            stream.seek(128)
            if stream.read(4) == b"DICM":
                yield file


def _slices(path: Path) -> list[_Slice]:
    found, color, damaged, files = [], 0, 0, 0
    for file in _files(path):
        files += 1
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
            syntax = str(header.file_meta.get("TransferSyntaxUID", ""))
            if syntax not in UID_dictionary:
                raise ValueError("unknown transfer syntax")
            if header.file_meta.get("MediaStorageSOPClassUID", "") == _DIRECTORY:
                continue
            if "Rows" not in header:
                kind = header.get("SOPClassUID")
                damaged += not kind or "Image Storage" in kind.name
                continue
            if int(header.get("SamplesPerPixel", 1)) != 1:
                color += 1
                continue
            found.extend(_parse(file, header, syntax))
        except VolumeRejected:
            raise
        except Exception:  # pydicom raises many types on damaged headers; all mean the same
            damaged += 1
    if damaged:
        raise VolumeRejected(
            "damaged-dicom",
            f"{damaged} of {files} DICOM files are damaged or cut short: copy the series again.",
        )
    if not found:
        if color:
            raise VolumeRejected("color", "The DICOM images are in color, not HU: export the scan itself.")
        raise VolumeRejected(
            "no-dicom-images",
            "No DICOM image was found (files carry the DICM marker): point to the folder with the series.",
        )
    return found


def _parse(file: Path, header: pydicom.Dataset, syntax: str) -> list[_Slice]:
    if header.get("PhotometricInterpretation", "MONOCHROME2") != "MONOCHROME2":
        raise VolumeRejected(
            "inverted",
            "The gray values are stored inverted or through a palette: export the series as MONOCHROME2.",
        )
    shape = (int(header.Rows), int(header.Columns))
    frames = header.get("PerFrameFunctionalGroupsSequence")
    if frames is None:
        if int(header.get("NumberOfFrames") or 1) > 1:
            raise VolumeRejected(
                "no-positions",
                "The multi-frame file holds no position for its frames: export as single slices.",
            )
        groups = [header]
    else:
        shared = header.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()]
        groups = [_flatten(shared[0], frame) for frame in frames]
    slices = []
    for number, group in enumerate(groups):
        if "ImagePositionPatient" not in group or "ImageOrientationPatient" not in group:
            if "LOCALIZER" in (header.get("ImageType") or ()):
                continue
            raise VolumeRejected(
                "no-positions", "Slices without position and orientation: export the series again."
            )
        if not group.get("PixelSpacing"):
            raise VolumeRejected("zero-spacing", "Slices without pixel spacing: export the original series.")
        directions = np.asarray(group.ImageOrientationPatient, dtype=float).reshape(2, 3)
        spacing = tuple(float(x) for x in group.PixelSpacing)
        slices.append(
            _Slice(
                path=file,
                frame=None if frames is None else number,
                transfer_syntax=syntax,
                modality=str(header.get("Modality") or ""),
                localizer="LOCALIZER" in (header.get("ImageType") or ()),
                key=(
                    str(header.get("SeriesInstanceUID") or ""),
                    shape,
                    tuple(np.round(directions.ravel(), 2)),
                    spacing,
                ),
                position=np.asarray(group.ImagePositionPatient, dtype=float).reshape(3),
                rows=directions[0],
                columns=directions[1],
                pixel_spacing=spacing,
                shape=shape,
                slope=_number(group.get("RescaleSlope"), 1.0),
                intercept=_number(group.get("RescaleIntercept"), 0.0),
                padding=_padding(header),
                thickness=_number(group.get("SliceThickness"), None),
            )
        )
    return slices


def _flatten(shared: pydicom.Dataset, frame: pydicom.Dataset) -> pydicom.Dataset:
    """One flat header for a frame: what is its own goes before what all frames share."""
    result = pydicom.Dataset()
    for groups in (shared, frame):
        for name in (
            "PlanePositionSequence",
            "PlaneOrientationSequence",
            "PixelMeasuresSequence",
            "PixelValueTransformationSequence",
        ):
            if groups.get(name):
                result.update(groups[name].value[0])
    return result


def _number(value: object, default: float | None) -> float | None:
    return default if value is None or value == "" else float(value)


def _padding(header: pydicom.Dataset) -> tuple[float, float] | None:
    """Stored values (low, high) that mean "no data", as signed numbers where pixels are signed."""
    first = header.get("PixelPaddingValue")
    if first is None:
        return None
    signed = int(header.get("PixelRepresentation", 0)) == 1
    modulus = 1 << int(header.BitsAllocated)

    def wrap(value: object) -> int:
        number = int(value)
        return number - modulus if signed and number >= modulus // 2 else number

    ends = [wrap(first), wrap(header.get("PixelPaddingRangeLimit", first))]
    return float(min(ends)), float(max(ends))


def _choose(slices: list[_Slice]) -> tuple[list[_Slice], list[str]]:
    """The largest axial series that is no localizer."""
    series = defaultdict(list)
    for item in slices:
        if not item.localizer:
            series[item.key if item.frame is None else (*item.key, item.path)].append(item)
    if not series:
        raise VolumeRejected("only-localizers", "The folder holds localizers only: point to the scan itself.")
    stacks = {key: group for key, group in series.items() if len(group) > 1}
    if not stacks:
        raise VolumeRejected(
            "single-slice",
            "There is only one slice: give the folder that holds the whole series, not one file.",
        )

    def rank(key: tuple) -> tuple:
        first = stacks[key][0]
        return abs(first.normal[2]) > 0.7, len(stacks[key])

    best = max(sorted(stacks, key=str), key=rank)
    notes = [f"several-series:{len(stacks)}"] if len(stacks) > 1 else []
    if not rank(best)[0]:
        notes.append("not-axial")
    return stacks[best], notes


def _assemble(slices: list[_Slice], notes: list[str]) -> Scan:
    first = slices[0]
    rescales = {(s.slope, s.intercept) for s in slices}
    # SimpleITK applies the first frame's rescale to all frames of a file.
    if first.frame is not None and first.transfer_syntax not in _NATIVE and len(rescales) > 1:
        raise VolumeRejected(
            "unsupported-rescale",
            "The compressed frames differ in slope or intercept: decompress the file first (gdcmconv --raw).",
        )
    normal = first.normal
    if abs(np.linalg.norm(normal) - 1) > 1e-2:
        raise VolumeRejected(
            "sheared-grid", "Rows and columns are not at right angles: export the series again."
        )
    slices = sorted(slices, key=lambda s: (float(s.position @ normal), str(s.path), s.frame or 0))
    planes, kept, duplicates, opened = [], [], 0, (None, None)
    for item in slices:
        if opened[0] != item.path:
            opened = (item.path, _decode(item))
        plane = _hounsfield(opened[1], item)
        if kept and float((item.position - kept[-1].position) @ normal) < _SAME_POSITION_MM:
            if not np.array_equal(plane, planes[-1]):
                raise VolumeRejected(
                    "several-phases",
                    "Different images lie at the same position (phases, kernels or time points): "
                    "split them into one folder each.",
                )
            duplicates += 1
            continue
        planes.append(plane)
        kept.append(item)
    if duplicates:
        notes.append(f"duplicate-slices:{duplicates}")
    if len(kept) < 2:
        raise VolumeRejected(
            "single-slice", "All slices lie at one position: give the folder with the whole series."
        )
    start, step = _check_gaps(np.stack([s.position for s in kept]), normal)
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = first.columns * first.pixel_spacing[0]
    affine[:3, 2] = first.rows * first.pixel_spacing[1]
    affine[:3, 3] = start
    provenance = {
        "format": "dicom",
        "transfer_syntax": UID(first.transfer_syntax).name,
        "slices": len(kept),
        "slice_thickness": first.thickness,
        "header_rescale": sorted(rescales)[:4],
    }
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    modality = first.modality if first.modality in ("", *_MODALITIES) else "another modality"
    return Scan(np.stack(planes), to_ras @ affine, True, modality or None, provenance, tuple(notes))


def _check_gaps(
    positions: Float[np.ndarray, "N 3"], normal: Float[np.ndarray, " 3"]
) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]:
    """The first position and the step from slice to slice, checked to be even; SliceThickness is no guide."""
    along = positions @ normal
    gaps = np.diff(along)
    usual = float(np.median(gaps))
    # Headers round positions, often to 0.1 mm: what counts is each slice's distance from the even grid
    # that fits best, not each gap.
    index = np.arange(len(positions))
    step, start = np.polyfit(index, positions, 1)
    if np.abs(positions - (start + index[:, None] * step)).max() <= max(0.1 * usual, 0.06):
        return start, step
    multiples = np.rint(gaps / usual)
    if (np.abs(gaps - multiples * usual) <= 0.1 * usual).all() and multiples.max() > 1:
        raise VolumeRejected(
            "missing-slices",
            f"{int((multiples - 1).sum())} slices are missing (gap {usual:.3g} mm, once {gaps.max():.3g}): "
            "copy the whole series.",
        )
    raise VolumeRejected(
        "uneven-gaps",
        f"Gaps between slices run from {gaps.min():.3g} to {gaps.max():.3g} mm or slices shift sideways: "
        "export an evenly spaced reconstruction.",
    )


def _decode(item: _Slice) -> Real[np.ndarray, "F H W"]:
    """All frames of a file: stored values where pydicom decodes, rescaled ones where SimpleITK does."""
    try:
        if item.transfer_syntax in _NATIVE:
            pixels = pydicom.dcmread(item.path).pixel_array
        else:
            reader = sitk.ImageFileReader()
            reader.SetImageIO("GDCMImageIO")
            reader.SetFileName(str(item.path))
            pixels = sitk.GetArrayFromImage(reader.Execute())
    except Exception:  # both libraries raise many types; their texts may quote paths and header values
        raise VolumeRejected(
            "damaged-dicom",
            "The pixels of a slice cannot be decoded (damaged or cut short): copy the series again.",
        ) from None
    pixels = pixels.reshape(-1, *pixels.shape[-2:])
    if pixels.shape[1:] != item.shape or (item.frame or 0) >= len(pixels):
        raise VolumeRejected(
            "damaged-dicom", "A slice's pixels do not match its header: copy the series again."
        )
    return pixels


def _hounsfield(pixels: Real[np.ndarray, "F H W"], item: _Slice) -> Real[np.ndarray, "H W"]:
    plane = pixels[item.frame or 0]
    if item.transfer_syntax in _NATIVE:
        whole = item.slope.is_integer() and item.intercept.is_integer()
        kind = np.int32 if whole and plane.dtype.kind in "iu" else np.float32
        plane = plane.astype(kind) * kind(item.slope) + kind(item.intercept)
    if item.padding is not None and item.modality == "CT":
        low, high = (item.slope * end + item.intercept for end in item.padding)
        # Some headers declare a padding value that tissue also has: only values no tissue has are trusted.
        if max(low, high) < -1000 or min(low, high) > 4000:
            plane = np.where((plane >= min(low, high)) & (plane <= max(low, high)), _PADDING_HU, plane)
    return plane
