"""The config.json of an exported model: read, and checked before anything is built from it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medclip_jax.objectives import OBJECTIVES, complete
from medclip_jax.objectives.base import DataSpec
from medclip_jax.reports.definitions import Findings
from medclip_jax.shards.series import SeriesSettings
from medclip_jax.volumes.modality import MODALITIES, check_percentiles

MODEL_TYPE = "medclip"

_TERMS = "objective.weights"
_VIEWS = "objective.vision.views"
"""Rows of the embedding of series, of which there may be none."""

_VOXELS = 2**31
"""No prepared volume has more."""

_TOKENS = 2**20
"""Entries of a vocabulary, and tokens of a text, at most."""


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ValueError: it is damaged; the message names it and says why.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{file} is damaged (nested too deeply): copy it again from where it came") from None
    except ValueError as error:  # no JSON, or no UTF-8
        raise ValueError(f"{file} is damaged ({error}): copy it again from where it came") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} is damaged (no JSON object): copy it again from where it came")
    return content


def is_exported(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of an exported model, sound or not."""
    return config.get("model_type") == MODEL_TYPE


def check_config(config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> DataSpec:
    """Check every entry, and the sizes of the towers against the weights, before anything is built.

    Args:
        config: config.json of an exported model.
        shapes: of the weights, by their names in PyTorch.

    Returns:
        What the model is built for.

    Raises:
        ValueError: an entry is missing, of another type, out of range, or says otherwise than the weights;
            the message names it.
    """
    for name, kind in (("objective", dict), ("data", dict), ("prompts", dict), ("crop", str)):
        _check(isinstance(config.get(name), kind), name, config.get(name), f"a {kind.__name__}")
    objective, data = config["objective"], config["data"]
    _check(config.get("modality") in MODALITIES, "modality", config.get("modality"), " or ".join(MODALITIES))
    try:
        check_percentiles(percentiles_of(config), config["modality"])
        series_of(config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"percentiles or series: {error}") from None
    known = objective.get("name")
    names = [*OBJECTIVES, "package.module:Class"]
    is_name = isinstance(known, str) and (known in OBJECTIVES or ":" in known)
    _check(is_name, "objective.name", known, " or ".join(names))
    _check_entries("objective", objective, _defaults(objective))
    whole = complete(objective)
    _check_towers(whole, shapes)
    spec = _spec(data)
    vision = whole.get("vision", {})
    if {"windows", "standardize"} <= vision.keys():
        _check_windows(vision)
    if {"cell", "patch"} <= vision.keys():
        _check_grid(spec, vision)
    if spec.frame_shape:
        _check_frames(config, spec, vision)
    length = config.get("text_length")
    _check(_is_size(length) and length <= _TOKENS, "text_length", length, "a number of tokens")
    for name, pair in config["prompts"].items():
        is_pair = isinstance(pair, list) and len(pair) == 2 and all(map(_is_prompts, pair))
        _check(is_pair, f"prompts.{name}", pair, "two sentences, or two lists of them")
    Findings.from_json(config.get("findings", []))
    return spec


def percentiles_of(config: Mapping[str, Any]) -> tuple[float, float] | None:
    """What windows an MR scan's intensities, by config.json; None where nothing does."""
    found = config.get("percentiles")
    return None if found is None else tuple(found)


def series_of(config: Mapping[str, Any]) -> tuple[SeriesSettings, ...]:
    """What studies of series of frames become, by config.json; () for a model of volumes.

    Raises:
        TypeError, ValueError: an entry is damaged.
    """
    return tuple(SeriesSettings(**series).checked() for series in config.get("series", ()))


def check_same(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> None:
    """Check that preprocessor_config.json, which says part of it again, says the same.

    Raises:
        ValueError: it does not; one of the two was changed or damaged.
    """
    data = config["data"]
    said = {"shape": data["shape"], "spacing_mm": data["spacing"], "modality": config["modality"]}
    for name, value in said.items():
        if name in preprocessor and preprocessor[name] != value:
            raise ValueError(f"{name} is {value} here, {preprocessor[name]} in preprocessor_config.json")


def _check(holds: bool, name: str, value: Any, wanted: str) -> None:
    if not holds:
        shown = json.dumps(value)
        shown = shown if len(shown) <= 60 else shown[:60] + "..."
        raise ValueError(f"{name} is {shown}, not {wanted}")


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _are_sizes(value: Any, count: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == count and all(map(_is_size, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_entries(where: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Types and signs as those of the defaults: what is positive there, or not negative, is so here."""
    for name, value in given.items():
        place = f"{where}.{name}"
        if name not in defaults:
            raise ValueError(f"{place} is unknown here: of a newer medclip_jax, or damaged")
        default = defaults[name]
        if isinstance(default, Mapping):
            _check(isinstance(value, Mapping), place, value, "a dict")
            _check_entries(place, value, default)
        elif isinstance(default, bool | str):
            _check(isinstance(value, type(default)), place, value, f"a {type(default).__name__}")
        elif isinstance(default, int):
            least = 0 if place == _VIEWS else min(default, 1)
            is_whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
            _check(is_whole, place, value, f"a whole number of {least} or more")
        elif isinstance(default, float):
            _check(_is_number(value), place, value, "a number")
            _check(value >= 0 or default < 0, place, value, "0 or more")
            # A weight of 0 leaves a term of the loss out.
            _check(value > 0 or default <= 0 or where == _TERMS, place, value, "more than 0")
        else:
            _check(isinstance(value, list), place, value, "a list")


def _defaults(objective: Mapping[str, Any]) -> dict[str, Any]:
    """Every entry that such an objective can have; a tower's depend on its kind."""
    vision = objective.get("vision")
    kind = vision.get("kind") if isinstance(vision, Mapping) else None
    _check(kind is None or isinstance(kind, str), "objective.vision.kind", kind, "a str")
    return complete({"name": objective["name"]} | ({"vision": {"kind": kind}} if kind else {}))


def _check_towers(objective: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> None:
    """Widths and depths by the weights; the rest of their shapes follows once the model is built."""
    for transformer in ("vision.transformer", "vision.video", "text.encoder", "decoder"):
        tower, norm = transformer.partition(".")[0], f"{transformer}.norm.weight"
        config = objective.get(tower)
        if not isinstance(config, Mapping) or norm not in shapes:
            continue
        matches = (re.match(rf"{re.escape(transformer)}\.blocks\.(\d+)\.", name) for name in shapes)
        found = {"width": shapes[norm][0], "depth": len({match[1] for match in matches if match})}
        for name, size in found.items():
            wanted = f"{size}, as in the weights"
            _check(config[name] == size, f"objective.{tower}.{name}", config[name], wanted)
        width, heads = config["width"], config["heads"]
        _check(width % heads == 0, f"objective.{tower}.heads", heads, f"a divisor of {width}")


def _spec(data: Mapping[str, Any]) -> DataSpec:
    frames = data.get("frame_shape", [])
    _check(frames == [] or _are_sizes(frames, 2), "data.frame_shape", frames, "two sizes in pixels")
    for name in ("shape", "spacing"):
        value = data.get(name)
        is_list = isinstance(value, list) and (len(value) == 3 or (value == [] and frames != []))
        _check(is_list, f"data.{name}", value, "a list of three numbers")
    _check(all(map(_is_size, data["shape"])), "data.shape", data["shape"], "three sizes in voxels")
    _check(math.prod(data["shape"]) < _VOXELS, "data.shape", data["shape"], f"fewer than {_VOXELS} voxels")
    positive = all(step is None or (_is_number(step) and step > 0) for step in data["spacing"])
    _check(positive, "data.spacing", data["spacing"], "three distances in mm, or null for each scan's own")
    for name in ("findings", "organs", "views", "measurements"):
        value = data.get(name, [])
        is_names = isinstance(value, list) and all(isinstance(entry, str) for entry in value)
        _check(is_names, f"data.{name}", value, "a list of names")
    for name in ("vocabulary_size", "mask_token", "pad_token"):
        value = data.get(name, 0)
        is_id = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _TOKENS
        _check(is_id, f"data.{name}", value, "a number of tokens")
    try:
        return DataSpec(**{key: tuple(x) if isinstance(x, list) else x for key, x in data.items()})
    except TypeError as error:
        raise ValueError(f"data holds an unknown entry ({error})") from None


def _check_grid(spec: DataSpec, vision: Mapping[str, Any]) -> None:
    for name in ("cell", "patch"):
        _check(_are_sizes(vision[name], 3), f"objective.vision.{name}", vision[name], "three sizes in voxels")
    steps = [cell * patch for cell, patch in zip(vision["cell"], vision["patch"], strict=True)]
    divides = all(size % step == 0 for size, step in zip(spec.shape, steps, strict=True))
    _check(divides, "data.shape", list(spec.shape), f"a multiple of {steps}, the patches in voxels")


def _check_frames(config: Mapping[str, Any], spec: DataSpec, vision: Mapping[str, Any]) -> None:
    patch, channels = vision["patch"], vision["channels"]
    _check(_are_sizes(patch, 2), "objective.vision.patch", patch, "two sizes in pixels")
    divides = all(size % step == 0 for size, step in zip(spec.frame_shape, patch, strict=True))
    _check(divides, "data.frame_shape", list(spec.frame_shape), f"a multiple of {patch}, the patches")
    is_scales = channels and all(_is_pair(scale) and scale[1] > 0 for scale in channels)
    _check(bool(is_scales), "objective.vision.channels", channels, "a list of (mean, standard deviation)")
    motion = vision.get("motion", 0.0)  # folders of earlier versions have none
    _check(_is_number(motion) and motion >= 0, "objective.vision.motion", motion, "a number, 0 or more")
    most = vision["frames"]
    frames, views = config.get("frames"), config.get("views")
    _check(_is_size(frames) and frames <= most, "frames", frames, f"a number up to {most}")
    _check(isinstance(views, list) and set(views) <= set(spec.views), "views", views, "names in data.views")


def _check_windows(vision: Mapping[str, Any]) -> None:
    windows, standardize = vision["windows"], vision["standardize"]
    is_windows = windows and all(_is_pair(window) and window[0] < window[1] for window in windows)
    _check(bool(is_windows), "objective.vision.windows", windows, "a list of (low, high) in HU")
    is_scales = all(_is_pair(scale) and scale[1] > 0 for scale in standardize)
    _check(is_scales, "objective.vision.standardize", standardize, "a list of (mean, standard deviation)")


def _is_prompts(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)
    )


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))
