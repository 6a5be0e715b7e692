"""The words of the impressions: how every finding is stated, how it is denied, and what else is said.

Braces are slots that `reports` fills, brackets hold alternatives; see `corpora.grammar`.
"""

from __future__ import annotations

from collections.abc import Mapping

LEFT: Mapping[tuple[bool, bool], tuple[str, ...]] = {
    (True, True): (
        "{degree|adverb} dilated left ventricle with {weak} systolic dysfunction, LVEF {ef} %.",
        "The left ventricle is {degree|adverb} dilated with {weak} systolic dysfunction (LVEF {ef} %).",
        "Left ventricle is enlarged in size with {weak|adverb} reduced systolic function, LVEF {ef} %.",
        "Left ventricle with {weak} systolic dysfunction, dilated to {diameter} mm at end diastole.",
        "Dilated left ventricle with {weak|adverb} reduced systolic function.",
    ),
    (True, False): (
        "The left ventricle is {degree|adverb} dilated with normal systolic function, LVEF {ef} %.",
        "{degree} left ventricular dilation, end-diastolic diameter {diameter} mm.",
        "Left ventricle is enlarged in size.",
        "The left ventricle is dilated to {diameter} mm with preserved ejection fraction ({ef} %).",
    ),
    (False, True): (
        "Left ventricle with {weak} systolic dysfunction, LVEF {ef} %.",
        "{weak} left ventricular systolic dysfunction (ejection fraction {ef} %).",
        "Left ventricular systolic function is {weak|adverb} reduced, LVEF {ef} %.",
        "There is {weak} left ventricular dysfunction with normal left ventricular size.",
        "Left ventricular ejection fraction is {weak|adverb} reduced at {ef} %.",
    ),
}
"""Dilation and dysfunction of the left ventricle, by whether they are present."""

RIGHT: Mapping[tuple[bool, bool], tuple[str, ...]] = {
    (True, True): (
        "Dilated right ventricle with {right_weak} systolic dysfunction, RVEF {right_ef} %.",
        "The right ventricle is dilated with {right_weak|adverb} reduced function (RVEF {right_ef} %).",
        "Right ventricle is enlarged in size with systolic dysfunction.",
    ),
    (True, False): (
        "The right ventricle is dilated with normal systolic function.",
        "Right ventricle is enlarged in size, RVEF {right_ef} %.",
        "Right ventricular dilation with preserved function.",
    ),
    (False, True): (
        "Right ventricle with {right_weak} systolic dysfunction, RVEF {right_ef} %.",
        "{right_weak} right ventricular systolic dysfunction.",
        "Right ventricular systolic function is {right_weak|adverb} reduced (RVEF {right_ef} %).",
    ),
}
"""Dilation and dysfunction of the right ventricle, by whether they are present."""

HYPERTROPHY: Mapping[str, tuple[str, ...]] = {
    "concentric": (
        "There is left ventricular hypertrophy, concentric, with a wall thickness of {wall} mm.",
        "Concentric left ventricular hypertrophy up to {wall} mm.",
        "LV is thickened, maximal wall thickness {wall} mm.",
        "There is [concentric|diffuse] left ventricular hypertrophy.",
    ),
    "septal": (
        "There is septal hypertrophy up to {wall} mm.",
        "Asymmetric septal hypertrophy, maximal thickness {wall} mm.",
        "There is left ventricular hypertrophy, most pronounced in the septum ({wall} mm).",
        "LV is thickened in the septum, {wall} mm.",
    ),
    "apical": (
        "There is left ventricular hypertrophy of the apex, up to {wall} mm.",
        "Apical left ventricular hypertrophy, {wall} mm.",
    ),
}
"""A thick left wall, by where it is."""

SCAR: Mapping[str, tuple[str, ...]] = {
    "transmural": (
        "Delayed-enhancement imaging reveals transmural enhancement of the {scar_wall} wall.",
        "There is a large area of {scar_artery} scar.",
        "Transmural late gadolinium enhancement in the {scar_artery} territory.",
        "Transmural delayed enhancement of the {scar_wall} wall, {percent} % of the left ventricular mass.",
    ),
    "subendocardial": (
        "Delayed-enhancement imaging reveals subendocardial enhancement of the {scar_wall} wall.",
        "Subendocardial late gadolinium enhancement in the {scar_artery} territory.",
        "There is {scar_artery} scar with subendocardial enhancement.",
    ),
    "patchy": (
        "Delayed-enhancement imaging reveals patchy enhancement.",
        "Multiple foci of patchy late gadolinium enhancement.",
        "There is patchy delayed enhancement, {percent} % of the left ventricular mass.",
    ),
    "mid-wall": (
        "Delayed-enhancement imaging reveals mid-wall enhancement of the septum.",
        "Linear mid-wall late gadolinium enhancement of the septum.",
    ),
    "diffuse": (
        "Delayed-enhancement imaging reveals diffuse subendocardial enhancement.",
        "Diffuse subendocardial late gadolinium enhancement with an abnormally dark blood pool.",
        "There is global subendocardial delayed enhancement.",
    ),
    "subepicardial": (
        "Delayed-enhancement imaging reveals subepicardial enhancement of the lateral wall.",
        "Subepicardial late gadolinium enhancement of the lateral wall.",
    ),
}
"""Late enhancement, by its kind."""

