"""A grammar of radiology reports: what is present is said, what is absent often is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medclip_jax.corpora.grammar import fill, pick
from medclip_jax.corpora.phantom import phrases

LENGTH = (450, 1250)
"""Range of the characters aimed at, drawn before the content."""


@dataclass(frozen=True)
class Facts:
    """What the sentences of a report may name.

    Attributes:
        severities: finding to severity in [0, 1].
        measurements: as in `Phantom.measurements`.
        places: "vessel", "side", "kind", "nodule_lobe", "consolidation_lobe".
        distractors: keys of `phrases.SEEN`.
    """

    severities: Mapping[str, float]
    measurements: Mapping[str, float]
    places: Mapping[str, str]
    distractors: Sequence[str] = ()


def _fill(template: str, name: str, facts: Facts, rng: np.random.Generator) -> str:
    """Choose among the template's alternatives and fill its slots."""
    severity, m = facts.severities.get(name, 0.0), facts.measurements
    third = min(int(severity * 3), 2)
    degree = pick(phrases.DEGREES[third], rng)
    calcium = phrases.CALCIUM[max(int(m.get("cac_grade", 1)), 1) - 1]
    slots = {
        "degree": degree,
        "degree|adverb": phrases.ADVERBS[degree],
        "size": pick(phrases.SIZES[third], rng),
        "calcium": pick(calcium, rng),
        "number": str(int(rng.integers(4, 15))),
        **facts.places,
    }
    numbers = {
        "score": ("agatston_score", "{:.0f}"),
        "ratio": ("cardiothoracic_ratio", "{:.2f}"),
        "pericardial": ("pericardial_effusion_mm", "{:.0f}"),
        "pleural": ("pleural_effusion_mm", "{:.0f}"),
        "trunk": ("pulmonary_artery_diameter_mm", "{:.0f}"),
        "nodule": ("lung_nodule_mm", "{:.0f}"),
    }
    slots |= {slot: form.format(m[key]) for slot, (key, form) in numbers.items() if key in m}
    share = m.get("coronary_stenosis_fraction", float("nan"))
    slots["stenosis"] = f"{5 * round(20 * share)}" if np.isfinite(share) else ""
    return fill(template, slots, rng)


def _denials(absent: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Sentences that deny about half of the absent findings, some two at a time."""
    chosen = {name for name in absent if rng.random() < 0.5}
    sentences = []
    for names, options in phrases.DENIED_TOGETHER:
        if chosen.issuperset(names) and rng.random() < 0.6:
            sentences.append(pick(options, rng))
            chosen -= set(names)
    return sentences + [pick(phrases.DENIED[name], rng) for name in absent if name in chosen]


def write_report(
    labels: Mapping[str, int], facts: Facts, rng: np.random.Generator, length: tuple[int, int] = LENGTH
) -> dict[str, str]:
    """Compose the sections "findings" and "impression".

    Every present finding is stated in the findings section, and most again in the impression. Denials of
    absent findings, normal sentences and distractors fill the text up to a number of characters that was
    drawn first, so that the length says nothing of the findings.

    Args:
        labels: finding to 1 present, -1 absent, 0 not assessable (never mentioned).
        facts: what sentences may name.
        rng: source of all choices.
        length: range of the characters aimed at.
    """
    target = rng.uniform(*length)
    present = [name for name, value in labels.items() if value == 1]
    absent = [name for name, value in labels.items() if value == -1]
    stated = [_fill(pick(phrases.STATED[name], rng), name, facts, rng) for name in present]
    summed = [name for name in present if rng.random() < 0.85] or present
    impression = [_fill(pick(phrases.SUMMED[name], rng), name, facts, rng) for name in summed]
    if not impression:
        impression = [pick(phrases.NOTHING, rng)]
    if rng.random() < 0.3:
        impression.append(pick(phrases.INCIDENTAL, rng))
    seen = [pick(phrases.SEEN[name], rng) for name in facts.distractors if rng.random() < 0.7]
    fill = _denials(absent, rng) + seen
    fill += [phrases.UNRELATED[i] for i in rng.permutation(len(phrases.UNRELATED))[: len(fill) + 8]]
    count = sum(map(len, stated)) + sum(map(len, impression))
    for i in rng.permutation(len(fill)):
        if count >= target:
            break
        sentence = _fill(fill[i], "", facts, rng)
        stated.append(sentence)
        count += len(sentence)
    stated = [stated[i] for i in rng.permutation(len(stated))] or ["The thorax is unremarkable."]
    impression = [impression[i] for i in rng.permutation(len(impression))]
    if rng.random() < 0.3:
        impression = [f"{n}. {line}" for n, line in enumerate(impression, start=1)]
    return {"findings": " ".join(stated), "impression": " ".join(impression)}


def join_sections(sections: Mapping[str, str]) -> str:
    """The full report, with its section headings."""
    return "\n".join(f"{name.upper()}: {text}" for name, text in sections.items())
