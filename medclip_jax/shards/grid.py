"""Whether prepared volumes are of the kind that a model was trained on: grid, crop and modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medclip_jax.shards.read import PreparedInfo

_KEYS = ("shape", "spacing", "crop", "modality")


def volume_kind(info: PreparedInfo) -> dict[str, Any]:
    """What prepared volumes have in common that a model learns to rely on.

    Args:
        info: from `open_shards`.

    Returns:
        shape (D, H, W) in voxels, spacing in mm, what they are centered on, and the modality.
    """
    settings = info.settings
    return {
        "shape": tuple(info.shape),
        "spacing": tuple(info.spacing),
        "crop": str(settings.get("crop", "center")),
        "modality": str(settings.get("modality", "CT")),
    }


def differences(trained: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """What two kinds of volumes differ in, in words; [] where in nothing.

    Args:
        trained: from `volume_kind`, of the training.
        given: of the volumes that are to be used.
    """
    return [
        f"{key} {_shown(key, given[key])} instead of {_shown(key, trained[key])}"
        for key in _KEYS
        if not _alike(trained[key], given[key])
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
        crop = "" if trained["crop"] == "center" else f" --crop {trained['crop']}"
        raise ValueError(
            f"{what} are not of the kind that the model was trained on: {'; '.join(found)}. Prepare them "
            f"with --shape {shape} --spacing {spacing}{crop}, or score the model on what it was not trained "
            "for with --other-grid (other_grid=True)"
        )


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, str):
        return one == other
    return len(one) == len(other) and all(
        abs(a - b) <= 1e-3 * abs(a) for a, b in zip(one, other, strict=True)
    )


def _shown(key: str, value: str | Sequence[float]) -> str:
    if isinstance(value, str):
        return value
    return " x ".join(f"{size:g}" for size in value) + (" mm" if key == "spacing" else " voxels")
