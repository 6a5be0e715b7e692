"""RAD-ChestCT: 3,630 chest CT volumes (of 35,747) with labels of 84 abnormalities at 52 places, no reports.

Reference: Draelos et al., Machine-Learning-Based Multiple Abnormality Prediction with Large-Scale Chest
Computed Tomography Volumes, Medical Image Analysis 2021; https://zenodo.org/records/6406114.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path, PurePosixPath

from medclip_jax.corpora.archive import FoundTable, check_root, find_tables, list_files, read_rows
from medclip_jax.corpora.cells import looks_like_scan
from medclip_jax.corpora.folder import StudyTable
from medclip_jax.corpora.joining import join
from medclip_jax.corpora.sentences import volume_name
from medclip_jax.corpora.study import Series, Study
from medclip_jax.corpora.tables import TableError, open_table, plain_name
from medclip_jax.reports.rad_chest_ct import RAD_CHEST_ABNORMALITIES

SPACING_MM = (0.8, 0.8, 0.8)
"""Every volume was resampled to it by the archive."""

AXES = "IPL"
"""Slices run to the feet, rows to the back, columns to the left: so the archive's preprocessing stacks them,
and so its table of lung boxes names their ends."""

ABNORMALITIES: dict[str, tuple[str, ...]] = {
    "medical_material": (
        "breast_implant",
        "catheter_or_port",
        "chest_tube",
        "clip",
        "gi_tube",
        "hardware",
        "pacemaker_or_defib",
        "staple",
        "stent",
        "suture",
        "tracheal_tube",
    ),
    "arterial_wall_calcification": ("calcification",),
    "cardiomegaly": ("cardiomegaly",),
    "pericardial_effusion": ("pericardial_effusion",),
    "hiatal_hernia": ("hernia",),
    "lymphadenopathy": ("lymphadenopathy",),
    "emphysema": ("emphysema",),
    "atelectasis": ("atelectasis",),
    "lung_nodule": ("nodule", "nodulegr1cm"),
    "lung_opacity": ("opacity",),
    "pulmonary_fibrotic_sequela": ("scarring",),
    "pleural_effusion": ("pleural_effusion",),
    "peribronchial_thickening": ("bronchial_wall_thickening",),
    "consolidation": ("consolidation",),
    "bronchiectasis": ("bronchiectasis",),
    "interlobular_septal_thickening": ("septal_thickening",),
}
"""The sixteen findings of CT-RATE that published evaluations read off the archive's abnormalities, present
where one of these is at any place. Calcification stands for that of arteries; of coronary calcification and
mosaic attenuation the archive says nothing.

