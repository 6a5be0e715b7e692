"""What a config needs and how fast it should be, worked out from shapes alone: no data, no device.

Memory of a device = its share of parameters, gradients, optimizer state and moving average (by the partition
rules), two batches (one in use, one on its way), and what the step holds between (`training.footprint` of the
encoders' forward and backward pass on the device's share of one microbatch, and of the loss).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from medclip_jax import objectives
from medclip_jax.objectives.base import Batch, DataSpec, total
from medclip_jax.training.attention_cost import fused_attention
from medclip_jax.training.chips import Chip
from medclip_jax.training.config import total_steps
from medclip_jax.training.flops import count_flops
from medclip_jax.training.footprint import Footprint, footprint
from medclip_jax.training.mesh import AXES
from medclip_jax.training.optimizer import Optimizer, make_optimizer
from medclip_jax.training.partition import state_shardings
from medclip_jax.training.state import TrainState, combine, flatten, initial_state, merge, select, split

PRODUCT_EFFICIENCY = 0.65
"""Share of the peak that large matrix products reach."""

BANDWIDTH_EFFICIENCY = 0.8
"""Share of the memory's bandwidth that simple loops reach."""

LINK_EFFICIENCY = 0.75
"""Share of the links' bandwidth that large collectives reach."""


@dataclass(frozen=True)
class Tower:
    """A top-level module of the objective.

    Attributes:
        name: of the module.
        parameters: how many numbers.
        trained: how many of them are not frozen.
        parameter_bytes, optimizer_bytes, ema_bytes: whole, over all devices once.
    """

    name: str
    parameters: int
    trained: int
    parameter_bytes: int
    optimizer_bytes: int
    ema_bytes: int


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
class Traffic:
    """Bytes that one device sends in a step, by what for, and where they go."""

    name: str
    bytes: float
    fast: bool


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
class Model:
    """A config built from shapes.

    Attributes:
        config: the whole config.
        spec: what the data fix.
        graphdef: of the objective.
        state: a `TrainState` of shapes.
        optimizer: that will update it.
        batch: shapes of the global batch.
        steps: batches of the run, None where the number of samples is needed and not known.
        organ_shape: (O, d, h, w), () without organs.
    """

    config: Any
    spec: DataSpec
    graphdef: Any
    state: TrainState
    optimizer: Optimizer
    batch: Batch
    steps: int | None


