"""The one training loop. It knows batches, terms and parameters, and nothing of any system."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from medclip_jax.objectives.base import Batch, DataSpec, Objective
from medclip_jax.training import mesh as meshes
from medclip_jax.training.checkpoints import Checkpoints, latest_step
from medclip_jax.training.config import to_json, total_steps
from medclip_jax.training.flops import count_flops, utilization
from medclip_jax.training.goodput import Clock
from medclip_jax.training.initial import load_initial_weights
from medclip_jax.training.logs import Logs
from medclip_jax.training.nonfinite import NonFiniteError, describe
from medclip_jax.training.optimizer import make_optimizer
from medclip_jax.training.state import TrainState, Tree, averaged, initial_state, merge, split
from medclip_jax.training.step import Metrics, StepFunction, make_train_step, trained_paths
from medclip_jax.training.workdir import Workdir

EVALUATED = "evaluation_seconds"
"""Stands in the metrics of a step that was evaluated."""


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


def create_objective(config: Any, spec: DataSpec, *, rngs: nnx.Rngs) -> Objective:
    """The objective that `config.objective` names."""
    from medclip_jax import objectives

    return objectives.create(config, spec, rngs=rngs)


def train(
    config: Any,
    workdir: str | Path,
    *,
    data: Data | None = None,
    objective_factory: Callable[..., Objective] = create_objective,
) -> dict[str, float]:
    """Train, from scratch or from where this workdir stopped.

    Weights come from the workdir's own checkpoint if it has one, else from `config.initial_weights`,
    else from `config.seed`. On SIGTERM the step under way is finished and saved, then this returns.

    Args:
        config: a full config (see `training.config`).
        workdir: gets `config.json`, `metrics.jsonl`, `checkpoints/`, `tensorboard/`, and copies of what using
            the model takes (see `Workdir.keep_preparation`) where the data come from shards.
        data: instead of what `config.data` names.
        objective_factory: ``(config.objective, spec, rngs=...) -> Objective``.

    Returns:
        The metrics of the last step, evaluation included, also where nothing was left to do.

    Raises:
        NonFiniteError: a step was not finite and `config.stop_on_nan` is set.
        ValueError: a config that cannot work; the message says what to change.
    """
    workdir = Workdir(workdir)
    with _termination() as stopping:
        opened = data is None
        if opened:
            data = open_data(config.data)
            _check_evaluation(config)
        steps = total_steps(config, len(data.source))
        mesh = meshes.make_mesh(config.mesh)
        meshes.check_batch_size(config.batch_size, mesh)
        resuming = latest_step(workdir.path) is not None
        workdir.check_config(config, resuming=resuming)

        graphdef, params, variables = split(
            objective_factory(config.objective, data.spec, rngs=nnx.Rngs(config.seed))
        )
        optimizer = make_optimizer(config.optimizer, params, steps)
        if config.initial_weights.workdir and not resuming:
            params = load_initial_weights(config.initial_weights, params)
        if not resuming:
            params = _calibrated(graphdef, params, variables, config, data)
        state = meshes.put_state(initial_state(params, variables, optimizer, ema=config.ema.decay > 0), mesh)
        paths = trained_paths(optimizer, params)
        del params, variables
        workdir.write_config(config)
        if opened:
            _keep_preparation(workdir, config)
        with Checkpoints(
            workdir.path, keep=config.checkpoint.keep, asynchronous=config.checkpoint.asynchronous
        ) as checkpoints:
            counters: dict[str, float] = {}
            if resuming:
                state, saved = checkpoints.restore(state)
                counters = saved["counters"]
                _check_samples(saved["samples"], len(data.source))
            step_function = make_train_step(
                graphdef,
                optimizer,
                mesh,
                seed=config.seed,
                ema_decay=config.ema.decay,
                skip_nonfinite=not config.stop_on_nan,
            )
            run = _Run(config, workdir, data, mesh, graphdef, step_function, paths, steps, stopping)
            return run.loop(state, checkpoints, Clock(counters))


def _calibrated(graphdef: Any, params: Tree, variables: Tree, config: Any, data: Data) -> Tree:
    """Initial values that depend on data, from the run's first batch; see `Objective.calibrate`."""
    if merge(graphdef, params, variables).calibrate.__func__ is Objective.calibrate:
        return params
    from medclip_jax.pipeline import train_batches

    batches = train_batches(
        data.source, config.data, data.tokenizer, seed=config.seed, batch_size=config.batch_size
    )
    batch = next(batches)
    batches.close()

    def calibrate(params: Tree, batch: Batch) -> Tree:
        objective = merge(graphdef, params, variables)
        objective.calibrate(batch, jax.random.key(config.seed))
        return split(objective)[1]

    return jax.jit(calibrate)(params, jax.device_put(batch))


