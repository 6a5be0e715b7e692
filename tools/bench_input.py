"""What a volume costs on its way from a prepared shard to a batch: one JSON line for each part.

    python tools/bench_input.py
    python tools/bench_input.py --batches 5000 --shape 16 64 64   # does memory stay flat?

Rates divide by processor time, so that other work on the machine does not count; the shards lie in the page
cache, and storage comes on top. `faults` are the pages that the system had to hand out anew.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from scipy import ndimage

from medclip_jax.fields import Layout
from medclip_jax.objectives.base import DataSpec
from medclip_jax.pipeline import train_batches
from medclip_jax.shards.read import open_shards, open_split
from medclip_jax.shards.record import Schema, decode
from medclip_jax.shards.write import write_shards


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", nargs=3, type=int, default=(112, 224, 224))
    parser.add_argument("--records", type=int, default=24, help="volumes in the set (%(default)s)")
    parser.add_argument("--batches", type=int, default=24, help="to read in the last part (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--prefetch", type=int, default=2, help="threads that read (%(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        schema = Schema(tuple(args.shape), (3.0, 1.5, 1.5))
        write_shards(folder, schema, {"train": list(made_records(args.records, schema.shape))})
        info = open_shards(folder)
        source = open_split(info, "train", fields=("volume", "study"))
        voxels = 2 * args.records * int(np.prod(schema.shape))
        say("compression", ratio=round(voxels / sum(info.files.values()), 2))
        everything = range(len(source))
        measure("read", lambda: [source.raw(index) for index in everything], len(source))
        record = source.raw(0)
        measure(
            "decode", lambda: [decode(record, info.schema, source.fields) for _ in everything], len(source)
        )
        measure("read and decode", lambda: [source[index] for index in everything], len(source))
        spec = DataSpec(schema.shape, schema.spacing)
        layout = Layout(("volume",), spec, ConfigDict({"workers": 0, "prefetch": args.prefetch}))
        batches = train_batches(source, layout, seed=0, batch_size=args.batch_size)
        for part in ("first batches", "batches"):
            measure(part, lambda: take(batches, args.batches), args.batches * args.batch_size)
        batches.close()


def take(batches: Iterator[dict[str, np.ndarray]], count: int) -> None:
    """Touch a voxel of every batch and let go of it."""
    for batch in itertools.islice(batches, count):
        batch["volume"][:, 0, 0, 0].sum()


def made_records(count: int, shape: tuple[int, ...]) -> Iterator[dict[str, object]]:
    """A body with lungs in the noise of a scanner, 20 HU, smooth over a voxel."""
    generator = np.random.default_rng(0)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij")
    body = np.full(shape, -1000, np.float32)
    body[(x / 0.9) ** 2 + (y / 0.7) ** 2 < 1] = 40
    for side in (-1, 1):
        body[((x - side * 0.42) / 0.33) ** 2 + (y / 0.5) ** 2 + (z / 0.9) ** 2 < 1] = -850
    noise = ndimage.gaussian_filter(generator.normal(size=shape).astype(np.float32), (0, 0.6, 0.6))
    noise *= 20 / noise.std()
    texts = dict.fromkeys(("report", "findings_text", "impression", "statements"), "There is no nodule.")
    for index in range(count):
        volume = np.rint(body + np.roll(noise, index, axis=0)).astype(np.int16)
        none = np.zeros(0, np.int8)
        yield texts | dict(
            id=str(index), study=index, patient=index, volume=volume, findings=none, labels=none,
            measurements=np.zeros(0, np.float32),
        )  # fmt: skip


def measure(part: str, work: Callable[[], object], volumes: int) -> None:
    """Do something once and say what it cost for each volume."""
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    work()
    after, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - start
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    say(
        part,
        per_core=round(volumes / (user + system), 1),
        milliseconds=round(1000 * (user + system) / volumes, 2),
        of_it_system=round(1000 * system / volumes, 2),
        faults=round((after.ru_minflt - before.ru_minflt) / volumes),
        per_second_wall=round(volumes / wall, 1),
        resident_mib=resident >> 20,
    )


def say(part: str, **values: object) -> None:
    """One line."""
    print(json.dumps({"part": part} | values), flush=True)


if __name__ == "__main__":
    main()
