"""The published systems, one file each, behind one seam (`base.Objective`)."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from flax import nnx

from medclip_jax.dotted import find_class
from medclip_jax.objectives.base import Batch, DataSpec, Embedding, Features, Objective, Term

if TYPE_CHECKING:
    from medclip_jax.sections import Section

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
    "default_config",
    "resolve",
]

OBJECTIVES: dict[str, str] = {
    "mae": "medclip_jax.objectives.mae:MaskedAutoencoder",
    "clip": "medclip_jax.objectives.clip:Clip",
    "cardiac_clip": "medclip_jax.objectives.cardiac_clip:CardiacClip",
    "hipro_ct": "medclip_jax.objectives.hipro_ct:HiProCt",
    "asap": "medclip_jax.objectives.asap:Asap",
    "t3d": "medclip_jax.objectives.t3d:T3d",
    "cmr_clip": "medclip_jax.objectives.cmr_clip:CmrClip",
    "segment": "medclip_jax.objectives.segment:Segment",
    "supervised": "medclip_jax.objectives.supervised:Supervised",
    "supervised_frames": "medclip_jax.objectives.supervised_frames:SupervisedFrames",
}
"""Name in a config to "package.module:Class", as which a system from elsewhere is named at once."""


def resolve(name: str) -> tuple[ModuleType, type[Objective]]:
    """The module and the class of a system.

    Args:
        name: as a config has it: one of `OBJECTIVES`, or "package.module:Class" for a system that lives in
            a package of the user's own.

    Raises:
        ValueError: there is no such system, or it lacks what a config needs; the message says what to do.
    """
    found = find_class(name, OBJECTIVES, Objective, "config.objective.name")
    # Where the name says, and not where the class was written: a module may take a class from another.
    return importlib.import_module(OBJECTIVES.get(name, name).partition(":")[0]), found


def default_config(name: str, given: Mapping[str, Any] | None = None) -> Section:
    """All fields of a system's config, with their defaults.

    Args:
        name: see `resolve`.
        given: `config.objective` as someone wrote it. Where a tower there is of another kind than the system
            has by default, its fields are those of that kind.

    Raises:
        ValueError: there is no such system, its module has no `default_config()` with that name in it, or
            a tower was given another kind and kept fields of the one before.
    """
    # Imported here: a step needs no library of configs.
    from ml_collections import ConfigDict

    from medclip_jax.sections import Section

    module, _ = resolve(name)
    make = getattr(module, "default_config", None)
    found = make() if callable(make) else None
    if not isinstance(found, Mapping | ConfigDict) or found.get("name") != name:
        raise ValueError(
            f"{module.__name__} must define default_config() that returns "
            f"medclip_jax.sections.Section({{'name': {name!r}, ...}})"
        )
    found = found if isinstance(found, Section) else Section(found)
    for section, fields in found.items():
        chosen = (given or {}).get(section)
        if not isinstance(fields, Section) or not isinstance(chosen, Mapping | ConfigDict):
            continue
        if "kind" in fields and chosen.get("kind", fields.kind) != fields.kind:
            _change_kind(found, section, chosen)
    return found


def _change_kind(config: Section, section: str, chosen: Mapping[str, Any]) -> None:
    """Give a tower's section the fields of another kind.

    Raises:
        ValueError: there is no such kind, or `chosen` has fields of the kind before.
    """
    from medclip_jax.objectives.towers import vision_defaults
    from medclip_jax.sections import DEFAULT, set_field

    defaults = vision_defaults(chosen["kind"])
    stale = [name for name in chosen if name in config[section] and name not in defaults]
    if stale:
        raise ValueError(
            f"config.objective.{section}.kind={chosen['kind']!r} has no {', '.join(stale)}: those are of "
            f"{config[section].kind!r}. In the config file, choose the kind with all its fields first: "
            f"config.objective.{section} = vision_defaults({chosen['kind']!r}), from "
            "medclip_jax.objectives.towers"
        )
    set_field(config, section, defaults, DEFAULT)


def create(config: Any, spec: DataSpec, *, rngs: nnx.Rngs) -> Objective:
    """Build the objective that a config names.

    Args:
        config: an objective's config (its file's `default_config()`, changed or not); `config.name` picks.
        spec: what the prepared shards and the tokenizer fix.
        rngs: source of the initial weights.

    Raises:
        ValueError: there is no such objective, or the data lacks what it needs.
    """
    return resolve(config.name)[1](config, spec, rngs=rngs)


def complete(saved: Mapping[str, Any]) -> dict[str, Any]:
    """An objective's config that was saved, with the keys that it got since then at their defaults.

    Args:
        saved: `objective` of a config.json; as it is where its name is not registered.

    Returns:
        JSON types: tuples are lists.

    Raises:
        ValueError: it is a system from outside the package that cannot be imported.
    """
    name = saved.get("name") or ""
    if name not in OBJECTIVES and ":" not in name:
        return dict(saved)
    return _filled(saved, json.loads(json.dumps(default_config(name, saved).to_dict())))


def _filled(saved: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**defaults, **saved}
    for name, value in saved.items():
        if isinstance(value, Mapping) and isinstance(defaults.get(name), Mapping):
            merged[name] = _filled(value, defaults[name])
    return merged