def _check_evaluation(config: Any) -> None:
    """Find out now, and not after the last step, that there is nothing to evaluate on."""
    from medclip_jax.shards.read import open_split

    if config.evaluation.evaluators:
        try:
            open_split(config.data.shards, config.evaluation.split, fields=())
        except ValueError as error:
            raise ValueError(f"config.evaluation.split={config.evaluation.split}: {error}") from None


def _keep_preparation(workdir: Workdir, config: Any) -> None:
    from medclip_jax.interop.text_weights import locate
    from medclip_jax.shards.read import open_shards

    text_folder = config.objective.get("text", {}).get("folder")
    workdir.keep_preparation(
        config.data.shards,
        tokenizer=config.data.tokenizer or open_shards(config.data.shards).tokenizer,
        text_encoder=locate(text_folder) if text_folder else None,
    )


def _check_samples(before: int, now: int) -> None:
    if before != now:
        raise ValueError(
            f"this run began on {before} training samples and now finds {now} in config.data.shards: give it "
            "the same shards, or a new --workdir with config.initial_weights.workdir set to this one"
        )


class _Run:
    """One start of a run; `loop` does the work."""

    def __init__(
        self,
        config: Any,
        workdir: Workdir,
        data: Data,
        mesh: jax.sharding.Mesh,
        graphdef: Any,
        step_function: StepFunction,
        paths: list[str],
        steps: int,
        stopping: threading.Event,
    ):
        self.config = config
        self.workdir = workdir
        self.data = data
        self.mesh = mesh
        self.graphdef = graphdef
        self.step_function = step_function
        self.paths = paths
        self.steps = steps
        self.stopping = stopping
        self.flops = 0.0
        self.logged = 0
        self.shown: dict[str, str] = {}

    def loop(self, state: TrainState, checkpoints: Checkpoints, clock: Clock) -> dict[str, float]:
        """Run the remaining steps; returns the metrics of the last."""
        from medclip_jax.pipeline import train_batches

        config = self.config
        start = self.logged = int(jax.device_get(state["step"]))
        last = self.workdir.forget_metrics_after(start)
        logs = Logs(self.workdir, config, start=start, steps=self.steps)
        batches = train_batches(
            self.data.source,
            config.data,
            self.data.tokenizer,
            seed=config.seed,
            batch_size=config.batch_size,
            start_step=start,
        )
        pending: _Pending | None = None
        try:
            if self._evaluation_due(start) and start and EVALUATED not in last:
                # The run was stopped between this step's checkpoint and the end of its evaluation.
                last |= self._evaluate(start, state, logs, clock)
            for step in range(start + 1, self.steps + 1):
                with clock.spend("input"):
                    batch = next(batches)
                if config.log.peak_tflops and not self.flops:
                    self.flops = self._count_flops(state, batch)
                # Whatever slips to or from the device unasked would make it wait: an error here.
                with jax.transfer_guard("disallow"):
                    state, metrics = self.step_function(state, meshes.put_batch(batch, self.mesh))
                    if pending:
                        last = self._finish(pending, logs, clock, checkpoints)
                pending = _Pending(step, metrics, batch["sample"])
                if step == start + 1:
                    jax.block_until_ready(metrics["loss"])
                    clock.started()
                stop = self.stopping.is_set()
                save = stop or step % config.checkpoint.every_steps == 0 or step == self.steps
                if save or self._evaluation_due(step):
                    # Nothing is saved before its numbers were seen to be finite.
                    last = self._finish(pending, logs, clock, checkpoints)
                    pending = None
                if save:
                    with clock.spend("save"):
                        checkpoints.save(state, self._record(clock))
                if stop:
                    logs.say(
                        f"SIGTERM: saved at step {step} of {self.steps}; the same command goes on from there"
                    )
                    break
                if self._evaluation_due(step):
                    last |= self._evaluate(step, state, logs, clock)
            with clock.spend("save"):
                checkpoints.wait()
            if getattr(self.data.tokenizer, "truncated", 0):
                logs.say(f"{self.data.tokenizer.summary()}; config.data.text_length is what they are cut to")
        finally:
            batches.close()
            logs.close()
        return last

    def _evaluation_due(self, step: int) -> bool:
        settings = self.config.evaluation
        if not settings.evaluators:
            return False
        return step == self.steps or bool(settings.every_steps and step % settings.every_steps == 0)

    def _record(self, clock: Clock) -> dict[str, Any]:
        return {
            "config": to_json(self.config),
            "counters": clock.counters(),
            "samples": len(self.data.source),
        }

    def _finish(
        self, pending: _Pending, logs: Logs, clock: Clock, checkpoints: Checkpoints
    ) -> dict[str, float]:
        """Fetch a step's metrics, look for NaN, log."""
        step, metrics, samples = pending
        detail = {name: metrics[name] for name in ("squares", "finite_samples")}
        fetched = jax.device_get({name: value for name, value in metrics.items() if name not in detail})
        scalars = {name: float(value) for name, value in fetched.items()}
        if not all(np.isfinite(list(scalars.values()))):
            message = describe(step, scalars | jax.device_get(detail), self.paths, samples)
            if message and self.config.stop_on_nan:
                logs.write(step, scalars)
                good = checkpoints.steps()[-1:] or ["none yet"]
                raise NonFiniteError(
                    f"{message}\nStopped. Last good checkpoint in {checkpoints.folder}: {good[0]}. Lower "
                    "config.optimizer.learning_rate, set config.optimizer.clip_norm, look at these samples, "
                    "or set config.stop_on_nan=False to skip such steps"
                )
            if message:
                logs.say(f"{message}\n  Its update was skipped.")
        if step % self.config.log.every_steps == 0 or step == self.steps:
            rates = clock.rates(step - self.logged, self.config.batch_size)
            self.logged = step
            if rates:
                self.shown = {"volumes/s": f"{rates['volumes_per_second']:.3g}"}
                self.shown["input"] = f"{rates['input_wait']:.0%}"
                if self.flops:
                    rates["utilization"] = utilization(
                        self.flops, rates["seconds_per_step"], self.mesh.size, self.config.log.peak_tflops
                    )
                    self.shown["utilization"] = f"{rates['utilization']:.1%}"
            scalars |= {**rates, "goodput": clock.goodput()}
            logs.write(step, scalars)
        logs.advance(loss=f"{scalars['loss']:.4f}", **self.shown)
        return scalars

    def _count_flops(self, state: TrainState, batch: Mapping[str, np.ndarray]) -> float:
        def forward(params: Any, variables: Any, batch: Any) -> Any:
            objective = merge(self.graphdef, params, variables)
            return objective.couple(objective.encode(batch, jax.random.key(0), train=True), batch)

        return count_flops(forward, state["params"], state["variables"], batch)

    def _evaluate(self, step: int, state: TrainState, logs: Logs, clock: Clock) -> dict[str, float]:
        from medclip_jax.evaluation.run import evaluate

        begin = time.perf_counter()
        with clock.spend("evaluation"):
            objective = merge(self.graphdef, averaged(state), state["variables"])
            found = evaluate(
                objective,
                self.config.evaluation.evaluators,
                shards=self.config.data.shards,
                split=self.config.evaluation.split,
                tokenizer=self.data.tokenizer,
                text_length=self.config.data.text_length,
                batch_size=self.config.evaluation.batch_size,
            )
        found = {**found, EVALUATED: time.perf_counter() - begin}
        logs.write(step, found)
        return found


class _Pending(NamedTuple):
    """A step that was handed to the device and whose numbers were not looked at yet."""

    step: int
    metrics: Metrics
    samples: np.ndarray


@contextmanager
def _termination() -> Iterator[threading.Event]:
    """An event that SIGTERM sets; the process then ends on its own terms."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)
