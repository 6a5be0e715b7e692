"""What a set of phantoms looks like: spacings, contrast, noise, prevalences, and three named presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

FINDINGS = (
    "coronary_stenosis",
    "coronary_calcification",
    "aortic_calcification",
    "atherosclerosis",
    "cardiomegaly",
    "pericardial_effusion",
    "pulmonary_arterial_hypertension",
    "pleural_effusion",
    "lung_nodule",
    "emphysema",
    "consolidation",
)
"""The eleven findings a phantom is labeled with: the seven of Cardiac-CLIP first, in the paper's order."""

ORIENTATIONS = ("RAS", "LPS", "LAS", "RPS", "LPI", "RAI", "PSR", "SLP")

PREVALENCES: Mapping[str, float] = {
    "atherosclerosis": 0.44,
    "coronary_calcification": 0.32,
    "aortic_calcification": 0.31,
    "coronary_stenosis": 0.30,
    "cardiomegaly": 0.33,
    "pericardial_effusion": 0.30,
    "pulmonary_arterial_hypertension": 0.32,
    "pleural_effusion": 0.32,
    "lung_nodule": 0.38,
    "emphysema": 0.32,
    "consolidation": 0.32,
}


@dataclass(frozen=True)
class PhantomSettings:
    """How phantoms are drawn and scanned. Hashable by value, picklable, free of any state.

    Attributes:
        in_plane_mm: range from which the pixel size is drawn.
        slice_mm: slice distances from which one is drawn.
        wall_margin_mm: range of chest wall kept in the field of view beside the lungs' outer border.
        contrast_probability: share of studies with intravenous contrast.
        noise_hu: range of the noise standard deviation of a slim patient on the given voxels.
        orientations: storage orientations (direction in which i, j, k grow), one drawn for each volume.
        prevalences: finding to the probability that it is present. Coronary and aortic calcification and
            stenosis only occur in patients with atherosclerosis, so theirs must not exceed its.
            The prevalence of coronary stenosis is among the studies with contrast.
        severities: range from which the severity of a finding that is present is drawn, 0 to 1. The default
            reaches down to what a radiologist barely sees; calcium has its own grades.
        confounders: scale on the probability of every distractor (node, valve, rib calcification, leads).
        nodule_mm: least and greatest diameter of lung nodules. A patient's first one is larger the more
            severe the finding is; the others stay in the lower part of the range.
        more_nodules: how many nodules a patient with nodules has beside the first, on average.
    """

    in_plane_mm: tuple[float, float] = (3.0, 3.5)
    slice_mm: tuple[float, ...] = (3.5, 4.0, 5.0)
    wall_margin_mm: tuple[float, float] = (8.0, 45.0)
    contrast_probability: float = 0.55
    noise_hu: tuple[float, float] = (4.0, 22.0)
    orientations: tuple[str, ...] = ORIENTATIONS
    prevalences: Mapping[str, float] = field(default_factory=lambda: dict(PREVALENCES))
    severities: tuple[float, float] = (0.15, 1.0)
    confounders: float = 1.0
    nodule_mm: tuple[float, float] = (5.5, 24.5)
    more_nodules: float = 0.5

    def __post_init__(self):
        unknown = set(self.prevalences) - set(FINDINGS)
        missing = set(FINDINGS) - set(self.prevalences)
        if unknown or missing:
            raise ValueError(
                f"prevalences must name exactly the findings {FINDINGS}: "
                f"remove {sorted(unknown)}, add {sorted(missing)}"
            )
        low, high = self.severities
        if not 0 < low <= high <= 1:
            raise ValueError(f"severities={self.severities}: give (low, high) with 0 < low <= high <= 1")
        smallest, largest = self.nodule_mm
        if not 0 < smallest <= largest:
            raise ValueError(f"nodule_mm={self.nodule_mm}: give (least, greatest) with 0 < least <= greatest")
        if self.more_nodules < 0:
            raise ValueError(f"more_nodules={self.more_nodules}: give 0 or more")
        disease = self.prevalences["atherosclerosis"]
        for name in ("coronary_calcification", "aortic_calcification", "coronary_stenosis"):
            if self.prevalences[name] > disease:
                raise ValueError(
                    f"prevalences[{name!r}] = {self.prevalences[name]} exceeds atherosclerosis = {disease}, "
                    "of which it is a part: raise the latter or lower the former"
                )


PRESETS: Mapping[str, PhantomSettings] = {
    "demo": PhantomSettings(),
    "fine": PhantomSettings(in_plane_mm=(1.8, 2.2), slice_mm=(2.0, 2.5, 3.0), noise_hu=(6.0, 30.0)),
    "paper": PhantomSettings(in_plane_mm=(1.4, 1.6), slice_mm=(2.0, 3.0), noise_hu=(8.0, 40.0)),
}
"""`demo`: about 0.5 million voxels. `fine`: about 2 million. `paper`: the grid of 224x224x112 models."""
