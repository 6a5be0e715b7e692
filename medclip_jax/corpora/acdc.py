"""ACDC, the Automated Cardiac Diagnosis Challenge: 150 short axis cines in five groups, without reports.

Reference: Bernard et al., Deep Learning Techniques for Automatic MRI Cardiac Multi-structures Segmentation
and Diagnosis: Is the Problem Solved? IEEE TMI 2018.
"""

from __future__ import annotations

import os
from pathlib import Path

from medclip_jax.corpora.cells import SPLITS
from medclip_jax.corpora.folder import StudyTable, TableError
from medclip_jax.corpora.study import Series, Study

GROUPS = ("NOR", "MINF", "DCM", "HCM", "RV")
"""Normal; infarction and weak; dilated, hypertrophic cardiomyopathy; abnormal right ventricle."""

_DIAGNOSES = ("hypertrophic_cardiomyopathy", "ischemic_cardiomyopathy", "nonischemic_cardiomyopathy")

_LEFT = ("left_ventricular_dysfunction", "left_ventricular_dilation", "left_ventricular_hypertrophy")
_RIGHT = ("right_ventricular_dysfunction", "right_ventricular_dilation")

_PRESENT = {
    "NOR": (),
    "MINF": ("ischemic_cardiomyopathy", "left_ventricular_dysfunction", "regional_wall_motion_abnormality"),
    "DCM": ("nonischemic_cardiomyopathy", "left_ventricular_dysfunction", "left_ventricular_dilation"),
    "HCM": ("hypertrophic_cardiomyopathy", "left_ventricular_hypertrophy"),
    "RV": (),
}
"""What the definition of a group states of all its patients."""

_ABSENT = {
    "NOR": (*_LEFT, *_RIGHT, "regional_wall_motion_abnormality"),
    "HCM": ("left_ventricular_dysfunction",),
}
"""What it excludes, beside the diagnoses of the other groups. Of the right ventricle's group the definition
leaves open whether it is large or weak."""

_NUMBERS = {
    "ED": "end_diastolic_phase",
    "ES": "end_systolic_phase",
    "Height": "height_cm",
    "Weight": "weight_kg",
}


def acdc(root: str | os.PathLike) -> StudyTable:
    """Read the folders of ACDC.

    Args:
        root: holds `training` and `testing` (or one of them, or is one of them, or holds `database`), with
            `patient001/Info.cfg` and `patient001/patient001_4d.nii.gz`.

    Returns:
        One study a patient: series `cine_sa`, no report. `Group` becomes labels and the measurement
        `acdc_group` (its place in `GROUPS`), ED and ES (phases, from 1), height and weight measurements.

    Raises:
        TableError: there is no such folder, or an Info.cfg cannot be read.
    """
    root = Path(root)
    if not root.is_dir():
        raise TableError(
            f"no folder '{root}': --root must be the folder that holds ACDC's training and testing"
        )
    studies = []
    for info in sorted(root.glob("**/patient*/Info.cfg")):
        folder = info.parent
        split = next(
            (SPLITS[part.lower()] for part in (*folder.relative_to(root).parts[::-1], root.name)
             if part.lower() in SPLITS),
            None,
        )  # fmt: skip
        studies.append(_study(folder, info, split))
    if not studies:
        raise TableError(
            f"'{root}' holds no patient001/Info.cfg, neither itself nor in training and testing: give --root "
            "the folder that ACDC was unpacked to"
        )
    return StudyTable(tuple(studies), (f"{len(studies)} patients of ACDC, which has no reports",))


def _study(folder: Path, info: Path, split: str | None) -> Study:
    said = {}
    for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        said[name.strip()] = value.strip()
    group = said.get("Group", "").upper()
    if group not in GROUPS:
        raise TableError(
            f"'{info}' names no group of {', '.join(GROUPS)}: copy the file again from ACDC's archive"
        )
    measurements = {"acdc_group": float(GROUPS.index(group))}
    for name, measurement in _NUMBERS.items():
        if not said.get(name):
            continue
        try:
            measurements[measurement] = float(said[name])
        except ValueError:
            raise TableError(f"'{info}': {name} must be a number") from None
    return Study(
        series=(Series(folder / f"{folder.name}_4d.nii.gz", "cine_sa", "MR"),),
        record_id=folder.name,
        study_id=folder.name,
        patient_id=folder.name,
        labels=labels_of(group),
        measurements=measurements,
        split=split,
    )


def labels_of(group: str) -> dict[str, int]:
    """What a group says of the findings: 1 present, -1 absent; what it leaves open is not there.

    Args:
        group: one of `GROUPS`.
    """
    labels = dict.fromkeys((*_DIAGNOSES, *_ABSENT.get(group, ())), -1)
    return labels | dict.fromkeys(_PRESENT[group], 1)
