"""Stop training at random moments, start it again, and compare with the run that nobody touched.

    python tools/bench_faults.py kill --times 100             kill -9, one process
    python tools/bench_faults.py kill --processes 2           kill -9 of one of two processes
    python tools/bench_faults.py term --times 30              SIGTERM
    python tools/bench_faults.py layouts --layouts 1x8 1x4 1x1
                                                              other processes x devices after each stop
    python tools/bench_faults.py disk --times 20              a disk that is full (root: it mounts small ones)
    python tools/bench_faults.py double --times 20            a second start beside the first

It generates phantoms, prepares them, and trains Cardiac-CLIP on them by the code of `medclip train`. A start
is a fork of this process, which has imported everything and touched no device, so that it costs little.
A moment is drawn over the whole time of a run, or within a phase that is drawn first: start, compile, input,
step, evaluation, checkpoint, or the writing behind it. Several faults hit the same run one after
the other (`--chain`), until it finishes. Prints one JSON line a fault and a run, then the sums.
"""

from __future__ import annotations

import argparse
import atexit
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import orbax.checkpoint as ocp
from tqdm import tqdm

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
DISK_BYTES = 16 << 20
"""Of the small disk: a few checkpoints."""

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


def strike(
    start: Start, args: argparse.Namespace, rng: random.Random, seconds: float
) -> dict[str, Any] | None:
    """One fault at a random moment; None where the run ended before."""
    aim = rng.choice(PHASES) if rng.random() < args.aimed else "any"
    if args.fault == "term" and not start.wait_for("start", 1):
        return None  # before that, nothing is there to be saved
    if aim == "any":
        time.sleep(rng.uniform(0.0, seconds))
    else:
        often = {"step": 6, "input": 6, "checkpoint": 2, "writing": 2, "evaluation": 2}.get(aim, 1)
        already = args.fault == "term" and aim == "start"
        if not already and not start.wait_for(aim, rng.randint(1, often)):
            return None
        time.sleep(rng.uniform(0.0, WITHIN[aim]))
    start.look()
    alive = start.alive()
    if len(alive) < len(start.children):
        return None
    everyone = args.fault == "term" and rng.random() < 0.5
    victims = alive if everyone else [rng.choice(alive)]
    phase = start.phase[victims[0]]
    for victim in victims:
        os.kill(start.children[victim], signal.SIGKILL if args.fault == "kill" else signal.SIGTERM)
    taken = start.end(args.limit if args.fault == "term" else PATIENCE)
    return {"fault": args.fault, "aim": aim, "phase": phase, "victims": victims, "codes": start.codes,
            "seconds_to_end": round(taken, 2)}  # fmt: skip


def faults(args: argparse.Namespace) -> int:
    """Strike `args.times` times, in runs of up to `args.chain` faults; returns how many things went wrong."""
    rng = random.Random(args.seed)
    expected, seconds = untouched(args.folder, args.processes, args.devices)
    print(json.dumps({"untouched_seconds": round(seconds, 2), "steps": STEPS, **vars_of(args)}), flush=True)
    struck = run = wrong = missed = 0
    longest = 0.0
    phases: dict[str, int] = {}
    with tqdm(total=args.times, unit="fault", mininterval=5) as bar:
        while struck < args.times:
            workdir = args.folder / f"{args.fault}-{args.processes}x{args.devices}-{args.seed}-{run}"
            clear(workdir)
            begun = struck
            for number in range(args.chain + 1):
                cold = rng.random() < args.cold
                start = Start(args.folder, workdir, number, processes=args.processes, devices=args.devices,
                              cold=cold)  # fmt: skip
                fault = None
                if number < args.chain and struck < args.times:
                    fault = strike(start, args, rng, seconds)
                if fault is None:
                    start.end()
                    missed += number < args.chain
                    break
                struck += 1
                bar.update()
                phases[fault["phase"]] = phases.get(fault["phase"], 0) + 1
                fault |= {"run": run, "start": number, "checkpoint": latest_step(workdir)}
                beat = goodput.read_heartbeat(workdir)
                if args.fault == "term":
                    longest = max(longest, fault["seconds_to_end"])
                    fault["ok"] = not any(start.codes.values()) and beat["step"] == fault["checkpoint"]
                    wrong += not fault["ok"]
                print(json.dumps(fault), flush=True)
            result = {"run": run, "faults": struck - begun, "codes": start.codes}
            if not any(start.codes.values()):
                result |= compare(digest(workdir), expected)
                beat = goodput.read_heartbeat(workdir)
                result["starts"] = beat["counters"]["starts"]
                result["lost_seconds"] = round(beat["counters"]["lost"], 2)
            good = all(result.get(name) for name in expected)
            wrong += not good
            print(json.dumps({**result, "equal": good}), flush=True)
            if good:
                clear(workdir)
            run += 1
    sums = {"faults": struck, "runs": run, "wrong": wrong, "missed": missed, "phases": phases}
    sums |= {"fault": args.fault, "longest_seconds_to_end": longest, **vars_of(args)}
    print(json.dumps(sums), flush=True)
    return wrong


