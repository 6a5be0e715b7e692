"""Names in the contexts in which reports name people, and numbers that could be somebody's."""

import pytest

from medclip_jax.reports.people import may_name_someone, without_people


@pytest.mark.parametrize(
    "text",
    [
        "Reported by Dr. Anna Schmidt. The heart is large.",
        "Reported by: anna",
        "Dr. med. Schmidt-Yılmaz reviewed it.",
        "DICTATED BY: SCHMIDT, ANNA",
        "Electronically signed by Anna B. Schmidt, MD",
        "Signed electronically by Prof. Dr. Schmidt",
        "Patient name: SCHMIDT^ANNA",
        "Patient: Anna van der Schmidt\nThe heart is large.",
        "Radiologist: O'Schmidt",
        "Mrs. Schmidt has a cough.",
        "Name: Anna Schmidt, age 60",
        "Herr Schmidt, Frau Anna Schmidt",
    ],
)
def test_names_are_left_out(text):
    left = without_people(text).lower()
    assert "schmidt" not in left
    assert "anna" not in left
    assert ("the heart is large" in left) == ("The heart is large" in text)


@pytest.mark.parametrize(
    "text",
    [
        "The heart is enlarged. No pericardial effusion; a mass of 12 mm in the right upper lobe.",
        "Findings: Heart size is normal. Impression: Normal.",
        "Patient is stable. The drain lies in the left hemithorax, which was drained.",
        "There is a nodule measured by the reader; the named vessel is patent.",
    ],
)
def test_other_texts_are_left_alone(text):
    assert without_people(text) == text


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        *(("12345", True), ("mrn4711", True), ("ab12cd34", True), ("90210123", True)),
        *(("2021", False), ("t12", False), ("512", False), ("covid19", False), ("heart", False)),
    ],
)
def test_numbers_of_people(word, expected):
    assert may_name_someone(word) == expected
