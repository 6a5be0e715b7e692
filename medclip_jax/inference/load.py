"""From a workdir, an exported folder or a hub id to a model in use."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medclip_jax.allocator import keep_freed_memory
from medclip_jax.inference.model import Model
from medclip_jax.objectives.base import DataSpec, Objective
from medclip_jax.reports.definitions import BUILT_IN, Findings
from medclip_jax.reports.findings_file import read_findings

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from medclip_jax.reports.tokenizer import Tokenizer
    from medclip_jax.shards.read import PreparedInfo
    from medclip_jax.shards.series import SeriesSettings


@dataclass(frozen=True)
class _Trained:
    """What a model is made of, wherever it came from."""

    objective: Objective
    config: ConfigDict
    spec: DataSpec
    tokenizer: Tokenizer | None
    crop: str
    modality: str
    definitions: Findings
    percentiles: tuple[float, float] | None
    series: tuple[SeriesSettings, ...]


def load(
    source: str | os.PathLike,
    *,
    step: int | None = None,
    shards: str | os.PathLike | None = None,
    other_grid: bool = False,
    batch_size: int | None = None,
    dtype: str | None = None,
    findings: str | os.PathLike | None = None,
    progress: bool = True,
) -> Model:
    """Load a trained model.

    Compiled programs are kept for the next process, see `training.compilation`. It computes on the device
    that JAX chooses: an accelerator where there is one; `JAX_PLATFORMS=cpu` in the environment keeps it on
    the CPU.

    Args:
        source: the workdir of `medclip train`, a folder that `medclip export` wrote, or such a folder on the
            Hugging Face hub, "hf://owner/name" (see `hub.hub_id` for when "owner/name" will do). Of a
            workdir the newest checkpoint is taken, or the best where the run looked for it
            (`config.evaluation.best`), its moving average where one was kept; what scans must
            look like, the tokenizer and the sizes of a text encoder from elsewhere are read from the run's
            own copies, else from where the run took them.
        step: which checkpoint of a workdir; None for the best or newest.
        shards: prepared folder that the model is to be used on. A workdir which kept no copy of its
            preparation (and tokenizer) takes it from there; else its volumes must be of the same kind.
        other_grid: resume where they are not, and prepare scans as they are: for learning how a model does
            on a grid that it was not trained for.
        batch_size: volumes for each call of the model; fewer are filled up to it. None for 1 on a CPU, 4 on
            an accelerator. Vectors do not depend on it beyond 1e-6 in float32.
        dtype: "float32" or "bfloat16" to compute in instead of what the model was trained in.
        findings: a findings file: what it defines is known by name too, in place of what the model knows
            under that name.
        progress: whether to draw bars.

    Returns:
        The model.

    Raises:
        FileNotFoundError: no model there; the hub does not have it or is out of reach; or neither shards nor
            tokenizer can be found.
        ValueError: the weights do not fit the config beside them; `shards` of another shape, spacing, crop or
            modality than the training's; an unknown dtype; a findings file that cannot be used.
    """
    import jax

    from medclip_jax.training.compilation import use_compilation_cache
    from medclip_jax.weights.exported import is_export

    if dtype not in (None, "float32", "bfloat16"):
        raise ValueError(f'dtype={dtype!r}: use "float32" or "bfloat16", or None for that of the training')
    if batch_size is None:
        batch_size = 1 if jax.default_backend() == "cpu" else 4
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: it must be 1 or more")
    own = read_findings(findings) if findings is not None else BUILT_IN
    use_compilation_cache()
    keep_freed_memory()
    folder = find_model(source)
    if is_export(folder):
        if step is not None or shards is not None:
            raise ValueError(f"{folder} is an exported model: step and shards are for workdirs only")
        trained = _read_exported(folder, dtype)
    else:
        trained = _read_workdir(folder, step, shards, other_grid, dtype)
    return Model(
        trained.objective,
        trained.spec,
        trained.tokenizer,
        trained.config.to_dict(),
        crop=trained.crop,
        modality=trained.modality,
        percentiles=trained.percentiles,
        series=trained.series,
        batch_size=batch_size,
        progress=progress,
        source=os.fspath(source),
        definitions=trained.definitions.updated(own),
    )


def find_model(source: str | os.PathLike) -> Path:
    """The folder of a model, fetched from the hub where it is an id.

    Args:
        source: as for `load`.

    Raises:
        FileNotFoundError: as `load`.
    """
    from medclip_jax.hub import locate
    from medclip_jax.weights.exported import TOKENIZER_FILES

    try:
        folder = locate(source, more=TOKENIZER_FILES)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no model there: {error}. Models are the --workdir of a `medclip train` run, and folders that "
            "`medclip export` wrote"
        ) from error
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"no config.json in {folder}: give the --workdir of a `medclip train` run (not its checkpoints), "
            "or a folder that `medclip export` wrote"
        )
    return folder


def _read_exported(folder: Path, dtype: str | None) -> _Trained:
    from ml_collections import ConfigDict

    from medclip_jax.reports.tokenizer import load_tokenizer
    from medclip_jax.training.config import complete
    from medclip_jax.weights.exported import read_folder

    exported = read_folder(folder, dtype=dtype)
    config = ConfigDict(complete({"objective": exported.config["objective"], "data": exported.data}))
    if dtype is not None:
        _set_dtype(config.objective, dtype)
    has_tokenizer = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
    return _Trained(
        objective=exported.objective(),
        config=config,
        spec=exported.spec,
        tokenizer=load_tokenizer(folder) if has_tokenizer else None,
        crop=exported.crop,
        modality=exported.modality,
        definitions=exported.definitions,
        percentiles=exported.percentiles,
        series=exported.series,
    )


def _read_workdir(
    workdir: Path,
    step: int | None,
    shards: str | os.PathLike | None,
    other_grid: bool,
    dtype: str | None,
) -> _Trained:
    from ml_collections import ConfigDict

    from medclip_jax.reports.tokenizer import load_tokenizer
    from medclip_jax.shards.grid import volume_kind
    from medclip_jax.shards.read import SETTINGS_FILE, open_shards
    from medclip_jax.training.config import complete
    from medclip_jax.training.settle import settle_objective
    from medclip_jax.training.workdir import TEXT_ENCODER, TOKENIZER
    from medclip_jax.weights.exported_config import read_json

    config = ConfigDict(complete(read_json(workdir / "config.json")))
    info = _preparation(workdir, config, shards, other_grid)
    # The run's own copies first: what they were copied from may have moved, or changed.
    kept = workdir / TOKENIZER
    folder = kept if kept.is_dir() else config.data.tokenizer or info.tokenizer
    tokenizer = load_tokenizer(folder) if folder else None
    if (workdir / TEXT_ENCODER).is_dir():
        config.objective.text.folder = str(workdir / TEXT_ENCODER)
    if dtype is not None:
        _set_dtype(config.objective, dtype)
    spec = DataSpec.of(info, tokenizer)
    # By what it was trained on, also where it is to be used on another grid.
    trained_on = info
    if (workdir / SETTINGS_FILE).is_file():
        trained_on = open_shards(workdir, tables=tuple(config.data.tables))
    config.objective = settle_objective(config.objective, DataSpec.of(trained_on, tokenizer))
    kind = volume_kind(info)
    return _Trained(
        objective=_restored(workdir, step, config, spec),
        config=config,
        spec=spec,
        tokenizer=tokenizer,
        definitions=info.definitions,
        crop=kind["crop"],
        modality=kind["modality"],
        percentiles=kind["percentiles"],
        series=tuple(series for series in info.series if series.frames),
    )


def _restored(workdir: Path, step: int | None, config: ConfigDict, spec: DataSpec) -> Objective:
    """The objective of a run with a checkpoint's weights; adapters are merged, and gone from `config`."""
    import jax
    from flax import nnx

    from medclip_jax import objectives
    from medclip_jax.models.adapters import merge_adapters
    from medclip_jax.parameters import combine, flatten, merge, split, unflatten
    from medclip_jax.training.checkpoints import restore_weights

    found = flatten(restore_weights(workdir, ema=True, step=step))
    adapters = config.objective.get("text", {}).get("adapters")
    if adapters and adapters.rank:
        found = merge_adapters(found, adapters.alpha)
        adapters.rank = 0
    # Shapes only: drawing numbers that are overwritten at once takes seconds and as much memory again.
    graphdef, *shapes = split(
        nnx.eval_shape(lambda: objectives.create(config.objective, spec, rngs=nnx.Rngs(0)))
    )
    expected = flatten(combine(*shapes))
    wrong = [f"{n!r} is missing there" for n in expected if n not in found]
    wrong += [f"{n!r} is unknown here" for n in found if n not in expected]
    wrong += [
        f"{n!r} is {np.shape(found[n])} there, {leaf.shape} here"
        for n, leaf in expected.items()
        if n in found and np.shape(found[n]) != leaf.shape
    ]
    if wrong:
        raise ValueError(
            f"the checkpoint in {workdir} does not fit its config.json ({wrong[0]}): the shards or the "
            "tokenizer are not those it was trained with; pass shards=..., or restore the original "
            "config.json"
        )
    # To the device once, not with every batch; one at a time, so that the weights are not there twice.
    return merge(graphdef, unflatten({name: jax.device_put(found.pop(name)) for name in list(found)}))


