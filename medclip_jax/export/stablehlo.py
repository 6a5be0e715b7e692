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

from medclip_jax.objectives.base import Embedding

if TYPE_CHECKING:
    from medclip_jax.inference.model import Model

VOLUMES, TEXTS = "embed_volumes.stablehlo", "embed_texts.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")


def write_stablehlo(model: Model, folder: str | os.PathLike) -> list[Path]:
    """Write `embed_volumes.stablehlo` and, for a model with text, `embed_texts.stablehlo`.

    ``jax.export.deserialize(bytearray(file.read_bytes())).call(array)`` runs them, without Flax and this
    package, on any of `PLATFORMS`. Volumes are int16 HU (B, D, H, W), prepared; texts int32 token ids
    (B, text_length). Both return (B, E) float32, L2-normalized; of Gaussians the tuple (mean, log_variance),
    each (B, E) float32. B is free.

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

    def of_volumes(volumes: jax.Array) -> Embedding:
        return objective.embed_volumes({"volume": volumes})

    functions = {VOLUMES: (of_volumes, model.spec.shape, jnp.int16)}
    if objective.has_text:
        length = int(model.config["data"]["text_length"])
        functions[TEXTS] = (objective.embed_texts, (length,), jnp.int32)
    written = []
    for name, (embed, shape, dtype) in functions.items():
        (folder / name).write_bytes(serialized(embed, shape, dtype))
        written.append(folder / name)
    return written


def serialized(
    embed: Callable[[jax.Array], Embedding], shape: tuple[int, ...], dtype: jax.typing.DTypeLike
) -> bytearray:
    """An embedding function of an objective as a program of its own: points, or (mean, log_variance).

    Args:
        embed: (B, *shape) to an `objectives.base.Embedding`; what it closes over becomes constants.
        shape: of one sample.
        dtype: of the samples.

    Returns:
        What `jax.export.deserialize` takes.
    """
    (batch,) = export.symbolic_shape("batch")
    argument = jax.ShapeDtypeStruct((batch, *shape), dtype)
    with portable(), _without_source_lines():
        exported = export.export(jax.jit(lambda samples: _plain(embed(samples))), platforms=PLATFORMS)(
            argument
        )
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
