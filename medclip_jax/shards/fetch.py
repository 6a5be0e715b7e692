"""Prepared sets of an object store on this machine: each file is copied once, checked, then read as others.

Random access needs files: the reader of shards is a C++ library that opens paths. So a set is copied to a
cache folder, its small files when it is opened and each shard when a split needs it. Every file is compared
with its checksum and renamed when it is complete, and `prepare.json` comes last; so what lies in the cache
is whole, whoever was killed while writing there.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import IO

from medclip_jax.progress import track
from medclip_jax.shards.arrays import ShardError
from medclip_jax.shards.store import Store, open_store

SETTINGS_FILE = "prepare.json"

OBJECTS_FILE = "objects.json"
"""In the store alone: name of every other file to its bytes and checksum."""

FOLDER_VARIABLE = "MEDCLIP_SHARDS_CACHE"
"""Names the cache folder, on a disk that is large enough; default: below the user's cache folder."""

LIMIT_VARIABLE = "MEDCLIP_SHARDS_CACHE_GB"
"""What all sets together may take there; without it, what the disk has."""

_AT_ONCE = 4
"""Files copied at the same time."""

_MEGABYTE = 1e6

_in_use: dict[Path, IO[str]] = {}
"""Open files whose locks tell other processes that this one reads a set; until the process ends."""


def cache_folder() -> Path:
    """Where sets are kept: ``$MEDCLIP_SHARDS_CACHE``, else `medclip-jax/shards` in the user's cache."""
    if given := os.environ.get(FOLDER_VARIABLE):
        return Path(given)
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "medclip-jax" / "shards"


