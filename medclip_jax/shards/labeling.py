"""A user's own table of labels, joined to the records of a prepared set by the hashes of its ids.

Every row ends joined, or counted and named by its number with the reason. What contradicts itself is refused.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medclip_jax.corpora.cells import read_path
from medclip_jax.corpora.tables import TableError, name_rows
from medclip_jax.progress import track_each
from medclip_jax.reports.definitions import BUILT_IN, Findings
from medclip_jax.shards.keys import hashed_integer, hashed_text
from medclip_jax.shards.label_rows import LabelRow, LabelRows
from medclip_jax.shards.label_tables import UNITS, LabelTable, Values, check_name
from medclip_jax.shards.read import PreparedInfo, open_split
from medclip_jax.shards.record import GROUPS
from medclip_jax.shards.scan import REJECTED


@dataclass(frozen=True)
class Labeling:
    """What came of joining a table to a set.

    Attributes:
        table: to be laid over the records.
        remarks: a sentence each, for the screen; rows are named by number.
        matched: (rows of the table, volumes of the set) that found each other.
        counts: column to split to (known, present of a label or distinct of a group, unknown), of volumes.
        unmatched: ("row", number in the table, its id) and ("volume", row that the set was prepared from,
            ""), of all without a partner: private.
    """

    table: LabelTable
    remarks: tuple[str, ...]
    matched: tuple[int, int]
    counts: Mapping[str, Mapping[str, tuple[int, int, int]]]
    unmatched: tuple[tuple[str, int, str], ...] = field(repr=False, default=())


def join_rows(
    given: LabelRows,
    entries: Sequence[Mapping[str, Any]],
    key: bytes,
    name: str,
    *,
    root: Path | None = None,
    definitions: Findings = BUILT_IN,
    id_rule: int = 2,
) -> Labeling:
    """Join a table to the records of a set.

    Args:
        given: from `read_rows`.
        entries: lines of the set's manifest.
        key: of the set's hashes.
        name: of the table.
        root: folder that paths of volumes start from, as it was given to `prepare`.
        definitions: the findings that are known.
        id_rule: of the set, see `plan.ID_RULE`.

    Returns:
        The table under hashed ids, and what is to be said.

    Raises:
        TableError: no row belongs to the set, or rows of one id contradict each other.
        ShardError: a name that a table cannot have.
    """
    check_name(name)
    kept = [entry for entry in entries if entry["class"] != REJECTED]
    hashes = {unit: [_hash_of(entry, unit) for entry in kept] for unit in UNITS}
    unit, found = _best_unit(given, {u: set(h) for u, h in hashes.items()}, key, root, id_rule)
    rejected = {_hash_of(entry, unit) for entry in entries if entry["class"] == REJECTED}
    lost, extra = [], []
    for row in given.rows:
        if row.number not in found:
            is_lost = rejected & set(_candidates(row, unit, key, root, id_rule))
            (lost if is_lost else extra).append(row.number)
    if not found:
        raise TableError(
            f"none of the {len(given.rows)} ids of '{given.path}' is of the set's {len(kept)} volumes"
            + (f" ({len(lost)} are of volumes that were rejected)" if lost else "")
            + ". Is --key the key that the set was prepared with, and are the ids spelled as in the table "
            "that was prepared (paths of volumes from the same --root; studies beside their patients)?"
        )
    _check_patients(given, found, kept, hashes[unit], key, unit)
    merged, repeated = _merged(given, found)
    remarks = list(given.remarks)
    labeled = [place for place, one in enumerate(hashes[unit]) if one in merged]
    unlabeled = [place for place, one in enumerate(hashes[unit]) if one not in merged]
    plural = {"volume": "volumes", "study": "studies", "patient": "patients"}[unit]
    remarks.insert(
        0,
        f"joined by {unit}: {len(found)} of {len(given.rows) + len(given.without_id)} rows are of "
        f"{len(merged)} {plural} of the set; {len(labeled)} of its {len(kept)} volumes have values",
    )
    for numbers, words in (
        (given.without_id, "without an id, left out"),
        (extra, f"of no {unit} of the set, left out"),
        (lost, "of volumes that were rejected when the set was prepared, left out"),
        (repeated, "with the id of an earlier row; what they say goes together"),
    ):
        if numbers:
            remarks.append(f"{_counted(len(numbers), 'row')} {words}: {name_rows(numbers)}")
    if unlabeled:
        remarks.append(
            f"{_counted(len(unlabeled), 'volume')} of the set without a row: their values stay as they were"
        )
    own = Findings.from_json(
        [one for one in definitions.to_json() if one["name"] in given.findings] if definitions.own else ()
    )
    table = LabelTable(name, unit, given.findings, given.measurements, given.groups, merged, own)
    ids = {row.number: next(iter(row.ids.values())) for row in given.rows}
    unmatched = [("row", number, ids[number]) for number in sorted([*extra, *lost])]
    unmatched += [("volume", int(kept[place].get("row", 0)), "") for place in unlabeled]
    return Labeling(
        table,
        tuple(remarks),
        (len(found), len(labeled)),
        _counts(table, kept, hashes[unit]),
        tuple(unmatched),
    )


def _counted(count: int, unit: str) -> str:
    return f"{count} {unit}" + ("" if count == 1 else "s")


def _hash_of(entry: Mapping[str, Any], unit: str) -> str:
    return str(entry.get("id" if unit == "volume" else unit))


def _candidates(row: LabelRow, unit: str, key: bytes, root: Path | None, id_rule: int) -> Iterator[str]:
    """Hashes that a row's id can have, as the manifest writes them, the likeliest first."""
    ids = row.ids
    if unit == "volume":
        for text in filter(None, (ids.get("id"), ids.get("scan"))):
            path = read_path(text, root or Path())
            for one in dict.fromkeys((text, path, Path(path).name, f"{text}.nii.gz", f"{path}.nii.gz")):
                yield hashed_text(key, "volume", f"{one}#{ids['series']}" if "series" in ids else one)
    elif unit == "study":
        text = ids.get("study") or ids.get("id")
        if text and id_rule < 2:
            yield str(hashed_integer(key, "study", text))
        elif text:
            # In a table without patients, each study was its own.
            yield str(hashed_integer(key, "study", json.dumps((ids.get("patient", text), text))))
    elif text := ids.get("patient") or ids.get("id"):
        yield str(hashed_integer(key, "patient", text))


