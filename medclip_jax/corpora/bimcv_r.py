"""BIMCV-R: 8,069 chest CT volumes of 5,340 patients with reports in English.

References:
    Chen et al., BIMCV-R: A Landmark Dataset for 3D CT Text-Image Retrieval, MICCAI 2024, arXiv:2403.15992.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from medclip_jax.corpora.archive import (
    FoundTable,
    check_root,
    find_tables,
    list_files,
    read_rows,
    volumes_by_name,
)
from medclip_jax.corpora.cells import SPLITS
from medclip_jax.corpora.folder import StudyTable
from medclip_jax.corpora.id_tables import NOT_IN_ARCHIVE, few
from medclip_jax.corpora.joining import join
from medclip_jax.corpora.study import Series, Study
from medclip_jax.corpora.tables import TableError

REPORT = "report_en"
_PATHS = ("ct_path", "path")
"""Columns with the volume's path, the surer one first: `path` may name the folder of a session instead."""

_PUBLISHED = re.compile(r"curated_ct_report_path_en\.(csv|tsv)", re.IGNORECASE)
_LIST = re.compile(r"bimcv_(train|val|valid|validation|test)\.(csv|tsv)", re.IGNORECASE)
_VOLUME = re.compile(r"(.+?)\.nii(?:\.gz)?", re.IGNORECASE)
_PATIENT = re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)")
_SESSION = re.compile(r"(?:^|[/_])(ses-[A-Za-z0-9]+)")


@dataclass(frozen=True)
class _Volume:
    """A file of the archive.

    Attributes:
        name: of the file, without suffix.
        path: from the root.
        patient: such as "sub-S03044", "" where neither name nor folder says it.
        session: such as "ses-E06180", likewise.
    """

    name: str
    path: str
    patient: str
    session: str

    @property
    def examination(self) -> str:
        return f"{self.patient}_{self.session}" if self.session else self.name


def bimcv_r(root: str | os.PathLike) -> StudyTable:
    """Read BIMCV-R as it lies on the disk.

    Args:
        root: holds, itself or in folders below, the volumes (`CT*/ct/*.nii.gz`) and a CSV with the columns
            `path` and `Report_en` (`meta/curated_ct_report_path_En.csv`).

    Returns:
        One study for each volume. Patient and examination are those of its name
        (`sub-S03044_ses-E06180_run-3_bp-chest_ct.nii.gz`), or of its folders; volumes of one examination
        share a report. There is no published split by patients, so that none is given, unless lists
        `bimcv_train.csv`, `bimcv_val.csv` and `bimcv_test.csv` with the column `PatientID` lie there, too.

    Raises:
        TableError: there are no volumes or no reports, or no name says whose a volume is.
    """
    root = check_root(root, "BIMCV-R")
    files = list_files(root)
    volumes = _find_volumes(root, files)
    tables = find_tables(root, files)
    reports, remarks = _read_reports(root, tables)
    keys = [_key(volume, reports) for volume in volumes]
    joining = join(keys, {"reports": reports})
    if not any(key in reports for key in keys):
        raise TableError(
            f"none of the {len(volumes)} volumes in '{root}' has a row in the table of reports: are both "
            "of one archive? Rows are matched by the file name at the end of their path"
        )
    splits = _read_lists(root, tables)
    studies = [
        _study(root, volume, reports.get(key, {}).get(REPORT, ""), key in reports, splits)
        for volume, key in zip(volumes, keys, strict=True)
    ]
    remarks = [_describe(volumes, splits), *joining.remarks, *remarks]
    if unknown := [volume.name for volume in volumes if not volume.patient]:
        remarks.append(
            f"{len(unknown)} volumes do not say whose they are ({few(unknown)}): they are rejected, as "
            "they could come into another split than the patient's other scans"
        )
    return StudyTable(tuple(studies), tuple(remarks), None, joining.unmatched)


def _find_volumes(root: Path, files: Sequence[str]) -> list[_Volume]:
    found = volumes_by_name(
        root,
        files,
        "CT*/ct/*.nii.gz",
        "unpack the archive's zip files, and give --root the folder that they lie in",
    )
    volumes = [
        _Volume(name, path, _last(_PATIENT, path), _last(_SESSION, path)) for name, path in found.items()
    ]
    if not any(volume.patient for volume in volumes):
        raise TableError(
            f"none of the {len(volumes)} volumes in '{root}' is named by its patient, such as "
            "sub-S03044_ses-E06180_run-3_bp-chest_ct.nii.gz, so that patients cannot be kept apart: take the "
            "files with their published names"
        )
    return volumes


