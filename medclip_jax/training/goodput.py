"""Where a run's wall time goes, over all its starts, on disk so that a kill loses none of it."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

BUCKETS = ("start", "compile", "input", "step", "evaluation", "checkpoint", "lost")
"""Until the first step, but for its compilation; compiling it; waiting for batches; training; evaluating;
saving; and `lost`: training and waiting that a kill undid, because it came after the last checkpoint."""

HEARTBEAT = "heartbeat.json"
"""Written into the workdir every `BEAT_SECONDS` while the run is alive."""

BEAT_SECONDS = 5.0

_EARLIER = {"startup": "start", "save": "checkpoint"}
"""Names in checkpoints of earlier versions."""


class Clock:
    """Seconds by bucket, over all starts of a run, and rates since the last log line.

    Each moment counts in exactly one bucket: the innermost `spend` under way, else `start` until `started`
    is called and `step` from then on. So the buckets' sum is the time for which the run was alive.

    Use: make it first thing (it counts from there), as a context; call `resume` when the state is restored,
    `started` after the first step, `at` after every step. With a `workdir`, a thread keeps `heartbeat.json`
    there: buckets, step, time and state ("running", then "finished" or "stopped"), for `medclip status`.
    A start that ends before `resume`, because it was refused, leaves the heartbeat as it found it.
    A restarted run takes its buckets from there; they miss at most `BEAT_SECONDS` before a kill.

    Args:
        counters: what `counters` gave when the checkpoint was saved, where that is known already; the same
            as calling `resume(counters)`.
        workdir: in process 0 only; None keeps no heartbeat.
        steps: of the run in total.
    """

    def __init__(
        self,
        counters: Mapping[str, float] | None = None,
        *,
        workdir: str | os.PathLike | None = None,
        steps: int = 0,
    ):
        self._file = Path(workdir) / HEARTBEAT if workdir is not None else None
        self._lock = threading.RLock()
        self._mark = time.perf_counter()
        self._running = ["start"]
        self._window: dict[str, float] = {}
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._step, self._steps, self._step_time = 0, steps, 0.0
        self._interrupted = False
        self._before = before = read_heartbeat(workdir) if workdir is not None else None
        self._begun = self._told = False
        self._total = _totals(before["counters"] if before else {})
        self._total["starts"] += 1
        if counters is not None:
            self.resume(counters)

    def __enter__(self) -> Clock:
        if self._file is not None:
            self._beat("running")
            self._thread = threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
            if not self._begun and self._before is not None:
                # Refused before it touched the run, such as for another config: the run is as it was.
                self._write(self._before)
                return
            finished = error is None and self._step >= self._steps and not self._interrupted
            self._beat("finished" if finished else "stopped")

    def resume(self, counters: Mapping[str, float], step: int = 0) -> None:
        """Say from where this start continues: what was trained beyond it, by the heartbeat, is lost.

        Args:
            counters: saved with the checkpoint that was restored; {} where the run begins from scratch.
            step: of that checkpoint.
        """
        saved = _totals(counters)
        self._begun = True
        with self._lock:
            for bucket in ("input", "step"):
                beyond = self._total[bucket] - saved[bucket]
                # A heartbeat older than the checkpoint knows less, never more.
                self._total[bucket] = saved[bucket]
                self._total["lost"] += max(0.0, beyond)
            for name in ("start", "compile", "evaluation", "checkpoint", "lost"):
                self._total[name] = max(self._total[name], saved[name])
            self._total["starts"] = max(self._total["starts"], saved["starts"] + 1)
            self._step = step

    @contextmanager
    def spend(self, bucket: str) -> Iterator[None]:
        """Count what happens inside as `bucket`; where they are nested, the inner one counts.

        Raises:
            KeyError: no such bucket.
        """
        bucket = _EARLIER.get(bucket, bucket)
        if bucket not in BUCKETS:
            raise KeyError(f"{bucket!r} is none of {BUCKETS}")
        self._settle()
        self._running.append(bucket)
        try:
            yield
        finally:
            self._settle()
            self._running.pop()

    def started(self) -> None:
        """The first step is done: from here on, what is nothing else is training."""
        self._settle()
        self._begun = True
        self._running[0] = "step"
        self._reset()

    def at(self, step: int) -> None:
        """So many steps are done, for the heartbeat."""
        self._step, self._step_time = step, time.time()

    def finish_early(self) -> None:
        """Count the steps that are done as all of the run: nothing more is to come."""
        self._steps = self._step

    def interrupted(self) -> None:
        """The run was told to stop before its end, be it in its last evaluation."""
        self._interrupted = True

    def rates(self, steps: int, batch_size: int) -> dict[str, float]:
        """Over the `steps` since the last call: {} where there were none.

        Returns:
            `volumes_per_second` and `seconds_per_step` without saving, evaluating and compiling, and
            `input_wait`, the share of that time spent waiting for batches.
        """
        self._settle()
        waited = self._window.get("input", 0.0)
        seconds = waited + self._window.get("step", 0.0)
        self._reset()
        if not steps or seconds <= 0:
            return {}
        return {
            "volumes_per_second": steps * batch_size / seconds,
            "seconds_per_step": seconds / steps,
            "input_wait": waited / seconds,
        }

    def counters(self) -> dict[str, float]:
        """Seconds so far by bucket, `all` of them, and `starts`: how often the run was started."""
        self._settle()
        with self._lock:
            return {**self._total, "all": sum(self._total[bucket] for bucket in BUCKETS)}

    def goodput(self) -> float:
        """Share of all wall time so far in which the model was trained, lost training left out."""
        return goodput(self.counters())

    def _settle(self) -> None:
        """Count the time since the last call in the bucket that was running."""
        with self._lock:
            now = time.perf_counter()
            bucket, seconds = self._running[-1], now - self._mark
            self._mark = now
            self._total[bucket] += seconds
            self._window[bucket] = self._window.get(bucket, 0.0) + seconds

    def _reset(self) -> None:
        self._window = {}

    def _keep_beating(self) -> None:
        while not self._closing.wait(BEAT_SECONDS):
            self._beat("running")

    def _beat(self, state: str) -> None:
        beat = {
            "state": state,
            "time": time.time(),
            "step": self._step,
            "steps": self._steps,
            "step_time": self._step_time,
            "counters": self.counters(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        self._write(beat)

    def _write(self, beat: Mapping[str, Any]) -> None:
        partial = self._file.with_name(HEARTBEAT + ".partial")
        try:
            # Not synchronized each time: one that a loss of power emptied counts as none.
            partial.write_text(json.dumps(beat))
            partial.replace(self._file)
        except OSError as error:
            # A full disk stops the run where it saves, with a message that helps; not here.
            if not self._told:
                logging.warning("no heartbeat in %s: %s", self._file, error)
            self._told = True


def goodput(counters: Mapping[str, float]) -> float:
    """Share of the time in `counters` in which the model was trained.

    Args:
        counters: of a `Clock`.
    """
    return counters["step"] / max(sum(counters[bucket] for bucket in BUCKETS), 1e-9)


def read_heartbeat(workdir: str | os.PathLike) -> dict[str, Any] | None:
    """The last heartbeat of a run, None where there is none that can be read.

    Returns:
        `state`, `time` and `step_time` (seconds since 1970), `step`, `steps`, `counters`, `host`, `pid`.
    """
    try:
        beat = json.loads((Path(workdir) / HEARTBEAT).read_text())
        numbers = {name: float(beat[name]) for name in ("time", "step_time")}
        steps = {name: int(beat[name]) for name in ("step", "steps")}
        counters = {str(name): float(value) for name, value in beat["counters"].items()}
        counters |= _totals(counters)
        return {**beat, **numbers, **steps, "state": str(beat["state"]), "counters": counters}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None  # cut short, or written by something else


def _totals(counters: Mapping[str, float]) -> dict[str, float]:
    """Seconds by bucket and `starts`, from counters of this or an earlier version."""
    known = {_EARLIER.get(name, name): float(value) for name, value in counters.items()}
    if counters and "step" not in known:
        known["step"] = max(0.0, known.get("all", 0.0) - sum(known.get(bucket, 0.0) for bucket in BUCKETS))
    return {name: known.get(name, 0.0) for name in (*BUCKETS, "starts")}
