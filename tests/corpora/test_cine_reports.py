"""Impressions of the beating-heart phantoms: everything present is said, nothing else is claimed."""

import re

import numpy as np
import pytest

from medclip_jax.corpora.cine import DIAGNOSES, FINDINGS, PRESETS, phrases
from medclip_jax.corpora.cine.generate import label, measure
from medclip_jax.corpora.cine.patient import draw_patient
from medclip_jax.corpora.cine.reports import write_impression
from medclip_jax.reports.findings import extract


def _impressions(count):
    for number in range(count):
        rng = np.random.default_rng(number)
        patient = draw_patient(rng, PRESETS["demo" if number % 2 else "independent"])
        measured = measure(patient)
        labels = label(patient, measured)
        yield patient, labels, measured, write_impression(patient, labels, measured, rng)


@pytest.fixture(scope="module")
def impressions():
    return list(_impressions(500))


def test_rules_read_back_what_is_there_and_nothing_else(impressions):
    names = (*FINDINGS, *DIAGNOSES)
    for _, labels, _, text in impressions[:200]:
        found = extract(text, names)
        assert {name for name in names if found[name] == 1} == {
            name for name in names if labels[name] == 1
        }, text


def test_denials_are_read_as_such():
    for names, options in phrases.DENIED:
        for sentence in options:
            found = extract(sentence.format(ef=65), FINDINGS)
            assert {name for name in FINDINGS if found[name] == -1} >= set(names), sentence
            assert 1 not in found.values(), sentence
    for sentence in (*phrases.NOTHING, *phrases.UNRELATED):
        assert 1 not in extract(sentence, (*FINDINGS, *DIAGNOSES)).values(), sentence


def test_one_to_six_sentences_without_leftovers(impressions):
    counts = set()
    for _, _, _, text in impressions:
        assert not re.search(r"[{}\[\]|]|\bnan\b|  |\.\.|\( ", text), text
        assert all(part[0].isupper() for part in re.split(r"(?<=[a-z)%]\.) ", text)), text
        counts.add(len(re.findall(r"(?<=[a-z)%])\.(?= |$)", text)))
    assert counts == {1, 2, 3, 4, 5, 6}
    assert len({text for *_, text in impressions}) > 470


def test_measurements_are_quoted_as_measured(impressions):
    quoted = 0
    for _, _, measured, text in impressions:
        for pattern, name in (
            (r"LVEF (\d+) %", "lv_ejection_fraction"),
            (r"RVEF (\d+) %", "rv_ejection_fraction"),
            (r"oot\D*?(\d+) mm", "aortic_root_mm"),
        ):
            for number in re.findall(pattern, text):
                quoted += 1
                assert float(number) == pytest.approx(measured[name], abs=0.51)
    assert quoted > 300


def test_places_are_those_of_the_patient(impressions):
    for patient, _, _, text in impressions:
        named = {
            key
            for part in re.split(r"\. |; ", text)
            for key, artery in phrases.ARTERIES.items()
            if f"{artery} territory" in part and "motion" in part
        }
        assert named <= {patient.territory}
