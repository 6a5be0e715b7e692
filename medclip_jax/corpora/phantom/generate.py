"""One phantom from two numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int16, UInt8

from medclip_jax.corpora.phantom import heart as hearts
from medclip_jax.corpora.phantom import lesions, lungs, reports, scanner, wall
from medclip_jax.corpora.phantom.calcium import cac_grade
from medclip_jax.corpora.phantom.canvas import Canvas
from medclip_jax.corpora.phantom.organs import LABELS, LARGE_ORGANS, ORGAN_CLASSES
from medclip_jax.corpora.phantom.outcome import draw_survival, groups_of, log_hazard
from medclip_jax.corpora.phantom.patient import Patient, draw_condition, draw_patient
from medclip_jax.corpora.phantom.phrases import VESSELS
from medclip_jax.corpora.phantom.settings import FINDINGS, PhantomSettings

BLOCK = 16
"""Reconstructions are dealt to patients in blocks of this size; see `roster`."""


@dataclass(frozen=True)
class Phantom:
    """A synthetic chest CT with everything that is known about it.

    Attributes:
        voxels: HU in storage order (i, j, k), oriented as `affine` says.
        organs: values of `ORGAN_CLASSES` on the same grid.
        lesions: values of `LESION_CLASSES` on the same grid.
        affine: (4, 4) from index (i, j, k, 1) to RAS+ world mm, as nibabel takes it.
        labels: finding to 1 present, -1 absent, 0 not assessable.
        severities: finding to a severity in (0, 1]; 0 where absent.
        measurements: name to number: agatston_score, cac_grade, cardiothoracic_ratio, ..., survival_months
            and event (see `outcome`).
        groups: scanner, sex, age and contrast to the group that the volume belongs to.
        report: the text with both sections.
        sections: "findings" and "impression".
        volume_id, study_id, patient_id: two reconstructions of a study share a report.
        orientation: e.g. "LPS": where i, j, k grow to.
    """

    voxels: Int16[np.ndarray, "I J K"]
    organs: UInt8[np.ndarray, "I J K"]
    lesions: UInt8[np.ndarray, "I J K"]
    affine: Float[np.ndarray, "4 4"]
    labels: Mapping[str, int]
    severities: Mapping[str, float]
    measurements: Mapping[str, float]
    groups: Mapping[str, str]
    report: str
    sections: Mapping[str, str]
    volume_id: str
    study_id: str
    patient_id: str
    orientation: str = "RAS"
    notes: Mapping[str, object] = field(default_factory=dict)

    def label_map(self) -> UInt8[np.ndarray, "I J K"]:
        """Values of `LABEL_CLASSES`: lesions lie over the organs."""
        found = self.lesions.copy()
        for name, values in LARGE_ORGANS.items():
            found[np.isin(self.organs, values) & (self.lesions == 0)] = LABELS[name]
        return found


def roster(index: int) -> tuple[int, int, int]:
    """(patient, study, reconstruction) of volume `index`.

    Of every 16 volumes, the fourth is a second reconstruction of the third's study, and the last a later
    study of the patient of the 15th.
    """
    block, place = divmod(index, BLOCK)
    reconstruction = int(place == 3)
    study = int(place == 15)
    return block * 14 + place - (place >= 3) - (place >= 15), study, reconstruction


def _canvas(
    patient: Patient, settings: PhantomSettings, study: np.random.Generator, scan: np.random.Generator
) -> Canvas:
    """A grid around the thorax: its place is the study's, its voxel size the reconstruction's."""
    margin = study.uniform(*settings.wall_margin_mm)
    wide = 2 * (patient.half_width + margin)
    deep = 2 * (patient.half_depth + 6) + 1.2 * margin + 16
    top = patient.apex + study.uniform(2, 20)
    bottom = patient.dome_right - patient.dome_drop * 0.9 - study.uniform(0, 15)
    center = (0.5 * (top + bottom), patient.center_y - 8 + study.uniform(-5, 5), study.uniform(-6, 6))
    turn = float(study.uniform(-6, 6))
    pixel = float(scan.uniform(*settings.in_plane_mm))
    distance = float(scan.choice(settings.slice_mm))
    shape = (round((top - bottom) / distance), round(deep / pixel), round(wide / pixel))
    return Canvas(shape, (distance, pixel, pixel), center, turn)


def _lobe_name(value: int) -> str:
    """Label value of a lobe as a report writes it, e.g. "right upper lobe"."""
    _, which, _, side = ORGAN_CLASSES[value].split("_")
    return f"{side} {which} lobe"


def _labels(condition: Condition, ratio: float, score: float) -> tuple[dict[str, float], dict[str, int]]:
    """Severities and labels; the heart's size and the calcium are judged by what was measured."""
    severities = {name: condition.severities.get(name, 0.0) for name in FINDINGS}
    severities["cardiomegaly"] = float(np.clip((ratio - 0.5) / 0.16, 0, 1))
    severities["coronary_calcification"] = cac_grade(score) / 4
    labels = {name: 1 if severities[name] > 0 else -1 for name in FINDINGS}
    if not condition.contrast:
        labels["coronary_stenosis"] = 0
    return severities, labels


