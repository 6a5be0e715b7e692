"""One entry for every kind of file: read, orient, rescale, check."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Integer, Real

from medclip_jax.volumes.arrays import SUFFIXES as ARRAYS
from medclip_jax.volumes.arrays import axes_affine, read_array
from medclip_jax.volumes.checks import check_hu, fill_missing, fill_padding, resolve_rescale, to_int16, unwrap
from medclip_jax.volumes.dicom import read_dicom
from medclip_jax.volumes.dicom_choice import Wanted
from medclip_jax.volumes.dicom_files import is_dicom
from medclip_jax.volumes.formats import explain
from medclip_jax.volumes.geometry import canonical, straighten
from medclip_jax.volumes.itk import read_itk
from medclip_jax.volumes.modality import check_percentiles, modality_of, window_by_percentiles
from medclip_jax.volumes.nifti import read_nifti
from medclip_jax.volumes.scan import Scan
from medclip_jax.volumes.volume import Volume, VolumeRejected

SPACING_LIMITS_MM = (0.05, 25.0)
"""Voxel sizes outside this range are header errors, not scans."""


def read_volume(
    path: str | Path | Sequence[str | Path],
    *,
    rescale: tuple[float, float] | None = None,
    modality: str = "CT",
    spacing: Sequence[float] | None = None,
    series: str | None = None,
    kernel: str | None = None,
    rule: str = "best",
    percentiles: Sequence[float] | None = None,
    axes: str | None = None,
    raw: bool = False,
    channel: int | None = None,
) -> Volume:
    """Read a scan as int16 Hounsfield units in canonical orientation.

    Args:
        path: NIfTI (.nii, .nii.gz), NRRD, MHA or MHD file, a DICOM file with many frames, a folder with a
            DICOM series, or the files of one series; with `axes` and `spacing` also a bare array (.npy, or
            .npz with one array or one named ``ct``).
        rescale: (slope, intercept) from a table, for archives whose files hold raw values. A file that is
            already in HU is noticed and left as it is, with a note.
        modality: "CT" or "MR". MR keeps the scanner's units.
        spacing: mm along depth, height, width from a table, where the file's header lacks it.
        series: which DICOM series of the folder: SeriesInstanceUID or SeriesNumber.
        kernel: only series of this reconstruction kernel: "soft", "medium", "sharp", or a ConvolutionKernel,
            with wildcards ("B3*").
        rule: how one of several series is chosen: "best", "largest", "thinnest" or "original", see
            `docs/reference/volumes.md`.
        percentiles: window an MR series' intensities by two of its percentiles, see
            `volumes.modality.window_by_percentiles`.
        axes: where the axes of the file's array point, such as "LPS", for a file that does not say; see
            `volumes.arrays.axes_affine`.
        raw: the archive is known to hold raw values: `rescale` is applied without a look at them.
        channel: of a 4D NIfTI with several sequences, which one, from 0.

    Raises:
        VolumeRejected: the file must not enter training; the code is stable, the message holds the fix.
        ValueError: an argument is wrong.
    """
    if axes and isinstance(path, str | os.PathLike) and str(path).lower().endswith(ARRAYS):
        scan = _guarded(lambda: read_array(_existing(Path(path)), axes, spacing))
    elif channel is not None:
        scan = _guarded(lambda: read_nifti(_existing(Path(path)), channel=channel))
    else:
        scan = read_scan(path, modality=modality, series=series, kernel=kernel, rule=rule)
    return to_volume(
        scan,
        rescale=rescale,
        modality=modality,
        spacing=spacing,
        percentiles=percentiles,
        axes=axes,
        raw=raw,
    )


def read_scan(
    path: str | Path | Sequence[str | Path],
    *,
    modality: str = "CT",
    series: str | None = None,
    kernel: str | None = None,
    rule: str = "best",
) -> Scan:
    """Read a scan as the file has it: its own orientation, the header's rescale applied, nothing checked.

    Args:
        path: as for `read_volume`; so are the others.

    Raises:
        VolumeRejected, ValueError: as `read_volume`.
    """
    modality_of(modality)
    wanted = Wanted(series, kernel, rule, modality)
    if not isinstance(path, str | os.PathLike):
        path = [Path(file) for file in path]
    return _read(path if isinstance(path, list) else Path(path), wanted)


def to_volume(
    scan: Scan,
    *,
    rescale: tuple[float, float] | None = None,
    modality: str = "CT",
    spacing: Sequence[float] | None = None,
    percentiles: Sequence[float] | None = None,
    axes: str | None = None,
    raw: bool = False,
) -> Volume:
    """Bring a scan to canonical orientation and int16, with geometry and Hounsfield units checked.

    Args:
        scan: from `read_scan` or `images.to_scan`.
        rescale: as for `read_volume`; so are the others.

    Raises:
        VolumeRejected, ValueError: as `read_volume`.
    """
    rule = modality_of(modality)
    check_percentiles(percentiles, modality)
    if scan.modality is not None and scan.modality != modality:
        raise VolumeRejected(
            "wrong-modality",
            f"The header says {scan.modality}, {modality} was expected: leave the scan out, or say that its "
            'modality is "CT" or "MR" if that is wanted.',
        )
    voxels, affine, notes, stored_axes = _place(scan, spacing, axes)
    spacing_read = tuple(float(x) for x in np.linalg.norm(affine[:3, :3], axis=0))
    provenance = dict(scan.provenance)
    provenance |= {"modality": modality, "orientation": stored_axes, "spacing": spacing_read}
    if rescale is not None:
        version = "v1" if raw else "auto"
        if rule.absolute:
            (slope, intercept), more = resolve_rescale(voxels, rescale, version=version)
        else:
            (slope, intercept), more = rescale, ()
        notes += more
        provenance["rescale"] = (slope, intercept)
        if (slope, intercept) != (1.0, 0.0):
            voxels = voxels.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    voxels, more = fill_missing(voxels, modality)
    notes += more
    if rule.absolute:
        voxels, more = unwrap(voxels)
        notes += more
    voxels, scaled = to_int16(voxels, modality)
    notes += check_hu(Volume(voxels, spacing_read, affine), modality=modality)
    if rule.absolute:
        voxels, more = fill_padding(voxels)
        notes += more
    if percentiles is not None:
        voxels, window = window_by_percentiles(voxels, percentiles)
        scaled |= {"window": window}
    voxels, affine, more = straighten(voxels, affine, fill=int(rule.outside(voxels)))
    spacing_read = tuple(float(x) for x in np.linalg.norm(affine[:3, :3], axis=0))
    return Volume(voxels, spacing_read, affine, provenance | scaled, notes + more)


def read_labels(path: str | Path) -> tuple[Integer[np.ndarray, "D H W"], Float[np.ndarray, "4 4"]]:
    """Read a mask or label map (NIfTI, NRRD, MHA) in canonical orientation.

    Returns:
        Integer labels (D, H, W), and the affine from ``(d, h, w, 1)`` to RAS+ mm; for `resample_labels`.

    Raises:
        VolumeRejected: the file cannot be read, or its values are no labels: fractions, or
            numbers below 0 ("not-labels").
    """
    voxels, affine, _, _ = _place(_read(Path(path), Wanted(), labels=True), None, None)
    if voxels.dtype.kind == "f":
        whole = np.rint(voxels)
        if not np.isfinite(voxels).all() or np.abs(whole - voxels).max() > 1e-3:
            raise VolumeRejected(
                "not-labels",
                "The label map holds fractions: resample it with nearest neighbor and export it again.",
            )
        voxels = whole.astype(np.int32)
    if voxels.min() < 0:
        raise VolumeRejected(
            "not-labels",
            f"The label map holds {voxels.min()}, and labels start from 0: is this a scan and no mask?",
        )
    return voxels, affine


def _axes(affine: Float[np.ndarray, "4 4"]) -> str:
    """Where the file's axes point, e.g. "LPS"."""
    letters = ("LR", "PA", "IS")
    columns = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    largest = np.abs(columns).argmax(axis=0)
    return "".join(letters[row][int(columns[row, axis] > 0)] for axis, row in enumerate(largest))


