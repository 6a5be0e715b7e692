"""Published 2D vision transformers as the start of a tower of frames."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from medclip_jax.parameters import flatten
from medclip_jax.weights.vision import TRANSFORMER, Converted, convert
from medclip_jax.weights.vision_checkpoint import Settings, read_checkpoint, read_settings
from medclip_jax.weights.vision_layouts import Encoder, recognize

_LOG = logging.getLogger(__name__)

VIDEO = "video/"
"""Where the parameters of `models.spacetime.SpaceTimeTransformer` lie in a frame tower."""

_PATCHES = TRANSFORMER + "embed/projection/kernel"

_OF_TIME = re.compile(r"temporal_positions|view_embedding|blocks/\d+/time_(norm|attention)/.*")
"""Parameters that a 2D model has nothing for: they keep the values with which the tower is a 2D model."""


def read_frame_weights(
    path: str | Path, vision_config: Any, frame_shape: Sequence[int], params_of_tower: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Read a checkpoint of a 2D vision transformer for a frame tower, and log what became of it.

    Args:
        path: see `weights.vision.read_vision_weights`.
        vision_config: `config.objective.vision`.
        frame_shape: (H, W) pixels of a frame.
        params_of_tower: the tower's parameters (arrays or shapes), nested or by "video/...".

    Returns:
        The parameters to replace: name within the tower ("video/...") to float32 array.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be read safely, or does not fit; the message names the config field.
    """
    encoder = recognize(read_checkpoint(path))
    converted = convert_frames(encoder, vision_config, frame_shape, params_of_tower, read_settings(path))
    _LOG.info("frame tower from config.objective.vision.weights, %s: %s", path, converted.report())
    return converted.params


def convert_frames(
    encoder: Encoder,
    vision_config: Any,
    frame_shape: Sequence[int],
    params_of_tower: Mapping[str, Any],
    settings: Settings | None = None,
) -> Converted:
    """Bring a vision transformer's weights to the shapes of a frame tower, see `weights.vision.convert`.

    With as many channels as the checkpoint the patch kernel is taken channel by channel; with one, a gray
    frame gives the answer of a picture that has it in every channel.

    Args:
        encoder: from `vision_layouts.recognize`.
        vision_config: `config.objective.vision`.
        frame_shape: (H, W) pixels of a frame.
        params_of_tower: the tower's parameters (arrays or shapes), nested or by "video/...".
        settings: what is known of the checkpoint beside its weights.

    Returns:
        The converted parameters and the report on them. A channel of motion has zeros.

    Raises:
        ValueError: the tower's config does not fit the checkpoint; the message names the field.
    """
    if "pre_norm/weight" in encoder.weights:
        raise ValueError(
            f"the checkpoint ({encoder.layout.name}) has a LayerNorm before its blocks, which a frame tower "
            "has not: give config.objective.vision.weights a ViT or MAE without one, or leave it empty"
        )
    own = {
        name.removeprefix(VIDEO): leaf
        for name, leaf in flatten(params_of_tower).items()
        if name.startswith(VIDEO)
    }
    shared = {TRANSFORMER + name: leaf for name, leaf in own.items() if not _OF_TIME.fullmatch(name)}
    channels = len(vision_config.channels)
    if vision_config.motion:  # pictures do not move: the checkpoint knows nothing of that channel
        rows, width = shared[_PATCHES].shape
        shared[_PATCHES] = np.zeros((rows // (channels + 1) * channels, width), np.float32)
    patch = tuple(vision_config.patch)
    # A frame tower as `convert` knows towers: of volumes of one slice.
    of_a_slice = SimpleNamespace(
        **{name: vision_config[name] for name in ("width", "depth", "heads", "mlp_ratio", "activation")},
        layer_norm_epsilon=vision_config.layer_norm_epsilon,
        patch=(1, *patch),
        windows=vision_config.channels,
        peaks=False,
        position="learned",
        pre_norm=False,
        weights_patch="inflate",
    )
    grid = (1, *(size // step for size, step in zip(frame_shape, patch, strict=True)))
    found = convert(encoder, of_a_slice, grid, shared, settings)
    if vision_config.motion:
        by_channel = found.params[_PATCHES].reshape(-1, channels, width)
        found.params[_PATCHES] = np.pad(by_channel, ((0, 0), (0, 1), (0, 0))).reshape(-1, width)
    fresh = [TRANSFORMER + name for name in own if _OF_TIME.fullmatch(name)] + found.fresh
    return Converted(
        {_in_video(name): value for name, value in found.params.items()},
        [_in_video(name) for name in found.taken],
        found.resized,
        found.left_out,
        [_in_video(name) for name in fresh],
    )


def _in_video(name: str) -> str:
    return VIDEO + name.removeprefix(TRANSFORMER)
