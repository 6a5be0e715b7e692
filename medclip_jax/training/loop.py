"""The one training loop. It knows batches, terms and parameters, and nothing of any system."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from medclip_jax.objectives.base import DataSpec, Objective
from medclip_jax.training import mesh as meshes
from medclip_jax.training.checkpoints import Checkpoints, latest_step
from medclip_jax.training.config import to_json, total_steps
from medclip_jax.training.initial import load_initial_weights
from medclip_jax.training.logs import Logs
from medclip_jax.training.nonfinite import NonFiniteError, describe
from medclip_jax.training.optimizer import make_optimizer
from medclip_jax.training.state import TrainState, averaged, initial_state, merge, split
from medclip_jax.training.step import make_train_step, trained_paths
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


def open_data(config: Any) -> Data:
    """Open the shards and the tokenizer that `config.data` names.

    Raises:
        ValueError: `config.data.shards` is empty.
    """
    from medclip_jax.shards.read import open_shards, open_split

    if not config.shards:
        raise ValueError("config.data.shards is empty: give a folder written by `medclip prepare`")
    info = open_shards(config.shards)
    folder = config.tokenizer or info.tokenizer
    tokenizer = None
    if folder:
        from medclip_jax.reports.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(folder)
    fields = ["volume", "study", "findings", "labels", *config.text, *(["organs"] if info.organs else [])]
    spec = DataSpec(
        shape=tuple(info.shape),
        spacing=tuple(info.spacing),
        findings=tuple(info.findings),
        organs=tuple(info.organs),
        vocabulary_size=tokenizer.vocabulary_size if tokenizer else 0,
        mask_token=tokenizer.mask if tokenizer else 0,
        pad_token=tokenizer.pad if tokenizer else 0,
    )
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
        workdir: gets `config.json`, `metrics.jsonl`, `checkpoints/` and `tensorboard/`.
        data: instead of what `config.data` names.
        objective_factory: ``(config.objective, spec, rngs=...) -> Objective``.

    Returns:
        The metrics of the last step, evaluation included ({} where nothing was left to do).

    Raises:
        NonFiniteError: a step was not finite and `config.stop_on_nan` is set.
        ValueError: a config that cannot work; the message says what to change.
    """
    workdir = Workdir(workdir)
    data = data or open_data(config.data)
    steps = total_steps(config, len(data.source))
    mesh = meshes.make_mesh(config.mesh)
    meshes.check_batch_size(config.batch_size, mesh)
    resuming = latest_step(workdir.path) is not None

    graphdef, params, variables = split(
        objective_factory(config.objective, data.spec, rngs=nnx.Rngs(config.seed))
    )
    optimizer = make_optimizer(config.optimizer, params, steps)
    workdir.write_config(config, resuming=resuming)
    if config.initial_weights.workdir and not resuming:
        params = load_initial_weights(config.initial_weights, params)
    state = meshes.put_state(initial_state(params, variables, optimizer, ema=config.ema.decay > 0), mesh)
    paths = trained_paths(optimizer, params)
    del params, variables
    step_function = make_train_step(
        graphdef,
        optimizer,
        mesh,
        seed=config.seed,
        ema_decay=config.ema.decay,
        skip_nonfinite=not config.stop_on_nan,
    )
    with Checkpoints(
        workdir.path, keep=config.checkpoint.keep, asynchronous=config.checkpoint.asynchronous
    ) as checkpoints:
        restored = checkpoints.restore(state)
        counters = {"seconds": 0.0, "input_seconds": 0.0, "starts": 0}
        if restored is not None:
            state, run = restored
            counters = run["counters"]
        counters["starts"] += 1
        run = _Run(config, workdir, data, mesh, graphdef, step_function, paths, checkpoints, counters, steps)
        return run.loop(state)


