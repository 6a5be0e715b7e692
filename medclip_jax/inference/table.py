"""Vectors of an archive on their way into one Parquet file: parts first, each complete or absent."""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Float32

from medclip_jax.inference.scans import Entry
from medclip_jax.shards.write import synchronize, write_text

PART = 32
"""Scans in a part: what a kill can cost."""

ROW_GROUP = 4096
"""Rows of the merged file that are derived and written at once."""

_KEY = b"medclip"
_CENTER = ("center_x", "center_y", "center_z")
_KEYS = ("scan", "id", *_CENTER)
_UNCERTAINTY = "uncertainty"

Derive = Callable[[Float32[np.ndarray, "N E"]], Mapping[str, Float[np.ndarray, " N"]]]
"""Further columns from vectors."""


class Row(NamedTuple):
    """A scan that was embedded; `uncertainty` is the trace of its covariance where the model has one."""

    entry: Entry
    vector: Float32[np.ndarray, " E"]
    notes: tuple[str, ...]
    uncertainty: float | None = None


class Failure(NamedTuple):
    """A scan that could not be used, and why."""

    entry: Entry
    code: str
    reason: str


class Table:
    """`OUT.parquet`, `OUT.parts/` while it is made, `OUT.failed.csv`. Use it as a context manager.

    A scan is known by its path as given, its id and its center. Parts hold vectors and notes; what follows
    from vectors (probabilities, cosines) is computed when they are merged.

    Args:
        out: file to write, ending in .parquet.
        origin: what the vectors depend on, such as the model; JSON. Must be that of what lies there.
        restart: discard what lies there.

    Raises:
        ValueError: `out` has another ending, exists and was not written by this class, or was made with
            another origin; or another process is writing it.
    """

    def __init__(self, out: str | os.PathLike, origin: Mapping[str, Any], *, restart: bool = False):
        self.out = Path(out)
        if self.out.suffix != ".parquet":
            raise ValueError(f"--out {out}: the vectors are written as a Parquet file, name it .parquet")
        self.parts = self.out.with_suffix(".parts")
        self.failed = self.out.with_suffix(".failed.csv")
        self.origin = json.loads(json.dumps(origin))
        self.restart = restart
        self.done: set[tuple] = set()
        self._rows: list[Row] = []

    def __enter__(self) -> Table:
        self.parts.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.parts / "lock", "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise ValueError(f"another process is writing {self.out}: wait, or use another --out") from None
        except OSError as error:
            # Some network file systems know no locks; parts are complete all the same.
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
        try:
            self._open()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            # Also what was embedded before an interruption, down to the last batch.
            self._flush()
        finally:
            self._close()

    def add(self, row: Row) -> None:
        """Keep a row; every `PART` rows become a part on the disk."""
        self._rows.append(row)
        if len(self._rows) >= PART:
            self._flush()

    def merge(self, entries: Sequence[Entry], derive: Derive) -> int:
        """Write all vectors as one file in the order of `entries`, and remove the parts.

        Args:
            entries: scans, those without a vector are left out.
            derive: gives further columns; called on blocks of rows.

        Returns:
            Rows written; with 0 there is no file.
        """
        self._flush()
        tables = [pq.read_table(file) for file in self._files()]
        if not tables:
            return 0
        width = tables[0].schema.field("embedding").type.list_size
        table = pa.concat_tables(_completed(table, width) for table in tables).combine_chunks()
        place = {key: index for index, key in enumerate(_keys(table))}
        wanted = [place[key] for entry in entries if (key := _key(entry)) in place]
        if not wanted:
            return 0
        table = table.take(pa.array(wanted)).combine_chunks()
        empty = [name for name in (*_KEYS[1:], _UNCERTAINTY) if table.column(name).null_count == len(wanted)]
        partial = self.parts / "merged.partial"
        writer = None
        try:
            for start in range(0, len(wanted), ROW_GROUP):
                block = table.slice(start, ROW_GROUP)
                vectors = block.column("embedding").combine_chunks().flatten().to_numpy().reshape(-1, width)
                columns = {name: np.asarray(c, np.float32) for name, c in derive(vectors).items()}
                block = block.drop_columns([*empty, "notes"])
                for name, column in columns.items():
                    block = block.append_column(name, pa.array(column))
                block = block.append_column("notes", table.column("notes").slice(start, ROW_GROUP))
                block = block.replace_schema_metadata({_KEY: json.dumps(self.origin)})
                writer = writer or pq.ParquetWriter(partial, block.schema)
                writer.write_table(block, row_group_size=ROW_GROUP)
        finally:
            if writer is not None:
                writer.close()
        synchronize(partial)
        os.replace(partial, self.out)
        for file in self.parts.glob("part-*"):
            file.unlink()
        return len(wanted)

    def write_failures(self, failures: Sequence[Failure]) -> None:
        """Write `OUT.failed.csv`, or remove one that no longer holds.

        Args:
            failures: of this run.
        """
        if not failures:
            self.failed.unlink(missing_ok=True)
            return
        text = io.StringIO(newline="")
        table = csv.writer(text, lineterminator="\n")
        table.writerow(("scan", "id", "code", "reason"))
        table.writerows((f.entry.scan, f.entry.id or "", f.code, f.reason) for f in failures)
        write_text(self.failed, text.getvalue())

    def is_done(self, entry: Entry) -> bool:
        """Whether the scan's vector is there."""
        return _key(entry) in self.done

    def check_all_wanted(self, entries: Sequence[Entry]) -> None:
        """Refuse to drop vectors that lie there and are not requested.

        Raises:
            ValueError: there are such; the message says what to do.
        """
        lost = self.done - {_key(entry) for entry in entries}
        if lost:
            raise ValueError(
                f"{self.out} holds {len(lost)} scans that are not among those given, such as "
                f"{min(key[0] for key in lost)}: give them too, write to another --out, or discard "
                "everything there with --restart"
            )

    def _open(self) -> None:
        if self.out.exists() and _origin(self.out) is None:
            raise ValueError(f"{self.out} was not written by medclip embed: give another --out")
        for file in self.parts.glob("*.partial"):
            file.unlink()
        if self.restart:
            for file in self._files():
                file.unlink()
        for file in self._files():
            found = _origin(file)
            if found is None:  # cut short by the disk: what it held is embedded again
                file.unlink()
                continue
            names = sorted({*found, *self.origin})
            if changed := [name for name in names if found.get(name) != self.origin.get(name)]:
                raise ValueError(
                    f"{file} was made with another {' and '.join(changed)}: use another --out, or discard "
                    "what is there with --restart"
                )
            self.done.update(_keys(_completed(pq.read_table(file, columns=_present(file)), 0)))

    def _files(self) -> list[Path]:
        """What holds vectors: the merged file, then the parts."""
        return [*([self.out] if self.out.exists() else []), *sorted(self.parts.glob("part-*.parquet"))]

    def _flush(self) -> None:
        if not self._rows:
            return
        numbers = [int(file.stem.rpartition("-")[2]) for file in self.parts.glob("part-*.parquet")]
        path = self.parts / f"part-{max(numbers, default=-1) + 1:05d}.parquet"
        partial = path.with_suffix(".partial")
        pq.write_table(_table(self._rows, {_KEY: json.dumps(self.origin)}), partial)
        synchronize(partial)
        os.replace(partial, path)
        self._rows = []

    def _close(self) -> None:
        self._lock.close()
        if not any(self.parts.glob("part-*")):
            shutil.rmtree(self.parts, ignore_errors=True)


