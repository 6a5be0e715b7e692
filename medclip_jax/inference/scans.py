"""Which scans are meant: files, DICOM folders, folders to search, patterns, lists."""

from __future__ import annotations

import glob
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medclip_jax.corpora.cells import looks_like_scan
from medclip_jax.corpora.columns import COLUMNS, KNOWN_NAMES
from medclip_jax.corpora.study import Series
from medclip_jax.corpora.tables import open_table, plain_name
from medclip_jax.pool import map_in_order
from medclip_jax.progress import track_each
from medclip_jax.volumes.dicom_files import walk
from medclip_jax.volumes.dicom_selection import take_one_of_each_study
from medclip_jax.volumes.dicom_survey import (
    FEW_FILES,
    FolderSurvey,
    FoundSeries,
    join_folders,
    survey_folder,
)
from medclip_jax.volumes.formats import SUFFIXES

_CENTER = ("center_x", "center_y", "center_z")


@dataclass(frozen=True)
class Entry:
    """A scan to embed.

    Attributes:
        scan: its path as it was given or found; what the results call it. Where several series lie in one
            folder, the folder, "#" and a short name of the series. Always text: what is not UTF-8 in a file
            name is written as ``\\xNN``.
        path: where it lies: a file, a folder, or the files of a DICOM series; of a study, its series.
        id: carried over from a list.
        center: RAS mm of the crop's middle, from a list.
        series: which DICOM series of the folder, from a list: SeriesInstanceUID or SeriesNumber.
    """

    scan: str
    path: Path | tuple[Path, ...] | tuple[Series, ...]
    id: str | None = None
    center: tuple[float, float, float] | None = None
    series: str | None = None


@dataclass(frozen=True)
class Selection:
    """Which series of an examination are taken where folders are searched.

    Attributes:
        kernel: of the series, as for `volumes.read_volume`; None for any.
        rule: one of `volumes.RULES` takes one series of each examination; None takes all, unless a kernel is
            given, which takes the best one.
    """

    kernel: str | None = None
    rule: str | None = None

    @property
    def takes_all(self) -> bool:
        """Whether every series is a scan."""
        return self.kernel is None and self.rule is None


def find_scans(
    arguments: Sequence[str] = (),
    *,
    list_file: str | os.PathLike | None = None,
    root: str | os.PathLike | None = None,
    selection: Selection = Selection(),
    workers: int = 1,
    left_out: Counter[str] | None = None,
) -> list[Entry]:
    """Scans that arguments and a list name, each once, in the order given.

    Args:
        arguments: files; DICOM folders; folders that are searched for both; patterns such as
            ``"scans/**/*.nii.gz"``. What is found in a folder or by a pattern comes in the order of its
            name. One DICOM series is one scan, whatever the folders: patients and series are told apart by
            the headers.
        list_file: a text file with one path a line, or a CSV or TSV table with a column `volume`, and
            optionally `series`, `id` and `center_x`, `center_y`, `center_z` (RAS mm).
        root: folder that relative paths of the list start from; default: the list's own.
        selection: which series of an examination, where folders are searched.
        workers: processes that read headers, where there are many.
        left_out: is counted up by what was found and is no volume, such as "localizer" or "SR".

    Raises:
        FileNotFoundError: a pattern or a searched folder yields nothing, or there is no such list.
        ValueError: a list that cannot be understood.
    """
    search = _Search(selection, workers, Counter() if left_out is None else left_out)
    entries = [entry for argument in arguments for entry in search.expand(argument)]
    if list_file is not None:
        entries += _read_list(Path(list_file), root)
    return list(dict.fromkeys(entries))


class _Search:
    """Finds the scans that an argument means."""

    def __init__(self, selection: Selection, workers: int, left_out: Counter[str]):
        self.selection, self.workers, self.left_out = selection, workers, left_out

    def expand(self, argument: str) -> list[Entry]:
        """Scans of a file, a folder to search, or a pattern."""
        path = Path(argument)
        if path.is_dir():
            found = self._below(argument)
            if not found:
                raise FileNotFoundError(
                    f"{_text(argument)} holds no scan: no {', '.join(SUFFIXES)} and no DICOM files in "
                    "it or in the folders below"
                )
            return found
        if path.exists() or not glob.has_magic(argument):
            # A file that is not there is a scan that cannot be read: it is listed with the others.
            return [Entry(_text(argument), path)]
        matches = sorted(glob.glob(argument, recursive=True))
        if not matches:
            raise FileNotFoundError(f"no file matches {argument}")
        return [entry for match in matches for entry in self.expand(match)]

    def _below(self, folder: str) -> list[Entry]:
        """Image files and DICOM series in a folder and below, by name of their folders."""
        closed: list[str] = []
        places: dict[str, list[Entry]] = {}
        tasks = []
        for place, _, names in walk(folder, lambda error: closed.append(os.fspath(error.filename))):
            visible = [name for name in names if not name.startswith(".")]
            images = [name for name in visible if name.lower().endswith(SUFFIXES)]
            places[place] = [_entry(os.path.join(place, name)) for name in images]
            tasks.append((place, [name for name in visible if not name.lower().endswith(SUFFIXES)]))
        is_large = sum(len(names) for _, names in tasks) > FEW_FILES
        found = map_in_order(survey_folder, tasks, self.workers if is_large else 1, _died)
        surveys = list(track_each(found, total=len(tasks), unit="folder", label="headers", show=is_large))
        for survey in surveys:
            self.left_out += survey.others
        series = join_folders(surveys).series
        taken = {id(found) for found in self._taken(series)}
        for found, entry in zip(series, _named(series, surveys), strict=True):
            if id(found) in taken:
                places[found.places[0]].append(entry)
        for survey in surveys:
            places[survey.place] += _unreadable(survey)
        for place in closed:
            places.setdefault(place, []).append(_entry(place))
        entries = [entry for place in sorted(places, key=_order) for entry in places[place]]
        if not entries and any(survey.others for survey in surveys):
            return [_entry(folder)]  # its reason: there are DICOM files, and none is a slice of a scan
        return entries

    def _taken(self, series: Sequence[FoundSeries]) -> Sequence[FoundSeries]:
        if self.selection.takes_all:
            return series
        rule = self.selection.rule or "best"
        taken, dropped = take_one_of_each_study(series, kernel=self.selection.kernel, rule=rule)
        if dropped:
            self.left_out["series not chosen"] += len(dropped)
        return taken


