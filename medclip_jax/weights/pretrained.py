"""Published weights at the start of a fresh run: what `text.folder` and `vision.weights` name."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from flax import nnx

from medclip_jax.objectives.base import DataSpec
from medclip_jax.objectives.towers import encoder_class
from medclip_jax.parameters import Tree, combine, flatten, unflatten
from medclip_jax.weights.frames import VIDEO, read_frame_weights

TEXT_ENCODER = "text/encoder/"
VISION_TOWER = "vision/"
"""Where the parameters of text encoder and vision tower lie in an objective."""


def load_pretrained(
    objective_config: Any, params: Tree, spec: DataSpec, *, settled: Collection[str] = ()
) -> Tree:
    """Replace drawn parameters by those of the published models that the config names.

    Files are read only for towers with a parameter that is not settled, so that a run which starts from
    another run's weights needs none of them.

    Args:
        objective_config: `config.objective`.
        params: of the objective, freshly drawn.
        spec: fixes the grid of the vision tower, or the shape of its frames.
        settled: names ("path/to/parameter") that keep what `params` holds.

    Returns:
        `params` with everything that a published model gives replaced, as host arrays.

    Raises:
        FileNotFoundError: no such folder or file, see `hub.locate`.
        ValueError: the weights do not fit; the message lists names and the setting to change.
    """
    own = flatten(params)
    settled = set(settled)
    found: dict[str, np.ndarray] = {}
    folder = objective_config.get("text", {}).get("folder", "")
    if folder and any(name.startswith(TEXT_ENCODER) for name in own.keys() - settled):
        found |= _text(folder)
        logging.info("text encoder from config.objective.text.folder, %s", folder)
    vision = objective_config.get("vision", {})
    tower = {name.removeprefix(VISION_TOWER): own[name] for name in own if name.startswith(VISION_TOWER)}
    if vision.get("weights", "") and any(VISION_TOWER + name not in settled for name in tower):
        found |= _vision(vision, tower, spec)
    found = {name: value for name, value in found.items() if name not in settled}
    return combine(params, unflatten({name: value.astype(own[name].dtype) for name, value in found.items()}))


def _vision(config: Any, tower: Mapping[str, Any], spec: DataSpec) -> dict[str, np.ndarray]:
    if any(name.startswith(VIDEO) for name in tower):
        weights = read_frame_weights(config.weights, config, spec.frame_shape, tower)
        return {VISION_TOWER + name: value for name, value in weights.items()}
    reader = encoder_class(config.kind).weights_reader
    if not reader:
        raise ValueError(
            f"config.objective.vision.weights={config.weights!r}: no checkpoints are read for towers of kind "
            f"{config.kind!r}: set it to ''"
        )
    module, _, function = reader.partition(":")
    shape = tuple(size // cell for size, cell in zip(spec.shape, config.cell, strict=True))
    weights = getattr(importlib.import_module(module), function)(config.weights, config, shape, tower)
    return {VISION_TOWER + name: value for name, value in weights.items()}


def _text(folder: str) -> dict[str, np.ndarray]:
    from medclip_jax.weights.text import load_bert

    encoder = nnx.to_pure_dict(nnx.state(load_bert(folder), nnx.Param))
    return {TEXT_ENCODER + name: np.asarray(value) for name, value in flatten(encoder).items()}
