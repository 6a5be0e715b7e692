"""Config, weights, and the base classes of transformers where it is installed."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

try:
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.utils import cached_file

    TRANSFORMERS = True
except ImportError:  # torch alone is enough
    TRANSFORMERS, cached_file = False, None

    class PretrainedConfig:
        """The entries of config.json as attributes."""

        def __init__(self, **entries):
            self.__dict__.update(entries)

    class PreTrainedModel(nn.Module):
        """What models need of the class of this name in transformers."""

        def __init__(self, config: PretrainedConfig):
            super().__init__()
            self.config = config

        def post_init(self) -> None:
            """Transformers sets initial weights here; ours all come from the file."""


HUB_OPTIONS = "cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token"


class MedclipConfig(PretrainedConfig):
    """config.json: `objective`, `data`, `crop`, `modality`, `text_length`, `prompts`.

    Maybe `percentiles`; for systems that read frames `frames`, how many, `views`, of which series,
    and `series`, how each is prepared.
    """

    model_type = "medclip"


def check_config(objective: dict, data: dict) -> None:
    """Refuse sizes that no model has, before anything of theirs is allocated."""
    sizes = {"data.shape": data["shape"], "data.frame_shape": data.get("frame_shape", ())}
    for name in ("vision", "text", "decoder"):
        tower = objective.get(name) or {}
        sizes |= {
            f"{name}.{key}": tower[key]
            for key in ("width", "heads", "depth", "patch", "cell", "frames")
            if key in tower
        }
    for name, size in sizes.items():
        least = 0 if name.endswith("depth") else 1
        for value in size if isinstance(size, list | tuple) else [size]:
            if type(value) is not int or not least <= value < 2**24:
                raise ValueError(f"config.json is damaged: {name} is {size}")
    for name in ("vision", "text", "decoder"):
        if sizes.get(f"{name}.width", 0) % sizes.get(f"{name}.heads", 1):
            raise ValueError(f"config.json is damaged: {name}.heads does not divide {name}.width")


def read_json(file: Path) -> dict:
    """The object in a JSON file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({type(error).__name__}): copy it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} is damaged (no JSON object): copy it again")
    return content


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Tensors of model.safetensors, else of pytorch_model.bin; nothing but tensors is ever unpickled."""
    file = folder / "model.safetensors"
    if not file.is_file():
        return torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    types = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    tensors = {}
    try:
        entries = json.loads(data[8:start])
        entries.pop("__metadata__", None)
        for name, entry in entries.items():
            first, last = (start + offset for offset in entry["data_offsets"])
            flat = torch.frombuffer(bytearray(data[first:last]), dtype=types[entry["dtype"]])
            tensors[name] = flat.view(entry["shape"])
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({type(error).__name__}): copy it again") from error
    return tensors
