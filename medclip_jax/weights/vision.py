"""Published vision transformers, 2D or 3D, as the start of a 3D one."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medclip_jax.models.patches import grid_of
from medclip_jax.parameters import flatten
from medclip_jax.weights.resizing import inflate, resize_positions
from medclip_jax.weights.vision_checkpoint import Settings, read_checkpoint, read_settings
from medclip_jax.weights.vision_layouts import Encoder, recognize

_LOG = logging.getLogger(__name__)

PATCH = ("inflate", "fresh")
"""What may become of a checkpoint's patch layer, `config.objective.vision.weights_patch`."""

TRANSFORMER = "transformer/"
"""Where the transformer's parameters lie in a `VisionTower`."""

HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
"""Heads of the published vision transformers, by width; their weights do not tell."""

_FIELD = "config.objective.vision"
_MAY_BE_FRESH = ("norm/", "skip_norm/", "grid_pool/", "grid_scale", "grid_shift", "extreme_")
"""Parameters of the tower that a checkpoint need not have."""


class Converted(NamedTuple):
    """A checkpoint in the shapes of a tower, and what became of its parts.

    Attributes:
        params: name within the tower ("transformer/blocks/0/...") to float32 array.
        taken: names of those that are as they were.
        resized: a line for each thing that was brought to another shape.
        left_out: what the checkpoint holds and the tower does not take.
        fresh: names of the tower's parameters that keep their initial values.
    """

    params: dict[str, np.ndarray]
    taken: list[str]
    resized: list[str]
    left_out: list[str]
    fresh: list[str]

    def report(self) -> str:
        """One line for the log."""
        parts = (
            f"{len(self.taken)} parameters as they were",
            f"resized: {'; '.join(self.resized) or 'none'}",
            f"left out: {summarize(self.left_out)}",
            f"fresh: {summarize(self.fresh)}",
        )
        return ". ".join(parts)


