"""From a config to a run that can take its next step: data, mesh, model, state, checkpoints."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.sharding import Mesh

from medclip_jax.fields import Layout
from medclip_jax.objectives.base import Batch, Objective
from medclip_jax.objectives.towers import scanned
from medclip_jax.parameters import Tree, combine, flatten, merge, select, split, statistics
from medclip_jax.training import distributed
from medclip_jax.training import mesh as meshes
from medclip_jax.training.checkpoints import FOLDER, Checkpoints, latest_step, restore_from, saved_run
from medclip_jax.training.data import Data, check_expectation, check_identity, check_vocabulary
from medclip_jax.training.distributed import Processes
from medclip_jax.training.initial import load_initial_weights, log_other_kind
from medclip_jax.training.lock import is_locked
from medclip_jax.training.optimizer import make_optimizer
from medclip_jax.training.partition import state_shardings
from medclip_jax.training.state import TrainState, initial_state
from medclip_jax.training.step import StepFunction, make_train_step, trained_paths
from medclip_jax.training.text_cache import check_cached
from medclip_jax.training.workdir import Workdir

SHARED_SECONDS = 90.0
"""How long a process waits to see in the workdir what the first one wrote there."""


class Beginning(Enum):
    """From where the state of a run comes; the first that there is."""

    OWN = "the workdir's own newest checkpoint"
    RESUME = "the checkpoint that config.checkpoint.resume names"
    WEIGHTS = "weights that config.initial_weights names, the rest fresh"
    SCRATCH = "config.seed"

    @property
    def is_checkpoint(self) -> bool:
        """Whether it is a checkpoint, with optimizer state and step."""
        return self in (Beginning.OWN, Beginning.RESUME)


class Model(NamedTuple):
    """What a run computes with.

    Attributes:
        graphdef: of the objective; see `parameters.split`.
        mesh: of all devices of all processes.
        step: the train step, not yet compiled.
        trained: names of the trained parameters, see `training.step.trained_paths`.
    """

    graphdef: Any
    mesh: Mesh
    step: StepFunction
    trained: list[str]


def check_evaluation(config: Any) -> None:
    """Find out now, and not after the last step, that there is nothing to evaluate on.

    Raises:
        ValueError: the shards have no such split, or nothing is evaluated that a best step could be found by.
    """
    from medclip_jax.evaluation.presets import find_protocols, plan_of
    from medclip_jax.shards.read import open_configured, open_split
    from medclip_jax.shards.subset import FOLD

    settings = config.evaluation
    if metric := settings.best.metric:
        known = {*settings.evaluators, *plan_of(find_protocols(settings.protocols))}
        if not any(metric.startswith(f"{name}/") for name in known):
            raise ValueError(
                f"config.evaluation.best.metric={metric!r} begins with none of the evaluators of the run "
                f"({', '.join(sorted(known)) or 'none'}): name it as metrics.jsonl does, such as "
                "'prediction/auroc_mean', and add its evaluator to config.evaluation.evaluators"
            )
        if settings.split == FOLD:
            raise ValueError(
                "config.evaluation.split='fold' would choose the checkpoint by the fold that is held out to "
                "judge it: choose on 'validation', and score with `medclip evaluate --fold`"
            )
        if not settings.every_steps:
            raise ValueError(
                "config.evaluation.every_steps is 0, so that only the last step is evaluated: set it, for "
                "config.evaluation.best to choose among several"
            )

    if config.evaluation.evaluators or config.evaluation.protocols:
        try:
            open_split(open_configured(config.data), config.evaluation.split, fields=())
        except ValueError as error:
            raise ValueError(f"config.evaluation.split={config.evaluation.split}: {error}") from None


def check_shared(workdir: Workdir, processes: Processes) -> None:
    """Wait until the first process holds the workdir, and see that all processes have the same one.

    Raises:
        ValueError: they do not share it.
    """
    distributed.barrier("the workdir")
    end = time.monotonic() + SHARED_SECONDS
    while not is_locked(workdir.path):
        # A machine may show for a while what it last saw of a shared folder.
        if time.monotonic() > end:
            raise ValueError(
                f"{workdir.path} of process 0 is not what process {processes.index} sees there: --workdir "
                "must lie on a file system that all processes share"
            )
        time.sleep(1.0)


def find_beginning(config: Any, workdir: Workdir, data: Data, processes: Processes) -> Beginning:
    """Decide from where the state comes, say it in the log, and check that config and data go with it.

    The first process decides for all, so that none sees another state of the file system. Nothing is
    written.

    Args:
        config: of the run.
        workdir: of the run.
        data: of the run.
        processes: of the run.

    Raises:
        ValueError: a checkpoint of a run with another config or other data.
        FileNotFoundError: nothing where `config.checkpoint.resume` points.
    """
    if distributed.agree(processes.first and latest_step(workdir.path) is not None):
        logging.info("resuming from this workdir's own checkpoint, %s", workdir.path)
        _check_continues(config, workdir.path, data)
        return Beginning.OWN
    if config.checkpoint.resume:
        logging.info("resuming from config.checkpoint.resume, %s", config.checkpoint.resume)
        path = Path(config.checkpoint.resume)
        source = path.parent.parent if path.name.isdigit() and path.parent.name == FOLDER else path
        if not source.is_dir():
            raise FileNotFoundError(
                f"config.checkpoint.resume={str(path)!r} is not there: give the --workdir of a run, or one "
                f"of its {FOLDER}/STEP"
            )
        _check_continues(config, source, data)
        return Beginning.RESUME
    # A run that resumes was begun on its data: `_check_continues` compares those.
    check_expectation(config.data, data.spec, getattr(data.source, "info", None))
    if config.initial_weights.workdir:
        logging.info("starting from config.initial_weights, %s", config.initial_weights.workdir)
        return Beginning.WEIGHTS
    logging.info("starting from scratch, config.seed %d", config.seed)
    return Beginning.SCRATCH


def _check_continues(config: Any, source: Path, data: Data) -> None:
    """Check that config and data are those of the run that is to be continued."""
    Workdir(source).check_config(config, resuming=True)
    saved = saved_run(source)
    if saved is not None:
        check_identity(saved, data, source)


def make_model(
    config: Any,
    data: Data,
    layout: Layout,
    objective_class: type[Objective],
    *,
    steps: int,
    beginning: Beginning,
    processes: Processes,
) -> tuple[Model, TrainState]:
    """Build the objective and lay its state out over the mesh.

    Args:
        config: of the run.
        data: of the run.
        layout: of its batches.
        objective_class: what to build.
        steps: of the run in total.
        beginning: where a checkpoint will be restored, the state is only shapes and places.
        processes: of the run.

    Raises:
        ValueError: mesh, batch, rules or weights that do not fit; the message says what to change.
    """
    mesh = meshes.make_mesh(config.mesh)
    warn_of_scan(config.objective, mesh.devices.flat[0].platform)
    meshes.check_batch_size(config.batch_size, mesh, config.microbatches)

    def draw() -> Objective:
        return objective_class(config.objective, data.spec, rngs=nnx.Rngs(config.seed))

    # Nothing is drawn where a checkpoint follows: shapes are enough.
    graphdef, params, variables = split(nnx.eval_shape(draw) if beginning.is_checkpoint else draw())
    optimizer = make_optimizer(config.optimizer, params, steps)
    running = statistics(graphdef, params, variables)
    create = partial(initial_state, optimizer=optimizer, ema=config.ema.decay > 0, statistics=running)
    shapes = jax.eval_shape(create, params, variables)
    shardings = state_shardings(shapes, mesh, config.mesh.rules)
    if beginning.is_checkpoint:
        state = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            shapes,
            shardings,
        )
    else:
        drawn = (params, variables)
        params, variables = with_weights(config, data, drawn, running, beginning)
        if config.objective.get("cached_texts"):
            check_cached(config, params, optimizer.trained)
        places = shardings["params"], shardings["variables"]
        drawn = meshes.put_state((params, variables), places)
        params, variables = _calibrated(graphdef, drawn, places, config, data, layout, mesh, processes)
        # Jitted, so that optimizer state and average are never in full on one device.
        state = jax.jit(create, out_shardings=shardings)(params, variables)
    step = make_train_step(
        graphdef,
        optimizer,
        mesh,
        shardings=shardings,
        microbatches=config.microbatches,
        ema_decay=config.ema.decay,
        skip_nonfinite=not config.stop_on_nan,
    )
    return Model(graphdef, mesh, step, trained_paths(optimizer, shapes["params"])), TrainState(**state)


def warn_of_scan(objective: Any, platform: str) -> None:
    """Say that a loop over blocks costs memory where it does."""
    if platform == "tpu" and (names := scanned(objective)):
        logging.warning(
            "%s: on a TPU a loop over blocks holds 1.8 times the activations; set it to False unless "
            "compiling takes too long", ", ".join(f"config.objective.{name}.scan=True" for name in names),
        )  # fmt: skip


def with_weights(
    config: Any, data: Data, drawn: tuple[Tree, Tree], statistics: Collection[str], beginning: Beginning
) -> tuple[Tree, Tree]:
    """Drawn parameters and variables, replaced by an earlier run's or else a published model's, if any.

    Args:
        config: of the run.
        data: of the run.
        drawn: parameters and other variables.
        statistics: names of the running statistics.
        beginning: no checkpoint.

    Raises:
        ValueError, FileNotFoundError: weights that are not there, or do not fit.
    """
    from medclip_jax.weights.pretrained import load_pretrained

    weights = combine(*drawn)
    before = flatten(weights)
    if beginning is Beginning.WEIGHTS:
        weights = load_initial_weights(config.initial_weights, weights)
        log_other_kind(config.initial_weights.workdir, config.data.shards)
    settled = {name for name, value in flatten(weights).items() if value is not before[name]}
    _check_statistics(settled, statistics, config.initial_weights.workdir)
    check_vocabulary(config, data, settled, before)
    weights = load_pretrained(config.objective, weights, data.spec, settled=settled)
    return tuple(select(weights, flatten(tree)) for tree in drawn)


def _check_statistics(taken: Collection[str], statistics: Collection[str], workdir: str) -> None:
    """Check that no norm has the parameters of another run and fresh statistics.

    Raises:
        ValueError: one has.
    """
    modules = {name.rpartition("/")[0]: name for name in taken}
    for name in sorted(set(statistics) - set(taken)):
        if name.rpartition("/")[0] in modules:
            raise ValueError(
                f"config.initial_weights.workdir={workdir!r} gives {modules[name.rpartition('/')[0]]!r}, but "
                f"not the running statistic {name!r} that belongs to it: widen config.initial_weights."
                "include, or leave out both"
            )


def _calibrated(
    graphdef: Any,
    drawn: tuple[Tree, Tree],
    shardings: tuple[Any, Any],
    config: Any,
    data: Data,
    layout: Layout,
    mesh: Mesh,
    processes: Processes,
) -> tuple[Tree, Tree]:
    """Initial values that depend on data; see `Objective.calibrate`.

    From the first samples of the run: as many as are encoded at once, which is the first batch unless
    there are microbatches.
    """
    if merge(graphdef, *drawn).calibrate.__func__ is Objective.calibrate:
        return drawn
    from medclip_jax.pipeline import train_batches

    batches = train_batches(
        data.source,
        layout,
        seed=config.seed,
        batch_size=config.batch_size // config.microbatches,
        process_index=processes.index,
        process_count=processes.count,
    )
    batch = next(batches)
    batches.close()

    def calibrate(drawn: tuple[Tree, Tree], batch: Batch) -> tuple[Tree, Tree]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            objective = merge(graphdef, *drawn)
            objective.calibrate(batch, jax.random.key(config.seed))
            return split(objective)[1:]

    return jax.jit(calibrate, out_shardings=shardings)(drawn, meshes.put_batch(batch, mesh))


def restored(
    checkpoints: Checkpoints, state: TrainState, beginning: Beginning, config: Any
) -> tuple[TrainState, dict[str, float]]:
    """The newest checkpoint that can be read, and the counters saved with it.

    Args:
        checkpoints: of the workdir.
        state: shapes and places.
        beginning: a checkpoint.
        config: of the run.

    Raises:
        CheckpointError: none can be read.
    """
    if beginning is Beginning.OWN:
        state, saved = checkpoints.restore(state)
    else:
        state, saved = restore_from(config.checkpoint.resume, state)
    return state, saved["counters"]


def keep_preparation(workdir: Workdir, config: Any) -> None:
    """Copy into the workdir what using the model takes besides its checkpoint."""
    from medclip_jax.hub import locate
    from medclip_jax.shards.read import open_shards

    text_folder = config.objective.get("text", {}).get("folder")
    workdir.keep_preparation(
        config.data.shards,
        tokenizer=config.data.tokenizer or open_shards(config.data.shards).tokenizer,
        tables=tuple(config.data.tables),
        text_encoder=locate(text_folder, weights=False) if text_folder else None,
    )
