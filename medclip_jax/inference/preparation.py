"""From a scan as it lies on disk to what a model was trained on. Needs no JAX: worker processes run this."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int16

from medclip_jax.shards.series import SeriesSettings
from medclip_jax.volumes import Scan as StoredScan
from medclip_jax.volumes import (
    Volume,
    VolumeRejected,
    check_hu,
    crop_and_resample,
    is_image,
    read_scan,
    to_scan,
    to_volume,
)
from medclip_jax.volumes.checks import to_int16
from medclip_jax.volumes.grid import Grid
from medclip_jax.volumes.images import is_array, scan_of_volume, to_array

Scan = Any
"""What stands for a scan: a path (file, or DICOM folder); an image of nibabel or SimpleITK; a tuple (array,
affine), the affine from array index to RAS mm; a `Volume`; or a prepared (D, H, W) array of NumPy, JAX or
PyTorch, on the model's grid."""

CENTER_ASSUMED = "crop-center-assumed"
"""Note: the model was trained on crops around an organ, and the scan's own middle was taken."""


@dataclass(frozen=True)
class Prepared:
    """A scan as the model takes it.

    Attributes:
        voxels: (D, H, W) int16 HU.
        notes: short codes of what was corrected or is doubtful, as in the manifest of `medclip prepare`;
            empty for an array.
        grid: where they lie; None for a prepared array, which does not say.
        source: the scan's own grid, in its own orientation; None likewise.
    """

    voxels: Int16[np.ndarray, "D H W"]
    notes: tuple[str, ...] = ()
    grid: Grid | None = None
    source: Grid | None = None

    @property
    def inputs(self) -> dict[str, Int16[np.ndarray, "D H W"]]:
        """The batch fields that a model embeds, without the batch axis."""
        return {"volume": self.voxels}


