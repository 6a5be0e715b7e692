"""Small runs that tools start as forks of themselves, look at, and compare to the bit.

A start is a fork of a process that has imported everything and touched no device, so that it costs little.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import orbax.checkpoint as ocp

from medclip_jax import pipeline
from medclip_jax.cli import train as train_command  # noqa: F401  Imported once, here, for all starts.
from medclip_jax.cli.main import main as medclip
from medclip_jax.evaluation import run as evaluation  # noqa: F401
from medclip_jax.objectives import cardiac_clip  # noqa: F401
from medclip_jax.shards import read  # noqa: F401
from medclip_jax.training import goodput, loop, preemption  # noqa: F401
from medclip_jax.training.checkpoints import FOLDER, latest_step

STEPS = 20
PHASES = ("start", *goodput.BUCKETS[1:-1], "writing")
"""Where a fault may strike. "writing" comes after "checkpoint": the files are written in the background."""

WITHIN = {"start": 1.5, "compile": 1.0, "input": 0.02, "step": 0.2, "evaluation": 0.5, "checkpoint": 0.05,
          "writing": 0.15}  # fmt: skip
"""Seconds after a phase was entered within which the fault strikes."""

CLOCK = ("seconds", "volumes_per_second", "input_wait", "goodput", "utilization")
PATIENCE = 1800.0

CONFIG = f"""
from medclip_jax.objectives import cardiac_clip
from medclip_jax.training.config import base_config

def get_config():
    config = base_config()
    config.objective = cardiac_clip.default_config()
    config.objective.vision.update(patch=(8, 8, 8), width=24, depth=2, heads=2, dtype="float32")
    config.objective.text.update(width=24, depth=1, heads=2, dtype="float32")
    config.objective.embedding_width = 16
    config.objective.vision.augment.noise_hu = 20.0
    config.data.text.some_statements = 0.5
    config.data.text_length = 32
    config.batch_size = 8
    config.steps = {STEPS}
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 4
    config.optimizer.accumulate = 2
    config.ema.decay = 0.9
    config.checkpoint.every_steps = 5
    config.evaluation.every_steps = 10
    config.evaluation.batch_size = 8
    with config.unlocked():
        config.evaluation.evaluators = {{"zero_shot": {{"draws": 5}}}}
    config.log.update(every_steps=1, tensorboard=True, progress=False)
    return config
