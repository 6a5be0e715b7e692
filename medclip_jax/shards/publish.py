"""A finished set goes into an object store, file by file, so that a reader never sees half of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from medclip_jax.progress import track
from medclip_jax.shards.fetch import OBJECTS_FILE, SETTINGS_FILE, file_checksum
from medclip_jax.shards.read import PARTS_FOLDER, open_shards
from medclip_jax.shards.record import ShardError
from medclip_jax.shards.store import Store, open_store
from medclip_jax.shards.write import write_text

_AT_ONCE = 4
"""Shards on their way at the same time."""


def check_target(url: str) -> None:
    """See, before the work begins, that a store answers and may be listed.

    Raises:
        ShardError: it does not; the message says what to do.
    """
    open_store(url).names()


def publish(
    folder: Path, url: str, *, progress: bool = True, say: Callable[[str], None] | None = None
) -> None:
    """Copy a finished set into a store: shards, then what describes them, then `prepare.json`.

    Without `prepare.json` it is no set, so readers see all or nothing. Run again after a kill, it leaves out
    what is there already. What it has copied is noted in ``<folder>.uploads.json``.

    Args:
        folder: of the set.
        url: of a folder that is empty, or holds this set or an earlier state of it.
        progress: show a bar.
        say: is given a line about what was done.

    Raises:
        ShardError: `folder` is no finished set, the store holds another one, or does not take it.
    """
    info, store = open_shards(folder), open_store(url)
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and PARTS_FOLDER not in path.relative_to(folder).parts
    )
    others = [name for name in names if name not in info.files and name != SETTINGS_FILE]
    store.make()
    there = store.names()
    replaced = _check_there(store, folder, there, {*names, OBJECTS_FILE})
    journal = _Journal(folder.with_name(f"{folder.name}.uploads.json"), url)
    checksums = {name: file_checksum(folder / name) for name in names}

    def put(name: str) -> bool:
        file = folder / name
        if journal.done.get(name) == checksums[name] and store.size(name) == file.stat().st_size:
            return False
        store.put(file, name)
        return True

    total = sum(info.files.values()) / 1e6
    sent, done = 0, 0.0
    with (
        track(total=round(total), unit="MB", label="upload", show=progress) as bar,
        ThreadPoolExecutor(_AT_ONCE) as pool,
    ):
        for name, copied in zip(info.files, pool.map(put, info.files), strict=True):
            journal.add(name, checksums[name])
            sent += copied
            done += info.files[name] / 1e6
            bar.update(round(done) - bar.n)
    for name in others:
        put(name)
    objects = {name: {"bytes": (folder / name).stat().st_size, "checksum": checksums[name]} for name in names}
    store.write(OBJECTS_FILE, (json.dumps(objects, indent=1) + "\n").encode())
    store.put(folder / SETTINGS_FILE, SETTINGS_FILE)
    for name in replaced:
        store.remove(name)
    if say is not None:
        say(
            f"'{url}' is complete: {sent} of {len(info.files)} shards copied, the others were there. "
            f"'{folder}' may be removed, unless you want to retry rejected studies"
        )


def _check_there(store: Store, folder: Path, there: list[str], own: set[str]) -> list[str]:
    """See that what lies in the store is this set or a state of it; an earlier one stops being a set.

    Returns:
        Files of the earlier state that this one does not have.
    """
    foreign = [name for name in there if name not in own]
    if SETTINGS_FILE not in there:
        if foreign:
            raise ShardError(
                f"'{store.url}' holds other files ({len(foreign)}): give a folder that is new or empty, or "
                "remove them"
            )
        return []
    written, ours = store.read(SETTINGS_FILE), (folder / SETTINGS_FILE).read_bytes()
    if written == ours:
        return []
    try:
        same = json.loads(written)["settings"]["digests"] == json.loads(ours)["settings"]["digests"]
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise ShardError(
            f"'{store.url}' holds a finished set made from other studies, settings or another key: give "
            "another URL, or remove it there"
        )
    store.remove(SETTINGS_FILE)
    return foreign


class _Journal:
    """Which files were copied where, so that a run that was killed need not copy them again."""

    def __init__(self, file: Path, url: str):
        self._file, self._url = file, url
        try:
            written = json.loads(file.read_text())
            self.done: dict[str, str] = dict(written["files"]) if written["url"] == url else {}
        except (OSError, ValueError, KeyError, TypeError):
            self.done = {}

    def add(self, name: str, checksum: str) -> None:
        if self.done.get(name) != checksum:
            self.done[name] = checksum
            write_text(self._file, json.dumps({"url": self._url, "files": self.done}) + "\n")