@dataclass(frozen=True)
class Preparation:
    """The steps of `medclip prepare` for one series: orientation, intensities, spacing, shape, center.

    Attributes:
        shape: (D, H, W) voxels; None along an axis keeps the scan's own.
        spacing: mm along depth, height, width; None likewise, and where the scan's full extent is resized to
            the shape.
        crop: what volumes are centered on, see `shards.settings.PrepareSettings.crop`.
        modality: "CT" or "MR".
        percentiles: window an MR series' intensities, see `shards.series.SeriesSettings`.
    """

    shape: tuple[int | None, int | None, int | None]
    spacing: tuple[float | None, float | None, float | None]
    crop: str = "center"
    modality: str = "CT"
    percentiles: tuple[float, float] | None = None

    @classmethod
    def of(cls, series: SeriesSettings, crop: str) -> Preparation:
        """The steps that a series of a prepared set went through.

        Args:
            series: one of `PreparedInfo.series`.
            crop: of the set.
        """
        return cls(series.shape, series.spacing, crop, series.modality, series.percentiles)

    def __call__(self, scan: Scan, center: Sequence[float] | None = None) -> Prepared:
        """Prepare one scan, with the checks of files whatever it is held in.

        Args:
            scan: see `Scan`.
            center: world RAS mm of the crop's middle; None for the scan's middle.

        Raises:
            VolumeRejected: it cannot be used; the message says what to do, and names a file first.
            ValueError: an array of another shape, a `Volume` whose spacing contradicts its affine, an affine
                that is none, or a center that is not three numbers.
            TypeError: nothing that stands for a scan.
        """
        _check_center(center)
        if isinstance(scan, str | os.PathLike):
            _check_local(scan)
            try:
                return self.read(scan, center)
            except VolumeRejected as error:
                raise VolumeRejected(error.code, f"{os.fspath(scan)}: {error}") from error.__cause__
        if isinstance(scan, Volume):
            return self._from_stored(scan_of_volume(scan), center)
        if is_image(scan):
            return self._from_stored(to_scan(scan), center)
        if not is_array(scan):
            raise TypeError(
                "a scan is a path, an image of nibabel or SimpleITK, (array, affine), a Volume or a "
                f"prepared array, not {_shown(scan)}"
            )
        return self._check_prepared(scan, center)

    def read(
        self,
        path: str | os.PathLike | Sequence[Path],
        center: Sequence[float] | None = None,
        *,
        series: str | None = None,
        kernel: str | None = None,
        rule: str = "best",
    ) -> Prepared:
        """Prepare a file, a DICOM folder, or the files of a DICOM series.

        Args:
            path: of the scan.
            center: as above.
            series: which of several, as for `volumes.read_volume`.
            kernel: as for `volumes.read_volume`.
            rule: as for `volumes.read_volume`.

        Raises:
            VolumeRejected: whatever is wrong with it; the message does not name the path.
        """
        try:
            scan = read_scan(path, modality=self.modality, series=series, kernel=kernel, rule=rule)
            return self._from_stored(scan, center)
        except VolumeRejected:
            raise
        except MemoryError:
            raise VolumeRejected(
                "out-of-memory", "The volume does not fit into memory: embed with fewer --workers."
            ) from None
        except Exception as error:
            # Any file must end as a vector or as a reason, whatever its reader stumbles over.
            raise VolumeRejected(
                "unreadable",
                f"Reading failed with {type(error).__name__}: see whether a viewer opens the file, and "
                "report this.",
            ) from error

    def _from_stored(self, scan: StoredScan, center: Sequence[float] | None) -> Prepared:
        if center is not None and self.spacing == (None, None, None):
            raise VolumeRejected(
                "center-of-complete-scan",
                "The model takes the complete scan, resized, and nothing is cut around a center: give none.",
            )
        volume = to_volume(scan, modality=self.modality, percentiles=self.percentiles)
        at = None if center is None else np.asarray(center, np.float64)
        prepared, notes = crop_and_resample(volume, self.shape, self.spacing, at)
        if self.crop != "center" and center is None:
            notes = [*notes, CENTER_ASSUMED]
        return Prepared(
            prepared.voxels,
            tuple(dict.fromkeys((*volume.notes, *notes))),
            Grid(prepared.voxels.shape, prepared.affine),
            Grid(scan.voxels.shape, scan.affine),
        )

    def _check_prepared(self, given: Any, center: Sequence[float] | None) -> Prepared:
        """An array on the model's grid, as it is."""
        array = to_array(given)
        fits = array.ndim == 3 and all(
            size in (None, own) for own, size in zip(array.shape, self.shape, strict=True)
        )
        if not fits:
            raise ValueError(
                f"an array alone must be a prepared volume, int16 {self.shape}, not {array.dtype} "
                f"{array.shape}: give the file's path, (array, affine), or a Volume from "
                "medclip_jax.volumes.read_volume"
            )
        if center is not None:
            raise ValueError("an array alone is prepared, it has no center: give (array, affine) to crop it")
        voxels, _ = to_int16(array, self.modality)
        # Padding of a crop is no fault of the scan: the checks look at slices that hold more than one value.
        full = voxels[voxels.min(axis=(1, 2)) != voxels.max(axis=(1, 2))]
        spacing = tuple(1.0 if step is None else step for step in self.spacing)
        checked = Volume(full if len(full) else voxels, spacing, np.diag([*spacing, 1.0]))
        check_hu(checked, modality=self.modality)
        return Prepared(voxels)


def _check_center(center: Any) -> None:
    if center is None:
        return
    try:
        point = np.asarray(center, np.float64)
    except (TypeError, ValueError):
        point = np.empty(0)
    if point.shape != (3,) or not np.isfinite(point).all():
        raise ValueError(f"center must be three numbers, RAS mm, not {center!r}")


def _check_local(path: str | os.PathLike) -> None:
    if "://" in os.fspath(path):
        raise ValueError(f"{os.fspath(path)} is a web address: download the scan and give its path")


def _shown(given: Any) -> str:
    kind = type(given).__name__
    return f"{kind} {given!r}" if isinstance(given, int | float | bytes | None.__class__) else kind
