"""Phantoms on disk, in the layout of `corpora.folder`."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import fcntl
import hashlib
import io
import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nibabel
import numpy as np

from medclip_jax.corpora.phantom.generate import generate
from medclip_jax.corpora.phantom.organs import ORGAN_CLASSES
from medclip_jax.corpora.phantom.settings import FINDINGS, PhantomSettings
from medclip_jax.progress import track_each

_RECIPE_FILE = "phantoms.json"
"""What the phantoms of a folder were made from; written before the table, which is written last."""

SPLIT_SHARES = (("test", 0.15), ("validation", 0.15))
"""Shares of patients held out; the rest is for training."""


def split_of(seed: int, patient: str) -> str:
    """Split of a patient: a hash of the seed and the id, so that it does not depend on the count."""
    digest = hashlib.blake2b(f"{seed}/{patient}".encode(), digest_size=8).digest()
    share = int.from_bytes(digest, "big") / 2**64
    for name, size in SPLIT_SHARES:
        if share < size:
            return name
        share -= size
    return "train"


def _write_one(task: tuple[str, int, int, PhantomSettings]) -> dict[str, object]:
    """Generate and write one phantom; return its row of the table."""
    folder, seed, index, settings = task
    phantom = generate(seed, index, settings=settings)
    name = f"{phantom.volume_id}.nii.gz"
    for kind, array in (("volumes", phantom.voxels), ("organs", phantom.organs)):
        image = nibabel.Nifti1Image(np.ascontiguousarray(array), phantom.affine)
        image.header.set_xyzt_units("mm")
        nibabel.save(image, Path(folder) / kind / name)
    return {
        "volume": f"volumes/{name}",
        "study": phantom.study_id,
        "patient": phantom.patient_id,
        "report": phantom.report,
        "findings": phantom.sections["findings"],
        "impression": phantom.sections["impression"],
        "split": split_of(seed, phantom.patient_id),
        "organs": f"organs/{name}",
        "organ_classes": "organ_classes.json",
        **{f"label:{name}": phantom.labels[name] for name in FINDINGS},
        **{f"measurement:{name}": f"{value:.6g}" for name, value in phantom.measurements.items()},
    }


def write(
    folder: str | Path,
    count: int,
    *,
    seed: int = 0,
    settings: PhantomSettings | None = None,
    workers: int = 1,
    start: int = 0,
) -> Path:
    """Write `count` phantoms with organ maps and `studies.csv`, in parallel; the table appears last.

    Phantoms that the same call wrote before are kept. Of several processes that want the same ones, the
    first generates them and the others wait.

    Args:
        folder: made if missing.
        count: volumes to write.
        seed: of the set.
        settings: `PhantomSettings()` if None.
        workers: processes; 1 runs in this one.
        start: index of the first volume, to extend a set or draw a disjoint one.

    Returns:
        The path of `studies.csv`.

    Raises:
        ValueError: `count` is below 1.
        concurrent.futures.process.BrokenProcessPool: a worker was killed.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    import medclip_jax

    folder = Path(folder)
    for kind in ("volumes", "organs"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    settings = settings or PhantomSettings()
    recipe = json.dumps(
        {
            "version": medclip_jax.__version__,
            "count": count,
            "seed": seed,
            "start": start,
            "settings": dataclasses.asdict(settings),
        }
    )
    table = folder / "studies.csv"
    with _alone(folder):
        if _is_whole(folder, table, recipe, count):
            return table
        table.unlink(missing_ok=True)  # of another recipe
        rows = _generate_all([(str(folder), seed, start + n, settings) for n in range(count)], workers)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        _replace(folder / "organ_classes.json", json.dumps(ORGAN_CLASSES, indent=1))
        _replace(folder / _RECIPE_FILE, recipe)
        _replace(table, text.getvalue())
    return table


def _generate_all(
    tasks: list[tuple[str, int, int, PhantomSettings]], workers: int
) -> list[dict[str, object]]:
    show = {"total": len(tasks), "label": "phantoms", "unit": "volume"}
    if workers <= 1:
        return list(track_each(map(_write_one, tasks), **show))
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # read by the children when they load NumPy
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(track_each(pool.map(_write_one, tasks, chunksize=4), **show))


def _is_whole(folder: Path, table: Path, recipe: str, count: int) -> bool:
    """Whether the folder holds what the recipe makes; a volume that was deleted is made again."""
    try:
        same = (folder / _RECIPE_FILE).read_text() == recipe
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        return False
    files = (folder / row[kind] for row in rows for kind in ("volume", "organs"))
    return same and len(rows) == count and all(file.is_file() for file in files)


def _replace(path: Path, text: str) -> None:
    """Write a file that appears under its name only when it is complete."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process writes to the folder. The system lets go even after kill -9."""
    with open(folder / "lock", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
