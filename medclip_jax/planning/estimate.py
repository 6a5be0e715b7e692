"""What a config needs and how fast it should be, worked out from shapes alone: no data, no device.

Memory of a device = its share of parameters, gradients, optimizer state and moving average (by the partition
rules), two batches (one in use, one on its way), and what the step holds between (`planning.footprint` of the
encoders' forward and backward pass on the device's share of one microbatch, and of the loss).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from medclip_jax.objectives.towers import scanned
from medclip_jax.parameters import flatten, select
from medclip_jax.planning.chips import Chip
from medclip_jax.planning.collectives import Exchange, on_paper
from medclip_jax.planning.cycles import MATRIX_UNIT
from medclip_jax.planning.footprint import Work
from medclip_jax.planning.shapes import (
    Model,
    compute_dtype,
    encoders_footprint,
    features_of,
    forward_flops,
    loss_footprint,
    nbytes,
    remat_policies,
)
from medclip_jax.sharding import BATCH_AXES
from medclip_jax.training.partition import state_shardings

PRODUCT_EFFICIENCY = 0.65
"""Share of the peak that large matrix products reach. Of attention's kernels on TPUs it is the share of the
matrix unit that a head fills, as in `planning.cycles`."""

BANDWIDTH_EFFICIENCY = 0.8
"""Share of the memory's bandwidth that simple loops reach."""

SCANNED_ON_TPU = 1.8
"""Times the activations that a TPU's compiler holds where a tower's blocks run in a loop (`scan=True`)."""

LINK_EFFICIENCY = 0.75
"""Share of the links' bandwidth that large collectives reach."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    parameters: float
    optimizer: float
    ema: float
    gradients: float
    batch: float
    activations: float
    loss: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(getattr(self, field.name) for field in dataclasses.fields(self))


@dataclass(frozen=True)
class Speed:
    """Seconds of one step on every device, and where they go.

    Attributes:
        compute: forward, backward and what is computed again, by the roofline of each operation.
        update: gradients, optimizer, average, by memory bandwidth.
        communication: as if nothing of it were hidden behind the computation.
    """

    compute: float
    update: float
    communication: float

    @property
    def step(self) -> float:
        """Communication hides behind the computation, or the other way round."""
        return max(self.compute, self.communication) + self.update


@dataclass(frozen=True)
class Estimate:
    """What `estimate` found; bytes and seconds are of one device.

    Attributes:
        chip: that it is for.
        data, fsdp: the mesh.
        microbatches: slices of a batch.
        remat: policies by tower.
        scanned: towers whose blocks run in a loop.
        memory: on one device.
        speed: of one step.
        exchanges: what the devices send each other.
        flops: of one step's forward pass times three, all devices together; recomputation left out.
        executed: matrix products that are really run, all devices together.
        attention: how each sequence length attends.
    """

    chip: Chip
    data: int
    fsdp: int
    batch_size: int
    microbatches: int
    remat: Mapping[str, str]
    scanned: tuple[str, ...]
    memory: Memory
    speed: Speed
    exchanges: tuple[Exchange, ...]
    flops: float
    executed: float
    attention: tuple[str, ...]

    @property
    def devices(self) -> int:
        """Of the mesh."""
        return self.data * self.fsdp

    @property
    def fits(self) -> bool:
        """Whether a device's memory holds it."""
        return self.memory.total <= self.chip.usable_bytes

    @property
    def volumes_per_second(self) -> float:
        """Over all devices."""
        return self.batch_size / self.speed.step

    def utilization(self, dtype: str) -> float:
        """Model FLOPs / time / peak."""
        return self.flops / self.speed.step / (self.devices * self.chip.peak_tflops(dtype) * 1e12)


