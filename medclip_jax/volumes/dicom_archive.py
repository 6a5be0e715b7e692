"""An archive of DICOM files in folders of any kind: each header once, or from the cache."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from medclip_jax.pool import map_in_order
from medclip_jax.progress import track
from medclip_jax.volumes.dicom_cache import (
    FileState,
    HeaderCache,
    Known,
    decode_headers,
    encode_headers,
    file_states,
)
from medclip_jax.volumes.dicom_files import silenced, walk
from medclip_jax.volumes.dicom_headers import DicomFile, read_file
from medclip_jax.volumes.dicom_survey import (
    FEW_FILES,
    FolderHeaders,
    FolderSurvey,
    FoundSeries,
    join_folders,
    read_folder,
    survey_headers,
)

_FILES_AT_ONCE = 512
"""A folder with more files is read in pieces, by all processes."""


@dataclass(frozen=True)
class Archive:
    """What lies in some folders and all below.

    Attributes:
        series: that are scans, or should be.
        files: that were looked at.
        fresh: of them, whose headers were read in this run and not taken from the cache.
        others: what is no volume: "localizer" or a modality, to the number of files.
        foreign: "no DICOM" or "DICOMDIR", to the number of files.
        copies: files that repeat another one.
        unopened: files that cannot be opened, which may pass.
        damaged: files that are damaged so that nobody knows their series.
        closed: folders that cannot be listed, which may pass.
    """

    series: tuple[FoundSeries, ...]
    files: int
    fresh: int
    others: Counter[str]
    foreign: Counter[str]
    copies: tuple[Path, ...]
    unopened: tuple[Path, ...]
    damaged: tuple[Path, ...]
    closed: tuple[Path, ...]

    def remarks(self) -> tuple[str, ...]:
        """What was found besides series, in sentences without names and ids."""
        read = "" if self.fresh == self.files else f"; {self.fresh} headers were read, the cache has the rest"
        said = [f"{self.files} files looked at{read}"]
        if self.others:
            told = ", ".join(f"{count} {kind}" for kind, count in self.others.most_common())
            said.append(f"files that are no slices of a scan: {told}")
        if self.foreign:
            told = ", ".join(f"{count} {kind}" for kind, count in self.foreign.most_common())
            said.append(f"files without images: {told}")
        for what, paths in (
            ("files repeat another one, and are passed over", self.copies),
            ("files cannot be opened: fix their permissions, and run again", self.unopened),
            ("files are damaged, and nobody knows their series: copy them again", self.damaged),
            ("folders cannot be opened: fix their permissions, and run again", self.closed),
        ):
            if paths:
                said.append(f"{len(paths)} {what}")
        return tuple(said)


@dataclass(frozen=True)
class _Task:
    """Headers to read: of a folder, or of a part of a large one.

    Attributes:
        place: the folder.
        names: of the files.
        known: headers of its other files, encoded.
        is_whole: whether that is all of the folder.
    """

    place: str
    names: tuple[str, ...]
    known: str = ""
    is_whole: bool = True


@dataclass(frozen=True)
class _Result:
    """What a task found; the survey of a whole folder alone."""

    headers: str
    unopened: tuple[str, ...] = ()
    survey: FolderSurvey | None = None


def survey_archive(
    folders: Iterable[str | os.PathLike],
    *,
    also: Sequence[str] = (),
    workers: int = 1,
    cache: Path | None = None,
    show: bool = True,
) -> Archive:
    """Read the headers of all files in folders and below, and put their series together.

    Names and suffixes of files and the structure of folders say nothing; links are followed, no folder is
    read twice. Nothing is read from the pixels on.

    Args:
        folders: to search.
        also: keywords of further elements wanted in `FoundSeries.values`.
        workers: processes that read.
        cache: private file of what headers said before, written anew; None reads all.
        show: a bar of files.
    """
    closed: list[Path] = []
    names: dict[str, list[str]] = {}
    roots = list(dict.fromkeys(map(os.path.abspath, folders)))
    for folder in roots:
        for place, _, found in walk(folder, lambda error: closed.append(Path(error.filename))):
            if found:
                names.setdefault(place, found)
    with HeaderCache(cache) as kept:
        surveys, fresh = _survey_all(names, tuple(also), workers, kept, show)
        _forget_gone(kept, names, roots, closed)
        joined = join_folders(surveys, partial(_headers_of, kept))
    unopened = [Path(survey.place, name) for survey in surveys for name in survey.unopened]
    unknown = [Path(survey.place, name) for survey in surveys for name in survey.unknown]
    copies = [Path(survey.place, name) for survey in surveys for name in survey.copies]
    return Archive(
        series=tuple(joined.series),
        files=sum(map(len, names.values())),
        fresh=fresh,
        others=sum((survey.others for survey in surveys), Counter()),
        foreign=sum((survey.foreign for survey in surveys), Counter()),
        copies=(*copies, *joined.copies),
        unopened=tuple(unopened),
        damaged=tuple(path for path in unknown if path not in set(unopened)),
        closed=tuple(closed),
    )


def _survey_all(
    names: dict[str, list[str]], also: tuple[str, ...], workers: int, cache: HeaderCache, show: bool
) -> tuple[list[FolderSurvey], int]:
    """A survey of each folder, in order, and how many files were read for them."""
    surveys: dict[str, FolderSurvey | None] = {}
    states: dict[str, dict[str, FileState | None]] = {}
    tasks: list[_Task] = []
    for place, found in names.items():
        now = file_states(place, found)
        known = cache.get(place)
        if known is not None and not set(also) <= set(known.keywords):
            known = None
        if known is not None and known.states == now:
            surveys[place] = known.survey
            continue
        surveys[place], states[place] = None, now
        old = {} if known is None else known.states
        changed = [name for name in found if now[name] is None or old.get(name) != now[name]]
        unchanged = set(found).difference(changed)
        rest = ""
        if known is not None and unchanged:
            before = decode_headers(place, known.headers).files
            rest = encode_headers({name: file for name, file in before.items() if name in unchanged})
        tasks += _cut(place, changed, rest)
    fresh = sum(len(task.names) for task in tasks)
    results = map_in_order(
        partial(_read, also=also),
        tasks,
        min(workers, len(tasks)) if fresh > FEW_FILES else 1,
        _died,
    )
    done = sum(map(len, names.values())) - fresh
    with track(
        total=done + fresh, initial=done, label="headers", unit="file", show=show and fresh > 0
    ) as bar:
        for place, parts in _by_folder(tasks, results, bar.update):
            survey, headers = _whole(place, parts)
            surveys[place] = survey
            if not survey.unopened:  # what cannot be opened may be opened by the next run
                known = {name: state for name, state in states[place].items() if state is not None}
                cache.put(place, Known(also, known, survey, headers))
    return [surveys[place] for place in names], fresh


def _cut(place: str, names: Sequence[str], rest: str) -> list[_Task]:
    if len(names) <= _FILES_AT_ONCE:
        return [_Task(place, tuple(names), rest)]
    starts = range(0, len(names), _FILES_AT_ONCE)
    parts = [tuple(names[start : start + _FILES_AT_ONCE]) for start in starts]
    return [_Task(place, part, rest if n == 0 else "", is_whole=False) for n, part in enumerate(parts)]


def _read(task: _Task, also: Sequence[str]) -> _Result:
    """Read the headers of a task; runs in worker processes."""
    found = read_folder(task.place, task.names, also)
    files = dict(sorted((decode_headers(task.place, task.known).files | found.files).items()))
    headers = encode_headers(files)
    if not task.is_whole:
        return _Result(headers, found.unopened)
    return _Result(headers, found.unopened, survey_headers(replace(found, files=files)))


def _died(task: _Task) -> _Result:
    """What becomes of headers that kill their reader: nobody can say what these files are."""
    return _Result(task.known, task.names)


def _by_folder(
    tasks: Sequence[_Task], results: Iterable[_Result], tell
) -> Iterator[tuple[str, list[_Result]]]:
    """Results of each folder, as soon as it is complete."""
    parts: list[_Result] = []
    for n, result in enumerate(results):
        tell(len(tasks[n].names))
        parts.append(result)
        if n + 1 == len(tasks) or tasks[n + 1].place != tasks[n].place:
            yield tasks[n].place, parts
            parts = []


def _whole(place: str, parts: Sequence[_Result]) -> tuple[FolderSurvey, str]:
    """Survey and encoded headers of a folder that was read in one or several parts."""
    if len(parts) == 1 and parts[0].survey is not None:
        return parts[0].survey, parts[0].headers
    files: dict[str, DicomFile | None] = {}
    for part in parts:
        files |= decode_headers(place, part.headers).files
    unopened = tuple(name for part in parts for name in part.unopened)
    files = dict(sorted(files.items()))
    return survey_headers(FolderHeaders(place, files, unopened)), encode_headers(files)


def _forget_gone(
    cache: HeaderCache, names: dict[str, list[str]], roots: Sequence[str], closed: Sequence[Path]
) -> None:
    """Folders that are no more leave the cache; those that could not be listed, or lie elsewhere, stay."""
    hidden = [os.path.join(place, "") for place in closed]
    for place in cache.places:
        below = any(place == root or place.startswith(os.path.join(root, "")) for root in roots)
        if (
            below
            and place not in names
            and not any(os.path.join(place, "").startswith(one) for one in hidden)
        ):
            cache.forget([place])


def _headers_of(cache: HeaderCache, series: FoundSeries) -> Iterator[DicomFile | None]:
    """Headers of a series, from the cache where it has them."""
    for place, names in zip(series.places, series.names, strict=True):
        known = cache.get(place)
        held = {} if known is None else decode_headers(place, known.headers).files
        for name in names:
            with silenced():
                yield held[name] if name in held else read_file(Path(place, name))
