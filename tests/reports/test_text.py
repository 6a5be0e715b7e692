"""Sentences, sections, statements, prompts and pathology vectors on sentences made up here."""

import math

import numpy as np
import pytest

from medclip_jax.reports.findings import (
    CARDIAC_FINDINGS,
    CT_RATE_COLUMNS,
    CT_RATE_FINDINGS,
    FINDINGS,
    PHANTOM_FINDINGS,
    extract,
)
from medclip_jax.reports.prompts import POSITIVE_SETS, TEMPLATES, describe_prompts, pair, prompts_of
from medclip_jax.reports.sections import HEADERS, clean, split_sections
from medclip_jax.reports.sentences import split_sentences
from medclip_jax.reports.statements import statements


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", []),
        (" ... ", []),
        ("One sentence", ["One sentence"]),
        ("A cyst of 3.5 x 2 cm. A node of 1.2cm.", ["A cyst of 3.5 x 2 cm.", "A node of 1.2cm."]),
        ("Lungs clear.Heart normal.", ["Lungs clear.", "Heart normal."]),
        ("The node is approx. 4 mm wide. See fig. 3.", ["The node is approx. 4 mm wide.", "See fig. 3."]),
        ("Effusion: no. The heart is large.", ["Effusion: no.", "The heart is large."]),
        ("In the lung window; no mass is seen.", ["In the lung window; no mass is seen."]),
        ('Clear lungs. " Small hernia " Old scar', ["Clear lungs.", "Small hernia", "Old scar"]),
        ("- Hernia\n- Scar\n\n• Cyst", ["Hernia", "Scar", "Cyst"]),
        ("1. Hernia. 2) Scar.\n3. Cyst of 2.5 mm.", ["Hernia.", "Scar.", "Cyst of 2.5 mm."]),
        (
            "A node in the right\nupper lobe of\n3 mm. Fine.",
            ["A node in the right upper lobe of 3 mm.", "Fine."],
        ),
        ("1. Hernia 2. Scar 3. Cyst", ["Hernia", "Scar", "Cyst"]),
        (
            "Cyst in segment 1. Scar in segment 2. Fine.",
            ["Cyst in segment 1.", "Scar in segment 2.", "Fine."],
        ),
        ("Is it a cyst? Yes!", ["Is it a cyst?", "Yes!"]),
        ("Seen on 03.05.2019 and stable.", ["Seen on 03.05.2019 and stable."]),
    ],
)
def test_sentences(text, sentences):
    assert split_sentences(text) == sentences


def test_sections_in_common_spellings():
    text = (
        "CT CHEST\nCLINICAL HISTORY: cough, fever\nTechnique: Not given.\nCOMPARISON: None.\n"
        "FINDINGS: Lungs are clear. Heart size: normal.\nIMPRESSION:\n1. Normal chest.\n2. No follow-up."
    )
    assert split_sections(text) == {
        "preamble": "CT CHEST",
        "clinical_information": "cough, fever",
        "findings": "Lungs are clear. Heart size: normal.",
        "impression": "1. Normal chest.\n2. No follow-up.",
    }


@pytest.mark.parametrize(
    "text",
    [
        "Findings: Clear. Impression: Fine.",
        "**Findings:** Clear.\n\n**Impression:** Fine.",
        "## Findings\nClear.\n## Impression\nFine.",
        "RESULTS - Clear.\nCONCLUSION - Fine.",
        "Findings_EN: Clear.\nImpressions_EN: Fine.",
        "1. FINDINGS:\r\nClear.\r\n2. OPINION:\r\nFine.",
    ],
)
def test_header_spellings(text):
    assert split_sections(text) == {"findings": "Clear.", "impression": "Fine."}


def test_every_listed_header_opens_its_section():
    for name, headers in HEADERS.items():
        for header in headers:
            assert split_sections(f"{header.upper()}: Some words.") == {name: "Some words."}


def test_report_without_headers_is_findings():
    assert split_sections("Lungs are clear. The findings are normal.") == {
        "findings": "Lungs are clear. The findings are normal."
    }


def test_section_that_comes_twice_is_joined():
    assert split_sections("Findings: A.\nImpression: B.\nFindings: C.")["findings"] == "A.\nC."


@pytest.mark.parametrize(
    "empty",
    [
        "",
        "  \n",
        None,
        math.nan,
        np.float64("nan"),
        "nan",
        "Not given.",
        "not provided",
        "N/A",
        "None.",
        "-",
        '""',
        ".",
    ],
)
def test_empty_reports(empty):
    assert clean(empty) == ""
    assert split_sections(empty) == {}


@pytest.mark.parametrize(
    "text", ["No effusion.", "None of the lobes is clear.", "Nodule.", "Not enlarged heart."]
)
def test_short_reports_are_not_empty(text):
    assert clean(text) == text


def test_statements_follow_the_mapping_and_take_silence_for_absence():
    found = {"pericardial_effusion": -1, "cardiomegaly": 1, "coronary_stenosis": 0}
    assert statements(found) == [
        "There is no pericardial effusion.",
        "There is cardiomegaly.",
        "There is no coronary stenosis.",
    ]


def test_prompts():
    assert pair("coronary_stenosis") == ("There is coronary stenosis.", "There is no coronary stenosis.")
    assert pair("cardiomegaly", "is_present") == ("Cardiomegaly is present", "Cardiomegaly is not present")
    with pytest.raises(KeyError, match="known: abdominal_aortic_aneurysm"):
        pair("cardiomegali")
    with pytest.raises(KeyError, match="there_is"):
        pair("cardiomegaly", "other")
    with pytest.raises(KeyError, match="unknown finding"):
        statements({"cardiomegali": 1})


def test_prompts_of_presence_alone():
    found = prompts_of("right_ventricular_dilation", "cmr_clip")
    assert found == (("Right ventricle is dilated", "Right ventricle is enlarged in size"), ())
    assert str(found) == '"Right ventricle is dilated" and 1 more'
    assert prompts_of("cardiomegaly", "cmr_clip") == (("There is cardiomegaly.",), ())
    for name, sentences in POSITIVE_SETS["cmr_clip"].items():
        for sentence in sentences:
            assert extract(sentence, [name]) == {name: 1}
    described = describe_prompts(["aortic_dilation", "cardiomegaly"], "cmr_clip", positive=True)
    assert described == '"There is X."; aortic_dilation: "Aortic root is ectatic" and 2 more'
    with pytest.raises(KeyError, match="known: there_is, is_present"):
        pair("cardiomegaly", "cmr_clip")


def test_every_finding_has_its_own_prompts():
    prompts = [pair(name, template) for template in TEMPLATES for name in FINDINGS]
    assert len({text for both in prompts for text in both}) == 2 * len(TEMPLATES) * len(FINDINGS)


def test_lists_of_findings():
    assert PHANTOM_FINDINGS[:7] == CARDIAC_FINDINGS
    assert len(PHANTOM_FINDINGS) == 11
    assert len(CT_RATE_FINDINGS) == len(set(CT_RATE_FINDINGS)) == len(CT_RATE_COLUMNS) == 18
    assert {*CT_RATE_FINDINGS, *PHANTOM_FINDINGS} < set(FINDINGS)
    assert all(name == finding.name for name, finding in FINDINGS.items())
