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
        shape (D, H, W) in voxels, spacing in mm, what they are centered on, the modality, and the percentiles
        that window its intensities or None. Of records without `volume`, shape and spacing are ().
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
        shape, spacing = (" ".join(f"{size:g}" for size in trained[key]) for key in ("shape", "spacing"))
        more = "" if trained["crop"] == "center" else f" --crop {trained['crop']}"
        if trained.get("percentiles"):
            more += " --percentiles {:g} {:g}".format(*trained["percentiles"])
        raise ValueError(
            f"{what} are not of the kind that the model was trained on: {'; '.join(found)}. Prepare them "
            f"with --shape {shape} --spacing {spacing}{more}, or score the model on what it was not trained "
            "for with --other-grid (other_grid=True)"
        )


def _alike(one: Any, other: Any) -> bool:
    if not isinstance(one, Sequence) or not isinstance(other, Sequence) or isinstance(one, str):
        return one == other
    return len(one) == len(other) and all(
        abs(a - b) <= 1e-3 * abs(a) for a, b in zip(one, other, strict=True)
    )


def _shown(key: str, value: str | Sequence[float] | None) -> str:
    if isinstance(value, str) or value is None:
        return value or "none"
    if key == "percentiles":
        return "{:g} to {:g}".format(*value)
    return " x ".join(f"{size:g}" for size in value) + (" mm" if key == "spacing" else " voxels")
