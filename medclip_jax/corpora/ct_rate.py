"""CT-RATE: 50,188 chest CT volumes of 21,304 patients with reports, eighteen labels and metadata.

Reference: Hamamci et al., Developing Generalist Foundation Models from a Multimodal Dataset for 3D Computed
Tomography, arXiv:2403.17834.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from medclip_jax.corpora.archive import FoundTable, check_root, find_tables, list_files, read_rows
from medclip_jax.corpora.cells import read_label
from medclip_jax.corpora.ct_rate_files import Version, VolumeFile, describe, find_volumes, one_file_each
from medclip_jax.corpora.ct_rate_metadata import Metadata, read_metadata
from medclip_jax.corpora.ct_rate_version import decide_version
from medclip_jax.corpora.folder import StudyTable
from medclip_jax.corpora.joining import join
from medclip_jax.corpora.sentences import volume_name
from medclip_jax.corpora.study import Series, Study
from medclip_jax.corpora.tables import TableError, plain_name
from medclip_jax.reports.definitions import plain_spelling
from medclip_jax.reports.vocabulary import CT_RATE_COLUMNS

SECTIONS = {"findings_en": "findings", "impressions_en": "impression"}
"""Column of the reports to the section that it becomes."""

KEY = "volumename"

_TITLES = {plain_spelling(title): finding for title, finding in CT_RATE_COLUMNS.items()}
_PUBLISHED = (
    "train_metadata.csv",
    "validation_metadata.csv",
    "train_reports.csv",
    "validation_reports.csv",
    "train_predicted_labels.csv",
    "valid_predicted_labels.csv",
)
_METADATA = {"xyspacing", "zspacing", "rescaleslope", "rescaleintercept"}
_NO_CHEST = re.compile(r"no_chest\w*\.txt", re.IGNORECASE)

_NOT_CHEST = (
    "no-chest",
    "CT-RATE lists the volume among those that show no chest: it is not trained on.",
)


def ct_rate(root: str | os.PathLike, *, version: Version = "auto") -> StudyTable:
    """Read CT-RATE as it lies on the disk, complete or in part.

    Args:
        root: any folder above the volumes and the tables; what they lie in, and how the tables are called,
            does not matter: volumes go by their names, tables by their columns.
        version: "v1": the files hold raw values without spacing, which stand in the metadata; "v2": they hold
            HU and their own spacing, and the metadata must not be applied; "auto": as
            `ct_rate_version.decide_version` says.

    Returns:
        One study for each volume. Reconstructions of a scan share the study and its report. Volumes of
        ``valid`` are "test", as published evaluations have it; those of ``train`` have no split, so that
        `prepare` takes the patients to validate on from them.

    Raises:
        TableError: there are no volumes, no tables, or a table cannot be understood.
    """
    root = check_root(root, "CT-RATE")
    files = list_files(root)
    volumes, remarks = find_volumes(files)
    volumes, more = one_file_each(volumes, version)
    remarks += more
    if not volumes:
        raise TableError(
            f"'{root}' holds no volume of CT-RATE, named such as train_1_a_1.nii.gz: give --root the folder "
            "that it was downloaded to"
        )
    tables = find_tables(root, files)
    reports, labels, metadata, more = read_tables(root, tables)
    remarks += more
    if not reports and not labels:
        raise TableError(
            f"'{root}' holds no table of CT-RATE's reports (VolumeName, Findings_EN, Impressions_EN) or "
            "labels: put train_reports.csv, validation_reports.csv and the predicted labels anywhere below it"
        )
    if not metadata and version == "v1":
        raise TableError(
            f"files of version v1 need the metadata (VolumeName, RescaleSlope, XYSpacing, ...), and '{root}' "
            "holds no table of it: put train_metadata.csv and validation_metadata.csv anywhere below it"
        )
    joining = join(
        [volume.name for volume in volumes],
        {"reports": reports, "labels": labels, "metadata": metadata},
    )
    no_chest = _read_no_chest(root, files)
    treated = decide_version(root, volumes, metadata, version)
    studies = []
    for volume in volumes:
        series, notes = treated.series(volume, metadata.get(volume.name))
        studies.append(
            _study(
                volume,
                series,
                notes,
                reports.get(volume.name, {}),
                labels.get(volume.name, {}),
                metadata.get(volume.name),
                volume.name in no_chest,
            )
        )
    listed = sum(volume.name in no_chest for volume in volumes)
    if listed:
        remarks.append(
            f"volumes that are listed as showing no chest: {listed}; those of train are rejected, those of "
            "valid are kept with a note, because published evaluations are over all"
        )
    remarks = [describe(volumes), *treated.remarks, *joining.remarks, *remarks]
    return StudyTable(tuple(studies), tuple(remarks), "absent" if labels else None, joining.unmatched)


def read_tables(
    root: Path, tables: Sequence[FoundTable]
) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, int]], dict[str, Metadata], list[str]]:
    """Reports, labels and metadata of the tables that hold them, each by volume, and remarks.

    Args:
        root: that the tables' paths start from.
        tables: of `archive.find_tables`; those with other columns are passed over.

    Raises:
        TableError: a table is damaged, or a cell cannot be understood.
    """
    published = {name: place for place, name in enumerate(_PUBLISHED)}
    own = sorted(
        (table for table in tables if KEY in table.columns),
        key=lambda table: (published.get(PurePosixPath(table.path).name.lower(), len(published)), table.path),
    )
    remarks: list[str] = []

    def rows(found: Sequence[FoundTable], what: str, columns: Collection[str]) -> dict[str, dict[str, str]]:
        read = read_rows(root, found, what, key=KEY, columns=columns, spell=volume_name)
        remarks.extend(read.remarks)
        return read.cells

    reports = rows([one for one in own if SECTIONS.keys() & one.columns], "reports", SECTIONS)
    described = [one for one in own if one.columns >= _METADATA]
    metadata = read_metadata(rows(described, "metadata", Metadata.COLUMNS))
    labelled = [one for one in own if label_columns(one.titles)]
    columns = {column: finding for one in labelled for column, finding in label_columns(one.titles).items()}
    cells = rows(labelled, "labels", columns)
    labels = {name: _labels(name, row, columns) for name, row in cells.items()}
    if labelled and (missing := [t for t, f in CT_RATE_COLUMNS.items() if f not in columns.values()]):
        remarks.append(f"labels: no column {', '.join(missing)}; unknown for all volumes")
    return reports, labels, metadata, remarks


def label_columns(titles: Sequence[str]) -> dict[str, str]:
    """Plain names of label columns among a table's titles to the findings they are of."""
    return {
        plain_name(title): _TITLES[plain] for title in titles if (plain := plain_spelling(title)) in _TITLES
    }


