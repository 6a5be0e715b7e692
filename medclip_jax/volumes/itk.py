"""NRRD and MetaImage files: SimpleITK reads what headers say, `detached` the voxels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from jaxtyping import Float

from medclip_jax.volumes.detached import Header, read_header, read_voxels
from medclip_jax.volumes.scan import Scan
from medclip_jax.volumes.volume import VolumeRejected

_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""ITK's world is LPS."""

_SCALARS = {
    sitk.sitkInt8: "i1", sitk.sitkUInt8: "u1", sitk.sitkInt16: "i2", sitk.sitkUInt16: "u2",
    sitk.sitkInt32: "i4", sitk.sitkUInt32: "u4", sitk.sitkInt64: "i8", sitk.sitkUInt64: "u8",
    sitk.sitkFloat32: "f4", sitk.sitkFloat64: "f8",
}  # fmt: skip
_VECTORS = {
    sitk.sitkVectorInt8: "i1", sitk.sitkVectorUInt8: "u1", sitk.sitkVectorInt16: "i2",
    sitk.sitkVectorUInt16: "u2", sitk.sitkVectorInt32: "i4", sitk.sitkVectorUInt32: "u4",
    sitk.sitkVectorInt64: "i8", sitk.sitkVectorUInt64: "u8", sitk.sitkVectorFloat32: "f4",
    sitk.sitkVectorFloat64: "f8",
}  # fmt: skip
_TYPES = _SCALARS | _VECTORS
"""A vector of one number is that number."""

_ANATOMICAL = (
    "right-anterior-superior",
    "ras",
    "left-anterior-superior",
    "las",
    "left-posterior-superior",
    "lps",
)
"""NRRD's spaces that say where the patient's left is, with time left off."""

_OPPOSITE = str.maketrans("RLAPIS", "LRPASI")


def read_itk(path: Path, *, labels: bool = False) -> Scan:
    """Read one NRRD, MHA or MHD file.

    Args:
        path: the file, or its header where the voxels lie apart.
        labels: it is a label map.

    Raises:
        VolumeRejected: see the table of codes in `docs/reference/volumes.md`.
    """
    header = read_header(path)
    # ITK's warnings and errors quote paths, which may hold names: neither is shown.
    sitk.ProcessObject.GlobalWarningDisplayOff()
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise VolumeRejected(
            "unreadable",
            "SimpleITK cannot read the header: it is damaged, cut short, or names the wrong number of data "
            "files. Export the file again.",
        ) from None
    dtype, affine, notes = _describe(reader, reader.GetNumberOfComponents())
    voxels, surplus = read_voxels(path, header, dtype, reader.GetSize()[:3], labels=labels)
    if surplus:
        notes.append(f"bytes-after-voxels:{surplus}")
    says_spacing = any(
        name in header.fields for name in ("elementspacing", "elementsize", "spacings", "spacedirections")
    )
    placed = says_spacing and not np.array_equal(affine, np.eye(4))
    if placed and not _says_orientation(header, affine, notes):
        notes.append("orientation-assumed")
    provenance = {"format": path.suffix.lower().lstrip("."), "stored_type": str(dtype)}
    return Scan(voxels, _TO_RAS @ affine, placed, None, provenance, tuple(notes))


def of_image(image: sitk.Image, *, format: str) -> Scan:
    """What a SimpleITK image holds.

    Args:
        image: 3D, or 4D with one frame.
        format: where it came from, for the provenance.

    Raises:
        VolumeRejected: as `read_itk`.
    """
    dtype, affine, notes = _describe(image, image.GetNumberOfComponentsPerPixel())
    # GetArrayFromImage has axes (z, y, x); transposing gives ITK's own index order.
    voxels = sitk.GetArrayFromImage(image).reshape(image.GetSize()[2::-1]).transpose(2, 1, 0)
    placed = not np.array_equal(affine, np.eye(4))
    provenance = {"format": format, "stored_type": str(dtype)}
    return Scan(voxels, _TO_RAS @ affine, placed, None, provenance, tuple(notes))


def _describe(
    image: sitk.Image | sitk.ImageFileReader, components: int
) -> tuple[np.dtype, Float[np.ndarray, "4 4"], list[str]]:
    """Type of a voxel, affine to LPS mm, notes; of an image or of what was read of a header."""
    if components > 1:
        raise VolumeRejected("color", "The image has several values per voxel: export the scan itself.")
    size, pixel, notes = image.GetSize(), image.GetPixelID(), []
    rank = len(size)
    if rank == 4 and size[3] > 1:
        raise VolumeRejected(
            "several-frames", f"The file holds {size[3]} volumes in one array: write each to its own file."
        )
    if rank not in (3, 4) or min(size[:3]) < 2:
        raise VolumeRejected(
            "not-3d", "The image is flat, not a volume: leave it out or export the whole series."
        )
    if rank == 4 or pixel in _VECTORS:
        notes.append("one-frame-of-4d")
    if pixel not in _TYPES:
        raise VolumeRejected(
            "unsupported-type", "The voxels are not real numbers: export as int16 or float32."
        )
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (rank, rank))[:3, :3] * image.GetSpacing()[:3]
    affine[:3, 3] = image.GetOrigin()[:3]
    return np.dtype(_TYPES[pixel]), affine, notes


def _says_orientation(header: Header, affine: Float[np.ndarray, "4 4"], notes: list[str]) -> bool:
    """Whether the header says where the patient's left is, and not only how large a voxel is."""
    fields = header.fields
    if "type" in fields and "encoding" in fields:
        space = fields.get("space", "").lower().removesuffix("-time").removesuffix("t")
        return space in _ANATOMICAL and "spacedirections" in fields
    named = _anatomical_orientation(fields)
    has_matrix = any(name in fields for name in ("transformmatrix", "rotation", "orientation"))
    stored = "".join(
        ("RL", "AP", "IS")[axis][int(column[axis] < 0)]
        for column in affine[:3, :3].T
        for axis in [int(np.abs(column).argmax())]
    )
    if not has_matrix:
        if named is not None and named != stored:
            raise VolumeRejected(
                "no-orientation",
                f"The header says AnatomicalOrientation {named} and no TransformMatrix; tools do not agree "
                "on what such letters mean. Write TransformMatrix, or convert from DICOM again.",
            )
        return named is not None
    if named is not None and named not in (stored, stored.translate(_OPPOSITE)):
        notes.append("anatomical-orientation-ignored")
    return True


def _anatomical_orientation(fields: Mapping[str, str]) -> str | None:
    """Three letters that say where axes come from ("RAI"); None where the header has no such word."""
    letters = fields.get("anatomicalorientation", "").upper()
    return letters if len(letters) == 3 and set(letters) <= set("RLAPIS") else None
