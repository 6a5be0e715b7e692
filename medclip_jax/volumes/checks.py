"""Is this really Hounsfield units? Checks that stop a wrong rescale before it reaches training."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int16, Real
from scipy import ndimage

from medclip_jax.volumes.histogram import Histogram
from medclip_jax.volumes.hounsfield import PADDING_BELOW_HU, find_other_scale, has_soft_tissue, judge, reject
from medclip_jax.volumes.modality import modality_of
from medclip_jax.volumes.volume import AIR_HU, Volume, VolumeRejected

_BEYOND_METAL_HU = 31_000
"""No scanner writes more, not even on an extended scale."""


def to_int16(values: Real[np.ndarray, "D H W"], modality: str) -> tuple[Int16[np.ndarray, "D H W"], dict]:
    """Round to int16, refusing what int16 cannot hold. MR in fractions is scaled up, CT never.

    Returns:
        The voxels, and provenance: ``{"intensity_scale": factor}`` where MR was scaled, else empty.

    Raises:
        VolumeRejected: "not-finite" or "out-of-range".
    """
    if values.dtype == np.int16:
        return values, {}
    rule = modality_of(modality)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise VolumeRejected(
            "not-finite",
            "Voxels are NaN or infinite: find out why, then write "
            f"{'-1024 (air)' if rule.absolute else 'the background value'} there and export again.",
        )
    provenance = {}
    if not rule.absolute and values.dtype.kind == "f" and (high > 32767 or low < -32768 or high - low < 256):
        factor = 4095.0 / max(abs(low), abs(high), 1e-30)
        values, low, high = values * factor, low * factor, high * factor
        provenance["intensity_scale"] = factor
    if high > 32767 or (not rule.absolute and low < -32768):
        raise VolumeRejected(
            "out-of-range", f"Values reach {high:.0f}, beyond int16: check the rescale slope and intercept."
        )
    if low < -32768:
        values = np.maximum(values, -32768)  # padding, which `fill_padding` maps to air
    if values.dtype.kind == "f":
        values = np.rint(values)
    return values.astype(np.int16), provenance


def fill_missing(
    values: Real[np.ndarray, "D H W"], modality: str
) -> tuple[Real[np.ndarray, "D H W"], tuple[str, ...]]:
    """Replace NaN outside the field of view by air, in MR by the lowest value; the note says how much.

    Resampling tools write NaN where they had no data: such regions reach the border. NaN inside the volume
    is damage, which `to_int16` refuses.
    """
    if values.dtype.kind != "f" or not np.isnan(values.min()):
        return values, ()
    missing = np.isnan(values)
    regions, count = ndimage.label(missing)
    borders = [regions.take(end, axis) for axis in range(3) for end in (0, -1)]
    outside = np.zeros(count + 1, bool)
    outside[np.unique(np.concatenate([border.ravel() for border in borders]))] = True
    if not outside[1:].all() or missing.all():
        return values, ()
    fill = modality_of(modality).outside(values[~missing])
    return np.where(missing, values.dtype.type(fill), values), (f"no-data:{100 * missing.mean():.1f}%",)


def unwrap(values: Real[np.ndarray, "D H W"]) -> tuple[Real[np.ndarray, "D H W"], tuple[str, ...]]:
    """Undo 16 or 32 bits that ran over, where that makes a CT of the values; the note says so.

    Negative values read as unsigned appear 2^16 (or 2^32) too high; padding that lost too much, near 32767.
    """
    if values.dtype.kind not in "iuf" or values.dtype.itemsize < 2 or not values.max() > _BEYOND_METAL_HU:
        return values, ()
    if values.max() > 2.0**17 and values.dtype == np.float32:
        return values, ()  # too few digits are left of such numbers
    beyond = values > _BEYOND_METAL_HU
    if beyond.mean() < 0.005:  # neither air nor padding
        return values, ()
    modulus = 2.0**32 if values.max() > 2.0**31 else 2.0**16
    wrapped = np.where(beyond, values.astype(np.float64) - modulus, values).astype(np.float32)
    verdict = judge(Histogram.of(wrapped))
    if verdict is None or not verdict.air:
        return values, ()
    return wrapped, ("wrapped-integers",)


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
    if float(raw.max()) - float(raw.min()) <= 1:
        return (slope, intercept), ()  # normalized: no HU as they stand
    # First with air, then without (a crop inside the body), then what `check_hu` can say most about.
    histograms = [Histogram.of(raw, *mapping) for mapping in ((1.0, 0.0), (slope, intercept))]
    readings = [judge(histogram) for histogram in histograms]
    soft = [has_soft_tissue(h.between(PADDING_BELOW_HU, 32767)) for h in histograms]
    for accepted in ([v is not None and v.air for v in readings], [v is not None for v in readings], soft):
        if accepted[0] != accepted[1]:
            return ((slope, intercept), ()) if accepted[1] else ((1.0, 0.0), ("table-rescale-not-applied",))
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
            "not-hounsfield"; `docs/reference/volumes.md` says what each means.
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
    if not modality_of(modality).absolute:
        return tuple(notes)
    histogram = Histogram.of(voxels)
    verdict = judge(histogram)
    if verdict is None:
        raise reject(histogram)
    if not verdict.air and (rejection := find_other_scale(histogram)) is not None:
        raise rejection  # without air, values on another scale may look like HU
    notes += verdict.notes
    inside = histogram.between(PADDING_BELOW_HU, 32767)
    if inside.share(-950, -600) < 0.05:
        notes.append("little-lung")
    if inside.share(0, 0) > 0.1:
        notes.append("zero-filled-region")
    return tuple(notes)