def estimate(model: Model, chip: Chip, devices: int) -> Estimate:
    """Memory and speed of a config on a number of chips.

    Args:
        model: from `build`.
        chip: what each device is.
        devices: how many; the mesh is `config.mesh` over them.

    Raises:
        ValueError: mesh, batch size and microbatches do not divide.
    """
    config = model.config
    data, fsdp = _mesh_sizes(config.mesh, devices)
    microbatches = config.microbatches
    parts = data * fsdp * microbatches
    if config.batch_size % parts:
        raise ValueError(
            f"config.batch_size={config.batch_size} cannot be split over {data * fsdp} devices"
            + (f" in {microbatches} microbatches" if microbatches > 1 else "")
            + f": set it to a multiple of {parts}"
        )
    mesh = AbstractMesh((data, fsdp), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)
    shardings = state_shardings(model.state, mesh, config.mesh.rules)
    held = {
        name: _sharded_bytes(model.state[name], shardings[name]) for name in ("params", "optimizer", "ema")
    }
    trained = select(model.state["params"], model.optimizer.trained)
    gradients = _sharded_bytes(trained, select(shardings["params"], model.optimizer.trained))

    devices = data * fsdp
    encoders, attention = encoders_footprint(model, config.batch_size // parts, chip, gathered=fsdp > 1)
    loss = loss_footprint(model)
    memory = Memory(
        parameters=held["params"],
        optimizer=held["optimizer"],
        ema=held["ema"],
        # With microbatches, those of a slice beside the sum.
        gradients=gradients * (2 if microbatches > 1 else 1),
        batch=2 * sum(nbytes(leaf) for leaf in model.batch.values()) / devices,
        activations=encoders.peak * _scan_factor(config.objective, chip),
        loss=loss.peak / devices,
    )
    exchanges = _exchanges(model, shardings["params"], data, fsdp)
    forward = forward_flops(model)
    again = forward if microbatches > 1 else 0.0

    def rate(work: Work) -> float:
        efficiency = PRODUCT_EFFICIENCY
        if work.head and chip.kind == "tpu":
            efficiency = min(1.0, work.head / MATRIX_UNIT)
        return chip.peak_tflops(work.dtype) * 1e12 * efficiency

    bandwidth = chip.memory_bandwidth * 1e9 * BANDWIDTH_EFFICIENCY
    encoding = encoders.seconds(rate, bandwidth)
    if microbatches > 1:
        # The first pass over the slices: a forward pass, as slow for its arithmetic as both passes are.
        encoding *= 1.0 + again / (encoders.flops * microbatches * devices)
    speed = Speed(
        compute=microbatches * encoding + loss.seconds(rate, bandwidth) / devices,
        # Gradients are read for the norm and for the update; the rest is read and written.
        update=2.0 * (gradients + held["params"] + held["optimizer"] + held["ema"]) / bandwidth,
        communication=sum(exchange_seconds(item, chip, data, fsdp) for item in exchanges),
    )
    return Estimate(
        chip=chip,
        data=data,
        fsdp=fsdp,
        batch_size=config.batch_size,
        microbatches=microbatches,
        remat=remat_policies(config.objective),
        scanned=scanned(config.objective),
        memory=memory,
        speed=speed,
        exchanges=tuple(exchanges),
        flops=3.0 * forward,
        executed=microbatches * encoders.flops * devices + loss.flops + again,
        attention=attention,
    )


def exchange_seconds(exchange: Exchange, chip: Chip, data: int, fsdp: int) -> float:
    """Time of an exchange by rings: within groups of chips over their links, between groups by the network.

    Args:
        exchange: from `planning.collectives.on_paper`.
        chip: what each device is.
        data, fsdp: the mesh; fsdp varies fastest, so that it stays inside a group as long as it fits.
    """
    count = {"data": data, "fsdp": fsdp, "all": data * fsdp}[exchange.axis]
    # Devices of the exchange that share a group with this one.
    near = min(count, max(1, chip.group // (fsdp if exchange.axis == "data" else 1)))
    groups = max(1, count // near)
    factor = 2.0 if exchange.reduces else 1.0
    link, network = (
        bandwidth * 1e9 * LINK_EFFICIENCY for bandwidth in (chip.link_bandwidth, chip.network_bandwidth)
    )
    inside = factor * exchange.bytes * (near - 1) / near / link
    # Each chip of a group carries its share between the groups.
    between = factor * exchange.bytes / near * (groups - 1) / groups / network
    return inside + between


def _exchanges(model: Model, shardings: Any, data: int, fsdp: int) -> list[Exchange]:
    params, placed = flatten(model.state["params"]), flatten(shardings)
    sizes = {name: (float(nbytes(leaf)), "fsdp" in placed[name].spec) for name, leaf in params.items()}
    trained = model.optimizer.trained
    recomputed = any(policy != "none" for policy in remat_policies(model.config.objective).values())
    microbatches = model.config.microbatches
    return on_paper(
        trained={name: size for name, size in sizes.items() if name in trained},
        frozen={name: size for name, size in sizes.items() if name not in trained},
        features=float(sum(nbytes(leaf) for leaf in features_of(model).values())),
        data=data,
        fsdp=fsdp,
        microbatches=microbatches,
        fetches=(2 if recomputed else 1) + (1 if microbatches > 1 else 0),
        sums_once=microbatches > 1 and fsdp == 1 and not model.state["variables"],
        gradient_share=0.5 if compute_dtype(model) in ("bfloat16", "float16") else 1.0,
    )


def _scan_factor(objective: Any, chip: Chip) -> float:
    return SCANNED_ON_TPU if chip.kind == "tpu" and scanned(objective) else 1.0


def _mesh_sizes(mesh: Any, devices: int) -> tuple[int, int]:
    fsdp = mesh.fsdp
    data = devices // fsdp if mesh.data == -1 else mesh.data
    if fsdp < 1 or data < 1 or data * fsdp != devices:
        raise ValueError(
            f"config.mesh is data={mesh.data}, fsdp={fsdp}, but there are {devices} devices: data x fsdp "
            "must be that number (data=-1 takes what fsdp leaves)"
        )
    return data, fsdp


def _sharded_bytes(tree: Any, shardings: Any) -> float:
    def one(leaf: Any, sharding: NamedSharding) -> int:
        return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    return float(sum(jax.tree.leaves(jax.tree.map(one, tree, shardings))))
