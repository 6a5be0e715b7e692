"""What became of the patient, by a hazard that is known, and the groups that results are looked at in."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np

from medclip_jax.corpora.phantom.scanner import SHARP_KERNEL

SHAPE = 1.2
"""Of the Weibull distribution of survival: above 1, the hazard grows with time."""

SCALE_MONTHS = 90.0
"""Months in which a share of 1 - 1/e of patients of 60 years without any of `LOG_HAZARD_RATIOS` die."""

LOG_HAZARD_PER_DECADE = 0.4
"""What each ten years of age above 60 add to the logarithm of the hazard."""

LOG_HAZARD_RATIOS: Mapping[str, float] = {
    "consolidation": 1.0,
    "pleural_effusion": 0.8,
    "emphysema": 0.8,
    "cardiomegaly": 0.7,
    "pulmonary_arterial_hypertension": 0.7,
    "lung_nodule": 0.6,
    "coronary_calcification": 0.5,
    "pericardial_effusion": 0.5,
}
"""What each finding that is present adds to the logarithm of the hazard; the others add nothing."""

FOLLOW_UP_MONTHS = (6.0, 36.0)
"""Range from which the end of a patient's observation is drawn."""

AGE_BANDS = (45, 60, 75)
"""Ages at which a band ends and the next begins."""


def log_hazard(age: float, labels: Mapping[str, int]) -> float:
    """Logarithm of a patient's hazard over that of a patient of 60 years without any of the findings.

    Args:
        age: years.
        labels: finding to 1 present; any other value is taken for absent.
    """
    found = sum(ratio for name, ratio in LOG_HAZARD_RATIOS.items() if labels.get(name) == 1)
    return LOG_HAZARD_PER_DECADE * (age - 60) / 10 + found


def draw_survival(age: float, labels: Mapping[str, int], rng: np.random.Generator) -> tuple[float, bool]:
    """Months from the study until death, or until observation ended, and whether it was death.

    Death follows a Weibull distribution with proportional hazards,

        P(alive after t months) = exp(-(t / SCALE_MONTHS)^SHAPE exp(log_hazard)),

    and the end of observation is uniform over `FOLLOW_UP_MONTHS`, independent of everything else.

    Args:
        age, labels: as in `log_hazard`.
        rng: source of both times.

    Returns:
        (months, whether the patient died then).
    """
    unit = rng.exponential()
    death = SCALE_MONTHS * (unit * math.exp(-log_hazard(age, labels))) ** (1 / SHAPE)
    observed = float(rng.uniform(*FOLLOW_UP_MONTHS))
    return min(death, observed), death <= observed


def groups_of(*, age: float, female: bool, contrast: bool, sharpness: float) -> dict[str, str]:
    """The groups that a volume belongs to: scanner (the kernel's kind), sex, age band, contrast.

    Args:
        age: years, 30 to 90.
        female: the patient's sex.
        contrast: whether contrast was given.
        sharpness: of the kernel, 0 smooth ... 1 sharp.
    """
    ends = (30, *AGE_BANDS, 91)
    low, high = next((low, high) for low, high in itertools.pairwise(ends) if age < high)
    return {
        "scanner": "sharp kernel" if sharpness >= SHARP_KERNEL else "smooth kernel",
        "sex": "female" if female else "male",
        "age": f"{low}-{high - 1}",
        "contrast": "with contrast" if contrast else "without contrast",
    }