def _table(rows: Sequence[Row], metadata: Mapping[bytes, str]) -> pa.Table:
    width = len(rows[0].vector)
    centers = [row.entry.center or (None, None, None) for row in rows]
    flat = np.ascontiguousarray(np.stack([row.vector for row in rows]), np.float32).ravel()
    columns = {
        "scan": pa.array([row.entry.scan for row in rows], pa.string()),
        "id": pa.array([row.entry.id for row in rows], pa.string()),
        **{name: pa.array([c[i] for c in centers], pa.float64()) for i, name in enumerate(_CENTER)},
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), width),
        _UNCERTAINTY: pa.array([row.uncertainty for row in rows], pa.float32()),
        "notes": pa.array(["; ".join(row.notes) for row in rows], pa.string()),
    }
    return pa.table(columns).replace_schema_metadata(metadata)


def _completed(table: pa.Table, width: int) -> pa.Table:
    """The columns of a part from a table that may lack optional ones or have more."""
    types = {"scan": pa.string(), "id": pa.string(), **dict.fromkeys(_CENTER, pa.float64())}
    if width:
        vector = {"embedding": pa.list_(pa.float32(), width), _UNCERTAINTY: pa.float32()}
        types |= {**vector, "notes": pa.string()}
    return pa.table(
        {
            name: table.column(name).cast(kind) if name in table.column_names else pa.nulls(len(table), kind)
            for name, kind in types.items()
        }
    )


def _present(file: Path) -> list[str]:
    return [name for name in pq.read_schema(file).names if name in _KEYS]


def _keys(table: pa.Table) -> Iterator[tuple]:
    return zip(*(table.column(name).to_pylist() for name in _KEYS), strict=True)


def _key(entry: Entry) -> tuple:
    return (entry.scan, entry.id, *(entry.center or (None, None, None)))


def _origin(file: Path) -> dict[str, Any] | None:
    """What a file of ours was made with; None for any other file."""
    with contextlib.suppress(pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return json.loads(pq.read_schema(file).metadata[_KEY])
    return None
