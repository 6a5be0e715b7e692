"""A checkpoint's checksums: taken before it gets its final name, compared before it is read."""

from __future__ import annotations

import json
import logging
import zlib
from pathlib import Path

from medclip_jax.training.durable import synchronize

CHECKSUMS = "checksums.json"
SEALED = "sealed"
"""Stands in the JSON of a checkpoint that must have checksums; those of early versions had none."""

_RUN = "run/metadata"
_LATER = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""Orbax writes these when it commits, after the checksums were taken."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read; the message says what to do."""


def seal(folder: Path) -> None:
    """Write down size and checksum of each file of a checkpoint, and have all of it on the disk.

    Raises:
        OSError: the disk is full.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.name not in (*_LATER, CHECKSUMS)]
    sums = {
        str(path.relative_to(folder)): [path.stat().st_size, _checksum(path)]
        for path in paths
        if path.is_file()
    }
    (folder / CHECKSUMS).write_text(json.dumps(sums))
    for path in (*paths, folder / CHECKSUMS, folder):
        synchronize(path)


def verify(folder: Path) -> None:
    """Compare a checkpoint with its checksums.

    Orbax may wait for ever, or return wrong numbers, where a file is damaged.

    Raises:
        CheckpointError: a file is missing or changed, or the checksums are gone.
        OSError: a file cannot be read.
    """
    if not (folder / CHECKSUMS).exists():
        if _must_be_sealed(folder):
            raise CheckpointError(f"{CHECKSUMS} is missing")
        logging.warning("%s is of an early version and has no checksums: damage would not be seen", folder)
        return
    try:
        sums = {
            name: (size, value)
            for name, (size, value) in json.loads((folder / CHECKSUMS).read_text()).items()
        }
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{CHECKSUMS} is damaged") from None
    if _RUN not in sums:
        raise CheckpointError(f"{CHECKSUMS} is incomplete")
    for name, (size, value) in sums.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{name} is missing")
        if path.stat().st_size != size:
            raise CheckpointError(f"{name} has {path.stat().st_size} bytes instead of {size}")
        if _checksum(path) != value:
            raise CheckpointError(f"{name} has changed since it was written")


def _must_be_sealed(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / _RUN).read_text()).get(SEALED))
    except (OSError, ValueError, AttributeError, RecursionError):
        raise CheckpointError(f"{_RUN} is damaged, and {CHECKSUMS} is missing") from None


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value