@dataclass(frozen=True)
class Estimate:
    """What `estimate` found; bytes and seconds are of one device.

    Attributes:
        chip: that it is for.
        data, fsdp: the mesh.
        microbatches: slices of a batch.
        remat: policies by tower.
        memory: on one device.
        speed: of one step.
        traffic: what collectives carry.
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
    memory: Memory
    speed: Speed
    traffic: tuple[Traffic, ...]
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


def batch_shapes(
    spec: DataSpec, batch_size: int, text_length: int, organ_shape: tuple[int, ...] = ()
) -> dict[str, jax.ShapeDtypeStruct]:
    """The batch that the pipeline would yield, as shapes.

    Args:
        spec: of the data.
        batch_size: samples.
        text_length: tokens.
        organ_shape: (O, d, h, w), () without organs.
    """
    shapes = {
        "volume": (spec.shape, jnp.int16),
        "findings": ((len(spec.findings),), jnp.int8),
        "labels": ((len(spec.findings),), jnp.int8),
        "study": ((2,), jnp.int32),
        "sample": ((), jnp.int32),
    }
    if spec.vocabulary_size:
        shapes["tokens"] = ((text_length,), jnp.int32)
    if organ_shape:
        shapes["organs"] = (tuple(organ_shape), jnp.uint8)
    return {
        name: jax.ShapeDtypeStruct((batch_size, *shape), dtype) for name, (shape, dtype) in shapes.items()
    }


def build(config: Any, spec: DataSpec, *, samples: int = 0, organ_shape: tuple[int, ...] = ()) -> Model:
    """Build objective, optimizer and state as shapes.

    Args:
        config: a full config.
        spec: what the shards and the tokenizer fix, or stand-ins.
        samples: volumes of the training split, 0 where that is not known.
        organ_shape: (O, d, h, w), () without organs.

    Raises:
        ValueError: whatever would stop the run at its start.
    """
    objective = nnx.eval_shape(lambda: objectives.create(config.objective, spec, rngs=nnx.Rngs(0)))
    graphdef, params, variables = split(objective)
    steps = None if config.epochs > 0 and not samples else total_steps(config, samples)
    optimizer = make_optimizer(config.optimizer, params, steps or 10**9)
    state = jax.eval_shape(
        lambda params, variables: initial_state(params, variables, optimizer, ema=config.ema.decay > 0),
        params,
        variables,
    )
    batch = batch_shapes(spec, config.batch_size, config.data.text_length, organ_shape)
    return Model(config, spec, graphdef, state, optimizer, batch, steps)


def towers(model: Model) -> list[Tower]:
    """Parameters and bytes by top-level module, in order."""
    trained = model.optimizer.trained
    params = flatten(model.state["params"])
    ema = flatten(model.state["ema"])
    moments: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.state["optimizer"]):
        names = [str(getattr(key, "key", "")) for key in path]
        for start in range(len(names)):
            name = "/".join(names[start:])
            if name in params:
                moments[name] = moments.get(name, 0) + _bytes(leaf)
                break
    found: dict[str, list[str]] = {}
    for name in params:
        found.setdefault(name.split("/")[0], []).append(name)
    return [
        Tower(
            top,
            sum(params[name].size for name in names),
            sum(params[name].size for name in names if name in trained),
            sum(_bytes(params[name]) for name in names),
            sum(moments.get(name, 0) for name in names),
            sum(_bytes(ema[name]) for name in names if name in ema),
        )
        for top, names in found.items()
    ]


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
    mesh = AbstractMesh((data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2)
    shardings = state_shardings(model.state, mesh, config.mesh.rules)
    held = {
        name: _sharded_bytes(model.state[name], shardings[name]) for name in ("params", "optimizer", "ema")
    }
    trained = select(model.state["params"], model.optimizer.trained)
    gradients = _sharded_bytes(trained, select(shardings["params"], model.optimizer.trained))

    local = config.batch_size // parts
    encoders = encoders_footprint(model, local, chip, gathered=fsdp > 1)
    loss = loss_footprint(model)
    batch_bytes = sum(_bytes(leaf) for leaf in model.batch.values()) / (data * fsdp)
    memory = Memory(
        parameters=held["params"],
        optimizer=held["optimizer"],
        ema=held["ema"],
        gradients=gradients * (2 if microbatches > 1 else 1),
        batch=2 * batch_bytes,
        activations=encoders.peak,
        loss=loss.peak / (data * fsdp),
    )
    forward = forward_flops(model)
    again = forward / (data * fsdp) if microbatches > 1 else 0.0

    def rate(dtype: str) -> float:
        return chip.peak_tflops(dtype) * 1e12 * PRODUCT_EFFICIENCY

    bandwidth = chip.memory_bandwidth * 1e9 * BANDWIDTH_EFFICIENCY
    dtype = compute_dtype(model)
    traffic = collectives(model, chip, data, fsdp, microbatches)
    speed = Speed(
        compute=microbatches * encoders.seconds(rate, bandwidth)
        + loss.seconds(rate, bandwidth) / (data * fsdp)
        + again / rate(dtype),
        # Read gradient, parameter, moments; write parameter, moments; the norms read them once more.
        update=2.5 * (memory.gradients + memory.parameters + memory.optimizer + memory.ema) / bandwidth,
        communication=sum(
            item.bytes
            / ((chip.link_bandwidth if item.fast else chip.network_bandwidth) * 1e9 * LINK_EFFICIENCY)
            for item in traffic
        ),
    )
    return Estimate(
        chip=chip,
        data=data,
        fsdp=fsdp,
        batch_size=config.batch_size,
        microbatches=microbatches,
        remat=remat_policies(config.objective),
        memory=memory,
        speed=speed,
        traffic=traffic,
        flops=3.0 * forward,
        executed=(microbatches * encoders.flops * data * fsdp) + loss.flops + again * data * fsdp,
        attention=(),
    )


def forward_flops(model: Model) -> float:
    """Matrix products of one step's forward pass, all devices together."""

    def forward(params: Any, variables: Any, batch: Batch) -> Any:
        objective = merge(model.graphdef, params, variables)
        return objective.couple(objective.encode(batch, jax.random.key(0), train=True), batch)

    return count_flops(forward, model.state["params"], model.state["variables"], model.batch)