def _preparation(
    workdir: Path, config: Any, shards: str | os.PathLike | None, other_grid: bool
) -> PreparedInfo:
    from medclip_jax.shards.grid import refuse_other_kind, volume_kind
    from medclip_jax.shards.read import SETTINGS_FILE, open_configured, open_shards
    from medclip_jax.shards.urls import is_url

    kept = None
    if (workdir / SETTINGS_FILE).is_file():
        kept = open_shards(workdir, tables=tuple(config.data.tables))
    given = open_shards(shards) if shards is not None else None
    if kept is None and given is not None:
        return given
    if kept is not None:
        if given is None:
            return kept
        if other_grid:
            return replace(kept, shape=given.shape, spacing=given.spacing, settings=given.settings)
        refuse_other_kind(volume_kind(kept), volume_kind(given), f"the volumes in {shards}")
        return kept
    shards_there = is_url(config.data.shards) or Path(config.data.shards).is_dir()
    if not config.data.shards or not shards_there:
        raise FileNotFoundError(
            f"the shards of this run, {config.data.shards!r}, are not there, and {workdir} holds no copy of "
            f"their {SETTINGS_FILE}: pass the prepared folder (shards=..., --shards), or copy its "
            f"{SETTINGS_FILE} and tokenizer/ into the workdir"
        )
    return open_configured(config.data)


def _set_dtype(config: Any, dtype: str) -> None:
    """Set the type of every tower that has one."""
    for value in config.values():
        if hasattr(value, "items"):
            if "dtype" in value:
                value.dtype = dtype
            _set_dtype(value, dtype)