def _best_unit(
    given: LabelRows, known: Mapping[str, set[str]], key: bytes, root: Path | None, id_rule: int
) -> tuple[str, dict[int, str]]:
    """What the ids stand for, and the hash of each row that the set has.

    A column tells it by its name: scans before studies before patients. Ids in a column ``id`` are of what
    most of them are found as.
    """
    if "id" in given.kinds:
        units: tuple[str, ...] = UNITS
    else:
        wanted = {"scan": "volume", "study": "study", "patient": "patient"}
        units = (next(unit for kind, unit in wanted.items() if kind in given.kinds),)
    best: tuple[str, dict[int, str]] = units[0], {}
    for unit in units:
        found = {}
        for row in given.rows:
            one = next((h for h in _candidates(row, unit, key, root, id_rule) if h in known[unit]), None)
            if one is not None:
                found[row.number] = one
        if len(found) > len(best[1]):
            best = unit, found
    return best


def _check_patients(
    given: LabelRows,
    found: Mapping[int, str],
    kept: Sequence[Mapping[str, Any]],
    hashes: Sequence[str],
    key: bytes,
    unit: str,
) -> None:
    """Check that rows of volumes do not name other patients than the set has for them.

    Raises:
        TableError: some do.
    """
    if unit != "volume" or "patient" not in given.kinds:
        return
    owners = {one: int(entry["patient"]) for one, entry in zip(hashes, kept, strict=True)}
    wrong = [
        row.number
        for row in given.rows
        if row.number in found
        and "patient" in row.ids
        and hashed_integer(key, "patient", row.ids["patient"]) != owners[found[row.number]]
    ]
    if wrong:
        raise TableError(
            f"'{given.path}': {name_rows(wrong)} name another patient than the set has for the volume: "
            "correct the ids, or leave the column of patients out where patients were not named alike"
        )


