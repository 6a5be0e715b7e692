"""Findings of cardiac MR in sentences and impressions written for these tests, nobody's data."""

import pytest

from medclip_jax.reports.findings import (
    CARDIAC_FINDINGS,
    CARDIAC_MR_DIAGNOSES,
    CARDIAC_MR_FINDINGS,
    CT_RATE_FINDINGS,
    FINDINGS,
    INSPECT_FINDINGS,
    MERLIN_FINDINGS,
    PHANTOM_FINDINGS,
    extract,
    extract_detailed,
)
from medclip_jax.reports.findings_file import choose_findings
from medclip_jax.reports.numbers import aortic_root, lv_ejection_fraction, wall_thickness

PRESENT, ABSENT, SILENT = 1, -1, 0
CASES = [
    ("LV is mildly dilated.", "left_ventricular_dilation", PRESENT),
    ("Mildly dilated LV.", "left_ventricular_dilation", PRESENT),
    ("Left ventricle is enlarged in size.", "left_ventricular_dilation", PRESENT),
    ("The left ventricle is dilated, the right ventricle is normal in size.",
     "right_ventricular_dilation", ABSENT),
    ("The left ventricle is dilated, the right ventricle is normal in size.",
     "left_ventricular_dilation", PRESENT),
    ("Left atrium is dilated and the left ventricle is normal in size.", "left_ventricular_dilation", ABSENT),
    ("The left ventricle is hypertrophied with a dilated left atrium.", "left_ventricular_dilation", SILENT),
    ("Normal LV size and systolic function.", "left_ventricular_dilation", ABSENT),
    ("Normal LV size and systolic function.", "left_ventricular_dysfunction", ABSENT),
    ("Both ventricles are dilated with severely reduced function.", "right_ventricular_dilation", PRESENT),
    ("Both ventricles are dilated with severely reduced function.", "right_ventricular_dysfunction", PRESENT),
    ("Both ventricles are dilated with severely reduced function.", "left_ventricular_dysfunction", PRESENT),
    ("No left ventricular dilatation.", "left_ventricular_dilation", ABSENT),
    ("The left ventricle is not dilated.", "left_ventricular_dilation", ABSENT),
    ("LV cavity size is at the upper limit of normal.", "left_ventricular_dilation", ABSENT),
    ("LVEDD 64 mm.", "left_ventricular_dilation", PRESENT),
    ("LV end-diastolic diameter of 4.8 cm.", "left_ventricular_dilation", ABSENT),
    ("Dilated cardiomyopathy.", "left_ventricular_dilation", SILENT),
    ("Dilated cardiomyopathy.", "nonischemic_cardiomyopathy", PRESENT),
    ("Biventricular enlargement.", "left_ventricular_dilation", PRESENT),
    ("Possible mild RV dilation.", "right_ventricular_dilation", PRESENT),
    ("RV is enlarged compared with the prior study.", "right_ventricular_dilation", PRESENT),
    ("Indexed LV volumes are increased.", "left_ventricular_dilation", PRESENT),
    ("Left ventricle with systolic dysfunction.", "left_ventricular_dysfunction", PRESENT),
    ("Right ventricle with systolic dysfunction.", "right_ventricular_dysfunction", PRESENT),
    ("Right ventricle with systolic dysfunction.", "left_ventricular_dysfunction", SILENT),
    ("LVEF 35%.", "left_ventricular_dysfunction", PRESENT),
    ("LVEF is 62 %.", "left_ventricular_dysfunction", ABSENT),
    ("Left ventricular ejection fraction (LVEF) is mildly reduced at 52%.",
     "left_ventricular_dysfunction", PRESENT),
    ("Ejection fraction of 35-40%.", "left_ventricular_dysfunction", PRESENT),
    ("EF improved from 30% to 58%.", "left_ventricular_dysfunction", ABSENT),
    ("LVEF > 55%.", "left_ventricular_dysfunction", ABSENT),
    ("RVEF 38%.", "right_ventricular_dysfunction", PRESENT),
    ("RVEF 38%.", "left_ventricular_dysfunction", SILENT),
    ("Severely reduced left ventricular systolic function.", "left_ventricular_dysfunction", PRESENT),
    ("LV systolic function is moderately impaired.", "left_ventricular_dysfunction", PRESENT),
    ("LV systolic function is preserved.", "left_ventricular_dysfunction", ABSENT),
    ("No evidence of left ventricular systolic dysfunction.", "left_ventricular_dysfunction", ABSENT),
    ("LV diastolic dysfunction.", "left_ventricular_dysfunction", SILENT),
    ("Global LV hypokinesis.", "left_ventricular_dysfunction", PRESENT),
    ("Global LV hypokinesis.", "regional_wall_motion_abnormality", SILENT),
    ("The left ventricle is normal in size with mildly reduced systolic function.",
     "left_ventricular_dysfunction", PRESENT),
    ("The left ventricle is normal in size with mildly reduced systolic function.",
     "left_ventricular_dilation", ABSENT),
    ("Right ventricular function is normal; left ventricular function is reduced.",
     "right_ventricular_dysfunction", ABSENT),
    ("Right ventricular function is normal; left ventricular function is reduced.",
     "left_ventricular_dysfunction", PRESENT),
    ("History of LV dysfunction.", "left_ventricular_dysfunction", SILENT),
    ("Cannot exclude mild right ventricular dysfunction.", "right_ventricular_dysfunction", PRESENT),
    ("Prosthetic valve dysfunction.", "left_ventricular_dysfunction", SILENT),
    ("There is left ventricular hypertrophy.", "left_ventricular_hypertrophy", PRESENT),
    ("There is septal hypertrophy.", "left_ventricular_hypertrophy", PRESENT),
    ("LV is thickened.", "left_ventricular_hypertrophy", PRESENT),
    ("Asymmetric septal hypertrophy with a maximal wall thickness of 22 mm.",
     "left_ventricular_hypertrophy", PRESENT),
    ("LV wall thickness is normal.", "left_ventricular_hypertrophy", ABSENT),
    ("Normal LV wall thickness.", "left_ventricular_hypertrophy", ABSENT),
    ("Maximal wall thickness 9 mm.", "left_ventricular_hypertrophy", ABSENT),
    ("No LVH.", "left_ventricular_hypertrophy", ABSENT),
    ("Right ventricular hypertrophy.", "left_ventricular_hypertrophy", SILENT),
    ("Interlobular septal thickening in both lower lobes.", "left_ventricular_hypertrophy", SILENT),
    ("Lipomatous hypertrophy of the interatrial septum.", "left_ventricular_hypertrophy", SILENT),
    ("The esophagus has a normal course and wall thickness.", "left_ventricular_hypertrophy", SILENT),
    ("Increased LV wall thickness.", "left_ventricular_hypertrophy", PRESENT),
    ("Normal systolic wall thickening.", "left_ventricular_hypertrophy", SILENT),
    ("The interventricular septum is thickened.", "left_ventricular_hypertrophy", PRESENT),
    ("Hypertrophic cardiomyopathy.", "left_ventricular_hypertrophy", SILENT),
    ("No late gadolinium enhancement.", "late_gadolinium_enhancement", ABSENT),
    ("Delayed-enhancement imaging reveals transmural enhancement.", "late_gadolinium_enhancement", PRESENT),
    ("Delayed-enhancement imaging reveals patchy enhancement.", "late_gadolinium_enhancement", PRESENT),
    ("There is a large area of LAD scar.", "late_gadolinium_enhancement", PRESENT),
    ("LGE: none.", "late_gadolinium_enhancement", ABSENT),
    ("LGE images were acquired in short axis.", "late_gadolinium_enhancement", SILENT),
    ("Late gadolinium enhancement imaging shows no myocardial enhancement.",
     "late_gadolinium_enhancement", ABSENT),
    ("Mid-wall enhancement of the basal septum.", "late_gadolinium_enhancement", PRESENT),
    ("Subendocardial scar in the inferior wall.", "late_gadolinium_enhancement", PRESENT),
    ("No myocardial scar or fibrosis.", "late_gadolinium_enhancement", ABSENT),
    ("Pulmonary scarring at the left apex.", "late_gadolinium_enhancement", SILENT),
    ("Scar burden 12 % of LV mass.", "late_gadolinium_enhancement", PRESENT),
    ("Scar 0 %.", "late_gadolinium_enhancement", ABSENT),
    ("Pericardial enhancement.", "late_gadolinium_enhancement", SILENT),
    ("Questionable LGE at the RV insertion points.", "late_gadolinium_enhancement", PRESENT),
    ("There is no evidence of late gadolinium enhancement to suggest scar or infiltration.",
     "late_gadolinium_enhancement", ABSENT),
    ("Transmural infarct in the LAD territory.", "late_gadolinium_enhancement", PRESENT),
    ("Akinesis of the inferior wall.", "regional_wall_motion_abnormality", PRESENT),
    ("The apex is akinetic.", "regional_wall_motion_abnormality", PRESENT),
    ("No regional wall motion abnormalities.", "regional_wall_motion_abnormality", ABSENT),
    ("Wall motion is normal.", "regional_wall_motion_abnormality", ABSENT),
    ("No RWMA.", "regional_wall_motion_abnormality", ABSENT),
    ("Possible inferior hypokinesis.", "regional_wall_motion_abnormality", PRESENT),
    ("The left ventricle is globally hypokinetic.", "regional_wall_motion_abnormality", SILENT),
    ("Aortic root is ectatic.", "aortic_dilation", PRESENT),
    ("Ascending aortic is dilated.", "aortic_dilation", PRESENT),
    ("Descending aorta is dilated.", "aortic_dilation", PRESENT),
    ("Aortic root measures 44 mm.", "aortic_dilation", PRESENT),
    ("Ascending aorta 3.4 cm.", "aortic_dilation", ABSENT),
    ("The thoracic aorta is normal in caliber.", "aortic_dilation", ABSENT),
    ("No aortic aneurysm or dissection.", "aortic_dilation", ABSENT),
    ("Aneurysm of the ascending aorta.", "aortic_dilation", PRESENT),
    ("Moderate aortic regurgitation with a dilated left ventricle.", "aortic_dilation", SILENT),
    ("The aorta is normal and there is a dilated left ventricle.", "aortic_dilation", SILENT),
    ("The aortic root is not dilated.", "aortic_dilation", ABSENT),
    ("Findings are consistent with hypertrophic cardiomyopathy.", "hypertrophic_cardiomyopathy", PRESENT),
    ("Family history of HCM.", "hypertrophic_cardiomyopathy", SILENT),
    ("Apical variant hypertrophic obstructive cardiomyopathy.", "hypertrophic_cardiomyopathy", PRESENT),
    ("No features of hypertrophic cardiomyopathy.", "hypertrophic_cardiomyopathy", ABSENT),
    ("Ischemic cardiomyopathy.", "ischemic_cardiomyopathy", PRESENT),
    ("Nonischemic cardiomyopathy.", "ischemic_cardiomyopathy", SILENT),
    ("Non-ischaemic dilated cardiomyopathy.", "nonischemic_cardiomyopathy", PRESENT),
    ("Non-ischemic cardiomyopathy.", "ischemic_cardiomyopathy", SILENT),
    ("Ischemic dilated cardiomyopathy.", "nonischemic_cardiomyopathy", SILENT),
    ("Ischemic dilated cardiomyopathy.", "ischemic_cardiomyopathy", PRESENT),
    ("Cardiomyopathy of nonischemic etiology.", "nonischemic_cardiomyopathy", PRESENT),
    ("No evidence of ischemic or nonischemic cardiomyopathy.", "nonischemic_cardiomyopathy", ABSENT),
    ("No evidence of ischemic or nonischemic cardiomyopathy.", "ischemic_cardiomyopathy", ABSENT),
    ("Cardiac amyloidosis.", "cardiac_amyloidosis", PRESENT),
    ("Amyloidosis is unlikely.", "cardiac_amyloidosis", ABSENT),
    ("The pattern is suspicious for cardiac amyloidosis.", "cardiac_amyloidosis", PRESENT),
    ("Rule out amyloidosis.", "cardiac_amyloidosis", SILENT),
    ("Small pericardial effusion.", "pericardial_effusion", PRESENT),
    ("LV and RV are normal in size and function.", "right_ventricular_dysfunction", ABSENT),
    ("LV and RV are normal in size and function.", "left_ventricular_dilation", ABSENT),
    ("Normal biventricular size and function.", "right_ventricular_dilation", ABSENT),
    ("Right ventricle: normal size, mildly reduced function.", "right_ventricular_dysfunction", PRESENT),
    ("Right ventricle: normal size, mildly reduced function.", "right_ventricular_dilation", ABSENT),
    ("The right ventricle is normal.", "right_ventricular_dysfunction", ABSENT),
    ("The right ventricle is normal.", "right_ventricular_dilation", ABSENT),
    ("LV dysfunction has resolved.", "left_ventricular_dysfunction", ABSENT),
]  # fmt: skip


