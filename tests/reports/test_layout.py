"""Text as it leaves hospital systems: characters, lines, titles, boxes, numbers."""

import pytest

from medclip_jax.reports.cleaning import clean_text, join_wrapped_lines, normalize
from medclip_jax.reports.headers import is_region, section_of
from medclip_jax.reports.numbers import READERS
from medclip_jax.reports.sections import cut_sections, split_sections
from medclip_jax.reports.templates import resolve_boxes, split_statements


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("A.\r\nB.\rC.", "A.\nB.\nC."),
        (r"A.\nB.\r\nC.\.br\D.", "A.\nB.\nC.\nD."),
        ("A._x000D_\nB.", "A.\n\nB."),
        ("<p>A &amp; B</p><b>C</b>", "\nA & B\n C "),
        ("&lt;br&gt;A", "\nA"),
        ("CTR <0.5 and >0.4", "CTR <0.5 and >0.4"),
        ("e\ufb00usion and \ufb01brosis", "effusion and fibrosis"),
        ("effu\u00adsion, ca\u200bva", "effusion, cava"),
        ("it isnâ€™t â€“ 5 Âµm", "it isn’t – 5 µm"),
        ("â is a letter", "â is a letter"),
        ("it isn\ufffdt", "it isn't"),
        ("A\xa0B", "A B"),
        ("Effusion ...... none", "Effusion : none"),
        ("Heart\tNormal", "Heart: Normal"),
    ],
)
def test_clean_text(raw, text):
    assert clean_text(raw) == text
    assert clean_text(text) == text


@pytest.mark.parametrize(
    ("lines", "joined"),
    [
        ("A node in the\nRight lobe", "A node in the Right lobe"),
        ("No effusion\nCardiomegaly", "No effusion\nCardiomegaly"),
        ("effu-\nsion, ground-\nglass", "effusion, ground-glass"),
        ("THERE IS NO PLEURAL\nEFFUSION.", "THERE IS NO PLEURAL EFFUSION."),
        ("NO EFFUSION\nCARDIOMEGALY", "NO EFFUSION\nCARDIOMEGALY"),
        ("heart: normal\nlungs: clear", "heart: normal\nlungs: clear"),
        ("Compared to the prior\nstudy: larger", "Compared to the prior study: larger"),
        ("history: cough\nfindings: clear", "history: cough\nfindings: clear"),
        ("Effusion:\nNone", "Effusion: None"),
        ("A\n- b\n- c", "A\n- b\n- c"),
    ],
)
def test_wrapped_lines(lines, joined):
    assert join_wrapped_lines(lines) == joined
    assert join_wrapped_lines(joined) == joined


def test_normalize():
    assert normalize("There isn’t  any OEDEMA – it wasn't visualised") == (
        "there is not any edema - it was not visualized"
    )
    assert normalize("Haemothorax; oesophageal tumour of 5 centimetres can't be seen") == (
        "hemothorax; esophageal tumor of 5 centimeters cannot be seen"
    )
    assert normalize("the aneurysm and the michael") == "the aneurysm and the michael"


@pytest.mark.parametrize(
    ("title", "section"),
    [
        ("PROVIDED CLINICAL HISTORY", "clinical_information"),
        ("Reason for this examination", "clinical_information"),
        ("Clinical Hx", "clinical_information"),
        ("Findings/Impression", "findings"),
        ("IMPRESSION AND PLAN", "impression"),
        ("Technique and comparison", "comparison"),
        ("CT chest findings", "findings"),
        ("Final report", "findings"),
        ("Contrast", "technique"),
        ("Addendum", "addendum"),
        ("comparison shows", None),
        ("Chest", None),
        ("The study", "examination"),
    ],
)
def test_titles(title, section):
    assert section_of(title) == section


def test_regions_as_labels():
    assert all(map(is_region, ("LUNGS", "Heart/Pericardium", "Lungs and pleura", "Coronary arteries")))
    assert not any(map(is_region, ("Pleural effusion", "Right", "Upper", "Impression", "")))


