"""NIfTI-1 and NIfTI-2 files, plain or gzipped. nibabel parses the header; the checks stand here."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Shaped

from medclip_jax.volumes.content import GZIP, check_size, inflate, peek
from medclip_jax.volumes.scan import Scan
from medclip_jax.volumes.volume import VolumeRejected

_MILLIMETERS = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_SINGLE, _PAIR = (b"n+1", b"n+2"), (b"ni1", b"ni2")
_LONGEST_EXTENSIONS = 1 << 20
"""Bytes between header and voxels that are read to see where the voxels start."""


def read_nifti(path: Path, *, labels: bool = False, frames: bool = False, channel: int | None = None) -> Scan:
    """Read one NIfTI file, or a pair of .hdr and .img, with the header's own scaling applied.

    Args:
        path: the file; either one of a pair.
        labels: it is a label map.
        frames: it may hold several phases, and a single slice: voxels are (I, J, K, phase).
        channel: which of the volumes along the fourth axis is meant, from 0; None for files of one volume.

    Raises:
        VolumeRejected: see the table of codes in `docs/reference/volumes.md`.
    """
    is_pair = path.name.lower().removesuffix(".gz").endswith((".hdr", ".img"))
    head, data = _pair(path) if is_pair else (path, path)
    content = data.read_bytes()
    zipped = content[:2] == b"\x1f\x8b"
    start = _first_bytes(head) if is_pair else peek(content, _LONGEST_EXTENSIONS) if zipped else content
    if zipped and len(start) < nib.Nifti1Header.sizeof_hdr:
        raise VolumeRejected("truncated-file", "The gzip data end early: copy or download the file again.")
    header = _header(start)
    notes: list[str] = []
    dtype = _data_type(header)
    several = frames or channel is not None
    shape = _frame_shape(header, notes) if several else _spatial_shape(header, notes)
    wanted = int(np.prod(shape, dtype=object)) * dtype.itemsize
    offsets = _possible_offsets(header, start, is_pair)
    check_size(wanted, len(content), labels=labels)
    surplus = 0
    if zipped:
        content, surplus = inflate(content, max(offsets) + wanted, GZIP)
    length = len(content) + surplus
    offset = _offset(header, offsets, length - wanted, notes)
    if length - offset - wanted > 0:
        notes.append(f"bytes-after-voxels:{length - offset - wanted}")
    if int(header["bitpix"]) != 8 * dtype.itemsize:
        if length - offset != wanted:
            raise VolumeRejected(
                "damaged-header",
                "The header's data type and its bits per voxel contradict each other: export the file again.",
            )
        notes.append("bits-per-voxel-ignored")
    voxels, slope, intercept = _voxels(content, header, dtype, shape, offset)
    if channel is not None:
        voxels = _channel(voxels, channel)
    affine, placed = _affine(header, notes)
    provenance = {
        "format": "nifti",
        "stored_type": str(dtype),
        "header_rescale": (slope, intercept),
        "sform_code": int(header["sform_code"]),
        "qform_code": int(header["qform_code"]),
    }
    return Scan(voxels, affine, placed, None, provenance, tuple(notes))


def _pair(path: Path) -> tuple[Path, Path]:
    """Header and image file of a pair, by the name of either."""
    name = path.name.lower().removesuffix(".gz")
    stem = path.name[: len(name) - 4]
    found = []
    for ending in (".hdr", ".img"):
        names = [path] if name.endswith(ending) else [path.with_name(stem + ending + z) for z in ("", ".gz")]
        existing = [candidate for candidate in names if candidate.is_file()]
        if not existing:
            raise VolumeRejected(
                "missing-file",
                f"The {ending} file of the pair is not beside the other: copy both, or convert to .nii.gz.",
            )
        found.append(existing[0])
    return found[0], found[1]


def _first_bytes(path: Path) -> bytes:
    content = path.read_bytes()
    return peek(content, _LONGEST_EXTENSIONS) if content[:2] == b"\x1f\x8b" else content


def _possible_offsets(header: nib.Nifti1Header, start: bytes, is_pair: bool) -> list[int]:
    """Where the voxels may start: as the header says first, then where such files usually have them."""
    try:
        stated = int(header["vox_offset"])
    except (ValueError, OverflowError):
        stated = -1  # NaN or infinite
    if is_pair:
        return [stated] if stated >= 0 else [0]
    size = header.sizeof_hdr
    offsets = [stated] if size <= stated < 1 << 40 else []
    after = size + 4
    flag, place = start[size : size + 4], size + 4
    while flag[:1] not in (b"", b"\0") and place + 8 <= len(start):
        length = int.from_bytes(start[place : place + 4], "little" if header.endianness == "<" else "big")
        if length < 16 or length % 16 or place + length > len(start):
            break
        place += length
        after = place
    return list(dict.fromkeys([*offsets, after, size + 4, size]))


def _offset(header: nib.Nifti1Header, offsets: list[int], room: int, notes: list[str]) -> int:
    """Where the voxels start: the header's word counts, unless it lies inside the header or its extensions.

    Args:
        header: of the file.
        offsets: that are possible, the stated one first where it is.
        room: bytes of the file beside the voxels.
        notes: to add to.
    """
    try:
        stated = int(header["vox_offset"])
    except (ValueError, OverflowError):
        stated = -1
    if room < min(offsets):
        raise VolumeRejected(
            "truncated-file", "The file holds fewer voxels than its header says: copy or download it again."
        )
    fitting = [offset for offset in offsets if offset == room]
    if stated in offsets and (len(offsets) == 1 or stated == room or (stated >= offsets[1] and not fitting)):
        if stated > room:
            raise VolumeRejected(
                "truncated-file",
                "The file holds fewer voxels than its header says: copy or download it again.",
            )
        return stated
    if not fitting:
        raise VolumeRejected(
            "damaged-header",
            f"The header says that voxels start at byte {stated}, inside the header, and the file's length "
            "does not tell where they do: set vox_offset, or export the file again.",
        )
    notes.append(f"voxel-offset-mended:{fitting[0]}")
    return fitting[0]


def _header(content: bytes) -> nib.Nifti1Header:
    for kind, size in ((nib.Nifti1Header, 348), (nib.Nifti2Header, 540)):
        if len(content) >= size and size in (
            int.from_bytes(content[:4], "little"),
            int.from_bytes(content[:4], "big"),
        ):
            try:
                header = kind(content[:size], check=False)
            except Exception:  # nibabel raises many types here, all meaning the same
                break
            if header["magic"].item()[:3] not in (*_SINGLE, *_PAIR):
                raise VolumeRejected(
                    "not-nifti",
                    "The header lacks NIfTI's mark (ANALYZE 7.5?), and without it holds no orientation: "
                    "convert from DICOM again (dcm2niix).",
                )
            return header
    raise VolumeRejected(
        "not-nifti",
        "The file has no NIfTI header: check that it is a NIfTI file and that it was copied whole.",
    )


def _stated_shape(header: nib.Nifti1Header, notes: list[str]) -> list[int]:
    """Lengths of all axes that the header names, checked as far as any file's must be."""
    rank = int(header["dim"][0])
    if not 1 <= rank <= 7:
        raise VolumeRejected(
            "damaged-header", "The header's number of dimensions is invalid: export it again."
        )
    shape = [int(n) for n in header["dim"][1 : rank + 1]]
    if rank > 3 and min(shape[3:]) == 0:
        shape[3:] = [n or 1 for n in shape[3:]]  # left empty by some writers
        notes.append("empty-dimension-ignored")
    if min(shape) < 1:
        raise VolumeRejected(
            "damaged-header", "The header gives an axis of no length: export the file again."
        )
    if rank > 3 and shape[0] == 1 and min(shape[1:4]) > 1:
        raise VolumeRejected(
            "channel-first",
            "The first axis has length 1, as arrays with channels have, so that the header's spacing and "
            "orientation belong to the wrong axes: save the array without that axis, with the scan's affine.",
        )
    return shape


