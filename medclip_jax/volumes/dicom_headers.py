"""What a DICOM header says about its slices, and which files cannot be part of a volume, and why."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from jaxtyping import Float
from pydicom.datadict import tag_for_keyword
from pydicom.tag import Tag
from pydicom.uid import UID

from medclip_jax.volumes.dicom_files import is_decodable, is_syntax, read_header

_GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness")
_VALUES = ("RescaleSlope", "RescaleIntercept", "RescaleType", "Units")

RECONSTRUCTIONS = (
    "ImageType",
    "ConvolutionKernel",
    "EchoNumbers",
    "EchoTime",
    "EffectiveEchoTime",
    "InversionTime",
    "DiffusionBValue",
    "KVP",
    "RescaleType",
    "StackID",
)
"""Elements in which pictures of one body and one time differ; each value is a stack of its own."""

TELLING_TYPES = {
    "ORIGINAL", "DERIVED", "M", "P", "R", "I", "MAGNITUDE", "PHASE", "REAL", "IMAGINARY", "W", "F", "WATER",
    "FAT", "IP", "OP", "IN_PHASE", "OUT_PHASE", "OPP_PHASE", "ADC", "FA", "TRACEW", "MIP", "MINIP", "MPR",
    "PROJECTION IMAGE", "REFORMATTED", "AVERAGE", "MONOENERGETIC", "DET_A", "DET_B",
}  # fmt: skip
"""Parts of ImageType that tell pictures of one place apart; others are the makers' own remarks."""

ACQUISITIONS = ("AcquisitionNumber", "FrameAcquisitionNumber")
"""Elements that count passes over the body, such as one before and one after contrast."""

TIMES = (
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "NominalPercentageOfCardiacPhase",
    "NominalCardiacTriggerDelayTime",
    "TriggerTime",
    "FrameReferenceTime",
)
"""Elements that tell time points and heart phases apart; they may also run along a single stack."""

MARKS = (*RECONSTRUCTIONS, *ACQUISITIONS, *TIMES)
"""Elements that tell stacks apart."""

_FRAME_GROUPS = (
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
    "FrameContentSequence",
    "CTImageFrameTypeSequence",
    "CTReconstructionSequence",
    "CTXRayDetailsSequence",
    "MRImageFrameTypeSequence",
    "MREchoSequence",
    "MRDiffusionSequence",
    "CardiacSynchronizationSequence",
    "TemporalPositionSequence",
)
"""Functional groups of an enhanced multi-frame file that are laid flat."""

_KEYWORDS = (
    "SOPClassUID", "SOPInstanceUID", "Modality", "PatientID", "StudyInstanceUID", "SeriesInstanceUID",
    "SeriesNumber", "InstanceNumber", "SliceLocation", "FrameOfReferenceUID", "SamplesPerPixel",
    "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "PixelRepresentation",
    "PixelPaddingValue", "PixelPaddingRangeLimit",
    "ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    *_GEOMETRY, *_VALUES, *(name for name in MARKS if tag_for_keyword(name)),
)  # fmt: skip
"""All that is read of a header. Ids of patient, study and series only group files; they are never quoted."""

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_VOLUME_CLASSES = {
    _STORAGE + ending
    for ending in ("2", "2.1", "2.2", "4", "4.1", "4.4", "20", "128", "128.1", "130", "13.1.1", "13.1.3")
}
"""CT, MR, PET, NM and 3D X-ray images, classic, enhanced, and converted to enhanced."""

_CAPTURES = _STORAGE + "7"
"""Secondary captures: screenshots, protocol pages, and now and then a reformatted stack."""

_UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
_DIRECTORY = "1.2.840.10008.1.3.10"

MODALITIES = ("CT", "MR", "PT", "NM", "US", "CR", "DX", "MG", "XA", "RF", "SEG", "OT", "SC", "SR", "PR", "KO")
MODALITIES += ("RTDOSE", "RTSTRUCT", "RTPLAN", "RTIMAGE", "REG", "DOC", "ECG")
"""Any other text in the Modality tag is not quoted: it may be anything."""

