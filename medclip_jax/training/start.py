"""From a config to a run that can take its next step: data, mesh, model, state, checkpoints."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.sharding import Mesh

from medclip_jax.objectives.base import Batch, DataSpec, Objective
from medclip_jax.training import distributed
from medclip_jax.training import mesh as meshes
from medclip_jax.training.checkpoints import FOLDER, Checkpoints, latest_step
from medclip_jax.training.distributed import Processes
from medclip_jax.training.initial import load_initial_weights
from medclip_jax.training.optimizer import make_optimizer
from medclip_jax.training.partition import state_shardings
from medclip_jax.training.state import TrainState, Tree, initial_state, merge, split
from medclip_jax.training.step import StepFunction, make_train_step, trained_paths
from medclip_jax.training.workdir import Workdir


class Data(NamedTuple):
    """What a run trains on.

    Attributes:
        source: random access to the records of the training split.
        spec: what the model needs to know.
        tokenizer: None for runs without text.
    """

    source: Any
    spec: DataSpec
    tokenizer: Any = None


class Model(NamedTuple):
    """What a run computes with.

    Attributes:
        graphdef: of the objective; see `training.state.split`.
        mesh: of all devices of all processes.
        step: the train step, not yet compiled.
        trained: names of the trained parameters, see `training.step.trained_paths`.
    """

    graphdef: Any
    mesh: Mesh
    step: StepFunction
    trained: list[str]


def open_data(config: Any) -> Data:
    """Open the shards and the tokenizer that `config.data` names.

    Raises:
        ValueError: `config.data.shards` is empty.
    """
    from medclip_jax.pipeline import TEXT_FALLBACK
    from medclip_jax.shards.read import open_shards, open_split

    if not config.shards:
        raise ValueError("config.data.shards is empty: give a folder written by `medclip prepare`")
    info = open_shards(config.shards)
    folder = config.tokenizer or info.tokenizer
    tokenizer = None
    if folder:
        from medclip_jax.reports.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(folder)
    organs = ["organs"] if info.organs else []
    fields = ["volume", "study", "findings", "labels", *TEXT_FALLBACK, *organs]
    spec = DataSpec.of(info, tokenizer)
    return Data(open_split(info, config.train_split, fields=fields), spec, tokenizer)


def check_evaluation(config: Any) -> None:
    """Find out now, and not after the last step, that there is nothing to evaluate on.

    Raises:
        ValueError: the shards have no such split.
    """
    from medclip_jax.shards.read import open_split

    if config.evaluation.evaluators:
        try:
            open_split(config.data.shards, config.evaluation.split, fields=())
        except ValueError as error:
            raise ValueError(f"config.evaluation.split={config.evaluation.split}: {error}") from None


def create_objective(config: Any, spec: DataSpec, *, rngs: nnx.Rngs) -> Objective:
    """The objective that `config.objective` names."""
    from medclip_jax import objectives

    return objectives.create(config, spec, rngs=rngs)


def find_beginning(config: Any, workdir: Workdir, processes: Processes) -> bool:
    """Decide from where the weights come, and check that the config goes with it.

    The workdir's own checkpoint comes first, then `config.checkpoint.resume`, then
    `config.initial_weights`, then `config.seed`. Checkpoints that `config.checkpoint.resume` names are
    linked (or copied) into the workdir, so that from there on there is one way to resume.

    Args:
        config: of the run.
        workdir: of the run.
        processes: of the run; the first decides, so that none sees another state of the file system.

    Returns:
        Whether a checkpoint of the workdir is to be restored.

    Raises:
        ValueError: the checkpoint belongs to a run with another config; or a workdir that the processes
            do not share.
        FileNotFoundError: no checkpoint where `config.checkpoint.resume` points.
    """
    own = distributed.agree(processes.first and latest_step(workdir.path) is not None)
    if own:
        logging.info("resuming the run in %s", workdir.path)
        workdir.check_config(config, resuming=True)
    elif config.checkpoint.resume:
        logging.info("resuming from %s", config.checkpoint.resume)
        source, steps = find_checkpoints(config.checkpoint.resume)
        source.check_config(config, resuming=True)
        if processes.first:
            adopt(source, steps[-config.checkpoint.keep :], workdir)
    elif config.initial_weights.workdir:
        logging.info("starting with weights from %s", config.initial_weights.workdir)
    else:
        logging.info("starting from scratch, seed %d", config.seed)
    if processes.first:
        workdir.write_config(config)
    distributed.barrier("the workdir")
    if not workdir.config_file.exists():
        raise ValueError(
            f"{workdir.path} of process 0 is not the one that process {processes.index} sees: --workdir must "
            "lie on a file system that all processes share"
        )
    return own or bool(config.checkpoint.resume)


def find_checkpoints(path: str | os.PathLike) -> tuple[Workdir, list[int]]:
    """What `config.checkpoint.resume` names: a run's workdir, or one checkpoint in it.

    Returns:
        The workdir, and steps that have a checkpoint, oldest first.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(path).absolute()
    if path.name.isdigit() and path.parent.name == FOLDER and path.is_dir():
        return Workdir(path.parent.parent), [int(path.name)]
    if latest_step(path) is None:
        raise FileNotFoundError(
            f"config.checkpoint.resume={str(path)!r} has no checkpoint: give the --workdir of a run, or one "
            f"checkpoint such as runs/first/{FOLDER}/1000"
        )
    return Workdir(path), sorted(
        int(entry.name) for entry in (path / FOLDER).iterdir() if entry.name.isdigit()
    )


