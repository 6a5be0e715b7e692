"""Which step of a run scored best on its evaluation split, and when to stop because none scores better.

All of it follows from the numbers that were logged: nothing is kept beside them, so that a resumed run
decides as one that never stopped.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from medclip_jax.training.workdir import Workdir, read_metrics


class Best:
    """The best evaluation so far, by `config.evaluation.best`.

    Args:
        settings: of the config; without a metric nothing is best, and nothing stops early.

    Attributes:
        step: of the best evaluation, None before the first.
        value: of the metric there.
        since: evaluations after it, none of them better.
    """

    def __init__(self, settings: Any):
        self.metric = settings.metric
        self.patience = settings.patience
        self.higher = settings.higher
        self.step: int | None = None
        self.value = math.nan
        self.since = 0

    @property
    def active(self) -> bool:
        """Whether there is a metric to judge by."""
        return bool(self.metric)

    @property
    def exhausted(self) -> bool:
        """Whether as many evaluations as `patience` came after the best one."""
        return self.active and 0 < self.patience <= self.since

    def see(self, step: int, found: Mapping[str, float]) -> bool:
        """Take note of an evaluation.

        An undefined metric is never the best; of equal ones the first is.

        Args:
            step: that was evaluated.
            found: its numbers.

        Returns:
            Whether it is the best so far.

        Raises:
            ValueError: the metric is not among them.
        """
        if self.metric not in found:
            near = [name for name in found if name.startswith(self.metric.partition("/")[0])]
            raise ValueError(
                f"config.evaluation.best.metric={self.metric!r} is none of the numbers of the evaluation: "
                f"{', '.join(near or found)}"
            )
        value = found[self.metric]
        better = value > self.value if self.higher else value < self.value
        if not math.isnan(value) and (self.step is None or better):
            self.step, self.value, self.since = step, value, 0
            return True
        self.since += 1
        return False

    def recall(self, workdir: Workdir, last: int, kept: Collection[int]) -> None:
        """Take note of what was logged up to a step. Several processes call it alike; the first one reads.

        Args:
            workdir: of the run.
            last: the step that the run goes on from.
            kept: steps that have a checkpoint. Where the best one has none, as after its metric was changed,
                the search begins anew.
        """
        if not self.active:
            return
        seen: dict[int, float] = {}
        if jax.process_index() == 0:
            for step, numbers, _ in read_metrics(workdir.metrics_file):
                if step <= last and self.metric in numbers:
                    seen[step] = numbers[self.metric]
        for step, value in _everywhere(seen).items():
            self.see(step, {self.metric: value})
        if self.step is not None and self.step not in kept:
            logging.warning(
                "step %d was the best by %s and has no checkpoint: the search for the best begins anew",
                self.step, self.metric,
            )  # fmt: skip
            self.step, self.value, self.since = None, math.nan, 0

    def describe(self) -> str:
        """In words, for the log."""
        return f"step {self.step} is the best by {self.metric} ({self.value:.4g})"


def _everywhere(seen: dict[int, float]) -> dict[int, float]:
    """What the first process has seen, in all processes."""
    if jax.process_count() == 1:
        return seen
    from jax.experimental import multihost_utils

    count = int(multihost_utils.broadcast_one_to_all(np.asarray(len(seen), np.int32)))
    table = np.zeros((count, 2), np.float64)
    if jax.process_index() == 0:
        table[:] = list(seen.items())
    # As words: JAX would round them to 32 bits.
    words = np.asarray(multihost_utils.broadcast_one_to_all(table.view(np.int32)))
    return {int(step): float(value) for step, value in words.view(np.float64)}
