"""Whether prepared volumes are of the kind that a model was trained on: grid, crop, modality, intensities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medclip_jax.shards.read import PreparedInfo
from medclip_jax.shards.record import VOLUME

_KEYS = ("shape", "spacing", "crop", "modality", "percentiles")


def volume_kind(info: PreparedInfo) -> dict[str, Any]:
    """What prepared volumes have in common that a model learns to rely on.

    Args:
        info: from `open_shards`.

    Returns:
        shape (D, H, W) in voxels, spacing in mm (None where scans are resized), what they are centered on,
        the modality, and the percentiles that window its intensities or None. Of records without `volume`,
        shape and spacing are ().
    """
    volume = next((series for series in info.series if series.name == VOLUME), None)
    return {
        "shape": tuple(info.shape),
        "spacing": tuple(info.spacing),
        "crop": str(info.settings.get("crop", "center")),
        "modality": "CT" if volume is None else volume.modality,
        "percentiles": None if volume is None else volume.percentiles,
    }


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
        more = " --shape " + " ".join(f"{size:g}" for size in trained["shape"])
        if None in trained["spacing"]:
            more += " --fit resize"
        else:
            more += " --spacing " + " ".join(f"{step:g}" for step in trained["spacing"])
        more += "" if trained["crop"] == "center" else f" --crop {trained['crop']}"
        if trained.get("percentiles"):
            more += " --percentiles {:g} {:g}".format(*trained["percentiles"])
        raise ValueError(
            f"{what} are not of the kind that the model was trained on: {'; '.join(found)}. Prepare them "
            f"with{more}, or score the model on what it was not trained for with --other-grid "
            "(other_grid=True)"
        )


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
