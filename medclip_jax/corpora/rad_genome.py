"""RadGenome-ChestCT: CT-RATE's scans with masks of regions, sentences by region, and questions.

Reference: Zhang et al., RadGenome-Chest CT: A Grounded Vision-Language Dataset for Chest CT Analysis,
arXiv:2404.16754.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from medclip_jax.corpora.archive import FoundTable, check_root, find_tables, list_files
from medclip_jax.corpora.cells import looks_like_scan
from medclip_jax.corpora.ct_rate import KEY, SECTIONS, read_tables
from medclip_jax.corpora.ct_rate_files import NAME, VolumeFile, describe, find_volumes
from medclip_jax.corpora.folder import StudyTable
from medclip_jax.corpora.joining import join
from medclip_jax.corpora.sentences import (
    COLUMNS,
    RegionSentences,
    join_sentences,
    read_sentences,
    volume_name,
)
from medclip_jax.corpora.study import Series, Study
from medclip_jax.corpora.tables import TableError, open_table, plain_name
from medclip_jax.progress import track_each

_MASKS = re.compile(r"seg|mask|label", re.IGNORECASE)
"""In the name of a folder: its files are no volumes."""

_MASK_FOLDER = re.compile(r"seg_(.+)", re.IGNORECASE)
_PREPROCESSED = re.compile(r"(train|valid)_preprocessed", re.IGNORECASE)

_QUESTIONS = {
    "vqa_abnormality": "questions on abnormality",
    "vqa_location": "questions on location",
    "vqa_presence": "questions on presence",
    "vqa_size": "questions on size",
    "case_disorders": "disorders of cases",
}
"""What a table's name ends in, to what it holds: two of these have the same columns."""


_LARGE_BYTES = 1 << 25
"""Size of tables together from which on a bar is shown."""


def rad_genome(root: str | os.PathLike) -> StudyTable:
    """Read the archive as it was downloaded and unpacked, complete or in part.

    Args:
        root: any folder above the volumes, masks and tables. Tables of CT-RATE's reports and labels are read
            where they lie there, too.

    Returns:
        One study for each volume, grouped and split as those of CT-RATE, with the masks of its folder
        ``seg_NAME`` and its sentences by region. The report is CT-RATE's where its table is there, else the
        text that stands under no region.

    Raises:
        TableError: there are no volumes or no sentences, or a table cannot be understood.
    """
    root = check_root(root, "RadGenome-ChestCT")
    files = list_files(root)
    found, remarks = find_volumes(files, _MASKS)
    volumes, more = _one_file_each(found)
    remarks = [*more, *remarks]
    if not volumes:
        raise TableError(
            f"'{root}' holds no volume such as train_preprocessed/train_1/train_1a/train_1_a_1.nii.gz: give "
            "--root the folder that RadGenome-ChestCT was unpacked to"
        )
    tables = find_tables(root, files)
    told = [table for table in tables if set(COLUMNS) <= table.columns]
    if not told:
        raise TableError(
            f"'{root}' holds no table of sentences by region (Volumename, Anatomy, Sentence): put "
            "train_region_report.csv and validation_region_report.csv anywhere below it"
        )
    sentences = _read_all([root / table.path for table in told])
    masks = find_mask_folders(root, files)
    # A table of sentences has its report in rows; one of CT-RATE's reports has it in columns.
    others = [table for table in tables if table not in told and _question(table) is None]
    reports, labels, _, more = read_tables(root, others)
    questions = _count_questions(root, tables)
    joined: dict[str, Mapping[str, object]] = {"region sentences": sentences.rows, "region masks": masks}
    joined |= {name: rows for name, rows in (("reports", reports), ("labels", labels)) if rows}
    joining = join([volume.name for volume in volumes], joined | questions)
    studies = tuple(
        _study(root, volume, reports.get(volume.name, {}), labels.get(volume.name, {}), masks)
        for volume in volumes
    )
    described = join_sentences(studies, sentences)
    remarks = [
        describe(volumes, "RadGenome-ChestCT"),
        *joining.remarks,
        f"region sentences are given to {described.described} volumes, a report from there to "
        f"{described.reports}",
        *_tell_questions(questions),
        *more,
        *remarks,
    ]
    zero = "absent" if labels else None
    return StudyTable(tuple(described.studies), tuple(remarks), zero, joining.unmatched)


