"""What lies below the root of an archive: its files, found once, and its tables, told apart by columns."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from medclip_jax.corpora.cells import looks_like_scan, said
from medclip_jax.corpora.tables import DELIMITERS, TableError, open_table, plain_name
from medclip_jax.progress import track_each

_LOOKERS = 16
"""Folders listed at once: on network storage, looking is mostly waiting."""

_BATCH = 64

_MANY = 2_000
"""Folders from which on a bar is shown."""

_HEAD_BYTES = 1 << 16

_NIFTI = re.compile(r"(.+?)\.nii(?:\.gz)?", re.IGNORECASE)

TABLES = (".csv", ".tsv")


def check_root(root: str | os.PathLike, corpus: str) -> Path:
    """The root as a path.

    Args:
        root: as given.
        corpus: its name in words, for the message.

    Raises:
        TableError: there is no such folder.
    """
    path = Path(root)
    if not path.is_dir():
        raise TableError(f"no folder '{path}': --root must be the folder that {corpus} lies in")
    return path


def list_files(root: Path) -> list[str]:
    """Every file below a folder, as a path from there with slashes, sorted.

    What begins with a dot is passed over (caches of download tools). Links to folders are followed once.

    Args:
        root: of an existing folder.

    Raises:
        TableError: a folder cannot be listed.
    """
    found: list[str] = []
    base = os.fspath(root)
    level, seen = [""], {os.path.realpath(base)}
    with ThreadPoolExecutor(_LOOKERS) as pool:
        while level:
            # Several at a time: handing one over takes longer than listing it.
            batches = [level[place : place + _BATCH] for place in range(0, len(level), _BATCH)]
            listed = pool.map(lambda batch: [_list(base, folder) for folder in batch], batches)
            below: list[str] = []
            for several in track_each(
                listed, total=len(batches), unit="part", label="listing folders", show=len(level) > _MANY
            ):
                found += [file for _, files in several for file in files]
                for folder, link in (entry for folders, _ in several for entry in folders):
                    if link:
                        if (real := os.path.realpath(os.path.join(base, folder))) in seen:
                            continue
                        seen.add(real)
                    below.append(folder)
            level = below
    return sorted(found)


def _list(root: str, folder: str) -> tuple[list[tuple[str, bool]], list[str]]:
    """Folders, with whether each is a link, and files."""
    folders, files = [], []
    try:
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir():
                    folders.append((path, entry.is_symlink()))
                else:
                    files.append(path)
    except OSError as error:
        raise TableError(
            f"a folder below '{root}' cannot be listed ({error.strerror}): see to its permissions, and run "
            "again"
        ) from None
    return folders, files


def volumes_by_name(root: Path, files: Iterable[str], published: str, how: str) -> dict[str, str]:
    """NIfTI files by their name without suffix, which is an id in many archives.

    Args:
        root: that the files' paths start from.
        files: of `list_files`.
        published: how the archive calls them, for the message.
        how: to come by them, likewise.

    Returns:
        Name to path from the root, in order.

    Raises:
        TableError: there are none, or two have one name.
    """
    found: dict[str, list[str]] = {}
    for file in files:
        if match := _NIFTI.fullmatch(PurePosixPath(file).name):
            found.setdefault(match[1], []).append(file)
    if not found:
        raise TableError(
            f"'{root}' holds no volumes ({published}), neither itself nor in a folder below: {how}"
        )
    if twice := [paths for paths in found.values() if len(paths) > 1]:
        raise TableError(
            f"{len(twice)} volumes lie below '{root}' twice, such as '{twice[0][0]}' and '{twice[0][1]}': "
            "give --root a folder that holds each once"
        )
    return {name: paths[0] for name, paths in found.items()}


@dataclass(frozen=True)
class FoundTable:
    """A table below the root, known by its header alone.

    Attributes:
        path: from the root.
        columns: names as `tables.plain_name` gives them.
        titles: names as the table writes them.
    """

    path: str
    columns: frozenset[str]
    titles: tuple[str, ...]


def find_tables(root: Path, files: Iterable[str]) -> list[FoundTable]:
    """The CSV and TSV files among some, with their columns.

    Args:
        root: that the files' paths start from.
        files: of `list_files`.
    """
    paths = [path for path in files if path.lower().endswith(TABLES)]
    with ThreadPoolExecutor(_LOOKERS) as pool:
        titles = list(pool.map(lambda path: _titles(root / path), paths))
    return [
        FoundTable(path, frozenset(map(plain_name, names)), names)
        for path, names in zip(paths, titles, strict=True)
    ]


def _titles(path: Path) -> tuple[str, ...]:
    """Names in the first line of a table; () where it cannot be read."""
    try:
        with path.open("rb") as opened:
            start = opened.read(_HEAD_BYTES)
    except OSError:
        return ()
    encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    line = start.decode(encoding, errors="replace").partition("\n")[0].rstrip("\r")
    best = max((next(csv.reader([line], delimiter=delimiter), []) for delimiter in DELIMITERS), key=len)
    return tuple(name.strip() for name in best)


@dataclass(frozen=True)
class Rows:
    """The rows of one or several tables by id.

    Attributes:
        cells: id to column to text, "" for what says nothing. Ids and columns in their order.
        remarks: what is doubtful, a sentence each; they name files and ids, for the screen.
    """

    cells: dict[str, dict[str, str]]
    remarks: tuple[str, ...]


def read_rows(
    root: Path,
    tables: Sequence[FoundTable],
    what: str,
    *,
    key: str,
    columns: Collection[str],
    spell: Callable[[str], str],
) -> Rows:
    """Read some columns of tables by id. Of an id that stands in several rows, the first counts.

    Args:
        root: that the tables' paths start from.
        tables: of one kind; earlier ones count before later ones.
        what: they hold, in words ("reports").
        key: plain name of the column with ids.
        columns: plain names of the columns to read; what a table lacks is "".
        spell: brings an id to the spelling that volumes have.

    Raises:
        TableError: a table is damaged, or a row has no id.
    """
    cells: dict[str, dict[str, str]] = {}
    repeated, differing = Counter(), []
    for table in tables:
        for name, row in _rows_of(root, table, key, columns, spell):
            if name not in cells:
                cells[name] = row
                continue
            repeated[table.path] += 1
            if cells[name] != row:
                differing.append(name)
    remarks = [f"{what}: {count} rows of '{path}' stand there before" for path, count in repeated.items()]
    if differing:
        few = ", ".join(dict.fromkeys(differing[:5]))
        remarks.append(
            f"{what}: {len(differing)} of these rows differ from the first one, which is used ({few}): see "
            "which one is right, and take the other out"
        )
    return Rows(cells, tuple(remarks))


def _rows_of(
    root: Path, found: FoundTable, key: str, columns: Collection[str], spell: Callable[[str], str]
) -> Iterator[tuple[str, dict[str, str]]]:
    table = open_table(root / found.path, known=[key, *columns], option=None)
    places = {plain_name(name): place for place, name in reversed(list(enumerate(table.header)))}
    own = places[key]
    wanted = [(name, places.get(name)) for name in columns]
    for row in table.rows(lambda inside, outer: looks_like_scan(inside[own], outer[own])):
        name = said(row.cells[own])
        if not name:
            raise TableError(
                f"row {row.number} of '{table.path}' has no {table.header[own].strip()}: fill it in, or "
                "leave the row out"
            )
        yield (
            spell(name),
            {column: "" if place is None else said(row.cells[place]) for column, place in wanted},
        )
