"""How fast prepared shards are made and read: one JSON line for each result.

    python tools/bench_shards.py                      # a synthetic chest of 512x512x300 voxels
    python tools/bench_shards.py --scan chest.nii.gz  # a scan of yours

Rates "per core" divide by processor time, so that other work on the machine does not count; `wall` is
what a clock on the wall says. The reading rates are for a warm page cache: storage comes on top.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# One thread, or "per core" would count threads that wait for each other; read when NumPy is loaded.
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import nibabel
import numpy as np
from scipy import ndimage

from medclip_jax.corpora.study import Series, Study
from medclip_jax.shards.prepare import prepare
from medclip_jax.shards.read import open_shards, open_split
from medclip_jax.shards.record import decode
from medclip_jax.shards.settings import PrepareSettings
from medclip_jax.volumes import read_volume


def main() -> None:
    """Run all benchmarks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scan", type=Path, help="a .nii.gz; default: a synthetic chest")
    parser.add_argument("--count", type=int, default=48, help="copies of it to prepare (%(default)s)")
    parser.add_argument("--shape", nargs=3, type=int, default=(112, 224, 224))
    parser.add_argument("--spacing", nargs=3, type=float, default=(3.0, 1.5, 1.5))
    parser.add_argument("--workers", nargs="*", type=int, default=(1, 2))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        scan = args.scan or synthetic_chest(root / "chest.nii.gz")
        settings = PrepareSettings(
            shape=tuple(args.shape), spacing=tuple(args.spacing), tokenizer=None, fractions=(1.0, 0.0, 0.0)
        )
        studies = []
        for index in range(args.count):
            copy = root / f"{index}.nii.gz"
            copy.symlink_to(scan.resolve())
            studies.append(
                Study((Series(copy),), str(index), str(index), str(index), report=f"Case {index}.")
            )
        for workers in args.workers:
            out = root / f"shards{workers}"
            job = functools.partial(
                prepare, studies, out, settings, workers=workers, key=b"bench", progress=False
            )
            wall, cpu = _clock(job)
            _say("prepare", workers=workers, per_second_wall=args.count / wall, per_core=args.count / cpu)
        info = open_shards(root / f"shards{args.workers[0]}")
        raw_bytes = int(np.prod(info.shape)) * 2
        _say(
            "compression",
            shape=list(info.shape),
            ratio=raw_bytes * args.count / sum(info.files.values()),
            megabytes=sum(info.files.values()) / args.count / 1e6,
        )
        source = open_split(info, "train")
        loops = max(1, 160 // args.count)
        _rate("read and decode", lambda: [source[index] for index in range(len(source))], len(source), loops)
        _rate("read only", lambda: [source.raw(index) for index in range(len(source))], len(source), loops)
        record = source.raw(0)
        _rate("decode only", lambda: decode(record, info.schema), 1, 100)
        texts = open_split(info, "train", fields=["report", "findings"])
        _rate("read, texts only", lambda: [texts[index] for index in range(len(texts))], len(texts), loops)

        def online() -> None:
            from medclip_jax.shards.scan import crop_and_resample

            crop_and_resample(read_volume(scan), info.shape, info.spacing)

        _rate("the same volume from .nii.gz", online, 1, 3)
        _rate("reading .nii.gz alone", lambda: read_volume(scan), 1, 3)


def synthetic_chest(path: Path) -> Path:
    """A body with lungs and scanner-like noise, 512x512x300 voxels of 0.7x0.7x1 mm."""
    random = np.random.default_rng(0)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in (512, 512, 300)), indexing="ij")
    voxels = np.full(x.shape, -1000, np.float32)
    voxels[(x / 0.9) ** 2 + (y / 0.7) ** 2 < 1] = 40
    for side in (-1, 1):
        voxels[((x - side * 0.42) / 0.33) ** 2 + (y / 0.5) ** 2 + (z / 0.9) ** 2 < 1] = -850
    del x, y, z
    # Noise of a standard kernel: 20 HU, correlated over about a millimeter in the plane.
    noise = ndimage.gaussian_filter(random.normal(size=voxels.shape).astype(np.float32), (0.8, 0.8, 0))
    voxels += 20 / noise.std() * noise
    affine = np.diag([0.7, 0.7, 1.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(np.rint(voxels).astype(np.int16), affine), path)
    return path


def _rate(name: str, function: Callable[[], object], volumes: int, loops: int) -> None:
    function()
    wall, cpu = _clock(lambda: [function() for _ in range(loops)])
    total = volumes * loops
    _say(name, per_second_wall=total / wall, per_core=total / cpu, milliseconds_per_volume=1000 * cpu / total)


def _clock(function: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the wall, and of all processors, children included."""
    wall, before = time.perf_counter(), os.times()
    function()
    after = os.times()
    return time.perf_counter() - wall, sum(after[:4]) - sum(before[:4])


def _say(name: str, **values: object) -> None:
    rounded = {k: round(v, 3 if v < 10 else 1) if isinstance(v, float) else v for k, v in values.items()}
    print(json.dumps({"bench": name} | rounded), flush=True)


if __name__ == "__main__":
    main()
