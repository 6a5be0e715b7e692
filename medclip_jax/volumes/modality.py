"""What a modality's voxels mean: the one place where CT and MR differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int16, Real

from medclip_jax.volumes.volume import AIR_HU, VolumeRejected

WINDOW_TOP = 4095
"""What the upper percentile of a windowed series becomes; the lower one becomes 0."""


@dataclass(frozen=True)
class Modality:
    """How voxels of a modality are treated.

    Attributes:
        name: as DICOM writes it.
        unit: of voxels, for tables and pages.
        absolute: whether values mean the same in every scan (HU): they are checked against what they must be,
            and never scaled. Else they are the scanner's own, and may be windowed by percentiles.
    """

    name: str
    unit: str
    absolute: bool

    def outside(self, voxels: Real[np.ndarray, ...]) -> int | float:
        """The value written where a scan has no data: air in CT, elsewhere its lowest value."""
        return AIR_HU if self.absolute else voxels.min()


MODALITIES = {
    "CT": Modality("CT", "HU", absolute=True),
    "MR": Modality("MR", "intensity", absolute=False),
}


def modality_of(name: str) -> Modality:
    """Look a modality up.

    Raises:
        ValueError: it is none of `MODALITIES`.
    """
    if name not in MODALITIES:
        raise ValueError(f"modality must be {' or '.join(map(repr, MODALITIES))}, got {name!r}")
    return MODALITIES[name]


def check_percentiles(percentiles: Sequence[float] | None, modality: str) -> None:
    """Check that a series may be windowed by these percentiles.

    Raises:
        ValueError: they are none, or the modality's values are absolute.
    """
    rule = modality_of(modality)
    if percentiles is None:
        return
    if rule.absolute:
        raise ValueError(f"{modality} holds {rule.unit}, which no percentiles may change: leave them out")
    if len(percentiles) != 2 or not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise ValueError(
            f"percentiles {tuple(percentiles)}: give two numbers from 0 to 100, the lower first, such as 1 99"
        )


def window_by_percentiles(
    voxels: Int16[np.ndarray, ...], percentiles: Sequence[float]
) -> tuple[Int16[np.ndarray, ...], tuple[int, int]]:
    """Map a series' own intensities to 0 ... `WINDOW_TOP`, cut off at two of its percentiles.

    Args:
        voxels: of the complete series, before any crop.
        percentiles: the lower and the upper one, in percent of all voxels.

    Returns:
        The voxels, and the two intensities that became 0 and `WINDOW_TOP`.

    Raises:
        VolumeRejected: "no-contrast", where both percentiles are one value.
    """
    # Counted, not interpolated: exact, and the same wherever it is computed.
    counts = np.bincount(voxels.ravel().astype(np.int32) + 32768, minlength=1 << 16)
    ranks = [np.ceil(voxels.size * p / 100) for p in percentiles]
    low, high = (int(np.searchsorted(np.cumsum(counts), max(rank, 1))) - 32768 for rank in ranks)
    if low == high:
        raise VolumeRejected(
            "no-contrast",
            f"Percentiles {percentiles[0]:g} and {percentiles[1]:g} of the voxels are both {low}: the series "
            "is nearly empty, or wider percentiles are needed.",
        )
    scaled = (np.clip(voxels, low, high).astype(np.float32) - low) * np.float32(WINDOW_TOP / (high - low))
    return np.rint(scaled).astype(np.int16), (low, high)
