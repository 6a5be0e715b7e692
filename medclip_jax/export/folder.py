"""The folder of an exported model: written for PyTorch and the Hugging Face hub, read back into JAX."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx

from medclip_jax.export.exported_config import MODEL_TYPE, check_config, check_same, is_exported, read_json
from medclip_jax.export.names import from_torch, to_torch
from medclip_jax.objectives.base import DataSpec, Objective
from medclip_jax.parameters import Tree, combine, flatten, merge, select, split, unflatten

if TYPE_CHECKING:
    from medclip_jax.inference.model import Model

CONFIG, SAFETENSORS, PYTORCH, CARD = "config.json", "model.safetensors", "pytorch_model.bin", "README.md"
MODELING = "modeling_medclip.py"
_PREPROCESSOR = "preprocessor_config.json"
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json")
_OWN = {CONFIG, SAFETENSORS, PYTORCH, CARD, MODELING, _PREPROCESSOR, *TOKENIZER_FILES, "__pycache__"}
_OWN_SUFFIXES = (".stablehlo", ".onnx")
AIR_HU = -1024


@dataclass(frozen=True)
class Exported:
    """What an exported folder holds.

    Attributes:
        config: its config.json.
        spec: shape, spacing and vocabulary that the model was built for.
        crop: what prepared volumes are centered on, see `shards.settings.PrepareSettings.crop`.
        modality: "CT" or "MR".
        params: nested parameters, float32 host arrays, as `parameters.split` gives them.
        variables: likewise what is no parameter, such as the running statistics of batch norm.
        graphdef: of the objective, see `parameters.split`.
    """

    config: Mapping[str, Any]
    spec: DataSpec
    crop: str
    modality: str
    params: Tree
    variables: Tree
    graphdef: nnx.GraphDef

    def objective(self) -> Objective:
        """Build the objective with these weights."""
        # Once: host arrays would be sent to the device again with every batch.
        return merge(self.graphdef, *jax.device_put((self.params, self.variables)))


def read_folder(path: str | os.PathLike, *, dtype: str | None = None) -> Exported:
    """Read what `medclip export` wrote.

    Args:
        path: the folder; with model.safetensors or pytorch_model.bin.
        dtype: compute type of both towers instead of that of the training.

    Returns:
        Its config and weights.

    Raises:
        FileNotFoundError: no such folder, or no config or weights in it.
        ValueError: it is another model's folder, a file is damaged, or the weights do not fit its
            config.json; found out before anything of the model's size is allocated.
    """
    from medclip_jax.weights.files import read_weights

    path = Path(path)
    file = path / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"no {CONFIG} in {path}: give a folder that `medclip export` wrote")
    config = read_json(file)
    if not is_exported(config):
        raise ValueError(f"{file} is not of an exported model: give a folder that `medclip export` wrote")
    weights = read_weights(path)
    try:
        spec = check_config(config, {name: array.shape for name, array in weights.items()})
        if (path / _PREPROCESSOR).is_file():
            check_same(config, read_json(path / _PREPROCESSOR))
        graphdef, *trees = _shapes(config["objective"], spec, dtype=dtype)
    except Exception as error:  # whatever a changed entry makes of the modules
        raise ValueError(
            f"{file} is damaged or does not fit the weights beside it ({_first_line(error)}): export the "
            "model again, or copy it again"
        ) from error
    shapes = {name: leaf.shape for name, leaf in flatten(combine(*trees)).items()}
    found = unflatten(from_torch(weights, shapes, source=f"the weights in {path}"))
    params, variables = (select(found, flatten(tree)) for tree in trees)
    return Exported(config, spec, config["crop"], config["modality"], params, variables, graphdef)


def _shapes(
    objective: Mapping[str, Any], spec: DataSpec, *, dtype: str | None = None
) -> tuple[nnx.GraphDef, Tree, Tree]:
    """`parameters.split` of an objective without weights: nothing is drawn that a file overwrites."""
    from ml_collections import ConfigDict

    from medclip_jax import objectives
    from medclip_jax.training.config import complete

    config = ConfigDict(complete({"objective": objective})["objective"])
    for tower in ("vision", "text"):
        if dtype is not None and tower in config:
            config[tower].dtype = dtype
    return split(nnx.eval_shape(lambda: objectives.create(config, spec, rngs=nnx.Rngs(0))))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def write_folder(
    model: Model,
    out: str | os.PathLike,
    *,
    card: str = "",
    formats: Sequence[str] = ("safetensors",),
    finish: Callable[[Path], None] = lambda folder: None,
) -> Path:
    """Write a model as a folder that torch, transformers, the hub and `medclip_jax.load` open.

    It appears under its name only when it is whole; an export that lay there before is replaced.

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
        ValueError: `out` holds something else.
        ImportError: "pytorch" without PyTorch.
    """
    out = Path(out)
    _, *trees = split(model.objective)
    weights = to_torch(jax.device_get(flatten(combine(*trees))))
    with replaced_when_whole(out) as folder:
        (folder / CONFIG).write_text(_as_json(folder_config(model)), encoding="utf-8")
        (folder / _PREPROCESSOR).write_text(_as_json(_preprocessor(model)), encoding="utf-8")
        if "safetensors" in formats:
            from safetensors.numpy import save_file

            save_file(weights, folder / SAFETENSORS, metadata={"format": "pt"})
            # It comes out readable for its owner alone.
            (folder / SAFETENSORS).chmod((folder / CONFIG).stat().st_mode & 0o777)
        if "pytorch" in formats:
            _save_pytorch(weights, folder / PYTORCH)
        if model.tokenizer is not None and hasattr(model.objective, "text"):
            model.tokenizer.save(folder)
        shutil.copyfile(Path(__file__).with_name(MODELING), folder / MODELING)
        if card:
            (folder / CARD).write_text(card, encoding="utf-8")
        finish(folder)
    return out


def folder_config(model: Model) -> dict[str, Any]:
    """The config.json of an export: all that torch and JAX build the model from, and no path.

    Args:
        model: from `medclip_jax.load`.
    """
    from medclip_jax.reports.prompts import pair
    from medclip_jax.reports.vocabulary import FINDINGS

    objective = json.loads(json.dumps(model.config["objective"]))
    has_text = hasattr(model.objective, "text")
    if has_text:
        sizes = model.objective.text.encoder.config
        objective["text"] |= {
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
    if objective["vision"].get("weights"):
        objective["vision"]["weights"] = ""
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
        "text_length": int(model.config["data"]["text_length"]),
        "prompts": {name: pair(name) for name in model.spec.findings if name in FINDINGS} if has_text else {},
    }


def is_export(folder: Path) -> bool:
    """Whether a folder is an export, whole or damaged, and nothing else is in it."""
    try:
        return is_exported(read_json(folder / CONFIG))
    except (OSError, ValueError):
        return False


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
    vision = model.config["objective"]["vision"]
    return {
        "shape": list(model.spec.shape),
        "spacing_mm": list(model.spec.spacing),
        "axes": ["superior", "anterior", "right"],
        "crop": model.crop,
        "fill_hu": AIR_HU,
        "modality": model.modality,
        "windows_hu": [list(window) for window in vision["windows"]],
        "note": "modeling_medclip.py does all: reorient, resample, crop or pad, window to [-1, 1]",
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