The abnormalities are kept beside them, each under its own name, for evaluations that put them together
otherwise.
"""

_KEY, _PATIENT = "noteacc_deid", "mrn_deid"
_SPLITS = {"trn": "train", "val": "validation", "tst": "test"}
_SPLIT_TABLES = {"imgtrain": "train", "imgvalid": "validation", "imgtest": "test"}
_PRESENT, _ABSENT = frozenset(("1", "1.0")), frozenset(("0", "0.0"))


def rad_chest_ct(root: str | os.PathLike) -> StudyTable:
    """Read the archive as it was downloaded.

    Args:
        root: any folder above the volumes (``trn00001.npz``, ...) and the tables.

    Returns:
        One study for each volume, in the archive's split. Patients are those of a table with the columns
        NoteAcc_DEID and MRN_DEID, where there is one.

    Raises:
        TableError: there are no volumes or no labels, or a table cannot be understood.
    """
    root = check_root(root, "RAD-ChestCT")
    files = list_files(root)
    volumes: dict[str, str] = {}
    twice = 0
    for path in files:
        name = volume_name(PurePosixPath(path).name)
        if path.lower().endswith(".npz") and re.fullmatch(r"(trn|val|tst)\w*\d", name):
            twice += name in volumes
            volumes.setdefault(name, path)
    if not volumes:
        raise TableError(
            f"'{root}' holds no volume of RAD-ChestCT, named such as trn00001.npz: give --root the folder "
            "that it was downloaded to"
        )
    tables = [table for table in find_tables(root, files) if _KEY in table.columns]
    labelled = [table for table in tables if any("*" in title for title in table.titles)]
    if not labelled:
        raise TableError(
            f"'{root}' holds no table of labels (NoteAcc_DEID, nodule*left_upper, ...): put "
            "imgtrain_Abnormality_and_Location_Labels.csv and those of imgvalid and imgtest anywhere below it"
        )
    labels, splits, remarks = _read_labels(root, labelled)
    described = [table for table in tables if _PATIENT in table.columns]
    patients = read_rows(root, described, "patients", key=_KEY, columns=(_PATIENT,), spell=volume_name).cells
    joined: dict[str, Mapping[str, object]] = {"labels": labels}
    if described:
        joined["patients"] = patients
    joining = join(list(volumes), joined)
    studies = tuple(
        _study(root / path, name, labels.get(name, {}), splits.get(name), patients.get(name, {}))
        for name, path in volumes.items()
    )
    told = ", ".join(f"{count} {split}" for split, count in Counter(s.split for s in studies).items())
    remarks = [
        f"RAD-ChestCT: {len(studies)} volumes ({told}), without reports; 0.8 mm, slices from the head down, "
        "as the archive describes them. Its HU are cut off at -1000 and 1000",
        *joining.remarks,
        *remarks,
    ]
    if not described:
        remarks.append(
            "no table has the columns NoteAcc_DEID and MRN_DEID (CT_Scan_Metadata_Complete_35747.csv): every "
            "volume counts as a patient of its own"
        )
    if twice:
        remarks.append(f"{twice} volumes lie there more than once; the first file of each is read")
    return StudyTable(studies, tuple(remarks), "absent", joining.unmatched)


def _study(
    path: Path, name: str, labels: Mapping[str, int], split: str | None, row: Mapping[str, str]
) -> Study:
    return Study(
        series=(Series(path, spacing=SPACING_MM, axes=AXES),),
        record_id=name,
        study_id=name,
        patient_id=row.get(_PATIENT) or name,
        labels=labels,
        split=split or _SPLITS[name[:3]],
    )


def _read_labels(
    root: Path, tables: Sequence[FoundTable]
) -> tuple[dict[str, dict[str, int]], dict[str, str], list[str]]:
    """Findings by volume, the split that a table's name gives to its volumes, and remarks."""
    labels: dict[str, dict[str, int]] = {}
    splits: dict[str, str] = {}
    remarks = []
    for found in tables:
        file = PurePosixPath(found.path).name.lower()
        split = next((name for start, name in _SPLIT_TABLES.items() if file.startswith(start)), None)
        rows, missing = _read_table(root / found.path)
        if missing:
            remarks.append(f"'{found.path}' has no column of {', '.join(missing)}: unknown for its volumes")
        if again := sum(name in labels for name in rows):
            remarks.append(f"{again} rows of '{found.path}' stand in another table of labels, which counts")
        for name, row in rows.items():
            if name in labels:
                continue
            labels[name] = row
            if split:
                splits[name] = split
    return labels, splits, remarks


def _read_table(path: Path) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Findings by volume, and those that the table has no column of."""
    table = open_table(path, known=(_KEY,), option=None)
    names = [plain_name(title) for title in table.header]
    key = names.index(_KEY)
    places = {
        finding: [place for place, name in enumerate(names) if name.partition("*")[0] in wanted]
        for finding, wanted in (ABNORMALITIES | {one: (one,) for one in RAD_CHEST_ABNORMALITIES}).items()
    }
    # A getter of one place gives a cell and not a tuple of cells, so the key is always with them.
    cells_of = {finding: itemgetter(key, *own) for finding, own in places.items() if own}
    found: dict[str, dict[str, int]] = {}
    for row in table.rows(lambda inside, outer: looks_like_scan(inside[key], outer[key])):
        name = volume_name(row.cells[key])
        if not name:
            raise TableError(f"row {row.number} of '{path}' has no NoteAcc_DEID: fill it in, or leave it out")
        labels = {}
        for finding, cells in cells_of.items():
            said = set(cells(row.cells)[1:])
            if said - _PRESENT - _ABSENT - {""}:
                raise TableError(f"row {row.number} of '{path}': a label of {finding} is neither 0 nor 1")
            labels[finding] = 1 if said & _PRESENT else -1 if said & _ABSENT else 0
        found.setdefault(name, labels)
    return found, [finding for finding, own in places.items() if not own]