_OTHER_QUANTITIES = ("OD", "MGML", "Z_EFF", "ED", "EDW", "PCT")
"""RescaleType of CT values that are no HU: density, iodine, atomic number, electron density, percent."""


@dataclass(frozen=True, eq=False)
class Slice:
    """One slice: a file of its own, or one frame of a multi-frame file.

    Attributes:
        path: file.
        frame: its place in a multi-frame file, from 0; None in a file of one slice.
        transfer_syntax: UID.
        modality: as the header has it.
        number: InstanceNumber.
        location: SliceLocation, mm along an axis that no header names.
        position: of the first pixel's center, LPS mm.
        rows, columns: directions of growing column and row index, LPS.
        pixel_spacing: mm between rows, between columns.
        shape: rows, columns.
        slope, intercept: None where the header has none.
        units: of the values, where the header says.
        padding: (low, high) stored values that mean "no data".
        thickness: mm.
        space: digest of the FrameOfReferenceUID that positions are given in, "" without one.
        marks: elements that tell stacks apart (`RECONSTRUCTIONS`, `ACQUISITIONS`, `TIMES`) to their values.
    """

    path: Path
    frame: int | None
    transfer_syntax: str
    modality: str
    number: int | None
    location: float | None
    position: Float[np.ndarray, " 3"]
    rows: Float[np.ndarray, " 3"]
    columns: Float[np.ndarray, " 3"]
    pixel_spacing: tuple[float, float]
    shape: tuple[int, int]
    slope: float | None
    intercept: float | None
    units: str
    padding: tuple[float, float] | None
    thickness: float | None
    space: str
    marks: Mapping[str, str]

    @property
    def normal(self) -> Float[np.ndarray, " 3"]:
        """Unit vector at right angles to the slice, LPS."""
        return np.cross(self.rows, self.columns)


@dataclass(frozen=True, eq=False)
class DicomFile:
    """One file: its slices, or why it has none.

    Attributes:
        path: of the file.
        refusal: code of why it cannot be part of a volume, "" where it can: "damaged-dicom",
            "unsupported-compression", "color", "inverted", "no-positions", "zero-spacing",
            "unsupported-rescale", "not-hounsfield", "localizer", "other-object".
        slices: at least one where there is no refusal.
        patient, study, instance: digests of the ids, "" without one.
        uid: SeriesInstanceUID, or a digest where that is no UID.
        series_number: SeriesNumber, or None.
        kind: SOP class UID.
        look: what slices of one series have in common: class, size, and the first two parts of ImageType.
        modality: as the header has it.
        transfer_syntax: UID.
        values: further elements that were requested, as text.
    """

    path: Path
    refusal: str
    slices: tuple[Slice, ...] = ()
    patient: str = ""
    study: str = ""
    instance: str = ""
    uid: str = ""
    series_number: int | None = None
    kind: str = ""
    look: tuple = ()
    modality: str = ""
    transfer_syntax: str = ""
    values: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_part_of_no_volume(self) -> bool:
        """Whether nothing is lost without the file: it was never a slice of a scan."""
        return self.refusal in ("localizer", "other-object")


def read_file(path: Path, also: Sequence[str] = ()) -> DicomFile | None:
    """Read what the header of a file says.

    Args:
        path: of any file.
        also: keywords of further elements wanted in `values`.

    Returns:
        None for a file that is not DICOM, and for a DICOMDIR, an index without images.

    Raises:
        OSError: the file cannot be opened.
    """
    if path.name.upper() == "DICOMDIR":
        return None
    tags = _TAGS if not also else [*_TAGS, *(Tag(tag_for_keyword(name)) for name in also)]
    try:
        found = read_header(path, tags)
        if found is None:
            return None
        header = found.elements
        if header.file_meta.get("MediaStorageSOPClassUID", "") == _DIRECTORY:
            return None
        if header.preamble is None and "SOPClassUID" not in header and "Modality" not in header:
            return None  # it only starts like one
        known = _identity(header, also)
    except OSError:
        raise
    except Exception:  # pydicom raises many types on damaged headers; all mean the same
        return DicomFile(path, "damaged-dicom")
    try:
        refusal = _refuse(header, known["transfer_syntax"])
        if not refusal and _is_cut(header, known["transfer_syntax"], found.rest):
            refusal = "damaged-dicom"
        slices = refusal or _slices(path, header, known)
    except Exception:
        return DicomFile(path, "damaged-dicom", **known)
    if isinstance(slices, str):
        return DicomFile(path, slices, **known)
    return DicomFile(path, "", slices, **known)