@pytest.mark.parametrize(
    ("report", "sections"),
    [
        ("TECHNIQUE: CT.\nLUNGS: Clear.\nHEART: Large.",
         {"technique": "CT.", "findings": "LUNGS: Clear.\nHEART: Large."}),
        ("Reason for referral: cough.\nLungs are clear.\nImpression: Normal.",
         {"clinical_information": ["Reason for referral", "cough."][1], "findings": "Lungs are clear.",
          "impression": "Normal."}),
        ("Hx: cough. Lungs are clear.", {"clinical_information": "cough.", "findings": "Lungs are clear."}),
        ("FINDINGS: A. Comparison: larger. B.", {"findings": "A.\nB.", "comparison": "larger."}),
        ("HISTORY: cough FINDINGS: Clear IMPRESSION: Fine",
         {"clinical_information": "cough", "findings": "Clear", "impression": "Fine"}),
        ("FINDINGS: A.\nDictated by: Dr. Port\nIMPRESSION: B.", {"findings": "A.", "impression": "B."}),
        ("FINDINGS The heart is large.", {"findings": "The heart is large."}),
        ("CT CHEST\n\nHISTORY: cough\n\nThe heart is large.",
         {"preamble": "CT CHEST", "clinical_information": "cough", "findings": "The heart is large."}),
        ("CLINICAL HISTORY: " + "A long story. " * 60 + "\nFINDINGS: Clear.",
         {"clinical_information": ("A long story. " * 60).strip(), "findings": "Clear."}),
    ],
)  # fmt: skip
def test_sections_of_other_styles(report, sections):
    assert split_sections(report) == sections


def test_names_and_signatures_are_parts_of_no_section():
    parts = cut_sections("FINDINGS: A. Signed by Dr. Stent\nB.")
    assert [(part.name, part.text, part.read) for part in parts] == [
        ("findings", "A.", True),
        ("administrative", "Signed by Dr. Stent\nB.", False),
    ]


@pytest.mark.parametrize(
    ("line", "written"),
    [
        ("No boxes", "No boxes"),
        ("Effusion: [ ] none [x] mild [ ] severe", "Effusion: mild."),
        ("Effusion: [ ] none [ ] mild", ""),
        ("Effusion: yes [ ] no [x]", "Effusion: no."),
        ("[x] Effusion [ ] Nodule", "Effusion. Nodule: absent."),
        ("[ ] No effusion", ""),
        ("☑ Effusion", "Effusion."),
        ("Effusion: [x]", "Effusion: present."),
        ("Effusion [ ]", "Effusion: absent."),
    ],
)
def test_boxes(line, written):
    assert resolve_boxes(line) == written


def test_labels_hold_to_the_end_of_their_line_or_of_their_block():
    text = "PLEURA: Clear. Small effusion.\nFine.\nHEART:\nLarge.\nNo effusion.\n\nFine."
    assert [(statement.text, statement.topic) for statement in split_statements(text)] == [
        ("PLEURA: Clear.", ""),
        ("Small effusion.", "pleura"),
        ("Fine.", ""),
        ("HEART:", ""),
        ("Large.", "heart"),
        ("No effusion.", "heart"),
        ("Fine.", ""),
    ]


@pytest.mark.parametrize(
    ("reader", "text", "exceeds"),
    [
        ("cardiothoracic_ratio", "ctr 0.58", [True]),
        ("cardiothoracic_ratio", "cardiothoracic ratio of 45 %", [False]),
        ("cardiothoracic_ratio", "ctr > 0.5", [True]),
        ("cardiothoracic_ratio", "ctr does not exceed 0.5", [False]),
        ("cardiothoracic_ratio", "ctr > 0.4", []),
        ("cardiothoracic_ratio", "ctr in 2020", []),
        ("pulmonary_trunk", "main pulmonary artery 3.4 cm", [True]),
        ("pulmonary_trunk", "diameter of the pulmonary trunk: 28 mm", [False]),
        ("pulmonary_trunk", "mass of 45 mm abutting the main pulmonary artery", []),
        ("pulmonary_trunk", "embolism in the main pulmonary artery over 35 mm", []),
        ("pulmonary_trunk", "main pulmonary artery, wall 3.5 mm", []),
        ("agatston_score", "agatston score lm 0, lad 120, total 120", [True]),
        ("agatston_score", "agatston score: lm 0, lad 0, rca 0", [False]),
        ("agatston_score", "calcium score of zero", [False]),
        ("agatston_score", "calcium score 1,250", [True]),
        ("agatston_score", "agatston score 0 (previous 12)", [False]),
        ("agatston_score", "calcium score at the 80th percentile", []),
        ("cad_rads", "cad-rads 2.0: 0", [False]),
        ("cad_rads", "cad-rads 4a/p3", [True]),
        ("cad_rads", "cad-rads 2.0: n", []),
        ("stenosis_percent", "0 % stenosis of the lad", [False]),
        ("stenosis_percent", "50 % stenosis of the lad", []),
    ],
)
def test_numbers(reader, text, exceeds):
    assert [found.exceeds for found in READERS[reader](text)] == exceeds
