"""Scans in memory as other libraries hold them: nibabel's and SimpleITK's images, arrays with an affine."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from medclip_jax.volumes.scan import Scan
from medclip_jax.volumes.volume import Volume, VolumeRejected

_MILLIMETERS = {"meter": 1000.0, "micron": 0.001}
"""Units of a NIfTI header that are not mm; nibabel's affine leaves them as they are."""


def is_image(given: Any) -> bool:
    """Whether `to_scan` takes it: an image of nibabel or SimpleITK, or the tuple (array, affine)."""
    return _is_nibabel(given) or _is_itk(given) or _is_pair(given)


def to_scan(given: Any) -> Scan:
    """A scan held in memory, in its own orientation.

    Args:
        given: an image of nibabel or SimpleITK; or (array, affine), the affine (4, 4) from array index to
            RAS mm, as nibabel has it.

    Raises:
        VolumeRejected: it is no 3D scan, or says nothing about orientation and spacing.
        TypeError: nothing of that kind.
        ValueError: an affine that is none.
    """
    if _is_itk(given):
        from medclip_jax.volumes.itk import of_image

        return of_image(given, format="SimpleITK")
    if _is_nibabel(given):
        return _of_nibabel(given)
    if _is_pair(given):
        return _of_pair(*given)
    raise TypeError(f"a scan is not of type {type(given).__name__}")


def scan_of_volume(volume: Volume) -> Scan:
    """The scan that a `Volume` holds, which may have been made by hand: axes in any order, any values.

    Raises:
        ValueError: no 3D array, no affine, or a spacing that contradicts the affine.
    """
    affine = _checked_affine(volume.affine)
    voxels = to_array(volume.voxels)
    if voxels.ndim != 3:
        raise ValueError(f"a Volume has three axes (depth, height, width), this one {voxels.ndim}")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if len(volume.spacing) != 3 or not np.allclose(lengths, volume.spacing, rtol=1e-2):
        raise ValueError(
            f"the Volume's spacing {tuple(map(float, volume.spacing))} contradicts its affine, whose axes "
            f"have voxels of {tuple(np.round(lengths, 4).tolist())} mm: make both say the same, in the order "
            "of the array's axes"
        )
    return Scan(voxels, affine, True, None, dict(volume.provenance), tuple(volume.notes))


def to_array(given: Any) -> Shaped[np.ndarray, "*shape"]:
    """NumPy's array of an array of whichever library: NumPy, JAX, PyTorch (on any device).

    Raises:
        TypeError: it is no array, or holds no real numbers.
    """
    if hasattr(given, "detach"):  # PyTorch
        given = given.detach().cpu().numpy()
    if not (hasattr(given, "__array__") and hasattr(given, "shape")):
        raise TypeError(f"an array of voxels is not of type {type(given).__name__}")
    array = np.asarray(given)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"an array of voxels holds real numbers, not {array.dtype}")
    return array


def is_array(given: Any) -> bool:
    """Whether it is an array of numbers of whichever library; images of nibabel are none."""
    return hasattr(given, "__array__") and hasattr(given, "shape") and not _is_nibabel(given)


def _is_nibabel(given: Any) -> bool:
    # Without the module nothing can be one of its images; it takes time to import.
    module = sys.modules.get("nibabel.spatialimages")
    return module is not None and isinstance(given, module.SpatialImage)


def _is_itk(given: Any) -> bool:
    module = sys.modules.get("SimpleITK")
    return module is not None and isinstance(given, module.Image)


def _is_pair(given: Any) -> bool:
    """(array, affine); two scans in a tuple are something else."""
    return isinstance(given, tuple) and len(given) == 2 and is_array(given[0]) and _rank(given[1]) == 2


def _rank(given: Any) -> int | None:
    try:
        return np.ndim(given.cpu() if hasattr(given, "cpu") else given)
    except ValueError:  # ragged
        return None


def _of_nibabel(image: Any) -> Scan:
    shape = image.shape
    if len(shape) < 3 or min(shape[:3]) < 2:
        raise VolumeRejected("not-3d", f"The image has shape {shape}: a scan has three axes.")
    if any(size > 1 for size in shape[3:]):
        raise VolumeRejected(
            "several-frames", f"The image has shape {shape}: take one volume of it, img.slicer[..., 0]."
        )
    if image.affine is None:
        raise VolumeRejected("no-orientation", "The image has no affine: give the scan's own.")
    voxels = np.asanyarray(image.dataobj)
    if voxels.dtype.kind not in "iuf":
        raise VolumeRejected("color", "The voxels are not real numbers: give the scan itself, no rendering.")
    affine, header = _checked_affine(image.affine), image.header
    coded = True
    if hasattr(header, "get_xyzt_units"):  # NIfTI
        coded = bool(header["sform_code"] > 0 or header["qform_code"] > 0)
        affine = np.diag([_MILLIMETERS.get(header.get_xyzt_units()[0], 1.0)] * 3 + [1.0]) @ affine
    placed = coded and not np.array_equal(affine, np.eye(4))
    provenance = {"format": "nibabel", "stored_type": str(voxels.dtype)}
    return Scan(voxels.reshape(shape[:3]), affine, placed, None, provenance)


def _of_pair(voxels: Any, affine: Any) -> Scan:
    array, affine = to_array(voxels), _checked_affine(affine)
    if array.ndim != 3 or min(array.shape) < 2:
        raise VolumeRejected("not-3d", f"The array has shape {array.shape}: a scan has three axes.")
    if np.array_equal(affine, np.eye(4)):
        raise VolumeRejected(
            "no-orientation",
            "The affine is the identity, which says nothing of orientation and spacing: give the scan's own.",
        )
    return Scan(array, affine, True, None, {"format": "array", "stored_type": str(array.dtype)})


def _checked_affine(given: Any) -> Float[np.ndarray, "4 4"]:
    try:
        affine = np.asarray(given.cpu() if hasattr(given, "cpu") else given, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"the affine is no matrix of numbers: {given!r}") from None
    if affine.shape != (4, 4) or not np.array_equal(affine[3], [0, 0, 0, 1]):
        shown = f"of shape {affine.shape}" if affine.shape != (4, 4) else f"with the last row {affine[3]}"
        raise ValueError(
            f"the affine is (4, 4), array index to RAS mm, with the last row (0, 0, 0, 1); not one {shown}"
        )
    return affine
