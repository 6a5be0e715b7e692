"""What a set of cardiac MR phantoms looks like: grid, series, noise, prevalences, and named presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from medclip_jax.corpora.cmr import SERIES

FINDINGS = (
    "left_ventricular_dysfunction",
    "right_ventricular_dysfunction",
    "left_ventricular_dilation",
    "right_ventricular_dilation",
    "left_ventricular_hypertrophy",
    "late_gadolinium_enhancement",
    "regional_wall_motion_abnormality",
    "aortic_dilation",
    "pericardial_effusion",
)
"""What is seen in the pictures."""

DIAGNOSES = (
    "hypertrophic_cardiomyopathy",
    "ischemic_cardiomyopathy",
    "nonischemic_cardiomyopathy",
    "cardiac_amyloidosis",
)
"""What findings together amount to; a study has at most one."""

PREVALENCES: Mapping[str, float] = {
    "left_ventricular_dysfunction": 0.22,
    "right_ventricular_dysfunction": 0.18,
    "left_ventricular_dilation": 0.18,
    "right_ventricular_dilation": 0.18,
    "left_ventricular_hypertrophy": 0.18,
    "late_gadolinium_enhancement": 0.20,
    "regional_wall_motion_abnormality": 0.15,
    "aortic_dilation": 0.22,
    "pericardial_effusion": 0.20,
}

SHARES: Mapping[str, float] = dict.fromkeys(DIAGNOSES, 0.15)


@dataclass(frozen=True)
class CineSettings:
    """How cardiac MR phantoms are drawn and scanned. Picklable, free of any state.

    Attributes:
        size: rows and columns of every picture.
        field_mm: range from which the width of the field of view is drawn.
        slices: of the short-axis cine.
        phases: of every cine, spread evenly over the cycle.
        lge_slices: of the short-axis late enhancement.
        series: which of `corpora.cmr.SERIES` are made.
        diagnoses: diagnosis to its share of the studies. With an empty mapping every finding is drawn
            independently of all others, which is what tells motion from its usual companions.
        prevalences: finding to its probability in a study without a diagnosis; aortic dilation and
            pericardial effusion also in those with a diagnosis that says nothing of them.
        noise: range of the noise's standard deviation, as a share of the blood's signal.
    """

    size: int = 64
    field_mm: tuple[float, float] = (185.0, 225.0)
    slices: int = 3
    phases: int = 16
    lge_slices: int = 3
    series: tuple[str, ...] = ("cine_lax", "cine_sa", "lge_sa")
    diagnoses: Mapping[str, float] = field(default_factory=lambda: dict(SHARES))
    prevalences: Mapping[str, float] = field(default_factory=lambda: dict(PREVALENCES))
    noise: tuple[float, float] = (0.02, 0.06)

    def __post_init__(self):
        if set(self.prevalences) != set(FINDINGS):
            raise ValueError(
                f"prevalences must name exactly the findings {FINDINGS}: remove "
                f"{sorted(set(self.prevalences) - set(FINDINGS))}, add "
                f"{sorted(set(FINDINGS) - set(self.prevalences))}"
            )
        unknown = set(self.diagnoses) - set(DIAGNOSES)
        if unknown or not 0 <= sum(self.diagnoses.values()) <= 1:
            raise ValueError(
                f"diagnoses={dict(self.diagnoses)}: name any of {DIAGNOSES}, "
                "with shares that add up to 1 at most"
            )
        if not self.series or set(self.series) - set(SERIES):
            raise ValueError(f"series={self.series}: name one or more of {SERIES}")
        for name in ("size", "slices", "phases", "lge_slices"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give 1 or more")


PRESETS: Mapping[str, CineSettings] = {
    "demo": CineSettings(),
    "independent": CineSettings(diagnoses={}, prevalences=dict.fromkeys(FINDINGS, 0.35)),
    "fine": CineSettings(
        size=192,
        field_mm=(260.0, 320.0),
        slices=9,
        phases=30,
        lge_slices=10,
        series=SERIES,
        noise=(0.02, 0.05),
    ),
}
"""`demo`: 67 small pictures. `independent`: no diagnoses, findings that tell nothing of each other.
`fine`: all six series at 1.4-1.7 mm."""
