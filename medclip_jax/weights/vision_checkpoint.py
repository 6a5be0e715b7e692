"""Files of published vision models: their weights, and what stands beside them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medclip_jax.weights.files import read_weights


@dataclass(frozen=True)
class Settings:
    """What a checkpoint's `config.json` says of its model; None where it says nothing.

    Attributes:
        heads: attention heads.
        activation: of the MLPs.
        layer_norm_epsilon: of every LayerNorm.
        patch: voxels along depth, height, width.
        grid: patches along depth, height, width.
    """

    heads: int | None = None
    activation: str | None = None
    layer_norm_epsilon: float | None = None
    patch: tuple[int, int, int] | None = None
    grid: tuple[int, int, int] | None = None


def read_checkpoint(path: str | Path) -> dict[str, np.ndarray]:
    """Read the weights of a checkpoint, see `weight_files.read_weights`.

    Raises:
        FileNotFoundError: no such file.
        ImportError: a PyTorch file, and no PyTorch to read it.
        ValueError: the file is damaged, or is a pickle of more than tensors; the message says how to save
            its weights alone.
    """
    path = Path(path).expanduser()
    try:
        return read_weights(path)
    except ValueError as error:
        if path.suffix not in (".ckpt", ".pth", ".pt"):
            raise
        raise ValueError(
            f"{error}. Lightning and others keep settings beside the weights, in a pickle, which can run"
            " any code when it is opened. Where you trust the file, do this in an environment that you can"
            " throw away, and give what it writes:\n"
            "    import torch, safetensors.torch\n"
            f'    held = torch.load("{path.name}", map_location="cpu", weights_only=False)\n'
            '    state = held.get("state_dict", held.get("model", held))\n'
            "    state = {name: x.contiguous().clone() for name, x in state.items() if torch.is_tensor(x)}\n"
            f'    safetensors.torch.save_file(state, "{path.stem}.safetensors")'
        ) from error


def read_settings(path: str | Path) -> Settings:
    """Read the `config.json` beside a checkpoint: Hugging Face's, or that of `medclip export`."""
    path = Path(path).expanduser()
    file = (path if path.is_dir() else path.parent) / "config.json"
    named = path.is_dir() or path.name.startswith(("model.safetensors", "pytorch_model"))
    if not named or not file.is_file():
        return Settings()
    try:
        entries = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON ({error}): copy it again from its source") from error
    vision = entries.get("objective", {}).get("vision")
    if vision is None:
        return Settings(
            heads=entries.get("num_attention_heads"),
            activation=entries.get("hidden_act"),
            layer_norm_epsilon=entries.get("layer_norm_eps"),
        )
    patch = tuple(vision["patch"])
    voxels = zip(entries["data"]["shape"], vision["cell"], patch, strict=True)
    return Settings(
        heads=vision["heads"],
        activation=vision["activation"],
        layer_norm_epsilon=vision["layer_norm_epsilon"],
        patch=patch,
        grid=tuple(size // (cell * step) for size, cell, step in voxels),
    )
