"""Features of volumes on disk: each volume goes through a model once, whatever is evaluated how often.

What a model makes of a split lies in a folder of its own, named by a hash of the weights, the config, the
shards and the split, in files of some volumes each. A file is there whole or not at all, so that a run that
was killed goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

_log = logging.getLogger(__name__)

ROWS = 256
"""Volumes of a file."""

_VERSION = 1
"""Of what the files hold."""

Features = dict[str, Float[np.ndarray, "N width"]]
"""Name of a kind to the features of volumes."""


class FeatureCache:
    """Features of volumes, kept in a folder.

    Args:
        folder: where; it is made. It holds no texts and no ids, but who has the volumes can tell whose
            features these are: keep it where the shards may lie.
        rows: volumes of a file.

    Attributes:
        found: volumes whose features were there.
        made: volumes that were embedded, and whose features are there now.
        damaged: files that could not be read, and were made again.
    """

    def __init__(self, folder: str | os.PathLike, *, rows: int = ROWS):
        self.folder, self._rows = Path(folder), rows
        self.found, self.made = 0, 0
        self.damaged: list[Path] = []

    def features(
        self, key: Mapping[str, Any], count: int, embed: Callable[[Sequence[int]], Iterator[Features]]
    ) -> Features:
        """The features of all volumes of a split; those that are not there are embedded and kept.

        Args:
            key: all that they follow from, as JSON can hold it.
            count: number of volumes.
            embed: rows to their features, batch by batch, in order.

        Returns:
            Kind to (count, width).

        Raises:
            OSError: the folder cannot be written.
        """
        words = json.dumps({"version": _VERSION, **key}, sort_keys=True, default=str, indent=1)
        folder = self.folder / hashlib.sha256(words.encode()).hexdigest()[:32]
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / "about.json", lambda path: path.write_text(words + "\n"))
        parts = [range(start, min(start + self._rows, count)) for start in range(0, count, self._rows)]
        kept = {part: self._read(folder / _name(part), len(part)) for part in parts}
        missing = [part for part in parts if kept[part] is None]
        self.found += count - sum(map(len, missing))
        if missing:
            batches = embed([row for part in missing for row in part])
            for part, found in zip(missing, _regrouped(batches, map(len, missing)), strict=True):
                _replace(folder / _name(part), lambda path, found=found: _write(path, found))
                kept[part] = found
                self.made += len(part)
        return {kind: np.concatenate([kept[part][kind] for part in parts]) for kind in kept[parts[0]]}

    def described(self) -> str:
        """What came of it, in words."""
        words = f"features of {self.found} volumes from {self.folder}, {self.made} embedded and kept there"
        return words + (f"; {len(self.damaged)} damaged files made again" if self.damaged else "")

    def _read(self, path: Path, rows: int) -> Features | None:
        """What a file holds; None where it is not there, or is not whole."""
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {kind: file[kind] for kind in file.files}
        except FileNotFoundError:
            return None
        # numpy checks the sums of the archive as it reads.
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            why = f"{type(error).__name__}: {error}"
        else:
            if found and all(len(part) == rows for part in found.values()):
                return found
            why = f"it does not hold {rows} volumes"
        _log.warning("%s is damaged (%s): its %d volumes are embedded again", path, why, rows)
        self.damaged.append(path)
        return None


def _name(part: range) -> str:
    return f"{part.start:08d}-{part.stop:08d}.npz"


def _write(path: Path, features: Features) -> None:
    with path.open("wb") as file:
        np.savez(file, **features)
        file.flush()
        os.fsync(file.fileno())


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file such that nobody ever sees a part of it."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _regrouped(batches: Iterator[Features], sizes: Iterator[int]) -> Iterator[Features]:
    """Rows of batches in groups of other sizes, each handed out as soon as it is full."""
    waiting: list[Features] = []
    for size in sizes:
        while sum(len(part["mean"]) for part in waiting) < size:
            waiting.append(next(batches))
        rows = {kind: np.concatenate([part[kind] for part in waiting]) for kind in waiting[0]}
        yield {kind: part[:size] for kind, part in rows.items()}
        waiting = [{kind: part[size:] for kind, part in rows.items()}]
    next(batches, None)  # its bar ends with it
