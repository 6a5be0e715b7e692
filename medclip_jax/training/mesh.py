"""The device mesh, and where batches and parameters lie on it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp")


def make_mesh(config: Any, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A (data, fsdp) mesh over the local devices.

    Args:
        config: `config.mesh`; `data = -1` takes all devices.
        devices: to lay out; default all local ones.

    Raises:
        ValueError: more devices are asked for than there are.
        NotImplementedError: `fsdp` above 1.
    """
    devices = list(jax.local_devices() if devices is None else devices)
    if config.fsdp != 1:
        raise NotImplementedError(
            f"config.mesh.fsdp={config.fsdp}: splitting parameters over devices comes with multi-host "
            "training; set it to 1 (every device holds all parameters)"
        )
    data = len(devices) if config.data == -1 else config.data
    if not 1 <= data <= len(devices):
        raise ValueError(
            f"config.mesh.data={config.data}, but there are {len(devices)} {devices[0].platform} devices: "
            "set it to -1 for all of them"
        )
    if data < len(devices):
        logging.warning("config.mesh.data=%d uses only %d of %d devices", data, data, len(devices))
    return jax.make_mesh((data, 1), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices[:data])


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Stop early when the batch cannot be split evenly.

    Raises:
        ValueError: with the nearest batch sizes and device counts that work.
    """
    devices = mesh.size
    if batch_size % devices:
        below, above = batch_size // devices * devices, math.ceil(batch_size / devices) * devices
        sizes = f"{below} or {above}" if below else f"{above}"
        fewer = max(n for n in range(1, devices + 1) if batch_size % n == 0)
        raise ValueError(
            f"config.batch_size={batch_size} cannot be split over {devices} devices: "
            f"set it to {sizes}, or config.mesh.data to {fewer}"
        )


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Move a host batch to the devices, each getting its part."""
    return jax.device_put(dict(batch), batch_sharding(mesh))


def put_state(tree: Any, mesh: Mesh) -> Any:
    """Place a state on every device, in buffers of its own (the step overwrites them)."""
    return jax.device_put(tree, replicated(mesh), may_alias=False)
