"""Findings of abdominal CT in sentences written for these tests, nobody's data."""

import pytest

from medclip_jax.reports.findings import FINDINGS, MERLIN_FINDINGS, extract
from medclip_jax.reports.findings_file import choose_findings
from medclip_jax.reports.names import finding_name
from medclip_jax.reports.prompts import prompts_of
from medclip_jax.reports.statements import statements

PRESENT, ABSENT, SILENT = 1, -1, 0
CASES = [
    ("Scattered areas of submucosal edema in the colon.", "submucosal_edema", PRESENT),
    ("No submucosal edema.", "submucosal_edema", ABSENT),
    ("Bowel: Normal.", "submucosal_edema", ABSENT),
    ("Subcentimeter hypodensities in both kidneys.", "renal_hypodensities", PRESENT),
    ("Kidneys and ureters: Two hypodensities, too small to characterize.", "renal_hypodensities", PRESENT),
    ("Kidneys and ureters: Normal.", "renal_hypodensities", ABSENT),
    ("Hypodense lesion in the liver.", "renal_hypodensities", SILENT),
    ("Coronary artery and aortic valvular calcifications.", "aortic_valve_calcification", PRESENT),
    ("Coronary artery and aortic valvular calcifications.", "coronary_calcification", PRESENT),
    ("Calcified aortic valve.", "aortic_valve_calcification", PRESENT),
    ("No aortic valve calcification.", "aortic_valve_calcification", ABSENT),
    ("Calcified abdominal aorta.", "aortic_valve_calcification", SILENT),
    ("Nonocclusive thrombus in the portal vein.", "thrombosis", PRESENT),
    ("The portal vein is patent.", "thrombosis", ABSENT),
    ("No evidence of deep venous thrombosis.", "thrombosis", ABSENT),
    ("Multiple hepatic metastases.", "metastatic_disease", PRESENT),
    ("No evidence of metastatic disease.", "metastatic_disease", ABSENT),
    ("Pancreas: Fatty atrophy.", "pancreatic_atrophy", PRESENT),
    ("Diffuse atrophy of the pancreas.", "pancreatic_atrophy", PRESENT),
    ("Pancreas: Normal.", "pancreatic_atrophy", ABSENT),
    ("Right renal atrophy. The pancreas is unremarkable.", "pancreatic_atrophy", ABSENT),
    ("Simple renal cysts bilaterally.", "renal_cyst", PRESENT),
    ("Kidneys: 2 cm cyst on the left.", "renal_cyst", PRESENT),
    ("Hepatic cyst.", "renal_cyst", SILENT),
    ("The kidneys are normal.", "renal_cyst", ABSENT),
    ("Diffuse osteopenia.", "osteopenia", PRESENT),
    ("The bones are demineralized.", "osteopenia", PRESENT),
    ("No osteopenia.", "osteopenia", ABSENT),
    ("Gallbladder: Surgically absent.", "surgically_absent_gallbladder", PRESENT),
    ("The gallbladder is surgically absent.", "surgically_absent_gallbladder", PRESENT),
    ("Status post cholecystectomy.", "surgically_absent_gallbladder", PRESENT),
    ("Gallbladder: Normal.", "surgically_absent_gallbladder", ABSENT),
    ("Infrarenal abdominal aortic aneurysm, measuring 4.2 cm.", "abdominal_aortic_aneurysm", PRESENT),
    ("Aneurysm of the infrarenal abdominal aorta.", "abdominal_aortic_aneurysm", PRESENT),
    ("No abdominal aortic aneurysm.", "abdominal_aortic_aneurysm", ABSENT),
    ("Splenic artery aneurysm.", "abdominal_aortic_aneurysm", SILENT),
    ("Thoracic aortic aneurysm.", "abdominal_aortic_aneurysm", SILENT),
    ("Anasarca.", "anasarca", PRESENT),
    ("Diffuse body wall edema.", "anasarca", PRESENT),
    ("No anasarca.", "anasarca", ABSENT),
    ("Small hiatal hernia.", "hiatal_hernia", PRESENT),
    ("Moderate prostatomegaly.", "prostatomegaly", PRESENT),
    ("The prostate is enlarged.", "prostatomegaly", PRESENT),
    ("The prostate is not enlarged.", "prostatomegaly", ABSENT),
    ("Prostate: Normal.", "prostatomegaly", ABSENT),
    ("Mild intrahepatic biliary ductal dilation.", "biliary_ductal_dilation", PRESENT),
    ("The common bile duct is dilated to 12 mm.", "biliary_ductal_dilation", PRESENT),
    ("No intra- or extrahepatic biliary ductal dilation.", "biliary_ductal_dilation", ABSENT),
    ("Dilated pancreatic duct.", "biliary_ductal_dilation", SILENT),
    ("Liver and biliary tree: Normal.", "biliary_ductal_dilation", ABSENT),
    ("Spleen: Splenomegaly.", "splenomegaly", PRESENT),
    ("Hepatosplenomegaly.", "splenomegaly", PRESENT),
    ("Hepatosplenomegaly.", "hepatomegaly", PRESENT),
    ("Spleen: Normal.", "splenomegaly", ABSENT),
    ("The spleen is enlarged, 15 cm.", "splenomegaly", PRESENT),
    ("The liver is enlarged and the spleen is normal.", "splenomegaly", ABSENT),
    ("The liver is enlarged and the spleen is normal.", "hepatomegaly", PRESENT),
    ("Negative for splenomegaly.", "splenomegaly", ABSENT),
    ("Large volume ascites.", "ascites", PRESENT),
    ("No ascites.", "ascites", ABSENT),
    ("Diffuse hepatic steatosis.", "hepatic_steatosis", PRESENT),
    ("Fatty infiltration of the liver.", "hepatic_steatosis", PRESENT),
    ("Liver and biliary tree: Normal.", "hepatic_steatosis", ABSENT),
    ("Pancreatic steatosis.", "hepatic_steatosis", SILENT),
    ("Compatible with acute uncomplicated appendicitis.", "appendicitis", PRESENT),
    ("No secondary signs of acute appendicitis.", "appendicitis", ABSENT),
    ("The appendix is normal.", "appendicitis", ABSENT),
    ("Multiple layering gallstones.", "gallstones", PRESENT),
    ("Cholelithiasis without cholecystitis.", "gallstones", PRESENT),
    ("No radiopaque gallstones.", "gallstones", ABSENT),
    ("Moderate left hydronephrosis.", "hydronephrosis", PRESENT),
    ("No renal calculi or hydronephrosis.", "hydronephrosis", ABSENT),
    ("High grade distal small bowel obstruction.", "bowel_obstruction", PRESENT),
    ("No evidence of bowel obstruction.", "bowel_obstruction", ABSENT),
    ("Small volume of free intraperitoneal air.", "free_air", PRESENT),
    ("No free fluid or air.", "free_air", ABSENT),
    ("No pneumoperitoneum.", "free_air", ABSENT),
    ("Compression fracture of L1.", "fracture", PRESENT),
    ("No acute fracture.", "fracture", ABSENT),
]  # fmt: skip


