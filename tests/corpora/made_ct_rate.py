"""A small CT-RATE in the layout of the archive: volumes, reports, labels, metadata."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from medclip_jax.reports.vocabulary import CT_RATE_COLUMNS
from tests.volumes.made_scans import chest, write_nifti

SPACING = (3.0, 2.0, 1.5)
"""mm along depth, height, width of the volumes."""

STORED = 8192
"""What the first version's values lie above HU."""

_IDENTITY = np.eye(4)[[2, 1, 0, 3]]
"""The identity, for `write_nifti`, which takes affines of (d, h, w)."""


def folder_of(root: Path, name: str, *, fixed: bool = False, joined: bool = False) -> Path:
    """Where a volume lies; `joined` gives ``train_1a`` for ``train_1_a``."""
    split, patient, scan, _ = name.split("_")
    top = f"{split}_fixed" if fixed else split
    study = f"{split}_{patient}{scan}" if joined else f"{split}_{patient}_{scan}"
    folder = root / top / f"{split}_{patient}" / study
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_v1(root: Path, name: str, seed: int = 0) -> Path:
    """Raw values in DICOM's axes, with an affine that says nothing."""
    stored = (chest(seed=seed) + STORED)[:, ::-1, ::-1]
    return write_nifti(folder_of(root, name) / f"{name}.nii.gz", stored, _IDENTITY)


def write_v2(root: Path, name: str, seed: int = 0, *, joined: bool = False) -> Path:
    """HU with a true header."""
    folder = folder_of(root, name, fixed=True, joined=joined)
    return write_nifti(folder / f"{name}.nii.gz", chest(seed=seed))


def metadata_row(name: str, **cells: object) -> dict[str, object]:
    """What the archive writes of a volume, as far as it is read, and a column that is not."""
    return {
        "VolumeName": f"{name}.nii.gz",
        "Manufacturer": "SIEMENS",
        "PatientAge": "041Y",
        "XYSpacing": "[1.5, 2.0]",
        "RescaleIntercept": -STORED,
        "RescaleSlope": 1,
        "NumberofSlices": 16,
        "ZSpacing": 3.0,
        "ImageOrientationPatient": "[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]",
    } | cells


def report_row(name: str, findings: str, impression: str = "Not given.") -> dict[str, str]:
    """One row of the reports."""
    return {
        "VolumeName": f"{name}.nii.gz",
        "ClinicalInformation_EN": "Cough.",
        "Technique_EN": "Not given.",
        "Findings_EN": findings,
        "Impressions_EN": impression,
    }


def label_row(name: str, *present: str) -> dict[str, object]:
    """One row of the labels: 1 for the titles named, 0 for all others."""
    return {"VolumeName": f"{name}.nii.gz"} | {title: int(title in present) for title in CT_RATE_COLUMNS}


def write_csv(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    """Write rows of equal columns."""
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_tables(root: Path, names: Iterable[str], *, metadata: bool = True) -> None:
    """Reports, labels and metadata of volumes, in the archive's folders and under its names."""
    for split, long in {"train": "train", "valid": "validation"}.items():
        own = [name for name in names if name.startswith(split)]
        if not own:
            continue
        reports = [
            report_row(name, f"The heart is {'enlarged' if 'b' in name else 'normal'}, case {name[:-2]}.")
            for name in own
        ]
        write_csv(root / "radiology_text_reports" / f"{long}_reports.csv", reports)
        labels = [label_row(name, *["Cardiomegaly"] * ("b" in name)) for name in own]
        write_csv(root / "multi_abnormality_labels" / f"{split}_predicted_labels.csv", labels)
        if metadata:
            write_csv(root / "metadata" / f"{long}_metadata.csv", map(metadata_row, own))