def _frame_shape(header: nib.Nifti1Header, notes: list[str]) -> tuple[int, int, int, int]:
    """x, y, slice, phase."""
    shape = _stated_shape(header, notes)
    if any(n > 1 for n in shape[4:]):
        raise VolumeRejected(
            "several-series-in-one",
            f"The file has {len(shape)} dimensions ({'x'.join(map(str, shape))}), a series of frames has x, "
            f"y, slice and phase: write each of the {int(np.prod(shape[4:]))} to a file of its own.",
        )
    shape = [*shape, 1, 1, 1][:4]
    if min(shape[:2]) < 2:
        raise VolumeRejected("not-3d", "The pictures have a single row or column: export the series again.")
    return tuple(shape)


def _spatial_shape(header: nib.Nifti1Header, notes: list[str]) -> tuple[int, int, int]:
    shape = _stated_shape(header, notes)
    rank = len(shape)
    if any(n > 1 for n in shape[3:]):
        raise VolumeRejected(
            "several-frames",
            f"The file holds {int(np.prod(shape[3:]))} volumes in one array: write each to its own file, "
            "or prepare a moving MR series with --corpus cmr."
            if min(shape[:3]) > 1
            else "The file holds flat images along a fourth axis: stack them along the third one.",
        )
    if rank > 3:
        notes.append("one-frame-of-4d")
    if rank < 3 and int(header["dim"][3]) > 1:
        raise VolumeRejected(
            "damaged-header",
            f"The header says {rank} dimensions and gives a third axis of length {int(header['dim'][3])}: "
            "set dim[0] to 3.",
        )
    shape = [*shape, 1, 1][:3]
    if min(shape) < 2:
        raise VolumeRejected(
            "not-3d", "The image is flat, not a volume: leave it out or export the whole series."
        )
    return tuple(shape)