@pytest.mark.parametrize(("text", "name", "status"), CASES)
def test_status(text, name, status):
    assert extract(text, [name]) == {name: status}


def test_the_group_is_the_thirty_columns_of_the_table():
    assert len(set(MERLIN_FINDINGS)) == len(MERLIN_FINDINGS) == 30
    assert set(MERLIN_FINDINGS) <= set(FINDINGS)
    assert choose_findings(["merlin"])[0] == MERLIN_FINDINGS
    # Names of columns are names of findings, so that no table of names stands between.
    assert [finding_name(name) for name in MERLIN_FINDINGS] == list(MERLIN_FINDINGS)
    assert {name for _, name, _ in CASES} >= set(MERLIN_FINDINGS) - {
        "atelectasis", "cardiomegaly", "atherosclerosis", "pleural_effusion", "lymphadenopathy"
    }  # fmt: skip


def test_every_finding_is_read_and_its_prompts_are_read_as_what_they_say():
    for name in MERLIN_FINDINGS:
        prompts = prompts_of(name)
        assert all(extract(text, [name])[name] == PRESENT for text in prompts.positive), prompts
        denied = [extract(text, [name])[name] for text in prompts.negative]
        assert ABSENT in denied, prompts
        assert PRESENT not in denied, prompts
    assert statements({"surgically_absent_gallbladder": 1}) == ["There is prior cholecystectomy."]
