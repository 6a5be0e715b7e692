"""Personal data in the text of reports, replaced by its kind: "[DATE]", "[PERSON]".

What is found: patterns of `presidio-analyzer` (dates, phone numbers, addresses of the internet, numbers of
cards and insurances), names where reports sign and address people, numbers behind labels such as "MRN:". With
a spaCy model that you have installed also names and places anywhere. No tool finds everything, and nothing
here is downloaded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from medclip_jax.reports.people import names_of_people

PATTERNS = "patterns"
"""What `--scrub` takes for no language model."""

_LEAST_SCORE = 0.3
"""Of presidio: below are dates without a day, and numbers that could be anything."""
_KINDS = {
    "DATE_TIME": "DATE",
    "PHONE_NUMBER": "PHONE",
    "PERSON": "PERSON",
    "LOCATION": "PLACE",
    "EMAIL": "EMAIL",
    "URL": "URL",
    "AGE": "AGE",
    "DATE": "DATE",
}
"""Entities by the word that stands in their place; of all others "ID" does."""

_MONTHS = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sep(?:t(?:ember)?)?"
    r"|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_OWN = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        ("DATE", rf"\b{_MONTHS} \d{{1,2}}(?:st|nd|rd|th)?,? (?:19|20)\d\d\b"),
        ("DATE", rf"\b\d{{1,2}}(?:st|nd|rd|th|\.)? (?:of )?{_MONTHS},? (?:19|20)\d\d\b"),
        ("DATE", r"\b(?:0?[1-9]|[12]\d|3[01])[./-](?:0?[1-9]|1[0-2])[./-](?:19|20)?\d\d\b"),
        ("DATE", r"\b(?:19|20)\d\d-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])\b"),
        ("DATE", r"\b(?:0?[1-9]|1[0-2])/(?:19|20)\d\d\b"),
        ("EMAIL", r"\b[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,4}\b"),
        ("URL", r"\b(?:https?://|www\.)[^\s,;)]{3,200}"),
        (
            "ID",
            r"\b(?:mrn|medical record(?: number| no\.?)?|(?:patient|hospital|file|protocol|case|accession"
            r"|order|study|nhs|insurance)(?: id| number| no\.?| #)|accession|ssn|tc(?: kimlik)? no\.?)"
            r"\s*[:#=]*\s*(?P<found>[A-Z]{0,4}[-/]?\d[\w/-]{2,30})",
        ),
        ("AGE", r"\b(?P<found>9\d|1[01]\d)(?=[ -]*(?:years?[ -]old|y/?o\b))"),
        ("AGE", r"\baged? (?P<found>9\d|1[01]\d)\b"),
    )
)
# People after whom signs, scores and devices are called: a model of names takes them for people.
_EPONYMS = (
    "Agatston",
    "Fleischner",
    "Hounsfield",
    "Kerley",
    "Swan-Ganz",
    "Hickman",
    "Hampton",
    "Morgagni",
    "Bochdalek",
    "Schmorl",
    "Modic",
    "Bosniak",
    "Stanford",
    "DeBakey",
    "Kommerell",
    "Monod",
    "Hodgkin",
    "Crohn",
    "Behcet",
    "Marfan",
    "Barrett",
    "Chilaiditi",
    "Azygos",
    "Lung-RADS",
    "CAD-RADS",
)


class ScrubError(ValueError):
    """Scrubbing is not possible here; the message says what to install."""


@dataclass(frozen=True)
class Scrubbed:
    """A text without personal data, as far as it was found.

    Attributes:
        text: with the kind of what was taken out in its place.
        counts: kind to how often.
    """

    text: str
    counts: Counter[str]


class Scrubber:
    """Finds and replaces personal data; made by `scrubber`.

    Args:
        analyzer: a `presidio_analyzer.AnalyzerEngine`.
    """

    def __init__(self, analyzer: Any):
        self._analyzer = analyzer

    def __call__(self, text: str) -> Scrubbed:
        """A text without personal data.

        Args:
            text: of a report, in English.
        """
        pieces, counts, end = [], Counter(), 0
        for start, stop, kind in _disjoint(list(self._found(text))):
            pieces += [text[end:start], f"[{kind}]"]
            counts[kind] += 1
            end = stop
        return Scrubbed("".join([*pieces, text[end:]]), counts)

    def _found(self, text: str) -> Iterator[tuple[int, int, str]]:
        for start, stop in names_of_people(text):
            yield start, stop, "PERSON"
        for kind, pattern in _OWN:
            for match in pattern.finditer(text):
                group = "found" if "found" in pattern.groupindex else 0
                yield *match.span(group), kind
        results = self._analyzer.analyze(
            text, language="en", score_threshold=_LEAST_SCORE, allow_list=list(_EPONYMS)
        )
        # Ours come first: where one of presidio's overlaps it, it is the same thing by another name.
        yield from sorted((found.start, found.end, _KINDS.get(found.entity_type, "ID")) for found in results)


@lru_cache(maxsize=2)
def scrubber(model: str = PATTERNS) -> Scrubber:
    """What finds personal data, made once a process.

    Args:
        model: "patterns", or the name or folder of an installed spaCy model that names people and places.

    Raises:
        ScrubError: presidio-analyzer is not installed, or there is no such model.
    """
    try:
        import presidio_analyzer.predefined_recognizers as known
        import spacy
        from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
        from presidio_analyzer.nlp_engine import SpacyNlpEngine
    except ImportError:
        raise ScrubError("--scrub needs presidio-analyzer: pip install 'medclip-jax[scrub]'") from None
    recognizers = [
        known.PhoneRecognizer(),
        known.DateRecognizer(),
        known.IpRecognizer(),
        known.UsSsnRecognizer(),
        known.NhsRecognizer(),
        known.MedicalLicenseRecognizer(),
        known.CreditCardRecognizer(),
        known.IbanRecognizer(),
    ]
    if model == PATTERNS:
        language = spacy.blank("en")  # words alone: nothing is loaded, and nothing downloaded
    else:
        try:
            language = spacy.load(model)
        except OSError:
            raise ScrubError(
                f"--scrub {model}: no spaCy model of that name is installed. Install one (for example "
                f"python -m spacy download en_core_web_lg), give its folder, or write --scrub {PATTERNS}"
            ) from None
        recognizers.append(known.SpacyRecognizer(supported_entities=["PERSON", "LOCATION"]))

    class Engine(SpacyNlpEngine):
        """The model that is given, where presidio would load, or download, one of its own."""

        def __init__(self):
            super().__init__()
            self.nlp = {"en": language}

        def load(self) -> None:
            """It is loaded."""

    registry = RecognizerRegistry(recognizers=recognizers)
    return Scrubber(AnalyzerEngine(registry=registry, nlp_engine=Engine(), supported_languages=["en"]))


def analyzer_version() -> str:
    """The version of presidio-analyzer that is installed."""
    return version("presidio-analyzer")


def _disjoint(found: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Spans in order, overlapping ones as one, of the kind that was found first."""
    merged: list[tuple[int, int, str, int]] = []
    for start, stop, kind, rank in sorted((*one, rank) for rank, one in enumerate(found)):
        if merged and start < merged[-1][1]:
            before = merged.pop()
            kind, rank = min((before[2:], (kind, rank)), key=lambda one: one[1])
            merged.append((before[0], max(before[1], stop), kind, rank))
        else:
            merged.append((start, stop, kind, rank))
    return [(start, stop, kind) for start, stop, kind, _ in merged]