@pytest.mark.parametrize(("text", "name", "status"), CASES)
def test_sentence(text, name, status):
    assert extract(text, [name]) == {name: status}


IMPRESSIONS = [
    (
        """LEFT VENTRICLE:
Moderately dilated. Ejection fraction 35%. Global hypokinesis.
RIGHT VENTRICLE:
Normal size. Reduced function.""",
        "left_ventricular_dysfunction right_ventricular_dysfunction left_ventricular_dilation",
        "right_ventricular_dilation",
    ),
    (
        """IMPRESSION:
1. Mildly dilated left ventricle with moderately reduced systolic function, LVEF 38%.
2. Normal right ventricular size and function, RVEF 55%.
3. Subendocardial to transmural late gadolinium enhancement in the LAD territory, consistent with ischemic
cardiomyopathy.
4. No pericardial effusion. The aortic root is normal in size.""",
        "left_ventricular_dysfunction left_ventricular_dilation late_gadolinium_enhancement"
        " ischemic_cardiomyopathy",
        "right_ventricular_dysfunction right_ventricular_dilation pericardial_effusion aortic_dilation",
    ),
    (
        """1. Asymmetric septal hypertrophy, maximal wall thickness 21 mm, consistent with hypertrophic
cardiomyopathy.
2. Hyperdynamic LV function, LVEF 72%.
3. Patchy mid-wall LGE at the RV insertion points (6% of LV mass).
4. Normal RV.""",
        "left_ventricular_hypertrophy late_gadolinium_enhancement hypertrophic_cardiomyopathy",
        "left_ventricular_dysfunction right_ventricular_dysfunction right_ventricular_dilation",
    ),
    (
        "Concentric LV hypertrophy with diffuse subendocardial enhancement and abnormal nulling, highly "
        "suggestive of cardiac amyloidosis. Biatrial enlargement. Small pericardial effusion. Mildly reduced "
        "biventricular function.",
        "left_ventricular_hypertrophy late_gadolinium_enhancement cardiac_amyloidosis pericardial_effusion"
        " left_ventricular_dysfunction right_ventricular_dysfunction",
        "",
    ),
    (
        "Normal study. Normal biventricular size, wall thickness and systolic function. No regional wall "
        "motion abnormality. No late gadolinium enhancement. Normal caliber of the thoracic aorta.",
        "",
        "left_ventricular_dysfunction right_ventricular_dysfunction left_ventricular_dilation"
        " right_ventricular_dilation left_ventricular_hypertrophy regional_wall_motion_abnormality"
        " late_gadolinium_enhancement aortic_dilation",
    ),
    (
        "Mild to moderate LV dilation. Severe global LV systolic dysfunction (LVEF 22%). Linear mid-wall "
        "septal LGE, typical of nonischemic cardiomyopathy. RV is mildly dilated with preserved function. "
        "Aortic root is dilated at 43 mm.",
        "left_ventricular_dilation left_ventricular_dysfunction late_gadolinium_enhancement"
        " nonischemic_cardiomyopathy right_ventricular_dilation aortic_dilation",
        "right_ventricular_dysfunction",
    ),
    (
        "LV size: normal. LV function: normal. RV size: dilated. RV function: mildly reduced. LGE: absent. "
        "Pericardial effusion: none. Wall motion: normal.",
        "right_ventricular_dilation right_ventricular_dysfunction",
        "left_ventricular_dilation left_ventricular_dysfunction late_gadolinium_enhancement"
        " pericardial_effusion regional_wall_motion_abnormality",
    ),
]


