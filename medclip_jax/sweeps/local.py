"""Run the units of a sweep on this machine, one after the other or several at once."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from medclip_jax.progress import track
from medclip_jax.sweeps.progress import log_tail, progress
from medclip_jax.sweeps.units import EXIT_CODE_FILE, LOG_FILE, Unit

MEDCLIP = (sys.executable, "-m", "medclip_jax.cli.main")
"""Runs a unit's command in this Python, whatever `medclip` is on the path."""

POLL_SECONDS = 0.2
REFRESH_SECONDS = 2.0


class _Run(NamedTuple):
    unit: Unit
    slot: int
    process: subprocess.Popen


def run_local(
    units: Sequence[Unit], *, jobs: int = 1, say: Callable[[str], None] | None = None
) -> list[Unit]:
    """Run every unit that is not finished; each prints into `log.txt` of its folder.

    A unit that fails does not stop the others. On Ctrl-C, SIGTERM or a closed terminal the runs are asked to
    save and end; the same call resumes from there.

    Args:
        units: written by `units.write`.
        jobs: how many run at once. Where there are that many GPUs, each job sees its own share of them.
        say: what becomes of messages; None prints them above the bar.

    Returns:
        The units that are not finished now.

    Raises:
        ValueError: jobs below 1.
        KeyboardInterrupt: told to stop, and stopped.
    """
    if jobs < 1:
        raise ValueError(f"--jobs is {jobs}: give 1 or more")
    states = {unit.name: progress(unit.folder, unit.config).state for unit in units}
    waiting = [unit for unit in units if states[unit.name] != "finished"]
    bar = track(total=len(units), initial=len(units) - len(waiting), unit="unit", label="sweep")
    say = say or bar.say
    if len(waiting) < len(units):
        say(f"{len(units) - len(waiting)} of {len(units)} units are finished")
    for unit in waiting:
        if states[unit.name] == "failed":
            say(f"{unit.name} failed before and is tried again")
    shares = _device_shares(jobs)
    slots = list(range(jobs))
    running: list[_Run] = []
    shown = 0.0
    try:
        with _stop_as_interrupt():
            while waiting or running:
                while waiting and slots:
                    slot = slots.pop(0)
                    process = _start(waiting[0], shares[slot])
                    if process:
                        running.append(_Run(waiting[0], slot, process))
                    else:
                        say(f"{waiting[0].name} is being trained by another process: left to it")
                        slots.append(slot)
                        bar.update()
                    del waiting[0]
                for run in [run for run in running if run.process.poll() is not None]:
                    running.remove(run)
                    slots.append(run.slot)
                    say(_ended(run))
                    bar.update()
                if time.monotonic() > shown + REFRESH_SECONDS:
                    shown = time.monotonic()
                    bar.note(", ".join(map(_under_way, running[:3])))
                    bar.update(0)
                time.sleep(POLL_SECONDS)
    finally:
        if running:
            say(f"stopping: {len(running)} under way save and end")
        for run in running:
            run.process.send_signal(signal.SIGTERM)
        for run in running:
            run.process.wait()
            say(_ended(run))
        bar.close()
    return [unit for unit in units if progress(unit.folder, unit.config).state != "finished"]


def _start(unit: Unit, devices: str | None) -> subprocess.Popen | None:
    """Start a unit's command; None where its folder is in use."""
    environment = dict(os.environ)
    if devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = devices
    with (unit.folder / LOG_FILE).open("ab") as log:
        try:
            # The process inherits the lock with its output: it holds for as long as the run lives,
            # whatever becomes of this process.
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        (unit.folder / EXIT_CODE_FILE).unlink(missing_ok=True)
        return subprocess.Popen(
            [*MEDCLIP, *unit.command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            # Ctrl-C reaches this process alone, which then asks each run once.
            start_new_session=True,
        )


def _ended(run: _Run) -> str:
    """Keep the exit code; what to say of it."""
    (run.unit.folder / EXIT_CODE_FILE).write_text(f"{run.process.returncode}\n")
    state, step, steps = progress(run.unit.folder, run.unit.config)
    if state == "failed":
        # One line here; the tail of its log stands in the list at the end.
        return f"{run.unit.name} failed with exit code {run.process.returncode}"
    return f"{run.unit.name} {state}, step {step} of {steps or '?'}"


def failures(units: Sequence[Unit]) -> str:
    """Units that failed, each with the end of its log; "" where none did."""
    failed = [unit for unit in units if progress(unit.folder, unit.config).state == "failed"]
    return "\n".join(
        f"\n{unit.name} failed; the end of {unit.folder / LOG_FILE}:\n"
        + "\n".join(f"    {line}" for line in log_tail(unit.folder).splitlines())
        for unit in failed
    )


def _under_way(run: _Run) -> str:
    _, step, steps = progress(run.unit.folder, run.unit.config)
    return f"{run.unit.name} {step}/{steps or '?'}"


def _device_shares(jobs: int) -> list[str | None]:
    """GPUs of each job as CUDA_VISIBLE_DEVICES; None leaves the choice to JAX."""
    if jobs == 1:
        return [None]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        devices = [device for device in visible.split(",") if device]
    elif shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
        devices = [str(i) for i, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]
    else:
        devices = []
    share = len(devices) // jobs
    if not share:
        return [None] * jobs
    return [",".join(devices[slot * share : (slot + 1) * share]) for slot in range(jobs)]


@contextmanager
def _stop_as_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP rise as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    # Under nohup SIGHUP is ignored, and stays so.
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
