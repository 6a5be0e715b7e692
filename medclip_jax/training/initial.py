"""Weights from an earlier stage: a run's, or those of an exported model."""

from __future__ import annotations

import difflib
import logging
import re
from typing import Any

import numpy as np

from medclip_jax.parameters import Tree, combine, flatten, unflatten
from medclip_jax.training.checkpoints import restore_weights


def load_initial_weights(config: Any, weights: Tree) -> Tree:
    """Replace weights by those of an earlier run or of an exported model.

    Args:
        config: `config.initial_weights`. Its `workdir` is that of a run, a folder that `medclip export`
            wrote, or such a folder on the hub, "hf://owner/name". An export holds one set of weights,
            whatever `ema` says: the averaged ones where the run kept them.
        weights: freshly initialized parameters and other variables, such as running statistics, as one tree.

    Returns:
        `weights` with everything that was included replaced, as host arrays.

    Raises:
        FileNotFoundError: no checkpoint there; or neither such a folder nor a way to such a hub id.
        ValueError: a regex matches nothing, an included parameter has no place here or another shape, or
            only a part of a batch norm would be replaced.
    """
    where = f"config.initial_weights.workdir={config.workdir!r}"
    loaded = {}
    for name, value in _read(config, where).items():
        for pattern, replacement in config.rename:
            name = re.sub(pattern, replacement, name)
        loaded[name] = value
    own = flatten(weights)
    homeless = [name for name in loaded if name not in own]
    if homeless:
        near = difflib.get_close_matches(homeless[0], own, n=1, cutoff=0.3)
        raise ValueError(
            f"{where}: {len(homeless)} included parameters have no place in this model, such as "
            f"{homeless[0]!r} (nearest here: {near[0] if near else 'none'}). Narrow "
            "config.initial_weights.include to what both share, or map names with its `rename`"
        )
    for name, value in loaded.items():
        if value.shape != own[name].shape:
            raise ValueError(
                f"{where}: {name!r} has shape {value.shape} there and {own[name].shape} here: build both "
                "stages with the same shape, patch and width, or narrow config.initial_weights.include"
            )
    fresh = sorted({name.split("/")[0] for name in own if name not in loaded})
    logging.info(
        "%d of %d arrays from %s; fresh: %s",
        len(loaded),
        len(own),
        config.workdir,
        ", ".join(fresh) or "none",
    )
    return combine(weights, unflatten({k: v.astype(own[k].dtype) for k, v in loaded.items()}))


def log_other_kind(workdir: str, shards: str) -> None:
    """Warn where the weights come from volumes of another kind. Stages may differ so, but not unknowingly.

    Args:
        workdir: `config.initial_weights.workdir`.
        shards: `config.data.shards` of the run that begins.
    """
    from medclip_jax.hub import locate
    from medclip_jax.shards.grid import differences, volume_kind
    from medclip_jax.shards.read import SETTINGS_FILE, open_shards
    from medclip_jax.weights.exported import is_export
    from medclip_jax.weights.exported_config import read_json

    folder = locate(workdir)
    if is_export(folder):
        config = read_json(folder / "config.json")
        trained = {name: tuple(config["data"][name]) for name in ("shape", "spacing")}
        trained |= {name: config.get(name) for name in ("crop", "modality", "percentiles")}
    elif (folder / SETTINGS_FILE).is_file():
        trained = volume_kind(open_shards(folder))
    else:
        return
    for line in differences(trained, volume_kind(open_shards(shards))):
        logging.warning("the initial weights come from volumes of another kind: here %s", line)


def _read(config: Any, where: str) -> dict[str, np.ndarray]:
    """What `config.include` picks, by "path/to/parameter"."""
    from medclip_jax.hub import hub_id, locate
    from medclip_jax.weights.exported import is_export, read_folder

    try:
        folder = locate(config.workdir)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{where} is neither a --workdir of `medclip train`, nor a folder that `medclip export` "
            f"wrote, nor one on the hub: {error}"
        ) from error
    if hub_id(config.workdir) is None and not is_export(folder):
        return flatten(restore_weights(folder, include=config.include, ema=config.ema))
    exported = read_folder(folder)
    given = flatten(combine(exported.params, exported.variables))
    for pattern in config.include:
        if not any(re.search(pattern, name) for name in given):
            raise ValueError(
                f"{pattern!r} matches no parameter of {config.workdir}; it has {list(given)[:8]}..."
            )
    return {
        name: value
        for name, value in given.items()
        if any(re.search(pattern, name) for pattern in config.include)
    }
