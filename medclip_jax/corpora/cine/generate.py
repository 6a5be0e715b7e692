"""One study from two numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int16

from medclip_jax.corpora.cine import planes, reports, scanner
from medclip_jax.corpora.cine.background import draw_background
from medclip_jax.corpora.cine.drawing import draw
from medclip_jax.corpora.cine.patient import LIMITS, Patient, draw_patient
from medclip_jax.corpora.cine.settings import DIAGNOSES, CineSettings

LGE_PHASE = 0.78
"""Late enhancement is taken in diastole, at this share of the cycle."""


@dataclass(frozen=True)
class Picture:
    """One series as it is stored.

    Attributes:
        voxels: (column, row counted upwards, slice, phase) or without phases.
        affine: from index to RAS mm.
        seconds: between phases; 0 without.
    """

    voxels: Int16[np.ndarray, "I J K *phases"]
    affine: Float[np.ndarray, "4 4"]
    seconds: float


@dataclass(frozen=True)
class CineStudy:
    """A synthetic cardiac MR study with everything that is known about it.

    Attributes:
        series: name to picture, in the order of the settings.
        labels: finding or diagnosis to 1 present, -1 absent.
        measurements: name to number.
        impression: what the radiologist writes.
        patient: the numbers behind it.
        study_id, patient_id: names.
    """

    series: Mapping[str, Picture]
    labels: Mapping[str, int]
    measurements: Mapping[str, float]
    impression: str
    patient: Patient
    study_id: str
    patient_id: str


def measure(patient: Patient) -> dict[str, float]:
    """The truths of a heart: of its continuous motion, not of the frames that sample it."""
    heart = patient.heart
    left_full, left_empty = heart.left_volume(0.0), heart.left_volume(1.0)
    right_full, right_empty = heart.right_volume_at(0.0), heart.right_volume_at(1.0)
    return {
        "lv_ejection_fraction": 100 * (1 - left_empty / left_full),
        "rv_ejection_fraction": 100 * (1 - right_empty / right_full),
        "lv_end_diastolic_diameter_mm": heart.diameter(0.0),
        "wall_thickness_mm": heart.thickness(0.0),
        "aortic_root_mm": patient.root_mm,
        "scar_percent": patient.scar.percent(heart) if patient.scar is not None else 0.0,
        "lv_end_diastolic_volume_ml": left_full,
        "rv_end_diastolic_volume_ml": right_full,
        "pericardial_effusion_mm": patient.effusion_mm,
    }


def label(patient: Patient, measured: Mapping[str, float]) -> dict[str, int]:
    """Findings by `LIMITS` of what was measured, and the diagnosis."""
    over = {name: measured[name] > limit for name, limit in LIMITS.items()}
    found = {
        "left_ventricular_dysfunction": not over["lv_ejection_fraction"],
        "right_ventricular_dysfunction": not over["rv_ejection_fraction"],
        "left_ventricular_dilation": over["lv_end_diastolic_diameter_mm"],
        "right_ventricular_dilation": over["rv_end_diastolic_volume_ml"],
        "left_ventricular_hypertrophy": over["wall_thickness_mm"],
        "late_gadolinium_enhancement": over["scar_percent"],
        "regional_wall_motion_abnormality": patient.heart.still is not None,
        "aortic_dilation": over["aortic_root_mm"],
        "pericardial_effusion": over["pericardial_effusion_mm"],
        **{name: patient.diagnosis == name for name in DIAGNOSES},
    }
    return {name: 1 if present else -1 for name, present in found.items()}


def generate(seed: int, index: int, *, settings: CineSettings | None = None) -> CineStudy:
    """Make study `index` of the set `seed`: a pure function of its arguments. Every study has its patient.

    Args:
        seed: of the full set.
        index: which study.
        settings: how phantoms are drawn and scanned; `CineSettings()` if None.
    """
    settings = settings or CineSettings()
    patient = draw_patient(np.random.default_rng([seed, index, 1]), settings)
    measured = measure(patient)
    labels = label(patient, measured)
    patient_id = f"p{index:06d}"
    return CineStudy(
        series=_scan(patient, settings, np.random.default_rng([seed, index, 2])),
        labels=labels,
        measurements=measured,
        impression=reports.write_impression(
            patient, labels, measured, np.random.default_rng([seed, index, 3])
        ),
        patient=patient,
        study_id=f"{patient_id}_1",
        patient_id=patient_id,
    )


def _scan(patient: Patient, settings: CineSettings, rng: np.random.Generator) -> dict[str, Picture]:
    heart = patient.heart
    setup = planes.Setup(
        pixel=float(rng.uniform(*settings.field_mm)) / settings.size,
        size=settings.size,
        turn=float(rng.normal(0, 0.12)),
        middle=tuple(rng.uniform(-8, 8, 2).tolist()),
    )
    pose, apex = planes.draw_pose(rng), rng.uniform(-1, 1, 3) * 15 + (-60.0, 40.0, -20.0)
    noise = float(rng.uniform(*settings.noise))
    late = scanner.AMYLOID if patient.diagnosis == "cardiac_amyloidosis" else scanner.LATE
    pictures = {}
    for name in settings.series:
        own = np.random.default_rng(rng.integers(2**63))
        cine = name.startswith("cine")
        signal = scanner.draw_signal(scanner.CINE if cine else late, own)
        frames = heart.beat.frames(settings.phases) if cine else heart.beat.contraction(np.array([LGE_PHASE]))
        slices = settings.slices if cine else settings.lge_slices
        stack, step = planes.series_planes(name.split("_")[1], heart.length, slices, setup, own)
        scale = float(np.exp(own.uniform(np.log(150), np.log(1500))))
        background = draw_background(stack[0], patient, signal)
        images = []
        for plane in stack:
            moved = _breathe(plane, own) if len(stack) > 1 else plane
            images.append(draw(background, moved, patient, frames, signal, enhanced=not cine))
        voxels = scanner.scan(np.stack(images), scale, noise * signal["blood"] * (1 if cine else 1.5), own)
        # (slice, phase, row, column) to (column, row counted upwards, slice, phase).
        voxels = voxels[:, :, ::-1].transpose(3, 2, 0, 1)
        seconds = heart.beat.seconds / settings.phases if cine else 0.0
        pictures[name] = Picture(
            voxels if cine else voxels[..., 0], planes.affine(stack, step, apex, pose), seconds
        )
    return pictures


def _breathe(plane: planes.Plane, rng: np.random.Generator) -> planes.Plane:
    """The plane where the heart is in this breath-hold: a little beside where the header says."""
    x, y, z = plane.center
    return replace(plane, center=(x + rng.normal(0, 1.2), y + rng.normal(0, 1.2), z))
