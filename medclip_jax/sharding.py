"""Where activations lie on the mesh: the models say it, and stay free of every other sharding."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Shaped

BATCH_AXES = ("data", "fsdp")
"""Mesh axes over which a batch is split, in this order."""


def batch_axes() -> tuple[str, ...]:
    """The axes of the mesh in force over which the compiler may split a batch; () where there is none.

    An axis that a surrounding `jax.shard_map` already splits by hand is not among them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return ()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return tuple(name for name in BATCH_AXES if kinds.get(name, AxisType.Manual) != AxisType.Manual)


def batch_shards() -> int:
    """Parts into which the mesh in force splits a batch, 1 where there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[name] for name in batch_axes())


def batch_sharded(x: Shaped[Array, "batch ..."]) -> Shaped[Array, "batch ..."]:
    """Pin the first axis to the mesh's ("data", "fsdp") axes and leave the others unsharded.

    Without it the compiler may drop the batch's sharding wherever parameters are split too, and every
    device then computes the full batch. The mesh in force is the one of `jax.set_mesh` around the jitted
    function, or of `jax.sharding.use_abstract_mesh` inside it.

    Args:
        x: the batch on its first axis.

    Returns:
        `x`, equal in value. It is `x` itself where no mesh is in force, or where the mesh does not divide
        the batch evenly (a single volume under the mesh of a training).
    """
    axes = batch_axes()
    if not axes or x.shape[0] % batch_shards():
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes))


def compiled_for() -> tuple[str, str | None]:
    """Platform, and compute capability where it is known, of the device that is compiled for."""
    mesh = jax.sharding.get_abstract_mesh()
    meant = None if mesh.empty else mesh.abstract_device
    if meant is not None and meant.platform != jax.default_backend():
        return meant.platform, None
    device = jax.devices()[0]
    return device.platform, getattr(device, "compute_capability", None)


def on_batch_shards(function: Callable[..., jax.Array], *arrays: jax.Array | None) -> jax.Array:
    """Call a function on each device's part of the batch, where the compiler could not split it by itself.

    Args:
        function: what it gives for a sample depends on that sample alone.
        *arrays: the batch on the first axis of each; None is handed on.

    Returns:
        ``function(*arrays)``. A batch that the mesh in force does not divide is computed in full by each.
    """
    axes = batch_axes()
    if not axes or batch_shards() == 1:
        return function(*arrays)
    spec = PartitionSpec(axes if arrays[0].shape[0] % batch_shards() == 0 else None)
    return jax.shard_map(function, in_specs=spec, out_specs=spec, axis_names=set(axes), check_vma=False)(
        *arrays
    )
