"""Parameters under the names and in the layout of PyTorch, and back.

A torch name is the Flax path of the parameter with dots: `vision/transformer/norm/scale` becomes
`vision.transformer.norm.weight`. What Flax calls kernel, scale or embedding is a weight; kernels are stored
(in, out) here and (out, in) there.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float32

_WEIGHTS = ("kernel", "scale", "embedding")
_LISTED = 8
"""Wrong names that an error lists, of each kind."""


def torch_name(path: str) -> str:
    """Name in the state dict of a parameter at a Flax path.

    Args:
        path: "path/to/parameter".
    """
    *parents, last = path.split("/")
    return ".".join([*parents, "weight" if last in _WEIGHTS else last])


def torch_shape(path: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Shape in the state dict of a parameter.

    Args:
        path: "path/to/parameter".
        shape: in Flax; kernels are (in, out), of convolutions (depth, height, width, in, out).

    Returns:
        The same, kernels (out, in) and (out, in, depth, height, width).
    """
    shape = tuple(shape)
    return (shape[-1], shape[-2], *shape[:-2]) if _is_kernel(path) else shape


def to_torch(flat_params: Mapping[str, np.ndarray]) -> dict[str, Float32[np.ndarray, "*shape"]]:
    """A state dict of float32 arrays.

    Args:
        flat_params: Flax path to array, see `parameters.flatten`.

    Returns:
        Torch name to array, contiguous, in the same order.

    Raises:
        ValueError: two parameters would have one name.
    """
    names = _names(flat_params)
    # ascontiguousarray would make a vector of a scalar.
    return {
        name: np.array(_to_torch_layout(path, np.asarray(flat_params[path])), np.float32, order="C")
        for name, path in names.items()
    }


def from_torch(
    state_dict: Mapping[str, np.ndarray],
    expected_shapes: Mapping[str, Sequence[int]],
    *,
    source: str = "the weights",
) -> dict[str, Float32[np.ndarray, "*shape"]]:
    """The parameters of a state dict; the inverse of `to_torch`.

    Args:
        state_dict: torch name to array.
        expected_shapes: Flax path of every parameter of the model to its shape.
        source: what error messages call the state dict.

    Returns:
        Flax path to float32 array, in the order of `expected_shapes`.

    Raises:
        ValueError: weights are missing, unexpected or of another shape; the message names them, and for an
            unexpected one the nearest name that is missing.
    """
    names = _names(expected_shapes)
    shapes = {name: torch_shape(path, expected_shapes[path]) for name, path in names.items()}
    missing = [name for name in names if name not in state_dict]
    unexpected = [name for name in state_dict if name not in names]
    wrong = [
        f"{name} has shape {tuple(np.shape(state_dict[name]))}, the model's is {shape}"
        for name, shape in shapes.items()
        if name in state_dict and tuple(np.shape(state_dict[name])) != shape
    ]
    if missing or unexpected or wrong:
        hints = [_with_nearest(name, missing or list(names)) for name in unexpected]
        parts = [
            f"{len(lines)} {kind}: {_shortened(lines)}"
            for kind, lines in (("missing", missing), ("unexpected", hints), ("of another shape", wrong))
            if lines
        ]
        raise ValueError(f"{source} do not fit the model that its config describes; " + "; ".join(parts))
    # Copied only where the layout differs; ascontiguousarray would make a vector of a scalar.
    return {
        path: np.asarray(_from_torch_layout(path, np.asarray(state_dict[name])), np.float32, order="C")
        for name, path in names.items()
    }


def _names(paths: Iterable[str]) -> dict[str, str]:
    """Torch name to Flax path."""
    names: dict[str, str] = {}
    for path in paths:
        other = names.setdefault(torch_name(path), path)
        if other != path:
            raise ValueError(
                f"{other} and {path} would both be {torch_name(path)} in PyTorch: rename one in its module"
            )
    return names


def _is_kernel(path: str) -> bool:
    return path.rsplit("/", 1)[-1] == "kernel"


def _to_torch_layout(path: str, array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, (-1, -2), (0, 1)) if _is_kernel(path) else array


def _from_torch_layout(path: str, array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, (0, 1), (-1, -2)) if _is_kernel(path) else array


def _with_nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
    return f"{name} (nearest: {near[0]})" if near else name


def _shortened(lines: Sequence[str]) -> str:
    more = f" and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
    return ", ".join(lines[:_LISTED]) + more
