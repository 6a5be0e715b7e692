"""The device mesh over all processes, and how batches and states get onto it.

Axis "data" splits the batch; axis "fsdp" splits the batch too, and with it the parameters, their optimizer
state and their moving average (see `training.partition`).
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from medclip_jax.sharding import BATCH_AXES


def make_mesh(config: Any, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A (data, fsdp) mesh over the devices of all processes.

    The parameters of a layer cross the fsdp axis several times a step, gradients cross the data axis once:
    so fsdp stays inside a slice (TPU) or a host (others) as far as it fits there, and data spans them.

    Args:
        config: `config.mesh`: `data` and `fsdp` devices along each axis; `data = -1` takes all that `fsdp`
            leaves.
        devices: to lay out; default all of all processes.

    Raises:
        ValueError: the axes do not fit the devices, or not their division into slices or hosts; the
            message says what fits.
    """
    devices = list(jax.devices() if devices is None else devices)
    data, fsdp = _axis_sizes(config, len(devices), devices[0].platform)
    used = data * fsdp
    if used < len(devices):
        processes = {device.process_index for device in devices}
        if len(processes) > 1:
            raise ValueError(
                f"config.mesh.data={config.data} x fsdp={fsdp} takes {used} of {len(devices)} devices of "
                f"{len(processes)} processes, but all must take part: set config.mesh.data to -1"
            )
        logging.warning("config.mesh: %d x %d uses only %d of %d devices", data, fsdp, used, len(devices))
    return Mesh(arrange(devices[:used], fsdp), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def _axis_sizes(config: Any, count: int, platform: str) -> tuple[int, int]:
    divisors = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
    there = f"there are {count} {platform} devices"
    if config.fsdp < 1 or config.fsdp > count or (config.data == -1 and count % config.fsdp):
        raise ValueError(f"config.mesh.fsdp={config.fsdp}, but {there}: set it to one of {divisors}")
    data = count // config.fsdp if config.data == -1 else config.data
    if not 1 <= data * config.fsdp <= count:
        beside = f" beside fsdp={config.fsdp}" if config.fsdp > 1 else ""
        raise ValueError(
            f"config.mesh.data={config.data}{beside}, but {there}: set it to at most "
            f"{count // config.fsdp}, or to -1 for all of them"
        )
    return data, config.fsdp


def arrange(devices: Sequence[jax.Device], fsdp: int) -> np.ndarray:
    """Lay devices out as a (data, fsdp) array, fsdp inside slices or hosts as far as it fits.

    Args:
        devices: all that take part.
        fsdp: devices along that axis; must divide their number.

    Raises:
        ValueError: slices or hosts of unequal size, or of a size that neither holds complete fsdp groups nor
            divides one.
    """
    count = len(devices)
    groups = _groups(devices)
    if len(groups) == 1:
        return _arrange_group(next(iter(groups.values())), (count // fsdp, fsdp))
    sizes = sorted({len(group) for group in groups.values()})
    if len(sizes) > 1:
        raise ValueError(
            f"{len(groups)} slices or hosts with {' and '.join(map(str, sizes))} devices each: "
            "start the run with the same number on all of them"
        )
    size = sizes[0]
    if fsdp > size and fsdp % size == 0:
        logging.warning(
            "config.mesh.fsdp=%d spans %d slices or hosts of %d devices: parameters will cross the slower "
            "network at every step; fsdp=%d would stay inside",
            *(fsdp, fsdp // size, size, size),
        )
    elif size % fsdp:
        fits = [n for n in range(1, count + 1) if count % n == 0 and (size % n == 0 or n % size == 0)]
        raise ValueError(
            f"config.mesh.fsdp={fsdp} would cut across slices or hosts of {size} devices: set it to one of "
            f"{', '.join(map(str, fits))}"
        )
    inner = min(fsdp, size)
    rows = [_arrange_group(groups[key], (size // inner, inner)) for key in sorted(groups)]
    across = fsdp // inner
    return np.concatenate(
        [np.concatenate(rows[start : start + across], axis=1) for start in range(0, len(rows), across)]
    )


def _groups(devices: Sequence[jax.Device]) -> dict[Hashable, list[jax.Device]]:
    """Devices by the slice that they belong to, or by process where the platform knows no slices."""

    def by(attribute: str) -> dict[Hashable, list[jax.Device]]:
        groups = defaultdict(list)
        for device in devices:
            groups[getattr(device, attribute)].append(device)
        return groups

    if all(getattr(device, "slice_index", None) is not None for device in devices):
        return by("slice_index")
    # A TPU without slices is one slice, whose hosts share the fast network.
    return {0: list(devices)} if devices[0].platform == "tpu" else by("process_index")


def _arrange_group(devices: list[jax.Device], shape: tuple[int, int]) -> np.ndarray:
    if devices[0].platform == "tpu":
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return np.asarray(devices, dtype=object).reshape(shape)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The full array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(batch_size: int, mesh: Mesh, microbatches: int = 1) -> None:
    """Stop early when the batch cannot be split evenly over devices and microbatches.

    Processes hold equally many devices, so what the devices divide the processes divide too.

    Raises:
        ValueError: with the nearest batch sizes, and the device or microbatch counts that work.
    """
    if microbatches < 1:
        raise ValueError(
            f"config.microbatches={microbatches} must be at least 1 here; 0 is for `medclip train`, which "
            "chooses how many, and `medclip check` says it"
        )
    devices = mesh.size
    parts = devices * microbatches
    if batch_size % parts == 0:
        return
    below, above = batch_size // parts * parts, math.ceil(batch_size / parts) * parts
    sizes = f"{below} or {above}" if below else f"{above}"
    over = f"{devices} devices"
    processes = len({device.process_index for device in mesh.devices.flat})
    if processes > 1:
        over += f" of {processes} processes"
    if microbatches > 1:
        over += f" in {microbatches} microbatches"
    if batch_size % devices == 0:
        share = batch_size // devices
        fewer = max(n for n in range(1, microbatches + 1) if share % n == 0)
        remedy = f"config.microbatches to {fewer}"
    else:
        fewer = max(n for n in range(1, devices + 1) if batch_size % (n * microbatches) == 0 or n == 1)
        remedy = f"the number of devices (config.mesh) to {fewer}" if fewer > 1 else ""
        if microbatches == 1 and processes == 1 and mesh.shape["fsdp"] == 1:
            remedy = f"config.mesh.data to {fewer}"
    raise ValueError(
        f"config.batch_size={batch_size} cannot be split over {over}: set it to {sizes}"
        + (f", or {remedy}" if remedy else "")
    )


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Move this process's share of a batch to its devices.

    Args:
        batch: arrays with the B / process_count samples that this process read on their first axis.
        mesh: from `make_mesh`.

    Returns:
        Global arrays with all B samples. Which row a sample gets depends on the mesh, so a result in the
        batch's order belongs beside `sample` of the same global batch.
    """
    return jax.make_array_from_process_local_data(batch_sharding(mesh), dict(batch))


def put_state(state: Any, shardings: Any) -> Any:
    """Place a state, in buffers of its own (the step overwrites them).

    Every process hands in the same, complete values.

    Args:
        state: a tree of arrays.
        shardings: a sharding for all of it, or a tree of them (`partition.state_shardings`); a mesh means
            replicated on every device.
    """
    if isinstance(shardings, Mesh):
        shardings = replicated(shardings)
    if jax.process_count() == 1:
        return jax.device_put(state, shardings, may_alias=False)
    if isinstance(shardings, NamedSharding):
        everywhere = shardings
        shardings = jax.tree.map(lambda _: everywhere, state)
    return jax.tree.map(_put_global, state, shardings)


def _put_global(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.device_put(leaf, sharding, may_alias=False)
    # Not device_put, which compares the values of all processes, one leaf after the other.
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: np.array(values[index]))
