"""The one training loop. It knows batches, terms and parameters, and nothing of any system."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from medclip_jax.fields import Layout
from medclip_jax.objectives import resolve
from medclip_jax.objectives.base import Objective
from medclip_jax.parameters import merge
from medclip_jax.training import distributed
from medclip_jax.training import mesh as meshes
from medclip_jax.training.best import Best
from medclip_jax.training.checkpoints import Checkpoints
from medclip_jax.training.compilation import use_compilation_cache
from medclip_jax.training.config import to_json, total_steps
from medclip_jax.training.data import Data, identify, open_data
from medclip_jax.training.distributed import Processes
from medclip_jax.training.flops import count_flops, utilization
from medclip_jax.training.goodput import Clock
from medclip_jax.training.lock import WorkdirLock
from medclip_jax.training.logs import Logs
from medclip_jax.training.nonfinite import NonFiniteError, describe
from medclip_jax.training.preemption import Preemption
from medclip_jax.training.settle import settle
from medclip_jax.training.start import (
    Model,
    check_evaluation,
    check_shared,
    find_beginning,
    keep_preparation,
    make_model,
    restored,
)
from medclip_jax.training.state import TrainState, averaged
from medclip_jax.training.step import Metrics
from medclip_jax.training.workdir import Workdir

if TYPE_CHECKING:
    from medclip_jax.evaluation.embedder import Embedder

EVALUATED = "evaluation_seconds"
"""Stands in the metrics of a step that was evaluated."""

COMPILE_SECONDS = 1800.0
"""By how much one process may compile longer than another."""


def train(
    config: Any,
    workdir: str | Path,
    *,
    data: Data | None = None,
    objective_class: type[Objective] | None = None,
) -> dict[str, float]:
    """Train, from scratch or from where this workdir stopped.

    Weights come from the workdir's own checkpoint if it has one, else from `config.checkpoint.resume`, else
    from `config.initial_weights`, else from `config.seed`. On SIGTERM, to any process, the step under way is
    finished and saved, then this returns.

    With `config.evaluation.best.metric`, the checkpoint that scores best on the evaluation split is kept, and
    is the one that is used afterwards; with `patience`, the run ends after as many evaluations without a
    better one.

    Where several processes were started (`training.distributed.start`), all of them call this alike.

    Args:
        config: a full config (see `training.config`).
        workdir: gets `config.json`, `metrics.jsonl`, `checkpoints/`, `tensorboard/`, and copies of what using
            the model takes (see `Workdir.keep_preparation`) where the data come from shards.
        data: instead of what `config.data` names.
        objective_class: instead of the one that `config.objective.name` names.

    Returns:
        The metrics of the last step, evaluation included, also where nothing was left to do.

    Raises:
        NonFiniteError: a step was not finite and `config.stop_on_nan` is set.
        ValueError: a config that cannot work, or data that are not those of the run; the message says what
            to change. Nothing in the workdir was changed then.
        WorkdirInUse: another run is at work there.
    """
    use_compilation_cache()
    workdir = Workdir(workdir)
    processes = distributed.processes()
    with WorkdirLock(workdir.path, holding=processes.first) as lock, Preemption() as preemption:
        check_shared(workdir, processes)
        objective_class = objective_class or resolve(config.objective.name)[1]
        fields = objective_class.batch_fields(config.objective)
        opened = data is None
        if opened:
            data = open_data(config.data, fields)
            check_evaluation(config)
        # Computed with from here on; `config.json` keeps what was said.
        said, config = config, settle(config, data.spec, len(data.source))
        steps = total_steps(config, len(data.source))
        clock = Clock(workdir=workdir.path if processes.first else None, steps=steps)
        layout = Layout(fields, data.spec, config.data, data.tokenizer, definitions=data.definitions)
        beginning = find_beginning(said, workdir, data, processes)
        with clock:
            model, state = make_model(
                config, data, layout, objective_class, steps=steps, beginning=beginning, processes=processes
            )
            settings = config.checkpoint
            with Checkpoints(
                workdir.path, keep=settings.keep, asynchronous=settings.asynchronous
            ) as checkpoints:
                if beginning.is_checkpoint:
                    state, counters = restored(checkpoints, state, beginning, config)
                    clock.resume(counters, int(jax.device_get(state["step"])))
                else:
                    clock.resume({})
                # What can refuse this start has had its say: only now the workdir is written to.
                if processes.first:
                    workdir.write_config(said)
                    if opened:
                        keep_preparation(workdir, config)
                run = _Run(
                    config,
                    workdir,
                    lock,
                    data,
                    layout,
                    processes,
                    model,
                    steps,
                    preemption,
                    checkpoints,
                    clock,
                )
                return run.loop(state)


class _Stopped(Exception):
    """All processes agreed to stop in the middle of an evaluation."""


class _Run:
    """One start of a run; `loop` does the work."""

    def __init__(
        self,
        config: Any,
        workdir: Workdir,
        lock: WorkdirLock,
        data: Data,
        layout: Layout,
        processes: Processes,
        model: Model,
        steps: int,
        preemption: Preemption,
        checkpoints: Checkpoints,
        clock: Clock,
    ):
        self.config = config
        self.workdir = workdir
        self.lock = lock
        self.data = data
        self.layout = layout
        self.processes = processes
        self.model = model
        self.steps = steps
        self.preemption = preemption
        self.checkpoints = checkpoints
        self.clock = clock
        self.identity = identify(data)
        self.embedder: Embedder | None = None
        self.flops = 0.0
        self.logged = 0
        self.shown: dict[str, str] = {}
        self.best = Best(config.evaluation.best)

    def loop(self, state: TrainState) -> dict[str, float]:
        """Run the remaining steps; returns the metrics of the last."""
        from medclip_jax.pipeline import train_batches

        config = self.config
        start = step = self.logged = int(jax.device_get(state["step"]))
        last = self.workdir.metrics_at(start)
        # The first process knows for all: its file is the one that counts.
        evaluated = distributed.agree(self.processes.first and EVALUATED in last)
        if self.processes.first:
            self.workdir.forget_metrics_after(start)
        self.best.recall(self.workdir, start, self.checkpoints.steps())
        self.checkpoints.mark_best(self.best.step)
        logs = Logs(self.workdir, config, start=start, steps=self.steps, writing=self.processes.first)
        batches = train_batches(
            self.data.source,
            self.layout,
            seed=config.seed,
            batch_size=config.batch_size,
            start_step=start,
            process_index=self.processes.index,
            process_count=self.processes.count,
        )
        everywhere = meshes.replicated(self.model.mesh)
        key = jax.jit(lambda: jax.random.key(config.seed), out_shardings=everywhere)()
        advance: Callable[..., tuple[TrainState, Metrics]] | None = None
        pending: _Pending | None = None
        try:
            if self._evaluation_due(start) and start and not evaluated:
                # The run was stopped between this step's checkpoint and the end of its evaluation.
                last |= self._evaluate(start, state, logs)
            while step < self.steps and not self.best.exhausted:
                self.lock.check()
                with self.clock.spend("input"):
                    batch = next(batches)
                placed = meshes.put_batch(batch, self.model.mesh)
                if advance is None:
                    # Compiling cannot be broken off: ask before, too, so that stopping is not put off by it.
                    if self.preemption.agreed(step):
                        raise _Stopped
                    advance = self._compile(state, placed, key)
                    if self.preemption.agreed(step):
                        raise _Stopped
                    self.clock.started()
                # Whatever slips to or from the device unasked would make it wait: an error here.
                with jax.transfer_guard("disallow"):
                    state, metrics = advance(state, placed, key)
                    if pending:
                        last = self._finish(pending, logs)
                step += 1
                self.clock.at(step)
                pending = _Pending(step, metrics, placed["sample"])
                stop = self.preemption.agreed(step)
                save = stop or step % config.checkpoint.every_steps == 0 or step == self.steps
                # The best evaluation's weights must be there to be kept.
                save |= self.best.active and self._evaluation_due(step)
                if save or self._evaluation_due(step):
                    # Nothing is saved before its numbers were seen to be finite.
                    last = self._finish(pending, logs)
                    pending = None
                if stop:
                    raise _Stopped
                if save:
                    self._save(state)
                if self._evaluation_due(step):
                    last |= self._evaluate(step, state, logs)
            if self.best.exhausted:
                self.clock.finish_early()
                logs.say(
                    f"stopped early after step {step} of {self.steps}: {self.best.describe()}, and none of "
                    f"the {self.best.since} evaluations after it was better"
                )
            if getattr(self.data.tokenizer, "truncated", 0):
                logs.say(f"{self.data.tokenizer.summary()}; config.data.text_length is what they are cut to")
        except _Stopped:
            self.clock.interrupted()
            self._save(state)
            logs.say(
                f"stopped on request: saved at step {step} of {self.steps}; the same command resumes there"
            )
        finally:
            batches.close()
            logs.close()
        with self.clock.spend("checkpoint"):
            self.checkpoints.wait()
        return last

    def _save(self, state: TrainState) -> None:
        self.lock.check()
        with self.clock.spend("checkpoint"):
            run = {
                "config": to_json(self.config),
                "counters": self.clock.counters(),
                **self.identity,
            }
            self.checkpoints.save(state, run)

    def _compile(
        self, state: TrainState, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> Callable[..., tuple[TrainState, Metrics]]:
        """Compile the step on its own, so that it is counted as such and a signal is heard in between."""
        if self.config.log.peak_tflops:
            self.flops = self._count_flops(state, batch)
        with self.clock.spend("compile"):
            compiled = self.model.step.lower(state, batch, key).compile()
            # Whoever is done first waits here, where there is time, and not in a collective operation.
            distributed.barrier("the first step", timeout=COMPILE_SECONDS)
            return compiled

    def _evaluation_due(self, step: int) -> bool:
        settings = self.config.evaluation
        if not settings.evaluators and not settings.protocols:
            return False
        return step == self.steps or bool(settings.every_steps and step % settings.every_steps == 0)

    def _finish(self, pending: _Pending, logs: Logs) -> dict[str, float]:
        """Fetch a step's metrics, look for NaN, log. They are the same in all processes."""
        step, metrics, samples = pending
        detail = {name: metrics[name] for name in ("squares", "finite_samples")}
        fetched = jax.device_get({name: value for name, value in metrics.items() if name not in detail})
        scalars = {name: float(value) for name, value in fetched.items()}
        if not all(np.isfinite(list(scalars.values()))):
            ids = jax.device_get(
                jax.jit(lambda x: x, out_shardings=meshes.replicated(self.model.mesh))(samples)
            )
            message = describe(step, scalars | jax.device_get(detail), self.model.trained, ids)
            if message and self.config.stop_on_nan:
                logs.write(step, scalars)
                good = self.checkpoints.steps()[-1:] or ["none yet"]
                raise NonFiniteError(
                    f"{message}\nStopped. Last good checkpoint in {self.checkpoints.folder}: {good[0]}. "
                    "Lower config.optimizer.learning_rate, set config.optimizer.clip_norm, look at these "
                    "samples, or set config.stop_on_nan=False to skip such steps"
                )
            if message:
                logs.say(f"{message}\n  Its update was skipped.")
        if step % self.config.log.every_steps == 0 or step == self.steps:
            rates = self.clock.rates(step - self.logged, self.config.batch_size)
            self.logged = step
            if rates:
                self.shown = {"volumes/s": f"{rates['volumes_per_second']:.3g}"}
                self.shown["input"] = f"{rates['input_wait']:.0%}"
                if self.flops:
                    devices, peak = self.model.mesh.size, self.config.log.peak_tflops
                    rates["utilization"] = utilization(self.flops, rates["seconds_per_step"], devices, peak)
                    self.shown["utilization"] = f"{rates['utilization']:.1%}"
            scalars |= {**rates, "goodput": self.clock.goodput()}
            logs.write(step, scalars)
        logs.advance(loss=f"{scalars['loss']:.4f}", **self.shown)
        return scalars

    def _count_flops(self, state: TrainState, batch: Mapping[str, jax.Array]) -> float:
        def forward(params: Any, variables: Any, batch: Any) -> Any:
            objective = merge(self.model.graphdef, params, variables)
            return objective.couple(objective.encode(batch, jax.random.key(0), train=True), batch)

        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
            (state["params"], state["variables"], dict(batch)),
        )
        return count_flops(forward, *shapes)

    def _evaluate(self, step: int, state: TrainState, logs: Logs) -> dict[str, float]:
        """Score the model; every process takes part, and all get the same numbers."""
        from medclip_jax.evaluation.embedder import Embedder
        from medclip_jax.evaluation.presets import find_protocols, plan_of
        from medclip_jax.evaluation.run import evaluate
        from medclip_jax.shards.read import open_configured

        def poll() -> None:
            if self.preemption.agreed(step):
                raise _Stopped

        begin = time.perf_counter()
        with self.clock.spend("evaluation"):
            objective = merge(self.model.graphdef, averaged(state))
            if self.embedder is None:
                # One for all evaluations of the run: it compiles once.
                self.embedder = Embedder(
                    objective,
                    self.data.spec,
                    self.config.data,
                    self.data.tokenizer,
                    batch_size=self.config.evaluation.batch_size,
                    progress=self.config.log.progress and self.processes.first,
                    objective_config=self.config.objective,
                )
            self.embedder.update(objective)
            self.embedder.between = poll
            settings, shards = self.config.evaluation, self.config.data.shards
            try:
                found = evaluate(
                    self.embedder,
                    dict(settings.evaluators.items()) | plan_of(find_protocols(settings.protocols)),
                    # Data that were handed over in memory have no folder.
                    shards=open_configured(self.config.data) if shards else shards,
                    split=settings.split,
                )
            finally:
                self.embedder.update(None)  # the next step gives the parameters' memory to new ones
        is_best = self.best.active and self.best.see(step, found)
        found = {**found, EVALUATED: time.perf_counter() - begin}
        logs.write(step, found)
        if is_best:
            self.checkpoints.mark_best(step)
        return found


class _Pending(NamedTuple):
    """A step that was handed to the device and whose numbers were not looked at yet.

    Attributes:
        step: batches completed, this one included.
        metrics: on the device.
        samples: (B,) record indices of the full batch, over all processes, on the device.
    """

    step: int
    metrics: Metrics
    samples: jax.Array
