"""NRRD and MetaImage files, read by SimpleITK."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from medclip_jax.volumes.scan import Scan
from medclip_jax.volumes.volume import VolumeRejected

_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""ITK's world is LPS."""


def read_itk(path: Path) -> Scan:
    """Read one NRRD, MHA or MHD file.

    Raises:
        VolumeRejected: see the table of codes in `docs/volumes.md`.
    """
    # ITK's warnings and errors quote paths, which may hold names: neither is shown.
    sitk.ProcessObject.GlobalWarningDisplayOff()
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        image = reader.Execute()
    except RuntimeError:
        raise VolumeRejected(
            "unreadable",
            "SimpleITK cannot read the file: it is damaged, cut short, or its data file is missing.",
        ) from None
    return of_image(image, format=path.suffix.lower().lstrip("."))


def of_image(image: sitk.Image, *, format: str) -> Scan:
    """What a SimpleITK image holds.

    Args:
        image: 3D, or 4D with one frame.
        format: where it came from, for the provenance.

    Raises:
        VolumeRejected: as `read_itk`.
    """
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise VolumeRejected("color", "The image has several values per voxel: export the scan itself.")
    notes = []
    if image.GetDimension() == 4:
        if image.GetSize()[3] > 1:
            raise VolumeRejected(
                "several-frames",
                f"The file holds {image.GetSize()[3]} volumes in one array: write each to its own file.",
            )
        image = image[:, :, :, 0]
        notes.append("one-frame-of-4d")
    if image.GetDimension() != 3 or min(image.GetSize()) < 2:
        raise VolumeRejected(
            "not-3d", "The image is flat, not a volume: leave it out or export the whole series."
        )
    # GetArrayFromImage has axes (z, y, x); transposing gives ITK's own index order.
    voxels = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    if voxels.dtype.kind not in "iuf":
        raise VolumeRejected(
            "unsupported-type", "The voxels are not real numbers: export as int16 or float32."
        )
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    placed = not np.array_equal(affine, np.eye(4))
    provenance = {"format": format, "stored_type": str(voxels.dtype)}
    return Scan(voxels, _TO_RAS @ affine, placed, None, provenance, tuple(notes))
