"""Is this Hounsfield units, and if not, what is it? Rules on the histogram: `docs/reference/volumes.md`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medclip_jax.volumes.histogram import Histogram
from medclip_jax.volumes.volume import VolumeRejected

PADDING_BELOW_HU = -1400
"""No tissue, noise or ringing reaches this: lower values mark voxels outside the scanner's field of view."""

AIR_RANGE_HU = (-1100, -850)
"""Where the first percentile of a CT with air around or inside the patient must lie."""

CLIP_LIMITS_HU = (-900, 300)
"""Volumes may be cut off at these values or beyond: air, soft tissue, contrast and calcium stay apart."""

_UNREMARKABLE_CLIP_HU = (-1024, 1900)
"""Cut off here or beyond, nothing but the noise of air and metal is lost: no note."""

_IF_MR = 'Is this MR (say modality="MR")?'

_AIR_HU, _FAT_HU, _MUSCLE_HU = -1000, -100, 52
_NEAR_HU = 20
"""How far fat and muscle may lie off, as with contrast or another kernel."""

_USUAL_OFFSETS = (1000, 1024, 8192)
"""Rescale intercepts in use, without their sign: what a second or a forgotten application is off by."""

_FACTORS = (2.0, 0.5, 4.0, 0.25, 10.0, 0.1, 8.0, 0.125)
"""What a slope applied twice, or not at all, multiplies by."""


@dataclass(frozen=True)
class Verdict:
    """What was found in values that are HU.

    Attributes:
        air: whether there is air where air belongs: without it little can be told about the scale.
        notes: what is doubtful.
    """

    air: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shift:
    """By how much values lie above HU.

    Attributes:
        value: HU to take away.
        uncertainty: HU, either way.
        misfit: HU that fat and muscle lie off their places then.
    """

    value: float
    uncertainty: float
    misfit: float

    @property
    def usual(self) -> list[int]:
        """Intercepts in use that are that large."""
        return [offset for offset in _USUAL_OFFSETS if abs(abs(self.value) - offset) <= self.uncertainty]


def judge(histogram: Histogram) -> Verdict | None:
    """Whether values are HU as they stand.

    Returns:
        The verdict, None where they are not.
    """
    inside = without_padding(histogram)
    if inside is None or inside.total < 0.05 * histogram.total or not has_soft_tissue(inside):
        return None
    low, high = clipping(inside)
    if (low is not None and low > CLIP_LIMITS_HU[0]) or (high is not None and high < CLIP_LIMITS_HU[1]):
        return None
    if high is not None and high > 800 and inside.count(high) > 0.05 * inside.total:
        return None  # no twentieth of a body is denser than bone
    peaks = soft_peaks(inside)
    if _are_odd(peaks):
        return None
    notes = (_clip_notes(low, high) if _is_noisy(inside) else ()) + _step_notes(inside)
    first = inside.percentile(1)
    if first <= AIR_RANGE_HU[1]:
        shift = _agreed_shift(inside, peaks, low)
        if abs(shift) > 40:
            return None
        if abs(shift) >= 15:
            notes += (f"hu-offset:{shift:+.0f}",)
        return Verdict(True, (*notes, *(("air-below-range",) if first < AIR_RANGE_HU[0] else ())))
    if peaks and not any(-140 < place < -60 or 0 <= place < 130 for place in peaks):
        return None
    if inside.high - inside.low <= 255:
        return None  # 8 bits: fat and muscle with the noise of a scan take more
    if first <= -200:
        return Verdict(False, (*notes, "little-air"))
    if inside.share(-150, -30) >= 0.01:
        return Verdict(False, (*notes, "no-air"))
    return None


def without_padding(histogram: Histogram) -> Histogram | None:
    """What lies above -1400; None where what lies below is no padding, but a scan on another scale."""
    below = histogram.between(-32768, PADDING_BELOW_HU - 1)
    if not below.total:
        return histogram
    rest = below.total - below.count(below.commonest)  # the padding's interpolated rim, streaks of metal
    if rest > 0.03 * histogram.total and rest > 0.5 * below.total:
        return None
    return histogram.between(PADDING_BELOW_HU, 32767)


def clipping(inside: Histogram) -> tuple[int | None, int | None]:
    """Values at which everything lower, or everything higher, was cut off; None where nothing was."""
    low = high = None
    if inside.is_spike(inside.low, +1, 0.005):
        low = inside.low
    elif inside.is_spike(inside.commonest, -1, 0.02) and inside.share(-32768, inside.commonest - 1) < 0.02:
        low = inside.commonest  # interpolated after it was cut off: some values overshoot
    if inside.is_spike(inside.high, -1, 0.0003) and _is_noisy(inside):
        high = inside.high
    return low, high


