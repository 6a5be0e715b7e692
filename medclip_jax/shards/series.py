"""What the series of a study become: one array of the record each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from medclip_jax.shards.arrays import ArraySpec, ShardError
from medclip_jax.shards.record import VOLUME
from medclip_jax.volumes.modality import check_percentiles, modality_of

FRAMES = ("all", "middle")
"""Which slices of a series of frames are kept, each with all its phases."""

_RAGGED_VOXELS = 32
"""What an axis of unknown size is taken for where the size of a shard is chosen."""

_TYPICAL_FRAMES = {"all": 300, "middle": 30}
"""The same of frames: ten slices of a short axis with 30 phases each."""


@dataclass(frozen=True)
class SeriesSettings:
    """What becomes of the series of one name; written to `prepare.json`.

    Attributes:
        name: of the series in a study, and of its array in the record.
        shape: (D, H, W) voxels; None along an axis keeps the scan's own voxels there, which makes the array
            ragged.
        spacing: mm per voxel along depth, height, width; None along an axis where the scan is not cut: where
            the shape is None, and where the scan's full extent is resized to the shape. Then each record has
            its own, in the array `NAME_spacing`.
        modality: "CT" or "MR"; series of another one are rejected.
        percentiles: what of a series' intensities becomes 0 and `volumes.modality.WINDOW_TOP`, in percent of
            its voxels; None keeps HU and the scanner's units.
        required: whether a study without it is rejected, or accepted with a note.
        frames: "" for a volume; "all" or "middle" for a series of frames, whose slices stay in the plane they
            were taken in: all of them, or the middle one. The array is then (frames, H, W), all phases of the
            first slice, then those of the second, and so on; `NAME_frames` says how many slices and phases.
            Shape and spacing are of the pictures, None first: (None, H, W) and (None, mm, mm).
    """

    name: str
    shape: tuple[int | None, int | None, int | None]
    spacing: tuple[float | None, float | None, float | None]
    modality: str = "CT"
    percentiles: tuple[float, float] | None = None
    required: bool = True
    frames: str = ""

    @property
    def spacing_array(self) -> str:
        """Name of the array that holds a record's own spacing; "" where it is the same for all records."""
        return f"{self.name}_spacing" if None in self.spacing else ""

    @property
    def frames_array(self) -> str:
        """Name of the array that holds a record's number of slices and phases; "" for volumes."""
        return f"{self.name}_frames" if self.frames else ""

    @property
    def typical_voxels(self) -> int:
        """About how many voxels a record has of it."""
        if self.frames:
            return _TYPICAL_FRAMES[self.frames] * math.prod(self.shape[1:])
        return math.prod(size or _RAGGED_VOXELS for size in self.shape)

    @property
    def is_resized(self) -> bool:
        """Whether scans are resized and cut along no axis."""
        return self.spacing == (None, None, None) and self.shape != (None, None, None)

    @property
    def specs(self) -> tuple[ArraySpec, ...]:
        """Declarations of the arrays that it becomes."""
        unit = "Hounsfield units" if modality_of(self.modality).absolute else f"{self.modality} intensities"
        voxels = ArraySpec(self.name, "blosc2", self.shape, "int16", optional=not self.required, doc=unit)
        if not self.spacing_array:
            return (voxels,)
        mm = "mm between slices, rows, columns" if self.frames else "mm along depth, height, width"
        spacing = ArraySpec(self.spacing_array, "list", (3,), "float32", not self.required, mm)
        if not self.frames:
            return voxels, spacing
        counts = ArraySpec(self.frames_array, "list", (2,), "int32", not self.required, "slices, phases")
        return voxels, counts, spacing

    def to_json(self) -> dict[str, Any]:
        """As `prepare.json` holds it."""
        written = asdict(self)
        if not self.frames:  # so that sets of volumes keep their bytes and fingerprints
            del written["frames"]
        return written

    def checked(self) -> SeriesSettings:
        """The same with plain tuples of numbers.

        Raises:
            ShardError: an entry makes no sense; the message says which.
        """
        where = "" if self.name == VOLUME else f"series '{self.name}': "
        if not self.name.isidentifier():
            raise ShardError(f"'{self.name}' cannot name a series: take letters, digits and _")
        try:
            shape = tuple(None if size is None else int(size) for size in self.shape)
            spacing = tuple(None if step is None else float(step) for step in self.spacing)
            fits = len(shape) == len(spacing) == 3 and all(
                step is None if size is None else size >= 1 and (step is None or step > 0)
                for size, step in zip(shape, spacing, strict=True)
            )
        except (TypeError, ValueError):
            fits = False
        if not fits:
            raise ShardError(
                f"{where}shape {self.shape} and spacing {self.spacing} must each be three positive numbers "
                "in the order depth, height, width. Where a series keeps its own voxels, both are None; "
                "where its full extent is resized to the shape, the spacing is None"
            )
        if self.name == VOLUME and None in shape:
            raise ShardError(f"'{VOLUME}' has one shape for all records: name a ragged series otherwise")
        if self.frames:
            self._check_frames(where, shape, spacing)
        try:
            check_percentiles(self.percentiles, self.modality)
        except ValueError as error:
            raise ShardError(f"{where}{error}") from None
        percentiles = None if self.percentiles is None else tuple(map(float, self.percentiles))
        required = bool(self.required)
        return SeriesSettings(
            self.name, shape, spacing, self.modality, percentiles, required, str(self.frames)
        )

    def _check_frames(self, where: str, shape: tuple, spacing: tuple) -> None:
        """Check what frames need beyond what volumes do.

        Raises:
            ShardError: something is missing.
        """
        if self.frames not in FRAMES:
            raise ShardError(f"{where}frames '{self.frames}' is none of {', '.join(FRAMES)}")
        if shape[0] is not None or None in shape[1:] or (None in spacing[1:] and spacing[1:] != (None, None)):
            raise ShardError(
                f"{where}frames of shape {self.shape} and spacing {self.spacing}: give (None, rows, columns) "
                "and (None, mm, mm), or a spacing of (None, None, None) to resize the full pictures"
            )
        if modality_of(self.modality).absolute:
            raise ShardError(f"{where}frames are of MR: {self.modality} becomes volumes, leave frames out")


def read_series(
    settings: Mapping[str, Any], shape: Sequence[int], spacing: Sequence[float]
) -> tuple[SeriesSettings, ...]:
    """The series of a prepared set.

    Args:
        settings: of `prepare.json`; of an early version, or of a set that `prepare` did not write, {}.
        shape: of `volume`, () where records have none.
        spacing: likewise.

    Raises:
        ShardError, TypeError: the settings are damaged.
    """
    if written := settings.get("series"):
        return tuple(SeriesSettings(**series).checked() for series in written)
    if not shape:
        return ()
    modality, percentiles = settings.get("modality", "CT"), settings.get("percentiles")
    return (SeriesSettings(VOLUME, tuple(shape), tuple(spacing), modality, percentiles).checked(),)
