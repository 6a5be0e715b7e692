"""Is this really Hounsfield units? Checks that stop a wrong rescale before it reaches training."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int16, Real

from medclip_jax.volumes.volume import AIR_HU, Volume, VolumeRejected

PADDING_BELOW_HU = -1400
"""No tissue, noise or ringing reaches this: lower values mark voxels outside the scanner's field of view."""

AIR_RANGE_HU = (-1100, -850)
"""Where the first percentile of a CT with air around or inside the patient must lie."""

_SAMPLE = 1_000_000
"""Voxels looked at for percentiles; a regular lattice of this many estimates them to well under 1 HU."""

_OFFSETS = (1024, 1000, 8192)
"""Rescale intercepts in use, without their sign: what a second or a forgotten application is off by."""


def to_int16(values: Real[np.ndarray, "D H W"], modality: str) -> tuple[Int16[np.ndarray, "D H W"], dict]:
    """Round to int16, refusing what int16 cannot hold. MR in fractions is scaled up, CT never.

    Returns:
        The voxels, and provenance: ``{"intensity_scale": factor}`` where MR was scaled, else empty.

    Raises:
        VolumeRejected: "not-finite" or "out-of-range".
    """
    if values.dtype == np.int16:
        return values, {}
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise VolumeRejected(
            "not-finite",
            "Voxels are NaN or infinite: find out why, then write -1024 there (air) and export again.",
        )
    provenance = {}
    if modality == "MR" and values.dtype.kind == "f" and (high > 32767 or low < -32768 or high - low < 256):
        factor = 4095.0 / max(abs(low), abs(high), 1e-30)
        values, low, high = values * factor, low * factor, high * factor
        provenance["intensity_scale"] = factor
    if high > 32767 or (modality == "MR" and low < -32768):
        raise VolumeRejected(
            "out-of-range", f"Values reach {high:.0f}, beyond int16: check the rescale slope and intercept."
        )
    if low < -32768:
        values = np.maximum(values, -32768)  # padding, which `fill_padding` maps to air
    if values.dtype.kind == "f":
        values = np.rint(values)
    return values.astype(np.int16), provenance


def fill_padding(voxels: Int16[np.ndarray, "D H W"]) -> tuple[Int16[np.ndarray, "D H W"], tuple[str, ...]]:
    """Replace padding (-2000, -3024, ..., and its interpolated rim) by air; the note says how much."""
    if int(voxels.min()) >= PADDING_BELOW_HU:
        return voxels, ()
    padding = voxels < PADDING_BELOW_HU
    note = f"padding:{int(voxels.min())}:{100 * padding.mean():.1f}%"
    return np.where(padding, np.int16(AIR_HU), voxels), (note,)


def resolve_rescale(
    raw: Real[np.ndarray, "D H W"], rescale: tuple[float, float], *, version: str = "auto"
) -> tuple[tuple[float, float], tuple[str, ...]]:
    """Decide whether a table's (slope, intercept) still has to be applied to a file's values.

    CT-RATE v1 holds raw values and needs the table; v2 holds HU and is ruined by it. "auto" looks at
    both readings of the histogram and accepts the one that is a CT.

    Args:
        raw: values as the file gives them, its own header's scaling applied.
        rescale: the table's (slope, intercept).
        version: "v1" applies the table, "v2" does not, "auto" decides.

    Returns:
        The (slope, intercept) to apply, and a note when the table was left aside.

    Raises:
        VolumeRejected: "ambiguous-rescale" when neither or both readings look like CT.
        ValueError: unknown version, or a slope or intercept that is no number.
    """
    slope, intercept = (float(x) for x in rescale)
    if version not in ("v1", "v2", "auto"):
        raise ValueError(f'version must be "v1", "v2" or "auto", got {version!r}')
    if not (np.isfinite(slope) and np.isfinite(intercept)) or slope == 0:
        raise ValueError(f"the rescale ({slope}, {intercept}) must be finite with a slope other than 0")
    if version == "v1" or (slope, intercept) == (1.0, 0.0):
        return (slope, intercept), ()
    if version == "v2":
        return (1.0, 0.0), ("table-rescale-not-applied",)
    sample = _sample(raw)
    applied = sample * slope + intercept
    for test in (_is_ct, _has_soft_tissue):  # first with air, then without (a crop inside the body)
        if test(sample) != test(applied):
            if test(applied):
                return (slope, intercept), ()
            return (1.0, 0.0), ("table-rescale-not-applied",)
    raise VolumeRejected(
        "ambiguous-rescale",
        f"Neither the values as stored nor slope {slope:g}, intercept {intercept:g} applied to them look "
        "like HU (or both do): check the table's row for this volume, or say which archive version this is.",
    )


