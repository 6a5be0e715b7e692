"""From a scan as it lies on disk to what a model was trained on. Needs no JAX: worker processes run this."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int16

from medclip_jax.shards.scan import crop_and_resample
from medclip_jax.volumes import Volume, VolumeRejected, read_volume

Scan = str | os.PathLike | Volume | np.ndarray
"""A file or DICOM folder, a volume that was read, or a prepared (D, H, W) int16 array."""

CENTER_ASSUMED = "crop-center-assumed"
"""Note: the model was trained on crops around an organ, and the scan's own middle was taken."""


@dataclass(frozen=True)
class Prepared:
    """A scan as the model takes it.

    Attributes:
        voxels: (D, H, W) int16 HU.
        notes: short codes of what was mended or is doubtful, as in the manifest of `medclip prepare`;
            empty for an array.
    """

    voxels: Int16[np.ndarray, "D H W"]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preparation:
    """The steps of `medclip prepare`: canonical orientation, HU, spacing, shape, center.

    Attributes:
        shape: (D, H, W) voxels.
        spacing: mm along depth, height, width.
        crop: what volumes are centered on, see `shards.settings.PrepareSettings.crop`.
        modality: "CT" or "MR".
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    crop: str = "center"
    modality: str = "CT"

    def __call__(self, scan: Scan, center: Sequence[float] | None = None) -> Prepared:
        """Prepare one scan.

        Args:
            scan: a NIfTI, NRRD or MHA file, a DICOM folder, a `Volume`, or an array that is prepared.
            center: world RAS mm of the crop's middle; None for the scan's middle.

        Raises:
            VolumeRejected: the file cannot be used; the message starts with its path and says what to do.
            ValueError: an array of another shape or type, or a center that is not three numbers.
        """
        if isinstance(scan, np.ndarray):
            if scan.shape != self.shape or scan.dtype != np.int16:
                raise ValueError(
                    f"an array must be a prepared volume, int16 {self.shape}, not {scan.dtype} "
                    f"{scan.shape}: give the file's path, or a Volume from medclip_jax.volumes.read_volume"
                )
            return Prepared(scan)
        if center is not None and (len(center) != 3 or not np.isfinite(center).all()):
            raise ValueError(f"center must be three numbers, RAS mm, not {center!r}")
        if isinstance(scan, Volume):
            return self._place(scan, center)
        try:
            return self.read(scan, center)
        except VolumeRejected as error:
            raise VolumeRejected(error.code, f"{os.fspath(scan)}: {error}") from error.__cause__

    def read(
        self,
        path: str | os.PathLike | Sequence[Path],
        center: Sequence[float] | None = None,
        *,
        series: str | None = None,
        kernel: str | None = None,
    ) -> Prepared:
        """Prepare a file, a DICOM folder, or the files of a DICOM series.

        Args:
            path: of the scan.
            center: as above.
            series: which of several, as for `volumes.read_volume`.
            kernel: as for `volumes.read_volume`.

        Raises:
            VolumeRejected: whatever is wrong with it; the message does not name the path.
        """
        try:
            volume = read_volume(path, modality=self.modality, series=series, kernel=kernel)
            return self._place(volume, center)
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

    def _place(self, volume: Volume, center: Sequence[float] | None) -> Prepared:
        at = None if center is None else np.asarray(center, np.float64)
        prepared, notes = crop_and_resample(volume, self.shape, self.spacing, at)
        if self.crop != "center" and center is None:
            notes = [*notes, CENTER_ASSUMED]
        return Prepared(prepared.voxels, tuple(dict.fromkeys((*volume.notes, *notes))))
