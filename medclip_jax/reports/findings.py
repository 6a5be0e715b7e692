"""Findings from report text by rules: present, absent or not mentioned."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from medclip_jax.reports.context import Assertion, Sentence
from medclip_jax.reports.sections import split_sections
from medclip_jax.reports.sentences import split_sentences
from medclip_jax.reports.vocabulary import (
    CARDIAC_FINDINGS,
    CT_RATE_COLUMNS,
    CT_RATE_FINDINGS,
    FINDINGS,
    PHANTOM_FINDINGS,
    Finding,
    Measurement,
)

__all__ = [
    "CARDIAC_FINDINGS",
    "CT_RATE_COLUMNS",
    "CT_RATE_FINDINGS",
    "FINDINGS",
    "PHANTOM_FINDINGS",
    "Decision",
    "Evidence",
    "Finding",
    "Measurement",
    "extract",
    "extract_detailed",
]

UNCERTAIN_MEANINGS = {"present": 1, "absent": -1, "unknown": 0}
"""How a finding is counted whose only mentions are uncertain."""

_NOT_READ = frozenset({"clinical_information", "technique", "comparison", "examination"})
"""Sections that say why and how the scan was made, not what it shows."""
_LONGEST_REQUEST = 400
"""Characters up to which such a section is always believed to be one."""


@dataclass(frozen=True)
class Evidence:
    """One mention of a finding.

    Attributes:
        sentence: the sentence, in lower case.
        mention: the words that were recognised.
        assertion: how they are meant.
        trigger: the words that made it so, "" where none did.
    """

    sentence: str
    mention: str
    assertion: Assertion
    trigger: str


@dataclass(frozen=True)
class Decision:
    """What a report says about one finding.

    Attributes:
        status: 1 present, -1 absent, 0 not mentioned.
        uncertain: no mention is definite; `status` is then what the caller asked uncertainty to mean.
        evidence: every mention, in the report's order.
    """

    status: int
    uncertain: bool
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True)
class _Rules:
    patterns: re.Pattern | None
    together: tuple[tuple[re.Pattern, re.Pattern], ...]
    implied: tuple[tuple[re.Pattern, re.Pattern], ...]
    normal: re.Pattern | None
    excluded: re.Pattern | None
    measurements: tuple[tuple[re.Pattern, float], ...]


@lru_cache(maxsize=256)
def _compile(finding: Finding) -> _Rules:
    def either(patterns: tuple[str, ...]) -> re.Pattern | None:
        return re.compile("|".join(f"(?:{pattern})" for pattern in patterns)) if patterns else None

    return _Rules(
        patterns=either(finding.patterns),
        together=tuple((re.compile(core), re.compile(place)) for core, place in finding.together),
        implied=tuple((re.compile(core), re.compile(place)) for core, place in finding.implied),
        normal=either(finding.normal),
        excluded=either(finding.excluded),
        measurements=tuple((re.compile(rule.pattern), rule.above) for rule in finding.measurements),
    )


def extract(
    text: str, findings: Iterable[str] = CT_RATE_FINDINGS, *, uncertain: str = "present"
) -> dict[str, int]:
    """Read the findings off a report.

    Args:
        text: a report or a section of one; "" gives 0 everywhere. Where there are section headers, what
            stands under clinical information, technique, comparison and examination is not read.
        findings: names from `FINDINGS`.
        uncertain: what a finding with only uncertain mentions counts as: "present", "absent" or "unknown".

    Returns:
        Name to 1 present, -1 absent, 0 not mentioned, in the order of `findings`.

    Raises:
        KeyError: an unknown finding.
        ValueError: an unknown `uncertain`.
    """
    decisions = extract_detailed(text, findings, uncertain=uncertain)
    return {name: decision.status for name, decision in decisions.items()}


def extract_detailed(
    text: str, findings: Iterable[str] = CT_RATE_FINDINGS, *, uncertain: str = "present"
) -> dict[str, Decision]:
    """Read the findings off a report and keep the sentence and the words behind each decision.

    One definite mention makes a finding present, whatever is denied elsewhere: "no effusion on the right"
    does not undo "effusion on the left". Mentions as history or hypothesis decide nothing.

    Args and errors as in `extract`.

    Returns:
        Name to decision, in the order of `findings`.
    """
    if uncertain not in UNCERTAIN_MEANINGS:
        raise ValueError(f"uncertain must be one of {', '.join(UNCERTAIN_MEANINGS)}, not {uncertain!r}")
    names = list(findings)
    unknown = [name for name in names if name not in FINDINGS]
    if unknown:
        raise KeyError(f"unknown findings {', '.join(unknown)}; known: {', '.join(sorted(FINDINGS))}")
    sentences = [Sentence(sentence) for part in _parts_to_read(text) for sentence in split_sentences(part)]
    decisions = {}
    for name in names:
        rules = _compile(FINDINGS[name])
        evidence = tuple(found for sentence in sentences for found in _mentions(sentence, rules))
        decisions[name] = _decide(evidence, UNCERTAIN_MEANINGS[uncertain])
    return decisions


def _parts_to_read(text: str) -> list[str]:
    sections = split_sections(text)
    read = [content for name, content in sections.items() if name not in _NOT_READ]
    # A report without a findings header may run on after "Technique: ..."; then that part is its body.
    longest = max(_LONGEST_REQUEST, sum(map(len, read)))
    return [content for name, content in sections.items() if name not in _NOT_READ or len(content) > longest]


def _decide(evidence: tuple[Evidence, ...], uncertain_status: int) -> Decision:
    meanings = {found.assertion for found in evidence}
    if Assertion.AFFIRMED in meanings:
        return Decision(1, False, evidence)
    if Assertion.UNCERTAIN in meanings:
        return Decision(uncertain_status, True, evidence)
    return Decision(-1 if Assertion.NEGATED in meanings else 0, False, evidence)


def _mentions(sentence: Sentence, rules: _Rules) -> list[Evidence]:
    text = sentence.text
    found: list[Evidence] = []
    blocked = [match.span() for match in rules.excluded.finditer(text)] if rules.excluded else []

    def add(start: int, end: int, deniable: bool = True) -> None:
        if any(start < stop and begin < end for begin, stop in blocked):
            return
        judgement = sentence.judge(start, end)
        if deniable or judgement.assertion is not Assertion.NEGATED:
            found.append(Evidence(text, text[start:end], judgement.assertion, judgement.trigger))

    if rules.normal:
        for match in rules.normal.finditer(text):
            judgement = sentence.judge(*match.span())
            if judgement.assertion is Assertion.AFFIRMED:
                found.append(Evidence(text, match.group(), Assertion.NEGATED, match.group()))
                blocked.append(match.span())
    for pattern, above in rules.measurements:
        for match in pattern.finditer(text):
            value = float(match["value"].replace(",", "."))
            if match.groupdict().get("unit") == "cm":
                value *= 10
            assertion = Assertion.AFFIRMED if value > above else Assertion.NEGATED
            found.append(Evidence(text, match.group(), assertion, match.group()))
            blocked.append(match.span())
    if rules.patterns:
        for match in rules.patterns.finditer(text):
            add(*match.span())
    for pairs, deniable in ((rules.together, True), (rules.implied, False)):
        for core, place in pairs:
            for start, end in sentence.clauses:
                clause = text[start:end]
                if place.search(clause):
                    for match in core.finditer(clause):
                        add(start + match.start(), start + match.end(), deniable)
    return found
