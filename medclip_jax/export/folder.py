"""The folder of an exported model: written for PyTorch and the Hugging Face hub, read back into JAX."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from medclip_jax.export.assemble import assemble
from medclip_jax.export.inputs import MADE_UP
from medclip_jax.objectives.towers import TextTower, encoder_class
from medclip_jax.parameters import combine, flatten, split
from medclip_jax.reports.prompts import prompts_of
from medclip_jax.weights.exported import CONFIG, PREPROCESSOR, TOKENIZER_FILES, exported_data, is_export
from medclip_jax.weights.exported_config import MODEL_TYPE
from medclip_jax.weights.names import to_torch

if TYPE_CHECKING:
    from medclip_jax.inference.model import Model

SAFETENSORS, PYTORCH, CARD = "model.safetensors", "pytorch_model.bin", "README.md"
MODELING = "modeling_medclip.py"
_OWN = {CONFIG, SAFETENSORS, PYTORCH, CARD, MODELING, PREPROCESSOR, *TOKENIZER_FILES, "__pycache__"}
_OWN_SUFFIXES = (".stablehlo", ".onnx")
AIR_HU = -1024


def write_folder(
    model: Model,
    out: str | os.PathLike,
    *,
    card: str = "",
    formats: Sequence[str] = ("safetensors",),
    finish: Callable[[Path], None] = lambda folder: None,
) -> Path:
    """Write a model as a folder that torch, transformers, the hub and `medclip_jax.load` open.

    It appears under its name only when it is complete; an export that lay there before is replaced.

    Args:
        model: from `medclip_jax.load`.
        out: folder to write; must not exist, be empty, or hold an earlier export.
        card: README.md, see `export.model_card`.
        formats: "safetensors" and/or "pytorch": the file of the weights.
        finish: called with the folder under its temporary name before it gets its own; what it raises leaves
            nothing behind.

    Returns:
        The folder.

    Raises:
        ValueError: `out` holds something else, or `torch_code` refuses the model.
        ImportError: "pytorch" without PyTorch.
    """
    out = Path(out)
    code = torch_code(model)
    _, *trees = split(model.objective)
    weights = to_torch(jax.device_get(flatten(combine(*trees))))
    with replaced_when_whole(out) as folder:
        (folder / CONFIG).write_text(_as_json(folder_config(model)), encoding="utf-8")
        (folder / PREPROCESSOR).write_text(_as_json(_preprocessor(model)), encoding="utf-8")
        if "safetensors" in formats:
            from safetensors.numpy import save_file

            save_file(weights, folder / SAFETENSORS, metadata={"format": "pt"})
            # It comes out readable for its owner alone.
            (folder / SAFETENSORS).chmod((folder / CONFIG).stat().st_mode & 0o777)
        if "pytorch" in formats:
            _save_pytorch(weights, folder / PYTORCH)
        if model.tokenizer is not None and model.objective.has_text:
            model.tokenizer.save(folder)
        (folder / MODELING).write_text(code, encoding="utf-8")
        if card:
            (folder / CARD).write_text(card, encoding="utf-8")
        finish(folder)
    return out


def folder_config(model: Model) -> dict[str, Any]:
    """The config.json of an export: all that torch and JAX build the model from, and no path.

    Args:
        model: from `medclip_jax.load`.
    """
    objective = json.loads(json.dumps(model.config["objective"]))
    has_text = model.objective.has_text
    for name, part in vars(model.objective).items():
        if isinstance(part, TextTower) and name in objective:
            objective[name] |= _sizes(part)
    for section in objective.values():
        if isinstance(section, dict) and section.get("weights"):
            section["weights"] = ""
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["MedclipModel"],
        "auto_map": {
            "AutoConfig": "modeling_medclip.MedclipConfig",
            "AutoModel": "modeling_medclip.MedclipModel",
        },
        "medclip_version": importlib.metadata.version("medclip-jax"),
        "objective": objective,
        "data": asdict(model.spec),
        "crop": model.crop,
        "modality": model.modality,
        **({} if model.percentiles is None else {"percentiles": list(model.percentiles)}),
        **({"series": [series.to_json() for series in model.series]} if model.series else {}),
        **exported_data(model.config["data"], model.objective),
        "prompts": _prompts(model) if has_text else {},
        "findings": [
            # How reports state a finding is of no use to a model.
            {key: written[key] for key in ("name", "phrase", "positive", "negative") if key in written}
            for written in model.definitions.to_json()
        ],
    }


def _prompts(model: Model) -> dict[str, Any]:
    """Finding to its positive and its negative prompt, each a list where there are several."""
    known = [name for name in model.spec.findings if name in model.definitions]
    pairs = {name: prompts_of(name, definitions=model.definitions) for name in known}
    return {
        name: [side[0] if len(side) == 1 else list(side) for side in pair] for name, pair in pairs.items()
    }


def _sizes(text: TextTower) -> dict[str, Any]:
    """A text tower's config without the folder that it may have been built from."""
    sizes = text.encoder.config
    return {
        "folder": "",
        "vocabulary": sizes.vocabulary_size,
        "type_vocabulary": sizes.type_vocabulary,
        "width": sizes.width,
        "depth": sizes.depth,
        "heads": sizes.heads,
        "mlp_ratio": sizes.mlp_width / sizes.width,
        "max_positions": sizes.max_positions,
        "layer_norm_epsilon": sizes.layer_norm_epsilon,
        "activation": sizes.activation,
    }