def file_checksum(path: Path) -> str:
    """BLAKE2b of a file, 128 bits, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@functools.cache
def fetch_set(url: str) -> Path:
    """The folder on this machine that stands for a set in a store; shards are copied when they are needed.

    A process that asks again gets the same folder, also where the set in the store has been replaced.

    Args:
        url: of a set that `medclip prepare` has put there.

    Raises:
        ShardError: there is no complete set, it cannot be read, or it does not fit on the disk.
    """
    store = open_store(url)
    try:
        settings = store.read(SETTINGS_FILE)
    except FileNotFoundError:
        raise ShardError(_why_none(store)) from None
    except ShardError as error:
        if (kept := _kept(url)) is None:
            raise
        print(f"{error}. The copy in '{kept}' is used as it is", file=sys.stderr)
        return _use(kept)
    objects = _read_objects(store, settings)
    digest = hashlib.blake2b(url.encode() + settings, digest_size=6).hexdigest()
    root = cache_folder()
    folder = root / f"{PurePosixPath(url).name}-{digest}"
    root.mkdir(parents=True, exist_ok=True)
    _use(folder)  # before it is looked at: another process may be removing it to make room
    folder.mkdir(exist_ok=True)
    if (folder / SETTINGS_FILE).exists():
        return folder
    shards = json.loads(settings)["files"]
    with _alone(folder):
        source = {"url": url, "objects": objects, "shards": shards}
        _write(_source_file(folder), json.dumps(source).encode())
        names = objects or [name for name in store.names() if not name.startswith(".")]
        _fetch(store, folder, objects, [n for n in names if n not in shards and n != SETTINGS_FILE])
        _write(folder / SETTINGS_FILE, settings)
    return folder


def fetch_files(folder: Path, names: Sequence[str]) -> None:
    """Copy those shards of a set that a split needs and that are not here yet; other folders are left alone.

    Args:
        folder: of a prepared set, from `fetch_set` or any other.
        names: of shards.

    Raises:
        ShardError: one cannot be read, is not what it should be, or does not fit on the disk.
    """
    if all((folder / name).exists() for name in names):
        return
    try:
        source = json.loads(_source_file(folder).read_text())
    except FileNotFoundError:
        return
    _use(folder)
    with _alone(folder):
        missing = [name for name in names if not (folder / name).exists()]
        sizes = {name: source["shards"].get(name, 0) for name in missing}
        _make_room(folder, sum(sizes.values()))
        objects = {name: {"bytes": size} for name, size in sizes.items()} | source["objects"]
        _fetch(open_store(source["url"]), folder, objects, missing, sizes)


def _read_objects(store: Store, settings: bytes) -> Mapping[str, Mapping[str, object]]:
    """Checksums of the files of a set; {} where it was put there by other means than `medclip prepare`."""
    try:
        objects = json.loads(store.read(OBJECTS_FILE))
    except FileNotFoundError:
        return {}
    found = hashlib.blake2b(settings, digest_size=16).hexdigest()
    if objects.get(SETTINGS_FILE, {}).get("checksum") != found:
        raise ShardError(
            f"'{store.url}' is being replaced at this moment, or {OBJECTS_FILE} there is of another set: try "
            "again when `medclip prepare` has ended"
        )
    return objects


def _why_none(store: Store) -> str:
    if store.names():
        return (
            f"'{store.url}' is not complete (no {SETTINGS_FILE}): run the `medclip prepare` command that "
            "writes it again, it continues where it stopped"
        )
    return f"there is no prepared set at '{store.url}': give the URL that `medclip prepare --out` wrote"


def _kept(url: str) -> Path | None:
    """The newest complete copy of a set that is on this machine already."""
    found = []
    for source in cache_folder().glob("*.source.json"):
        folder = source.with_name(source.name.removesuffix(".source.json"))
        with contextlib.suppress(OSError, ValueError):
            if json.loads(source.read_text())["url"] == url and (folder / SETTINGS_FILE).exists():
                found.append((source.stat().st_mtime, folder))
    return max(found)[1] if found else None


def _fetch(
    store: Store,
    folder: Path,
    objects: Mapping[str, Mapping[str, object]],
    names: Sequence[str],
    sizes: Mapping[str, int] | None = None,
) -> None:
    """Copy files; of shards, whose sizes are given, a bar shows how far it is."""
    total = sum((sizes or {}).values()) / _MEGABYTE
    with (
        track(total=round(total), unit="MB", label="fetch", show=bool(sizes)) as bar,
        ThreadPoolExecutor(_AT_ONCE) as pool,
    ):
        tasks = [pool.submit(_fetch_file, store, folder, name, objects.get(name, {})) for name in names]
        done = 0.0
        try:
            for name, task in zip(names, tasks, strict=True):
                task.result()
                done += (sizes or {}).get(name, 0) / _MEGABYTE
                bar.update(round(done) - bar.n)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _fetch_file(store: Store, folder: Path, name: str, expected: Mapping[str, object]) -> None:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ShardError(f"'{store.url}' names a file outside of itself: it was not written by medclip")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    problem = ""
    try:
        for _ in range(2):  # what was damaged on its way is whole the next time
            try:
                store.get(name, partial)
            except FileNotFoundError:
                problem = "is missing"
                break
            size = partial.stat().st_size
            if size != expected.get("bytes", size):
                problem = f"has {size} bytes instead of {expected['bytes']}: it is truncated or changed"
            elif "checksum" in expected and file_checksum(partial) != expected["checksum"]:
                problem = "does not have the checksum that it was written with"
            else:
                os.replace(partial, path)
                return
    finally:
        partial.unlink(missing_ok=True)
    raise ShardError(
        f"{name} in '{store.url}' {problem}. Run the `medclip prepare` command that wrote it again: it puts "
        "back what is missing or of another size (remove what has only changed first)"
    )


def _make_room(folder: Path, needed: int) -> None:
    """Remove sets that nobody reads, the longest unread first, until `needed` bytes fit.

    Raises:
        ShardError: they do not.
    """
    root = folder.parent
    limit = os.environ.get(LIMIT_VARIABLE)
    try:
        most = float(limit) * 1e9 if limit else float("inf")
    except ValueError:
        raise ShardError(f"{LIMIT_VARIABLE} is {limit!r}: give a number of gigabytes") from None
    sizes = {found: _size(found) for found in root.iterdir() if _use_file(found).exists()}

    def fits() -> bool:
        return sum(sizes.values()) + needed <= most and needed <= shutil.disk_usage(root).free

    others = sorted((found for found in sizes if found != folder), key=lambda x: _use_file(x).stat().st_mtime)
    for other in others:
        if fits():
            return
        with open(_use_file(other), "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # a process reads it
                continue
            (other / SETTINGS_FILE).unlink(missing_ok=True)  # so that nobody takes the rest for a set
            shutil.rmtree(other, ignore_errors=True)
            _source_file(other).unlink(missing_ok=True)
            del sizes[other]
    if not fits():
        free, taken = shutil.disk_usage(root).free, sum(sizes.values())
        raise ShardError(
            f"{needed / 1e9:.3g} GB of shards do not fit into '{root}' ({free / 1e9:.3g} GB free, sets there "
            f"take {taken / 1e9:.3g} GB, {LIMIT_VARIABLE} is {limit or 'not set'}): name a folder on a "
            f"larger disk with {FOLDER_VARIABLE}, or raise the limit"
        )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _use(folder: Path) -> Path:
    """Tell other processes, until this one ends, that the set is read."""
    if folder not in _in_use:
        file = open(_use_file(folder), "a")  # noqa: SIM115 (it stays open)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_SH)
        os.utime(_use_file(folder))
        _in_use[folder] = file
    return folder


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process of the machine copy, while the others wait for what it brings.

    Where locks do not reach (other hosts on some file systems), two may copy the same: each renames a
    complete file over an equal one.
    """
    with open(folder.with_name(f"{folder.name}.lock"), "a") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    partial.write_bytes(data)
    os.replace(partial, path)


def _source_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.source.json")


def _use_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.use")
