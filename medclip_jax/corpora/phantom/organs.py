"""Values and names of the organ map, of lesions, and of the label map that holds both."""

from __future__ import annotations

ORGAN_CLASSES: dict[int, str] = {
    1: "spleen",
    5: "liver",
    6: "stomach",
    10: "lung_upper_lobe_left",
    11: "lung_lower_lobe_left",
    12: "lung_upper_lobe_right",
    13: "lung_middle_lobe_right",
    14: "lung_lower_lobe_right",
    15: "esophagus",
    16: "trachea",
    51: "heart",
    52: "aorta",
    53: "pulmonary_vein",
    61: "atrial_appendage_left",
    62: "superior_vena_cava",
    63: "inferior_vena_cava",
    79: "spinal_cord",
    116: "sternum",
    117: "costal_cartilages",
    201: "pulmonary_artery",
    202: "coronary_arteries",
    203: "vertebrae",
    204: "ribs",
    205: "pericardial_effusion",
    206: "pleural_effusion",
}
"""Values up to 117 and all names are those of TotalSegmentator's task "total" (version 2) or, from 201 on,
of its other tasks; only `vertebrae` and `ribs` stand for its 24 and 24 numbered classes together."""

ORGANS: dict[str, int] = {name: value for value, name in ORGAN_CLASSES.items()}
"""The same, by name."""

LESION_CLASSES: dict[int, str] = {
    1: "lung_nodule",
    2: "consolidation",
    3: "pleural_effusion",
    4: "pericardial_effusion",
    5: "emphysema",
}
"""Values of lesions; the names are those of the findings. What is smaller than a voxel, as most plaques are,
has no class there."""

LESIONS: dict[str, int] = {name: value for value, name in LESION_CLASSES.items()}
"""The same, by name."""

LUNG_LOBES = (10, 11, 12, 13, 14)
"""Values of the lobes in the organ map."""

LARGE_ORGANS: dict[str, tuple[int, ...]] = {
    "lungs": LUNG_LOBES,
    "heart": (ORGANS["heart"], ORGANS["atrial_appendage_left"], ORGANS["coronary_arteries"]),
    "aorta": (ORGANS["aorta"],),
    "liver": (ORGANS["liver"],),
    "vertebrae": (ORGANS["vertebrae"],),
}
"""Organs of the label map to their values in the organ map."""

LABEL_CLASSES: dict[int, str] = LESION_CLASSES | dict(enumerate(LARGE_ORGANS, 1 + max(LESION_CLASSES)))
"""Values of the label map: lesions, and large organs."""

LABELS: dict[str, int] = {name: value for value, name in LABEL_CLASSES.items()}
"""The same, by name."""