def check_hu(volume: Volume, *, modality: str = "CT") -> tuple[str, ...]:
    """Check that a volume is not empty and, for CT, that its values are Hounsfield units.

    Args:
        volume: int16 voxels; padding below -1400 is left out of the statistics.
        modality: "MR" skips everything that concerns HU.

    Returns:
        Notes about what is doubtful, () when nothing is.

    Raises:
        VolumeRejected: "constant", "mostly-empty", "double-rescale", "missing-rescale" or
            "not-hounsfield"; `docs/volumes.md` says what each means.
    """
    voxels = volume.voxels
    thin = voxels[:, :: max(1, voxels.shape[1] // 64), :: max(1, voxels.shape[2] // 64)]
    flat_slices = int((thin.min(axis=(1, 2)) == thin.max(axis=(1, 2))).sum())
    if flat_slices == len(voxels) and voxels.min() == voxels.max():
        raise VolumeRejected(
            "constant",
            f"Every voxel is {int(voxels.flat[0])}: the export failed, read the volume from the archive.",
        )
    if 2 * flat_slices > len(voxels):
        raise VolumeRejected(
            "mostly-empty",
            f"{flat_slices} of {len(voxels)} slices hold a single value: export the volume again.",
        )
    notes = [f"empty-slices:{flat_slices}"] if flat_slices else []
    if modality != "CT":
        return tuple(notes)
    sample = _sample(voxels)
    if not _is_ct(sample):
        _reject_shifted(sample)
        notes += _doubts(sample)
    inside = sample[sample >= PADDING_BELOW_HU]
    if _share(inside, -950, -600) < 0.05:
        notes.append("little-lung")
    if _share(inside, 0, 0) > 0.1:
        notes.append("zero-filled-region")
    return tuple(notes)


def _reject_shifted(sample: Float32[np.ndarray, " N"]) -> None:
    for offset in _OFFSETS:
        if _is_ct(sample + offset):
            raise VolumeRejected(
                "double-rescale",
                f"Values are about {offset} too low: the intercept was applied twice. Files that are in HU "
                "already (CT-RATE v2) need no table: leave out the slope and intercept.",
            )
        if _is_ct(sample - offset):
            raise VolumeRejected(
                "missing-rescale",
                f"Values are about {offset} too high for HU: give the table's slope and intercept, "
                f"rescale=(1, {-offset}). "
                'If this is an MR scan, say modality="MR".',
            )


def _doubts(sample: Float32[np.ndarray, " N"]) -> list[str]:
    """What is unusual about soft tissue without air in its range; refused when it is not HU at all."""
    inside = sample[sample >= PADDING_BELOW_HU]
    first = np.percentile(inside, 1) if inside.size else np.nan
    if _has_soft_tissue(sample):
        if first < AIR_RANGE_HU[0]:
            return ["air-below-range"]
        if first <= -200:
            return ["little-air"]
        if _share(inside, -150, -30) >= 0.01:
            return ["no-air"]
    raise VolumeRejected(
        "not-hounsfield",
        f"Values between {sample.min():.0f} and {sample.max():.0f}, first percentile {first:.0f}, are no HU: "
        'air must lie near -1000, soft tissue at 0 to 60. Is this MR (say modality="MR"), was it scaled to '
        "[0, 1] or windowed (export the original), or does it need a slope and intercept?",
    )


def _sample(values: Real[np.ndarray, "D H W"]) -> Float32[np.ndarray, " N"]:
    step = max(1, int(np.ceil((values.size / _SAMPLE) ** (1 / 3))))
    # Thin axes keep their samples: the step is shared by the axes that have room for it.
    lattice = values[tuple(slice(None, None, min(step, max(1, n // 8))) for n in values.shape)]
    return lattice.astype(np.float32).ravel()


def _share(sample: Float32[np.ndarray, " N"], low: float, high: float) -> float:
    return float(((sample >= low) & (sample <= high)).mean()) if sample.size else 0.0


def _has_soft_tissue(sample: Float32[np.ndarray, " N"]) -> bool:
    """Fat, muscle and blood: a fair share of the body, and a visible one of all that is no padding."""
    inside = sample[sample >= PADDING_BELOW_HU]
    if inside.size < 0.05 * sample.size:
        return False
    return _share(inside, -150, 150) >= 0.03 and _share(inside[inside > -500], -150, 150) >= 0.4


def _is_ct(sample: Float32[np.ndarray, " N"]) -> bool:
    """Soft tissue, and air where air belongs."""
    if not _has_soft_tissue(sample):
        return False
    first = np.percentile(sample[sample >= PADDING_BELOW_HU], 1)
    return bool(AIR_RANGE_HU[0] <= first <= AIR_RANGE_HU[1])
