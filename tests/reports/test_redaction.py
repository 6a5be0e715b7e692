"""Quantities leave the text of a report, and what is left is a report."""

import re
import tomllib
from pathlib import Path

import pytest

from medclip_jax.reports.definitions import check_pattern
from medclip_jax.reports.numbers import agatston_score
from medclip_jax.reports.quantities import QuantityError, built_in, choose_quantities, read_quantities
from medclip_jax.reports.redaction import redact

CASES = tomllib.loads((Path(__file__).parent / "redactions.toml").read_text())
CALCIUM = [built_in()["calcium_score"]]


def after(text, quantities=CALCIUM):
    return redact(text, quantities).text


@pytest.mark.parametrize("text", CASES["gone"])
def test_a_sentence_that_only_states_the_score_goes(text):
    assert after(text) == ""
    assert after(f"Lungs are clear. {text} Heart size is normal.".replace(" Heart", "\nHeart")).split() == (
        ["Lungs", "are", "clear.", "Heart", "size", "is", "normal."]
    )


@pytest.mark.parametrize("text", CASES["same"])
def test_what_looks_like_it_stays_to_the_letter(text):
    assert redact(text, CALCIUM).passages == ()
    assert after(text) == text


@pytest.mark.parametrize(("text", "left"), CASES["changed"].items())
def test_a_sentence_that_says_more_stays_a_sentence(text, left):
    found = redact(text, CALCIUM)
    assert found.text == left
    assert {passage.quantity for passage in found.passages} == {"calcium_score"}
    assert after(found.text) == left  # and there is nothing more to take


def test_there_are_enough_sentences():
    assert sum(len(CASES[kind]) for kind in ("gone", "same", "changed")) >= 110


def test_an_independent_reader_of_scores_finds_none_afterwards():
    for text in (*CASES["gone"], *CASES["changed"]):
        assert not agatston_score(after(text).lower()), text


REPORT = """CLINICAL INFORMATION: Chest pain.
TECHNIQUE: Agatston calcium scoring with 3 mm slices, 120 kV, threshold 130 HU.
FINDINGS: Agatston score 312. Heart size is normal.
1. Mild coronary calcification.
2. A 6 mm nodule in the left lung.
IMPRESSION: Calcium score 312, 80th percentile for age and sex."""


def test_sections_are_told_apart():
    assert after(REPORT) == (
        "CLINICAL INFORMATION: Chest pain.\n"
        "TECHNIQUE: Agatston calcium scoring with 3 mm slices, 120 kV, threshold 130 HU.\n"
        "FINDINGS: Heart size is normal.\n"
        "1. Coronary calcification.\n"
        "2. A 6 mm nodule in the left lung."
    )


def test_a_value_in_the_technique_goes_where_it_is_said_to_be_one():
    text = "TECHNIQUE: Calcium score 12 rows detector. Agatston score: 40. FINDINGS: Clear lungs."
    assert after(text) == "TECHNIQUE: Calcium score 12 rows detector. FINDINGS: Clear lungs."


def test_a_table_of_vessels_goes_and_what_follows_stays():
    text = (
        "Vessel: Agatston score\nLM: 0\nLAD: 120.5\nRCA: 30\nTotal: 150\nLungs are clear.\nLAD stent patent."
    )
    left = after(text)
    assert not re.search(r"\d", left)
    assert "Lungs are clear.\nLAD stent patent." in left


def test_what_is_said_of_it_goes_too():
    assert after("Calcified plaques in the coronary arteries. It is severe in the LAD.") == (
        "Calcified plaques in the coronary arteries."
    )
    assert after("Agatston score 90. This is at the 70th percentile. The score is 45.") == ""


def test_points_in_quotes_and_broken_characters():
    text = '"Agatston score: 12"  "Emphysema"'
    assert "Emphysema" in after(text)
    assert "12" not in after(text)
    assert after("Agatston&nbsp;score: 12. Clear lungs.") == "Clear lungs."


def test_a_text_without_it_stays_to_the_letter():
    text = "  Lungs   clear.\n\n\nNo  calcified plaque.  "
    assert after(text) == text
    assert after("") == ""


