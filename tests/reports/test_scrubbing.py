"""Personal data is replaced where it is found, and findings are not."""

import sys

import pytest

from medclip_jax.reports.scrubbing import PATTERNS, ScrubError, scrubber

spacy = pytest.importorskip("spacy", reason="pip install 'medclip-jax[scrub]'")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Compared with the CT dated 12.03.2021.", "Compared with the CT dated [DATE]."),
        ("CT of 2021-03-12 and of March 3, 2020.", "CT of [DATE] and of [DATE]."),
        ("Prior study from 5 May 2018.", "Prior study from [DATE]."),
        ("Reported by Dr. Anna Schmidt.", "Reported by Dr. [PERSON]."),
        ("Signed by: J. Miller", "Signed by: [PERSON]"),
        ("Patient name: John Doe\nClear lungs.", "Patient name: [PERSON]\nClear lungs."),
        ("MRN: 4711123. Accession number AC-90210.", "MRN: [ID]. Accession number [ID]."),
        ("Call 212-555-0198.", "Call [PHONE]."),
        ("Questions to ct@hospital.org or www.hospital.org/ct.", "Questions to [EMAIL] or [URL]"),
        ("A 94-year-old woman.", "A [AGE]-year-old woman."),
    ],
)
def test_what_is_found_is_replaced_by_its_kind(text, clean):
    found = scrubber()(text)
    assert found.text == clean
    assert sum(found.counts.values()) == clean.count("[")


@pytest.mark.parametrize(
    "text",
    [
        "A 5.3 x 4 mm nodule is seen in series 3 image 129.",
        "Agatston score 312, LAD 120, RCA 30.",
        "The main pulmonary artery measures 31 mm; cardiothoracic ratio 0.52.",
        "Kerley B lines, Fleischner 2017, Lung-RADS 2, T12 vertebra.",
        "Findings consistent with Monod sign at 10/25 of the segment.",
        "A 72-year-old man with 120 kV and 100-300 mAs.",
        "",
    ],
)
def test_findings_stay_to_the_letter(text):
    assert scrubber()(text).text == text


def test_a_model_of_your_own_names_people_and_places(tmp_path):
    language = spacy.blank("en")
    ruler = language.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": "PERSON", "pattern": "Alice"}, {"label": "GPE", "pattern": "Ankara"}])
    language.to_disk(tmp_path / "names")
    found = scrubber(str(tmp_path / "names"))("Alice came from Ankara on 12.03.2021.")
    assert found.text == "[PERSON] came from [PLACE] on [DATE]."


def test_a_model_that_is_not_there_is_refused_with_the_fix():
    with pytest.raises(ScrubError, match=f"write --scrub {PATTERNS}"):
        scrubber("en_core_web_none")


def test_without_presidio_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    monkeypatch.setitem(sys.modules, "presidio_analyzer.predefined_recognizers", None)
    scrubber.cache_clear()
    with pytest.raises(ScrubError, match=r"pip install 'medclip-jax\[scrub\]'"):
        scrubber()
    scrubber.cache_clear()
