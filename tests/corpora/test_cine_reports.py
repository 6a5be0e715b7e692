"""Impressions of the beating-heart phantoms: everything present is said, nothing else is claimed."""

import re

import numpy as np
import pytest

from medclip_jax.corpora.cine import PRESETS, phrases
from medclip_jax.corpora.cine.generate import label, measure
from medclip_jax.corpora.cine.patient import draw_patient
from medclip_jax.corpora.cine.reports import write_impression

SAID = {
    "left_ventricular_dysfunction": r"(left ventric|LVEF).*(dysfunction|reduced)|reduced at",
    "right_ventricular_dysfunction": r"(right ventric|RVEF).*(dysfunction|reduced)",
    "left_ventricular_dilation": r"left ventric.*(dilat|enlarged)|dilated left",
    "right_ventricular_dilation": r"right ventric.*(dilat|enlarged)|dilated right",
    "left_ventricular_hypertrophy": r"hypertrophy|thickened",
    "late_gadolinium_enhancement": r"enhancement|scar",
    "regional_wall_motion_abnormality": r"wall motion abnormality|akine",
    "aortic_dilation": r"root.*(ectatic|dilat)|dilated aortic root",
    "pericardial_effusion": r"pericardial effusion",
    "hypertrophic_cardiomyopathy": r"hypertrophic cardiomyopathy",
    "ischemic_cardiomyopathy": r"\bischemic cardiomyopathy",
    "nonischemic_cardiomyopathy": r"nonischemic (dilated )?cardiomyopathy",
    "cardiac_amyloidosis": r"amyloidosis",
}


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


def sentences(text):
    return [part for part in re.split(r"(?<=\.) |; ", text) if part]


def test_everything_present_is_said_and_nothing_absent(impressions):
    denial = re.compile(r"^(no|normal|there (is|are) no)\b|\bnot\b|\bis normal\b", re.IGNORECASE)
    for _, labels, _, text in impressions:
        positive = [part for part in sentences(text) if not denial.search(part)]
        for name, pattern in SAID.items():
            said = any(re.search(pattern, part, re.IGNORECASE) for part in positive)
            assert said == (labels[name] == 1), (name, labels[name], text)


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
            for part in sentences(text)
            for key, artery in phrases.ARTERIES.items()
            if f"{artery} territory" in part and "motion" in part
        }
        assert named <= {patient.territory}
