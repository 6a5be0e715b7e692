"""Counts of a scan's values, one for each whole number: what tells air, fat and muscle from each other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int, Real
from scipy.ndimage import gaussian_filter1d

_LOWEST, _HIGHEST = -32768, 32767
_SAMPLE = 1_000_000
"""Voxels that are counted; a regular lattice of this many estimates percentiles to well under one unit."""

_NEIGHBORS = 20
"""Values beside one another that a spike is compared with."""


@dataclass(frozen=True)
class Histogram:
    """How often each whole number from -32768 to 32767 occurs in a sample.

    Attributes:
        counts: one count for each number.
    """

    counts: Int[np.ndarray, " 65536"]

    @classmethod
    def of(cls, values: Real[np.ndarray, "D H W"], scale: float = 1.0, offset: float = 0.0) -> Histogram:
        """Count ``value * scale + offset`` on a lattice of up to about a million voxels."""
        step = max(1, int(np.ceil((values.size / _SAMPLE) ** (1 / 3))))
        # Thin axes keep their samples: the step is shared by the axes that have room for it.
        lattice = values[tuple(slice(None, None, min(step, max(1, n // 8))) for n in values.shape)]
        if (scale, offset) == (1.0, 0.0) and lattice.dtype == np.int16:
            index = lattice.astype(np.int32).ravel() - _LOWEST
        else:
            numbers = np.rint(lattice.astype(np.float64).ravel() * scale + offset)
            index = np.clip(numbers, _LOWEST, _HIGHEST).astype(np.int32) - _LOWEST
        return cls(np.bincount(index, minlength=65536))

    def mapped(self, scale: float, offset: float) -> Histogram:
        """The histogram of ``value * scale + offset``."""
        numbers = np.clip(np.rint(self.values * scale + offset), _LOWEST, _HIGHEST).astype(np.int64) - _LOWEST
        return Histogram(np.bincount(numbers, self.counts[self.values - _LOWEST], 65536).astype(np.int64))

    def between(self, low: float, high: float) -> Histogram:
        """Only what lies in [low, high]."""
        counts = np.zeros_like(self.counts)
        kept = slice(max(0, int(np.ceil(low)) - _LOWEST), max(0, int(np.floor(high)) - _LOWEST + 1))
        counts[kept] = self.counts[kept]
        return Histogram(counts)

    @cached_property
    def total(self) -> int:
        """Voxels counted."""
        return int(self.counts.sum())

    @cached_property
    def values(self) -> Int[np.ndarray, " N"]:
        """The numbers that occur, ascending."""
        return np.flatnonzero(self.counts) + _LOWEST

    @property
    def low(self) -> int:
        """The lowest value."""
        return int(self.values[0])

    @property
    def high(self) -> int:
        """The highest value."""
        return int(self.values[-1])

    @property
    def commonest(self) -> int:
        """The value that occurs most often."""
        return int(self.counts.argmax()) + _LOWEST

    def share(self, low: float, high: float) -> float:
        """Share of voxels in [low, high]."""
        return self.between(low, high).total / self.total if self.total else 0.0

    def percentile(self, percent: float) -> float:
        """The smallest value below or at which so many percent lie; NaN without any voxel."""
        if not self.total:
            return float("nan")
        cumulated = np.cumsum(self.counts)
        return float(np.searchsorted(cumulated, max(1.0, percent / 100 * self.total)) + _LOWEST)

    def count(self, value: int) -> int:
        """How many voxels hold exactly this value."""
        return int(self.counts[value - _LOWEST])

    def is_spike(self, value: int, towards: int, least: float) -> bool:
        """Whether a value stands out of those beside it, as where all that lay beyond was set to it.

        Args:
            value: a number.
            towards: +1 compares with the numbers above, -1 with those below.
            least: share of the voxels that must hold it.
        """
        place = value - _LOWEST
        beside = range(place + towards, place + towards * (_NEIGHBORS + 1), towards)
        inside = [n for n in beside if 0 <= n < len(self.counts)]
        usual = self.counts[inside].mean() if inside else 0.0
        return self.counts[place] >= max(least * self.total, 8 * usual, 5)

    def peaks(
        self, low: int, high: int, *, smoothing: float, least: float, spikes: bool = True
    ) -> list[tuple[int, float]]:
        """Modes within (low, high): (position, prominence as a share of the highest one there).

        Args:
            low: where to begin.
            high: where to end.
            smoothing: standard deviation of the Gaussian that the counts are smoothed with.
            least: smallest prominence as a share of the highest mode in the range.
            spikes: False leaves out single values that stand out by far: fills, clipping, padding.
        """
        from scipy.signal import find_peaks  # half a second, which loading a model need not wait for

        density = self.density(low, high, smoothing, spikes)
        top = density.max(initial=0.0)
        if top <= 0:
            return []
        # Chance makes peaks of sqrt(n) in n counts; smoothing averages about 3.5 deviations' width.
        chance = 6 * np.sqrt(top / (3.5 * smoothing))
        found, facts = find_peaks(density, prominence=max(least * top, chance))
        return [(low + int(p), float(q / top)) for p, q in zip(found, facts["prominences"], strict=True)]

    def width(self, place: int, smoothing: float) -> float:
        """Standard deviation of the mode at a value, from where its density has fallen to 0.6."""
        reach = 400
        density = self.density(place - reach, place + reach, smoothing)
        below = density < 0.6065 * density[reach]
        sides = [np.flatnonzero(side) for side in (below[reach::-1], below[reach:])]
        nearest = min(int(side[0]) if side.size else reach for side in sides)
        return float(np.sqrt(max(nearest**2 - smoothing**2, 0.0)))

    def density(self, low: int, high: int, smoothing: float, spikes: bool = True) -> Float[np.ndarray, " N"]:
        """Smoothed counts of the numbers from `low` to `high`."""
        reach = int(4 * smoothing) + 1
        first, last = max(0, low - _LOWEST - reach), min(len(self.counts), high - _LOWEST + reach + 1)
        counts = self.counts[first:last].astype(float)
        if not spikes:
            for place in np.argsort(counts)[-4:]:
                around = np.r_[counts[max(0, place - 8) : place], counts[place + 1 : place + 9]]
                if counts[place] > 5 * max(around.max(initial=0), 1):
                    counts[place] = around.mean()
        smooth = gaussian_filter1d(counts, smoothing, mode="constant")
        start = low - _LOWEST - first
        return smooth[start : start + high - low + 1]
