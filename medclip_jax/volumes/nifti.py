"""NIfTI-1 and NIfTI-2 files, plain or gzipped. nibabel parses the header; the checks stand here."""

from __future__ import annotations

import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

from medclip_jax.volumes.scan import Scan
from medclip_jax.volumes.volume import VolumeRejected

try:  # ISA-L inflates at about twice zlib's rate, with the same interface and checksums.
    from isal import isal_zlib as inflate
except ImportError:
    inflate = zlib

_MILLIMETERS = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}


def read_nifti(path: Path) -> Scan:
    """Read one NIfTI file with the header's own scaling applied.

    Raises:
        VolumeRejected: see the table of codes in `docs/volumes.md`.
    """
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        content = _gunzip(content)
    header = _header(content)
    notes: list[str] = []
    shape = _spatial_shape(header, notes)
    voxels, slope, intercept = _voxels(content, header, shape)
    extra = len(content) - int(header.get_data_offset()) - voxels.size * header.get_data_dtype().itemsize
    if extra > 0:
        notes.append(f"bytes-after-voxels:{extra}")
    affine, placed = _affine(header, notes)
    provenance = {
        "format": "nifti",
        "stored_type": str(header.get_data_dtype()),
        "header_rescale": (slope, intercept),
        "sform_code": int(header["sform_code"]),
        "qform_code": int(header["qform_code"]),
    }
    return Scan(voxels, affine, placed, None, provenance, tuple(notes))


def _gunzip(content: bytes) -> bytes:
    """Inflate all members of a gzip file and verify their checksums (nibabel would stop before them)."""
    parts = []
    while content[:2] == b"\x1f\x8b":
        member = inflate.decompressobj(31)
        try:
            parts.append(member.decompress(content))
        except (inflate.error, zlib.error):
            raise VolumeRejected(
                "damaged-gzip", "The gzip data do not match their checksum: copy or download the file again."
            ) from None
        if not member.eof:
            raise VolumeRejected(
                "truncated-file", "The gzip data end early: copy or download the file again."
            ) from None
        content = member.unused_data
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _header(content: bytes) -> nib.Nifti1Header:
    for kind, size in ((nib.Nifti1Header, 348), (nib.Nifti2Header, 540)):
        if len(content) >= size and size in (
            int.from_bytes(content[:4], "little"),
            int.from_bytes(content[:4], "big"),
        ):
            try:
                return kind(content[:size], check=False)
            except Exception:  # nibabel raises many types here, all meaning the same
                break
    raise VolumeRejected(
        "not-nifti",
        "The file has no NIfTI header: check that it is a NIfTI file and that it was copied whole.",
    )


def _spatial_shape(header: nib.Nifti1Header, notes: list[str]) -> tuple[int, int, int]:
    rank = int(header["dim"][0])
    if not 1 <= rank <= 7:
        raise VolumeRejected(
            "damaged-header", "The header's number of dimensions is invalid: export it again."
        )
    shape = [int(n) for n in header["dim"][1 : rank + 1]]
    if min(shape) < 1:
        raise VolumeRejected(
            "damaged-header", "The header gives an axis of no length: export the file again."
        )
    if any(n > 1 for n in shape[3:]):
        raise VolumeRejected(
            "several-frames",
            f"The file holds {int(np.prod(shape[3:]))} volumes in one array: write each to its own file.",
        )
    if rank > 3:
        notes.append("one-frame-of-4d")
    shape = [*shape, 1, 1][:3]
    if min(shape) < 2:
        raise VolumeRejected(
            "not-3d", "The image is flat, not a volume: leave it out or export the whole series."
        )
    return tuple(shape)


def _voxels(content: bytes, header: nib.Nifti1Header, shape: tuple[int, int, int]):
    try:
        dtype = header.get_data_dtype()
        offset = int(header.get_data_offset())
    except Exception:
        raise VolumeRejected(
            "damaged-header", "The header's data type is invalid: export the file again."
        ) from None
    if dtype.fields is not None:
        raise VolumeRejected(
            "color", "The image is in color, not HU: export the scan itself, not a rendering."
        )
    if dtype.kind not in "iuf":
        raise VolumeRejected(
            "unsupported-type", "The voxels are not real numbers: export as int16 or float32."
        )
    count = shape[0] * shape[1] * shape[2]
    if offset < 0 or offset + count * dtype.itemsize > len(content):
        raise VolumeRejected(
            "truncated-file", "The file holds fewer voxels than its header says: copy or download it again."
        )
    voxels = np.frombuffer(content, dtype, count, offset).reshape(shape, order="F")
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite(slope):
        return voxels, 1.0, 0.0  # the standard: no scaling
    if not np.isfinite(intercept):
        raise VolumeRejected(
            "damaged-header", "scl_slope is set but scl_inter is not a number: set scl_inter."
        )
    if (slope, intercept) != (1.0, 0.0):
        voxels = voxels.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    return voxels, slope, intercept


def _affine(header: nib.Nifti1Header, notes: list[str]) -> tuple[np.ndarray, " bool"]:
    """The affine in mm, and whether the header really gave one."""
    try:
        sform = header.get_sform() if header["sform_code"] > 0 else None
        qform = header.get_qform() if header["qform_code"] > 0 else None
    except Exception:
        raise VolumeRejected(
            "damaged-header", "The header's orientation is invalid: write a valid sform affine."
        ) from None
    sizes = np.abs(header["pixdim"][1:4].astype(float))
    if sform is not None and qform is not None and not np.allclose(sform, qform, atol=1e-2, rtol=1e-3):
        notes.append("sform-qform-disagree")
        if np.array_equal(sform, np.eye(4)):
            sform = None
    affine = sform if sform is not None else qform
    placed = affine is not None and not np.array_equal(affine, np.eye(4))
    if affine is None:
        affine = np.diag([*sizes, 1.0])
    elif placed and not np.allclose(np.linalg.norm(affine[:3, :3], axis=0), sizes, rtol=1e-2):
        notes.append("pixdim-affine-disagree")
    factor = _MILLIMETERS.get(int(header["xyzt_units"]) & 7, 1.0)
    if factor != 1.0:
        notes.append("units-converted-to-mm")
        affine = np.diag([factor] * 3 + [1.0]) @ affine
    return np.asarray(affine, dtype=float), placed
