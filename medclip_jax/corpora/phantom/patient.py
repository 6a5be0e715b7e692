"""Who is scanned and what is wrong with them: all numbers of a phantom, before anything is painted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from medclip_jax.corpora.phantom.settings import PhantomSettings


@dataclass(frozen=True)
class Patient:
    """The body: fixed for all studies of one person. Lengths in mm, origin at the carina.

    Attributes:
        half_width, half_depth: of the rib cage's inside at its widest.
        center_y: the rib cage's middle, along the anterior axis.
        apex, dome_right, dome_left: z of the lung apices and of the diaphragm's two domes.
        dome_drop: how far the diaphragm falls from the dome to the chest wall.
        muscle, fat: thickness of the chest wall's two layers.
        female: whether breasts are painted, of size `breast`.
        kyphosis: bend of the thoracic spine.
        bone_hu, fat_hu: marrow and fat.
        heart_shift: of the heart to the right.
        aorta_radius: of the aorta's middle part.
        age: years; makes bone thinner, the aorta wider and old calcifications likelier.
    """

    half_width: float
    half_depth: float
    center_y: float
    apex: float
    dome_right: float
    dome_left: float
    dome_drop: float
    muscle: float
    fat: float
    female: bool
    breast: float
    kyphosis: float
    bone_hu: float
    fat_hu: float
    heart_shift: float
    aorta_radius: float
    age: float


def draw_patient(rng: np.random.Generator) -> Patient:
    """Draw a body. Sizes vary a lot, so that global intensity says little about any finding."""
    female = bool(rng.random() < 0.5)
    half_width = float(np.clip(rng.normal(126 if female else 136, 9), 112, 160))
    age = float(rng.uniform(30, 90))
    return Patient(
        half_width=half_width,
        half_depth=max(80.0, half_width * float(rng.uniform(0.63, 0.77))),
        center_y=float(rng.uniform(2, 10)),
        apex=float(rng.uniform(75, 110)),
        dome_right=float(rng.uniform(-125, -88)),
        dome_left=float(rng.uniform(-12, 2)),
        dome_drop=float(rng.uniform(35, 75)),
        muscle=float(rng.uniform(9, 20)),
        fat=float(4 + 40 * rng.random() ** 1.6),
        female=female,
        breast=float(rng.uniform(15, 60)),
        kyphosis=float(rng.uniform(0.2, 1.0)),
        bone_hu=float(rng.uniform(150, 230) - 1.1 * (age - 30)),
        fat_hu=float(rng.uniform(-112, -88)),
        heart_shift=float(rng.uniform(-8, 8)),
        aorta_radius=float(rng.uniform(11.0, 14.0) + 0.04 * (age - 50)),
        age=age,
    )


@dataclass(frozen=True)
class Condition:
    """The state at one study: which findings, how severe, contrast, breath-hold.

    Attributes:
        severities: finding to a severity in (0, 1]; only those present.
        contrast: whether contrast was given.
        blood_left: HU in aorta, left heart and coronaries; `blood_right`: right heart, pulmonary arteries.
        myocardium: HU of the heart's muscle.
        tissue_gain: HU that contrast adds to muscle; organs gain a multiple of it.
        cardiothoracic_ratio: aimed at by the heart's size.
        calcium_grade: 0..4, the grade the coronary plaques are to reach.
        soft_aortic_plaque: whether the aortic wall holds plaque without calcium.
        trunk_radius: of the pulmonary trunk, mm.
        lung_hu: mean lung density at this breath-hold.
    """

    severities: Mapping[str, float]
    contrast: bool
    blood_left: float
    blood_right: float
    myocardium: float
    tissue_gain: float
    cardiothoracic_ratio: float
    calcium_grade: int
    soft_aortic_plaque: bool
    trunk_radius: float
    lung_hu: float

    @property
    def pericardial_mm(self) -> float:
        """Greatest thickness of the pericardial effusion."""
        severity = self.severities.get("pericardial_effusion", 0.0)
        return 4.5 + 15 * severity if severity else 0.0


def draw_condition(rng: np.random.Generator, settings: PhantomSettings) -> Condition:
    """Draw the findings of one study. Independent, but for the arteries, which share one disease."""
    prevalence = settings.prevalences
    contrast = bool(rng.random() < settings.contrast_probability)
    present: dict[str, float] = {}

    def draw(name: str, probability: float) -> bool:
        severity = float(rng.uniform(*settings.severities))
        if rng.random() < probability:
            present[name] = severity
        return name in present

    # Every number is drawn whether used or not, so that one finding more or less changes nothing else.
    disease = prevalence["atherosclerosis"]
    soft_plaque = False
    more_plaque = bool(rng.random() < 0.3)
    grade = int(rng.choice([1, 2, 3, 4], p=[0.06, 0.14, 0.25, 0.55]))
    diseased = draw("atherosclerosis", disease)
    share = 1 / disease if diseased else 0.0
    found = [
        draw(name, prevalence[name] * share) for name in ("coronary_calcification", "aortic_calcification")
    ]
    found.append(draw("coronary_stenosis", prevalence["coronary_stenosis"] * share * contrast))
    if diseased:
        soft_plaque = not any(found) or more_plaque
    for name in (
        "cardiomegaly",
        "pericardial_effusion",
        "pulmonary_arterial_hypertension",
        "pleural_effusion",
        "lung_nodule",
        "emphysema",
        "consolidation",
    ):
        draw(name, prevalence[name])
    big = present.get("cardiomegaly")
    wide = present.get("pulmonary_arterial_hypertension")
    usual_ratio, usual_radius = float(rng.uniform(0.40, 0.475)), float(rng.uniform(11.0, 13.9))
    plain_blood = rng.uniform(32, 50)
    return Condition(
        severities=present,
        contrast=contrast,
        blood_left=float(rng.uniform(250, 450) if contrast else plain_blood),
        blood_right=float(rng.uniform(120, 450) if contrast else plain_blood),
        myocardium=float(rng.uniform(85, 130) if contrast else plain_blood + rng.uniform(3, 8)),
        tissue_gain=float(rng.uniform(5, 20) if contrast else 0),
        cardiothoracic_ratio=usual_ratio if big is None else 0.525 + 0.13 * big,
        calcium_grade=grade if "coronary_calcification" in present else 0,
        soft_aortic_plaque=soft_plaque,
        trunk_radius=usual_radius if wide is None else 15.6 + 4.4 * wide,
        lung_hu=float(rng.uniform(-890, -780)),
    )