def adopt(source: Workdir, steps: list[int], workdir: Workdir) -> None:
    """Make another run's checkpoints this workdir's own, as hard links where the file system can.

    Args:
        source: the other run.
        steps: of its checkpoints.
        workdir: of this run.
    """
    partial_folder = workdir.path / f"{FOLDER}.partial"
    shutil.rmtree(partial_folder, ignore_errors=True)
    (workdir.path / FOLDER).mkdir(exist_ok=True)
    # The newest first: a start that is killed in between goes on from there all the same.
    for step in sorted(steps, reverse=True):
        shutil.copytree(source.path / FOLDER / str(step), partial_folder, copy_function=_link)
        partial_folder.rename(workdir.path / FOLDER / str(step))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)


def make_model(
    config: Any,
    data: Data,
    objective_factory: Callable[..., Objective],
    *,
    steps: int,
    resuming: bool,
    processes: Processes,
) -> tuple[Model, TrainState]:
    """Build the objective and lay its state out over the mesh.

    Args:
        config: of the run.
        data: of the run.
        objective_factory: ``(config.objective, spec, rngs=...) -> Objective``.
        steps: of the whole run.
        resuming: whether a checkpoint will be restored; then the state is only shapes and places.
        processes: of the run.

    Raises:
        ValueError: mesh, batch, rules or weights that do not fit; the message says what to change.
    """
    mesh = meshes.make_mesh(config.mesh)
    meshes.check_batch_size(config.batch_size, mesh, config.microbatches)
    graphdef, params, variables = split(
        objective_factory(config.objective, data.spec, rngs=nnx.Rngs(config.seed))
    )
    optimizer = make_optimizer(config.optimizer, params, steps)
    create = partial(initial_state, optimizer=optimizer, ema=config.ema.decay > 0)
    shapes = jax.eval_shape(create, params, variables)
    shardings = state_shardings(shapes, mesh, config.mesh.rules)
    if resuming:
        state = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            shapes,
            shardings,
        )
    else:
        if config.initial_weights.workdir:
            params = load_initial_weights(config.initial_weights, params)
        params = meshes.put_state(params, shardings["params"])
        variables = meshes.put_state(variables, shardings["variables"])
        params = _calibrated(graphdef, params, variables, shardings["params"], config, data, mesh, processes)
        # Jitted, so that optimizer state and average are never whole on one device.
        state = jax.jit(create, out_shardings=shardings)(params, variables)
    step = make_train_step(
        graphdef,
        optimizer,
        mesh,
        seed=config.seed,
        shardings=shardings,
        microbatches=config.microbatches,
        ema_decay=config.ema.decay,
        skip_nonfinite=not config.stop_on_nan,
    )
    return Model(graphdef, mesh, step, trained_paths(optimizer, shapes["params"])), TrainState(**state)


def _calibrated(
    graphdef: Any,
    params: Tree,
    variables: Tree,
    shardings: Any,
    config: Any,
    data: Data,
    mesh: Mesh,
    processes: Processes,
) -> Tree:
    """Initial values that depend on data; see `Objective.calibrate`.

    From the first samples of the run: as many as are encoded at once, which is the first batch unless
    there are microbatches.
    """
    if merge(graphdef, params, variables).calibrate.__func__ is Objective.calibrate:
        return params
    from medclip_jax.pipeline import train_batches

    batches = train_batches(
        data.source,
        config.data,
        data.tokenizer,
        seed=config.seed,
        batch_size=config.batch_size // config.microbatches,
        process_index=processes.index,
        process_count=processes.count,
    )
    batch = next(batches)
    batches.close()

    def calibrate(params: Tree, batch: Batch) -> Tree:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            objective = merge(graphdef, params, variables)
            objective.calibrate(batch, jax.random.key(config.seed))
            return split(objective)[1]

    return jax.jit(calibrate, out_shardings=shardings)(params, meshes.put_batch(batch, mesh))


def restored(checkpoints: Checkpoints, state: TrainState, data: Data) -> tuple[TrainState, dict[str, float]]:
    """The newest checkpoint that can be read, and the counters saved with it.

    Args:
        checkpoints: of the workdir.
        state: shapes and places.
        data: of the run.

    Raises:
        CheckpointError: none can be read.
        ValueError: the run began on other data.
    """
    state, saved = checkpoints.restore(state)
    before, now = saved["samples"], len(data.source)
    if before != now:
        raise ValueError(
            f"this run began on {before} training samples and now finds {now} in config.data.shards: give it "
            "the same shards, or a new --workdir with config.initial_weights.workdir set to this one"
        )
    return state, saved["counters"]


def keep_preparation(workdir: Workdir, config: Any) -> None:
    """Copy into the workdir what using the model takes besides its checkpoint."""
    from medclip_jax.interop.text_weights import locate
    from medclip_jax.shards.read import open_shards

    text_folder = config.objective.get("text", {}).get("folder")
    workdir.keep_preparation(
        config.data.shards,
        tokenizer=config.data.tokenizer or open_shards(config.data.shards).tokenizer,
        text_encoder=locate(text_folder) if text_folder else None,
    )
