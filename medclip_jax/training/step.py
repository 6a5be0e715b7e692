"""One step of training, as a pure function of (state, batch)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from medclip_jax.models import fast_memory
from medclip_jax.objectives.base import Batch
from medclip_jax.parameters import Tree, combine, flatten, select
from medclip_jax.training.mesh import batch_sharding, replicated
from medclip_jax.training.microbatches import loss_and_gradients
from medclip_jax.training.optimizer import Optimizer
from medclip_jax.training.state import TrainState

Metrics = dict[str, Any]
"""Scalars by name, and two arrays that name the culprit of a NaN: under "squares" the (P,) squared norms of
each parameter's gradient, update and value, in the order of `trained_paths`, which the norms need anyway;
under "finite_samples" (B,) whether all features of a sample are finite."""

StepFunction = Callable[[TrainState, Batch, Key[Array, ""]], tuple[TrainState, Metrics]]


def make_train_step(
    graphdef: Any,
    optimizer: Optimizer,
    mesh: Mesh,
    *,
    shardings: Any = None,
    microbatches: int = 1,
    ema_decay: float = 0.0,
    skip_nonfinite: bool = False,
) -> StepFunction:
    """Compile-on-first-call step.

    All randomness comes from ``fold_in(key, step)``; the key is an argument, so that runs of other seeds are
    the same program and share its compilation. Gradients are taken for the parameters that are trained, and
    only for them.

    Args:
        graphdef: from `parameters.split`.
        optimizer: from `training.optimizer.make_optimizer`.
        mesh: from `training.mesh.make_mesh`.
        shardings: from `training.partition.state_shardings`; by default the state is replicated.
        microbatches: slices in which a batch is encoded, see `training.microbatches`.
        ema_decay: 0 = no moving average. The average starts faster, as min(decay, (1 + n) / (10 + n)).
        skip_nonfinite: keep the old state where loss or gradient is not finite.

    Returns:
        ``step(state, batch, key) -> (state, metrics)``. It consumes the state that it is given, and returns
        it in the same place; the batch is `mesh.put_batch`'s, the key the run's, metrics are replicated.
        Metrics: `loss`, `terms/<name>` (each a mean), `gradient_norm`, `update_norm`, `parameter_norm`
        (of what is trained), `learning_rate`, `skipped` (1 where the update was dropped), `squares`,
        `finite_samples`.
    """

    options = fast_memory.program_options(mesh.devices.flat[0].device_kind)
    everywhere = replicated(mesh)
    placed = everywhere if shardings is None else shardings
    trained_shardings = None if shardings is None else select(shardings["params"], optimizer.trained)

    def constrain(tree: Tree) -> Tree:
        return jax.lax.with_sharding_constraint(tree, trained_shardings or everywhere)

    def step(state: TrainState, batch: Batch, key: Key[Array, ""]) -> tuple[TrainState, Metrics]:
        # Models pin activations to the mesh in force (`medclip_jax.sharding`).
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), fast_memory.held_by(options):
            return advance(state, batch, jax.random.fold_in(key, state["step"]))

    def advance(state: TrainState, batch: Batch, key: Key[Array, ""]) -> tuple[TrainState, Metrics]:
        trained = select(state["params"], optimizer.trained)
        fixed = select(state["params"], flatten(state["params"]).keys() - optimizer.trained)
        value, terms, variables, finite, gradients = loss_and_gradients(
            graphdef,
            trained,
            fixed,
            state["variables"],
            batch,
            key,
            mesh=mesh,
            microbatches=microbatches,
            constrain=constrain,
        )
        updates, optimizer_state = optimizer.transformation.update(gradients, state["optimizer"], trained)
        moved = optax.apply_updates(trained, updates)
        squares = {"gradients": _squares(gradients), "updates": _squares(updates), "params": _squares(moved)}
        norms = {name: jnp.sqrt(jnp.sum(square)) for name, square in squares.items()}
        ema = state["ema"]
        if ema_decay:
            count = state["step"].astype(jnp.float32)
            decay = jnp.minimum(ema_decay, (1.0 + count) / (10.0 + count))
            newest = select(combine(moved, variables), flatten(ema))
            ema = jax.tree.map(lambda old, new: old + (1.0 - decay) * (new - old), ema, newest)
        new = TrainState(
            params=combine(fixed, moved),
            variables=variables,
            optimizer=optimizer_state,
            ema=ema,
            step=state["step"] + 1,
        )
        skipped = jnp.zeros((), jnp.int32)
        if skip_nonfinite:
            good = jnp.isfinite(value) & jnp.isfinite(norms["gradients"]) & jnp.isfinite(norms["updates"])
            kept = jax.tree.map(lambda after, before: jnp.where(good, after, before), new, state)
            new = {**kept, "step": new["step"]}
            skipped = 1 - good.astype(jnp.int32)
        metrics = {
            "loss": value,
            **{
                f"terms/{name}": jnp.where(term.count > 0, term.sum / jnp.maximum(term.count, 1e-9), 0.0)
                for name, term in terms.items()
            },
            "gradient_norm": norms["gradients"],
            "update_norm": norms["updates"],
            "parameter_norm": norms["params"],
            "learning_rate": optimizer.learning_rate(state["step"]),
            "skipped": skipped,
            "squares": squares,
            "finite_samples": finite,
        }
        return new, metrics

    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(placed, batch_sharding(mesh), everywhere),
        out_shardings=(placed, everywhere),
        compiler_options=dict(options) or None,
    )


def trained_paths(optimizer: Optimizer, params: Tree) -> list[str]:
    """Names of the rows of `metrics["squares"][...]`."""
    # Through a map, because jax sorts the keys of a dict and the parameters may be in another order.
    trained = select(params, optimizer.trained)
    return list(flatten(jax.tree.map(lambda leaf: leaf, trained)))


def _squares(tree: Tree) -> Float[Array, " P"]:
    ordered = flatten(jax.tree.map(lambda leaf: jnp.sum(jnp.square(leaf.astype(jnp.float32))), tree))
    return jnp.stack(list(ordered.values()))