def _named(series: Sequence[FoundSeries], surveys: Sequence[FolderSurvey]) -> list[Entry]:
    """Series as scans, each with a name of its own."""
    unknown = {survey.place: survey.unknown for survey in surveys}
    holding = sorted({place for found in series for place in found.places})
    entries = []
    for found in series:
        place = found.folder
        paths = tuple(found.paths)
        if found.is_alone:  # what cannot be read beside it may be a slice of it
            paths += tuple(Path(where, name) for where in found.places for name in unknown[where])
        below = os.path.join(place, "")
        is_whole = len(found.places) == 1 and not any(other.startswith(below) for other in holding)
        if len(paths) == 1:
            entries.append(_entry(os.fspath(paths[0])) if not found.is_alone else _entry(place))
        elif found.is_alone and is_whole:
            entries.append(_entry(place))
        else:
            name = place if found.is_alone else f"{place}#{found.key}"
            entries.append(Entry(_text(name), paths))
    counts = Counter(entry.scan for entry in entries)
    return [
        replace(entry, scan=f"{entry.scan}#{found.key}") if counts[entry.scan] > 1 else entry
        for found, entry in zip(series, entries, strict=True)
    ]


def _unreadable(survey: FolderSurvey) -> list[Entry]:
    """Files whose series is not known, where they do not go with the only series of their folder."""
    if not survey.unknown or len(survey.series) == 1:
        return []
    paths = tuple(Path(survey.place, name) for name in survey.unknown)
    if not survey.series:
        return [Entry(_text(survey.place), paths)]
    return [_entry(os.fspath(path)) for path in paths]


def _died(task: tuple[str, Sequence[str]]) -> FolderSurvey:
    """A folder whose headers kill their reader: its files get their reason one by one."""
    place, names = task
    return FolderSurvey(place, unknown=tuple(names))


def _entry(name: str) -> Entry:
    return Entry(_text(name), Path(name))


def _text(name: str) -> str:
    """A file name as text: bytes that are not UTF-8 as ``\\xNN``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _order(place: str) -> list[str]:
    """Folders as a walk meets them."""
    return place.split(os.sep)


def _read_list(path: Path, root: str | os.PathLike | None) -> Iterator[Entry]:
    if not path.is_file():
        raise FileNotFoundError(f"no list {path}: --list is a text file with one path a line, or a CSV table")
    start = Path(root) if root is not None else path.parent
    if not start.is_dir():
        raise FileNotFoundError(f"no folder {start}: --root is where the relative paths of the list start")
    if path.suffix.lower() not in (".csv", ".tsv"):
        try:
            names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not UTF-8: save it again as UTF-8 text") from None
        yield from (Entry(name, start / name) for name in names if name and not name.startswith("#"))
        return
    table = open_table(path, known=KNOWN_NAMES, option=None)
    columns = {plain_name(name): place for place, name in enumerate(table.header)}
    volume = next((columns[name] for name in COLUMNS["volume"] if name in columns), None)
    if volume is None:
        raise ValueError(
            f"{path} lacks the column volume; it has {', '.join(columns) or 'nothing'}. Without a header, "
            "name the file .txt: one path a line"
        )
    missing = [name for name in _CENTER if name not in columns]
    if 0 < len(missing) < 3:
        raise ValueError(f"{path} lacks {' and '.join(missing)}: a center takes three columns, RAS mm")
    for row in table.rows(lambda inside, cells: looks_like_scan(inside[volume], cells[volume])):
        cells = {name: row.cells[place].strip() for name, place in columns.items()}
        name = row.cells[volume].strip()
        if not name:
            raise ValueError(
                f"row {row.number} of {path} names no volume: fill the cell, or take the row out"
            )
        series = next((cells[name] for name in COLUMNS["series"] if cells.get(name)), None)
        identity = cells.get("id") or None
        center = None if missing else _center(cells, f"row {row.number} of {path}")
        scan = f"{name}#{series}" if series else name
        yield Entry(scan, start / name, identity, center, series)


def _center(cells: Mapping[str, str], where: str) -> tuple[float, float, float] | None:
    texts = [cells[name] for name in _CENTER]
    if not any(texts):
        return None
    try:
        x, y, z = (float(text) for text in texts)
    except ValueError:
        x = y = z = math.nan
    if not all(map(math.isfinite, (x, y, z))):
        raise ValueError(f"{where}: center_x, center_y and center_z must be three numbers, or all empty")
    return x, y, z