MOTION: tuple[str, ...] = (
    "There is a regional wall motion abnormality with akinesis of the {still_wall} wall.",
    "Regional wall motion abnormality: the {still_wall} wall is akinetic.",
    "Akinesis of the {still_wall} wall.",
    "Regional wall motion abnormality in the {still_artery} territory.",
)
"""A part of the left wall that hardly moves."""

AORTA: tuple[str, ...] = (
    "Aortic root is ectatic, {root} mm.",
    "The aortic root is dilated and measures {root} mm.",
    "Aortic root dilation ({root} mm).",
    "Dilated aortic root of {root} mm.",
)

EFFUSION: tuple[str, ...] = (
    "There is a {size} pericardial effusion.",
    "Pericardial effusion of up to {effusion} mm.",
    "A {size} pericardial effusion [is seen|is present].",
)

DIAGNOSIS: Mapping[str, tuple[str, ...]] = {
    "hypertrophic_cardiomyopathy": (
        "Findings are consistent with hypertrophic cardiomyopathy.",
        "Hypertrophic cardiomyopathy.",
        "The appearance is that of hypertrophic cardiomyopathy.",
    ),
    "ischemic_cardiomyopathy": (
        "Findings are consistent with ischemic cardiomyopathy.",
        "Ischemic cardiomyopathy with {scar_artery} infarction.",
        "Ischemic cardiomyopathy.",
    ),
    "nonischemic_cardiomyopathy": (
        "Findings are consistent with nonischemic cardiomyopathy.",
        "Nonischemic cardiomyopathy.",
        "The pattern is that of a nonischemic dilated cardiomyopathy.",
    ),
    "cardiac_amyloidosis": (
        "Findings are consistent with cardiac amyloidosis.",
        "Cardiac amyloidosis.",
        "The enhancement pattern is characteristic of cardiac amyloidosis.",
    ),
}

DENIED: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("left_ventricular_dysfunction", "left_ventricular_dilation"),
        (
            "Normal left ventricular size and systolic function, LVEF {ef} %.",
            "The left ventricle is normal in size with normal systolic function (LVEF {ef} %).",
        ),
    ),
    (
        ("right_ventricular_dysfunction", "right_ventricular_dilation"),
        (
            "Normal right ventricular size and systolic function.",
            "The right ventricle is normal in size and function.",
        ),
    ),
    (
        ("left_ventricular_hypertrophy",),
        ("No left ventricular hypertrophy.", "Left ventricular wall thickness is normal."),
    ),
    (
        ("late_gadolinium_enhancement",),
        ("No late gadolinium enhancement.", "No delayed enhancement to suggest scar or fibrosis."),
    ),
    (
        ("regional_wall_motion_abnormality",),
        ("No regional wall motion abnormality.", "There are no regional wall motion abnormalities."),
    ),
    (("aortic_dilation",), ("Normal size of the aortic root.", "The aortic root is not dilated.")),
    (("pericardial_effusion",), ("No pericardial effusion.", "There is no pericardial effusion.")),
)
"""Findings of which none is present."""

NOTHING: tuple[str, ...] = ("Normal cardiac MRI.", "Unremarkable cardiac MRI.", "Normal study.")
"""First sentence where nothing is present."""

UNRELATED: tuple[str, ...] = (
    "Mild mitral regurgitation.",
    "Trace tricuspid regurgitation.",
    "Small hiatal hernia.",
    "Mild degenerative changes of the spine.",
    "Simple hepatic cyst.",
    "Mild left atrial enlargement.",
    "Small right pleural effusion.",
)
"""Other sentences, true or not of the pictures."""

DEGREES: tuple[tuple[str, ...], ...] = (("mild",), ("moderate",), ("severe", "marked"))
ADVERBS: Mapping[str, str] = {
    "mild": "mildly",
    "moderate": "moderately",
    "severe": "severely",
    "marked": "markedly",
}
SIZES: tuple[tuple[str, ...], ...] = (("small",), ("moderate", "moderate-sized"), ("large",))
ARTERIES: Mapping[str, str] = {"lad": "LAD", "rca": "RCA", "lcx": "LCx"}
WALLS: Mapping[str, tuple[str, ...]] = {
    "lad": ("anterior", "anteroseptal"),
    "rca": ("inferior",),
    "lcx": ("lateral", "inferolateral"),
}
"""By territory."""