def read_identity(path: Path) -> DicomFile | None:
    """Read whose a file is, and no more: its patient, study and series, at a fraction of the time.

    Returns:
        As `read_file`, without slices; `refusal` is "damaged-dicom" or "".
    """
    if path.name.upper() == "DICOMDIR":
        return None
    try:
        found = read_header(path, _IDENTITY_TAGS, last=_IDENTITY_TAGS[-1])
        if found is None or found.elements.file_meta.get("MediaStorageSOPClassUID", "") == _DIRECTORY:
            return None
        return DicomFile(path, "", **_identity(found.elements, ()))
    except OSError:
        raise
    except Exception:
        return DicomFile(path, "damaged-dicom")


def digest(text: str) -> str:
    """A short name for a text that must not be shown: 12 hex digits."""
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:12]


def _is_cut(header: pydicom.Dataset, syntax: str, rest: int | None) -> bool:
    """Whether a file ends before the pixels that its header states."""
    stated = 1
    if syntax in _UNCOMPRESSED:
        stated = int(header.get("NumberOfFrames") or 1) * int(header.Rows) * int(header.Columns)
        stated *= int(header.BitsAllocated) // 8
    return rest is not None and rest < stated


def _identity(header: pydicom.Dataset, also: Sequence[str]) -> dict[str, object]:
    def text(name: str) -> str:
        return str(header.get(name) or "").strip(" \0")

    uid = text("SeriesInstanceUID")
    kind = text("SOPClassUID") or str(header.file_meta.get("MediaStorageSOPClassUID") or "")
    number = text("SeriesNumber")
    return {
        "patient": digest(text("PatientID")) if text("PatientID") else "",
        "study": digest(text("StudyInstanceUID")) if text("StudyInstanceUID") else "",
        "instance": digest(text("SOPInstanceUID")) if text("SOPInstanceUID") else "",
        "uid": uid if not uid or UID(uid).is_valid else digest(uid),
        "series_number": int(number) if number.lstrip("-").isdecimal() else None,
        "kind": kind,
        "look": (kind, text("Rows"), text("Columns"), _image_type(header)[:2]),
        "modality": text("Modality").upper(),
        "transfer_syntax": str(header.file_meta.TransferSyntaxUID),
        "values": {name: text(name) for name in also},
    }


def _refuse(header: pydicom.Dataset, syntax: str) -> str:
    """Why a file as a whole holds no slices, "" where it may hold some."""
    kind = str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")
    if not is_syntax(syntax):
        return "damaged-dicom"
    if "Rows" not in header:
        return "damaged-dicom" if not kind or "Image Storage" in UID(kind).name else "other-object"
    if "LOCALIZER" in _image_type(header):
        return "localizer"
    is_capture = kind == _CAPTURES or kind.startswith(_CAPTURES + ".")
    if kind and kind not in _VOLUME_CLASSES and not is_capture and kind.startswith(_STORAGE):
        return "other-object"
    if not kind.startswith(_STORAGE) and str(header.get("Modality") or "") not in ("CT", "MR", "PT", ""):
        return "other-object"
    if is_capture and not all(header.get(name) for name in _GEOMETRY[:3]) and not _is_enhanced(header):
        return "other-object"
    if not is_decodable(syntax):
        return "unsupported-compression"
    if int(header.get("SamplesPerPixel") or 1) != 1:
        return "color"
    if str(header.get("PhotometricInterpretation") or "MONOCHROME2") != "MONOCHROME2":
        return "inverted"
    if header.get("ModalityLUTSequence") and header.get("RescaleSlope") is None:
        return "unsupported-rescale"
    if not _is_enhanced(header) and int(header.get("NumberOfFrames") or 1) > 1:
        return "no-positions"
    return ""


