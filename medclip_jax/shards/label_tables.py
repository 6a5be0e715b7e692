"""Labels that came after a set was prepared: a file beside the shards, laid over the records when read.

The file holds hashed ids, names of columns and values, and none of the table's own ids.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from medclip_jax.reports.definitions import BUILT_IN, Findings
from medclip_jax.shards.arrays import ArraySpec, ShardError
from medclip_jax.shards.record import GROUPS, Schema

TABLES_FOLDER = "tables"
"""Of a prepared folder: ``NAME.json`` for each table."""

UNITS = ("volume", "study", "patient")
"""What an id of a table can stand for, and so which hash of a record it is looked up by."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")

Values = tuple[tuple[int, ...], tuple[float, ...], tuple[str, ...]]
"""Labels (1, -1, 0 unknown), measurements (NaN unknown) and groups ("" unknown) of one id."""


@dataclass(frozen=True)
class LabelTable:
    """What a table says of a set's records.

    Attributes:
        name: by which configs name it.
        unit: what an id stands for, one of `UNITS`.
        findings: names of its label columns.
        measurements: names of its measurements.
        groups: names of its groups.
        rows: hash, as the manifest writes it, to values.
        definitions: the findings that it needs beside the library's.
    """

    name: str
    unit: str
    findings: tuple[str, ...] = ()
    measurements: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    rows: Mapping[str, Values] = field(default_factory=dict)
    definitions: Findings = BUILT_IN

    @cached_property
    def digest(self) -> str:
        """A hash of all that it says."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """As the file holds it: JSON has no NaN, so unknown measurements are null."""
        rows = {
            one: [list(labels), [None if math.isnan(value) else value for value in measured], list(groups)]
            for one, (labels, measured, groups) in self.rows.items()
        }
        columns = {"findings": self.findings, "measurements": self.measurements, "groups": self.groups}
        written = {"unit": self.unit, **{name: list(found) for name, found in columns.items()}}
        if self.definitions.own:
            written["definitions"] = self.definitions.to_json()
        return written | {"rows": rows}


def write_label_table(folder: Path, table: LabelTable) -> Path:
    """Write a table into a prepared folder, by an atomic rename; returns the file."""
    from medclip_jax.shards.write import write_text

    path = table_file(folder, table.name)
    path.parent.mkdir(exist_ok=True)
    write_text(path, json.dumps(table.to_json(), separators=(",", ":")) + "\n")
    return path


def check_name(name: str) -> None:
    """Check that a table can be called so.

    Raises:
        ShardError: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise ShardError(
            f"a table cannot be called {name!r}: begin with a letter, take letters, digits, _ and -, 40 at "
            "most"
        )


def table_file(folder: Path, name: str) -> Path:
    """Where a table lies."""
    return folder / TABLES_FOLDER / f"{name}.json"


def read_label_table(folder: Path, name: str) -> LabelTable:
    """Read a table of a prepared folder.

    Raises:
        ShardError: it is not there, or damaged.
    """
    check_name(name)
    path = table_file(folder, name)
    try:
        written = json.loads(path.read_text())
        columns = [tuple(written[kind]) for kind in ("findings", "measurements", "groups")]
        rows = {}
        for one, values in written["rows"].items():
            if list(map(len, values)) != list(map(len, columns)):
                raise ValueError("a row has another number of values than there are columns")
            labels, measured, groups = values
            numbers = tuple(math.nan if value is None else float(value) for value in measured)
            rows[one] = tuple(map(int, labels)), numbers, tuple(map(str, groups))
        if written["unit"] not in UNITS:
            raise ValueError(f"its unit is {written['unit']!r}")
        definitions = Findings.from_json(written.get("definitions", ()))
        return LabelTable(name, written["unit"], *columns, rows, definitions)
    except FileNotFoundError:
        there = sorted(file.stem for file in path.parent.glob("*.json"))
        raise ShardError(
            f"'{folder}' has no table {name!r}; it has {', '.join(there) or 'none'}. `medclip label {folder} "
            f"--table FILE --name {name}` makes one"
        ) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ShardError(
            f"{path} is damaged ({type(error).__name__}: {error}): run `medclip label` again with --replace"
        ) from None


class Overlay:
    """Records of a set with what tables say of them.

    Args:
        stored: schema of the records as they lie in the shards.
        columns: findings, measurements and groups of the records with the tables.
        tables: whose columns differ from one another.
    """

    def __init__(self, stored: Schema, columns: Sequence[Sequence[str]], tables: Sequence[LabelTable]):
        findings, measurements, _ = map(list, columns)
        self._stored, self._sizes = stored, (len(findings), len(measurements))
        self._tables = [
            (
                table,
                [findings.index(name) for name in table.findings],
                [measurements.index(name) for name in table.measurements],
            )
            for table in tables
        ]

    def needs(self, fields: Sequence[str]) -> tuple[str, ...]:
        """Arrays to decode of a stored record, where some are wanted of one with the tables."""
        keys = ("id", "study", "patient") if {"labels", "measurements", GROUPS} & set(fields) else ()
        return tuple(name for name in dict.fromkeys((*fields, *keys)) if name in self._stored.arrays)

    def lay(self, record: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
        """The arrays that are wanted of a record, with the tables.

        Args:
            record: decoded, with what `needs` names.
            fields: names of the arrays.
        """
        laid = {name: value for name, value in record.items() if name in fields}
        for name, size, unknown in zip(
            ("findings", "labels", "measurements"),
            (self._sizes[0], *self._sizes),
            (0, 0, np.nan),
            strict=True,
        ):
            if name in laid:
                added = np.full(size - len(laid[name]), unknown, laid[name].dtype)
                laid[name] = np.concatenate([laid[name], added])
        if GROUPS in fields:
            laid[GROUPS] = dict(laid.get(GROUPS, {}))
        if not {"labels", "measurements", GROUPS} & set(fields):
            return laid
        hashes = {"volume": record["id"], "study": str(record["study"]), "patient": str(record["patient"])}
        for table, label_places, measured_places in self._tables:
            values = table.rows.get(hashes[table.unit])
            if values is None:
                continue
            labels, measured, groups = values
            if "labels" in laid:
                for place, value in zip(label_places, labels, strict=True):
                    laid["labels"][place] = value or laid["labels"][place]
            if "measurements" in laid:
                for place, value in zip(measured_places, measured, strict=True):
                    if not math.isnan(value):
                        laid["measurements"][place] = value
            if GROUPS in laid:
                laid[GROUPS] |= {
                    name: value for name, value in zip(table.groups, groups, strict=True) if value
                }
        return laid


def with_columns(
    schema: Schema, findings: Sequence[str], measurements: Sequence[str], groups: Sequence[str]
) -> tuple[ArraySpec, ...]:
    """Declarations of a record's arrays with other columns.

    Args:
        schema: of the records as they lie in the shards.
        findings: all columns of `findings` and `labels`.
        measurements: all columns of `measurements`.
        groups: all names in `groups`.
    """
    sizes = {"findings": len(findings), "labels": len(findings), "measurements": len(measurements)}
    specs = [
        replace(spec, shape=(sizes[name],)) if name in sizes else spec for name, spec in schema.arrays.items()
    ]
    if groups and GROUPS not in schema.arrays:
        specs.append(ArraySpec(GROUPS, "json", optional=True, doc="name to the study's group"))
    return tuple(specs)