def _last(pattern: re.Pattern[str], path: str) -> str:
    """The last match in a path: the file's name comes before its folders."""
    found = pattern.findall(path)
    return found[-1] if found else ""


def _spell(path: str) -> str:
    """What a row is of: the name of a volume, or of an examination where the path is that of its folder."""
    path = path.replace("\\", "/").rstrip("/")
    name = path.rpartition("/")[2]
    if match := _VOLUME.fullmatch(name):
        return match[1]
    patient, session = _last(_PATIENT, path), _last(_SESSION, path)
    return f"{patient}_{session}" if patient and session else name


def _key(volume: _Volume, reports: Mapping[str, object]) -> str:
    """The row of a volume, or of its examination where no row names the volume."""
    return volume.examination if volume.name not in reports and volume.examination in reports else volume.name


def _read_reports(root: Path, tables: Sequence[FoundTable]) -> tuple[dict[str, dict[str, str]], list[str]]:
    fitting = [table for table in tables if REPORT in table.columns and {*_PATHS} & table.columns]
    if not fitting:
        seen = "; ".join(f"'{table.path}': {', '.join(table.titles)}" for table in tables[:5]) or "none"
        raise TableError(
            f"'{root}' holds no table with the columns path and Report_en "
            f"(meta/curated_ct_report_path_En.csv). Its tables and their columns: {seen}"
        )
    published = [table for table in fitting if _PUBLISHED.fullmatch(PurePosixPath(table.path).name)]
    lists = [table for table in fitting if _LIST.fullmatch(PurePosixPath(table.path).name)]
    chosen = published or lists or fitting[:1]
    remarks = []
    if others := [table.path for table in fitting if table not in chosen and table not in lists]:
        remarks.append(f"reports are read from '{chosen[0].path}', and not from {', '.join(others)}")
    reports: dict[str, dict[str, str]] = {}
    for table in chosen:
        key = next(column for column in _PATHS if column in table.columns)
        read = read_rows(root, [table], "reports", key=key, columns=[REPORT], spell=_spell)
        reports = {**read.cells, **reports}
        remarks += read.remarks
    return reports, remarks


def _read_lists(root: Path, tables: Sequence[FoundTable]) -> dict[str, str]:
    """Patient to split, by lists of patients where there are any."""
    splits: dict[str, set[str]] = defaultdict(set)
    for table in tables:
        match = _LIST.fullmatch(PurePosixPath(table.path).name)
        if match and "patientid" in table.columns:
            read = read_rows(root, [table], "list", key="patientid", columns=(), spell=str)
            for patient in read.cells:
                splits[patient].add(SPLITS[match[1].lower()])
    if torn := [patient for patient, names in splits.items() if len(names) > 1]:
        raise TableError(
            f"{len(torn)} patients stand in several of the lists bimcv_train, bimcv_val and bimcv_test below "
            f"'{root}' ({few(torn)}): a split must be one by patient. Correct the lists, or take them away"
        )
    return {patient: next(iter(names)) for patient, names in splits.items()}


def _study(root: Path, volume: _Volume, report: str, has_row: bool, splits: Mapping[str, str]) -> Study:
    rejection = None if has_row else NOT_IN_ARCHIVE
    if not volume.patient:
        rejection = (
            "patient-unknown",
            "Neither its name nor its folders say whose this volume is: it needs the published name.",
        )
    return Study(
        series=(Series(root / volume.path),),
        record_id=volume.name,
        study_id=volume.examination,
        patient_id=volume.patient or volume.name,
        report=report,
        split=splits.get(volume.patient),
        rejection=rejection,
    )


def _describe(volumes: Sequence[_Volume], splits: Mapping[str, str]) -> str:
    scans = Counter(volume.patient for volume in volumes if volume.patient)
    several = sum(count > 1 for count in scans.values())
    kept = sum(patient in splits for patient in scans)
    how = f"the lists put {kept} of them into a split" if splits else "they are divided by --fractions"
    return (
        f"{len(volumes)} volumes of {len(scans)} patients, {several} of whom have several volumes: splits "
        f"are by patient, never by row; {how}"
    )
