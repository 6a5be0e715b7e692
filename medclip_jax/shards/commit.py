"""Finished shards on their way into the set: one file of records, one of what became of each study.

A shard is committed by writing the second file after the first, both by atomic rename. So a kill at any
moment leaves it committed or not, and a shard made twice is written over by the same bytes.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from medclip_jax.shards.plan import Examined
from medclip_jax.shards.read import PARTS_FOLDER
from medclip_jax.shards.scan import REJECTED, Outcome
from medclip_jax.shards.settings import SPLITS
from medclip_jax.shards.write import shard_name, write_shard, write_text

Entry = dict[str, object]
"""A line of the manifest."""


@dataclass(frozen=True)
class Commit:
    """A finished shard.

    Attributes:
        name: stem of its files.
        digest: of what the table and the settings say (`ShardPlan.digest`).
        fingerprint: of that and the files it was made from.
        size: bytes of its file of records.
        entries: its lines of the manifest.
        texts: the reports from which a tokenizer may learn: of the records, in the train split only.
    """

    name: str
    digest: str
    fingerprint: str
    size: int
    entries: list[Entry]
    texts: list[str]

    @property
    def split(self) -> str:
        """Of all its records."""
        return self.name.rpartition("-")[0]

    @property
    def text_patients(self) -> list[object]:
        """Hash of the patient of each of `texts`."""
        return [entry["patient"] for entry in self.entries if entry["class"] != REJECTED][: len(self.texts)]

    @property
    def records(self) -> int:
        """How many studies were not rejected."""
        return sum(entry["class"] != REJECTED for entry in self.entries)


def make_shard(
    examined: Examined, outcomes: Iterator[Outcome], folder: Path, observe: Callable[[Entry], None]
) -> Commit:
    """Write a shard and commit it.

    Args:
        examined: the shard.
        outcomes: of its items, in their order.
        folder: of unfinished shards.
        observe: sees every line of the manifest as it comes; what it raises ends the shard uncommitted.

    Raises:
        OSError: it cannot be written.
    """
    shard = examined.shard
    entries: list[Entry] = []
    texts: list[str] = []

    def records() -> Iterator[bytes]:
        for _ in shard.items:
            outcome = next(outcomes)
            entries.append(outcome.entry)
            observe(outcome.entry)
            if outcome.record is not None:
                if shard.split == "train":
                    texts.append(outcome.report)
                yield outcome.record

    size = write_shard(records_file(folder, shard.name), records())
    commit = Commit(shard.name, shard.digest, examined.fingerprint, size, entries, texts)
    write_commit(folder, commit)
    return commit


def write_commit(folder: Path, commit: Commit) -> None:
    """Mark a shard whose records lie in the folder as finished."""
    write_text(folder / f"{commit.name}.json", json.dumps(asdict(commit)))


def committed(out: Path, digests: Mapping[str, str], wanted: Iterable[str]) -> dict[str, Commit]:
    """Shards of a plan that are finished, among the unfinished or already under their final names.

    Args:
        out: the folder that is prepared.
        digests: of every shard of the plan by name, in order.
        wanted: names to look for.
    """
    folder = out / PARTS_FOLDER
    found = {name: commit for name in wanted if (commit := _read(folder, name, digests[name]))}
    lying = {name for name, commit in found.items() if _has_size(records_file(folder, name), commit.size)}
    if len(lying) < len(found) and listed(folder, digests):
        # Shards move only when every one is known, and then these names are the ones they move to.
        every = {name: found.get(name) or _read(folder, name, digest) for name, digest in digests.items()}
        if all(every.values()):
            final = final_names(every.values())
            lying |= {
                name for name in final.keys() & found.keys() if _has_size(out / final[name], found[name].size)
            }
    return {name: commit for name, commit in found.items() if name in lying}


def listed(folder: Path, names: Iterable[str]) -> bool:
    """Whether all shards seem to be committed, by one look at the folder."""
    with contextlib.suppress(FileNotFoundError):
        present = {path.name for path in folder.iterdir()}
        return all(f"{name}.json" in present for name in names)
    return False


def final_names(commits: Iterable[Commit]) -> dict[str, str]:
    """Shard to the file name it gets in the set; shards without a record have none.

    Args:
        commits: all of a set, in order.
    """
    commits = list(commits)
    names = {}
    for split in SPLITS:
        filled = [commit.name for commit in commits if commit.split == split and commit.records]
        names |= {name: shard_name(split, index, len(filled)) for index, name in enumerate(filled)}
    return names


def sweep(folder: Path, names: Iterable[str]) -> None:
    """Remove what writers of these shards left when they were killed."""
    names = set(names)
    for path in folder.glob("*.partial"):
        if path.name.split(".")[0] in names:
            path.unlink(missing_ok=True)


def records_file(folder: Path, name: str) -> Path:
    """Where the records of a shard lie until all are there."""
    return folder / f"{name}.array_record"


def _read(folder: Path, name: str, digest: str) -> Commit | None:
    try:
        commit = Commit(**json.loads((folder / f"{name}.json").read_text()))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return commit if (commit.name, commit.digest) == (name, digest) else None


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