def read_vision_weights(
    path: str | Path, vision_config: Any, shape: Sequence[int], params_of_tower: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Read a checkpoint of a vision transformer for a vision tower, and log what became of it.

    Args:
        path: `.safetensors`, or a PyTorch file of tensors alone (never a pickle of more); or a folder that
            holds one (Hugging Face's, or of `medclip export`).
        vision_config: `config.objective.vision`.
        shape: (D, H, W) of the volumes, in cells of the tower.
        params_of_tower: the tower's parameters (arrays or shapes), nested or by "transformer/...".

    Returns:
        The parameters to replace: name within the tower ("transformer/...") to float32 array.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be read safely, or does not fit; the message names the config field.
    """
    encoder = recognize(read_checkpoint(path))
    grid = grid_of(tuple(shape), tuple(vision_config.patch))
    converted = convert(encoder, vision_config, grid, params_of_tower, read_settings(path))
    _LOG.info("vision tower from %s.weights, %s: %s", _FIELD, path, converted.report())
    return converted.params


def convert(
    encoder: Encoder,
    vision_config: Any,
    grid: Sequence[int],
    params_of_tower: Mapping[str, Any],
    settings: Settings | None = None,
) -> Converted:
    """Bring a vision transformer's weights to the shapes of a tower.

    Blocks are taken as they are. The patch kernel is resized by `resizing.inflate`, learned positions by
    `resizing.resize_positions`; the position that a table has for the class token is added to that token.

    Args:
        encoder: from `vision_layouts.recognize`.
        vision_config: `config.objective.vision`.
        grid: patches of the tower along depth, height, width.
        params_of_tower: the tower's parameters (arrays or shapes), nested or by "transformer/...".
        settings: what is known of the checkpoint beside its weights.

    Returns:
        The converted parameters and the report on them.

    Raises:
        ValueError: the tower's config does not fit the checkpoint; the message names the field.
    """
    settings = settings or Settings()
    own = {
        name.removeprefix(TRANSFORMER): tuple(leaf.shape)
        for name, leaf in flatten(params_of_tower).items()
        if name.startswith(TRANSFORMER)
    }
    if not own:
        raise ValueError(
            f"{_FIELD}.weights starts vision transformers, and this tower is none: leave it empty"
        )
    _check(encoder, vision_config, own, settings)
    weights = dict(encoder.weights)
    found: dict[str, np.ndarray] = {}
    resized: list[str] = []
    changed: set[str] = set()
    left_out = list(encoder.left_out)
    fresh = []

    table, class_position, source = _positions(weights.pop("positions", None), tuple(grid), settings, encoder)
    if class_position is not None:
        weights["class_token"] = weights["class_token"].reshape(-1) + class_position
    if "positions" in own and table is not None:
        found["positions"] = resize_positions(table, source, grid)
        if _in_depth(source) != tuple(grid):
            resized.append(f"positions {_times(source)} -> {_times(grid)}")
            changed.add("positions")
    elif "positions" in own:
        fresh.append("positions")
    elif table is not None:
        left_out.append(f"positions ({_FIELD}.position is {vision_config.position!r})")

    kernel, bias = (weights.pop(f"embed/projection/{kind}", None) for kind in ("weight", "bias"))
    if vision_config.weights_patch == "fresh":
        fresh += [name for name in own if name.startswith("embed/")]
        left_out.append(f"patch layer ({_FIELD}.weights_patch is 'fresh')")
    else:
        embedding, line = _embedding(_as_convolution(kernel, settings), bias, vision_config)
        found |= embedding
        if line:
            resized.append(line)
            changed.add("embed/projection/kernel")

    for name, shape in own.items():
        if name in found or name in fresh:
            continue
        value = _find(weights, name, shape)
        if value is not None:
            found[name] = value
        elif name.startswith(_MAY_BE_FRESH):
            fresh.append(name)
        else:
            raise ValueError(f"the checkpoint lacks {name}: is a part of it missing?")
    modules = {name.rsplit("/", 1)[0] for name in own}
    left_out += [name for name in weights if name.rsplit("/", 1)[0] not in modules]
    return Converted(
        {TRANSFORMER + name: value for name, value in found.items()},
        [TRANSFORMER + name for name in found if name not in changed],
        resized,
        left_out,
        [TRANSFORMER + name for name in fresh],
    )


def summarize(names: Sequence[str], parts: int = 1) -> str:
    """Names by their first parts, with how many there are of each.

    Args:
        names: with dots between their parts.
        parts: how many are shown.

    Returns:
        "a, b (2)", or "none".
    """
    counts = Counter(".".join(name.split(".")[:parts]) for name in names)
    return ", ".join(name if count == 1 else f"{name} ({count})" for name, count in counts.items()) or "none"


def _check(encoder: Encoder, config: Any, own: Mapping[str, tuple[int, ...]], settings: Settings) -> None:
    """The config's fields against what the checkpoint shows."""
    if config.weights_patch not in PATCH:
        raise ValueError(f"{_FIELD}.weights_patch={config.weights_patch!r} is unknown: use one of {PATCH}")
    width = encoder.weights["class_token"].size if "class_token" in encoder.weights else None
    if width is None:
        raise ValueError("the checkpoint has no class token: only transformers with one can start this tower")
    _agree("width", config.width, width)
    _agree("depth", config.depth, encoder.depth)
    hidden = len(encoder.weights.get("blocks/0/mlp_in/weight", ()))
    if hidden and own["blocks/0/mlp_in/kernel"][1] != hidden:
        raise ValueError(
            f"{_FIELD}.mlp_ratio is {config.mlp_ratio:g}, and the checkpoint's blocks have {hidden} hidden "
            f"features: set it to {hidden / width:g}"
        )
    heads = settings.heads or HEADS.get(width)
    if heads:
        _agree("heads", config.heads, heads)
    normed = "pre_norm/weight" in encoder.weights
    if normed != config.pre_norm:
        raise ValueError(
            f"{_FIELD}.pre_norm is {config.pre_norm}, and the checkpoint ({encoder.layout.name}) has "
            f"{'a' if normed else 'no'} LayerNorm before its blocks: set it to {normed}"
        )
    activation = settings.activation or encoder.layout.activation
    if activation != config.activation:
        _LOG.warning(
            "%s.activation is %s; models with names like those of this checkpoint (%s) have %s",
            _FIELD,
            config.activation,
            encoder.layout.name,
            activation,
        )
    epsilon = settings.layer_norm_epsilon
    if epsilon is not None and not math.isclose(epsilon, config.layer_norm_epsilon):
        _LOG.warning(
            "%s.layer_norm_epsilon is %g; the checkpoint's model has %g",
            _FIELD,
            config.layer_norm_epsilon,
            epsilon,
        )


def _agree(field: str, configured: int, held: int) -> None:
    if configured != held:
        raise ValueError(
            f"{_FIELD}.{field} is {configured}, and the checkpoint has {held}: set it to {held}, or leave "
            f"{_FIELD}.weights empty"
        )


def _positions(
    table: np.ndarray | None, grid: tuple[int, int, int], settings: Settings, encoder: Encoder
) -> tuple[np.ndarray | None, np.ndarray | None, tuple[int, ...]]:
    """The table of the patches, the class token's position or None, and the table's grid."""
    if table is None:
        return None, None, ()
    table = table.reshape(-1, table.shape[-1])
    is_2d = encoder.weights["embed/projection/weight"].ndim == 4
    for first in (1, 0):
        rows = len(table) - first
        side = math.isqrt(rows)
        if is_2d:
            source = (side, side) if side * side == rows else None
        else:
            source = next(
                (known for known in (settings.grid, grid) if known and math.prod(known) == rows), None
            )
        if source:
            return table[first:], table[0] if first else None, source
    where = "square" if is_2d else f"{_times(grid)}, the tower's"
    raise ValueError(
        f"the checkpoint has {len(table)} positions, whose grid is not known (it is not {where}): set "
        f"{_FIELD}.position to 'sincos' to do without them"
    )


def _embedding(kernel: np.ndarray, bias: np.ndarray | None, config: Any) -> tuple[dict[str, np.ndarray], str]:
    """Parameters of the tower's patch layer, and a line on how its shape changed, "" where it did not."""
    patch, channels = tuple(config.patch), len(config.windows)
    rows = inflate(kernel, patch, channels)
    if config.peaks:
        # Without weight on them at first, so that the answer stays that of the checkpoint.
        rows = np.concatenate([rows, np.zeros((channels, len(kernel)), np.float32)])
    found = {
        "embed/projection/kernel": rows,
        "embed/projection/bias": np.zeros(len(kernel), np.float32) if bias is None else bias,
    }
    if (kernel.shape[1], *_in_depth(kernel.shape[2:])) == (channels, *patch):
        return found, ""
    of, to = _times(kernel.shape[2:]), _times(patch)
    return found, f"patch layer {of} of {kernel.shape[1]} channels -> {to} of {channels}"


def _in_depth(sizes: Sequence[int]) -> tuple[int, ...]:
    """(height, width) as (1, height, width)."""
    return (1, *sizes) if len(sizes) == 2 else tuple(sizes)


def _as_convolution(weight: np.ndarray, settings: Settings) -> np.ndarray:
    """(width, channels, *size); our own kernels are matrices, whose patch only the settings tell."""
    if weight.ndim > 2:
        return weight
    if settings.patch is None:
        raise ValueError(
            "the patch layer is a matrix, and no config.json of `medclip export` lies beside the weights to"
            f" tell its patch: give that folder to {_FIELD}.weights, or set {_FIELD}.weights_patch to "
            "'fresh'"
        )
    voxels = math.prod(settings.patch)
    channels = weight.shape[1] // voxels
    whole = weight[:, : voxels * channels].reshape(len(weight), *settings.patch, channels)
    return np.moveaxis(whole, -1, 1)


def _find(weights: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """A parameter of the tower from the checkpoint's weights, None where it has none."""
    module, _, kind = name.rpartition("/")
    if not module:
        value = weights.get(name)
        return None if value is None else value.reshape(shape)
    weight = weights.get(f"{module}/weight")
    if weight is None:
        return None
    if kind == "bias":
        # A layer without a bias is one whose bias is zero.
        value = weights.get(f"{module}/bias", np.zeros(shape, np.float32))
    else:
        value = weight.T if kind == "kernel" else weight
    if value.shape != shape:
        raise ValueError(
            f"{name} has shape {value.shape} in the checkpoint and {shape} in this tower ({_FIELD}.width, "
            "mlp_ratio): the checkpoint is of another architecture, or damaged"
        )
    return np.ascontiguousarray(value)


def _times(sizes: Sequence[int]) -> str:
    return "x".join(str(size) for size in sizes)
