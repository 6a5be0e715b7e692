"""Parameters as plain string-keyed dicts, and how a module becomes one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from flax import nnx

Tree = dict[str, Any]
"""Nested dict with string keys and arrays as leaves."""


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by "path/to/leaf", in the tree's order.

    Raises:
        TypeError: a key is not a string.
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if not isinstance(key, str):
            raise TypeError(
                f"{key!r} is not a string: name blocks with strings (setattr(self, f'block_{{i}}', ...)), "
                "because checkpoints and jax.export cannot hold other keys"
            )
        if isinstance(value, Mapping):
            flat.update({f"{key}/{path}": leaf for path, leaf in flatten(value).items()})
        else:
            flat[key] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> Tree:
    """The inverse of `flatten` (empty dicts inside the tree are lost)."""
    tree: Tree = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def select(tree: Mapping[str, Any], paths: Collection[str]) -> Tree:
    """The part of a tree that lies at `paths`."""
    return unflatten({path: leaf for path, leaf in flatten(tree).items() if path in paths})


def combine(*trees: Mapping[str, Any]) -> Tree:
    """One tree from several; a later one wins where both have a leaf."""
    flat: dict[str, Any] = {}
    for tree in trees:
        flat.update(flatten(tree))
    return unflatten(flat)


def split(module: nnx.Module) -> tuple[Any, Tree, Tree]:
    """Take a module apart.

    Returns:
        The graph definition (static), the parameters, and the other variables.

    Raises:
        TypeError: a block has an integer key, or a module keeps a random stream of its own.
    """
    graphdef, params, streams, variables = nnx.split(module, nnx.Param, nnx.RngState, ...)
    held = flatten(nnx.to_pure_dict(streams))
    if held:
        raise TypeError(
            f"{next(iter(held)).rsplit('/', 1)[0]} keeps a random stream, which would make a run depend on "
            "more than (seed, step, sample): build nnx.Dropout without `rngs` and draw from the key that "
            "`encode` is given"
        )
    params, variables = nnx.to_pure_dict(params), nnx.to_pure_dict(variables)
    flatten(params), flatten(variables)  # only for their check of the keys
    return graphdef, params, variables


def merge(graphdef: Any, *trees: Tree) -> nnx.Module:
    """Put a module together again; usable inside and outside of `jax.jit`.

    Args:
        graphdef: from `split`.
        trees: one or several that hold each parameter and other variable once.
    """
    return nnx.merge(graphdef, *trees)


def statistics(graphdef: Any, *trees: Tree) -> list[str]:
    """Names ("path/to/array") of the running statistics: the variables of type `nnx.BatchStat`.

    Args:
        graphdef: from `split`.
        trees: as in `merge`; shapes are enough.
    """
    return list(flatten(nnx.to_pure_dict(nnx.state(merge(graphdef, *trees), nnx.BatchStat))))