def layouts(args: argparse.Namespace) -> int:
    """Stop by SIGTERM, go on with other processes and devices; compare losses and samples with one device."""
    rng = random.Random(args.seed)
    expected, _ = untouched(args.folder, 1, 1)
    wrong, worst = 0, 0.0
    for run in tqdm(range(args.times), unit="run"):
        workdir = args.folder / f"layouts-{args.seed}-{run}"
        clear(workdir)
        stops = []
        for number, layout in enumerate(args.layouts):
            processes, devices = map(int, layout.split("x"))
            start = Start(args.folder, workdir, number, processes=processes, devices=devices)
            if number < len(args.layouts) - 1 and start.wait_for("step", rng.randint(2, 6)):
                os.kill(start.children[0], signal.SIGTERM)
            start.end()
            stops.append(latest_step(workdir))
            if any(start.codes.values()):
                print(json.dumps({"run": run, "layout": layout, "codes": start.codes}))
        found = digest(workdir)
        pairs = [(a["loss"], b["loss"]) for a, b in zip(found["metrics"], expected["metrics"], strict=False)
                 if "loss" in a and "loss" in b]  # fmt: skip
        difference = max(abs(a - b) / abs(b) for a, b in pairs)
        same = _union(found["samples"]) == _union(expected["samples"])
        good = difference <= 1e-5 and same and len(pairs) == STEPS
        wrong, worst = wrong + (not good), max(worst, difference)
        result = {"run": run, "layouts": args.layouts, "stopped_at": stops, "steps_compared": len(pairs)}
        result |= {"loss_difference": difference, "samples": same, "equal": good}
        print(json.dumps(result), flush=True)
        if good:
            clear(workdir)
    print(json.dumps({"runs": args.times, "wrong": wrong, "largest_loss_difference": worst}), flush=True)
    return wrong


def disks(args: argparse.Namespace) -> int:
    """Fill the disk of a run at a random moment, make room, start again, and compare."""
    rng = random.Random(args.seed)
    expected, _ = untouched(args.folder, 1, 1)
    wrong, longest = 0, 0.0
    for run in tqdm(range(args.times), unit="run"):
        workdir = args.folder / f"disk-{args.seed}-{run}"
        clear(workdir)
        workdir.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(workdir)], check=True
        )
        try:
            start = Start(args.folder, workdir, 0, processes=1, devices=1)
            aim = rng.choice(PHASES)
            if start.wait_for(aim, 1):
                time.sleep(rng.uniform(0.0, WITHIN[aim]))
            with (workdir / "filler").open("wb", buffering=0) as filler, suppress(OSError):
                while filler.write(bytes(4096)):
                    pass
            seconds = start.end(args.limit)
            code = start.codes[0]
            told = "no space left" in said(workdir, 0).lower()
            (workdir / "filler").unlink()
            again = Start(args.folder, workdir, 1, processes=1, devices=1)
            again.end()
            result = {"run": run, "aim": aim, "code": code, "told": told, "seconds_to_end": round(seconds, 2)}
            result |= {"then": again.codes[0]}
            good = not again.codes[0] and (code == 0 or (code == 2 and told))
            if good:
                result |= compare(digest(workdir), expected)
                good = all(result[name] for name in expected)
            wrong, longest = wrong + (not good), max(longest, seconds)
            print(json.dumps({**result, "equal": good}), flush=True)
        finally:
            subprocess.run(["umount", str(workdir)], check=True)
        if good:
            clear(workdir)
    print(json.dumps({"runs": args.times, "wrong": wrong, "longest_seconds_to_end": longest}), flush=True)
    return wrong


