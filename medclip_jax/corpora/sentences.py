"""Region sentences: a table of which sentence of a report talks of which region, joined to studies."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medclip_jax.corpora.cells import looks_like_scan
from medclip_jax.corpora.study import Study
from medclip_jax.corpora.tables import TableError, open_table, plain_name
from medclip_jax.reports.sections import clean

COLUMNS = ("volumename", "anatomy", "sentence")
"""RadGenome-ChestCT's; in any case."""


@dataclass(frozen=True)
class RegionSentences:
    """A table of region sentences.

    Attributes:
        paths: volume to anatomy path to text. Volumes go by file name, without folder and extension; the
            path "" holds the full report.
        rows: volume to the number of its rows, repeated ones included.
    """

    paths: Mapping[str, Mapping[str, str]]
    rows: Mapping[str, int]


@dataclass(frozen=True)
class Joined:
    """What became of a table of region sentences.

    Attributes:
        studies: in their order, with sentences where the table has some.
        described: studies with sentences.
        reports: studies that had no report and took the table's.
        unknown_volumes, unknown_rows: volumes that no study has, and their rows; not used.
    """

    studies: Sequence[Study]
    described: int
    reports: int
    unknown_volumes: int
    unknown_rows: int

    def text(self) -> str:
        """One or two sentences for the log; names no volume."""
        lines = [f"region sentences for {self.described} of {len(self.studies)} volumes"]
        if self.reports:
            lines.append(f"{self.reports} take their report from there")
        if self.unknown_rows:
            lines.append(
                f"{self.unknown_rows} rows of {self.unknown_volumes} volumes that are not among the studies "
                "are left out"
            )
        return "; ".join(lines)


def volume_name(path: str) -> str:
    """What volumes are joined by: the file's name, without folder and extension, in lower case."""
    name = re.split(r"[\\/]", path.strip().rstrip("\\/"))[-1]
    return re.sub(r"\.(nii|nii\.gz|nrrd|nhdr|mha|mhd|npz|npy)$", "", name.lower())


def read_sentences(path: str | os.PathLike, *, encoding: str | None = None) -> RegionSentences:
    """Read a table of region sentences.

    A text that stands twice under one path of a volume counts once; different ones are put together.

    Args:
        path: CSV or TSV with the columns Volumename, Anatomy, Sentence in any case.
        encoding: of the table; default: UTF-8, or what its byte order mark says.

    Raises:
        TableError: no such table, a column is missing, or a row names no volume.
    """
    path = Path(path)
    if not path.is_file():
        raise TableError(f"no table '{path}': give the CSV with region sentences to --sentences")
    texts: dict[str, dict[str, dict[str, None]]] = {}
    rows: Counter[str] = Counter()
    table = open_table(path, encoding=encoding, known=COLUMNS)
    places = {plain_name(name): place for place, name in enumerate(table.header)}
    if missing := [name for name in COLUMNS if name not in places]:
        raise TableError(
            f"'{path}' lacks the column {' and the column '.join(missing)}. It has: "
            f"{', '.join(map(repr, table.header)) or 'nothing'}. Region sentences stand in the columns "
            "Volumename, Anatomy, Sentence"
        )
    volume_place = places[COLUMNS[0]]
    for row in table.rows(lambda inside, row: looks_like_scan(inside[volume_place], row[volume_place])):
        volume, anatomy, sentence = (row.cells[places[name]].strip() for name in COLUMNS)
        if not volume:
            raise TableError(
                f"row {row.number} of '{path}' names no volume: fill it in, or leave the row out"
            )
        name = volume_name(volume)
        rows[name] += 1
        if clean(sentence):
            texts.setdefault(name, {}).setdefault(clean(anatomy), {})[sentence] = None
    paths = {
        volume: {anatomy: " ".join(said) for anatomy, said in regions.items()}
        for volume, regions in texts.items()
    }
    return RegionSentences(paths, rows)


def join_sentences(studies: Iterable[Study], table: RegionSentences) -> Joined:
    """Give studies their region sentences, and the full report where they have none.

    Args:
        studies: of any corpus.
        table: from `read_sentences`.

    Raises:
        TableError: two volumes in different folders have one file name that the table names, so that
            nobody can tell which is meant.
    """
    owners: dict[str, tuple[int, Path]] = {}
    found: list[Study] = []
    described = reports = 0
    for row, study in enumerate(studies, start=1):
        name = volume_name(study.path.name)
        said = dict(table.paths.get(name, {}))
        if name in table.rows:
            first, volume = owners.setdefault(name, (row, study.path))
            if volume != study.path:
                raise TableError(
                    f"the volumes of rows {first} and {row} have the same file name, and region sentences "
                    "are joined by it: rename one of them, in its folder and in both tables"
                )
        whole = said.pop("", "")
        if whole and not clean(study.report) and not any(map(clean, study.sections.values())):
            study, reports = replace(study, report=whole), reports + 1
        if said:
            study, described = replace(study, sentences=said), described + 1
        found.append(study)
    unknown = table.rows.keys() - owners.keys()
    return Joined(found, described, reports, len(unknown), sum(table.rows[name] for name in unknown))