def find_mask_folders(root: Path, files: Sequence[str]) -> dict[str, dict[str, Path]]:
    """Volume to region to file, of folders named ``seg_NAME``.

    Where a region stands in two folders of a volume (``train_anatomy_mask``, ``train_region_mask``), the one
    with ``region`` in its path counts.

    Args:
        root: that the files' paths start from.
        files: of `archive.list_files`.
    """
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in sorted(files, key=lambda path: "region" in path.lower()):
        *folders, file = PurePosixPath(path).parts
        match = _MASK_FOLDER.fullmatch(folders[-1]) if folders else None
        if match is None or not file.lower().endswith((".nii", ".nii.gz")):
            continue
        name = volume_name(match[1])
        if NAME.fullmatch(name):
            found[name][re.sub(r"\.nii(\.gz)?$", "", file)] = root / path
    return dict(found)


def _one_file_each(found: Sequence[VolumeFile]) -> tuple[list[VolumeFile], list[str]]:
    """Volumes of ``*_preprocessed`` folders, on whose grid the masks are; where there are none, all."""
    own = [volume for volume in found if _PREPROCESSED.search(volume.path)]
    chosen = {volume.name: volume for volume in reversed(own or found)}
    volumes = [volume for volume in (own or found) if chosen[volume.name] is volume]
    remarks = []
    if own and len(found) > len(own):
        remarks.append(
            f"{len(found) - len(own)} volumes outside of *_preprocessed are passed over: --corpus ct_rate "
            "reads them"
        )
    if twice := len(own or found) - len(volumes):
        remarks.append(f"{twice} files are of a volume that lies there more than once; the first is read")
    if not own:
        remarks.append("no folder is named *_preprocessed: volumes of other folders are read")
    return volumes, remarks


def _read_all(paths: Sequence[Path]) -> RegionSentences:
    """Several tables of region sentences as one; of a volume in several the first counts."""
    sentences: dict[str, Mapping[str, str]] = {}
    rows: Counter[str] = Counter()
    for path in _shown(paths, "reading sentences"):
        read = read_sentences(path)
        for name, count in read.rows.items():
            if name not in rows:
                rows[name] = count
                sentences[name] = read.paths.get(name, {})
    return RegionSentences(sentences, rows)


def _shown(paths: Sequence[Path], label: str) -> Iterator[Path]:
    """The paths of tables, with a bar where they are large."""
    show = sum(path.stat().st_size for path in paths) > _LARGE_BYTES
    return track_each(paths, total=len(paths), unit="table", label=label, show=show)


def _question(table: FoundTable) -> str | None:
    """What a table of questions holds, in words; None of others."""
    stem = PurePosixPath(table.path).stem.lower()
    name = next((words for ending, words in _QUESTIONS.items() if stem.endswith(ending)), None)
    return name if KEY in table.columns else None


def _count_questions(root: Path, tables: Sequence[FoundTable]) -> dict[str, Counter[str]]:
    """What the tables of questions hold, in words, to the number of rows of each volume."""
    counts: dict[str, Counter[str]] = {}
    asked = {root / table.path: words for table in tables if (words := _question(table)) is not None}
    for path in _shown(list(asked), "counting questions"):
        opened = open_table(path, known=(KEY,), option=None)
        place = [plain_name(title) for title in opened.header].index(KEY)
        names = counts.setdefault(asked[path], Counter())
        for row in opened.rows(
            lambda inside, outer, place=place: looks_like_scan(inside[place], outer[place])
        ):
            names[volume_name(row.cells[place])] += 1
    return counts


def _tell_questions(counts: Mapping[str, Counter[str]]) -> list[str]:
    if not counts:
        return []
    told = ", ".join(f"{rows.total()} {words} of {len(rows)} volumes" for words, rows in counts.items())
    return [f"counted, and not written into the set, which has no place for questions: {told}"]


def _study(
    root: Path,
    volume: VolumeFile,
    report: Mapping[str, str],
    labels: Mapping[str, int],
    masks: Mapping[str, Mapping[str, Path]],
) -> Study:
    organs = masks.get(volume.name, {})
    study = Study(
        series=(Series(root / volume.path),),
        record_id=volume.name,
        study_id=volume.scan,
        patient_id=volume.patient,
        sections={SECTIONS[column]: text for column, text in report.items() if text},
        labels=labels,
        organs=organs,
        split="test" if volume.split == "valid" else None,
    )
    return study if organs else replace(study, notes=("organs-not-found",))