class _Run(NamedTuple):
    """What stays the same while a run goes on (but for `counters`)."""

    config: Any
    workdir: Workdir
    data: Data
    mesh: jax.sharding.Mesh
    graphdef: Any
    step_function: Any
    paths: list[str]
    checkpoints: Checkpoints
    counters: dict[str, Any]
    steps: int

    def loop(self, state: TrainState) -> dict[str, float]:
        """Run the remaining steps."""
        from medclip_jax.pipeline import train_batches

        config = self.config
        start = int(jax.device_get(state["step"]))
        self.workdir.forget_metrics_after(start)
        last: dict[str, float] = {}
        if start >= self.steps:
            logging.info("%s is complete: %d of %d steps", self.workdir.path, start, self.steps)
            return last
        batches = train_batches(
            self.data.source,
            config.data,
            self.data.tokenizer,
            seed=config.seed,
            batch_size=config.batch_size,
            start_step=start,
        )
        logs = Logs(self.workdir, config, start=start, steps=self.steps)
        clock = _Clock(config.batch_size)
        pending: tuple[int, Any, np.ndarray] | None = None
        try:
            with _termination() as stopping:
                for step in range(start + 1, self.steps + 1):
                    with clock.waiting():
                        batch = next(batches)
                    # Anything that slips to or from the device unasked would cost a synchronisation.
                    with jax.transfer_guard("disallow"):
                        state, metrics = self.step_function(state, meshes.put_batch(batch, self.mesh))
                        if pending:
                            last = self._finish(*pending, logs, clock)
                    pending = (step, metrics, batch["sample"])
                    stop = stopping.is_set()
                    save = step % config.checkpoint.every_steps == 0 or step == self.steps or stop
                    every = config.evaluation.every_steps
                    evaluate = (every and step % every == 0) or step == self.steps
                    if save or (evaluate and not stop):
                        # Nothing is saved before its numbers were seen to be finite.
                        last = self._finish(*pending, logs, clock)
                        pending = None
                    if save:
                        self._save(state, clock)
                    if evaluate and not stop:
                        last |= self._evaluate(step, state, logs, clock)
                    if stop:
                        logs.say(f"SIGTERM: saved at step {step} of {self.steps}")
                        break
            self.checkpoints.wait()
        finally:
            batches.close()
            logs.close()
        return last

    def _finish(
        self, step: int, metrics: Any, samples: np.ndarray, logs: Logs, clock: _Clock
    ) -> dict[str, float]:
        """Fetch a step's metrics, look for NaN, log."""
        squares = metrics.pop("squares")
        scalars = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not all(np.isfinite(list(scalars.values()))):
            message = describe(step, {**scalars, "squares": jax.device_get(squares)}, self.paths, samples)
            if message and self.config.stop_on_nan:
                logs.write(step, scalars)
                raise NonFiniteError(
                    f"{message}\nStopped; the last good checkpoint in {self.checkpoints.folder} is at step "
                    f"{(self.checkpoints.steps() or ['none'])[-1]}. Lower config.optimizer.learning_rate, set "
                    "config.optimizer.clip_norm, look at these samples, or set config.stop_on_nan=False to "
                    "skip such steps"
                )
            if message:
                logs.say(f"{message}\n  skipped")
        clock.tick()
        logs.advance(loss=f"{scalars['loss']:.4f}", **clock.shown())
        if step % self.config.log.every_steps == 0 or step == self.steps:
            scalars |= clock.rates()
            logs.write(step, scalars)
        return scalars

    def _save(self, state: TrainState, clock: _Clock) -> None:
        seconds, waited = clock.take()
        self.counters["seconds"] += seconds
        self.counters["input_seconds"] += waited
        with clock.paused():
            self.checkpoints.save(state, {"config": to_json(self.config), "counters": self.counters})

    def _evaluate(self, step: int, state: TrainState, logs: Logs, clock: _Clock) -> dict[str, float]:
        settings = self.config.evaluation
        if not settings.evaluators:
            return {}
        from medclip_jax.evaluation.run import evaluate

        with clock.paused():
            objective = merge(self.graphdef, averaged(state), state["variables"])
            found = evaluate(
                objective,
                settings.evaluators,
                shards=self.config.data.shards,
                split=settings.split,
                tokenizer=self.data.tokenizer,
            )
            logs.write(step, found)
        return dict(found)


class _Clock:
    """Seconds and steps since the last log line, without evaluation and saving."""

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self.begin = self.saved = time.perf_counter()
        self.steps, self.waited, self.waited_since_save = 0, 0.0, 0.0
        self.last: dict[str, float] = {}

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a wait for input."""
        begin = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begin
        self.waited_since_save += time.perf_counter() - begin

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is not training."""
        begin = time.perf_counter()
        yield
        self.begin += time.perf_counter() - begin
        self.saved += time.perf_counter() - begin

    def tick(self) -> None:
        """One step is done."""
        self.steps += 1

    def take(self) -> tuple[float, float]:
        """Seconds of training, and of waiting for input, since the last call."""
        now = time.perf_counter()
        seconds, waited = now - self.saved, self.waited_since_save
        self.saved, self.waited_since_save = now, 0.0
        return seconds, waited

    def shown(self) -> dict[str, str]:
        """The last rates, for the progress bar."""
        return {"volumes/s": f"{self.last['volumes_per_second']:.1f}"} if self.last else {}

    def rates(self) -> dict[str, float]:
        """Rates since the last call."""
        seconds = max(time.perf_counter() - self.begin, 1e-9)
        self.last = {
            "volumes_per_second": self.steps * self.batch_size / seconds,
            "input_wait": min(1.0, self.waited / seconds),
        }
        self.begin, self.steps, self.waited = time.perf_counter(), 0, 0.0
        return self.last


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