def doubles(args: argparse.Namespace) -> int:
    """Start a run twice, at once or at a random moment of the first; one is refused, the other is equal."""
    rng = random.Random(args.seed)
    expected, _ = untouched(args.folder, 1, 1)
    wrong = 0
    for run in tqdm(range(args.times), unit="run"):
        workdir = args.folder / f"double-{args.seed}-{run}"
        clear(workdir)
        starts = [Start(args.folder, workdir, 0, processes=1, devices=1)]
        aim = rng.choice(("at once", *PHASES))
        if aim != "at once" and starts[0].wait_for(aim, 1):
            time.sleep(rng.uniform(0.0, WITHIN[aim]))
        # Where the first has ended, the second finds a finished run.
        alone = not starts[0].alive()
        starts.append(Start(args.folder, workdir, 1, processes=1, devices=1))
        for start in reversed(starts):
            start.end()
        codes = [start.codes[0] for start in starts]
        refused = [number for number, code in enumerate(codes) if code == 2]
        told = all("is used by a run on" in said(workdir, number) for number in refused)
        result = {"run": run, "aim": aim, "codes": codes, "told": told, "one_after_the_other": alone}
        result |= compare(digest(workdir), expected)
        good = told and sorted(codes) == ([0, 0] if alone else [0, 2])
        good = good and all(result[name] for name in expected)
        wrong += not good
        print(json.dumps({**result, "equal": good}), flush=True)
        if good:
            clear(workdir)
    print(json.dumps({"runs": args.times, "wrong": wrong}), flush=True)
    return wrong


def _union(samples: dict[str, list]) -> dict[int, list[int]]:
    """Ids by step, over all processes, once for each time that a layout gave them."""
    found: dict[int, set] = {}
    for key, ids in samples.items():
        found.setdefault(int(key.split("/")[0]), set()).update(number for row in ids for number in row)
    return {step: sorted(ids) for step, ids in found.items()}


def vars_of(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line said, for the record."""
    return {name: getattr(args, name) for name in ("processes", "devices", "chain", "cold", "aimed", "seed")}


def main() -> int:
    """0 where every result was as it must be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("fault", choices=("kill", "term", "layouts", "disk", "double"))
    parser.add_argument("--times", type=int, default=10, help="faults, or runs (%(default)s)")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--devices", type=int, default=1, help="simulated, for each process")
    parser.add_argument("--chain", type=int, default=4, help="faults that may hit one run")
    parser.add_argument("--cold", type=float, default=0.1, help="share of starts without a compilation cache")
    parser.add_argument("--aimed", type=float, default=0.7, help="share of faults aimed at a phase")
    parser.add_argument("--limit", type=float, default=30.0, help="seconds to end after the fault")
    parser.add_argument("--layouts", nargs="+", default=["1x8", "1x4", "1x1"], metavar="PROCESSESxDEVICES")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="for data and runs (a temporary one)")
    args = parser.parse_args()
    # The thread of the progress bar would be a second one, which a fork must not have.
    tqdm.monitor_interval = 0
    args.folder = (args.folder or Path(tempfile.mkdtemp(prefix="medclip-faults-"))).absolute()
    make_data(args.folder)
    run = {"layouts": layouts, "disk": disks, "double": doubles}.get(args.fault, faults)
    return 1 if run(args) else 0


if __name__ == "__main__":
    sys.exit(main())