def _is_enhanced(header: pydicom.Dataset) -> bool:
    return header.get("PerFrameFunctionalGroupsSequence") is not None


def _image_type(header: pydicom.Dataset) -> tuple[str, ...]:
    value = header.get("ImageType") or header.get("FrameType") or ()
    return tuple(str(part).strip().upper() for part in ([value] if isinstance(value, str) else value))


def _slices(path: Path, header: pydicom.Dataset, known: Mapping[str, object]) -> tuple[Slice, ...] | str:
    """The slices of a file, or the code of why there are none."""
    groups = [header]
    if _is_enhanced(header):
        frames = header.PerFrameFunctionalGroupsSequence
        if len(frames) != int(header.get("NumberOfFrames") or len(frames)):
            return "damaged-dicom"
        shared = header.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()]
        groups = [_flatten(shared[0], frame) for frame in frames]
    slices: list[Slice] = []
    frame_of_reference = str(header.get("FrameOfReferenceUID") or "").strip(" \0")
    for place, group in enumerate(groups):
        if "LOCALIZER" in _image_type(group):
            continue
        if not group.get("ImagePositionPatient") or not group.get("ImageOrientationPatient"):
            return "no-positions"
        if not group.get("PixelSpacing"):
            return "zero-spacing"
        marks = _marks(header, group)
        if known["modality"] == "CT" and marks["RescaleType"].upper() in _OTHER_QUANTITIES:
            return "not-hounsfield"
        directions = np.asarray(group.ImageOrientationPatient, dtype=float).reshape(2, 3)
        position = np.asarray(group.ImagePositionPatient, dtype=float).reshape(3)
        spacing = tuple(float(x) for x in group.PixelSpacing)
        if not (np.isfinite(position).all() and np.isfinite(directions).all() and np.isfinite(spacing).all()):
            return "damaged-dicom"
        slices.append(
            Slice(
                path=path,
                frame=place if _is_enhanced(header) else None,
                transfer_syntax=known["transfer_syntax"],
                modality=known["modality"],
                number=_whole(header.get("InstanceNumber")),
                location=_number(group.get("SliceLocation")),
                position=position,
                rows=directions[0],
                columns=directions[1],
                pixel_spacing=spacing,
                shape=(int(header.Rows), int(header.Columns)),
                slope=_number(group.get("RescaleSlope")),
                intercept=_number(group.get("RescaleIntercept")),
                units=str(header.get("Units") or ""),
                padding=_padding(header),
                thickness=_number(group.get("SliceThickness")),
                space=digest(frame_of_reference) if frame_of_reference else "",
                marks=marks,
            )
        )
    return tuple(slices) or "localizer"


def _flatten(shared: pydicom.Dataset, frame: pydicom.Dataset) -> pydicom.Dataset:
    """One flat header for a frame: what is its own goes before what all frames share."""
    result = pydicom.Dataset()
    for groups in (shared, frame):
        for name in _FRAME_GROUPS:
            if groups.get(name):
                result.update(groups[name].value[0])
    return result


def _marks(header: pydicom.Dataset, group: pydicom.Dataset) -> dict[str, str]:
    marks = {}
    for name in MARKS:
        value = group.get(name)
        if value is None:
            value = header.get(name)
        if name == "ImageType":
            marks[name] = "\\".join(_image_type(group) or _image_type(header))
            continue
        text = "" if value is None else str(value).strip()
        try:
            marks[name] = f"{float(text):.3f}"  # 120, 120.0 and 120.00001 kV are one value
        except ValueError:
            marks[name] = text
    return marks


def _number(value: object) -> float | None:
    return None if value is None or str(value).strip() == "" else float(value)


def _whole(value: object) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


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


_IDENTITY = ("SOPClassUID", "Modality", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber")
_IDENTITY_TAGS = [Tag(tag_for_keyword(name)) for name in _IDENTITY]
"""In the order of the file."""

_TAGS = [Tag(tag_for_keyword(name)) for name in _KEYWORDS]
