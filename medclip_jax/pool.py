"""Many processes, one order: results come back as if one process had done the work."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from medclip_jax.allocator import keep_freed_memory

Input = TypeVar("Input")
Output = TypeVar("Output")

_THREAD_COUNTS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)

_AHEAD = 3
"""Tasks waiting or done for each worker: enough to hide one slow volume, little enough for memory."""


def map_in_order(
    function: Callable[[Input], Output],
    inputs: Iterable[Input],
    workers: int,
    on_death: Callable[[Input], Output],
    is_suspect: Callable[[Input], bool] = lambda _: False,
) -> Iterator[Output]:
    """Apply a function in worker processes and yield the results in the order of the inputs.

    Args:
        function: picklable; runs once for each input.
        inputs: picklable; taken only a little ahead of the results.
        workers: processes; 1 means in this one.
        on_death: gives the result of an input that kills its worker (a crash in a decoder, a kill for
            want of memory) instead of ending the run.
        is_suspect: whether an input may kill its process, and is therefore given one of its own.

    Raises:
        RuntimeError: processes die before they have an input; the message says what a script must do.
    """
    if workers <= 1:
        for task in inputs:
            yield from map_guarded(function, [task], on_death) if is_suspect(task) else [function(task)]
        return
    inputs = iter(inputs)
    waiting: deque[tuple[Input, Future | None]] = deque()
    pool = _pool(workers)
    try:
        while True:
            while len(waiting) < workers * _AHEAD:
                try:
                    task = next(inputs)
                except StopIteration:
                    break
                waiting.append((task, None if is_suspect(task) else pool.submit(function, task)))
            if not waiting:
                return
            task, future = waiting.popleft()
            if future is None:
                yield from map_guarded(function, [task], on_death)
                continue
            try:
                result = future.result()
            except BrokenProcessPool:
                pool.shutdown(wait=False, cancel_futures=True)
                _see_that_workers_start()
                # Nobody knows which input did it: try the unfinished ones again, one at a time.
                suspects = [task, *(other for other, _ in waiting)]
                waiting.clear()
                yield from map_guarded(function, suspects, on_death)
                pool = _pool(workers)
                continue
            yield result
    finally:
        pool.shutdown(wait=not waiting, cancel_futures=True)


def available_cores() -> int:
    """Cores that this process may use: a batch system gives a part of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_guarded(
    function: Callable[[Input], Output], tasks: Iterable[Input], on_death: Callable[[Input], Output]
) -> Iterator[Output]:
    """Apply a function in a process of its own, one input after the other, and replace it when it dies.

    Args:
        function: picklable.
        tasks: picklable.
        on_death: gives the result of an input that kills the process.

    Raises:
        RuntimeError: as for `map_in_order`.
    """
    pool = _pool(1)
    try:
        for task in tasks:
            try:
                result = pool.submit(function, task).result()
            except BrokenProcessPool:
                pool.shutdown(wait=False)
                _see_that_workers_start()
                pool = _pool(1)
                result = on_death(task)
            yield result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _see_that_workers_start() -> None:
    """See that it was an input that killed its process.

    Raises:
        RuntimeError: a process without one dies, too.
    """
    with _pool(1) as pool:
        try:
            pool.submit(int).result()
        except BrokenProcessPool:
            raise RuntimeError(
                "worker processes end before they have begun. Each of them imports the script that started "
                "them: in a script of your own, put what calls this under `if __name__ == '__main__':`, or "
                "set workers=1. Where it stands there already, what the processes wrote above says why"
            ) from None


def _pool(workers: int) -> ProcessPoolExecutor:
    # Spawned, because JAX and ITK start threads, and a forked child would inherit their locks.
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    # One thread in each worker. Libraries read this when they are loaded, which can be before the
    # initializer runs, so the children inherit it; the first task starts them all.
    before = {name: os.environ.get(name) for name in _THREAD_COUNTS}
    os.environ.update(dict.fromkeys(_THREAD_COUNTS, "1"))
    try:
        pool.submit(int)
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return pool


def _start_worker() -> None:
    # Ctrl-C goes to the whole process group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    # A worker waits for its next task forever when its parent is killed: the pipe has other holders.
    multiprocessing.parent_process().join()
    os._exit(1)
