"""Read a prepared folder: what is in it, and random access to its records."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

from medclip_jax.allocator import keep_freed_memory
from medclip_jax.reports.definitions import Findings
from medclip_jax.shards.arrays import ArraySpec, ShardError
from medclip_jax.shards.fetch import SETTINGS_FILE, fetch_files, fetch_set
from medclip_jax.shards.label_tables import LabelTable, Overlay, read_label_table, with_columns
from medclip_jax.shards.record import Schema, decode, volume_arrays
from medclip_jax.shards.series import SeriesSettings, read_series
from medclip_jax.shards.subset import FOLD, Subset
from medclip_jax.shards.urls import is_url

if TYPE_CHECKING:
    from medclip_jax.shards.chosen import ChosenRows

MANIFEST_FILE = "manifest.jsonl"
PARTS_FOLDER = ".parts"
DATASET_FILES = ("dataset_info.json", "features.json")
"""What TFDS writes about a set."""
TOKENIZER_FOLDER = "tokenizer"


@dataclass(frozen=True)
class PreparedInfo:
    """What a prepared folder holds.

    Attributes:
        folder: where it lies.
        shape: (D, H, W) voxels of the array `volume`; () where records have none.
        spacing: mm per voxel along depth, height, width; () likewise. None along an axis where scans were
            resized: each record then has its own, in the array `volume_spacing`.
        findings: names of the columns of `findings` and `labels`.
        organs: names of the channels of `organs`, () where none were prepared.
        measurements: names of the columns of `measurements`.
        tokenizer: folder of the tokenizer, None where there is none.
        splits: name to number of records.
        settings: everything else that `prepare` was told, as written to `prepare.json`.
        cell: voxels per organ cell along each axis, 0 where none were prepared.
        files: shard name to bytes.
        arrays: declarations of the arrays of a record; () in sets of one volume a record that were prepared
            before these were listed.
        groups: names of the groups in `groups`, () where records have none.
        subset: which rows of a split are opened, see `open_split`; None for all.
        tables: labels that came later, laid over the records; their columns are among those above.
        stored: what the folder says without them; None where there are none.
    """

    folder: Path
    shape: tuple[int, ...]
    spacing: tuple[float | None, ...]
    findings: tuple[str, ...]
    organs: tuple[str, ...]
    measurements: tuple[str, ...]
    tokenizer: Path | None
    splits: Mapping[str, int]
    settings: Mapping[str, object] = field(default_factory=dict)
    cell: int = 0
    files: Mapping[str, int] = field(default_factory=dict)
    arrays: tuple[ArraySpec, ...] = ()
    groups: tuple[str, ...] = ()
    subset: Subset | None = None
    tables: tuple[LabelTable, ...] = ()
    stored: PreparedInfo | None = None

    @property
    def definitions(self) -> Findings:
        """The findings that are known: the library's, and those that the set was prepared with."""
        return Findings.from_json(self.settings.get("definitions", ()))

    @property
    def label_classes(self) -> tuple[str, ...]:
        """Names of the classes 1, 2, ... of the array `label_map`; () where records have none."""
        return tuple(self.settings.get("label_classes", ()))

    @property
    def label_regions(self) -> dict[str, tuple[str, ...]]:
        """Name to names of the classes that together make it, as the archive defines it."""
        regions = self.settings.get("label_regions", {})
        return {name: tuple(parts) for name, parts in regions.items()}

    @property
    def schema(self) -> Schema:
        """What is the same for every record."""
        return Schema(
            self.shape, self.spacing, self.findings, self.organs, self.measurements, self.cell, self.arrays
        )

    @property
    def series(self) -> tuple[SeriesSettings, ...]:
        """What each series of a study became, in the order of the arrays that hold them."""
        return read_series(self.settings, self.shape, self.spacing)

    @property
    def fingerprint(self) -> str:
        """A hash of what the set holds, from `prepare.json` alone; the same wherever the folder lies.

        It covers the schema, the splits, the size of every shard, and what each was made from.
        """
        if self.stored is not None:
            content = [self.stored.fingerprint, *(table.digest for table in self.tables)]
            return hashlib.sha256(json.dumps(content).encode()).hexdigest()
        columns = [self.shape, self.spacing, self.findings, self.organs, self.measurements, self.cell]
        content = [columns, sorted(self.splits.items()), sorted(self.files.items())]
        content.append(self.settings.get("fingerprints"))
        if self.arrays and self.arrays != volume_arrays(self.schema):
            content.append([spec.to_json() | {"doc": ""} for spec in self.arrays])
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def local_folder(folder: str | os.PathLike) -> Path:
    """Where a set lies on this machine; one in an object store is fetched first, see `shards.fetch`."""
    return fetch_set(folder) if is_url(folder) else Path(folder)


