"""Whether prepared volumes are of the kind that a model was trained on: grid, crop, modality, intensities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medclip_jax.shards.read import PreparedInfo
from medclip_jax.shards.record import VOLUME
from medclip_jax.shards.series import SeriesSettings

_KEYS = ("shape", "spacing", "crop", "modality", "percentiles", "frames")


def volume_kind(info: PreparedInfo) -> dict[str, Any]:
    """What prepared volumes have in common that a model learns to rely on.

    Args:
        info: from `open_shards`.

    Returns:
        shape (D, H, W) in voxels, spacing in mm (None where scans are resized), what they are centered on,
        the modality, and the percentiles that window its intensities or None; and of series of frames what
        their pictures are, in words. Of records without `volume`, shape and spacing are ().
    """
    volume = next((series for series in info.series if series.name == VOLUME), None)
    first = volume or next(iter(info.series), None)
    return {
        "shape": tuple(info.shape),
        "spacing": tuple(info.spacing),
        "crop": str(info.settings.get("crop", "center")),
        "modality": "CT" if first is None else first.modality,
        "percentiles": None if volume is None else volume.percentiles,
        "frames": frame_kind(info.series),
    }


def frame_kind(series: Sequence[SeriesSettings]) -> str | None:
    """What the pictures of series of frames have in common; which series there are makes no difference.

    Args:
        series: of a prepared set, or of a model.

    Returns:
        Sizes and intensities in words; None where none is of frames.
    """
    found = {(one.shape[1:], one.spacing[1:], one.percentiles, one.modality) for one in series if one.frames}
    told = [
        f"{shape[0]} x {shape[1]} pixels"
        + ("" if None in spacing else f" of {spacing[0]:g} x {spacing[1]:g} mm")
        + ("" if percentiles is None else " within percentiles {:g} to {:g}".format(*percentiles))
        + f" ({modality})"
        for shape, spacing, percentiles, modality in found
    ]
    return ", ".join(sorted(told)) or None


def differences(trained: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """What two kinds of volumes differ in, in words; [] where in nothing.

    Args:
        trained: from `volume_kind`, of the training.
        given: of the volumes that are to be used.
    """
    return [
        f"{key} {_shown(key, given.get(key))} instead of {_shown(key, trained.get(key))}"
        for key in _KEYS
        if not _alike(trained.get(key), given.get(key))
    ]


def refuse_other_kind(trained: Mapping[str, Any], given: Mapping[str, Any], what: str) -> None:
    """Refuse volumes of another kind than those of the training.

    Args:
        trained: from `volume_kind`, of the training.
        given: of the volumes that are to be used.
        what: they are, for the message.

    Raises:
        ValueError: they differ; the message says in what, and how to prepare them.
    """
    if found := differences(trained, given):
        more = _options(trained) if trained["shape"] else " the options of frames that it was trained with"
        raise ValueError(
            f"{what} are not of the kind that the model was trained on: {'; '.join(found)}. Prepare them "
            f"with{more}, or score the model on what it was not trained for with --other-grid "
            "(other_grid=True)"
        )


def _options(trained: Mapping[str, Any]) -> str:
    """Of `medclip prepare`, that make volumes of a kind."""
    more = " --shape " + " ".join(f"{size:g}" for size in trained["shape"])
    if None in trained["spacing"]:
        more += " --fit resize"
    else:
        more += " --spacing " + " ".join(f"{step:g}" for step in trained["spacing"])
    more += "" if trained["crop"] == "center" else f" --crop {trained['crop']}"
    if trained.get("percentiles"):
        more += " --percentiles {:g} {:g}".format(*trained["percentiles"])
    return more


def _alike(one: Any, other: Any) -> bool:
    if not isinstance(one, Sequence) or not isinstance(other, Sequence) or isinstance(one, str):
        return one == other
    return len(one) == len(other) and all(
        a == b if a is None or b is None else abs(a - b) <= 1e-3 * abs(a)
        for a, b in zip(one, other, strict=True)
    )


def _shown(key: str, value: str | Sequence[float] | None) -> str:
    if isinstance(value, str) or value is None:
        return value or "none"
    if key == "percentiles":
        return "{:g} to {:g}".format(*value)
    return shown_spacing(value) if key == "spacing" else " x ".join(f"{size:g}" for size in value) + " voxels"


def shown_spacing(spacing: Sequence[float | None]) -> str:
    """A set's spacing in words, for people to read.

    Args:
        spacing: mm along depth, height, width; None where scans are resized.
    """
    if list(spacing) == [None, None, None]:
        return "each scan's own mm (--fit resize)"
    return " x ".join("own" if step is None else f"{step:g}" for step in spacing) + " mm"
