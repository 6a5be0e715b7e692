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
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from fault_runs import (
    PATIENCE,
    PHASES,
    STEPS,
    WITHIN,
    Start,
    clear,
    compare,
    digest,
    make_data,
    said,
    untouched,
)
from tqdm import tqdm

from medclip_jax.training import goodput
from medclip_jax.training.checkpoints import latest_step

DISK_BYTES = 16 << 20
"""Of the small disk: a few checkpoints."""


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
    """Stop by SIGTERM, resume with other processes and devices; compare losses and samples with one's."""
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