def open_shards(
    folder: str | os.PathLike | PreparedInfo, *, subset: Subset | None = None, tables: Sequence[str] = ()
) -> PreparedInfo:
    """Read what a prepared folder says about itself.

    Args:
        folder: written by `medclip prepare`; or the URL of a set in an object store, which then is read from
            a folder of this machine (see `shards.fetch`). What was opened before is returned as it is.
        subset: which rows of a split `open_split` opens; None for all.
        tables: names of tables of `medclip label`, to lay over the records.

    Raises:
        ShardError: it does not exist, is no prepared folder, or its preparation did not finish; or it has no
            such table.
    """
    if isinstance(folder, PreparedInfo):
        return folder
    info = _read_info(folder)
    if tables:
        info = with_tables(info, [read_label_table(info.folder, name) for name in tables])
    return replace(info, subset=subset)


def with_tables(info: PreparedInfo, tables: Sequence[LabelTable]) -> PreparedInfo:
    """What a set says with tables laid over its records: their columns come after its own.

    Args:
        info: of the set, without tables.
        tables: in the order of their columns. What one says of a column that the set has goes before what
            the set says.

    Raises:
        ShardError: two tables have one column.
    """
    columns = {kind: list(getattr(info, kind)) for kind in ("findings", "measurements", "groups")}
    definitions, taken = info.definitions, {}
    for table in tables:
        for kind, found in columns.items():
            for name in getattr(table, kind):
                if (kind, name) in taken:
                    raise ShardError(
                        f"the tables {taken[kind, name]!r} and {table.name!r} of '{info.folder}' both have "
                        f"the column {name!r}: take one of them, or label again without it"
                    )
                taken[kind, name] = table.name
                found += [name] * (name not in found)
        definitions = definitions.updated(table.definitions)
    settings = dict(info.settings)
    if definitions.own:
        settings["definitions"] = definitions.to_json()
    return replace(
        info,
        **{kind: tuple(found) for kind, found in columns.items()},
        settings=settings,
        arrays=with_columns(info.schema, *columns.values()),
        tables=tuple(tables),
        stored=info,
    )


def open_configured(config: Any) -> PreparedInfo:
    """What a prepared folder says, with the subset and the tables that a config names.

    Args:
        config: `config.data`.

    Raises:
        ShardError, ValueError: as `open_shards`, or a subset that makes no sense.
    """
    return open_shards(config.shards, subset=Subset.of(config), tables=tuple(config.get("tables", ())))


def _read_info(folder: str | os.PathLike) -> PreparedInfo:
    folder = local_folder(folder)
    if not folder.is_dir():
        raise ShardError(f"no folder '{folder}': give the folder that `medclip prepare --out` wrote")
    path = folder / SETTINGS_FILE
    if not path.exists():
        if (folder / PARTS_FOLDER).is_dir():
            raise ShardError(
                f"preparing '{folder}' has not finished: run the same `medclip prepare` command again, "
                f"it resumes where it stopped. Made in parts, `medclip prepare --merge {folder}` names those "
                "that are missing"
            )
        raise ShardError(
            f"'{folder}' is not a prepared folder (no {SETTINGS_FILE}): give the folder that "
            "`medclip prepare --out` wrote"
        )
    try:
        written = json.loads(path.read_text())
        tokenizer = folder / TOKENIZER_FOLDER
        Findings.from_json(written["settings"].get("definitions", ()))
        arrays = tuple(ArraySpec.from_json(spec) for spec in written.get("arrays", ()))
        has_volume = not arrays or bool(written["shape"])
        info = PreparedInfo(
            folder=folder,
            shape=_positive(written["shape"], int) if has_volume else (),
            spacing=_spacing(written["spacing"]) if has_volume else (),
            findings=tuple(written["findings"]),
            organs=tuple(written["organs"]),
            measurements=tuple(written["measurements"]),
            tokenizer=tokenizer if tokenizer.is_dir() else None,
            splits=dict(zip(written["splits"], _positive(written["splits"].values(), int), strict=True)),
            settings=dict(written["settings"]),
            cell=int(written["cell"]),
            files=dict(written["files"]),
            arrays=arrays,
            groups=tuple(written["settings"].get("groups", ())),
        )
        _ = info.series  # what it says of them must make sense as well
        return info
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}"[:200]
        raise ShardError(
            f"{path} is damaged ({why}): copy it again from where the set was prepared, or prepare the set "
            "again"
        ) from None


