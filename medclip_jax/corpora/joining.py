"""Tables joined to the volumes on the disk by id, with nothing dropped in silence."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from medclip_jax.corpora.tables import TableError

T = TypeVar("T")

Unmatched = Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
"""Name of a table to (volumes without a row, rows without a volume)."""

_SHOWN = 5


@dataclass(frozen=True)
class Joining(Generic[T]):
    """What tables say of volumes.

    Attributes:
        matched: name of a table to id to row, of the ids that both sides have, in the volumes' order.
        remarks: one sentence for each table, with a few ids: for the screen alone.
        unmatched: complete lists, in the order of the volumes and of the table.
    """

    matched: Mapping[str, Mapping[str, T]]
    remarks: tuple[str, ...]
    unmatched: Unmatched


def join(keys: Sequence[str], tables: Mapping[str, Mapping[str, T]], *, unit: str = "volume") -> Joining[T]:
    """Join tables to volumes by id.

    Args:
        keys: ids of the volumes on the disk, in order; an id may repeat (several volumes with one row).
        tables: name, in words for messages ("reports"), to id to row. Ids are compared as they stand: bring
            both sides to one spelling before.
        unit: what an id stands for in the remarks, in the singular: "volume", "study".
    """
    known = dict.fromkeys(keys)
    matched: dict[str, dict[str, T]] = {}
    remarks: list[str] = []
    unmatched: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    for name, rows in tables.items():
        matched[name] = {key: rows[key] for key in known if key in rows}
        without_row = tuple(key for key in known if key not in rows)
        without_volume = tuple(key for key in rows if key not in known)
        unmatched[name] = without_row, without_volume
        remarks.append(_remark(name, len(known), len(matched[name]), without_row, without_volume, unit))
    return Joining(matched, tuple(remarks), unmatched)


def write_unmatched(path: str | os.PathLike, unmatched: Unmatched) -> int:
    """Write the complete lists as a CSV with the columns table, missing ("row", "volume") and id.

    The file holds ids as the archive has them: it is the user's own, and no part of a prepared set.

    Returns:
        The number of ids.

    Raises:
        TableError: the file cannot be written.
    """
    count = 0
    try:
        with Path(path).open("w", newline="", encoding="utf-8") as opened:
            writer = csv.writer(opened)
            writer.writerow(("table", "missing", "id"))
            for table, sides in unmatched.items():
                for missing, ids in zip(("row", "volume"), sides, strict=True):
                    writer.writerows((table, missing, one) for one in ids)
                    count += len(ids)
    except OSError as error:
        raise TableError(
            f"'{path}' cannot be written ({error.strerror}): give --list-unmatched a file in a folder that "
            "exists"
        ) from None
    return count


def _remark(
    name: str,
    volumes: int,
    matched: int,
    without_row: Sequence[str],
    without_volume: Sequence[str],
    unit: str,
) -> str:
    if not without_row and not without_volume:
        return f"{name}: a row for each of {volumes} {_plural(unit, volumes)}"
    parts = [f"{name}: {matched} of {volumes} {_plural(unit, volumes)} have a row"]
    if without_row:
        parts.append(
            f"{len(without_row)} {'has' if len(without_row) == 1 else 'have'} none ({_few(without_row)})"
        )
    if without_volume:
        rows = "1 row has" if len(without_volume) == 1 else f"{len(without_volume)} rows have"
        parts.append(f"{rows} no {unit} ({_few(without_volume)})")
    return "; ".join(parts)


def _few(ids: Sequence[str]) -> str:
    more = len(ids) - _SHOWN
    return ", ".join(ids[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _plural(unit: str, count: int) -> str:
    if count == 1:
        return unit
    return f"{unit[:-1]}ies" if unit.endswith("y") else f"{unit}s"