def _read(path: Path | list[Path], wanted: Wanted, *, labels: bool = False) -> Scan:
    return _guarded(lambda: _read_any(path, wanted, labels))


def _read_any(path: Path | list[Path], wanted: Wanted, labels: bool) -> Scan:
    if isinstance(path, list):
        return read_dicom(path, wanted)
    if _existing(path).is_dir():
        return read_dicom(path, wanted)
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return read_nifti(path, labels=labels)
    if name.endswith((".nrrd", ".nhdr", ".mha", ".mhd")):
        return read_itk(path, labels=labels)
    if name.endswith((".hdr", ".hdr.gz", ".img", ".img.gz")) and not is_dicom(path):
        return read_nifti(path, labels=labels)
    if not is_dicom(path):
        raise explain(path)
    return read_dicom(path, wanted)


def _existing(path: Path) -> Path:
    """The path, where there is a folder or a file that is not empty."""
    if not path.exists():
        raise VolumeRejected("missing-file", "There is no such file or folder: check the path in the table.")
    if path.is_file() and path.stat().st_size == 0:
        raise VolumeRejected("truncated-file", "The file is empty: copy or download it again.")
    return path


def _guarded(read: Callable[[], Scan]) -> Scan:
    try:
        return read()
    except OSError as error:
        # The error's own text would quote the path.
        raise VolumeRejected(
            "unreadable",
            f"The file cannot be opened (system error {error.errno}): check permissions and disk.",
        ) from None