_QUICK = {"0": -1, "1": 1, "0.0": -1, "1.0": 1, "": 0}


def _labels(name: str, row: Mapping[str, str], columns: Mapping[str, str]) -> dict[str, int]:
    """Findings of a row: 1 present, -1 absent (which the archive writes as 0), 0 unknown."""
    found = {}
    for column, finding in columns.items():
        text = row[column]
        if text not in _QUICK:
            error = partial("labels of {}, column {!r}: {}".format, name, column)
            label = read_label(text, lambda what, error=error: TableError(error(what)))
            found[finding] = -1 if label is None else label
        else:
            found[finding] = _QUICK[text]
    return found


def _read_no_chest(root: Path, files: Sequence[str]) -> set[str]:
    listed: set[str] = set()
    for path in files:
        if _NO_CHEST.fullmatch(PurePosixPath(path).name):
            text = (root / path).read_text(encoding="utf-8", errors="replace")
            listed |= {volume_name(line) for line in text.split() if line.strip()}
    return listed


def _study(
    volume: VolumeFile,
    series: Series,
    notes: tuple[str, ...],
    report: Mapping[str, str],
    labels: Mapping[str, int],
    metadata: Metadata | None,
    no_chest: bool,
) -> Study:
    measurements = {} if metadata is None or metadata.age is None else {"age_years": metadata.age}
    return Study(
        series=(series,),
        record_id=volume.name,
        study_id=volume.scan,
        patient_id=volume.patient,
        sections={SECTIONS[column]: text for column, text in report.items() if text},
        labels=labels,
        measurements=measurements,
        split="test" if volume.split == "valid" else None,
        notes=(*notes, "no-chest") if no_chest and volume.split == "valid" else notes,
        rejection=_NOT_CHEST if no_chest and volume.split == "train" else None,
    )
