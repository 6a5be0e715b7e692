"""Time steps of several programs in turn, each in a process of its own: a busy machine slows all alike."""

from __future__ import annotations

import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

Step = Callable[[int], float]
"""Number of a step to its loss."""


class Side(NamedTuple):
    """What one program took.

    Attributes:
        details: that it gave of itself.
        seconds: of each step, on the clock.
        processor: of each step, of all its threads; other programs change it least.
    """

    details: dict[str, Any]
    seconds: list[float]
    processor: list[float]

    def result(self) -> dict[str, Any]:
        """Its details, median and fastest step, ready to be printed."""
        return self.details | {
            "step_ms": round(1e3 * statistics.median(self.seconds), 1),
            "fastest_ms": round(1e3 * min(self.seconds), 1),
            "cpu_ms": round(1e3 * statistics.median(self.processor), 1),
        }


def take_turns(
    sides: Mapping[str, Callable[[], tuple[Step, dict[str, Any]]]], steps: int, *, tolerance: float
) -> dict[str, Side]:
    """Build every side, compare the losses of their first step, time the others.

    Args:
        sides: name to what builds it, in its own process: its step and details of it. Must be picklable.
        steps: that are timed, after the first.
        tolerance: largest difference of the first losses.

    Raises:
        SystemExit: the first losses differ.
    """
    processes = multiprocessing.get_context("spawn")
    pipes, details = {}, {}
    for name, build in sides.items():
        pipes[name], other = processes.Pipe()
        processes.Process(target=_serve, args=(build, other), daemon=True).start()
        other.close()  # so that waiting for a side that died ends with an error
        details[name] = pipes[name].recv()

    def step(name: str, index: int) -> tuple[float, float, float]:
        pipes[name].send(index)
        return pipes[name].recv()

    first = {name: step(name, 0) for name in sides}
    for name, (_, seconds, _) in first.items():
        print(json.dumps({"side": name, "first_step_s": round(seconds, 2)}), flush=True)
    losses = [loss for loss, _, _ in first.values()]
    if not max(losses) - min(losses) <= tolerance:
        raise SystemExit(f"the sides do not compute the same loss: {first}")
    taken = {name: Side(details[name], [], []) for name in sides}
    for index in range(1, steps + 1):
        for name, side in taken.items():
            _, seconds, processor = step(name, index)
            side.seconds.append(seconds)
            side.processor.append(processor)
    for pipe in pipes.values():
        pipe.send(None)
    return taken


def ratios(taken: Mapping[str, Side], base: str) -> list[dict[str, float]]:
    """How much longer than `base` each other side takes: by the median, the fastest step, processor time."""
    ours, median = taken[base], statistics.median
    return [
        {
            f"{name}_over_{base}": round(median(side.seconds) / median(ours.seconds), 3),
            "fastest": round(min(side.seconds) / min(ours.seconds), 3),
            "cpu": round(median(side.processor) / median(ours.processor), 3),
        }
        for name, side in taken.items()
        if name != base
    ]


def _serve(build: Callable[[], tuple[Step, dict[str, Any]]], pipe: Connection) -> None:
    """Answer each number with its loss, seconds and processor seconds of one step."""
    run, details = build()
    pipe.send(details)
    while (index := pipe.recv()) is not None:
        start, busy = time.perf_counter(), time.process_time()
        loss = run(index)
        pipe.send((loss, time.perf_counter() - start, time.process_time() - busy))