def _place(
    scan: Scan, spacing: Sequence[float] | None, axes: str | None
) -> tuple[Real[np.ndarray, "D H W"], Float[np.ndarray, "4 4"], tuple[str, ...], str]:
    """Canonical voxels and affine, with the header's geometry checked; notes so far; the file's own axes."""
    notes = scan.notes
    affine = scan.affine
    placed = scan.placed
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or (lengths == 0).any():
        if spacing is None or not np.isfinite(affine).all():
            raise VolumeRejected(
                "zero-spacing",
                "The header's affine has an axis of no length or no number: write the true affine.",
            )
        affine, placed = np.eye(4), False
    if not placed:
        if spacing is None:
            raise VolumeRejected(
                "no-orientation",
                "The header holds no orientation and spacing (no sform or qform, or the identity): convert "
                "from DICOM again (dcm2niix), or give the spacing from the archive's table.",
            )
        if axes:
            affine = axes_affine(axes)
        notes += ("orientation-from-table" if axes else "orientation-assumed",)
    stored_axes = _axes(affine) if placed or axes else "unknown"
    try:
        voxels, affine = canonical(scan.voxels, affine)
    except ValueError:
        raise VolumeRejected(
            "sheared-grid", "The header's axes are parallel: write the true affine."
        ) from None
    if spacing is not None:
        wanted = np.asarray(spacing, dtype=float)
        if wanted.shape != (3,) or not (np.isfinite(wanted).all() and (wanted > 0).all()):
            raise ValueError(
                f"spacing must be three positive numbers (depth, height, width) in mm, got {spacing}"
            )
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if not np.allclose(lengths, wanted, rtol=1e-2):
            notes += ("spacing-from-table",)
            affine = affine.copy()
            affine[:3, :3] *= wanted / lengths
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if lengths.min() < SPACING_LIMITS_MM[0] or lengths.max() > SPACING_LIMITS_MM[1]:
        raise VolumeRejected(
            "implausible-spacing",
            f"Voxels of {' x '.join(f'{x:.4g}' for x in lengths)} mm cannot be right: correct the header, or "
            "give the spacing from the archive's table.",
        )
    angle = np.degrees(np.arccos(np.clip(np.abs(np.diag(affine[2::-1, :3] / lengths)), 0, 1).min()))
    if angle > 0.5:
        notes += (f"oblique:{angle:.0f}deg",)
    return voxels, affine, notes, stored_axes
