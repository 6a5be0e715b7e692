"""DICOM series in, one scan out: the slices that were chosen, in order, in HU, on an even grid.

`dicom_files` finds and opens files, `dicom_headers` reads what they say, `dicom_stacks` and `dicom_choice`
say which slices make the scan. pydicom reads headers and native or RLE pixels; SimpleITK decodes the JPEG
families.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from jaxtyping import Float, Real

from medclip_jax.volumes.dicom_choice import Wanted, choose, group_series, kernel_class, name_series
from medclip_jax.volumes.dicom_files import (
    by_pydicom,
    name_syntax,
    path_for_itk,
    read_pixels,
    silenced,
    walk,
)
from medclip_jax.volumes.dicom_headers import MODALITIES, DicomFile, Slice, read_file, read_identity
from medclip_jax.volumes.dicom_stacks import SAME_POSITION_MM, Stack
from medclip_jax.volumes.formats import explain_folder
from medclip_jax.volumes.scan import Scan
from medclip_jax.volumes.volume import VolumeRejected

_PADDING_HU = -32768
"""Stands for declared padding until `fill_padding` counts it and writes air."""

_SEAM_HU = 400
"""No neighbors in a body differ by so much in their median, and a wrong intercept is off by about 1000."""


def read_dicom(source: Path | Sequence[Path], wanted: Wanted) -> Scan:
    """Read the series that is wanted of a folder, a multi-frame file, or some files, in HU.

    Args:
        source: a folder, searched with all that lies below; one file; or the files of one series.
        wanted: which series, where there are several.

    Raises:
        VolumeRejected: see the table of codes in `docs/reference/volumes.md`.
        OSError: the folder cannot be opened.
    """
    with silenced():
        files = read_headers(source, wanted)
        if not files and isinstance(source, Path):
            raise explain_folder(source)
        stack, notes = choose(files, wanted)
        return _assemble(stack, notes)


def check_stack(stack: Stack) -> None:
    """Everything about a stack that can be known without its pixels.

    Raises:
        VolumeRejected: it cannot become a volume.
    """
    rescales_of(stack.slices)
    rows, columns = _directions(stack)
    along = stack.along
    order = np.argsort(along, kind="stable")
    kept = [stack.slices[order[0]]]
    for before, place in pairwise(order):
        if along[place] - along[before] >= SAME_POSITION_MM:
            kept.append(stack.slices[place])
    _even_grid(kept, np.cross(rows, columns))


def read_headers(source: Path | Sequence[Path], wanted: Wanted) -> list[DicomFile]:
    """Of all DICOM files; where a series is named, only of what belongs to it.

    Raises:
        VolumeRejected: "unreadable" where a folder or file may not be opened: slices may lie there.
    """
    if not isinstance(source, Path):
        return _read_each(source, read_file)
    if source.is_file():
        return _read_each([source], read_file)
    if wanted.series is None:
        return _read_folder(source, read_file)
    identities = _identities(source, source.stat().st_mtime_ns)
    named = (file for series in name_series(group_series(identities), wanted) for file in series.members)
    unknown = (file for file in identities if not file.uid)
    return _read_each([file.path for file in (*named, *unknown)], read_file)


@lru_cache(maxsize=2)
def _identities(folder: Path, changed: int) -> tuple[DicomFile, ...]:
    """Whose the files of a folder are. Kept, because a table may name one series of it after the other."""
    return tuple(_read_folder(folder, read_identity))


def _read_folder(folder: Path, read: Callable[[Path], DicomFile | None]) -> list[DicomFile]:
    closed: list[OSError] = []
    paths = [Path(place, name) for place, _, names in walk(folder, closed.append) for name in names]
    return _read_each(paths, read, closed)


def _read_each(
    paths: Iterable[Path], read: Callable[[Path], DicomFile | None], failed: Sequence[OSError] = ()
) -> list[DicomFile]:
    found, failed = [], list(failed)
    for path in paths:
        try:
            file = read(path)
        except OSError as error:
            failed.append(error)
            continue
        if file is not None:
            found.append(file)
    if failed:
        # The errors' own texts would quote paths.
        reason = Counter(os.strerror(error.errno or 0) for error in failed).most_common(1)[0][0]
        several = f"{len(failed)} files or subfolders" if len(failed) > 1 else "One file or subfolder"
        raise VolumeRejected(
            "unreadable",
            f"{several} cannot be opened ({reason}), and slices may lie there: fix the permissions, or the "
            "disk, and read again.",
        )
    return found


def _assemble(stack: Stack, notes: list[str]) -> Scan:
    first = stack.slices[0]
    rescales = rescales_of(stack.slices)
    by_file = defaultdict(set)
    for item, rescale in zip(stack.slices, rescales, strict=True):
        if item.frame is not None and not by_pydicom(item.transfer_syntax):
            by_file[item.path].add(rescale)
    # SimpleITK applies the first frame's rescale to all frames of a file.
    if any(len(found) > 1 for found in by_file.values()):
        raise VolumeRejected(
            "unsupported-rescale",
            "The compressed frames differ in slope or intercept: decompress the file first (gdcmconv --raw).",
        )
    rows, columns = _directions(stack)
    normal = np.cross(rows, columns)
    planes, kept, duplicates = _planes(stack, rescales)
    if duplicates:
        notes = [*notes, f"duplicate-slices:{duplicates}"]
    if len(kept) < 2:
        raise VolumeRejected(
            "single-slice", "All slices lie at one position: give the folder with the whole series."
        )
    start, step = _even_grid(kept, normal)
    affine = np.eye(4)
    affine[:3, 0] = step
    row_spacing, column_spacing = np.median([item.pixel_spacing for item in kept], axis=0)
    affine[:3, 1] = columns * row_spacing
    affine[:3, 2] = rows * column_spacing
    affine[:3, 3] = start
    provenance = {
        "format": "dicom",
        "transfer_syntax": name_syntax(first.transfer_syntax),
        "slices": len(kept),
        "slice_thickness": first.thickness,
        "header_rescale": sorted(set(rescales))[:4],
        "kernel": kernel_class(stack.mark("ConvolutionKernel")),
    }
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    modality = first.modality if first.modality in ("", *MODALITIES) else "another modality"
    return Scan(np.stack(planes), to_ras @ affine, True, modality or None, provenance, tuple(notes))


def _directions(stack: Stack) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]:
    """Of rows and columns, common to all slices: the median, which headers that jitter do not move."""
    rows = np.median([item.rows for item in stack.slices], axis=0)
    columns = np.median([item.columns for item in stack.slices], axis=0)
    if abs(np.linalg.norm(np.cross(rows, columns)) - 1) > 1e-2:
        raise VolumeRejected(
            "sheared-grid", "Rows and columns are not at right angles: export the series again."
        )
    return rows, columns


def rescales_of(slices: Sequence[Slice]) -> list[tuple[float, float]]:
    """Slope and intercept of each slice.

    Raises:
        VolumeRejected: some slices lack what the others have, and nobody knows what theirs is.
    """
    rescales = [
        (1.0 if item.slope is None else item.slope, 0.0 if item.intercept is None else item.intercept)
        for item in slices
    ]
    lacking = [item.slope is None or item.intercept is None for item in slices]
    if any(lacking) and not all(lacking) and set(rescales) != {(1.0, 0.0)}:
        raise VolumeRejected(
            "mixed-rescale",
            f"{sum(lacking)} of {len(slices)} slices lack the RescaleSlope or RescaleIntercept that the "
            "others have, so their HU are unknown: export the series again.",
        )
    return rescales


def _planes(
    stack: Stack, rescales: Sequence[tuple[float, float]]
) -> tuple[list[Real[np.ndarray, "H W"]], list[Slice], int]:
    """Pictures in HU from the lowest slice up, their slices, and how many identical copies were dropped."""
    planes: list[np.ndarray] = []
    kept: list[Slice] = []
    duplicates = 0
    decoded: dict[Path, np.ndarray] = {}
    rescale = None
    along = stack.along
    for place in np.argsort(along, kind="stable"):
        item = stack.slices[place]
        if item.path not in decoded:
            if item.frame is None:
                decoded.clear()
            decoded[item.path] = decode(item)
        plane = rescaled(decoded[item.path], item, *rescales[place])
        if kept and float((item.position - kept[-1].position) @ kept[0].normal) < SAME_POSITION_MM:
            if not np.array_equal(plane, planes[-1]):
                raise VolumeRejected(
                    "several-phases",
                    "Different images lie at the same position (phases, kernels or time points): "
                    "split them into one folder each.",
                )
            duplicates += 1
            continue
        if planes and item.modality == "CT" and rescales[place] != rescale:
            _check_seam(planes[-1], plane)
        planes.append(plane)
        kept.append(item)
        rescale = rescales[place]
    return planes, kept, duplicates


def _check_seam(below: Real[np.ndarray, "H W"], above: Real[np.ndarray, "H W"]) -> None:
    """Refuse neighbors of different rescale whose values jump: one of the two is not what its values need."""
    jump = abs(float(np.median(above[::4, ::4])) - float(np.median(below[::4, ::4])))
    if jump > _SEAM_HU:
        raise VolumeRejected(
            "mixed-rescale",
            f"Slices with another RescaleSlope or RescaleIntercept lie {jump:.0f} HU off their neighbors: "
            "export the series again.",
        )


def _even_grid(
    slices: Sequence[Slice], normal: Float[np.ndarray, " 3"]
) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]:
    """The first position and the step from slice to slice, checked to be even; SliceThickness is no guide."""
    positions = np.stack([item.position for item in slices])
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    # Headers round positions, often to 0.1 mm: what counts is each slice's distance from the even grid
    # that fits best, not each gap.
    index = np.arange(len(positions))
    step, start = np.polyfit(index, positions, 1)
    if np.abs(positions - (start + index[:, None] * step)).max() <= max(0.1 * usual, 0.06):
        return start, step
    multiples = np.rint(gaps / usual).astype(int)
    whole = bool((np.abs(gaps - multiples * usual) <= 0.1 * usual).all()) and multiples.max() > 1
    if whole and _are_lost(slices, multiples):
        lost = int((multiples - 1).sum())
        raise VolumeRejected(
            "missing-slices",
            f"{lost} {'slices are' if lost > 1 else 'slice is'} missing (gap {usual:.3g} mm, once "
            f"{gaps.max():.3g}): copy the whole series.",
        )
    if (np.abs(gaps - usual) <= 0.1 * usual).all():
        raise VolumeRejected(
            "uneven-gaps",
            "Slices shift sideways against each other: export an evenly spaced reconstruction.",
        )
    raise VolumeRejected(
        "uneven-gaps",
        f"The gap between slices changes, from {gaps.min():.3g} to {gaps.max():.3g} mm: export an evenly "
        "spaced reconstruction, or resample the scan to an even grid.",
    )


def _are_lost(slices: Sequence[Slice], multiples: Sequence[int]) -> bool:
    """Whether wide gaps are slices that were lost, rather than a scan that was planned with two gaps."""
    numbers = [item.number for item in slices]
    if None not in numbers and len(set(numbers)) == len(numbers):
        # Numbers that run on over a wide gap say that nothing was there.
        steps = [abs(after - before) for before, after in pairwise(numbers)]
        wide = [step > 1 for step, times in zip(steps, multiples, strict=True) if times > 1]
        narrow = [step for step, times in zip(steps, multiples, strict=True) if times == 1]
        if narrow and max(narrow) == 1:
            return any(wide)
    # Losses come one by one; three wide gaps of one size in a row are a plan.
    runs = zip(multiples, multiples[1:], multiples[2:], strict=False)
    return not any(a > 1 and a == b == c for a, b, c in runs)


def decode(item: Slice) -> Real[np.ndarray, "F H W"]:
    """All frames of a file: stored values where pydicom decodes, rescaled ones where SimpleITK does."""
    try:
        if by_pydicom(item.transfer_syntax):
            pixels = read_pixels(item.path).pixel_array
        else:
            reader = sitk.ImageFileReader()
            reader.SetImageIO("GDCMImageIO")
            with path_for_itk(item.path) as name:
                reader.SetFileName(name)
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


def rescaled(
    pixels: Real[np.ndarray, "F H W"], item: Slice, slope: float, intercept: float
) -> Real[np.ndarray, "H W"]:
    """The picture of one slice with its slope and intercept applied.

    Args:
        pixels: of its file, from `decode`.
        item: the slice.
        slope: of it.
        intercept: of it.
    """
    plane = pixels[item.frame or 0]
    if by_pydicom(item.transfer_syntax):
        whole = slope.is_integer() and intercept.is_integer()
        kind = np.int32 if whole and plane.dtype.kind in "iu" else np.float32
        plane = plane.astype(kind) * kind(slope) + kind(intercept)
    if item.padding is not None and item.modality == "CT":
        low, high = (slope * end + intercept for end in item.padding)
        # Some headers declare a padding value that tissue also has: only values no tissue has are trusted.
        if max(low, high) < -1000 or min(low, high) > 4000:
            plane = np.where((plane >= min(low, high)) & (plane <= max(low, high)), _PADDING_HU, plane)
    return plane
