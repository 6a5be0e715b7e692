"""The manifest: one line for every study that went in, whatever became of it."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medclip_jax.corpora.tables import name_rows
from medclip_jax.shards.read import MANIFEST_FILE
from medclip_jax.shards.record import ShardError
from medclip_jax.shards.scan import ACCEPTED, NOTED, REJECTED

_NEEDED = {
    True: {"class", "reason", "row"},
    False: {"class", "split", "notes", "shard", "index", "checksum"},
}
"""What a line must say of a study that was rejected, and of one that was not."""
PASSING = frozenset(("unreadable", "reader-died", "out-of-memory"))
"""Reasons that may pass: a disk that was away, permissions, too little memory. The next run tries again."""


def may_pass(entry: Mapping[str, object]) -> bool:
    """Whether a line of the manifest is a rejection, of a scan or a mask, that another run may not repeat."""
    reason = str(entry.get("reason", "")).removeprefix("organs-").removeprefix("label-map-")
    return entry["class"] == REJECTED and reason in PASSING


@dataclass(frozen=True)
class Summary:
    """Counts over a manifest.

    Attributes:
        classes: class to number of studies.
        splits: split to number of prepared volumes.
        notes: code of a note to number of studies.
        reasons: code of a rejection to the rows it hit.
        passing: rows that were rejected for a reason that may pass.
        redacted: quantity to the number of records from whose texts it was taken out, and of passages.
        scrubbed: kind of personal data, likewise.
    """

    classes: Mapping[str, int]
    splits: Mapping[str, int]
    notes: Mapping[str, int]
    reasons: Mapping[str, tuple[int, ...]]
    passing: tuple[int, ...] = ()
    redacted: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    scrubbed: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def text(self, seconds: float | None = None) -> str:
        """For people to read."""
        total = sum(self.classes.values())
        counts = ", ".join(f"{self.classes.get(name, 0)} {name}" for name in (ACCEPTED, NOTED, REJECTED))
        lines = [f"{total} studies: {counts}" + (f" ({seconds:.1f} s)" if seconds is not None else "")]
        if self.splits:
            lines.append("splits: " + ", ".join(f"{name} {count}" for name, count in self.splits.items()))
        for what, found in (("redacted", self.redacted), ("scrubbed", self.scrubbed)):
            for name, (records, passages) in found.items():
                lines.append(f"  {what} {name}: {passages} passages in the reports of {records} records")
        for note, count in Counter(self.notes).most_common():
            lines.append(f"  note {note}: {count}")
        for reason, rows in sorted(self.reasons.items(), key=lambda pair: -len(pair[1])):
            shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
            places = "row" if len(rows) == 1 else "rows"
            lines.append(f"  rejected {reason}: {len(rows)} ({places} {shown} of the input)")
        if self.passing:
            lines.append(
                f"{len(self.passing)} could not be read for a reason that may pass "
                f"({name_rows(self.passing)}): "
                "see to it, and run the same command again; it tries them again"
            )
        return "\n".join(lines)


def summarize(entries: Iterable[Mapping[str, object]]) -> Summary:
    """Count classes, splits, notes and reasons.

    Args:
        entries: lines of a manifest.
    """
    classes, splits, notes = Counter(), Counter(), Counter()
    reasons: dict[str, list[int]] = defaultdict(list)
    passing: list[int] = []
    counted = {what: (Counter(), Counter()) for what in ("redacted", "scrubbed")}
    for entry in entries:
        for what, (records, passages) in counted.items():
            records.update(dict.fromkeys(entry.get(what, ()), 1))
            passages.update(entry.get(what, {}))
        if may_pass(entry):
            passing.append(entry["row"])
        classes[entry["class"]] += 1
        if entry["class"] == REJECTED:
            reasons[entry["reason"]].append(entry["row"])
        else:
            splits[entry["split"]] += 1
            # "padding:-2000:3.1%" and "padding:-3024:0.2%" are one kind of note.
            notes.update({str(note).split(":")[0] for note in entry["notes"]})
    return Summary(
        dict(classes),
        dict(splits),
        dict(notes),
        {k: tuple(sorted(rows)) for k, rows in reasons.items()},
        tuple(sorted(passing)),
        *(
            {name: (records[name], passages[name]) for name in sorted(records)}
            for records, passages in counted.values()
        ),
    )


def count_shared_studies(entries: Iterable[Mapping[str, object]]) -> int:
    """Studies of several patients: in sets of an early version, studies of equal number were one.

    Args:
        entries: lines of a manifest.
    """
    patients: dict[object, set[object]] = defaultdict(set)
    for entry in entries:
        if entry["class"] != REJECTED:
            patients[entry.get("study")].add(entry.get("patient"))
    return sum(len(owners) > 1 for owners in patients.values())


def read_manifest(folder: str | Path) -> list[dict[str, object]]:
    """Read the manifest of a prepared folder.

    Raises:
        ShardError: there is none, or it is damaged.
    """
    path = Path(folder) / MANIFEST_FILE
    again = "copy it again from where the set was prepared, or prepare the set again"
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        raise ShardError(
            f"'{folder}' has no {MANIFEST_FILE}: it was not written by `medclip prepare`"
        ) from None
    except (OSError, ValueError) as error:
        raise ShardError(f"{path} cannot be read ({error}): {again}") from None
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            missing = _NEEDED[entry["class"] == REJECTED] - entry.keys()
            if missing:
                raise ValueError(f"no {', '.join(sorted(missing))}")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ShardError(f"{path}, line {number}, is damaged ({error}): {again}") from None
        entries.append(entry)
    return entries