def torch_code(model: Model) -> str:
    """The code of modeling_medclip.py.

    Args:
        model: from `medclip_jax.load`.

    Raises:
        ValueError: its objective, or its tower's network, names no torch class that computes likewise, or
            one that is not there; or it reads what exported models do not.
    """
    objective, name = model.objective, type(model.objective).__name__
    if not MADE_UP.keys() >= set(objective.volume_inputs):
        raise ValueError(
            f"{name} cannot be exported: its vectors need {', '.join(objective.volume_inputs)}, and exported "
            f"models read {', '.join(MADE_UP)}"
        )
    if not objective.torch_twin:
        raise ValueError(
            f"{name} cannot be exported: it names no torch class that embeds likewise. Write one, and give "
            'its "package.module:Class" as `torch_twin`'
        )
    kind = model.config["objective"].get("vision", {}).get("kind", "")
    encoder = encoder_class(kind).torch_twin if kind else ""
    if kind and not encoder:
        raise ValueError(
            f"{name} cannot be exported: volume towers of kind {kind!r} name no torch class that computes "
            'likewise. Write one, and give its "package.module:Class" as `torch_twin` of the encoder'
        )
    return assemble(objective.torch_twin, encoder, has_text=objective.has_text)


@contextmanager
def replaced_when_whole(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes `out` when the block ends well, and goes when it does not.

    Args:
        out: see `write_folder`.

    Raises:
        ValueError: `out` holds something that an export did not write.
    """
    out = out.absolute()
    partial, old = (out.with_name(f".{out.name}.{kind}") for kind in ("partial", "old"))
    if old.exists() and not out.exists():  # killed between the two renames
        old.rename(out)
    check_out(out)
    for folder in (partial, old):
        shutil.rmtree(folder, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if out.exists():
            out.rename(old)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(old, ignore_errors=True)


def check_out(out: Path) -> None:
    """Check that an export may be written to a folder.

    Raises:
        ValueError: it holds something else; the message names it.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"{out} is a file: give a folder that does not exist yet")
    names = sorted(path.name for path in out.iterdir())
    if not names:
        return
    foreign = [name for name in names if name not in _OWN and not name.endswith(_OWN_SUFFIXES)]
    if not is_export(out) or foreign:
        what = ", ".join((foreign or names)[:5])
        raise ValueError(
            f"{out} is in use: it holds {what}, which no export wrote. Give a new folder, or empty this one"
        )


def _preprocessor(model: Model) -> dict[str, Any]:
    vision = model.config["objective"].get("vision", {})
    if model.spec.frame_shape:
        return {
            "frame_shape": list(model.spec.frame_shape),
            "modality": model.modality,
            "channels": [list(channel) for channel in vision.get("channels", ())],
            "note": "frames of 0 to 4095 between two percentiles of their series; modeling_medclip.py scales",
        }
    steps = "resize" if None in model.spec.spacing else "resample, crop or pad"
    return {
        "shape": list(model.spec.shape),
        "spacing_mm": list(model.spec.spacing),  # null: the scan's full extent becomes the shape
        "axes": ["superior", "anterior", "right"],
        "crop": model.crop,
        "fill_hu": AIR_HU,
        "modality": model.modality,
        "windows_hu": [list(window) for window in vision.get("windows", ())],
        "note": f"modeling_medclip.py does all: reorient, {steps}, window to [-1, 1]",
    }


def _save_pytorch(weights: Mapping[str, np.ndarray], file: Path) -> None:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{PYTORCH} needs PyTorch to be written: install medclip-jax[torch-export], or write safetensors"
        ) from error
    torch.save({name: torch.from_numpy(array) for name, array in weights.items()}, file)


def _as_json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
