"""Write a prepared folder: shards first, each by an atomic rename; what makes the folder complete, last."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medclip_jax.shards.read import PARTS_FOLDER, SETTINGS_FILE, PreparedInfo, open_shards
from medclip_jax.shards.record import Schema, encode

DATASET = "medclip"
"""Name of the TFDS dataset."""

SHARD_PATTERN = f"{DATASET}-*.array_record-*"
"""Glob of every shard in a folder."""

# Records are compressed already, and random access wants one record in a group.
_OPTIONS = "group_size:1,uncompressed"


def shard_name(split: str, index: int, count: int) -> str:
    """File name of a shard in TFDS's default template."""
    return f"{DATASET}-{split}.array_record-{index:05d}-of-{count:05d}"


def write_shard(path: Path, records: Iterable[bytes]) -> int:
    """Write one ArrayRecord file; it appears under its name only when it is complete and on the disk.

    Args:
        path: of the file.
        records: serialized records.

    Returns:
        Its size in bytes.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    partial = _partial(path)
    writer = ArrayRecordWriter(str(partial), _OPTIONS)
    try:
        for record in records:
            writer.write(record)
        writer.close()
        synchronize(partial)
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(RuntimeError):
            writer.close()
        partial.unlink(missing_ok=True)
        if isinstance(error, RuntimeError):  # array_record's only class; the text names the system's reason
            full = os.strerror(errno.ENOSPC) in str(error)
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from None
        raise
    return path.stat().st_size


def write_text(path: Path, text: str) -> None:
    """Write a small file by an atomic rename."""
    partial = _partial(path)
    try:
        partial.write_text(text)
        synchronize(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def create_text(path: Path, text: str, mode: int = 0o666) -> bool:
    """Write a small file, completely or not at all, unless it exists.

    Args:
        path: of the file.
        text: its content.
        mode: permissions, before the process's mask.

    Returns:
        False where the file exists; it is left as it is, also when two processes do this at once.
    """
    partial = _partial(path)
    try:
        with open(partial, "w", opener=lambda name, flags: os.open(name, flags | os.O_EXCL, mode)) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(partial, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            if path.exists():
                return False
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return True


def _partial(path: Path) -> Path:
    """Where a file lies until it is complete: a new name, for another machine may write the same file."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")


def synchronize(path: Path) -> None:
    """Have the system put a file on the disk, where errors such as a full one come up."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def finish(
    folder: Path, schema: Schema, shards: Mapping[str, Sequence[int]], settings: Mapping[str, object]
) -> PreparedInfo:
    """Make a folder whose shards are in place a TFDS dataset, and mark it as complete.

    Args:
        folder: holds `shard_name(split, i, len(shards[split]))` for every shard.
        schema: of every record.
        shards: split to the number of records in each of its shards, none of them 0.
        settings: what `prepare` was told, for `prepare.json`.
    """
    import tensorflow_datasets as tfds

    files = {
        name: (folder / name).stat().st_size
        for split, lengths in shards.items()
        for name in (shard_name(split, index, len(lengths)) for index in range(len(lengths)))
    }
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=DATASET, filetype_suffix="array_record"
    )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=schema.features(),
        split_infos=[
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=list(lengths),
                num_bytes=sum(size for name, size in files.items() if name.startswith(f"{DATASET}-{split}.")),
                filename_template=template.replace(split=split),
            )
            for split, lengths in shards.items()
        ],
        version="1.0.0",
        check_data=False,
        description="Volumes and reports prepared by medclip; see manifest.jsonl and prepare.json.",
    )
    written = {
        "shape": schema.shape,
        "spacing": schema.spacing,
        "findings": schema.findings,
        "organs": schema.organs,
        "measurements": schema.measurements,
        "cell": schema.cell,
        "arrays": [spec.to_json() for spec in schema.arrays.values()],
        "splits": {split: sum(lengths) for split, lengths in shards.items()},
        "settings": dict(settings),
        "files": files,
    }
    write_text(folder / SETTINGS_FILE, json.dumps(written, indent=1) + "\n")
    shutil.rmtree(folder / PARTS_FOLDER, ignore_errors=True)
    return open_shards(folder)


def write_shards(
    folder: str | os.PathLike,
    schema: Schema,
    splits: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    per_shard: int = 64,
) -> PreparedInfo:
    """Write records that are in memory as a prepared folder, without manifest or tokenizer.

    Args:
        folder: created if needed.
        schema: of every record.
        splits: split name to its records, as `record.encode` takes them.
        per_shard: records in one shard.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lengths: dict[str, list[int]] = {}
    for split, records in ((name, records) for name, records in splits.items() if records):
        starts = range(0, len(records), per_shard)
        lengths[split] = [len(records[start : start + per_shard]) for start in starts]
        for index, start in enumerate(starts):
            write_shard(
                folder / shard_name(split, index, len(starts)),
                (encode(record, schema)[0] for record in records[start : start + per_shard]),
            )
    return finish(folder, schema, lengths, {})
