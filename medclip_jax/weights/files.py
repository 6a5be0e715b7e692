"""Checkpoints of PyTorch models as float32 arrays: safetensors, or `.bin` of tensors; whole or in parts."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medclip_jax.hub import WEIGHT_FILES

NESTED = ("state_dict", "model_state_dict", "model")
"""Under which key training scripts keep the model beside optimizer and step."""

SHOWN = 6
"""Names in a message before it says how many more there are."""


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Read a checkpoint as float32 arrays. Never unpickles anything but plain tensors.

    Args:
        path: a file (`.safetensors`; else one that `torch.load(weights_only=True)` reads: a state dict, or
            a dict that holds one under a key of `NESTED`), the `*.index.json` of a checkpoint in parts, or
            a folder that holds one of `WEIGHT_FILES`.

    Returns:
        Name to array. Integer tensors keep their type.

    Raises:
        FileNotFoundError: no such file, none in the folder, or a part is missing.
        ImportError: not safetensors, and no PyTorch to read it.
        ValueError: the file is damaged, or is a pickle of more than tensors.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        found = [path / name for name in WEIGHT_FILES if (path / name).exists()]
        if not found:
            raise FileNotFoundError(
                f"{path} holds none of {', '.join(WEIGHT_FILES)}: download the whole model folder"
            )
        path = found[0]
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: give a checkpoint file or a folder that holds one")
    if path.name.endswith(".index.json"):
        return _read_parts(path)
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_bin(path)


def _read_parts(index: Path) -> dict[str, np.ndarray]:
    try:
        places: Mapping[str, str] = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is damaged ({error}): download the model folder again") from error
    found: dict[str, np.ndarray] = {}
    for name in sorted(set(places.values())):
        part = index.with_name(Path(name).name)
        if not part.exists():
            raise FileNotFoundError(f"{index} names {name}, which is not beside it: download it, too")
        found |= read_weights(part)
    lost = sorted(places.keys() - found.keys())
    if lost:
        raise ValueError(f"{index} names {lost[0]!r}, which is in no part: download the model folder again")
    return found


def _read_safetensors(file: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        # One at a time, so that 16-bit weights are not there twice.
        with safe_open(file, framework="np") as opened:
            return {name: _as_float32(opened.get_tensor(name)) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, KeyError) as error:
        raise ValueError(f"{file} is damaged ({error}): copy or download it again") from error


def _as_float32(array: np.ndarray) -> np.ndarray:
    return array if np.issubdtype(array.dtype, np.integer) else array.astype(np.float32, copy=False)


def _read_bin(file: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{file} needs PyTorch to be read: install the torch-export extra, or save the model as"
            " safetensors"
        ) from error
    try:
        held = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{file} cannot be read safely (it is damaged, or holds more than tensors): get the model as"
            " safetensors"
        ) from error
    if isinstance(held, dict):
        held = next((held[name] for name in NESTED if isinstance(held.get(name), dict)), held)
    stray = (
        [name for name in held if not isinstance(held[name], torch.Tensor)] if isinstance(held, dict) else "?"
    )
    if stray:
        raise ValueError(
            f"{file} is no state dict ({stray[0]!r} is no tensor): save the model's state_dict() alone"
        )
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        for name, tensor in held.items()
    }


def listed(names: Sequence[str], others: Sequence[str]) -> str:
    """Names for a message, each with the nearest of the others, which may be its other spelling.

    Args:
        names: missing ones, say; after `SHOWN` of them only how many more there are.
        others: unexpected ones, say.
    """
    shown = []
    for name in names[:SHOWN]:
        near = difflib.get_close_matches(name, others, n=1, cutoff=0.8)
        shown.append(f"{name} (like {near[0]}?)" if near else name)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(shown) + more if names else "none"