def _positive(values: Iterable[object], kind: type) -> tuple:
    """Numbers of one kind as JSON holds them, all above 0."""
    values = tuple(values)
    if not values or not all(type(value) in (int, kind) and value > 0 for value in values):
        raise ValueError("a number is missing, or not above 0")
    return values


def _spacing(values: Sequence[object]) -> tuple[float | None, ...]:
    """mm along each axis, None where each scan has its own."""
    _positive((1.0 if value is None else value for value in values), float)
    return tuple(values)


class ShardSource:
    """Random access to the records of a split: ``len(source)``, ``source[i] -> dict``.

    A `grain.RandomAccessDataSource`. It may be pickled and used from many threads: files are opened when
    first needed, in the process that needs them. See `medclip_jax.shards.record.decode` for the values.
    """

    def __init__(self, info: PreparedInfo, split: str, fields: Sequence[str] | None = None):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        keep_freed_memory()
        self._stored = (info.stored or info).schema
        self._overlay = None
        if info.tables:
            self._overlay = Overlay(
                self._stored, (info.findings, info.measurements, info.groups), info.tables
            )
        names = tuple(info.schema.arrays)
        if unknown := sorted(set(fields or ()) - set(names)):
            raise ShardError(
                f"the records of '{info.folder}' hold no array {', '.join(unknown)}; they hold "
                f"{', '.join(names)}. What is missing can only come from another `medclip prepare`"
            )
        self.info = info
        self.split = split
        self.fields = tuple(fields) if fields is not None else names
        self._files = _file_instructions(info, split)
        self._records = ArrayRecordDataSource(self._files)

    @property
    def fingerprint(self) -> str:
        """Of the set and its tables, see `PreparedInfo`."""
        return self.info.fingerprint

    @property
    def records_fingerprint(self) -> str:
        """Of the set alone, whatever tables say of its records."""
        return (self.info.stored or self.info).fingerprint

    def places(self) -> Iterator[tuple[str, int]]:
        """Shard, and index of the record in it, of each record in order."""
        for file in self._files:
            for index in range(file.skip, file.skip + file.take):
                yield os.path.basename(file.filename), index

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> dict[str, object]:
        """The sample at `index`, decoded.

        Raises:
            IndexError: no such index.
            ShardError: the record is damaged.
        """
        return self.decoded(index, self.fields)

    def decoded(self, index: SupportsIndex, fields: Sequence[str]) -> dict[str, object]:
        """The sample at `index`, with other arrays than the source was opened for; errors as by ``[index]``.

        Args:
            index: of the sample.
            fields: names of the arrays.
        """
        index = index.__index__()
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of '{self.split}', which has {len(self)}")
        data = self.raw(index % len(self))
        if self._overlay is None:
            return decode(data, self._stored, fields)
        return self._overlay.lay(decode(data, self._stored, self._overlay.needs(fields)), fields)

    def raw(self, index: int) -> bytes:
        """The serialized record at `index`, over which the manifest's checksum goes.

        Raises:
            ShardError: the shard is damaged there.
        """
        try:
            return self._records[index]
        except Exception as error:  # array_record raises bare RuntimeError, ValueError or IndexError
            raise ShardError(
                f"record {index} of '{self.split}' in '{self.info.folder}' cannot be read "
                f"({type(error).__name__}): a shard is damaged; copy it again from where it was prepared, "
                "or prepare the set again. `medclip inspect` names the shard"
            ) from None

    def __repr__(self) -> str:
        # Grain stores this in checkpoints and compares it on restore.
        return f"ShardSource(split={self.split!r}, records={len(self)}, fields={self.fields!r})"


