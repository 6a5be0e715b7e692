"""Sentences and layouts of many hospitals, by kind: written for these tests, nobody's data."""

import csv
import sys
from pathlib import Path

import pytest

from medclip_jax.reports.anatomy import assign_sentences
from medclip_jax.reports.context import Assertion
from medclip_jax.reports.explanation import describe_reading, reading_to_json
from medclip_jax.reports.findings import extract, extract_detailed, read_report
from medclip_jax.reports.sentences import LONGEST_SENTENCE, split_sentences

with (Path(__file__).parent / "readings.csv").open(encoding="utf-8", newline="") as file:
    READINGS = [
        (row["kind"], row["text"], row["finding"], int(row["status"])) for row in csv.DictReader(file)
    ]


@pytest.mark.parametrize(("kind", "text", "name", "status"), READINGS)
def test_reading(kind, text, name, status):
    assert extract(text, [name]) == {name: status}


def test_every_kind_has_present_and_absent_findings():
    kinds = {kind for kind, *_ in READINGS}
    assert len(kinds) >= 9
    for kind in kinds - {"history and requests"}:
        assert {1, -1} <= {status for other, _, _, status in READINGS if other == kind}, kind


def test_an_addendum_corrects_what_was_said_before():
    text = "FINDINGS: Small pleural effusion. Cardiomegaly.\nADDENDUM: There is no pleural effusion."
    decisions = extract_detailed(text, ["pleural_effusion", "cardiomegaly"])
    assert decisions["pleural_effusion"].status == -1
    assert [evidence.section for evidence in decisions["pleural_effusion"].evidence] == [
        "findings",
        "addendum",
    ]
    assert decisions["cardiomegaly"].status == 1


def test_a_reading_explains_the_same_decisions_that_extract_gives():
    text = "HISTORY: emphysema.\nHEART: Not enlarged.\nIMPRESSION: Effusion in the left pleural space?"
    reading = read_report(text)
    assert {name: decision.status for name, decision in reading.decisions.items()} == extract(text)
    history, body, impression = reading.sections
    assert (history.name, history.read, history.sentences) == ("clinical_information", False, ())
    assert [sentence.text for sentence in body.sentences] == ["HEART: Not enlarged."]
    (evidence,) = impression.sentences[0].evidence["pleural_effusion"]
    assert evidence.assertion is Assertion.UNCERTAIN
    assert evidence.trigger == "?"
    assert evidence.sentence[evidence.start :].startswith(evidence.mention)


def test_explanations_in_words_and_as_json():
    reading = read_report("TECHNIQUE: CT.\nFINDINGS: No consolidation. Fine.", ["consolidation", "emphysema"])
    assert describe_reading(reading) == [
        "  TECHNIQUE (not read: technique)",
        "      CT.",
        "  FINDINGS",
        "    No consolidation.",
        '      consolidation: negated, "consolidation" by "no"',
        "    Fine.",
        "  Decisions",
        "      consolidation: absent",
    ]
    data = reading_to_json(reading)
    assert data["findings"]["consolidation"] == {"status": -1, "uncertain": False}
    assert data["findings"]["emphysema"] == {"status": 0, "uncertain": False}
    assert data["sections"][1]["sentences"][0]["mentions"] == [
        {"finding": "consolidation", "mention": "consolidation", "assertion": "negated", "cue": "no"}
    ]
    assert describe_reading(read_report(""))[-1].endswith("no finding is mentioned")


REPEATED = (
    "no cardiomegaly or ",
    " ",
    "\t",
    ".",
    "_",
    "x",
    "1",
    "no effusion, ",
    "heart: ",
    "NO PLEURAL\n",
    "It has resolved. ",
    "approx. ",
    "Comparison: x. ",
    "Signed by: x\n",
    "[ ] effusion ",
    "<p ",
    "cad-rads 1111 ",
    "agatston 0 ",
    '" A ',
    "1. A 2. B ",
    "effu-\n",
    "coronary plaque ",
    "previous ",
    "Clinical history and ",
    "increase ",
    "except ",
)


def _calls(function, *arguments):
    """How many Python and built-in functions a call runs: its work, whatever the machine."""
    count = 0

    def count_call(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(count_call)
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("unit", REPEATED)
def test_work_grows_with_the_length_of_a_text_and_no_faster(unit):
    names = ("cardiomegaly", "pleural_effusion", "coronary_calcification")
    short, long = (unit * (length // len(unit)) for length in (4000, 8000))
    extract(short, names)  # compiles what is compiled once
    once, twice = _calls(extract, short, names), _calls(extract, long, names)
    assert twice <= 2.2 * once + 200


@pytest.mark.parametrize("unit", REPEATED)
def test_no_pattern_sees_more_than_a_long_sentence(unit):
    text = unit * (20_000 // len(unit))
    sentences = split_sentences(text)
    assert all(len(sentence) <= LONGEST_SENTENCE for sentence in sentences)
    # A pattern that backtracks over the whole text would not come to an end here.
    names = ("cardiomegaly", "pulmonary_arterial_hypertension", "coronary_calcification", "lung_nodule")
    assert tuple(extract(text, names)) == names
    assign_sentences(text, ["heart"])


def test_long_text_without_an_end_is_cut_at_commas_and_loses_nothing():
    text = "no cyst, " * 400
    parts = split_sentences(text)
    assert len(parts) > 1
    assert "".join(parts).replace(" ", "") == text.replace(" ", "")
    assert all(part.endswith(",") for part in parts)
