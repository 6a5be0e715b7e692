"""The abnormalities of RAD-ChestCT that published evaluations put together into CT-RATE's findings.

They go by the archive's names and have no wording: the archive has no reports, and only its labels say what
is known. They are no findings of the library's own, so that a user may define others of these names.
"""

from __future__ import annotations

from medclip_jax.reports.definitions import Findings
from medclip_jax.reports.finding import Finding
from medclip_jax.reports.vocabulary import CT_RATE_FINDINGS, FINDINGS

RAD_CHEST_ABNORMALITIES: dict[str, str] = {
    "breast_implant": "breast implant",
    "catheter_or_port": "catheter or port",
    "chest_tube": "chest tube",
    "clip": "surgical clip",
    "gi_tube": "gastrointestinal tube",
    "hardware": "hardware",
    "pacemaker_or_defib": "pacemaker or defibrillator",
    "staple": "staple",
    "stent": "stent",
    "suture": "suture",
    "tracheal_tube": "tracheal tube",
    "heart_valve_replacement": "heart valve replacement",
    "cabg": "coronary artery bypass graft",
    "sternotomy": "sternotomy",
    "calcification": "calcification",
    "atherosclerosis": "atherosclerosis",
    "coronary_artery_disease": "coronary artery disease",
    "hernia": "hernia",
    "nodule": "nodule",
    "nodulegr1cm": "nodule larger than 1 cm",
    "opacity": "opacity",
    "groundglass": "ground-glass opacity",
    "infiltrate": "infiltrate",
    "airspace_disease": "airspace disease",
    "scarring": "scarring",
    "fibrosis": "fibrosis",
    "reticulation": "reticulation",
    "honeycombing": "honeycombing",
    "interstitial_lung_disease": "interstitial lung disease",
    "air_trapping": "air trapping",
    "bronchial_wall_thickening": "bronchial wall thickening",
    "bronchiolectasis": "bronchiolectasis",
    "septal_thickening": "septal thickening",
}
"""Name in the archive to what stands for X in "There is X."; without those that CT-RATE has, too."""

RAD_CHEST_FINDINGS: tuple[str, ...] = (*CT_RATE_FINDINGS, *RAD_CHEST_ABNORMALITIES)
"""CT-RATE's eighteen findings, then the archive's abnormalities."""

RAD_CHEST_DEFINITIONS = Findings(
    Finding(name, phrase) for name, phrase in RAD_CHEST_ABNORMALITIES.items() if name not in FINDINGS
)
"""The library's findings, and those abnormalities that are none of them."""
