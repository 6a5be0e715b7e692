"""The chosen rows of a split as a source of their own."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Int, Int64

from medclip_jax.progress import track_each
from medclip_jax.shards.arrays import ShardError
from medclip_jax.shards.manifest import read_manifest
from medclip_jax.shards.read import ShardSource
from medclip_jax.shards.record import GROUPS
from medclip_jax.shards.scan import REJECTED
from medclip_jax.shards.subset import FOLD, Subset, subset_rows

MOST_STRATA = 20
"""Values of a measurement that are classes; more are numbers."""

_READERS = 8

Columns = tuple[Int64[np.ndarray, " N"], Int[np.ndarray, " N"] | None]
"""Patient and stratum of each record."""

_read_before: dict[tuple[str, ...], Columns] = {}
"""By folder, fingerprint, split and what is stratified by: several parts of a run choose alike."""


class ChosenRows:
    """Random access to some records of a split: ``len(source)``, ``source[i] -> dict``, as of all of it.

    Attributes:
        info: of the set.
        split: its name, `FOLD` for a fold that was held out.
        rows: numbers of the records in the split that they were chosen from, ascending.
    """

    def __init__(self, source: ShardSource, split: str, rows: Int64[np.ndarray, " M"]):
        self.info, self.split, self.rows = source.info, split, rows
        self._source = source

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: SupportsIndex) -> dict[str, object]:
        """The sample at `index` of the chosen ones, decoded.

        Raises:
            IndexError: no such index.
            ShardError: the record is damaged.
        """
        return self._source[int(self.rows[index.__index__()])]

    def raw(self, index: int) -> bytes:
        """The serialized record at `index`."""
        return self._source.raw(int(self.rows[index]))

    @property
    def fingerprint(self) -> str:
        """A hash of what the set and its tables hold and of the rows; the same wherever it lies."""
        return self._with_rows(self._source.fingerprint)

    @property
    def records_fingerprint(self) -> str:
        """The same whatever tables say of the records."""
        return self._with_rows(self._source.records_fingerprint)

    def _with_rows(self, fingerprint: str) -> str:
        rows = hashlib.sha256(self.rows.astype("<i8").tobytes()).hexdigest()
        content = [fingerprint, self._source.split, rows]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def __repr__(self) -> str:
        # Grain stores this in checkpoints and compares it on restore.
        return f"ChosenRows({self._source!r}, split={self.split!r}, rows={self.fingerprint[:16]})"


def choose(source: ShardSource, subset: Subset, split: str) -> ChosenRows:
    """Choose from a split.

    Args:
        source: all of the split that the subset is of.
        subset: what to choose.
        split: `FOLD`, or that split for what is to be learned from.

    Raises:
        ShardError: too few patients, or the set has nothing to stratify by under that name.
    """
    key = str(source.info.folder), source.fingerprint, source.split, subset.by
    if key not in _read_before:
        _read_before[key] = _columns(source, subset.by)
    patients, strata = _read_before[key]
    settings = {name: getattr(subset, name) for name in ("share", "folds", "fold", "seed")}
    try:
        rows = subset_rows(patients, strata, **settings, held_out=split == FOLD)
    except ValueError as error:
        raise ShardError(f"split {subset.split!r} of '{source.info.folder}': {error}") from None
    return ChosenRows(source, split, rows)


def _columns(source: ShardSource, by: str) -> Columns:
    """Patient and stratum of each record. Without strata the manifest tells the patients, and quickly."""
    if not by:
        patients = _patients_of_manifest(source)
        if patients is None:
            patients = _read(source, ["patient"], "patients")["patient"]
        return patients.astype(np.int64), None
    info = source.info
    if by in info.findings:
        found = _read(source, ["patient", "labels", "findings"], f"read {by}")
        column = info.findings.index(by)
        labels = found["labels"][:, column]
        # Where nothing is labeled, the reports tell.
        return found["patient"], labels if labels.any() else found["findings"][:, column]
    if by in info.measurements:
        found = _read(source, ["patient", "measurements"], f"read {by}")
        values = found["measurements"][:, info.measurements.index(by)]
        known, codes = np.unique(values[~np.isnan(values)], return_inverse=True)
        if len(known) > MOST_STRATA:
            raise ShardError(
                f"config.data.subset.by={by!r}: the measurement has {len(known)} values in "
                f"{source.split!r}, and strata are {MOST_STRATA} at most: name a finding, a group or a grade"
            )
        strata = np.full(len(values), -1)
        strata[~np.isnan(values)] = codes
        return found["patient"], strata
    if by in info.groups:
        found = _read(source, ["patient", GROUPS], f"read {by}")
        return found["patient"], np.unique([one.get(by, "") for one in found[GROUPS]], return_inverse=True)[1]
    names = ", ".join((*info.findings, *info.measurements, *info.groups)) or "none"
    raise ShardError(
        f"config.data.subset.by={by!r}: '{info.folder}' has no finding, measurement or group of that name; "
        f"it has {names}"
    )


def _patients_of_manifest(source: ShardSource) -> Int64[np.ndarray, " N"] | None:
    """Patients in the order of the split; None where the manifest does not tell all of them."""
    try:
        entries = read_manifest(source.info.folder)
    except ShardError:
        return None
    shards: dict[str, dict[int, Any]] = defaultdict(dict)
    for entry in entries:
        if entry["class"] != REJECTED:
            shards[str(entry["shard"])][int(entry["index"])] = entry.get("patient")
    try:
        found = [shards[name][index] for name, index in source.places()]
    except KeyError:
        return None
    # A manifest of another preparation would choose the wrong patients.
    agrees = all(
        found[index] == int(source.decoded(index, ["patient"])["patient"]) for index in (0, len(found) - 1)
    )
    return np.array(found, np.int64) if agrees and None not in found else None


def _read(source: ShardSource, fields: Sequence[str], label: str) -> dict[str, np.ndarray]:
    """Small arrays of all records, stacked."""
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(lambda index: source.decoded(index, fields), range(len(source)))
        kept = list(track_each(found, total=len(source), unit="record", label=label, delay=3.0))
    return {
        name: np.array([one[name] for one in kept], object if name == GROUPS else None) for name in fields
    }