def test_removed_words_are_marked():
    (passage,) = redact("There is a mild coronary calcification.", CALCIUM).passages
    assert passage.marked() == "There is a [-mild-] coronary calcification."


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("LVEF 45 %.", ""),
        ("LV ejection fraction is 30-35%.", ""),
        ("The heart is enlarged, with an ejection fraction of 28 %.", "The heart is enlarged."),
        (
            "Severely reduced left ventricular ejection fraction.",
            "Reduced left ventricular ejection fraction.",
        ),
        ("Mildly impaired systolic function.", "Impaired systolic function."),
        ("Ejection fraction is preserved.", "Ejection fraction is preserved."),
        ("EF was not measured; wall thickness 11 mm.", "EF was not measured; wall thickness 11 mm."),
    ],
)
def test_ejection_fractions(text, left):
    assert after(text, [built_in()["ejection_fraction"]]) == left


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("A 6 mm nodule in the left upper lobe.", "A nodule in the left upper lobe."),
        ("An 8 mm nodule.", "A nodule."),
        ("Nodule measuring 6 x 4 mm in the right lung.", "Nodule in the right lung."),
        ("There is a nodule (12 mm) in the lingula.", "There is a nodule in the lingula."),
        ("Pulmonary nodules of up to 7 mm in diameter.", "Pulmonary nodules."),
        ("A nodule with a diameter of 6.5 mm is seen.", "A nodule is seen."),
        ("The nodule has grown from 4 to 6 mm.", "The nodule has grown."),
        ("Millimetric nodules in both lungs.", "Nodules in both lungs."),
        ("A 15-mm-sized mass in the lower lobe.", "A mass in the lower lobe."),
        ("Nodules in both lungs. The largest measures 9 mm.", "Nodules in both lungs."),
        ("A nodule, and the aorta measures 41 mm.", "A nodule, and the aorta measures 41 mm."),
        ("Pleural effusion of 12 mm.", "Pleural effusion of 12 mm."),
    ],
)
def test_sizes_of_nodules(text, left):
    assert after(text, [built_in()["nodule_size"]]) == left


def test_several_quantities_in_one_report():
    text = "Agatston score 312. A 6 mm nodule. LVEF 45 %."
    found = redact(text, list(built_in().values()))
    assert found.text == "A nodule."
    assert [p.quantity for p in found.passages] == ["calcium_score", "ejection_fraction", "nodule_size"]


def test_the_built_in_patterns_are_quick_and_right():
    for quantity in built_in().values():
        for key in (
            "names",
            "values",
            "value_words",
            "lists",
            "patterns",
            "fragments",
            "degrees",
            "graded",
            "places",
        ):
            for pattern in getattr(quantity, key):
                check_pattern(quantity.name, key, f"(?i:{pattern})")


OWN = """
[bone_density]
about = "the density of vertebral bone"
words = ["bone density", "vertebral attenuation"]
values = ['\\d+(?: ?HU)?']
value_words = ["osteoporotic", "osteopenic"]
"""


def test_a_quantity_of_your_own(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text(OWN)
    quantities = choose_quantities(["calcium_score", str(file)])
    assert [q.name for q in quantities] == ["calcium_score", "bone_density"]
    assert after("Bone density of 92 HU at L1. Bone density is osteopenic. Clear.", quantities) == "Clear."
    restored = [type(q).from_json(q.to_json()) for q in quantities]
    assert restored == list(quantities)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "defines no quantity"),
        ("[a]\nwords = ['x']", "say what it is"),
        ("[a]\nabout = 'x'", "nothing says how reports state it"),
        ("[a]\nabout = 'x'\nnames = ['(']", "no regular expression"),
        ("[a]\nabout = 'x'\nnames = ['(a+)+b']", "takes more than"),
        ("[a]\nabout = 'x'\nname = ['b']", "Did you mean names"),
        ("[a]\nabout = 'x'\nwords = [1]", "no list of texts"),
        ("[a]\nabout = 'x'\nwords = ['b']\nremoves = 'all'", "neither statement nor value"),
        ("[A b]\nabout = 'x'", "no TOML"),
        ("['A b']\nabout = 'x'", "lower-case words"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_fix(tmp_path, text, said):
    file = tmp_path / "own.toml"
    file.write_text(text)
    with pytest.raises(QuantityError, match=said):
        read_quantities(file)


def test_an_unknown_quantity_is_refused_with_the_nearest():
    with pytest.raises(QuantityError, match="Did you mean calcium_score"):
        choose_quantities(["calcium_scores"])
    with pytest.raises(QuantityError, match="cannot read"):
        choose_quantities(["missing.toml"])
