"""Where a run's wall time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

KINDS = ("startup", "input", "save", "evaluation")
"""What is not training: start and compilation, waiting for batches, saving, evaluating."""


class Clock:
    """Seconds by kind, over all starts of a run, and rates since the last log line.

    Args:
        counters: what `counters` gave when the run was saved; {} for a new run.
    """

    def __init__(self, counters: Mapping[str, float]):
        self.total = {name: float(counters.get(name, 0.0)) for name in (*KINDS, "all", "starts")}
        self.total["starts"] += 1
        self._begin = time.perf_counter()
        self._before = self.total["all"]
        self._since: dict[str, float] = {}
        self._mark = self._begin

    @contextmanager
    def spend(self, kind: str) -> Iterator[None]:
        """Count what happens inside as `kind`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - begin
            self.total[kind] += seconds
            self._since[kind] = self._since.get(kind, 0.0) + seconds

    def started(self) -> None:
        """The first step is done: what went before, but for waiting, was start-up."""
        self.total["startup"] += time.perf_counter() - self._begin - sum(self._since.values())
        self._reset()

    def rates(self, steps: int, batch_size: int) -> dict[str, float]:
        """Over the `steps` since the last call: {} where there were none.

        Returns:
            `volumes_per_second` and `seconds_per_step` without saving and evaluating, and `input_wait`,
            the share of that time spent waiting for batches.
        """
        other = self._since.get("save", 0.0) + self._since.get("evaluation", 0.0)
        seconds = time.perf_counter() - self._mark - other
        waited = self._since.get("input", 0.0)
        self._reset()
        if not steps or seconds <= 0:
            return {}
        return {
            "volumes_per_second": steps * batch_size / seconds,
            "seconds_per_step": seconds / steps,
            "input_wait": min(1.0, waited / seconds),
        }

    def counters(self) -> dict[str, float]:
        """Seconds so far by kind, `all` of them, and how often the run was started."""
        self.total["all"] = self._before + time.perf_counter() - self._begin
        return dict(self.total)

    def goodput(self) -> float:
        """Share of all wall time so far in which the model was trained."""
        counters = self.counters()
        return max(0.0, 1.0 - sum(counters[kind] for kind in KINDS) / max(counters["all"], 1e-9))

    def _reset(self) -> None:
        self._since = {}
        self._mark = time.perf_counter()