def _is_noisy(inside: Histogram) -> bool:
    """Whether values spread as in a scan: in a drawing without noise, the highest value is a tissue's."""
    between = inside.between(-950, inside.high - 1)
    return len(between.values) >= 50 and between.count(between.commonest) < 0.15 * inside.total


def _clip_notes(low: int | None, high: int | None) -> tuple[str, ...]:
    ends = []
    if low is not None and low > _UNREMARKABLE_CLIP_HU[0]:
        ends.append(str(low))
    if high is not None and high < _UNREMARKABLE_CLIP_HU[1]:
        ends.append(str(high))
    return (f"clipped:{','.join(ends)}",) if ends else ()


def _step_notes(inside: Histogram) -> tuple[str, ...]:
    """Values in coarse steps: 8 bits that were stretched to HU."""
    known = inside.between(-1024, 3071).values
    if inside.total < 20_000 or not 60 <= len(known) <= 256 or np.median(np.diff(known)) < 4:
        return ()
    return (f"coarse-steps:{np.median(np.diff(known)):.0f}HU",)


def has_soft_tissue(inside: Histogram) -> bool:
    """Fat, muscle and blood: a fair share of the body, and a visible one of everything."""
    body = inside.between(-499, 32767)
    if inside.share(-950, -600) >= 0.2:  # lungs cut out along their border: vessels are all that is left
        return inside.share(-150, 150) >= 0.01 and body.share(-150, 150) >= 0.2
    return inside.share(-150, 150) >= 0.03 and body.share(-150, 150) >= 0.4


def soft_peaks(inside: Histogram) -> list[int]:
    """Modes of fat, water, muscle, organs with contrast."""
    return [place for place, _ in inside.peaks(-450, 450, smoothing=7, least=0.15, spikes=False)]


def _are_odd(peaks: list[int]) -> bool:
    """Modes where no tissue has one: values on another scale, or shifted."""
    if any(-400 < place < -150 for place in peaks):
        return True
    # Between fat and water a mode is a blend of both, unless others stand beside it; marrow, where fat and
    # muscle have the values that they should have.
    pair = _fat_and_muscle(peaks)
    if pair is not None and max(abs(pair[0] - _FAT_HU), abs(pair[1] - _MUSCLE_HU)) <= _NEAR_HU:
        return False
    return any(-65 < place < -15 for place in peaks) and len(peaks) > 1


def _fat_and_muscle(peaks: list[int]) -> tuple[int, int] | None:
    """The two modes that lie as far apart as fat and muscle, the closest to their usual distance."""
    pairs = [(fat, muscle) for fat in peaks for muscle in peaks if 115 <= muscle - fat <= 190]
    return min(pairs, key=lambda p: abs(p[1] - p[0] - _MUSCLE_HU + _FAT_HU), default=None)


def _agreed_shift(inside: Histogram, peaks: list[int], low: int | None) -> float:
    """The shift of air, fat and muscle, where all three agree on one; 0 where they do not."""
    pair, air = _fat_and_muscle(peaks), _air_peak(inside)
    if pair is not None:
        soft = (pair[0] - _FAT_HU + pair[1] - _MUSCLE_HU) / 2
    elif len(peaks) == 1 and low is not None and low > -985:
        soft, air = peaks[0] - _MUSCLE_HU, None
    else:
        return 0.0
    if air is not None and abs(air - _AIR_HU - soft) < (15 if abs(soft) < 40 else 30):
        return air - _AIR_HU
    if low is None or abs(soft) < 40:
        return 0.0
    # Where everything below was cut off, that was at -1024 or at -1000.
    return max((shift for shift in (low + 1024, low + 1000) if abs(shift - soft) < 30), default=0.0)


def _air_peak(inside: Histogram) -> int | None:
    """The lowest mode with noise around it: a fill value does not count."""
    low = max(PADDING_BELOW_HU, int(inside.percentile(0.1)) - 60)
    peaks = inside.peaks(low, -700, smoothing=7, least=0.1, spikes=False)
    return peaks[0][0] if peaks else None


@dataclass(frozen=True)
class Mapping:
    """HU = value * scale + offset, as far as air and soft tissue tell.

    Attributes:
        scale: negative where gray values are inverted.
        offset: HU.
        misfit: HU that fat and muscle lie off their places then.
    """

    scale: float
    offset: float
    misfit: float


