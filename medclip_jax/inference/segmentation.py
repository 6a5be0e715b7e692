"""What a model tells of a scan's voxels, and where it goes: image files and DICOM segmentations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from medclip_jax.volumes.grid import Grid, check_map_path, transfer_labels, write_map


@dataclass(frozen=True)
class Segmentation:
    """The class of each voxel of a scan.

    Attributes:
        labels: (D, H, W) on the grid of the prepared volume: 0 the background, n the n-th of `classes`.
        classes: names of the classes 1, 2, ...
        grid: where `labels` lie; None where the scan was a prepared array, which does not say.
        source: the grid of the scan that was prepared, in its own orientation; None likewise.
    """

    labels: UInt8[np.ndarray, "D H W"]
    classes: tuple[str, ...]
    grid: Grid | None = None
    source: Grid | None = None

    def on_scan(self) -> UInt8[np.ndarray, "I J K"]:
        """The labels at the scan's own voxels, the nearest each; 0 outside of what the model saw.

        Raises:
            ValueError: a prepared array, which does not say where it lies.
        """
        self._check_placed()
        return transfer_labels(self.labels, self.grid, self.source)

    def milliliters(self) -> dict[str, float]:
        """Volume of each class inside of what the model saw.

        Raises:
            ValueError: a prepared array, which does not say how large its voxels are.
        """
        self._check_placed()
        voxel = abs(float(np.linalg.det(self.grid.affine[:3, :3]))) / 1000
        counts = np.bincount(self.labels.ravel(), minlength=len(self.classes) + 1)
        return {name: float(counts[value] * voxel) for value, name in enumerate(self.classes, 1)}

    def save(self, path: str | os.PathLike) -> None:
        """Write the labels as 8-bit numbers on the scan's own grid, to be laid over the scan in a viewer.

        Args:
            path: of a .nii.gz, .nii, .nrrd or .mha file.

        Raises:
            ValueError: another ending; a prepared array; or tilted slices in a format that cannot hold them.
            FileNotFoundError: there is no such folder.
        """
        path = check_map_path(path)
        write_map(path, self.on_scan(), self.source)

    def save_dicom(self, path: str | os.PathLike, files: Sequence[str | os.PathLike]) -> None:
        """Write a DICOM segmentation object that belongs to the series of the scan.

        Args:
            path: of the file.
            files: the slices of the series, one a file.

        Raises:
            ImportError: `pip install "medclip-jax[seg]"` is missing.
            ValueError: a prepared array, no class was found, or files that are no series of slices.
        """
        from medclip_jax.inference.dicom_seg import write_dicom_seg

        self._check_placed()
        write_dicom_seg(Path(path), self.labels, self.grid, self.classes, files)

    def _check_placed(self) -> None:
        if self.grid is None or self.source is None:
            raise ValueError(
                "a prepared array does not say where it lies: segment the scan's file, its image or "
                "(array, affine) instead"
            )
