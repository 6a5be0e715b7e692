"""The published systems, one file each, behind one seam (`base.Objective`)."""

from __future__ import annotations

import difflib
import importlib
import json
from collections.abc import Mapping
from typing import Any

from flax import nnx

from medclip_jax.objectives.base import Batch, DataSpec, Embedding, Features, Objective, Term

__all__ = [
    "OBJECTIVES",
    "Batch",
    "DataSpec",
    "Embedding",
    "Features",
    "Objective",
    "Term",
    "complete",
    "create",
]

OBJECTIVES: dict[str, tuple[str, str]] = {
    "mae": ("medclip_jax.objectives.mae", "MaskedAutoencoder"),
    "clip": ("medclip_jax.objectives.clip", "Clip"),
    "cardiac_clip": ("medclip_jax.objectives.cardiac_clip", "CardiacClip"),
    "hipro_ct": ("medclip_jax.objectives.hipro_ct", "HiProCt"),
}
"""Name in a config to (module, class)."""


def create(config: Any, spec: DataSpec, *, rngs: nnx.Rngs) -> Objective:
    """Build the objective that a config names.

    Args:
        config: an objective's config (its file's `default_config()`, changed or not); `config.name` picks.
        spec: what the prepared shards and the tokenizer fix.
        rngs: source of the initial weights.

    Raises:
        ValueError: the name is not registered, or the data lacks what the objective needs.
    """
    if config.name not in OBJECTIVES:
        near = difflib.get_close_matches(config.name, OBJECTIVES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no objective {config.name!r}; there are {', '.join(OBJECTIVES)}.{hint}")
    module, name = OBJECTIVES[config.name]
    return getattr(importlib.import_module(module), name)(config, spec, rngs=rngs)


def complete(saved: Mapping[str, Any]) -> dict[str, Any]:
    """An objective's config that was saved, with the keys that it got since then at their defaults.

    Args:
        saved: `objective` of a config.json; as it is where its name is not registered.

    Returns:
        JSON types: tuples are lists.
    """
    if saved.get("name") not in OBJECTIVES:
        return dict(saved)
    defaults = importlib.import_module(OBJECTIVES[saved["name"]][0]).default_config().to_dict()
    return _filled(saved, json.loads(json.dumps(defaults)))


def _filled(saved: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**defaults, **saved}
    for name, value in saved.items():
        if isinstance(value, Mapping) and isinstance(defaults.get(name), Mapping):
            merged[name] = _filled(value, defaults[name])
    return merged