def find_other_scale(histogram: Histogram) -> VolumeRejected | None:
    """Another scale on which values that could be HU without air are HU with air; None where there is none.

    Args:
        histogram: of values in which `judge` found no air.
    """
    shift = _find_shift(histogram)
    if shift is not None:
        moved = without_padding(histogram.mapped(1.0, -shift.value))
        if moved is not None and _fat_and_muscle(soft_peaks(moved)) and _is_sharp_air(moved):
            return _shifted(shift)
    mapping = _find_mapping(histogram)
    # Bones are no tenth of a volume, as air is where gray values are inverted.
    if mapping is None or (mapping.scale < 0 and histogram.share(600, 32767) < 0.1):
        return None
    moved = without_padding(histogram.mapped(mapping.scale, mapping.offset))
    if moved is None or _fat_and_muscle(soft_peaks(moved)) is None:
        return None
    return _rescaled(mapping, histogram)


def reject(histogram: Histogram) -> VolumeRejected:
    """Why values are no HU: the first explanation that makes HU of them, and what to do.

    Args:
        histogram: of values that `judge` did not accept.
    """
    low, high = histogram.low, histogram.high
    inside = histogram.between(PADDING_BELOW_HU, 32767)
    windowed = _windowed(inside) if inside.total else None
    if windowed is not None and _is_in_place(inside):
        return windowed
    shift, mapping = _find_shift(histogram), None
    if shift is None or not shift.usual:
        mapping = _find_mapping(histogram)
    if shift is not None and (mapping is None or shift.misfit <= mapping.misfit):
        return _shifted(shift)
    if high - low <= 255:
        return VolumeRejected(
            "not-hounsfield",
            f"Values run from {low} to {high} only: the scan was windowed to 8 bits or normalized, and HU "
            f"cannot be recovered. Export the original. {_IF_MR}",
        )
    if mapping is not None:
        return _rescaled(mapping, histogram)
    return windowed or VolumeRejected(
        "not-hounsfield",
        f"Values between {low} and {high}, first percentile {inside.percentile(1):.0f}, are no HU: air must "
        "lie near -1000, soft tissue at 0 to 60. Was it normalized or windowed (export the original), or "
        f"does it need a slope and intercept? {_IF_MR}",
    )


def _windowed(inside: Histogram) -> VolumeRejected | None:
    """What was cut off, where that is more than noise and metal."""
    low, high = clipping(inside)
    if low is not None and low > CLIP_LIMITS_HU[0]:
        value, end, lost = low, "below", "air, lung and fat"
    elif high is not None and high < CLIP_LIMITS_HU[1]:
        value, end, lost = high, "above", "contrast, calcium and bone"
    else:
        return None
    return VolumeRejected(
        "not-hounsfield",
        f"{100 * inside.count(value) / inside.total:.1f}% of the voxels hold exactly {value}, and nothing "
        f"lies {end}: the scan was windowed (or filled with that value), so that {lost} cannot be told "
        "apart. Export the original; where there is no data, write -1024.",
    )


def _is_in_place(inside: Histogram) -> bool:
    """Whether air, or fat and muscle, lie where they do in HU."""
    if inside.share(-1100, -930) >= 0.005:
        return inside.share(-150, 150) >= 0.01
    pair = _fat_and_muscle(soft_peaks(inside))
    return pair is not None and abs(pair[0] - _FAT_HU + pair[1] - _MUSCLE_HU) < 60


def _find_mapping(histogram: Histogram) -> Mapping | None:
    """A scale and offset that put the lowest mode to air, another one to muscle, and all else in place."""
    inside = without_padding(histogram) or histogram
    best = None
    span = inside.percentile(99.5) - inside.percentile(0.5)
    if span < 3:
        return None
    zoom = min(1.0, 1500 / span)  # far more values than needed only cost time
    for sign in (zoom, -zoom):
        turned = inside.mapped(sign, 0.0)
        smoothing = max(0.7, zoom * span / 150)
        peaks = turned.peaks(turned.low - 9, turned.high + 9, smoothing=smoothing, least=0.02)
        places = [place for place, _ in peaks]
        found = None
        for air in places[:2]:
            if found is not None and found.misfit < 60:
                break  # lungs may pass for air, too
            for soft in places[:8]:
                scale = (_MUSCLE_HU - _AIR_HU) / (soft - air) if soft > air else 1.0
                if 0.6 < scale * zoom < 1.7 and sign > 0:
                    continue  # near enough to 1 to be HU, or shifted
                moved = turned.mapped(scale, _AIR_HU - air * scale)
                verdict = judge(moved)
                if verdict is None or not verdict.air or not _is_sharp_air(moved):
                    continue
                misfit = _misfit(moved)
                if found is None or misfit < found.misfit:
                    found = Mapping(sign * scale, _AIR_HU - air * scale, misfit)
        if found is not None and (best is None or found.misfit < best.misfit):
            best = found
    return best


