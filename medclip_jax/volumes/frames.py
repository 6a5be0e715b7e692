"""Series of pictures of slices, still or moving: cine and late enhancement MR, each slice in the plane it was
taken in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int16, Real

from medclip_jax.volumes.checks import check_hu, fill_missing, to_int16
from medclip_jax.volumes.crop import crop_and_resample
from medclip_jax.volumes.dicom_choice import Wanted
from medclip_jax.volumes.dicom_files import is_dicom
from medclip_jax.volumes.dicom_frames import read_dicom_frames
from medclip_jax.volumes.modality import check_percentiles, modality_of, window_by_percentiles
from medclip_jax.volumes.nifti import read_nifti
from medclip_jax.volumes.read import SPACING_LIMITS_MM, read_scan
from medclip_jax.volumes.scan import Scan
from medclip_jax.volumes.volume import Volume, VolumeRejected

_RIGHT_ON_SCREEN = np.array([-1.0, -0.5, 0.0])
"""Where columns should run to, RAS: to the patient's left; in a sagittal plane to the back."""

_DOWN_ON_SCREEN = np.array([0.0, -0.5, -1.0])
"""Where rows should run to, RAS: to the feet; in an axial plane to the back.

One weighted sum for all planes: a short axis lies between them, and two patients whose hearts lean a little
differently must not be shown in two ways."""

_NIFTI = tuple(ending + z for ending in (".nii", ".hdr", ".img") for z in ("", ".gz"))


@dataclass(frozen=True)
class Frames:
    """The pictures of one series.

    Columns run to the patient's left (to the back where the plane is sagittal), rows to the feet (to the back
    where it is axial): as radiologists look at them. Slices lie along ``columns x rows``.

    Attributes:
        voxels: (slices, phases, rows, columns); a series that does not move has one phase.
        spacing: mm between slices, rows, columns.
        notes: codes of what was corrected or is doubtful, as of `Volume`.
        provenance: how the series was read, as of `Volume`. No patient data.
    """

    voxels: Int16[np.ndarray, "S P H W"]
    spacing: tuple[float, float, float]
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, object] = field(default_factory=dict)

    def middle(self) -> Frames:
        """The middle slice alone, with all its phases; of an even number the upper of the two."""
        middle = len(self.voxels) // 2
        return replace(self, voxels=self.voxels[middle : middle + 1])


def read_frames(
    path: str | Path,
    *,
    modality: str = "MR",
    spacing: Sequence[float] | None = None,
    series: str | None = None,
    percentiles: Sequence[float] | None = None,
) -> Frames:
    """Read a series of slices with any number of phases.

    Args:
        path: NIfTI of (x, y), (x, y, slice) or (x, y, slice, phase); NRRD, MHA or MHD of slices; a folder
            with a DICOM series; an .npy of (rows, columns[, slices[, phases]]), which needs `spacing`.
        modality: one whose values are the scanner's own, such as "MR".
        spacing: mm between slices, rows, columns from a table, where the file's header lacks it.
        series: which DICOM series of the folder: SeriesInstanceUID or SeriesNumber.
        percentiles: window the intensities by two percentiles of the complete series, see
            `volumes.modality.window_by_percentiles`.

    Raises:
        VolumeRejected: the series must not enter training; the code is stable, the message holds the fix.
        ValueError: an argument is wrong, or the modality's values are absolute (CT).
    """
    if modality_of(modality).absolute:
        raise ValueError(f"{modality} is read as volumes: frames are windowed by what each series shows")
    check_percentiles(percentiles, modality)
    scan = _read(Path(path), modality, series)
    if scan.modality is not None and scan.modality != modality:
        raise VolumeRejected(
            "wrong-modality",
            f"The header says {scan.modality}, {modality} was expected: leave the series out, or correct the "
            "table.",
        )
    pictures, own, notes, plane = _hang(scan, spacing)
    slices, phases = pictures.shape[:2]
    provenance = dict(scan.provenance) | {"modality": modality, "plane": plane, "spacing": own}
    provenance |= {"slices": slices, "phases": phases}
    flat = pictures.reshape(-1, *pictures.shape[2:])
    flat, more = fill_missing(flat, modality)
    notes += more
    flat, scaled = to_int16(flat, modality)
    notes += check_hu(Volume(flat, own, np.eye(4)), modality=modality)
    notes += _check_motion(flat.reshape(pictures.shape))
    if percentiles is not None:
        flat, window = window_by_percentiles(flat, percentiles)
        scaled |= {"window": window}
    return Frames(flat.reshape(pictures.shape), own, notes, provenance | scaled)