def encoders_footprint(model: Model, samples: int, chip: Chip, *, gathered: bool) -> Footprint:
    """Of the forward and backward pass of `encode` on one device.

    Args:
        model: from `build`.
        samples: on the device at a time.
        chip: decides how attention is computed.
        gathered: parameters are split and have to be fetched: they count from first to last use.
    """
    batch = {
        name: jax.ShapeDtypeStruct((samples, *leaf.shape[1:]), leaf.dtype)
        for name, leaf in model.batch.items()
    }
    trained = select(model.state["params"], model.optimizer.trained)
    fixed = select(model.state["params"], flatten(model.state["params"]).keys() - model.optimizer.trained)

    def both(trained: Any, fixed: Any, variables: Any, batch: Batch) -> Any:
        def encode(trained: Any) -> Any:
            objective = merge(model.graphdef, combine(fixed, trained), variables)
            return objective.encode(batch, jax.random.key(0), train=True)

        features, pull = jax.vjp(encode, trained)
        return pull(jax.tree.map(jnp.ones_like, features))

    with fused_attention(chip):
        return footprint(
            both, trained, fixed, model.state["variables"], batch, resident=(2, 3) if gathered else None
        )


def loss_footprint(model: Model) -> Footprint:
    """Of `couple` and its derivative on the global batch's features."""
    params, variables = model.state["params"], model.state["variables"]

    def encode(params: Any, variables: Any, batch: Batch) -> Any:
        return merge(model.graphdef, params, variables).encode(batch, jax.random.key(0), train=True)

    features = jax.eval_shape(encode, params, variables, model.batch)

    def couple(features: Any, params: Any, variables: Any, batch: Batch) -> Any:
        return jax.grad(
            lambda features: total(merge(model.graphdef, params, variables).couple(features, batch)),
            allow_int=True,
        )(features)

    return footprint(couple, features, params, variables, model.batch)


def remat_policies(objective: Any, prefix: str = "") -> dict[str, str]:
    """Every `remat` key of an objective's config, by the section that it stands in."""
    found = {}
    for name, value in objective.items():
        if name == "remat":
            found[prefix.rstrip(".")] = value
        elif hasattr(value, "items"):
            found |= remat_policies(value, f"{prefix}{name}.")
    return found


def compute_dtype(model: Model) -> str:
    """The compute type of the vision tower; float32 where the objective names none."""
    return str(model.config.objective.get("vision", {}).get("dtype", "float32"))


def collectives(model: Model, chip: Chip, data: int, fsdp: int, microbatches: int) -> tuple[Traffic, ...]:
    """Bytes that a device sends for gradients, parameters and features."""
    return ()


def _mesh_sizes(mesh: Any, devices: int) -> tuple[int, int]:
    fsdp = mesh.fsdp
    data = devices // fsdp if mesh.data == -1 else mesh.data
    if fsdp < 1 or data < 1 or data * fsdp != devices:
        raise ValueError(
            f"config.mesh is data={mesh.data}, fsdp={fsdp}, but there are {devices} devices: data x fsdp "
            "must be that number (data=-1 takes what fsdp leaves)"
        )
    return data, fsdp


def _bytes(leaf: Any) -> int:
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def _sharded_bytes(tree: Any, shardings: Any) -> float:
    def one(leaf: Any, sharding: NamedSharding) -> int:
        return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    return float(sum(jax.tree.leaves(jax.tree.map(one, tree, shardings))))