@pytest.mark.parametrize(("text", "present", "absent"), IMPRESSIONS)
def test_impression(text, present, absent):
    expected = dict.fromkeys(CARDIAC_MR_FINDINGS, SILENT)
    expected |= dict.fromkeys(present.split(), PRESENT) | dict.fromkeys(absent.split(), ABSENT)
    assert extract(text, CARDIAC_MR_FINDINGS) == expected


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Possible cardiac amyloidosis.", "cardiac_amyloidosis"),
        ("Questionable LGE at the RV insertion points.", "late_gadolinium_enhancement"),
        ("Cannot exclude mild right ventricular dysfunction.", "right_ventricular_dysfunction"),
        ("Probable ischemic cardiomyopathy.", "ischemic_cardiomyopathy"),
        ("LV dilation cannot be ruled out.", "left_ventricular_dilation"),
    ],
)
def test_uncertain(text, name):
    assert extract_detailed(text, [name])[name].uncertain
    counted = [extract(text, [name], uncertain=meaning)[name] for meaning in ("present", "absent", "unknown")]
    assert counted == [1, -1, 0]


def test_numbers_decide_beyond_their_limits_alone():
    def called(reader, *texts):
        return [[one.exceeds for one in reader(text)] for text in texts]

    fractions = (
        "lvef 49 %",
        "lvef 50 %",
        "lvef 52 %",
        "lvef 55 %",
        "lvef < 50 %",
        "lvef > 50 %",
        "lvef (normal > 55 %)",
    )
    assert called(lv_ejection_fraction, *fractions) == [[True], [], [], [False], [True], [], []]
    walls = ("12.5 mm", "12 mm", "1.1 cm")
    assert called(wall_thickness, *(f"wall thickness {text}" for text in walls)) == [[True], [], [False]]
    assert wall_thickness("aortic wall thickness 3 mm") == []
    assert called(aortic_root, "aortic root 4.1 cm", "aortic root 38 mm") == [[True], []]


def test_sets():
    assert CARDIAC_MR_FINDINGS[9:] == CARDIAC_MR_DIAGNOSES
    assert len(CARDIAC_MR_FINDINGS) == len(set(CARDIAC_MR_FINDINGS)) == 13
    assert choose_findings(["cardiac_mr"])[0] == CARDIAC_MR_FINDINGS
    assert set(FINDINGS) == {
        *CT_RATE_FINDINGS,
        *PHANTOM_FINDINGS,
        *CARDIAC_MR_FINDINGS,
        *MERLIN_FINDINGS,
        *INSPECT_FINDINGS,
    }
    # Shards that are there were prepared with these.
    assert len(CARDIAC_FINDINGS) == 7
    assert not set(CARDIAC_MR_FINDINGS) & {*CT_RATE_FINDINGS, *PHANTOM_FINDINGS} - {"pericardial_effusion"}