def fit_frames(
    frames: Frames, shape: Sequence[int], spacing: Sequence[float | None]
) -> tuple[Frames, list[str]]:
    """Resample every picture in its plane and cut or pad it to one size; slices and phases stay as they are.

    Args:
        frames: of any size.
        shape: rows, columns wanted.
        spacing: mm between rows, between columns; None along an axis brings the picture's full extent to the
            size.

    Returns:
        The frames, and notes: "mostly-padding:P%" where the pictures cover less than a quarter of the size.
    """
    slices, phases, *_ = frames.voxels.shape
    stack = frames.voxels.reshape(-1, *frames.voxels.shape[2:])
    between, height, width = frames.spacing
    # Pictures one behind the other, as the slices of a volume are: along them nothing is interpolated.
    volume = Volume(stack, frames.spacing, np.diag([between, height, width, 1.0]), frames.provenance)
    fitted, notes = crop_and_resample(volume, (None, *shape), (None, *spacing))
    voxels = fitted.voxels.reshape(slices, phases, *fitted.voxels.shape[1:])
    own = (between, *(float(step) for step in fitted.spacing[1:]))
    return replace(frames, voxels=voxels, spacing=own), notes


def _read(path: Path, modality: str, series: str | None) -> Scan:
    """A series as the file has it; voxels (I, J, K) or (I, J, K, phase)."""
    try:
        name = path.name.lower()
        if path.is_dir() or is_dicom(path):
            return read_dicom_frames(path, Wanted(series, modality=modality))
        if path.is_file() and name.endswith(_NIFTI) and path.stat().st_size:
            return read_nifti(path, frames=True)
        if path.is_file() and name.endswith(".npy"):
            return _read_array(path)
    except OSError as error:
        raise VolumeRejected(
            "unreadable",
            f"The file cannot be opened (system error {error.errno}): check permissions and disk.",
        ) from None
    return read_scan(path, modality=modality)


def _read_array(path: Path) -> Scan:
    """A bare array, in the order of the public code of CMR-CLIP."""
    try:
        voxels = np.load(path, allow_pickle=False)
    except ValueError:
        raise VolumeRejected(
            "truncated-file",
            "The array cannot be read: it is cut short, or holds Python objects. Write it again as numbers.",
        ) from None
    if not isinstance(voxels, np.ndarray) or voxels.dtype.kind not in "iuf":
        raise VolumeRejected(
            "unsupported-type", "The array does not hold real numbers: write it as int16 or float32."
        )
    if not 2 <= voxels.ndim <= 4 or 0 in voxels.shape:
        raise VolumeRejected(
            "several-series-in-one",
            f"The array's shape is {'x'.join(map(str, voxels.shape))}: a series is rows, columns, slices and "
            "phases.",
        )
    voxels = voxels.reshape((*voxels.shape, 1, 1)[:4])
    return Scan(voxels.swapaxes(0, 1), np.eye(4), False, None, {"format": "npy"}, ())


