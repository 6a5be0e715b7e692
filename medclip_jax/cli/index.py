"""`medclip index`: a table of studies from the DICOM headers of an archive."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medclip_jax.volumes.dicom_survey import FolderSurvey, FoundSeries

HELP = """\
Write a table of studies from the DICOM headers of an archive: one row a series, for `medclip prepare`.

Only headers are read. The table holds patient ids, accession numbers and paths: it is PRIVATE, readable
by you alone, as is the list of what was left out and the cache. What `medclip prepare` makes of it holds
keyed hashes in their place."""

EPILOG = """\
examples:
  medclip index PACS/ --out studies.csv
  medclip index PACS/ --out studies.csv --reports reports.csv --series-rule best
  medclip prepare --table studies.csv --out shards
  medclip index PACS/ --frames --out series.csv     # cardiac MR: docs/how-to/cardiac-mr.md

--reports is a CSV with a column accession (or accession_number, study, ...) and report (or findings,
impression); its other columns go along. Series without a report, reports without a series, and series that
cannot become a volume are counted, and listed with the reason in OUT.left-out.csv.
A second run reads only the folders that have changed: the rest comes from OUT.cache.jsonl.
"""


_VERSION = "1"
"""Of surveys; another one makes caches void."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EPILOG
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="folders to search, with all below")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.csv", help="table to write")
    parser.add_argument("--reports", type=Path, metavar="CSV", help="reports, joined by accession number")
    parser.add_argument("--reports-key", metavar="COLUMN", help="of accession numbers in --reports")
    parser.add_argument("--encoding", help="of --reports (default: UTF-8, or what its first bytes say)")
    parser.add_argument(
        "--modality", choices=("CT", "MR"), help="others are left out (CT; with --frames, MR)"
    )
    parser.add_argument(
        "--frames",
        action="store_true",
        help="a row for each series of slices with any number of phases, for prepare --corpus cmr; the "
        "column series is for you to fill in, by the description",
    )
    parser.add_argument(
        "--kernel", metavar="NAME", help="one series an examination: soft, medium, sharp, or a name as 'B3*'"
    )
    parser.add_argument(
        "--series-rule",
        choices=("all", "best", "largest", "thinnest", "original"),
        default="all",
        help="which series of an examination stand in the table, see docs/reference/volumes.md (%(default)s)",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that read headers (default: one for each core)"
    )


def run(args: argparse.Namespace) -> int:
    """Index; 0 when there is at least one row."""
    from medclip_jax.corpora.dicom_index import join_reports, make_frame_index, make_index, write_index
    from medclip_jax.shards.work import available_cores
    from medclip_jax.volumes.dicom_survey import join_folders, take_one_of_each_study

    if args.out.suffix != ".csv":
        raise ValueError(f"--out {args.out}: the table is a CSV file, name it .csv")
    if args.frames and (args.kernel is not None or args.series_rule != "all"):
        raise ValueError("--frames lists all series: leave --kernel and --series-rule out")
    modality = args.modality or ("MR" if args.frames else "CT")
    if args.workers is not None and args.workers < 1:
        raise ValueError(f"--workers {args.workers}: it must be 1 or more")
    for folder in args.folders:
        if not os.path.isdir(folder):
            raise ValueError(f"no folder '{folder}': give the folders that hold the DICOM files")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    closed: list[str] = []
    surveys = list(_surveys(args.folders, args.out, args.workers or available_cores(), closed))
    others = sum((survey.others for survey in surveys), Counter())
    series: Sequence[FoundSeries] = join_folders(surveys)
    total = len(series)
    dropped: Sequence[FoundSeries] = ()
    if args.kernel is not None or args.series_rule != "all":
        rule = "best" if args.series_rule == "all" else args.series_rule
        series, dropped = take_one_of_each_study(series, kernel=args.kernel, rule=rule, modality=modality)
    index = (make_frame_index if args.frames else make_index)(series, modality)
    for found in dropped:
        accession = found.values["AccessionNumber"]
        text = "Another series of the examination was taken: see --series-rule and --kernel."
        index.leave_out(found.folder, found.uid or found.key, accession, "not-chosen", text)
    for place in closed:
        index.leave_out(place, "", "", "unreadable", "The folder cannot be opened: fix its permissions.")
    for survey in surveys:
        for name in survey.unknown:
            text = "The file cannot be read: copy it again, or fix its permissions. Its series may lack it."
            index.leave_out(os.path.join(survey.place, name), "", "", "unreadable-file", text)
    if args.reports is not None:
        index = join_reports(index, args.reports, key=args.reports_key, encoding=args.encoding)
    left_out = args.out.with_suffix(".left-out.csv")
    write_index(index, args.out, left_out)
    print(f"{total} series; {len(index.rows)} rows in {args.out} (private: it names patients)")
    if others:
        told = ", ".join(f"{count} {kind}" for kind, count in others.most_common())
        print(f"files that are no slices of a scan: {told}")
    for code, count in index.counts().most_common():
        print(f"  left out, {code}: {count}")
    if index.left_out:
        print(f"each with its reason: {left_out}")
    if not index.rows:
        why = f": {left_out} says why" if index.left_out else ": no DICOM slices were found"
        raise ValueError(f"no series can be prepared{why}")
    if args.frames:
        print("fill in the column series (cine_sa, lge_sa, ...; rows without are passed over), then:")
        print(f"medclip prepare --corpus cmr --table {args.out} --out shards")
    elif args.reports is not None:
        print(f"next: medclip prepare --table {args.out} --out shards")
    return 0


