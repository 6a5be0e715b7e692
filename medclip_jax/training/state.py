"""The state of a run: plain string-keyed dicts of parameters, optimizer state and averages."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from medclip_jax.parameters import Tree, combine, select


class TrainState(TypedDict):
    """All that a step changes, and all that a checkpoint holds.

    Attributes:
        params: every parameter of the objective.
        variables: what is no parameter but changes, such as batch statistics.
        optimizer: optax's state, for the parameters that are trained.
        ema: moving average of the parameters that are trained and of the running statistics; {} when off.
        step: batches seen so far.
    """

    params: Tree
    variables: Tree
    optimizer: Any
    ema: Tree
    step: Int[Array, ""]


def averaged(state: TrainState) -> Tree:
    """Parameters and other variables for evaluation: the moving average where there is one."""
    return combine(state["params"], state["variables"], state["ema"])


def initial_state(
    params: Tree, variables: Tree, optimizer: Any, *, ema: bool, statistics: Collection[str] = ()
) -> TrainState:
    """The state before the first step.

    Args:
        params: from `parameters.split`.
        variables: from `parameters.split`.
        optimizer: from `training.optimizer.make_optimizer`.
        ema: whether to keep a moving average.
        statistics: names of the variables that are averaged too, from `parameters.statistics`. Those of the
            latest parameters are not those of averaged ones.
    """
    trained = select(params, optimizer.trained)
    return TrainState(
        params=params,
        variables=variables,
        optimizer=optimizer.transformation.init(trained),
        # A copy: the step is given its input buffers to overwrite, and none may be given twice.
        ema=jax.tree.map(jnp.copy, combine(trained, select(variables, statistics))) if ema else {},
        step=jnp.zeros((), jnp.int32),
    )
