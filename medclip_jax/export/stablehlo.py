"""Exported models as StableHLO: one file a function, for CPU, CUDA and TPU, with the weights inside."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import export

from medclip_jax.export.inputs import input_shapes
from medclip_jax.objectives.base import Embedding, Objective

if TYPE_CHECKING:
    from medclip_jax.inference.model import Model

VOLUMES, TEXTS = "embed_volumes.stablehlo", "embed_texts.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")


def write_stablehlo(model: Model, folder: str | os.PathLike) -> list[Path]:
    """Write `embed_volumes.stablehlo` and, for a model with text, `embed_texts.stablehlo`.

    ``jax.export.deserialize(bytearray(file.read_bytes())).call(array)`` runs them, without Flax and this
    package, on any of `PLATFORMS`. Volumes are int16 HU (B, D, H, W), prepared; texts int32 token ids
    (B, text_length). Of a system that reads frames the first takes three arrays: frames int16 (B, T, H, W),
    their series int32 (B, T), and int8 (B, T), 1 where there is a frame. Both return (B, E) float32,
    L2-normalized; of Gaussians the tuple (mean, log_variance), each (B, E) float32. B is free.

    Args:
        model: from `medclip_jax.load`.
        folder: receives the files.

    Returns:
        Their paths.

    Raises:
        ImportError: the package flatbuffers is not installed.
    """
    folder = Path(folder)
    objective = model.objective
    shapes = input_shapes(objective, model.spec, model.config["data"])
    functions = {VOLUMES: (of_volumes(objective), tuple(shapes.values()))}
    if objective.has_text:
        tokens = jax.ShapeDtypeStruct((int(model.config["data"]["text_length"]),), jnp.int32)
        functions[TEXTS] = (objective.embed_texts, (tokens,))
    written = []
    for name, (embed, samples) in functions.items():
        (folder / name).write_bytes(serialized(embed, *samples))
        written.append(folder / name)
    return written


def of_volumes(objective: Objective) -> Callable[..., Embedding]:
    """`embed_volumes` of one array for each of `volume_inputs`, in their order."""
    names = objective.volume_inputs
    return lambda *arrays: objective.embed_volumes(dict(zip(names, arrays, strict=True)))


def serialized(embed: Callable[..., Embedding], *samples: jax.ShapeDtypeStruct) -> bytearray:
    """An embedding function of an objective as a program of its own: points, or (mean, log_variance).

    Args:
        embed: arrays (B, *shape) to an `objectives.base.Embedding`; what it closes over becomes constants.
        *samples: shape and type of one sample of each.

    Returns:
        What `jax.export.deserialize` takes.
    """
    (batch,) = export.symbolic_shape("batch")
    arguments = [jax.ShapeDtypeStruct((batch, *one.shape), one.dtype) for one in samples]
    with portable(), _without_source_lines():
        program = jax.jit(lambda *arrays: _plain(embed(*arrays)))
        exported = export.export(program, platforms=PLATFORMS)(*arguments)
    return exported.serialize()


def _plain(embedding: Embedding) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Without this package's types, which whoever reads the file need not have."""
    return embedding.mean if embedding.log_variance is None else tuple(embedding)


def portable():
    """Within, attention is computed in operations that every platform has.

    Its implementation is chosen as the program is traced, by the device that is meant, and the fused kernels
    of one do not run on the others: so none of them is meant.
    """
    device = jax.sharding.AbstractDevice(device_kind="any", num_cores=None, platform="any")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("any",), abstract_device=device))


@contextlib.contextmanager
def _without_source_lines():
    """Within, programs do not say by which file and line each operation was traced."""
    limit = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)
