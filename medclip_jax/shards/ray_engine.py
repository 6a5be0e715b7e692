"""Shards made on a Ray cluster: the optional extra `ray`.

A task makes one shard and commits it, as a worker process does; so the folder must be reachable under the
same path on every machine, and so must the scans. What travels through Ray is the plan of each shard, with
raw ids and reports, and its commit: the cluster must be as private as the scans.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from medclip_jax.pool import map_guarded
from medclip_jax.shards.commit import Commit, Entry, make_shard
from medclip_jax.shards.plan import Examined
from medclip_jax.shards.record import ShardError
from medclip_jax.shards.scan import prepare_study
from medclip_jax.shards.settings import PrepareSettings
from medclip_jax.shards.work import reader_died

_AHEAD = 2
"""Tasks handed in for each core: a Ray scheduler slows down under 100,000 waiting tasks."""


def make_shards_on_ray(
    todo: Sequence[Examined],
    settings: PrepareSettings,
    folder: Path,
    workers: int | None,
    observe: Callable[[Entry], None],
) -> Iterator[Commit]:
    """Make and commit shards on the cluster that RAY_ADDRESS names, else on one that is started here.

    Args:
        todo: in any order; they come back in the order in which they end.
        settings: resolved.
        folder: of unfinished shards, absolute or below the working folder; the same on every machine.
        workers: cores to use of a cluster that is started here; default: all.
        observe: sees every line of the manifest, a shard at a time.

    Raises:
        ShardError: Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise ShardError(
            "--engine ray needs Ray, which is not installed: pip install 'medclip-jax[ray]', or leave "
            "--engine out"
        ) from None
    started = not ray.is_initialized()
    if started:
        _connect(workers)
    # A crash is not tried again as it was: the file may do it. The guarded task outlives its readers.
    task = ray.remote(num_cpus=1, max_retries=0)(_make_one)
    guarded_task = ray.remote(num_cpus=1, max_retries=5)(_make_one_guarded)
    lost = (
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.OutOfMemoryError,
        ray.exceptions.NodeDiedError,
    )
    waiting: dict[ray.ObjectRef, Examined] = {}
    rest = iter(todo)
    where = folder.absolute()
    try:
        limit = max(1, int(ray.cluster_resources().get("CPU", 1))) * _AHEAD
        while True:
            while len(waiting) < limit and (examined := next(rest, None)) is not None:
                waiting[task.remote(examined, settings, where)] = examined
            if not waiting:
                return
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            examined = waiting.pop(ready)
            try:
                commit = ray.get(ready)
            except lost:
                waiting[guarded_task.remote(examined, settings, where)] = examined
                continue
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            for entry in commit.entries:
                observe(entry)
            yield commit
    finally:
        if started:
            ray.shutdown()


def _connect(workers: int | None) -> None:
    import ray

    # Nothing about a hospital's cluster goes to Ray's makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
    else:
        ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False)


def _make_one(examined: Examined, settings: PrepareSettings, folder: Path) -> Commit:
    items = examined.shard.items
    return make_shard(examined, (prepare_study(item, settings) for item in items), folder, _ignore)


def _make_one_guarded(examined: Examined, settings: PrepareSettings, folder: Path) -> Commit:
    function = functools.partial(prepare_study, settings=settings)
    return make_shard(examined, map_guarded(function, examined.shard.items, reader_died), folder, _ignore)


def _ignore(entry: Entry) -> None:
    """The driver counts, when it gets the commit."""
