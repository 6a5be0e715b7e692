"""Which axis of which array is split over the mesh: regex rules for parameters, and all that follows them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medclip_jax.parameters import flatten
from medclip_jax.training.optimizer import matching
from medclip_jax.training.state import TrainState

LARGEST = "largest"
"""The largest axis that the mesh's fsdp axis divides is split, the first of equals. An array without such an
axis, or with fewer than `MINIMUM_SIZE` numbers, is replicated."""

MINIMUM_SIZE = 4096
"""16 KiB: below, fetching the parts takes longer than the memory is worth."""

Axes = Sequence[str | None] | str
"""One mesh axis or None for each axis of the array (trailing Nones may be left out), or `LARGEST`."""

Rules = Sequence[tuple[str, Axes]]

DEFAULT_RULES: Rules = (
    (r"(^|/)([a-z_]+_)?(kernel|embedding|positions)$", LARGEST),
    (r"(^|/)([a-z_]+_)?(bias|scale|shift|token|query|temperature)$", ()),
)
"""Matrices and tables are split; biases, norms, tokens and temperatures are replicated on every device."""


def state_shardings(state: TrainState | Any, mesh: Mesh, rules: Rules = ()) -> Any:
    """Where each array of a state lies.

    Parameters follow the first rules below. Optimizer state and moving average lie as the parameter that
    they belong to, which is found by the end of their path; scalars, the other variables and their average
    are replicated on every device.

    Args:
        state: a `TrainState` of arrays or of shapes (`jax.eval_shape`).
        mesh: from `training.mesh.make_mesh`.
        rules: `config.mesh.rules`. They come before `DEFAULT_RULES`: the defaults hold for the parameters
            that none of these matches.

    Returns:
        The tree of the state with a `NamedSharding` at each leaf.

    Raises:
        ValueError: a parameter that no rule covers, or two; a rule that matches nothing; axes that the
            mesh does not have or that do not divide the array; an array in the optimizer's state that
            belongs to no parameter.
    """
    params = flatten(state["params"])
    shardings = param_shardings(params, mesh, rules)
    everywhere = NamedSharding(mesh, PartitionSpec())

    variables = flatten(state["variables"])

    def follow(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = [_key_name(key) for key in path]
        for start in range(len(names)):
            name = "/".join(names[start:])
            if name in params and params[name].shape == leaf.shape:
                return shardings[name]
        if leaf.ndim == 0 or "/".join(names) in variables:
            return everywhere
        raise ValueError(
            f"the optimizer's state {'/'.join(names)} {tuple(leaf.shape)} is neither a scalar nor shaped "
            "like the parameter that it is named after, so no rule says where it lies"
        )

    placed = {
        "params": jax.tree_util.tree_map_with_path(follow, state["params"]),
        "variables": jax.tree.map(lambda _: everywhere, state["variables"]),
        "optimizer": jax.tree_util.tree_map_with_path(follow, state["optimizer"]),
        "ema": jax.tree_util.tree_map_with_path(follow, state["ema"]),
        "step": everywhere,
    }
    return {name: placed[name] for name in state}


def param_shardings(params: Mapping[str, Any], mesh: Mesh, rules: Rules = ()) -> dict[str, NamedSharding]:
    """Where each parameter lies, by "path/to/parameter".

    Args:
        params: arrays or shapes by name.
        mesh: from `training.mesh.make_mesh`.
        rules: `config.mesh.rules`; see `state_shardings`.

    Raises:
        ValueError: see `state_shardings`.
    """
    names = list(params)
    for pattern, _ in rules:
        matching([pattern], names, "config.mesh.rules")
    return {
        name: NamedSharding(mesh, _partition(name, params[name], _rule(name, rules), mesh)) for name in names
    }


def _rule(name: str, rules: Rules) -> Axes:
    """The axes of the one rule that covers a parameter."""
    for candidates in (rules, DEFAULT_RULES):
        hits = [(pattern, axes) for pattern, axes in candidates if re.search(pattern, name)]
        if len(hits) > 1:
            patterns = " and ".join(repr(pattern) for pattern, _ in hits)
            raise ValueError(
                f"parameter {name} is covered by {patterns}: make the rules in config.mesh.rules exclude "
                "each other"
            )
        if hits:
            return hits[0][1]
    raise ValueError(
        f"parameter {name} is covered by no partition rule: add ({'^' + re.escape(name) + '$'!r}, 'largest') "
        "to config.mesh.rules to split it, or with () in place of 'largest' to replicate it"
    )


def _partition(name: str, leaf: Any, axes: Axes, mesh: Mesh) -> PartitionSpec:
    shape = tuple(leaf.shape)
    if axes == LARGEST:
        return _largest(shape, mesh.shape["fsdp"])
    where = f"config.mesh.rules for parameter {name} {shape}: {axes!r}"
    if isinstance(axes, str):
        raise ValueError(f"{where} is no rule: give 'largest', or one mesh axis or None for each array axis")
    if len(axes) > len(shape):
        raise ValueError(f"{where} names {len(axes)} axes, but the array has {len(shape)}")
    used = [axis for axis in axes if axis is not None]
    unknown = [axis for axis in used if axis not in mesh.shape]
    if unknown or len(set(used)) < len(used):
        raise ValueError(f"{where} must name each of the mesh axes {tuple(mesh.shape)} at most once")
    for size, axis in zip(shape, axes, strict=False):
        if axis is not None and size % mesh.shape[axis]:
            raise ValueError(
                f"{where}: {size} is no multiple of the {mesh.shape[axis]} devices along {axis!r}: split "
                "another axis, write 'largest', or () to replicate it"
            )
    return PartitionSpec(*axes)


def _largest(shape: tuple[int, ...], parts: int) -> PartitionSpec:
    size = 1
    for extent in shape:
        size *= extent
    fitting = [axis for axis, extent in enumerate(shape) if extent % parts == 0]
    if parts == 1 or size < MINIMUM_SIZE or not fitting:
        return PartitionSpec()
    split = max(fitting, key=lambda axis: (shape[axis], -axis))
    return PartitionSpec(*(None,) * split, "fsdp")


def _key_name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)
