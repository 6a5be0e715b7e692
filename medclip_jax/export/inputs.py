"""What an exported model reads of a volume or a study, and made-up samples of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Int16
from ml_collections import ConfigDict

from medclip_jax.fields import Layout
from medclip_jax.objectives.base import DataSpec, Objective
from medclip_jax.volumes.modality import WINDOW_TOP


def input_shapes(
    objective: Objective, spec: DataSpec, data: Mapping[str, Any]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and type of what `embed_volumes` reads of one volume or study, by the names of batch fields.

    Args:
        objective: any.
        spec: what the data fix.
        data: `config.data`.
    """
    shapes = Layout(objective.volume_inputs, spec, ConfigDict(data)).shapes()
    return {name: jax.ShapeDtypeStruct(*shapes[name]) for name in objective.volume_inputs}


def made_up_inputs(shapes: Mapping[str, jax.ShapeDtypeStruct], spec: DataSpec) -> dict[str, np.ndarray]:
    """A batch of one.

    Args:
        shapes: from `input_shapes`, of fields in `MADE_UP`.
        spec: what the data fix.
    """
    return {name: MADE_UP[name](one.shape, spec)[None].astype(one.dtype) for name, one in shapes.items()}


def made_up_volume(shape: tuple[int, int, int], seed: int = 0) -> Int16[np.ndarray, "D H W"]:
    """Blocks of tissue and air with noise, in HU.

    Args:
        shape: (D, H, W).
        seed: of the noise.
    """
    generator = np.random.default_rng(seed)
    coarse = generator.uniform(-1000, 600, [-(-size // 8) for size in shape])
    blocks = coarse.repeat(8, 0).repeat(8, 1).repeat(8, 2)[: shape[0], : shape[1], : shape[2]]
    return np.round(blocks + generator.normal(0, 30, shape)).astype(np.int16)


def _there(shape: tuple[int]) -> np.ndarray:
    """Three quarters of the frames: padding is part of what is compared."""
    return np.arange(shape[0]) < max(1, 3 * shape[0] // 4)


MADE_UP: dict[str, Callable[[tuple[int, ...], DataSpec], np.ndarray]] = {
    "volume": lambda shape, spec: made_up_volume(shape),
    "frames": lambda shape, spec: np.clip(2 * (made_up_volume(shape).astype(int) + 1000), 0, WINDOW_TOP),
    "view": lambda shape, spec: np.where(_there(shape), np.arange(*shape) % len(spec.views), -1),
    "frame_valid": lambda shape, spec: _there(shape),
}
"""Batch fields that exported models may read, each with how a sample of it is made up."""
