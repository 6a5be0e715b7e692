"""Tiny scans in every format, written on the spot: a noisy chest, NIfTI headers, DICOM series."""

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

SPACING = (3.0, 2.0, 1.5)
"""mm along depth, height, width."""

RAS = np.array([[0, 0, 1.5, -30], [0, 2.0, 0, -40], [3.0, 0, 0, 100], [0, 0, 0, 1]])
"""Index (d, h, w, 1) to RAS mm of the chest as it is made here."""

SECRETS = ("DOE", "JANE", "PAT77421", "19561231", "SAINT-ELSEWHERE", "ACC998877")
"""Patient data put into headers and file names; none of it may come out anywhere."""


def chest(shape: Sequence[int] = (16, 40, 44), seed: int = 0) -> np.ndarray:
    """Air, fat, muscle and two unequal lungs with noise: int16 HU (D, H, W), no symmetry."""
    d, h, w = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    values = np.full(shape, -1000.0)
    values[(w / 0.92) ** 2 + (h / 0.8) ** 2 < 1] = -100
    values[(w / 0.82) ** 2 + (h / 0.7) ** 2 < 1] = 45
    values[((w - 0.4) / 0.3) ** 2 + ((h - 0.05) / 0.5) ** 2 + (d * 0.6) ** 2 < 1] = -820
    values[((w + 0.4) / 0.25) ** 2 + (h / 0.4) ** 2 + (d * 0.5) ** 2 < 1] = -850
    values[(w / 0.1) ** 2 + ((h + 0.5) / 0.15) ** 2 < 1] = 400
    noise = np.random.default_rng(seed).normal(0, 15, shape)
    return np.rint(values + noise).astype(np.int16)


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray = RAS, **header: object) -> Path:
    """Write (D, H, W) voxels as x, y, z; then set header fields by name, past nibabel's own checks."""
    order = [2, 1, 0, *range(3, voxels.ndim)] if voxels.ndim >= 3 else [1, 0]
    xyz = affine[:, [2, 1, 0, 3]]
    image = nib.Nifti1Image(voxels.transpose(order), xyz)
    image.header.set_xyzt_units("mm")
    image.header["scl_slope"], image.header["scl_inter"] = 1.0, 0.0
    content = bytearray(image.to_bytes())
    if header:
        parsed = nib.Nifti1Header(bytes(content[:348]), check=False)
        for name, value in header.items():
            parsed[name] = value
        content[:348] = parsed.binaryblock
    if path.name.endswith(".gz"):
        import gzip

        path.write_bytes(gzip.compress(bytes(content), 1))
    else:
        path.write_bytes(content)
    return path


def dicom_header(sop_class: str = CTImageStorage) -> FileDataset:
    """A CT header full of patient data, without geometry and pixels."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID, header.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    header.PatientName, header.PatientID = "DOE^JANE", "PAT77421"
    header.PatientBirthDate = header.StudyDate = "19561231"
    header.InstitutionName, header.AccessionNumber = "SAINT-ELSEWHERE", "ACC998877"
    header.StudyDescription = header.SeriesDescription = header.ProtocolName = "CHEST JANE DOE"
    header.Modality = "CT"
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.SeriesInstanceUID, header.StudyInstanceUID = "1.2.3.4.5", "1.2.3.4"
    header.SliceThickness = 5.0  # on purpose not the gap
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1
    return header


def write_slices(
    folder: Path,
    voxels: np.ndarray,
    *,
    positions: Sequence[Sequence[float]] | None = None,
    rescale: Sequence[tuple[float, float]] | tuple[float, float] = (1.0, -1024.0),
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    prefix: str = "JANE_DOE",
    **tags: object,
) -> list[Path]:
    """Write (N, rows, columns) HU as single-slice files named so that name order is not position order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for n, plane in enumerate(voxels):
        slope, intercept = rescale[n] if np.ndim(rescale) == 2 else rescale
        header = dicom_header()
        header.InstanceNumber = len(voxels) - n
        header.Rows, header.Columns = plane.shape
        header.PixelSpacing = [2.0, 1.5]
        header.ImageOrientationPatient = list(orientation)
        header.ImagePositionPatient = list(
            (-30.0, -40.0, 100.0 + 3.0 * n) if positions is None else positions[n]
        )
        header.RescaleSlope, header.RescaleIntercept = slope, intercept
        header.PixelData = np.rint((plane - intercept) / slope).astype("<i2").tobytes()
        for name, value in tags.items():
            if value is None:
                del header[name]
            else:
                setattr(header, name, value)
        path = folder / f"{prefix}_{(7 * n) % 101:03d}_{n}"
        header.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def write_enhanced(
    path: Path, voxels: np.ndarray, rescale: Sequence[tuple[float, float]], order: Sequence[int]
):
    """Write an enhanced multi-frame file whose frames come in any order, each with its own rescale."""
    header = dicom_header(EnhancedCTImageStorage)
    header.Rows, header.Columns = voxels.shape[1:]
    header.NumberOfFrames = len(order)
    shared, frames, pixels = Dataset(), [], []
    orientation, measures = Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing, measures.SliceThickness = [2.0, 1.5], 5.0
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    for n in order:
        slope, intercept = rescale[n]
        position, values, frame = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [-30.0, -40.0, 100.0 + 3.0 * n]
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = slope, intercept, "HU"
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [position], [values]
        frames.append(frame)
        pixels.append(np.rint((voxels[n] - intercept) / slope).astype("<i2"))
    header.SharedFunctionalGroupsSequence = [shared]
    header.PerFrameFunctionalGroupsSequence = frames
    header.PixelData = np.stack(pixels).tobytes()
    header.save_as(path, enforce_file_format=True)
    return path


def lps_stack(voxels: np.ndarray) -> np.ndarray:
    """Canonical (D, H, W) voxels as DICOM stores them: rows towards posterior, columns towards left."""
    return voxels[:, ::-1, ::-1]


def compress(path: Path, name: str, rescale: tuple[float, float]) -> None:
    """Rewrite a single-slice file in place with JPEG pixels by SimpleITK ("JPEG2000" or "JPEG")."""
    import SimpleITK as sitk

    header = pydicom.dcmread(path)
    stored = sitk.GetImageFromArray(header.pixel_array[None])
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.UseCompressionOn()
    writer.SetCompressor(name)
    temporary = path.with_name(path.name + ".dcm")
    writer.SetFileName(str(temporary))
    writer.Execute(stored)
    compressed = pydicom.dcmread(temporary)
    temporary.unlink()
    header.file_meta.TransferSyntaxUID = compressed.file_meta.TransferSyntaxUID
    header.PixelData = compressed.PixelData
    header["PixelData"].VR = "OB"
    header["PixelData"].is_undefined_length = True
    for tag in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        setattr(header, tag, getattr(compressed, tag))
    header.RescaleSlope, header.RescaleIntercept = rescale
    header.save_as(path, enforce_file_format=True)
