"""Impressions of cardiac MR: one to six sentences that state everything that is present."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from medclip_jax.corpora.cine import phrases
from medclip_jax.corpora.cine.patient import Patient
from medclip_jax.corpora.grammar import fill, pick

MOST = 6
"""Sentences of an impression."""


def write_impression(
    patient: Patient, labels: Mapping[str, int], measured: Mapping[str, float], rng: np.random.Generator
) -> str:
    """Compose an impression. What is present is stated; what is absent is denied where there is room left.

    Args:
        patient: kinds and places of what is found.
        labels: finding or diagnosis to 1 present, -1 absent.
        measured: what sentences may quote.
        rng: source of all choices.
    """
    count = int(rng.integers(1, MOST + 1))
    present = {name for name, value in labels.items() if value == 1}
    slots = _slots(patient, measured, rng)
    templates = _stated(patient, present, rng)
    if not present and rng.random() < 0.5:
        templates.append(pick(phrases.NOTHING, rng))
    denials = [pick(options, rng) for names, options in phrases.DENIED if present.isdisjoint(names)]
    if rng.random() < 0.3:
        denials.insert(0, pick(phrases.UNRELATED, rng))
    order = rng.permutation(len(denials))
    room = max(count - len(templates), 0 if templates else 1)
    stated = [fill(template, slots, rng) for template in templates]
    others = [fill(denials[i], slots, rng) for i in order[:room]]
    return " ".join(_join(stated, others, rng))


def _stated(patient: Patient, present: set[str], rng: np.random.Generator) -> list[str]:
    """Templates of everything that is present; the diagnosis first or last."""
    templates = []
    for side, options in (("left", phrases.LEFT), ("right", phrases.RIGHT)):
        state = (f"{side}_ventricular_dilation" in present, f"{side}_ventricular_dysfunction" in present)
        if any(state):
            templates.append(pick(options[state], rng))
    if "left_ventricular_hypertrophy" in present:
        templates.append(pick(phrases.HYPERTROPHY[patient.hypertrophy], rng))
    if "regional_wall_motion_abnormality" in present:
        templates.append(pick(phrases.MOTION, rng))
    if "late_gadolinium_enhancement" in present:
        templates.append(pick(phrases.SCAR[patient.scar.kind], rng))
    if "aortic_dilation" in present:
        templates.append(pick(phrases.AORTA, rng))
    if "pericardial_effusion" in present:
        templates.append(pick(phrases.EFFUSION, rng))
    templates = [templates[i] for i in rng.permutation(len(templates))]
    if patient.diagnosis:
        templates.insert(
            len(templates) if rng.random() < 0.6 else 0, pick(phrases.DIAGNOSIS[patient.diagnosis], rng)
        )
    return templates


def _join(stated: list[str], others: list[str], rng: np.random.Generator) -> list[str]:
    """All sentences in order, neighbors joined while there are too many."""
    sentences = stated + others
    while len(sentences) > MOST:
        at = int(rng.integers(len(sentences) - 1))
        second = sentences.pop(at + 1)
        if second[1].islower():
            second = second[0].lower() + second[1:]
        sentences[at] = f"{sentences[at].rstrip('.')}; {second}"
    return sentences


def _slots(patient: Patient, measured: Mapping[str, float], rng: np.random.Generator) -> dict[str, str]:
    def degree(value: float, mild: float, severe: float) -> str:
        """The word for a value between the mildest and the most severe one."""
        third = int(np.clip(3 * (value - mild) / (severe - mild), 0, 2))
        return pick(phrases.DEGREES[third], rng)

    scar = patient.scar
    place = scar.territory if scar is not None else ""
    words = {
        "degree": degree(measured["lv_end_diastolic_diameter_mm"], 58, 74),
        "weak": degree(measured["lv_ejection_fraction"], 48, 20),
        "right_weak": degree(measured["rv_ejection_fraction"], 43, 18),
    }
    effusion = measured["pericardial_effusion_mm"]
    return {
        **words,
        **{f"{name}|adverb": phrases.ADVERBS[word] for name, word in words.items()},
        "size": pick(phrases.SIZES[int(np.clip((effusion - 6) / 3.4, 0, 2))], rng),
        "ef": f"{measured['lv_ejection_fraction']:.0f}",
        "right_ef": f"{measured['rv_ejection_fraction']:.0f}",
        "diameter": f"{measured['lv_end_diastolic_diameter_mm']:.0f}",
        "wall": f"{measured['wall_thickness_mm']:.0f}",
        "root": f"{measured['aortic_root_mm']:.0f}",
        "effusion": f"{effusion:.0f}",
        "percent": f"{max(measured['scar_percent'], 1):.0f}",
        "scar_artery": phrases.ARTERIES.get(place, ""),
        "scar_wall": pick(phrases.WALLS.get(place, ("",)), rng),
        "still_artery": phrases.ARTERIES.get(patient.territory, ""),
        "still_wall": pick(phrases.WALLS.get(patient.territory, ("",)), rng),
    }