def _surveys(folders: Sequence[str], out: Path, workers: int, closed: list[str]) -> Iterator[FolderSurvey]:
    """Surveys of all folders, in their order, from the cache where nothing has changed."""
    from medclip_jax.corpora.dicom_index import KEYWORDS
    from medclip_jax.progress import track
    from medclip_jax.shards.pool import map_in_order
    from medclip_jax.volumes.dicom_files import walk
    from medclip_jax.volumes.dicom_survey import FEW_FILES, FolderSurvey, survey_folder

    tasks = {}
    for folder in dict.fromkeys(map(os.path.abspath, folders)):
        for place, _, names in walk(folder, lambda error: closed.append(os.fspath(error.filename))):
            if names:
                tasks.setdefault(place, names)
    cache = SurveyCache(out.with_suffix(".cache.jsonl"))
    states = {place: folder_state(place, names, KEYWORDS) for place, names in tasks.items()}
    todo = [(place, names) for place, names in tasks.items() if cache.get(place, states[place]) is None]
    count = sum(len(names) for _, names in todo)
    fresh = map_in_order(
        partial(survey_folder, also=KEYWORDS),
        todo,
        min(workers, len(todo)) if count > FEW_FILES else 1,
        lambda task: FolderSurvey(task[0], unknown=tuple(task[1])),
    )
    with track(total=len(tasks), initial=len(tasks) - len(todo), label="index", unit="folder") as bar, cache:
        for survey in fresh:
            cache.put(states[survey.place], survey)
            bar.update()
    for place in tasks:
        yield cache.get(place, states[place])


def folder_state(place: str, names: Sequence[str], keywords: Sequence[str]) -> str:
    """Digest of all that a survey of a folder depends on: names, sizes and times of its files."""
    state = [_VERSION, *keywords]
    for name in names:
        try:
            found = os.stat(os.path.join(place, name))
            state.append(f"{name} {found.st_size} {found.st_mtime_ns}")
        except OSError:
            state.append(f"{name} cannot be seen")
    return hashlib.sha256("\n".join(state).encode(errors="surrogateescape")).hexdigest()


class SurveyCache:
    """Surveys of folders in a private file, one JSON a line. A context manager: leaving it tidies the file.

    Args:
        path: of the file. Lines that a kill cut short, or that are damaged, count as not there.
    """

    def __init__(self, path: Path):
        from medclip_jax.volumes.dicom_survey import from_json

        self._path = path
        self._known: dict[str, tuple[str, FolderSurvey]] = {}
        if path.is_file():
            for line in path.read_text(errors="replace").splitlines():
                with contextlib.suppress(Exception):
                    written = json.loads(line)
                    survey = from_json(written["survey"])
                    self._known[survey.place] = (written["state"], survey)

    def __enter__(self) -> SurveyCache:
        self._file = open(self._path, "a", opener=lambda name, flags: os.open(name, flags, 0o600))
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        tidy = self._path.with_suffix(".partial")
        with open(tidy, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            for state, survey in self._known.values():
                file.write(_line(state, survey))
        os.replace(tidy, self._path)

    def get(self, place: str, state: str) -> FolderSurvey | None:
        """The survey of a folder that has not changed."""
        known, survey = self._known.get(place, ("", None))
        return survey if known == state else None

    def put(self, state: str, survey: FolderSurvey) -> None:
        """Keep a survey: in the file at once, so that a kill costs one folder."""
        self._known[survey.place] = (state, survey)
        self._file.write(_line(state, survey))
        self._file.flush()


def _line(state: str, survey: FolderSurvey) -> str:
    from medclip_jax.volumes.dicom_survey import to_json

    return json.dumps({"state": state, "survey": to_json(survey)}) + "\n"
