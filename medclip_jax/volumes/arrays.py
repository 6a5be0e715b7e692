"""Bare arrays of voxels (.npy, .npz), whose axes and spacing somebody else must know."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Float, Real

from medclip_jax.volumes.content import check_size
from medclip_jax.volumes.scan import Scan
from medclip_jax.volumes.volume import VolumeRejected

SUFFIXES = (".npy", ".npz")

_WORLD = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
"""Direction to world axis (x right, y front, z up) and sign."""

_SPACED_BY = (2, 1, 0)
"""World axis to its place in a spacing of depth, height, width."""

_ENTRY = "ct"
"""Name of the volume in an .npz that holds several arrays; RAD-ChestCT's."""

_PICKLE = "unsupported-type", "The array holds Python objects, which are never opened: write numbers."


def axes_affine(axes: str, spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> Float[np.ndarray, "4 4"]:
    """The affine of an array whose axes run along those of the body.

    Args:
        axes: where the array's first, second and third axis point: one letter of RL, AP and SI each, "LPS".
        spacing: mm of a voxel along depth (S, I), height (A, P), width (R, L).

    Returns:
        From array index ``(i, j, k, 1)`` to RAS mm; index 0 lies at the origin.

    Raises:
        ValueError: axes that are none.
    """
    if len(axes) != 3 or {_WORLD.get(letter, (None,))[0] for letter in axes} != {0, 1, 2}:
        raise ValueError(
            f"axes {axes!r} are none: three letters such as 'LPS', of R or L, A or P, S or I one each"
        )
    affine = np.zeros((4, 4))
    affine[3, 3] = 1.0
    for place, letter in enumerate(axes):
        world, sign = _WORLD[letter]
        affine[world, place] = sign * spacing[_SPACED_BY[world]]
    return affine


def read_array(path: Path, axes: str, spacing: Sequence[float] | None) -> Scan:
    """Read a volume that is a bare array.

    Args:
        path: .npy, or .npz with one array, or with one named ``ct``.
        axes: where its axes point, as for `axes_affine`.
        spacing: mm of a voxel along depth, height, width.

    Raises:
        VolumeRejected: it holds no volume of numbers, is cut short, or its spacing is not known.
        ValueError: axes that are none, or no spacing of three positive numbers.
    """
    if spacing is None:
        raise VolumeRejected(
            "no-orientation",
            "An array does not say how many mm a voxel is: give the spacing, or write it as NIfTI.",
        )
    if len(spacing) != 3 or not all(np.isfinite(step) and step > 0 for step in spacing):
        raise ValueError(
            f"spacing must be three positive numbers (depth, height, width) in mm, got {spacing}"
        )
    affine = axes_affine(axes, spacing)
    kind = path.name.lower()[-4:]
    try:
        voxels = _from_npz(path) if kind == ".npz" else _from_npy(path)
    except VolumeRejected:
        raise
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError):
        raise VolumeRejected(
            "truncated-file",
            "The array cannot be read: the file is cut short or damaged. Copy or download it again.",
        ) from None
    return Scan(voxels, affine, True, None, {"format": kind[1:], "stored_type": str(voxels.dtype)})


def _from_npy(path: Path) -> Real[np.ndarray, "I J K"]:
    size = path.stat().st_size
    with path.open("rb") as opened:
        return _read(opened, size)


def _from_npz(path: Path) -> Real[np.ndarray, "I J K"]:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        member = members.get(_ENTRY) or (next(iter(members.values())) if len(members) == 1 else None)
        if member is None:
            raise VolumeRejected(
                "several-series-in-one" if members else "truncated-file",
                f"The file holds {len(members)} arrays and none is named '{_ENTRY}': write the volume to a "
                "file of its own.",
            )
        with archive.open(member) as opened:
            return _read(opened, member.compress_size)


def _read(opened: BinaryIO, stored: int) -> Real[np.ndarray, "I J K"]:
    """One array, its header judged before any voxel is read.

    Args:
        opened: at its start.
        stored: bytes of it in the file.
    """
    start = opened.read(8)
    version = np.lib.format.read_magic(io.BytesIO(start))
    length = opened.read(2 if version == (1, 0) else 4)
    start += length + opened.read(int.from_bytes(length, "little"))
    header = io.BytesIO(start)
    np.lib.format.read_magic(header)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reader(header)
    if dtype.hasobject:
        raise VolumeRejected(*_PICKLE)
    if dtype.kind not in "iuf":
        raise VolumeRejected("unsupported-type", "The array does not hold real numbers: write int16.")
    # Channels of length 1 in front are common where arrays were saved for a network.
    inner = shape[1:] if len(shape) == 4 and shape[0] == 1 else shape
    if len(inner) != 3 or min(inner, default=0) < 2:
        raise VolumeRejected("not-3d", f"The array has shape {shape}: a scan has three axes.")
    wanted = int(np.prod(inner, dtype=object)) * dtype.itemsize
    check_size(wanted, stored)
    content = opened.read(wanted)
    opened.read(1)  # to the end, where an .npz checks its checksum
    if len(content) < wanted:
        raise EOFError
    return np.frombuffer(content, dtype).reshape(inner, order="F" if fortran else "C")