"""


class Start:
    """The processes of one start of a run, as forks of this one."""

    def __init__(
        self, folder: Path, workdir: Path, number: int, *, processes: int, devices: int, cold: bool = False
    ):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.marks, self.children, self.codes = [], [], {}
        self.phase = ["fork"] * processes
        for index in range(processes):
            reader, writer = os.pipe()
            child = os.fork()
            if not child:
                if processes > 1:
                    os.environ["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{port}"
                    os.environ |= {"JAX_NUM_PROCESSES": str(processes), "JAX_PROCESS_ID": str(index)}
                _leave(partial(_train, folder, workdir, number, index, devices, writer, cold))
            os.close(writer)
            os.set_blocking(reader, False)
            self.marks.append(reader)
            self.children.append(child)

    def alive(self) -> list[int]:
        """Indices of the processes that still run."""
        for index, child in enumerate(self.children):
            if index not in self.codes:
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    self.codes[index] = os.waitstatus_to_exitcode(status)
        return [index for index in range(len(self.children)) if index not in self.codes]

    def look(self) -> list[str]:
        """The phases that the first process entered since the last look."""
        found = []
        for index, reader in enumerate(self.marks):
            try:
                entered = [PHASES[mark] for mark in os.read(reader, 4096)]
            except BlockingIOError:
                continue
            if entered:
                self.phase[index] = entered[-1]
            if index == 0:
                found = entered
        return found

    def wait_for(self, phase: str, times: int) -> bool:
        """Until the first process has entered a phase so often; False where it ended before."""
        while times > 0:
            times -= self.look().count(phase)
            if times > 0:
                if 0 not in self.alive():
                    return False
                time.sleep(0.002)
        return True

    def end(self, limit: float = PATIENCE) -> float:
        """Wait for all; returns the seconds it took. Kills what takes longer, which shows in `codes`."""
        begin = time.monotonic()
        while alive := self.alive():
            if time.monotonic() - begin > limit:
                for index in alive:
                    os.kill(self.children[index], signal.SIGKILL)
            self.look()
            time.sleep(0.01)
        for reader in self.marks:
            os.close(reader)
        return time.monotonic() - begin


def _leave(work: Callable[[], int]) -> None:
    """Do the work of a fork and end it, as an interpreter ends."""
    code = 70
    try:
        code = work()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _train(
    folder: Path, workdir: Path, number: int, index: int, devices: int, writer: int, cold: bool
) -> int:
    """`medclip train` with a record of the samples that it is given and of the phases that it enters."""
    records = records_of(workdir)
    records.mkdir(parents=True, exist_ok=True)
    log = os.open(records / f"log-{number}-{index}.txt", os.O_CREAT | os.O_WRONLY, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    jax.config.update("jax_num_cpu_devices", devices)
    # An empty cache makes the compilation long enough to be hit.
    cache = tempfile.mkdtemp(dir=folder) if cold else folder / "cache"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    batches, spend, enter = pipeline.train_batches, goodput.Clock.spend, preemption.Preemption.__enter__

    def mark(phase: str) -> None:
        if phase in PHASES:
            os.write(writer, bytes([PHASES.index(phase)]))

    def recorded(*arguments: Any, start_step: int = 0, **named: Any) -> Iterator[Any]:
        with (records / f"samples-{number}-{index}.jsonl").open("w") as lines:
            given = batches(*arguments, start_step=start_step, **named)
            for step, batch in enumerate(given, start_step + 1):
                lines.write(
                    json.dumps({"step": step, "process": index, "ids": batch["sample"].tolist()}) + "\n"
                )
                lines.flush()
                yield batch

    @contextmanager
    def marked(self: goodput.Clock, bucket: str) -> Iterator[None]:
        mark(bucket)
        with spend(self, bucket):
            yield
        mark("writing" if bucket == "checkpoint" else "step")

    def entered(self: preemption.Preemption) -> preemption.Preemption:
        found = enter(self)
        mark("start")
        return found

    pipeline.train_batches, goodput.Clock.spend = recorded, marked
    preemption.Preemption.__enter__ = entered
    arguments = ["--config", str(folder / "config.py"), "--workdir", str(workdir)]
    return medclip(["train", *arguments, f"--config.data.shards={folder / 'shards'}"])


def records_of(workdir: Path) -> Path:
    """Where the logs and samples of a run are kept: not on its disk, which may be full."""
    return workdir.with_name(f"{workdir.name}.records")


def clear(workdir: Path) -> None:
    """Remove a run and its records."""
    for folder in (workdir, records_of(workdir)):
        shutil.rmtree(folder, ignore_errors=True)


def said(workdir: Path, number: int) -> str:
    """What the first process of a start logged."""
    return (records_of(workdir) / f"log-{number}-0.txt").read_text(errors="replace")


def _in_fork(work: Callable[[], Any]) -> Any:
    """The JSON that `work` returns, made in a fork, so that this process touches no device."""
    with tempfile.NamedTemporaryFile("r") as file:
        child = os.fork()
        if not child:
            _leave(lambda: Path(file.name).write_text(json.dumps(work())) * 0)
        _, status = os.waitpid(child, 0)
        if status:
            raise SystemExit(f"a fork ended with {os.waitstatus_to_exitcode(status)}: see above")
        return json.load(file)


def make_data(folder: Path) -> None:
    """Generate and prepare the phantoms, once for a folder."""
    from medclip_jax.corpora import phantom
    from medclip_jax.corpora.folder import folder as corpus
    from medclip_jax.shards.prepare import default_key, prepare
    from medclip_jax.shards.settings import PrepareSettings

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.py").write_text(CONFIG)
    shards = folder / "shards"
    if (shards / "prepare.json").exists():
        return
    settings = PrepareSettings(shape=(16, 16, 16), spacing=(14.0, 14.0, 14.0), vocabulary_size=256)

    def work() -> None:
        phantom.write(folder / "phantoms", 48, seed=0, workers=2)
        prepare(corpus(folder / "phantoms" / "studies.csv"), shards, settings, key=default_key(shards))

    _in_fork(work)


def digest(workdir: Path) -> dict[str, Any]:
    """What must be equal: every array of the last checkpoint, the metrics, the samples of every start."""

    def arrays() -> dict[str, str]:
        step = latest_step(workdir)
        folder = workdir / FOLDER / str(step)
        found = {"step": str(step)}
        for name in ("params", "variables", "optimizer", "ema"):
            if (folder / name).is_dir():
                reader = ocp.PyTreeCheckpointHandler()
                # As NumPy's: the devices that saved them need not be here.
                kinds = jax.tree.map(
                    lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(folder / name).tree
                )
                tree = reader.restore(folder / name, args=ocp.args.PyTreeRestore(restore_args=kinds))
                for path, leaf in jax.tree.leaves_with_path(tree):
                    leaf = np.asarray(leaf)
                    content = str((leaf.shape, leaf.dtype)).encode() + leaf.tobytes()
                    found[name + jax.tree_util.keystr(path)] = hashlib.sha256(content).hexdigest()
        return found

    samples = {}
    for file in sorted(records_of(workdir).glob("samples-*.jsonl")):
        for line in file.read_text().splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # cut short by a kill
            key = f"{record['step']}/{record['process']}"
            samples.setdefault(key, set()).add(tuple(record["ids"]))
    # Read ahead, but never trained on.
    samples = {key: sorted(ids) for key, ids in samples.items() if int(key.split("/")[0]) <= STEPS}
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in line.items() if not any(word in k for word in CLOCK)} for line in lines]
    return {"arrays": _in_fork(arrays), "metrics": metrics, "samples": samples}


def compare(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """Equality bit for bit, and what differs."""
    result: dict[str, Any] = {name: found[name] == expected[name] for name in expected}
    result["arrays_compared"] = len(found["arrays"])
    for name in expected:
        if not result[name]:
            a, b = found[name], expected[name]
            keys = range(max(len(a), len(b))) if isinstance(a, list) else sorted(set(a) | set(b))
            get = (lambda x, k: x[k] if k < len(x) else None) if isinstance(a, list) else dict.get
            result[f"{name}_differ"] = [(k, get(a, k), get(b, k)) for k in keys if get(a, k) != get(b, k)][:3]
    return result


def untouched(folder: Path, processes: int, devices: int) -> tuple[dict[str, Any], float]:
    """The run that nobody touches, and its seconds."""
    workdir = folder / f"untouched-{processes}x{devices}"
    if not (workdir / "seconds").exists():
        clear(workdir)
        for _ in range(2):  # the second finds the compilation cache filled, and tells the seconds
            clear(workdir)
            start = Start(folder, workdir, 0, processes=processes, devices=devices)
            seconds = start.end()
            if any(start.codes.values()):
                raise SystemExit(f"the untouched run failed with {start.codes}: see {records_of(workdir)}")
        (workdir / "seconds").write_text(str(seconds))
    return digest(workdir), float((workdir / "seconds").read_text())
