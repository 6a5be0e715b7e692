"""The private list of what `prepare` left out: with paths, for the owner of the data alone."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

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
    rows = sorted((row, code, message) for code, message, row in found)
    if not rows:
        file.unlink(missing_ok=True)
        return 0
    by_row = {study.row or place: study for place, study in enumerate(studies, start=1)}
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
        table.writerows((_path(by_row[row]), row, code, message) for row, code, message in rows)
    os.replace(partial, file)
    return len(rows)


def _path(study: Study) -> str:
    return "; ".join(str(series.path) for series in study.series if series.path != Path())