def open_split(
    folder: str | os.PathLike | PreparedInfo, split: str, *, fields: Sequence[str] | None = None
) -> ShardSource | ChosenRows:
    """Open a split, or a part of one in TFDS's notation, for random access.

    Of a folder that was opened with a subset, the split that it is of has the chosen rows alone, and the
    split `subset.FOLD` is the fold that they leave out.

    Args:
        folder: a prepared folder, or what `open_shards` returned for it.
        split: such as ``"train"``, ``"train[:10%]"``, ``"train[100:200]"``, ``"train+validation"``.
        fields: names of the arrays to decode (`info.schema.arrays`); None means all. Leaving out
            ``"volume"`` makes going through the reports cheap.

    Raises:
        ShardError: no prepared folder, no such split or array, a missing or truncated shard.
    """
    info = open_shards(folder)
    subset = info.subset
    if subset is None or split not in (FOLD, subset.split):
        return ShardSource(info, split, fields)
    from medclip_jax.shards.chosen import choose

    check_split(info, split)
    return choose(ShardSource(info, subset.split, fields), subset, split)


def check_split(info: PreparedInfo, split: str) -> None:
    """Check that a split is there, without opening anything.

    Args:
        info: from `open_shards`.
        split: as `open_split` takes it.

    Raises:
        ShardError: there is no such split; the message lists those there and names the nearest.
    """
    if split == FOLD:
        if info.subset is None or not info.subset.folds:
            raise ShardError(
                f"no split '{FOLD}' without folds: set config.data.subset.folds (and .fold, the one to score "
                "on), or give --subset folds=5,fold=0"
            )
        return
    for part in split.split("+"):
        name = part.partition("[")[0].strip()
        if name != "all" and name not in info.splits:
            near = difflib.get_close_matches(name, info.splits, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ShardError(
                f"no split '{name}' in '{info.folder}'; it has {_counts(info)}.{hint} Parts are written as "
                "'train[:10%]', 'train[100:200]' or 'train+validation'"
            )


def _counts(info: PreparedInfo) -> str:
    return ", ".join(f"{name} ({count})" for name, count in info.splits.items()) or "none"


def _file_instructions(info: PreparedInfo, split: str) -> list:
    check_split(info, split)
    counts = _counts(info)
    try:
        instructions = _splits(info)[split].file_instructions
    except (KeyError, ValueError, AssertionError) as error:
        if isinstance(error, ShardError):
            raise
        raise ShardError(
            f"cannot read the split '{split}' of '{info.folder}', which has {counts}. Parts are written as "
            "'train[:10%]', 'train[100:200]' or 'train+validation'"
        ) from None
    if not instructions:
        raise ShardError(f"split '{split}' in '{info.folder}' holds no volume; it has {counts}")
    names = sorted({os.path.basename(instruction.filename) for instruction in instructions})
    fetch_files(info.folder, names)
    for name in names:
        path = info.folder / name
        if not path.exists():
            raise ShardError(f"shard {name} is missing from '{info.folder}': copy it again, or prepare again")
        size, expected = path.stat().st_size, info.files.get(name)
        if size != expected:
            raise ShardError(
                f"shard {name} in '{info.folder}' has {size} bytes instead of {expected}: it is truncated "
                "or changed; copy it again from where it was prepared, or prepare the set again"
            )
    return instructions


def _splits(info: PreparedInfo) -> Any:
    """The splits, as TFDS reads them.

    Raises:
        ShardError: one of the files that tell of them is missing or damaged; the message names it.
    """
    import tensorflow_datasets as tfds

    again = "copy it again from where the set was prepared, or prepare the set again"
    for name in DATASET_FILES:
        if not (info.folder / name).is_file():
            raise ShardError(f"{info.folder / name} is missing: {again}")
    name = DATASET_FILES[0]
    try:
        # Each raises what it likes where its file is damaged, up to a missing TensorFlow.
        if not tfds.core.dataset_info.read_proto_from_builder_dir(info.folder).splits:
            raise ValueError("it names no split")
        name = DATASET_FILES[1]
        splits = tfds.builder_from_directory(info.folder).info.splits
        name = DATASET_FILES[0]
        counts = {split: splits[split].num_examples for split in splits}
    except Exception as error:
        why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
        raise ShardError(f"{info.folder / name} is damaged ({why[:200]}): {again}") from None
    if counts != dict(info.splits):
        raise ShardError(
            f"{info.folder / name} tells of {counts} records, and {SETTINGS_FILE} of {dict(info.splits)}: "
            f"one of them is damaged; {again}"
        )
    return splits
