"""The grammar: everything present is said, sections, and agreement with the rules that read reports."""

import re

import numpy as np

from medclip_jax.corpora.phantom import FINDINGS, phrases, reports
from medclip_jax.corpora.phantom.organs import ORGANS
from medclip_jax.reports.anatomy import assign_sentences, regions_of
from medclip_jax.reports.findings import extract
from medclip_jax.reports.sentences import split_sentences


def _draw(rng):
    """Labels with facts to go with them."""
    labels = {name: int(rng.choice([1, -1], p=[0.35, 0.65])) for name in FINDINGS}
    if 1 in (labels[n] for n in ("coronary_calcification", "aortic_calcification", "coronary_stenosis")):
        labels["atherosclerosis"] = 1
    measurements = {
        "agatston_score": rng.uniform(1, 900),
        "cac_grade": float(rng.integers(1, 5)),
        "cardiothoracic_ratio": rng.uniform(0.51, 0.66),
        "pericardial_effusion_mm": rng.uniform(5, 20),
        "pleural_effusion_mm": rng.uniform(8, 50),
        "pulmonary_artery_diameter_mm": rng.uniform(31, 40),
        "lung_nodule_mm": rng.uniform(5, 25),
        "coronary_stenosis_fraction": rng.uniform(0.55, 0.99),
    }
    places = {
        "vessel": rng.choice(list(phrases.VESSELS.values())),
        "side": rng.choice(["left", "right", "bilateral"]),
        "kind": rng.choice(["solid", "part-solid"]),
        "nodule_lobe": "left upper lobe",
        "consolidation_lobe": "right lower lobe",
    }
    severities = {name: float(rng.uniform(0.15, 1)) for name in FINDINGS}
    distractors = list(rng.choice(list(phrases.SEEN), 2, replace=False))
    return labels, reports.Facts(severities, measurements, places, distractors)


def test_rules_read_back_what_the_grammar_says():
    rng = np.random.default_rng(0)
    present, recovered, absent, invented = 0, 0, 0, 0
    for _ in range(200):
        labels, facts = _draw(rng)
        found = extract(reports.join_sections(reports.write_report(labels, facts, rng)), FINDINGS)
        for name, label in labels.items():
            present, recovered = present + (label == 1), recovered + (label == 1 and found[name] == 1)
            absent, invented = absent + (label != 1), invented + (label != 1 and found[name] == 1)
    assert recovered / present >= 0.98
    assert invented / absent <= 0.02


def test_every_phrase_is_read_as_meant():
    """No template is among the two percent."""
    rng = np.random.default_rng(1)
    for name in FINDINGS:
        _, facts = _draw(rng)
        for template in phrases.STATED[name]:
            sentence = reports._fill(template, name, facts, rng)
            assert extract(sentence, [name])[name] == 1, sentence
        for sentence in phrases.DENIED[name]:
            assert extract(sentence, [name])[name] == -1, sentence
    _, facts = _draw(rng)
    for template in (
        *phrases.UNRELATED,
        *phrases.NOTHING,
        *phrases.INCIDENTAL,
        *sum(phrases.SEEN.values(), ()),
    ):
        sentence = reports._fill(template, "", facts, rng)
        assert 1 not in extract(sentence, FINDINGS).values(), sentence


def test_not_assessable_is_never_mentioned():
    rng = np.random.default_rng(2)
    for _ in range(50):
        labels, facts = _draw(rng)
        labels["coronary_stenosis"] = 0
        text = " ".join(reports.write_report(labels, facts, rng).values()).lower()
        assert "stenosis" not in text


def test_absent_findings_are_often_omitted_and_texts_vary():
    rng = np.random.default_rng(3)
    texts, mentioned, absent = set(), 0, 0
    for _ in range(100):
        labels, facts = _draw(rng)
        sections = reports.write_report(labels, facts, rng)
        assert set(sections) == {"findings", "impression"}
        assert all(sections.values())
        assert not re.search(r"[{}\[\]|]|\bnan\b|  ", " ".join(sections.values()))
        texts.add(sections["findings"])
        found = extract(sections["findings"], FINDINGS)
        mentioned += sum(found[n] == -1 for n, v in labels.items() if v == -1)
        absent += sum(v == -1 for v in labels.values())
    assert len(texts) == 100
    assert 0.2 < mentioned / absent < 0.7


def test_impression_never_calls_a_sick_chest_normal():
    rng = np.random.default_rng(4)
    for _ in range(200):
        labels, facts = _draw(rng)
        impression = reports.write_report(labels, facts, rng)["impression"]
        if 1 in labels.values():
            assert not any(text in impression for text in phrases.NOTHING)


def test_reports_talk_of_the_organs_that_phantoms_have():
    """So that a system that needs text about organs trains on phantoms."""
    rng = np.random.default_rng(2)
    count, sentences, unplaced, described = 100, 0, 0, dict.fromkeys(ORGANS, 0)
    for _ in range(count):
        text = "\n".join(reports.write_report(*_draw(rng), rng).values())
        parts = split_sentences(text)
        sentences += len(parts)
        unplaced += sum(not regions_of(part) for part in parts)
        for organ in assign_sentences(text, tuple(ORGANS)):
            described[organ] += 1
    assert unplaced / sentences < 0.05
    assert sum(described.values()) / count > 10
    lobes = [organ for organ in ORGANS if organ.startswith("lung_")]
    assert min(described[organ] for organ in ("heart", "aorta", *lobes)) > 0.6 * count
