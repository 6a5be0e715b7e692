"""Open a finished set again: its shards become unfinished ones, of which some are made anew."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from medclip_jax.shards.commit import Commit, Entry, final_names, records_file, write_commit
from medclip_jax.shards.manifest import read_manifest
from medclip_jax.shards.merge import TWIN_NOTE
from medclip_jax.shards.plan import ShardPlan
from medclip_jax.shards.read import MANIFEST_FILE, PARTS_FOLDER, SETTINGS_FILE, PreparedInfo
from medclip_jax.shards.record import ShardError
from medclip_jax.shards.scan import ACCEPTED, NOTED, REJECTED
from medclip_jax.shards.settings import PrepareSettings
from medclip_jax.shards.texts import read_texts
from medclip_jax.shards.write import write_shard


def read_commits(info: PreparedInfo, shards: Sequence[ShardPlan]) -> dict[str, Commit]:
    """What was committed of each shard of a finished set, but for its texts (see `with_texts`).

    Args:
        info: of the set.
        shards: the plan that it was made by.

    Raises:
        ShardError: its manifest is damaged, or of other studies.
    """
    entries = read_manifest(info.folder)
    commits: dict[str, Commit] = {}
    place = 0
    for shard, fingerprint in zip(shards, info.settings["fingerprints"], strict=True):
        found = entries[place : place + len(shard.items)]
        place += len(shard.items)
        ids = [(entry.get("row"), entry.get("id"), entry.get("patient")) for entry in found]
        if ids != [(item.row, item.id, item.patient_hash) for item in shard.items]:
            raise ShardError(
                f"{info.folder / MANIFEST_FILE} does not list the studies of this set: it is damaged or "
                "another set's; copy it again, or prepare the set again"
            )
        size = next((info.files.get(entry["shard"], 0) for entry in found if entry["class"] != REJECTED), 0)
        commits[shard.name] = Commit(
            shard.name, shard.digest, fingerprint, size, [_committed(entry) for entry in found], []
        )
    return commits


def with_texts(commit: Commit, shard: ShardPlan, settings: PrepareSettings) -> Commit:
    """A commit of `read_commits` with the texts from which a tokenizer may learn.

    Args:
        commit: of the shard.
        shard: of the plan.
        settings: resolved.
    """
    texts = [
        read_texts(item.study, settings).report
        for item, entry in zip(shard.items, commit.entries, strict=True)
        if shard.split == "train" and entry["class"] != REJECTED
    ]
    return replace(commit, texts=texts)


def _committed(entry: Entry) -> Entry:
    """A line of the manifest as it was before the set was put together."""
    if entry["class"] == REJECTED:
        return entry
    entry = {name: value for name, value in entry.items() if name not in ("shard", "index")}
    notes = [note for note in entry["notes"] if note != TWIN_NOTE]
    return entry | {"notes": notes, "class": NOTED if notes else ACCEPTED}


def reopen(info: PreparedInfo, commits: Mapping[str, Commit], kept: Sequence[str]) -> None:
    """Make a finished set an unfinished one; from here on, a run that is cut off continues as any other does.

    The caller holds the lock, and the shards that are made anew lie among the unfinished ones already.

    Args:
        info: of the set.
        commits: from `read_commits`.
        kept: names of the shards that stay as they are.
    """
    folder: Path = info.folder / PARTS_FOLDER
    final = final_names(commits.values())
    moved = []
    for name in kept:
        target = records_file(folder, name)
        commit = commits[name]
        if name not in final:  # all of its studies were rejected
            commit = Commit(**{**vars(commit), "size": write_shard(target, ())})
        else:
            # A second name of the same file: nothing is copied, and it is there whenever a kill comes.
            with contextlib.suppress(FileExistsError):
                try:
                    os.link(info.folder / final[name], target)
                except OSError as error:
                    if isinstance(error, FileExistsError):
                        raise
                    moved.append(name)  # a file system without links
        write_commit(folder, commit)
    (info.folder / SETTINGS_FILE).unlink()
    for name in moved:
        os.replace(info.folder / final[name], records_file(folder, name))