def _channel(voxels: Shaped[np.ndarray, "I J K channels"], channel: int) -> Shaped[np.ndarray, "I J K"]:
    """One volume of several in a file."""
    if not 0 <= channel < voxels.shape[3]:
        raise VolumeRejected(
            "no-such-channel",
            f"The file holds {voxels.shape[3]} volumes, and number {channel} (from 0) was asked for: choose "
            "another channel, or correct what the data set says of its channels.",
        )
    if min(voxels.shape[:3]) < 2:
        raise VolumeRejected("not-3d", "The volumes of the file are flat: leave it out.")
    return voxels[..., channel]


def _data_type(header: nib.Nifti1Header) -> np.dtype:
    try:
        dtype = header.get_data_dtype()
    except Exception:
        raise VolumeRejected(
            "damaged-header", "The header's data type is invalid: export the file again."
        ) from None
    if dtype.fields is not None:
        raise VolumeRejected(
            "color", "The image is in color, not HU: export the scan itself, not a rendering."
        )
    if dtype.kind not in "iuf" or not dtype.itemsize:
        raise VolumeRejected(
            "unsupported-type", "The voxels are not real numbers: export as int16 or float32."
        )
    return dtype


def _voxels(content: bytes, header: nib.Nifti1Header, dtype: np.dtype, shape: tuple[int, ...], offset: int):
    """Values with the header's slope and intercept applied, and the two."""
    voxels = np.frombuffer(content, dtype, math.prod(shape), offset).reshape(shape, order="F")
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
    sform, qform = _sform(header), _qform(header)
    if sform is False or (sform is None and qform is False):
        raise VolumeRejected(
            "damaged-header", "The header's orientation is invalid: write a valid sform affine."
        )
    sizes = np.abs(header["pixdim"][1:4].astype(float))
    if qform is False:
        notes.append("invalid-qform-ignored")
        qform = None
    if sform is not None and qform is not None and not np.allclose(sform, qform, atol=1e-2, rtol=1e-3):
        notes.append("sform-qform-disagree")
        if np.array_equal(sform, np.eye(4)) or np.linalg.matrix_rank(sform[:3, :3]) < 3:
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


def _sform(header: nib.Nifti1Header) -> np.ndarray | bool | None:
    """The sform, None where there is none, False where it is not finite."""
    if header["sform_code"] <= 0:
        return None
    sform = header.get_sform()
    return sform if np.isfinite(sform).all() else False


def _qform(header: nib.Nifti1Header) -> np.ndarray | bool | None:
    """The qform, None where there is none, False where it is invalid."""
    if header["qform_code"] <= 0:
        return None
    if header["pixdim"][0] == 0:
        header["pixdim"][0] = 1  # the standard
    try:
        return header.get_qform()
    except Exception:  # nibabel raises many types here, all meaning the same
        return False
