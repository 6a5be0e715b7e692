"""Loss and gradient of a batch, at once or in slices (gradient caching), through the seam encode / couple.

With k microbatches, `encode` maps one slice after the other to features and forgets the rest; `couple`
sees the features of the full batch and gives the loss's derivative to them; then each slice is encoded
again, and its derivative carried on to the parameters. Activations of one slice are held at a time, the
loss and its gradient are those of the full batch, and the price is one more forward pass.

Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (2021).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from medclip_jax.objectives.base import Batch, Features, Term, total
from medclip_jax.parameters import Tree, combine, merge, split
from medclip_jax.sharding import BATCH_AXES
from medclip_jax.training.mesh import batch_sharding


class LossAndGradients(NamedTuple):
    """A batch's loss and what comes with it.

    Attributes:
        loss: the scalar that is differentiated.
        terms: what it is made of.
        variables: those that are no parameters, after this batch.
        finite_samples: whether all features of a sample are finite, in the batch's order.
        gradients: of the trained parameters.
    """

    loss: Float[Array, ""]
    terms: dict[str, Term]
    variables: Tree
    finite_samples: Bool[Array, " B"]
    gradients: Tree


def loss_and_gradients(
    graphdef: Any,
    trained: Tree,
    fixed: Tree,
    variables: Tree,
    batch: Batch,
    key: jax.Array,
    *,
    mesh: Mesh,
    microbatches: int = 1,
    constrain: Callable[[Tree], Tree] = lambda tree: tree,
) -> LossAndGradients:
    """Loss and gradient of a full batch, inside `jax.jit`.

    A microbatch is a part of every device's share, so that all devices work on each. A sample's randomness
    comes from its id, so it is the same in both passes and for every k. Variables that are no parameters
    pass from slice to slice, in both passes alike: a running statistic is updated k times a batch, each time
    from B / k samples over all devices, and batch norm normalizes by those of its slice, so that with it
    loss and gradient are not those of the full batch.

    Args:
        graphdef: from `parameters.split`.
        trained: parameters to differentiate for.
        fixed: the other parameters.
        variables: what is no parameter.
        batch: global, B samples split over the mesh.
        key: of this step.
        mesh: from `training.mesh.make_mesh`; B must be a multiple of its devices times `microbatches`.
        microbatches: k slices; 1 encodes the full batch, once.
        constrain: pins a tree like `trained` to where it belongs on the mesh.
    """

    def encode(trained: Tree, variables: Tree, part: Batch) -> tuple[Features, Tree]:
        objective = merge(graphdef, combine(fixed, trained), variables)
        features = objective.encode(part, key, train=True)
        # Without this the compiler is free to lose the batch's sharding between the two halves.
        features = jax.lax.with_sharding_constraint(features, batch_sharding(mesh))
        return features, split(objective)[2]

    def couple(trained: Tree, variables: Tree, features: Features) -> tuple[Any, ...]:
        objective = merge(graphdef, combine(fixed, trained), variables)
        terms = objective.couple(features, batch)
        return total(terms), (terms, split(objective)[2], _finite_samples(features))

    if microbatches == 1:

        def at_once(trained: Tree) -> tuple[Any, ...]:
            features, after = encode(trained, variables, batch)
            return couple(trained, after, features)

        (loss, (terms, after, finite)), gradients = jax.value_and_grad(at_once, has_aux=True)(trained)
        return LossAndGradients(loss, terms, after, finite, constrain(gradients))

    slices = jnp.arange(microbatches)

    def forward(variables: Tree, index: Int[Array, ""]) -> tuple[Tree, Features]:
        features, after = encode(trained, variables, take(batch, index, microbatches, mesh))
        return after, features

    after, sliced = jax.lax.scan(forward, variables, slices)
    features = {name: join(value, mesh) for name, value in sliced.items()}
    # Masks and counts have no derivative.
    floats = [name for name, value in features.items() if jnp.issubdtype(value.dtype, jnp.inexact)]
    others = {name: value for name, value in features.items() if name not in floats}

    def coupled(trained: Tree, floating: Features) -> tuple[Any, ...]:
        # In one order of names, whatever their types.
        together = {name: floating[name] if name in floats else others[name] for name in features}
        return couple(trained, after, together)

    (loss, (terms, after, finite)), (gradients, feature_gradients) = jax.value_and_grad(
        coupled, argnums=(0, 1), has_aux=True
    )(trained, {name: features[name] for name in floats})

    if sums_once(mesh, variables):
        more = _gradients_of_devices(
            graphdef, trained, fixed, batch, feature_gradients, key, mesh=mesh, microbatches=microbatches
        )
        gradients = constrain(jax.tree.map(jnp.add, gradients, more))
        return LossAndGradients(loss, terms, after, finite, gradients)

    def backward(carry: tuple[Tree, Tree], index: Int[Array, ""]) -> tuple[tuple[Tree, Tree], None]:
        gradients, variables = carry
        part = take(batch, index, microbatches, mesh)

        def again(trained: Tree) -> tuple[Features, Tree]:
            features, after = encode(trained, variables, part)
            return {name: features[name] for name in floats}, after

        _, pull, after = jax.vjp(again, trained, has_aux=True)
        (share,) = pull(take(feature_gradients, index, microbatches, mesh))
        return (constrain(jax.tree.map(jnp.add, gradients, constrain(share))), after), None

    (gradients, _), _ = jax.lax.scan(backward, (constrain(gradients), variables), slices)
    return LossAndGradients(loss, terms, after, finite, gradients)


def sums_once(mesh: Mesh, variables: Tree) -> bool:
    """Whether the gradients of all microbatches cross the network together, instead of each on its own.

    They do where every device holds all parameters. Where fsdp splits them, a device would need room for the
    full gradient; and running statistics are of all devices at every slice.

    Args:
        mesh: from `training.mesh.make_mesh`.
        variables: what is no parameter.
    """
    return mesh.shape["fsdp"] == 1 and mesh.size > 1 and not variables


def _gradients_of_devices(
    graphdef: Any,
    trained: Tree,
    fixed: Tree,
    batch: Batch,
    feature_gradients: Features,
    key: jax.Array,
    *,
    mesh: Mesh,
    microbatches: int,
) -> Tree:
    """What the features' derivatives give for the parameters: summed by each device, and then over them."""

    def own(trained: Tree, fixed: Tree, key: jax.Array, batch: Batch, feature_gradients: Features) -> Tree:
        def part(value: Array, index: Int[Array, ""]) -> Array:
            size = value.shape[0] // microbatches
            return jax.lax.dynamic_slice_in_dim(value, index * size, size)

        def turn(gradients: Tree, index: Int[Array, ""]) -> tuple[Tree, None]:
            samples = {name: part(value, index) for name, value in batch.items()}

            def again(trained: Tree) -> Features:
                features = merge(graphdef, combine(fixed, trained), {}).encode(samples, key, train=True)
                return {name: features[name] for name in feature_gradients}

            _, pull = jax.vjp(again, trained)
            (share,) = pull({name: part(value, index) for name, value in feature_gradients.items()})
            return jax.tree.map(jnp.add, gradients, share), None

        nothing = jax.tree.map(jnp.zeros_like, trained)
        return jax.lax.psum(jax.lax.scan(turn, nothing, jnp.arange(microbatches))[0], BATCH_AXES)

    everywhere, split_up = PartitionSpec(), PartitionSpec(BATCH_AXES)
    return jax.shard_map(
        own,
        mesh=mesh.abstract_mesh,
        in_specs=(everywhere, everywhere, everywhere, split_up, split_up),
        out_specs=everywhere,
        axis_names=set(BATCH_AXES),
        check_vma=False,
    )(trained, fixed, key, batch, feature_gradients)


