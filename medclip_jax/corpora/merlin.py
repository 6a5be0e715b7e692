"""Merlin's abdominal CT: 25,494 scans with reports, thirty findings and diseases of the next five years.

References:
    Blankemeier, Kumar et al., Merlin: a computed tomography vision-language foundation model and dataset,
    Nature 2026, arXiv:2406.06512; StanfordMIMI/Merlin, documentation/download.md.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from medclip_jax.corpora.archive import check_root, list_files, volumes_by_name
from medclip_jax.corpora.folder import StudyTable
from medclip_jax.corpora.id_tables import (
    NOT_IN_ARCHIVE,
    SEVERAL_REPORTS,
    IdTable,
    check_spelling,
    few,
    find_all_by_name,
    find_by_name,
    read_by_id,
)
from medclip_jax.corpora.joining import join
from medclip_jax.corpora.study import Series, Study
from medclip_jax.corpora.tables import Row, TableError, plain_name
from medclip_jax.reports.abdomen import MERLIN_FINDINGS

KEY = ("study_id", "studyid", "accession", "anon_accession")
PATIENT = ("patient_id", "patient", "person_id", "mrn")

_LABELS = {"1": 1, "0": -1, "-1": 0, "1.0": 1, "0.0": -1, "-1.0": 0, "": 0}
"""Cell to label: Merlin writes 0 for what the report denies and -1 for what it does not mention."""

_OUTCOMES = {"1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0, "-1": None, "-1.0": None, "": None}
_SPLITS = ("train", "validation", "test")

_MEASURED = {
    "age_years": ("age", "patientage", "age_at_scan"),
    "tube_voltage_kv": ("kvp",),
    "slice_thickness_mm": ("slicethickness", "slice_thickness"),
    "tube_current_ma": ("xraytubecurrent", "tube_current", "ma"),
}
"""Measurement to the columns of metadata.csv that it may stand in."""

_NUMBER = re.compile(r"(\d+(?:\.\d+)?) ?Y?", re.IGNORECASE)
"""Of metadata: "120", "1.25", and DICOM's "045Y"."""

_IMPRESSION = re.compile(r"\bIMPRESSIONS?\s*:", re.IGNORECASE)


def merlin(root: str | os.PathLike) -> StudyTable:
    """Read Merlin's abdominal CT dataset as it lies on the disk.

    Args:
        root: holds, itself or in folders below, `merlin_data/*.nii.gz` and `reports_final.xlsx`; and, where
            they are there, `zero_shot_findings_disease_cls.csv`, `five_years_disease_task.csv` and
            `metadata.csv`. The three tables may be CSV or .xlsx.

    Returns:
        One study for each volume. The published split is kept. Label 0 becomes absent, -1 unknown. Diseases
        of the next five years are measurements ``five_year_NAME`` (1, 0; not there where the table has -1),
        and which part of the test set a scan is in for that task is ``five_year_split`` (0 train, 1
        validation, 2 test).

    Raises:
        TableError: there are no volumes or no reports, ids do not match, or a cell cannot be understood.
    """
    root = check_root(root, "Merlin's dataset")
    files = list_files(root)
    volumes = volumes_by_name(
        root, files, "merlin_data/*.nii.gz", "give --root the folder that Merlin's dataset was downloaded to"
    )
    reports = read_by_id(
        find_by_name(
            root, files, r"reports_final.*\.(xlsx|xlsm|csv|tsv)", "reports_final.xlsx", "the reports"
        ),
        KEY,
        {
            "findings": ("findings", "findings_text", "report"),
            "impression": ("impression", "impressions"),
            "split": ("split",),
            "patient": PATIENT,
        },
        needed=("findings", "split"),
    )
    labels = _optional(
        root, files, r"zero_shot_findings_disease_cls.*", {name: (name,) for name in MERLIN_FINDINGS}
    )
    outcomes = _optional(root, files, r"five_years_disease_task.*", None)
    metadata = _optional(root, files, r"metadata", _MEASURED)
    tables = {"reports": reports, "findings": labels, "five years": outcomes, "metadata": metadata}
    found = {name: table for name, table in tables.items() if table is not None}
    check_spelling(volumes, f"the volumes in '{root}'", reports.rows, f"'{reports.path}'")
    for table in found.values():
        check_spelling(table.rows, f"'{table.path}'", reports.rows, f"'{reports.path}'")
    joining = join(list(volumes), {name: table.rows for name, table in found.items()})
    remarks = [remark for table in found.values() for remark in table.remarks]
    if reports.repeated:
        remarks.append(
            f"reports: {len(reports.repeated)} ids have several that differ "
            f"({few(list(reports.repeated))}); the "
            f"longest counts, which is the final one, and the study is noted as '{SEVERAL_REPORTS}'"
        )
    measured = _Measurements(outcomes, metadata, remarks)
    known = _known_labels(labels, remarks)
    studies = []
    for name, path in volumes.items():
        sections = _sections(reports.longest(name, "findings"), reports.longest(name, "impression"))
        studies.append(
            Study(
                series=(Series(root / path),),
                record_id=name,
                study_id=name,
                patient_id=reports.cell(reports.rows.get(name), "patient") or name,
                sections=sections,
                labels=known.get(name, {}),
                measurements=measured.of(name),
                split=reports.split_of(name),
                notes=(SEVERAL_REPORTS,) if name in reports.repeated else (),
                rejection=None if name in reports.rows else NOT_IN_ARCHIVE,
            )
        )
    remarks += [
        f"metadata: {count} cells of {name} hold no number" for name, count in measured.unread.items()
    ]
    if "patient" not in reports.places:
        remarks.append(
            "the archive has no patient ids: its split, which is one by patient, is kept, and every scan "
            "counts as a patient of its own"
        )
    if not any(study.split for study in studies):
        raise TableError(
            f"none of the {len(studies)} volumes in '{root}' has a row in '{reports.path}': are both of one "
            "archive? Volumes are named by the study id, such as AC4214d72.nii.gz"
        )
    return StudyTable(tuple(studies), (*joining.remarks, *remarks), "absent", joining.unmatched)


