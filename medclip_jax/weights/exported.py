"""Exported folders read back: config, weights, and the objective that they make."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from medclip_jax import objectives
from medclip_jax.objectives.base import DataSpec, Objective
from medclip_jax.parameters import Tree, combine, flatten, merge, select, split, unflatten
from medclip_jax.reports.definitions import Findings
from medclip_jax.shards.series import SeriesSettings
from medclip_jax.weights.exported_config import (
    check_config,
    check_same,
    is_exported,
    percentiles_of,
    read_json,
    series_of,
)
from medclip_jax.weights.files import read_weights
from medclip_jax.weights.names import from_torch

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json")


def is_export(folder: Path) -> bool:
    """Whether a folder is an export, whole or damaged, and nothing else is in it."""
    try:
        return is_exported(read_json(folder / CONFIG))
    except (OSError, ValueError):
        return False


@dataclass(frozen=True)
class Exported:
    """What an exported folder holds.

    Attributes:
        config: its config.json.
        spec: shape, spacing and vocabulary that the model was built for.
        crop: what prepared volumes are centered on, see `shards.settings.PrepareSettings.crop`.
        modality: "CT" or "MR".
        percentiles: what windows an MR scan's intensities, None where nothing does.
        series: what studies of series of frames become, () for models of volumes.
        params: nested parameters, float32 host arrays, as `parameters.split` gives them.
        variables: likewise what is no parameter, such as the running statistics of batch norm.
        graphdef: of the objective, see `parameters.split`.
    """

    config: Mapping[str, Any]
    spec: DataSpec
    crop: str
    modality: str
    percentiles: tuple[float, float] | None
    series: tuple[SeriesSettings, ...]
    params: Tree
    variables: Tree
    graphdef: nnx.GraphDef

    @property
    def definitions(self) -> Findings:
        """The findings that the model knows by name, with their prompts."""
        return Findings.from_json(self.config.get("findings", ()))

    @property
    def data(self) -> dict[str, Any]:
        """What it keeps of the `config.data` of its run, see `exported_data`."""
        return {name: self.config[name] for name in ("text_length", "frames", "views") if name in self.config}

    def objective(self) -> Objective:
        """Build the objective with these weights."""
        # Once: host arrays would be sent to the device again with every batch.
        return merge(self.graphdef, *jax.device_put((self.params, self.variables)))


def exported_data(config: Mapping[str, Any], objective: Objective) -> dict[str, Any]:
    """What an exported model keeps of `config.data`: how long texts are, and which frames a study has.

    Args:
        config: `config.data`.
        objective: that is exported.
    """
    kept = {"text_length": int(config["text_length"])}
    if "frames" in objective.volume_inputs:
        kept |= {"frames": int(config["frames"]), "views": list(config["views"])}
    return kept


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
        if (path / PREPROCESSOR).is_file():
            check_same(config, read_json(path / PREPROCESSOR))
        graphdef, *trees = _shapes(config["objective"], spec, dtype=dtype)
    except Exception as error:  # whatever a changed entry makes of the modules
        raise ValueError(
            f"{file} is damaged or does not fit the weights beside it ({_first_line(error)}): export the "
            "model again, or copy it again"
        ) from error
    shapes = {name: leaf.shape for name, leaf in flatten(combine(*trees)).items()}
    found = unflatten(from_torch(weights, shapes, source=f"the weights in {path}"))
    params, variables = (select(found, flatten(tree)) for tree in trees)
    return Exported(
        config,
        spec,
        config["crop"],
        config["modality"],
        percentiles_of(config),
        series_of(config),
        params,
        variables,
        graphdef,
    )


def _shapes(
    objective: Mapping[str, Any], spec: DataSpec, *, dtype: str | None = None
) -> tuple[nnx.GraphDef, Tree, Tree]:
    """`parameters.split` of an objective without weights: nothing is drawn that a file overwrites."""
    config = ConfigDict(objectives.complete(objective))
    for tower in config.values():
        if dtype is not None and isinstance(tower, ConfigDict) and "dtype" in tower:
            tower.dtype = dtype
    return split(nnx.eval_shape(lambda: objectives.create(config, spec, rngs=nnx.Rngs(0))))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
