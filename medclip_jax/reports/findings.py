"""Findings from report text by rules: present, absent or not mentioned.

`read_report` is the one way in which a report is read; `extract` keeps its statuses, and `medclip reports`
shows all of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from medclip_jax.reports.abdomen import MERLIN_FINDINGS
from medclip_jax.reports.cardiac_mr import CARDIAC_MR_DIAGNOSES, CARDIAC_MR_FINDINGS
from medclip_jax.reports.context import Assertion, Judgment, Sentence
from medclip_jax.reports.definitions import BUILT_IN, Findings
from medclip_jax.reports.numbers import READERS
from medclip_jax.reports.pulmonary_embolism import INSPECT_FINDINGS
from medclip_jax.reports.rad_chest_ct import RAD_CHEST_FINDINGS
from medclip_jax.reports.sections import cut_sections
from medclip_jax.reports.templates import split_statements
from medclip_jax.reports.vocabulary import (
    CARDIAC_FINDINGS,
    CT_RATE_COLUMNS,
    CT_RATE_FINDINGS,
    FINDINGS,
    PHANTOM_FINDINGS,
    Finding,
)

__all__ = [
    "CARDIAC_FINDINGS",
    "CARDIAC_MR_DIAGNOSES",
    "CARDIAC_MR_FINDINGS",
    "CT_RATE_COLUMNS",
    "CT_RATE_FINDINGS",
    "FINDINGS",
    "INSPECT_FINDINGS",
    "MERLIN_FINDINGS",
    "PHANTOM_FINDINGS",
    "RAD_CHEST_FINDINGS",
    "Decision",
    "Evidence",
    "Finding",
    "ReadSection",
    "ReadSentence",
    "Reading",
    "extract",
    "extract_detailed",
    "read_report",
]

UNCERTAIN_MEANINGS = {"present": 1, "absent": -1, "unknown": 0}
"""How a finding is counted whose only mentions are uncertain."""
_LEAVES_BEHIND = frozenset({"status post", "s/p"})


@dataclass(frozen=True)
class Evidence:
    """One mention of a finding.

    Attributes:
        sentence: the sentence as the rules see it: lower case, contractions written out.
        mention: the words that were recognized.
        assertion: how they are meant.
        trigger: the words that made it so, "" where none did.
        section: name of the section that the sentence stands in, as in `split_sections`.
        start: index of the mention's first character in `sentence`.
    """

    sentence: str
    mention: str
    assertion: Assertion
    trigger: str
    section: str = ""
    start: int = 0


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
class ReadSentence:
    """A sentence and what it says.

    Attributes:
        text: as written, cleaned.
        topic: the label that it stands under in a structured report, "" where there is none.
        evidence: finding to its mentions; only findings that have some.
    """

    text: str
    topic: str
    evidence: dict[str, tuple[Evidence, ...]]


@dataclass(frozen=True)
class ReadSection:
    """A section and how it was read.

    Attributes:
        name: as in `medclip_jax.reports.sections.Section`.
        title: as written, "" where there is none.
        read: False for what says why, how and by whom the scan was made; then it has no sentences.
        text: cleaned.
        sentences: in order.
    """

    name: str
    title: str
    read: bool
    text: str
    sentences: tuple[ReadSentence, ...]


@dataclass(frozen=True)
class Reading:
    """A report as the rules read it.

    Attributes:
        sections: in the report's order.
        decisions: finding to decision, in the order that was given.
    """

    sections: tuple[ReadSection, ...]
    decisions: dict[str, Decision]


@dataclass(frozen=True)
class _Rules:
    patterns: re.Pattern | None
    together: tuple[tuple[re.Pattern, re.Pattern], ...]
    implied: tuple[tuple[re.Pattern, re.Pattern], ...]
    normal: re.Pattern | None
    excluded: re.Pattern | None
    labeled: re.Pattern | None
    labeled_normal: re.Pattern | None
    numbers: tuple[str, ...]
    lasting: bool


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
        labeled=either(finding.labeled),
        labeled_normal=either(finding.labeled_normal),
        numbers=finding.numbers,
        lasting=finding.lasting,
    )


def extract(
    text: str,
    findings: Iterable[str] = CT_RATE_FINDINGS,
    *,
    uncertain: str = "present",
    definitions: Findings = BUILT_IN,
) -> dict[str, int]:
    """Read the findings off a report.

    Args:
        text: a report or a section of one; "" gives 0 everywhere. Where there are section headers, what
            stands under clinical information, technique, comparison and examination is not read, nor are
            lines of names and signatures.
        findings: names from `definitions`.
        uncertain: what a finding with only uncertain mentions counts as: "present", "absent" or "unknown".
        definitions: the library's findings, and your own where there are any.

    Returns:
        Name to 1 present, -1 absent, 0 not mentioned, in the order of `findings`.

    Raises:
        KeyError: an unknown finding.
        ValueError: an unknown `uncertain`.
    """
    decisions = extract_detailed(text, findings, uncertain=uncertain, definitions=definitions)
    return {name: decision.status for name, decision in decisions.items()}


def extract_detailed(
    text: str,
    findings: Iterable[str] = CT_RATE_FINDINGS,
    *,
    uncertain: str = "present",
    definitions: Findings = BUILT_IN,
) -> dict[str, Decision]:
    """Read the findings off a report and keep the sentence and the words behind each decision.

    One definite mention makes a finding present, whatever is denied elsewhere: "no effusion on the right"
    does not undo "effusion on the left". Only an addendum corrects. Mentions as history or hypothesis decide
    nothing.

    Args and errors as in `extract`.

    Returns:
        Name to decision, in the order of `findings`.
    """
    return read_report(text, findings, uncertain=uncertain, definitions=definitions).decisions


def read_report(
    text: str,
    findings: Iterable[str] = CT_RATE_FINDINGS,
    *,
    uncertain: str = "present",
    definitions: Findings = BUILT_IN,
) -> Reading:
    """Read a report and keep how: its sections, their sentences, the mentions in each and the decisions.

    Args and errors as in `extract`.
    """
    if uncertain not in UNCERTAIN_MEANINGS:
        raise ValueError(f"uncertain must be one of {', '.join(UNCERTAIN_MEANINGS)}, not {uncertain!r}")
    names = list(findings)
    unknown = [name for name in names if name not in definitions]
    if unknown:
        raise KeyError(f"unknown findings {', '.join(unknown)}; known: {', '.join(sorted(definitions))}")
    rules = {name: _compile(definitions[name]) for name in names}
    sections = []
    found: dict[str, list[Evidence]] = {name: [] for name in names}
    for part in cut_sections(text):
        sentences = []
        for statement in split_statements(part.text) if part.read else ():
            sentence = Sentence(statement.text)
            evidence = {}
            for name in names:
                mentions = _mentions(sentence, statement.topic, rules[name])
                if mentions:
                    evidence[name] = tuple(replace(mention, section=part.name) for mention in mentions)
                    found[name] += evidence[name]
            sentences.append(ReadSentence(statement.text, statement.topic, evidence))
        sections.append(ReadSection(part.name, part.title, part.read, part.text, tuple(sentences)))
    meaning = UNCERTAIN_MEANINGS[uncertain]
    return Reading(tuple(sections), {name: _decide(tuple(found[name]), meaning) for name in names})


def _decide(evidence: tuple[Evidence, ...], uncertain_status: int) -> Decision:
    meanings = {found.assertion for found in evidence}
    # An addendum corrects what stands before it.
    corrected = {found.assertion for found in evidence if found.section == "addendum"}
    if corrected & {Assertion.AFFIRMED, Assertion.NEGATED}:
        meanings = corrected
    if Assertion.AFFIRMED in meanings:
        return Decision(1, False, evidence)
    if Assertion.UNCERTAIN in meanings:
        return Decision(uncertain_status, True, evidence)
    return Decision(-1 if Assertion.NEGATED in meanings else 0, False, evidence)


def _mentions(sentence: Sentence, topic: str, rules: _Rules) -> list[Evidence]:
    text = sentence.text
    found: list[Evidence] = []
    blocked = [match.span() for match in rules.excluded.finditer(text)] if rules.excluded else []
    label = f"{topic}: " if topic else ""

    def add(start: int, end: int, deniable: bool = True) -> None:
        if any(start < stop and begin < end for begin, stop in blocked):
            return
        judgment = sentence.judge(start, end)
        if rules.lasting and judgment.trigger in _LEAVES_BEHIND:
            judgment = Judgment(Assertion.AFFIRMED, judgment.trigger)
        within = any(
            one.start <= start and end <= one.start + len(one.mention) and one.assertion is judgment.assertion
            for one in found
        )
        if not within and (deniable or judgment.assertion is not Assertion.NEGATED):
            found.append(_evidence(text, start, end, judgment.assertion, judgment.trigger))

    def add_normal(start: int, end: int) -> None:
        if sentence.judge(start, end).assertion is Assertion.AFFIRMED:
            found.append(_evidence(text, start, end, Assertion.NEGATED, text[start:end]))
            blocked.append((start, end))

    def in_value(pattern: re.Pattern | None) -> list[tuple[int, int]]:
        """Matches over the label and its value that reach into the sentence."""
        spans = [match.span() for match in pattern.finditer(label + text)] if pattern else []
        return [(max(0, start - len(label)), end - len(label)) for start, end in spans if end > len(label)]

    for match in rules.normal.finditer(text) if rules.normal else ():
        add_normal(*match.span())
    for start, end in in_value(rules.labeled_normal):
        add_normal(start, end)
    for key in rules.numbers:
        for number in READERS[key](text):
            assertion = Assertion.AFFIRMED if number.exceeds else Assertion.NEGATED
            words = text[number.start : number.end]
            found.append(_evidence(text, number.start, number.end, assertion, words))
            blocked.append((number.start, number.end))
    for match in rules.patterns.finditer(text) if rules.patterns else ():
        add(*match.span())
    for start, end in in_value(rules.labeled):
        add(start, end)
    for pairs, deniable in ((rules.together, True), (rules.implied, False)):
        for core, place in pairs:
            if not core.search(text):
                continue
            for start, end in sentence.clauses:
                clause = text[start:end]
                if place.search(clause) or (topic and place.search(label + clause)):
                    for match in core.finditer(clause):
                        add(start + match.start(), start + match.end(), deniable)
    return found


def _evidence(text: str, start: int, end: int, assertion: Assertion, trigger: str) -> Evidence:
    return Evidence(text, text[start:end], assertion, trigger, start=start)