def _optional(
    root: Path, files: Sequence[str], stem: str, columns: Mapping[str, Sequence[str]] | None
) -> IdTable | None:
    """A table that need not be there; without `columns`, every column of it by its plain name."""
    found = find_all_by_name(files, rf"{stem}\.(csv|tsv|xlsx)")
    if not found:
        return None
    path = root / found[0]
    if columns is None:
        titles = [plain_name(title) for title in read_by_id(path, KEY, {}).others]
        columns = {title: (title,) for title in titles if title not in ("split", "merlin_split")}
        columns["split"] = ("merlin_split",)
    return read_by_id(path, KEY, columns)


def _sections(findings: str, impression: str) -> dict[str, str]:
    """Sections of a report whose findings may hold the impression, too."""
    if not impression and (cut := _IMPRESSION.search(findings)):
        findings, impression = findings[: cut.start()], findings[cut.end() :]
    given = {"findings": findings.strip(), "impression": impression.strip()}
    return {name: text for name, text in given.items() if text}


def _known_labels(table: IdTable | None, remarks: list[str]) -> dict[str, dict[str, int]]:
    """Id to its labels: 1 present, -1 absent, 0 unknown, which is also what contradicting rows give."""
    if table is None:
        remarks.append("there is no zero_shot_findings_disease_cls.csv: no study has labels")
        return {}
    if missing := [name for name in MERLIN_FINDINGS if name not in table.places]:
        remarks.append(f"'{table.path.name}' has no column {', '.join(missing)}; unknown for all studies")
    if len(missing) == len(MERLIN_FINDINGS):
        has = ", ".join(map(repr, table.others)) or "none beside the id"
        raise TableError(
            f"'{table.path}' has none of the thirty columns of findings, such as 'ascites'. Its columns are "
            f"{has}: is it the right file?"
        )
    if table.others:
        remarks.append(f"'{table.path.name}': columns that are not read: {', '.join(table.others)}")
    known = {}
    for name, first in table.rows.items():
        several = table.repeated.get(name, (first,))
        known[name] = _labels(table, several[0])
        for row in several[1:]:
            again = _labels(table, row)
            known[name] = {n: label if again[n] == label else 0 for n, label in known[name].items()}
    return known


def _labels(table: IdTable, row: Row) -> dict[str, int]:
    labels = {}
    for name, place in table.places.items():
        text = row.cells[place].strip()
        if text not in _LABELS:
            text = table.cell(row, name)
            if text not in _LABELS:
                raise table.fail(row, name)("must be 1 (stated), 0 (denied) or -1 (not mentioned)")
        labels[name] = _LABELS[text]
    return labels


class _Measurements:
    """Numbers of the tables of outcomes and of scans, by study id."""

    def __init__(self, outcomes: IdTable | None, metadata: IdTable | None, remarks: list[str]):
        self._outcomes, self._metadata = outcomes, metadata
        self._names = {} if outcomes is None else _outcome_columns(outcomes, remarks)
        if outcomes is not None and outcomes.repeated:
            remarks.append(
                f"'{outcomes.path.name}': {len(outcomes.repeated)} ids have rows that differ "
                f"({few(list(outcomes.repeated))}); their diseases count as unknown"
            )
        self.unread: Counter[str] = Counter()
        """Cells of each measurement of scans that hold no number."""

    def of(self, name: str) -> dict[str, float]:
        """Measurement to number; what is unknown is not there."""
        found: dict[str, float] = {}
        table = self._outcomes
        if table is not None and name in table.rows and name not in table.repeated:
            row = table.rows[name]
            for column, measurement in self._names.items():
                value = _OUTCOMES[table.cell(row, column)]
                if value is not None:
                    found[measurement] = value
            if split := table.split(row):
                found["five_year_split"] = float(_SPLITS.index(split))
        table = self._metadata
        if table is not None and name in table.rows:
            for measurement in table.places:
                text = table.cell(table.rows[name], measurement)
                if match := _NUMBER.fullmatch(text):
                    number = float(match[1])
                    # Beyond 89 an age can tell who somebody is.
                    found[measurement] = min(number, 90.0) if measurement == "age_years" else number
                elif text:
                    self.unread[measurement] += 1
        return found


def _outcome_columns(table: IdTable, remarks: list[str]) -> dict[str, str]:
    """Columns that hold 1, 0 and -1 alone, to the measurement that each becomes."""
    names, others = {}, []
    for column in table.places:
        if column == "split":
            continue
        texts = {table.cell(row, column) for row in table.rows.values()}
        if texts <= _OUTCOMES.keys() and texts & {"1", "0", "1.0", "0.0"}:
            names[column] = f"five_year_{re.sub(r'[^a-z0-9_]+', '_', column)}"[:60]
        else:
            others.append(column)
    if not names:
        has = ", ".join(repr(title) for title in table.header)
        raise TableError(
            f"'{table.path}' has no column of a disease that holds 1, 0 and -1 alone. Its columns are {has}: "
            "is it the right file?"
        )
    if others:
        remarks.append(f"'{table.path.name}': columns that are not read: {', '.join(others)}")
    return names