def _merged(given: LabelRows, found: Mapping[int, str]) -> tuple[dict[str, Values], list[int]]:
    """Values by hash, those of several rows of one id together, and the numbers of rows that repeat one.

    Raises:
        TableError: rows of one id say different things.
    """
    names = (
        [f"label:{name}" for name in given.findings]
        + [f"measurement:{name}" for name in given.measurements]
        + [f"group:{name}" for name in given.groups]
    )
    merged: dict[str, list[Any]] = {}
    rows_of: dict[str, list[int]] = defaultdict(list)
    conflicts: dict[str, set[int]] = defaultdict(set)
    repeated = []
    for row in given.rows:
        one = found.get(row.number)
        if one is None:
            continue
        values = [value for part in row.values for value in part]
        repeated += [row.number] * bool(rows_of[one])
        rows_of[one].append(row.number)
        before = merged.setdefault(one, values)
        for place, value in enumerate(values):
            if _is_unknown(before[place]):
                before[place] = value
            elif not _is_unknown(value) and value != before[place]:
                conflicts[names[place]].update(rows_of[one])
    if conflicts:
        lines = [f"column '{name}': {name_rows(numbers)}" for name, numbers in conflicts.items()]
        raise TableError(
            f"'{given.path}' has rows of one id that contradict each other; correct them, or leave one of "
            "each:\n  " + "\n  ".join(lines)
        )
    first, second = len(given.findings), len(given.findings) + len(given.measurements)
    return {
        one: (tuple(values[:first]), tuple(values[first:second]), tuple(values[second:]))
        for one, values in merged.items()
    }, repeated


def _is_unknown(value: float | str) -> bool:
    return value in (0, "") if isinstance(value, int | str) else math.isnan(value)


def _counts(
    table: LabelTable, kept: Sequence[Mapping[str, Any]], hashes: Sequence[str]
) -> dict[str, dict[str, tuple[int, int, int]]]:
    names = [
        *(f"label:{name}" for name in table.findings),
        *(f"measurement:{name}" for name in table.measurements),
        *(f"group:{name}" for name in table.groups),
    ]
    nothing = [0] * len(table.findings) + [math.nan] * len(table.measurements) + [""] * len(table.groups)
    seen: dict[str, list[list[Any]]] = defaultdict(list)
    for one, entry in zip(hashes, kept, strict=True):
        values = table.rows.get(one)
        seen[str(entry["split"])].append([v for part in values for v in part] if values else nothing)
    counts: dict[str, dict[str, tuple[int, int, int]]] = {name: {} for name in names}
    for split, rows in seen.items():
        for place, name in enumerate(names):
            known = [row[place] for row in rows if not _is_unknown(row[place])]
            kind = name.partition(":")[0]
            told = Counter(known)[1] if kind == "label" else len(set(known))
            counts[name][split] = len(known), told, len(rows) - len(known)
    return counts


def count_changes(info: PreparedInfo, table: LabelTable) -> list[str]:
    """What a table says otherwise than the set does itself, of the columns that both have.

    Args:
        info: of the set, without tables.
        table: to be laid over it.

    Returns:
        A sentence for each column in which known values differ.
    """
    both = [f"label:{name}" for name in table.findings if name in info.findings]
    both += [f"measurement:{name}" for name in table.measurements if name in info.measurements]
    both += [f"group:{name}" for name in table.groups if name in info.groups]
    if not both:
        return []
    changed: Counter[str] = Counter()
    fields = ["id", "study", "patient", "labels", "measurements", *([GROUPS] if info.groups else [])]
    for split in info.splits:
        source = open_split(info, split, fields=fields)
        records = (source[index] for index in range(len(source)))
        for record in track_each(records, total=len(source), unit="record", label=split, delay=3.0):
            values = table.rows.get(str(record["id" if table.unit == "volume" else table.unit]))
            for name in both if values else ():
                kind, _, column = name.partition(":")
                before, now = _both(info, table, record, values, kind, column)
                changed[name] += not (_is_unknown(before) or _is_unknown(now) or before == now)
    return [
        f"column '{name}': {_counted(count, 'volume')} with another value in the set itself; that of the "
        "table counts"
        for name, count in changed.items()
        if count
    ]


def _both(
    info: PreparedInfo, table: LabelTable, record: Mapping[str, Any], values: Values, kind: str, column: str
) -> tuple[Any, Any]:
    """What a record and a table say of one column."""
    labels, measured, groups = values
    if kind == "label":
        return int(record["labels"][info.findings.index(column)]), labels[table.findings.index(column)]
    if kind == "measurement":
        before = record["measurements"][info.measurements.index(column)]
        return float(before), float(np.float32(measured[table.measurements.index(column)]))
    return record[GROUPS].get(column, ""), groups[table.groups.index(column)]
