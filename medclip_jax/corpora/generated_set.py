"""What all generated sets share on disk: splits, workers, and a table that appears last and whole."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import io
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

from medclip_jax.progress import track_each

SPLIT_SHARES = (("test", 0.15), ("validation", 0.15))
"""Shares of patients held out; the rest is for training."""

Task = TypeVar("Task")
Made = TypeVar("Made")


def split_of(seed: int, patient: str) -> str:
    """Split of a patient: a hash of the seed and the id, so that it does not depend on the count."""
    digest = hashlib.blake2b(f"{seed}/{patient}".encode(), digest_size=8).digest()
    share = int.from_bytes(digest, "big") / 2**64
    for name, size in SPLIT_SHARES:
        if share < size:
            return name
        share -= size
    return "train"


def make_all(
    make: Callable[[Task], Made], tasks: Sequence[Task], workers: int, *, label: str, unit: str
) -> list[Made]:
    """The results of `make`, in order, while a bar shows how far it is.

    Args:
        make: a function of a module, of one task.
        tasks: what is to be made.
        workers: processes; 1 runs in this one.
        label, unit: of the bar.
    """
    show = {"total": len(tasks), "label": label, "unit": unit}
    if workers <= 1:
        return list(track_each(map(make, tasks), **show))
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # read by the children when they load NumPy
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(track_each(pool.map(make, tasks, chunksize=4), **show))


def is_whole(recipe_file: Path, recipe: str, table: Path, columns: Sequence[str], count: int) -> bool:
    """Whether a folder holds what the recipe makes; one that misses a file does not.

    Args:
        recipe_file: what the folder was made from.
        recipe: what it is to be made from.
        table: of `count` rows.
        columns: of the table that name files.
        count: rows.
    """
    try:
        same = recipe_file.read_text() == recipe
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        return False
    files = (table.parent / row[column] for row in rows for column in columns)
    return same and len(rows) == count and all(file.is_file() for file in files)


def table_text(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as CSV, with the columns of the first."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def replace_file(path: Path, text: str) -> None:
    """Write a file that appears under its name only when it is complete."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process writes to the folder. The system lets go even after kill -9."""
    with open(folder / "lock", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
