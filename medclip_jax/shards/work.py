"""Make shards on this machine, and stop early where too much is rejected."""

from __future__ import annotations

import contextlib
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from pathlib import Path

from medclip_jax.pool import map_in_order
from medclip_jax.shards.commit import Commit, Entry, make_shard
from medclip_jax.shards.plan import REPEATED_REPORT, Examined, Item
from medclip_jax.shards.record import ShardError
from medclip_jax.shards.scan import REJECTED, Outcome, prepare_study
from medclip_jax.shards.settings import PrepareSettings

ATTEMPT = "attempt-"
"""How the mark of a study begins that is being read."""

_MOST_ATTEMPTS = 4

READER_DIED = "reader-died"
"""Code of a study whose file kills the process that reads it."""

CHANCE = 4.0
"""Standard deviations that a part, a random sample, may lie above the limit of the whole."""


def make_shards(
    todo: Sequence[Examined],
    settings: PrepareSettings,
    folder: Path,
    workers: int,
    observe: Callable[[Entry], None],
    suspects: Set[int] = frozenset(),
) -> Iterator[Commit]:
    """Make and commit shards one after the other, their studies in parallel.

    Args:
        todo: in any order.
        settings: resolved.
        folder: of unfinished shards.
        workers: processes.
        observe: sees every line of the manifest.
        suspects: rows that may kill their reader, and are read in a process of their own.
    """
    items = [item for examined in todo for item in examined.shard.items]
    outcomes = map_in_order(
        functools.partial(attempt, settings=settings, folder=folder),
        items,
        min(workers, len(items)),
        functools.partial(_give_up, folder=folder),
        lambda item: item.row in suspects,
    )
    with contextlib.closing(outcomes):
        for examined in todo:
            yield make_shard(examined, outcomes, folder, observe)


def attempt(item: Item, settings: PrepareSettings, folder: Path) -> Outcome:
    """Prepare a study, and mark it while it lasts: a later run learns from the mark what killed this one.

    A reader that takes the whole run with it, as the kernel does where memory is short, would do so at every
    restart. So a study whose mark is found is read in a process of its own; and if that, too, ends the run
    `_MOST_ATTEMPTS` times, it is given up and the others continue.

    Args:
        item: from the plan.
        settings: resolved.
        folder: of unfinished shards.
    """
    if item.rejection is not None:
        return prepare_study(item, settings)
    mark = _mark(folder, item)
    count = _count(mark)
    if count >= _MOST_ATTEMPTS:
        return _give_up(item, folder)
    try:
        mark.write_text(str(count + 1))
        return prepare_study(item, settings)
    finally:
        mark.unlink(missing_ok=True)


def cut_off(folder: Path, items: Iterable[Item]) -> set[int]:
    """Rows that were being read when an earlier run was killed.

    Args:
        folder: of unfinished shards.
        items: among which to look.
    """
    marks = {path.name for path in folder.glob(f"{ATTEMPT}*")}
    return {item.row for item in items if _mark(folder, item).name in marks} if marks else set()


def _mark(folder: Path, item: Item) -> Path:
    return folder / f"{ATTEMPT}{item.id}"


def _count(mark: Path) -> int:
    try:
        return int(mark.read_text() or 1)
    except FileNotFoundError:
        return 0
    except ValueError:  # power was lost while it was written
        return 1


def _give_up(item: Item, folder: Path) -> Outcome:
    _mark(folder, item).unlink(missing_ok=True)
    return reader_died(item)


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
            "reason": READER_DIED,
            "message": "The process that read this file was killed, by a crash of the decoder or for want of "
            "memory: prepare with fewer --workers or more memory, or convert the file again.",
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
            ShardError: there are too many; the message tells what to fix.
        """
        self.found += [one for one in rejections if one[0] != REPEATED_REPORT]
        if len(self.found) <= self._allowed:
            return
        # The manifest is written at the end only, so this must tell what to fix.
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
