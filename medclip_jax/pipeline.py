"""Prepared shards → host batches of integers: which sample at which step.

Sample n of a run, all that is drawn for it included, is a pure function of (seed, n), on any number of hosts
and workers. So a run resumes from the step alone. What a batch holds, `fields` says.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from typing import Protocol, SupportsIndex

import grain
import numpy as np

from medclip_jax.allocator import keep_freed_memory
from medclip_jax.draws import Record, midpoints, one_per_interval
from medclip_jax.fields import Layout
from medclip_jax.shards import buffers

__all__ = ["Source", "midpoints", "one_per_interval", "train_batches"]


class Source(Protocol):
    """Random access to records, such as `shards.read.ShardSource` or a list of dicts."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex) -> Record: ...


class _Indexed:
    """A source whose records know their index, and are decoded to where their batch will be."""

    def __init__(self, source: Source, rows: int = 0):
        self.source = source
        self.rows = rows

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: SupportsIndex) -> tuple[int, Record]:
        index = int(index)
        with buffers.rows(self.rows):
            return index, self.source[index]

    def __repr__(self) -> str:
        return f"_Indexed({len(self)})"


class _Prepare:
    """(index, record), rng → sample; at module level so that worker processes can be given one."""

    def __init__(self, layout: Layout):
        self.layout = layout

    def __call__(self, element: tuple[int, Record], rng: np.random.Generator) -> dict[str, np.ndarray]:
        index, record = element
        return self.layout.sample(record, index, rng)


def train_batches(
    source: Source,
    layout: Layout,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches, shuffled anew each epoch, from `start_step` on.

    Batch n holds samples n·B to (n+1)·B - 1 of the shuffled, repeated split; an epoch need not end with a
    batch, and a batch larger than the split holds some records twice. Of each batch, host h of H gets
    every H-th sample from the h-th on.

    Args:
        source: records of the training split.
        layout: the fields of a batch; its config, `config.data`, says how many workers read ahead.
        seed: of the run, 0 to 2³² - 1.
        batch_size: global.
        start_step: batches to skip, at no cost.
        process_index: this host.
        process_count: number of hosts.

    Yields:
        A batch of `batch_size // process_count` samples: the layout's fields.

    Raises:
        ValueError: empty split, or a batch that the hosts cannot share.
    """
    if len(source) == 0:
        raise ValueError("the training split is empty: check config.data.train_split")
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"config.batch_size={batch_size} must be a positive multiple of the {process_count} processes"
        )
    workers, prefetch = layout.config.workers, layout.config.prefetch
    own_size = batch_size // process_count
    # Worker processes put their batches together in shared memory, as Grain does it.
    indexed = _Indexed(source) if workers else _Indexed(source, rows=own_size)
    # As good as endless. Grain's own endless length overflows where a batch is one sample.
    epochs = 2**62 // len(source)
    samples = (
        grain.MapDataset.source(indexed).seed(seed).shuffle().repeat(epochs).random_map(_Prepare(layout))
    )
    # The host's slice comes after everything random: before it, the draws would depend on the host count.
    own = samples[process_index::process_count]
    batches = own.batch(own_size, batch_fn=None if workers else buffers.stack_samples)
    return _read_ahead(batches[start_step:], workers=workers, prefetch=prefetch)


def _read_ahead(batches: grain.MapDataset, *, workers: int, prefetch: int) -> Iterator[dict[str, np.ndarray]]:
    keep_freed_memory()
    reading = grain.ReadOptions(num_threads=prefetch, prefetch_buffer_size=prefetch)
    dataset = batches.to_iter_dataset(reading)
    if workers:
        import absl.flags

        # Grain's workers read absl flags, which nobody parses outside of absl.app.
        absl.flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=workers, per_worker_buffer_size=max(1, prefetch // workers)
            ),
            worker_init_fn=_start_worker,
        )
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        # Threads and processes that outlive the loop would hold batches, and delay the exit.
        iterator.close()


def _start_worker(index: int, count: int) -> None:
    keep_freed_memory()
    _end_with_parent()


def _end_with_parent() -> None:
    """Have this worker process end when the process that trains is killed, which cannot end it any more.

    It would continue waiting for its batches to be taken. What lies in shared memory is then removed by
    Python's resource tracker, which ends with the last process that uses it.
    """

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()
