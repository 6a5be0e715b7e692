"""Who is scanned and what is wrong with the heart: all numbers of a phantom, before anything is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from medclip_jax.corpora.cine.heart import SEPTUM, Beat, Heart, Segment
from medclip_jax.corpora.cine.scar import TERRITORIES, Scar, draw_scar
from medclip_jax.corpora.cine.settings import FINDINGS, CineSettings

LIMITS: Mapping[str, float] = {
    "lv_ejection_fraction": 50.0,
    "rv_ejection_fraction": 45.0,
    "lv_end_diastolic_diameter_mm": 57.0,
    "rv_end_diastolic_volume_ml": 185.0,
    "wall_thickness_mm": 13.0,
    "aortic_root_mm": 40.0,
    "scar_percent": 1.0,
    "pericardial_effusion_mm": 4.0,
}
"""Where a measurement becomes a finding. Nobody is drawn close to them."""

_USUAL: Mapping[str, Mapping[str, float]] = {
    "hypertrophic_cardiomyopathy": {
        "left_ventricular_dysfunction": 0.0,
        "right_ventricular_dysfunction": 0.0,
        "left_ventricular_dilation": 0.0,
        "right_ventricular_dilation": 0.0,
        "left_ventricular_hypertrophy": 1.0,
        "late_gadolinium_enhancement": 0.75,
        "regional_wall_motion_abnormality": 0.0,
    },
    "ischemic_cardiomyopathy": {
        "left_ventricular_dysfunction": 0.85,
        "right_ventricular_dysfunction": 0.2,
        "left_ventricular_dilation": 0.6,
        "right_ventricular_dilation": 0.1,
        "left_ventricular_hypertrophy": 0.0,
        "late_gadolinium_enhancement": 1.0,
        "regional_wall_motion_abnormality": 1.0,
    },
    "nonischemic_cardiomyopathy": {
        "left_ventricular_dysfunction": 1.0,
        "right_ventricular_dysfunction": 0.5,
        "left_ventricular_dilation": 1.0,
        "right_ventricular_dilation": 0.35,
        "left_ventricular_hypertrophy": 0.0,
        "late_gadolinium_enhancement": 0.5,
        "regional_wall_motion_abnormality": 0.0,
    },
    "cardiac_amyloidosis": {
        "left_ventricular_dysfunction": 0.6,
        "right_ventricular_dysfunction": 0.4,
        "left_ventricular_dilation": 0.0,
        "right_ventricular_dilation": 0.0,
        "left_ventricular_hypertrophy": 1.0,
        "late_gadolinium_enhancement": 1.0,
        "regional_wall_motion_abnormality": 0.0,
        "pericardial_effusion": 0.6,
    },
}
"""Probabilities of the findings in a diagnosis, where they are not those of everybody."""

_HYPERTROPHIES: Mapping[str, Mapping[str, float]] = {
    "": {"concentric": 0.65, "septal": 0.35},
    "hypertrophic_cardiomyopathy": {"septal": 0.8, "concentric": 0.08, "apical": 0.12},
    "cardiac_amyloidosis": {"concentric": 1.0},
}
"""Where the wall is thick, with probabilities."""

_SCARS: Mapping[str, Mapping[str, float]] = {
    "": {"subendocardial": 0.2, "transmural": 0.2, "patchy": 0.2, "mid-wall": 0.2, "subepicardial": 0.2},
    "hypertrophic_cardiomyopathy": {"patchy": 1.0},
    "ischemic_cardiomyopathy": {"subendocardial": 0.4, "transmural": 0.6},
    "nonischemic_cardiomyopathy": {"mid-wall": 0.8, "subepicardial": 0.2},
    "cardiac_amyloidosis": {"diffuse": 1.0},
}
"""Kinds of late enhancement, with probabilities."""


@dataclass(frozen=True)
class Patient:
    """What a study shows.

    Attributes:
        diagnosis: of `DIAGNOSES`, "" for none.
        heart: the ventricles and their motion.
        scar: None without.
        hypertrophy: concentric, septal or apical, "" without.
        territory: key of `TERRITORIES` whose wall hardly moves, "" without.
        effusion_mm: thickness of pericardial fluid, 0 without.
        root_mm: diameter of the aortic root.
        left_atrium, right_atrium: half of their width, mm.
        fat_mm: thickness of the fat around the heart.
        skin_fat_mm: thickness of the fat below the skin.
    """

    diagnosis: str
    heart: Heart
    scar: Scar | None
    hypertrophy: str
    territory: str
    effusion_mm: float
    root_mm: float
    left_atrium: float
    right_atrium: float
    fat_mm: float
    skin_fat_mm: float


def draw_patient(rng: np.random.Generator, settings: CineSettings) -> Patient:
    """Draw one patient.

    Sizes are drawn for the heart's mean contraction and independently of the ejection fractions, which are
    drawn as such: in one frame of unknown phase, a heart that is small because it has just contracted
    looks like one that is small. Every number is drawn whether used or not, so that another prevalence
    changes no other number.

    Args:
        rng: the patient's own.
        settings: shares of the diagnoses and prevalences of the findings.
    """
    diagnosis = _pick({**settings.diagnoses, "": 1 - sum(settings.diagnoses.values())}, rng)
    hypertrophic = diagnosis == "hypertrophic_cardiomyopathy"
    amyloid = diagnosis == "cardiac_amyloidosis"
    chances = {**settings.prevalences, **_USUAL.get(diagnosis, {})}
    has = {name: bool(rng.random() < chances[name]) for name in FINDINGS}

    def between(limits: tuple[float, float]) -> float:
        return float(rng.uniform(*limits))

    weak, dilated = has["left_ventricular_dysfunction"], has["left_ventricular_dilation"]
    beat = Beat(
        systole=between((0.31, 0.40)),
        filling=between((0.16, 0.24)),
        plateau=between((0.15, 0.35)),
        start=between((0.0, 1.0)),
        seconds=between((0.65, 1.15)),
    )
    radius = between((28.5, 34.0) if dilated else (16.0, 21.0) if hypertrophic else (17.0, 23.5))
    if amyloid:
        fraction = between((0.35, 0.46) if weak else (0.53, 0.60))
    else:
        fraction = between((0.17, 0.42) if weak else (0.60, 0.76) if hypertrophic else (0.56, 0.71))
    form = _pick(_HYPERTROPHIES.get(diagnosis, _HYPERTROPHIES[""]), rng)
    wall, extra, thick = _wall(form if has["left_ventricular_hypertrophy"] else "", hypertrophic, rng)
    territory = _pick({"lad": 0.45, "rca": 0.3, "lcx": 0.25}, rng)
    base, wider = TERRITORIES[territory], between((0.9, 1.15))
    still = None
    if has["regional_wall_motion_abnormality"]:
        still = replace(base, half_width=base.half_width * wider)
    heart = Heart(
        beat=beat,
        radius=radius,
        length=58 + 1.15 * radius + between((-6.0, 6.0)),
        wall=wall,
        extra=extra,
        thick=thick,
        ripple=tuple((between((0.0, most)), between((0.0, 2 * np.pi))) for most in (0.14, 0.08, 0.06, 0.06)),
        left_fraction=fraction,
        right_fraction=between((0.18, 0.38) if has["right_ventricular_dysfunction"] else (0.51, 0.66)),
        shortening=fraction * between((0.20, 0.27)),
        still=still,
        right_volume=between((190.0, 230.0) if has["right_ventricular_dilation"] else (72.0, 125.0)),
        right_span=between((1.05, 1.25)),
        right_skew=between((-0.05, 0.3)),
        right_wall=between((5.0, 7.0) if amyloid else (2.5, 4.0)),
    )
    kind = _pick(_SCARS.get(diagnosis, _SCARS[""]), rng)
    elsewhere = _pick({"lad": 0.4, "rca": 0.3, "lcx": 0.3}, rng)
    scar = draw_scar(kind, territory if diagnosis else elsewhere, heart, rng)
    stiff = 5.0 * (hypertrophic or amyloid)
    return Patient(
        diagnosis=diagnosis,
        heart=heart,
        scar=scar if has["late_gadolinium_enhancement"] else None,
        hypertrophy=form if has["left_ventricular_hypertrophy"] else "",
        territory=territory if still is not None else "",
        effusion_mm=between((6.0, 16.0) if has["pericardial_effusion"] else (0.0, 1.2)),
        root_mm=between((43.0, 54.0) if has["aortic_dilation"] else (27.0, 36.0)),
        left_atrium=between((16.0, 24.0)) + stiff,
        right_atrium=between((16.0, 24.0)) + 5.0 * has["right_ventricular_dilation"],
        fat_mm=between((2.0, 7.0)),
        skin_fat_mm=6 + 26 * rng.random() ** 1.5,
    )


def _pick(weights: Mapping[str, float], rng: np.random.Generator) -> str:
    """One of the keys by its weight."""
    sums = np.cumsum(list(weights.values()))
    return list(weights)[int(np.searchsorted(sums, rng.random() * sums[-1], side="right"))]


def _wall(form: str, severe: bool, rng: np.random.Generator) -> tuple[float, float, Segment]:
    """Thickness of the wall, what the thick part has beyond it, and where that is."""
    usual, thick, more = rng.uniform((7.5, 15.5, 8.0), (10.5, 19.0, 14.0)).tolist()
    turn, half = rng.uniform((-0.3, 0.9), (0.3, 1.3)).tolist()
    septum = Segment(SEPTUM + turn, half)
    if form == "concentric":
        return thick, 0.0, septum
    if form == "septal":
        return usual, more + 2.0 * severe, septum
    if form == "apical":
        return usual, more, Segment(0.0, 10.0, high=0.5)
    return usual, 0.0, septum
