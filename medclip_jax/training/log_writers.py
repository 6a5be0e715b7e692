"""What writes metrics down. Nothing of it holds a run up or ends it, be the disk full or the network gone."""

from __future__ import annotations

import json
import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

FLUSH_SECONDS = 5.0
"""How long numbers may lie in the memory of a writer in the background."""

CLOSE_SECONDS = 30.0
"""How long the end of a run waits for a writer in the background."""

WAITING_RECORDS = 1000
"""How many records wait for a writer in the background before further ones are dropped."""

WAITING_LINES = 100_000
"""How many lines are kept in memory while the disk takes none."""


class Writer(Protocol):
    """Writes numbers by step. May raise anything, and may block."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take the numbers of a step."""
        ...

    def flush(self) -> None:
        """Bring everything to where it is read."""
        ...

    def close(self) -> None:
        """Flush and close."""
        ...


class Lines:
    """Appends JSON lines to a file, in this thread, because a checkpoint counts on them.

    Where the disk takes none, the lines wait in memory and are written with the next ones; what was written
    of a line is cut off again, so that the file always consists of whole lines.

    Args:
        file: to append to.
        say: prints a message.
    """

    def __init__(self, file: Path, say: Callable[[str], None]):
        self._file = file
        self._say = say
        self._waiting: deque[bytes] = deque(maxlen=WAITING_LINES)
        self._told = False

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write the numbers of a step; what is not finite becomes null, because JSON has no NaN."""
        line = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
        self._waiting.append(json.dumps({"step": step, **line}).encode() + b"\n")
        self.flush()

    def flush(self) -> None:
        """Write the waiting lines, as far as the disk takes them."""
        if not self._waiting:
            return
        try:
            with self._file.open("ab", buffering=0) as file:
                while self._waiting:
                    self._append(file, self._waiting[0])
                    self._waiting.popleft()
        except OSError as error:
            if not self._told:
                self._told = True
                self._say(f"{self._file} cannot be written ({error}): its lines wait until it can")

    def close(self) -> None:
        """Try once more to write what waits."""
        self.flush()
        if self._waiting:
            self._say(f"{self._file} lacks its last {len(self._waiting)} lines: it could not be written")

    @staticmethod
    def _append(file: Any, line: bytes) -> None:
        begin = os.fstat(file.fileno()).st_size
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(file.fileno(), begin)
            raise


class TensorBoard:
    """Writes an event file, in the calling thread: `tensorboardX.SummaryWriter` hands events to a thread of
    its own, and waits for it for ever once that has died of a full disk.

    Args:
        folder: for the file.
        start: steps done before; what an earlier start wrote of later ones is not shown.
    """

    def __init__(self, folder: Path, *, start: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self._events = EventsWriter(str(folder / "events"))
        again = SessionLog(status=SessionLog.START)
        self._events.write_event(Event(step=start + 1, wall_time=time.time(), session_log=again))

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write the numbers of a step."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for name, number in numbers.items():
            self._events.write_event(Event(step=step, wall_time=time.time(), summary=scalar(name, number)))

    def flush(self) -> None:
        """Bring everything to the disk."""
        self._events.flush()

    def close(self) -> None:
        """Flush and close."""
        self._events.close()


class WeightsAndBiases:
    """Sends numbers to Weights & Biases.

    Args:
        wandb: the package.
        arguments: of `wandb.init`.
    """

    def __init__(self, wandb: Any, **arguments: Any):
        self._wandb = wandb
        wandb.init(**arguments)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Send the numbers of a step."""
        self._wandb.log(dict(numbers), step=step)

    def flush(self) -> None:
        """Nothing to do: they are sent by a process of its own."""

    def close(self) -> None:
        """Wait until everything is sent."""
        self._wandb.finish()


class Background:
    """A writer in a thread of its own, which a run neither waits for nor ends with.

    The first error ends the writer, and the run continues without it. Where it does not keep up, numbers are
    dropped. Both are said once.

    Args:
        name: of the writer, for messages.
        create: makes the writer, in its thread.
        say: prints a message; called from both threads.
    """

    def __init__(self, name: str, create: Callable[[], Writer], say: Callable[[str], None]):
        self._name = name
        self._say = say
        self._records: queue.Queue[tuple[int, Mapping[str, float]] | None] = queue.Queue(WAITING_RECORDS)
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, args=(create,), name=name, daemon=True)
        self._thread.start()

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Hand the numbers of a step over; never blocks, never raises."""
        if not self._thread.is_alive():
            return
        try:
            self._records.put_nowait((step, numbers))
        except queue.Full:
            self._dropped += 1
            if self._dropped == 1:
                self._say(f"{self._name} does not keep up: numbers are dropped until it does")

    def close(self) -> None:
        """Let the writer finish, for `CLOSE_SECONDS` at most."""
        end = time.monotonic() + CLOSE_SECONDS
        try:
            if self._thread.is_alive():
                self._records.put(None, timeout=CLOSE_SECONDS)
        except queue.Full:
            pass
        self._thread.join(max(0.0, end - time.monotonic()))
        if self._thread.is_alive():
            self._say(f"{self._name} did not finish within {CLOSE_SECONDS:.0f} s: its last numbers are lost")
        elif self._dropped:
            self._say(f"{self._name} lacks {self._dropped} records, for which it was too slow")

    def _run(self, create: Callable[[], Writer]) -> None:
        try:
            writer = create()
            flushed = time.monotonic()
            while (record := self._next(flushed)) is not None:
                if record:
                    writer.write(*record)
                if time.monotonic() - flushed >= FLUSH_SECONDS:
                    writer.flush()
                    flushed = time.monotonic()
            writer.close()
        except Exception as error:
            self._say(f"{self._name} stopped ({type(error).__name__}: {error}): the run continues without it")

    def _next(self, flushed: float) -> tuple[()] | tuple[int, Mapping[str, float]] | None:
        """The next record, () where it is time to flush, None at the end."""
        try:
            return self._records.get(timeout=max(0.1, flushed + FLUSH_SECONDS - time.monotonic()))
        except queue.Empty:
            return ()
