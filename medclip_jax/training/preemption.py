"""Requests to stop: noticed in every phase, and agreed upon by all processes."""

from __future__ import annotations

import itertools
import logging
import os
import select
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

POLL_SECONDS = 0.5
"""How often a process looks whether another one was told to stop."""

ANSWER_SECONDS = 60.0
"""How long all processes have to answer once one was told to stop."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_uses = itertools.count()


class Preemption:
    """Notices SIGTERM and the first Ctrl-C while it is entered; a second Ctrl-C raises KeyboardInterrupt.

    Python runs a signal handler only between two bytecodes of the main thread, which a long compilation
    or a wait for the device holds up. So the interpreter also writes each signal to a pipe
    (`signal.set_wakeup_fd`) that a thread reads: `requested` turns true, the other processes hear of it and
    a line is logged at once, in every phase.

    Several processes agree like this: whoever is told to stop says so in the store of JAX's coordination
    service, which every process's thread polls. Each thread then holds `agreed` back, tells how often it
    was called, and takes the highest count of all plus one as the call at which all stop. Until someone is
    told to stop, `agreed` only reads a flag: neither the device nor the network is waited for.

    Enter it in the main thread, after `jax.distributed` was started (whose own handler would replace
    this one). In another thread it cannot see signals, and stops only where another process is told to.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._interrupts = 0
        self._before: dict[int, Any] = {}
        self._closing = threading.Event()
        self._state = threading.Condition()
        self._calls = 0
        self._negotiating = False
        self._stop_at: int | None = None
        self._failure = ""

    def __enter__(self) -> Preemption:
        self._client, self._index, self._count = _coordination()
        # Counted alike in all processes, since all run the same program: keys of an earlier use stay away.
        self._prefix = f"medclip/preemption/{next(_uses)}"
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._in_main = threading.current_thread() is threading.main_thread()
        if self._in_main:
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
            self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="preemption", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._in_main:
            signal.set_wakeup_fd(self._wakeup)
            for number, handler in self._before.items():
                signal.signal(number, handler)
        self._closing.set()
        os.write(self._writer, b"\0")
        self._thread.join()
        os.close(self._reader)
        os.close(self._writer)

    @property
    def requested(self) -> bool:
        """Whether this process was told to stop."""
        return self._event.is_set()

    def agreed(self, step: int) -> bool:
        """Whether all processes stop here. Every process calls this equally often, in the same order.

        The answers of the processes are alike at the n-th call, and stay true once they are. It costs next
        to nothing, so it may also be called between the batches of an evaluation.

        Args:
            step: for the message only.

        Raises:
            RuntimeError: a process was told to stop and another did not answer within `ANSWER_SECONDS`.
        """
        if self._client is None:
            return self.requested
        with self._state:
            self._state.wait_for(lambda: not self._negotiating)
            if self._failure:
                raise RuntimeError(f"step {step}: {self._failure}")
            self._calls += 1
            return self._stop_at is not None and self._calls >= self._stop_at

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt

        self._event.set()

    def _watch(self) -> None:
        """The thread: reads signals from the pipe, and looks whether another process had one."""
        told = settled = False
        while not self._closing.is_set():
            ready, _, _ = select.select([self._reader], [], [], POLL_SECONDS if self._client else None)
            for number in os.read(self._reader, 64) if ready else b"":
                if number in _SIGNALS:
                    self._event.set()
                    if not told:
                        told = True
                        name = signal.Signals(number).name
                        logging.warning("%s: stopping as soon as the step under way is saved", name)
            if self._client is not None and not settled and (self.requested or self._heard()):
                settled = True
                self._settle()
        if self._client is not None and not settled:
            # Who leaves without having been told to has made all its calls: nobody shall wait for its answer.
            self._publish(self._calls)

    def _heard(self) -> bool:
        """Whether another process was told to stop: it has then told how often it called `agreed`."""
        told = self._client.key_value_dir_get(self._prefix)
        return any(value.startswith("stop") for _, value in told)

    def _publish(self, calls: int) -> None:
        value = f"{'stop' if self.requested else 'here'} {calls}"
        self._client.key_value_set(f"{self._prefix}/{self._index}", value, True)

    def _settle(self) -> None:
        """Hold `agreed` back until all have told where they are, and fix where all stop."""
        with self._state:
            self._negotiating, calls = True, self._calls
        try:
            self._publish(calls)
            end = time.monotonic() + ANSWER_SECONDS
            answers = [
                self._client.blocking_key_value_get(
                    f"{self._prefix}/{index}", max(1, int(1000 * (end - time.monotonic())))
                )
                for index in range(self._count)
            ]
            stop_at, failure = 1 + max(int(answer.split()[1]) for answer in answers), ""
        except RuntimeError as error:
            stop_at, failure = None, f"the processes could not agree where to stop: {error}"
        with self._state:
            self._negotiating, self._stop_at, self._failure = False, stop_at, failure
            self._state.notify_all()


def _coordination() -> tuple[Any, int, int]:
    """The client of JAX's coordination service (None where there is one process), index and count."""
    from jax._src import distributed

    state = distributed.global_state
    return (state.client if state.num_processes > 1 else None), state.process_id, state.num_processes