def generate(seed: int, index: int, *, settings: PhantomSettings | None = None) -> Phantom:
    """Make phantom `index` of the set `seed`: a pure function of its arguments.

    Args:
        seed: of the full set.
        index: which volume.
        settings: how phantoms are drawn and scanned; `PhantomSettings()` if None.
    """
    settings = settings or PhantomSettings()
    number, study, reconstruction = roster(index)
    patient = draw_patient(np.random.default_rng([seed, number, 1]))
    condition = draw_condition(np.random.default_rng([seed, number, 2, study]), settings)
    scan = np.random.default_rng([seed, number, 3, study, reconstruction])

    def source(purpose: int) -> np.random.Generator:
        return np.random.default_rng([seed, number, 4, study, purpose])

    canvas = _canvas(patient, settings, source(20), scan)
    cavity = wall.paint_wall(canvas, patient, condition, source(0))
    chest = lungs.shape_lungs(canvas, patient, cavity, source(19))
    lungs.paint_lungs(canvas, patient, condition, chest, source(1))
    heart = hearts.build_heart(patient, condition, source(7))
    ratio = hearts.cardiothoracic_ratio(heart, patient)
    emphysema = lesions.paint_emphysema(canvas, condition, chest, patient, source(2))
    effusions = lesions.paint_pleural_effusion(canvas, patient, condition, chest, source(6))
    consolidated = lesions.paint_consolidation(canvas, condition, chest, heart, source(3))
    nodules = lesions.paint_nodules(canvas, condition, settings, chest, heart, source(5))
    lungs.paint_vessels(canvas, condition, chest, source(4))
    hearts.paint_heart(canvas, patient, condition, chest, heart, source(8))
    widths = hearts.paint_great_vessels(canvas, patient, condition, heart, source(9))
    lungs.paint_airways(canvas, chest, source(10))
    narrowing, worst = lesions.draw_narrowing(condition, heart, source(11))
    hearts.paint_coronaries(canvas, patient, condition, heart, narrowing)
    lesions.paint_soft_aorta(canvas, condition, heart, source(12))
    plaques, score = lesions.coronary_plaques(condition, heart, source(13))
    plaques = plaques + lesions.aortic_plaques(condition, heart, source(14))
    other, distractors = lesions.distractor_plaques(heart, patient, settings.confounders, source(15))
    lesions.paint_plaques(canvas, plaques + other)
    if source(16).random() < 0.05 * settings.confounders:
        lesions.paint_leads(canvas, heart, source(17))
        distractors.append("pacemaker lead")
    canvas.hu += np.float32(scan.uniform(-8, 8))
    thickness = 2 * (patient.half_depth + patient.muscle + patient.fat)
    noise, sharpness = float(scan.uniform(*settings.noise_hu)), float(scan.random())
    scanner.add_scanner(canvas, noise, sharpness, thickness, scan)

    severities, labels = _labels(condition, ratio, score)
    measurements = {
        "agatston_score": score,
        "cac_grade": float(cac_grade(score)),
        "cardiothoracic_ratio": ratio,
        **widths,
        "coronary_stenosis_fraction": worst if condition.contrast else float("nan"),
        "pericardial_effusion_mm": condition.pericardial_mm,
        "pleural_effusion_mm": max(effusions.values(), default=0.0),
        "lung_nodule_mm": max((n.diameter for n in nodules), default=0.0),
        "emphysema_fraction": emphysema,
    }
    largest = max(nodules, key=lambda nodule: nodule.diameter, default=None)
    places = {
        "vessel": VESSELS[max(narrowing, key=lambda name: narrowing[name].max())],
        "side": "bilateral" if len(effusions) == 2 else next(iter(effusions), ""),
        "kind": "" if largest is None else "part-solid" if largest.part_solid else "solid",
        "nodule_lobe": "" if largest is None else _lobe_name(largest.lobe),
        "consolidation_lobe": " and ".join(dict.fromkeys(map(_lobe_name, consolidated))),
    }
    facts = reports.Facts(severities, measurements, places, distractors)
    sections = reports.write_report(labels, facts, source(18))
    orientation = str(scan.choice(settings.orientations))
    shift = source(21).uniform(-120, 120, 3)
    voxels, affine = scanner.store(canvas, scanner.to_int16(canvas.hu), orientation, shift)
    organs, _ = scanner.store(canvas, canvas.organs, orientation, shift)
    lesion_map, _ = scanner.store(canvas, lesions.lesion_map(canvas), orientation, shift)
    months, died = draw_survival(patient.age, labels, source(22))
    measurements |= {
        "age": patient.age,
        "log_hazard": log_hazard(patient.age, labels),
        "survival_months": months,
        "event": float(died),
    }
    patient_id = f"p{number:06d}"
    study_id = f"{patient_id}_{study + 1}"
    return Phantom(
        voxels=voxels,
        organs=organs,
        lesions=lesion_map,
        affine=affine,
        labels=labels,
        severities=severities,
        measurements=measurements,
        groups=groups_of(
            age=patient.age, female=patient.female, contrast=condition.contrast, sharpness=sharpness
        ),
        report=reports.join_sections(sections),
        sections=sections,
        volume_id=f"{study_id}_{reconstruction + 1}",
        study_id=study_id,
        patient_id=patient_id,
        orientation=orientation,
        notes={"contrast": condition.contrast, "distractors": tuple(distractors)},
    )
