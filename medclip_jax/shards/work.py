"""Make shards on this machine, and stop early where too much is rejected."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from medclip_jax.shards.commit import Commit, Entry, make_shard
from medclip_jax.shards.plan import Examined, Item
from medclip_jax.shards.pool import map_in_order
from medclip_jax.shards.record import ShardError
from medclip_jax.shards.scan import REJECTED, Outcome, prepare_study
from medclip_jax.shards.settings import PrepareSettings

CHANCE = 4.0
"""Standard deviations that a part, a random sample, may lie above the limit of the whole."""


def make_shards(
    todo: Sequence[Examined],
    settings: PrepareSettings,
    folder: Path,
    workers: int,
    observe: Callable[[Entry], None],
) -> Iterator[Commit]:
    """Make and commit shards one after the other, their studies in parallel.

    Args:
        todo: in any order.
        settings: resolved.
        folder: of unfinished shards.
        workers: processes.
        observe: sees every line of the manifest.
    """
    items = [item for examined in todo for item in examined.shard.items]
    outcomes = map_in_order(
        functools.partial(prepare_study, settings=settings), items, min(workers, len(items)), reader_died
    )
    with contextlib.closing(outcomes):
        for examined in todo:
            yield make_shard(examined, outcomes, folder, observe)


def available_cores() -> int:
    """Cores that this process may use: a batch system gives a part of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def reader_died(item: Item) -> Outcome:
    """What becomes of a study whose file kills the process that reads it."""
    return Outcome(
        {
            "row": item.row,
            "id": item.id,
            "study": item.study_hash,
            "patient": item.patient_hash,
            "split": item.split,
            "class": REJECTED,
            "reason": "reader-died",
            "message": "The process that read this file was killed, by a crash of the decoder or for want of "
            "memory: convert the file again, or prepare with fewer --workers.",
        }
    )


class Rejections:
    """Counts rejected studies, and stops the run when there are too many.

    Args:
        limit: share of the studies that may be rejected.
        total: studies of this machine.
        sample: they are a random sample of the whole, for which the limit is meant: chance is allowed for.

    Attributes:
        found: code, message and row of each so far.
    """

    def __init__(self, limit: float, total: int, *, sample: bool = False):
        self.limit, self.total = limit, total
        slack = CHANCE * math.sqrt(total * limit * (1 - limit)) if sample and 0 <= limit <= 1 else 0.0
        self._allowed = limit * total + slack
        self.found: list[tuple[str, str, int]] = []

    def add(self, *rejections: tuple[str, str, int]) -> None:
        """Count some: code, message and row of each.

        Raises:
            ShardError: there are too many; the message tells what to mend.
        """
        self.found += rejections
        if len(self.found) <= self._allowed:
            return
        # The manifest is written at the end only, so this must tell what to mend.
        reasons = []
        for reason, count in Counter(code for code, _, _ in self.found).most_common(5):
            found = sorted((row, message) for other, message, row in self.found if other == reason)
            rows = ", ".join(str(row) for row, _ in found[:8]) + (", ..." if count > 8 else "")
            text = found[0][1].rstrip(".")
            reasons.append(f"{reason} ({count}, {'row' if count == 1 else 'rows'} {rows}): {text}")
        raise ShardError(
            f"stopped: {len(self.found)} of {self.total} studies rejected so far, more than --max-rejected "
            f"{self.limit:g} allows. Reasons: {'; '.join(reasons)}. If that is right for these data, run "
            "again with a higher --max-rejected (1 allows all); finished shards are kept"
        )

    def add_entry(self, entry: Entry) -> None:
        """Count a line of the manifest if it is a rejection."""
        if entry["class"] == REJECTED:
            self.add((entry["reason"], entry["message"], entry["row"]))