def _misfit(moved: Histogram) -> float:
    """HU that fat and muscle lie off their places; a large number where they are not seen."""
    pair = _fat_and_muscle(soft_peaks(moved))
    return 60.0 if pair is None else abs(pair[0] - _FAT_HU) + abs(pair[1] - _MUSCLE_HU)


def _is_sharp_air(moved: Histogram) -> bool:
    """Whether a good share lies at -1000 within the noise of a scan: fat that was stretched is wider."""
    return moved.share(-1100, -900) >= 0.05 and moved.width(_AIR_HU, 7) < 45


def _rescaled(mapping: Mapping, histogram: Histogram) -> VolumeRejected:
    if mapping.scale < 0:
        return VolumeRejected(
            "not-hounsfield",
            "The gray values look inverted, air the brightest: export the scan again without inverting it. "
            f"{_IF_MR}",
        )
    factor = 1 / mapping.scale
    whole = [scale for scale in _FACTORS if abs(factor / scale - 1) < 0.08]
    if whole and abs(mapping.offset) < 80:
        return VolumeRejected(
            "not-hounsfield",
            f"The values look like HU x {whole[0]:g}: a slope was applied twice, or one is missing. Export "
            f"the scan again, or give the table's columns rescale_slope (here {1 / whole[0]:g}) and "
            f"rescale_intercept (here 0). {_IF_MR}",
        )
    return VolumeRejected(
        "not-hounsfield",
        f"Values between {histogram.low} and {histogram.high} are no HU. {_IF_MR} In a CT, air lies near "
        f"{(_AIR_HU - mapping.offset) / mapping.scale:.0f} and soft tissue near "
        f"{(_MUSCLE_HU - mapping.offset) / mapping.scale:.0f}: it was normalized, windowed to 8 bits, or "
        "a slope and intercept were not applied. Export the original in HU.",
    )


def _shifted(shift: Shift) -> VolumeRejected:
    size, doubt = f"about {abs(shift.value):.0f}", f"(give or take {shift.uncertainty:.0f})"
    if shift.value < 0:
        return VolumeRejected(
            "double-rescale",
            f"Values are {size} too low for HU {doubt}: the intercept was applied twice. Files that are in "
            "HU already (CT-RATE v2) need no table: leave out the slope and intercept.",
        )
    usual = shift.usual
    if len(usual) == 1:
        advice = (
            f"An intercept in use that fits is {-usual[0]}: rescale_slope 1, rescale_intercept {-usual[0]}"
        )
    elif usual:
        advice = f"{' and '.join(str(-u) for u in usual)} both fit: the scan's DICOM header says which"
    else:
        advice = "No intercept in common use fits: look it up in the scan's DICOM header"
    return VolumeRejected(
        "missing-rescale",
        f"Values are {size} too high for HU {doubt}: the intercept was never applied. {advice}. Give it in "
        "the table's columns rescale_slope and rescale_intercept, in Python as rescale=(slope, intercept). "
        f"{_IF_MR}",
    )


def _find_shift(histogram: Histogram) -> Shift | None:
    """The one shift that makes HU of the values, with what air, fat and muscle say about its size."""
    candidates = {float(sign * offset) for offset in _USUAL_OFFSETS for sign in (1, -1)}
    peaks = histogram.peaks(histogram.low, histogram.high, smoothing=10, least=0.1, spikes=False)
    for place, _ in peaks[:6]:
        candidates |= {float(place - tissue) for tissue in (_AIR_HU, _FAT_HU, _MUSCLE_HU)}
    best = None
    for candidate in sorted(candidates, key=abs):
        moved = histogram.mapped(1.0, -candidate)
        verdict = judge(moved)
        if verdict is None or not verdict.air or abs(candidate) < 30:
            continue
        inside = without_padding(moved)
        found = _refine(inside, candidate)
        if not found.usual and _fat_and_muscle(soft_peaks(inside)) is None:
            continue  # lungs may pass for air
        if best is None or found.uncertainty < best.uncertainty:
            best = found
    return best


def _refine(inside: Histogram, candidate: float) -> Shift:
    """A shift made exact by where air, or else fat and muscle, lie once it is taken away."""
    air, pair = _air_peak(inside), _fat_and_muscle(soft_peaks(inside))
    value, uncertainty = candidate, 50
    if air is not None and abs(air - _AIR_HU) <= 60:
        value, uncertainty = candidate + air - _AIR_HU, 15
    elif pair is not None:
        value, uncertainty = candidate + (pair[0] - _FAT_HU + pair[1] - _MUSCLE_HU) / 2, 25
    return Shift(value, uncertainty, _misfit(inside.mapped(1.0, candidate - value)))
