"""Embolism in sentences written for these tests, nobody's data; outcomes have no wording."""

import pytest

from medclip_jax.reports.findings import FINDINGS, INSPECT_FINDINGS, extract
from medclip_jax.reports.findings_file import choose_findings
from medclip_jax.reports.statements import statements

PRESENT, ABSENT, SILENT = 1, -1, 0
ANY, ACUTE, SUBSEGMENTAL = INSPECT_FINDINGS[:3]
CASES = [
    ("No evidence of pulmonary embolism.", ANY, ABSENT),
    ("No evidence of pulmonary embolism.", ACUTE, ABSENT),
    ("No evidence of pulmonary embolism.", SUBSEGMENTAL, ABSENT),
    ("No acute or chronic pulmonary embolism.", ACUTE, ABSENT),
    ("No PE.", ANY, ABSENT),
    ("Negative for pulmonary embolus.", ANY, ABSENT),
    ("Negative for pulmonary embolus.", ACUTE, ABSENT),
    ("Acute pulmonary emboli in the right lower lobe.", ANY, PRESENT),
    ("Acute pulmonary emboli in the right lower lobe.", ACUTE, PRESENT),
    ("Acute pulmonary emboli in the right lower lobe.", SUBSEGMENTAL, SILENT),
    ("Subsegmental pulmonary embolism in the lingula.", SUBSEGMENTAL, PRESENT),
    ("Subsegmental pulmonary embolism in the lingula.", ANY, PRESENT),
    ("Chronic pulmonary embolism.", ACUTE, SILENT),
    ("Filling defect in a subsegmental artery of the left lower lobe.", SUBSEGMENTAL, PRESENT),
    ("Filling defects in the segmental pulmonary arteries.", ANY, PRESENT),
    ("No filling defect in the pulmonary arteries.", ANY, ABSENT),
    ("Possible subsegmental PE.", SUBSEGMENTAL, PRESENT),
    ("PE protocol CT of the chest.", ANY, SILENT),
    ("Septic emboli.", ANY, SILENT),
    ("History of pulmonary embolism.", ANY, SILENT),
]


@pytest.mark.parametrize(("text", "name", "status"), CASES)
def test_status(text, name, status):
    assert extract(text, [name]) == {name: status}


def test_the_group():
    assert choose_findings(["inspect"])[0] == INSPECT_FINDINGS
    assert len(INSPECT_FINDINGS) == 10
    outcomes = INSPECT_FINDINGS[3:]
    assert not any(FINDINGS[name].is_read for name in outcomes)
    # What no report can state is not written as absent where it is not known.
    assert statements(dict.fromkeys(outcomes, 0)) == []
    assert statements({outcomes[0]: 1}) == ["There is death within 1 month."]
