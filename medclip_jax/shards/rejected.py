"""The private list of what `prepare` left out: with paths, for the owner of the data alone."""

from __future__ import annotations

import csv
import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medclip_jax.corpora.study import Study
from medclip_jax.shards.parts import Part

COLUMNS = ("path", "row", "code", "what_to_do")


def rejected_file(out: Path, key: Path, part: Part | None = None) -> Path:
    """Where the list of a set lies: beside its key, so that it is kept as the key is.

    Args:
        out: folder of the set.
        key: file of its key.
        part: of several machines, each of which lists what it left out.
    """
    name = out.resolve().name
    name += ".rejected.csv" if part is None else f".rejected-{part.index}-of-{part.count}.csv"
    return key.absolute().with_name(name)


def write_rejected(file: Path, studies: Sequence[Study], found: Iterable[tuple[str, str, int]]) -> int:
    """Write which studies were rejected, readable by their owner only; without any, remove an older list.

    Args:
        file: CSV to write: path as the study gives it, row of the input, code, what to do.
        studies: all of the corpus, in the order of the input.
        found: code, message and row of each.

    Returns:
        Rows written.
    """
    by_row = {study.row or place: study for place, study in enumerate(studies, start=1)}
    return _write(file, sorted((row, _path(by_row[row]), code, message) for code, message, row in found))


def join_rejected(out: Path, key: Path, rejected: Sequence[Mapping[str, Any]]) -> tuple[Path, int] | None:
    """Put the lists of all parts together as the one of the set, and remove them.

    Args:
        out: folder of the set.
        key: file of its key, beside which the lists lie.
        rejected: lines of its manifest. What an earlier run of a part rejected, and these do not, goes.

    Returns:
        The list, and how many of its rows have no path, because the list of their part lies elsewhere; None
        where no list of a part lies there.
    """
    file = rejected_file(out, key)
    parts = sorted(file.parent.glob(f"{glob.escape(out.resolve().name)}.rejected-*-of-*.csv"))
    paths: dict[int, str] = {}
    for part in parts:
        with open(part, newline="", encoding="utf-8", errors="surrogateescape") as opened:
            paths |= {int(row["row"]): row["path"] for row in csv.DictReader(opened)}
    if not parts:
        return None
    rows = [(line["row"], paths.get(line["row"], ""), line["reason"], line["message"]) for line in rejected]
    _write(file, sorted(rows))
    for part in parts:
        part.unlink(missing_ok=True)
    return file, sum(line["row"] not in paths for line in rejected)


def _write(file: Path, rows: Sequence[tuple[int, str, str, str]]) -> int:
    if not rows:
        file.unlink(missing_ok=True)
        return 0
    partial = file.with_name(f"{file.name}.partial")
    partial.unlink(missing_ok=True)
    with open(
        partial,
        "w",
        encoding="utf-8",
        errors="surrogateescape",  # names that are not UTF-8 are written as the bytes they are
        newline="",
        opener=lambda name, flags: os.open(name, flags | os.O_EXCL, 0o600),
    ) as opened:
        table = csv.writer(opened, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows((path, row, code, message) for row, path, code, message in rows)
    os.replace(partial, file)
    return len(rows)


def _path(study: Study) -> str:
    return "; ".join(str(series.path) for series in study.series if series.path != Path())