def take(batch: Mapping[str, Array], index: Int[Array, ""], parts: int, mesh: Mesh) -> dict[str, Array]:
    """One of the `parts` slices of a batch: an equal share of every device's samples.

    Args:
        batch: arrays (B, ...) split over the mesh.
        index: of the slice; may be traced.
        parts: number of slices.
        mesh: from `training.mesh.make_mesh`.
    """
    devices, sharding = mesh.size, batch_sharding(mesh)

    def cut(value: Array) -> Array:
        size, *rest = value.shape
        value = value.reshape(devices, parts, size // (devices * parts), *rest)
        value = jax.lax.with_sharding_constraint(value, sharding)
        value = jax.lax.dynamic_index_in_dim(value, index, axis=1, keepdims=False)
        return jax.lax.with_sharding_constraint(value.reshape(size // parts, *rest), sharding)

    return {name: cut(value) for name, value in batch.items()}


def join(value: Array, mesh: Mesh) -> Array:
    """Slices (parts, B / parts, ...) as one array (B, ...) in the batch's order; the inverse of `take`."""
    devices, (parts, size) = mesh.size, value.shape[:2]
    value = value.reshape(parts, devices, size // devices, *value.shape[2:])
    across = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))
    value = jax.lax.with_sharding_constraint(value, across).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(
        value.reshape(parts * size, *value.shape[3:]), batch_sharding(mesh)
    )


def _finite_samples(features: Features) -> Bool[Array, " B"]:
    finite = [
        jnp.isfinite(feature).reshape(feature.shape[0], -1).all(axis=1) for feature in features.values()
    ]
    return jnp.stack(finite).all(axis=0)
