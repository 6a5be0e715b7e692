"""A config's model, state and batch as shapes, and what its parts hold and compute: no data, no device."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from medclip_jax import objectives
from medclip_jax.fields import Layout
from medclip_jax.models import blocks
from medclip_jax.objectives.base import Batch, DataSpec, total
from medclip_jax.objectives.towers import encoder_class
from medclip_jax.parameters import combine, flatten, merge, select, split, statistics
from medclip_jax.planning.attention_cost import attention_of
from medclip_jax.planning.chips import Chip
from medclip_jax.planning.footprint import Footprint, footprint
from medclip_jax.training.config import total_steps
from medclip_jax.training.flops import count_flops
from medclip_jax.training.optimizer import Optimizer, make_optimizer
from medclip_jax.training.settle import settle
from medclip_jax.training.state import TrainState, initial_state


@dataclass(frozen=True)
class Model:
    """A config built from shapes.

    Attributes:
        config: the whole config, settled.
        spec: what the data fix.
        graphdef: of the objective.
        state: a `TrainState` of shapes.
        optimizer: that will update it.
        batch: shapes of the global batch.
        steps: batches of the run, None where the number of samples is needed and not known.
        samples: volumes of the training split, 0 where that is not known.
        known: what was worked out already. Models that differ in mesh and microbatches alone share it.
    """

    config: Any
    spec: DataSpec
    graphdef: Any
    state: TrainState
    optimizer: Optimizer
    batch: Batch
    steps: int | None
    samples: int
    known: dict[Any, Any] = field(default_factory=dict)


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


def batch_shapes(layout: Layout, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The batch that the pipeline would yield, as shapes.

    Args:
        layout: of the run's batches.
        batch_size: samples.
    """
    return {
        name: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
        for name, (shape, dtype) in layout.shapes().items()
    }


def build(config: Any, spec: DataSpec, *, samples: int = 0) -> Model:
    """Build objective, optimizer and state as shapes.

    Args:
        config: a full config.
        spec: what the shards and the tokenizer fix, or stand-ins.
        samples: volumes of the training split, 0 where that is not known.

    Raises:
        ValueError: whatever would stop the run at its start.
    """
    config = settle(config, spec, samples)
    objective_class = objectives.resolve(config.objective.name)[1]
    layout = Layout(objective_class.batch_fields(config.objective), spec, config.data)
    objective = nnx.eval_shape(lambda: objective_class(config.objective, spec, rngs=nnx.Rngs(0)))
    graphdef, params, variables = split(objective)
    steps = None if config.epochs > 0 and not samples else total_steps(config, samples)
    optimizer = make_optimizer(config.optimizer, params, steps or 10**6)
    create = partial(
        initial_state,
        optimizer=optimizer,
        ema=config.ema.decay > 0,
        statistics=statistics(graphdef, params, variables),
    )
    state = jax.eval_shape(create, params, variables)
    batch = batch_shapes(layout, config.batch_size)
    return Model(config, spec, graphdef, state, optimizer, batch, steps, samples)


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
                moments[name] = moments.get(name, 0) + nbytes(leaf)
                break
    found: dict[str, list[str]] = {}
    for name in params:
        found.setdefault(name.split("/")[0], []).append(name)
    return [
        Tower(
            top,
            sum(params[name].size for name in names),
            sum(params[name].size for name in names if name in trained),
            sum(nbytes(params[name]) for name in names),
            sum(moments.get(name, 0) for name in names),
            sum(nbytes(ema[name]) for name in names if name in ema),
        )
        for top, names in found.items()
    ]


def forward_flops(model: Model) -> float:
    """Matrix products of one step's forward pass, all devices together."""
    if "forward" in model.known:
        return model.known["forward"]

    def forward(params: Any, variables: Any, batch: Batch) -> Any:
        objective = merge(model.graphdef, params, variables)
        return objective.couple(objective.encode(batch, jax.random.key(0), train=True), batch)

    arguments = model.state["params"], model.state["variables"], model.batch
    model.known["forward"] = count_flops(forward, *arguments)
    return model.known["forward"]


def encoders_footprint(
    model: Model, samples: int, chip: Chip, *, gathered: bool
) -> tuple[Footprint, tuple[str, ...]]:
    """Of the forward and backward pass of `encode` on one device.

    Args:
        model: from `build`.
        samples: on the device at a time.
        chip: decides how attention is computed.
        gathered: parameters are split and have to be fetched: they count from first to last use.

    Returns:
        The footprint, and a line for each way in which something attends.
    """
    key = ("encoders", samples, chip.kind, gathered)
    if key in model.known:
        return model.known[key]
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

    attention: set[str] = set()
    arguments = trained, fixed, model.state["variables"], batch
    with attention_of(chip, attention):
        found = footprint(both, *arguments, resident=(2, 3) if gathered else None)
    model.known[key] = found, tuple(sorted(attention))
    return model.known[key]


def features_of(model: Model) -> dict[str, jax.ShapeDtypeStruct]:
    """What `encode` makes of the global batch, as shapes."""
    if "features" in model.known:
        return model.known["features"]

    def encode(params: Any, variables: Any, batch: Batch) -> Any:
        return merge(model.graphdef, params, variables).encode(batch, jax.random.key(0), train=True)

    arguments = model.state["params"], model.state["variables"], model.batch
    model.known["features"] = jax.eval_shape(encode, *arguments)
    return model.known["features"]


def terms_of(model: Model) -> list[str]:
    """Names of the terms that `couple` makes of the features, in order."""

    def couple(features: Any, params: Any, variables: Any, batch: Batch) -> Any:
        return merge(model.graphdef, params, variables).couple(features, batch)

    arguments = model.state["params"], model.state["variables"], model.batch
    return list(jax.eval_shape(couple, features_of(model), *arguments))


def loss_footprint(model: Model) -> Footprint:
    """Of `couple` and its derivative on the global batch's features, all devices together."""
    if "loss" in model.known:
        return model.known["loss"]

    def couple(features: Any, params: Any, variables: Any, batch: Batch) -> Any:
        floats = {name: x for name, x in features.items() if jnp.issubdtype(x.dtype, jnp.inexact)}

        def loss(floats: Any) -> Any:
            return total(merge(model.graphdef, params, variables).couple({**features, **floats}, batch))

        return jax.grad(loss)(floats)

    arguments = model.state["params"], model.state["variables"], model.batch
    model.known["loss"] = footprint(couple, features_of(model), *arguments)
    return model.known["loss"]


def remat_policies(objective: Any, prefix: str = "") -> dict[str, str]:
    """Every `remat` key of an objective's config, by the section that it stands in."""
    found = {}
    for name, value in objective.items():
        if name == "remat":
            found[prefix.rstrip(".")] = value
        elif hasattr(value, "items"):
            found |= remat_policies(value, f"{prefix}{name}.")
    return found


def remat_choices(objective: Any) -> dict[str, tuple[str, ...]]:
    """What each `remat` key can be, by the section that it stands in: "none", then what holds least first."""
    found = {}
    for name in remat_policies(objective):
        section = objective
        for part in name.split(".") if name else ():
            section = section[part]
        kind = section.get("kind", "")
        found[name] = encoder_class(kind).remat_policies if kind else blocks.REMAT
    return found


def compute_dtype(model: Model) -> str:
    """The compute type of the vision tower; float32 where the objective names none."""
    return str(model.config.objective.get("vision", {}).get("dtype", "float32"))


def nbytes(leaf: Any) -> int:
    """Of an array or its shape."""
    return math.prod(leaf.shape) * leaf.dtype.itemsize