def _hang(
    scan: Scan, spacing: Sequence[float] | None
) -> tuple[Real[np.ndarray, "S P H W"], tuple[float, float, float], tuple[str, ...], str]:
    """Pictures as radiologists hang them, mm between slices, rows, columns, notes, and the plane's name."""
    voxels = scan.voxels if scan.voxels.ndim == 4 else scan.voxels[..., None]
    notes = scan.notes
    if scan.placed:
        (rows, columns), flips, lengths, plane = _directions(scan.affine, voxels.shape[2])
    else:
        rows, columns, flips, plane = 1, 0, (False, False, False), "unknown"
        lengths = np.linalg.norm(scan.affine[:3, :3], axis=0)[[2, 1, 0]]
        if spacing is None and (lengths[1:] == 1).all():
            raise VolumeRejected(
                "no-orientation",
                "The header holds no orientation and spacing (no sform or qform, or the identity): convert "
                "from DICOM again (dcm2niix), or give the spacing from the archive's table.",
            )
        notes += ("orientation-assumed",)
    pictures = voxels.transpose(2, 3, rows, columns)
    picked = [slice(None, None, -1 if flip else 1) for flip in flips]
    pictures = pictures[picked[0], :, picked[1], picked[2]]
    own = np.array(lengths, float)
    own[0] = own[0] or 1.0  # of a single slice some headers do not say how far the next would be
    if spacing is not None:
        wanted = np.asarray(spacing, float)
        if wanted.shape != (3,) or not (np.isfinite(wanted).all() and (wanted > 0).all()):
            raise ValueError(f"spacing must be three positive numbers (slices, rows, columns), got {spacing}")
        if not np.allclose(own, wanted, rtol=1e-2):
            notes += ("spacing-from-table",)
        own = wanted
    low, high = SPACING_LIMITS_MM
    if not (np.isfinite(own).all() and low <= own[1:].min() and own[1:].max() <= high):
        raise VolumeRejected(
            "implausible-spacing",
            f"Pixels of {' x '.join(f'{x:.4g}' for x in own[1:])} mm cannot be right: correct the header, or "
            "give the spacing from the archive's table.",
        )
    return pictures, tuple(float(x) for x in own), notes, plane


def _directions(
    affine: Float[np.ndarray, "4 4"], slices: int
) -> tuple[tuple[int, int], tuple[bool, bool, bool], Float[np.ndarray, " 3"], str]:
    """Which array axes become rows and columns, which axes (slices, rows, columns) are reversed, mm along
    them, and the name of the plane."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or (lengths[:2] == 0).any():
        raise VolumeRejected(
            "zero-spacing",
            "The header's affine has an axis of no length or no number: write the true affine.",
        )
    first, second = affine[:3, 0] / lengths[0], affine[:3, 1] / lengths[1]
    if abs(first @ second) > 1e-2:
        raise VolumeRejected(
            "sheared-grid", "Rows and columns are not at right angles: export the series again."
        )
    as_stored = abs(first @ _RIGHT_ON_SCREEN) + abs(second @ _DOWN_ON_SCREEN)
    turned = abs(second @ _RIGHT_ON_SCREEN) + abs(first @ _DOWN_ON_SCREEN)
    rows, columns = (1, 0) if as_stored >= turned - 1e-6 else (0, 1)
    right, down = affine[:3, columns] / lengths[columns], affine[:3, rows] / lengths[rows]
    flip_rows, flip_columns = bool(down @ _DOWN_ON_SCREEN < 0), bool(right @ _RIGHT_ON_SCREEN < 0)
    normal = np.cross(-right if flip_columns else right, -down if flip_rows else down)
    step = float(affine[:3, 2] @ normal)
    if slices > 1 and abs(step) < 0.1 * max(lengths[2], 1e-6):
        raise VolumeRejected("sheared-grid", "The slices lie in each other's plane: write the true affine.")
    plane = ("sagittal", "coronal", "axial")[int(np.abs(normal).argmax())]
    if np.abs(normal).max() < np.cos(np.radians(15)):
        plane = "oblique"
    mm = np.array([abs(step), lengths[rows], lengths[columns]])
    return (rows, columns), (step < 0, flip_rows, flip_columns), mm, plane


def _check_motion(pictures: Int16[np.ndarray, "S P H W"]) -> tuple[str, ...]:
    """Refuse a still picture that is repeated as if it moved."""
    if pictures.shape[1] == 1:
        return ()
    still = int((pictures == pictures[:, :1]).all(axis=(1, 2, 3)).sum())
    if still == len(pictures):
        raise VolumeRejected(
            "still-image",
            f"All {pictures.shape[1]} phases show the same picture: export the moving series again, or leave "
            "this one out.",
        )
    return (f"still-slices:{still}",) if still else ()
