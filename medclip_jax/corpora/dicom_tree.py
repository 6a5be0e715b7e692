"""Folders of DICOM files as hospitals export them and as TCIA ships NLST: series by their headers alone."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medclip_jax.corpora.dicom_index import Index, list_unread
from medclip_jax.corpora.examinations import Examination, join_examinations
from medclip_jax.corpora.folder import StudyTable
from medclip_jax.corpora.study import Series, Study
from medclip_jax.corpora.tables import TableError
from medclip_jax.reports.definitions import BUILT_IN, Findings
from medclip_jax.volumes.dicom_archive import Archive, survey_archive
from medclip_jax.volumes.dicom_selection import LeftOut, SeriesChoice, by_study, select_series
from medclip_jax.volumes.dicom_survey import FoundSeries

KEYWORDS = ("PatientID", "StudyInstanceUID", "AccessionNumber")
"""All that is kept of a header besides geometry: the ids that are hashed, and that tables are joined by."""


@dataclass(frozen=True)
class Group:
    """The series of one examination of one patient, as far as they are wanted.

    Attributes:
        examination: its ids.
        taken: the series that are prepared.
        failed: where none is: the largest of those that are wanted and cannot be used.
        date: StudyDate, where it was asked for.
    """

    examination: Examination
    taken: tuple[FoundSeries, ...]
    failed: LeftOut | None
    date: str = ""


def dicom_tree(
    root: str | os.PathLike,
    *,
    table: Path | None = None,
    choice: SeriesChoice | None = None,
    encoding: str | None = None,
    sheet: str | None = None,
    definitions: Findings = BUILT_IN,
    cache: Path | None = None,
    workers: int = 1,
) -> StudyTable:
    """Read the headers of a tree of DICOM files, and make a study of each series that is wanted.

    Args:
        root: folder; its structure and the names in it say nothing.
        table: CSV or TSV of what is known of examinations, see `corpora.examinations.join_examinations`; None
            where there are no reports.
        choice: which series of an examination are wanted; default: the best.
        encoding: of the table.
        sheet: of a table that is a spreadsheet; default: its first.
        definitions: the findings that labels of the table can be of.
        cache: private file of what headers said, see `volumes.dicom_cache`; None reads all of them.
        workers: processes that read headers.

    Returns:
        A study for each series, those of one examination under one id. Examinations whose wanted series all
        have something wrong, and files that cannot be opened, are studies with a rejection. `left_out` lists
        every series and file that no study takes.

    Raises:
        TableError: no DICOM slices, or a table that cannot be joined.
    """
    root = Path(root)
    choice = choice or SeriesChoice()
    archive = survey_tree(root, KEYWORDS, cache=cache, workers=workers)
    groups, index = group_tree(archive, choice)
    said: Sequence[Study | None] = [None] * len(groups)
    found = StudyTable(())
    if table is not None:
        joined = join_examinations(
            [group.examination for group in groups],
            table,
            root=table.parent,
            encoding=encoding,
            sheet=sheet,
            definitions=definitions,
        )
        said, found = joined.studies, replace(joined.table, unmatched=joined.unmatched)
    studies = make_studies(root, archive, groups, said)
    return replace(
        found,
        studies=studies,
        remarks=(*tree_remarks(archive, groups, index), *found.remarks),
        left_out=tuple(index.left_out),
    )


def survey_tree(root: Path, keywords: Sequence[str], *, cache: Path | None, workers: int) -> Archive:
    """The series below a folder.

    Args:
        root: folder.
        keywords: of elements that `FoundSeries.values` holds.
        cache: private file; None reads all.
        workers: processes that read.

    Raises:
        TableError: no such folder, or nothing in it that may be a slice.
    """
    if not root.is_dir():
        raise TableError(f"no folder '{root}': --root must be the folder that holds the DICOM files")
    archive = survey_archive([root], also=keywords, workers=workers, cache=cache)
    if not archive.series and not archive.unopened and not archive.closed:
        raise TableError(f"'{root}' holds no DICOM slices: {'; '.join(archive.remarks())}")
    return archive


def group_tree(archive: Archive, choice: SeriesChoice) -> tuple[list[Group], Index]:
    """The examinations of an archive, and what no study takes.

    Args:
        archive: with `KEYWORDS` among the values of its series.
        choice: which series are wanted.
    """
    taken, left = select_series(archive.series, choice)
    is_taken = set(map(id, taken))
    failed = {id(item.series): item for item in left if item.is_failure}
    index = Index()
    list_unread(index, archive)
    groups = []
    for members in by_study(archive.series):
        chosen = tuple(item for item in members if id(item) in is_taken)
        broken = [failed[id(item)] for item in members if id(item) in failed] if not chosen else []
        largest = max(broken, key=lambda item: len(item.series.positions), default=None)
        groups.append(
            Group(
                _examination(members, bool(chosen or broken)), chosen, largest, _first(members, "StudyDate")
            )
        )
    rejected = {id(group.failed) for group in groups}
    for item in left:
        if id(item) not in rejected:
            index.leave_out_series(item)
    return groups, index


def make_studies(
    root: Path, archive: Archive, groups: Sequence[Group], said: Sequence[Study | None]
) -> tuple[Study, ...]:
    """A study for each series that is taken, and one for each examination or file that is rejected.

    Args:
        root: of the tree; ids of what has none are its place below.
        archive: that was read.
        groups: its examinations.
        said: what is known of each, None where nothing is.
    """
    unknown: dict[str, list[Path]] = defaultdict(list)
    for path in (*archive.unopened, *archive.damaged):
        unknown[str(path.parent)].append(path)
    unopened = set(archive.unopened)
    shared = _shared_accessions(groups)
    studies: list[Study] = []
    owned: set[Path] = set()
    counts: Counter[str] = Counter()
    for group, known in zip(groups, said, strict=True):
        one = group.examination
        study_id = one.uid if (one.patient, one.accession) in shared else one.accession or one.uid or one.name
        patient_id = one.patient or f"unknown-{one.uid or one.name}"
        known = known or Study((), "", study_id, patient_id)
        for found in group.taken or ((group.failed.series,) if group.failed else ()):
            # What cannot be read beside the only series of a folder may be a slice of it.
            beside = [path for place in found.places for path in unknown[place]] if found.is_alone else []
            owned.update(beside)
            where = found.uid or os.path.relpath(found.folder, root)
            counts[name := json.dumps([patient_id, one.uid, where])] += 1
            # Where a file could not be opened, nobody knows what else is wrong: reading the series tells.
            failed = None if unopened.intersection(beside) else group.failed
            rejection = (failed.code, failed.message) if failed else known.rejection
            series = Series(
                Path(found.folder),
                modality=found.modality,
                uid=found.uid,
                files=tuple(sorted((*found.paths, *beside))),
            )
            studies.append(
                replace(
                    known,
                    series=(series,),
                    record_id=name if counts[name] == 1 else f"{name} {counts[name]}",
                    study_id=study_id,
                    patient_id=patient_id,
                    rejection=rejection,
                    row=None,
                )
            )
    return (*studies, *_unreadable(root, archive, owned))


def tree_remarks(archive: Archive, groups: Sequence[Group], index: Index) -> tuple[str, ...]:
    """What the user should know of a tree, in sentences without ids.

    Args:
        archive: that was read.
        groups: its examinations.
        index: what no study takes.
    """
    series = sum(len(group.taken) for group in groups)
    patients = len({group.examination.patient or group.examination.name for group in groups})
    remarks = [
        *archive.remarks(),
        f"{len(archive.series)} series in {len(groups)} studies of {patients} patients; {series} series "
        f"{'is' if series == 1 else 'are'} taken",
    ]
    if index.left_out:
        told = ", ".join(f"{code} {count}" for code, count in index.counts().most_common())
        remarks.append(f"left out (--list-left-out FILE lists each with its reason): {told}")
    return tuple(remarks)


def _examination(members: Sequence[FoundSeries], is_wanted: bool) -> Examination:
    uid, accession = _first(members, "StudyInstanceUID"), _first(members, "AccessionNumber")
    return Examination(
        _first(members, "PatientID"), uid, accession, accession or uid or members[0].key, is_wanted
    )


def _first(members: Sequence[FoundSeries], name: str) -> str:
    return next((text for item in members if (text := item.values.get(name))), "")


def _shared_accessions(groups: Sequence[Group]) -> set[tuple[str, str]]:
    """Patient and accession number that several examinations have: StudyInstanceUID tells them apart."""
    uids: Mapping[tuple[str, str], set[str]] = defaultdict(set)
    for group in groups:
        one = group.examination
        if one.accession and one.uid:
            uids[one.patient, one.accession].add(one.uid)
    return {owner for owner, found in uids.items() if len(found) > 1}


def _unreadable(root: Path, archive: Archive, owned: set[Path]) -> list[Study]:
    """Files and folders that cannot be opened: slices may lie there, and the next run tries again."""
    places: dict[Path, list[Path]] = defaultdict(list)
    for path in archive.unopened:
        if path not in owned:
            places[path.parent].append(path)
    studies = []
    for place, files in (*places.items(), *((place, []) for place in archive.closed)):
        what = f"{len(files)} files of a folder" if files else "A folder of the tree"
        message = f"{what} cannot be opened, and slices may lie there: fix the permissions, and run again."
        name = f"unreadable {os.path.relpath(place, root)}"
        studies.append(
            Study(
                (Series(place, files=tuple(files)),),
                record_id=name,
                study_id=name,
                patient_id=name,
                split="train",  # so that nobody's place in the splits depends on it
                rejection=("unreadable", message),
            )
        )
    return studies
