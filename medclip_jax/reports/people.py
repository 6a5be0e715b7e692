"""Where a report names people and numbers of people, so that no vocabulary learns them."""

from __future__ import annotations

import re

_TITLES = r"dr|prof|professor|doctor|doç|uzm|mr|mrs|ms|miss|herr|frau|sayın|dipl|med|md"
_DONE = (
    "dictated|reported|signed|read|reviewed|verified|approved|transcribed|referred|requested|interpreted|authored"
    "|prepared|validated|typed|authenticated"
)
_ROLES = (
    r"radiologist|physician|attending|resident|fellow|consultant|surgeon|technologist|transcriptionist|reader"
    r"|patient|patient'?s? name|name|surname|first name|last name|doctor|befundet von|hasta(?: adı)?"
)
_LEAD = rf"(?:\b(?:{_TITLES})\b\.?|\b(?:{_DONE})\s+(?:electronically\s+)?by\b|\b(?:{_ROLES})\s*[:=])"
_WORD = r"(?:[^\W\d_]\.|[^\W\d_]+(?:[.'’^-][^\W\d_]+)*)"
_PERSON = re.compile(
    rf"(?P<lead>(?i:{_LEAD})(?:[\s:,.]*(?i:{_TITLES})\b\.?)*)[\s:,.]*{_WORD}"
    # Further words only where they look like a name: capitals, initials, particles.
    rf"(?:[ \t,]+(?:(?=[A-ZÀ-ÖØ-ÞĀ-Ž]){_WORD}|(?:van|von|der|den|de|la|el|al|bin)\b)){{0,4}}"
)
_LONGEST_NUMBER = 4
_LONGEST_NUMBER_IN_CODE = 3


def without_people(text: str) -> str:
    """A text without the names that follow a title, a signature or the label of a field.

    "Reported by Dr. A. Schmidt." becomes "Reported by Dr. ." These are the contexts in which reports name
    people; a name elsewhere is not told from other words.

    Args:
        text: of a report.
    """
    return _PERSON.sub(lambda match: match["lead"] + " ", text)


def names_of_people(text: str) -> list[tuple[int, int]]:
    """From where to where those names stand that `without_people` takes out.

    Args:
        text: of a report.
    """
    spans = []
    for match in _PERSON.finditer(text):
        start = match.end("lead")
        start += re.match(r"[\s:,.]*", text[start : match.end()]).end()
        spans.append((start, match.end()))
    return spans


def may_name_someone(word: str) -> bool:
    """Whether a word is a number long enough to be somebody's: five digits, or four in a code ("MRN4711").

    Years, sizes, levels and scores are shorter.
    """
    digits = sum(map(str.isdigit, word))
    return digits > (_LONGEST_NUMBER if word.isdigit() else _LONGEST_NUMBER_IN_CODE)
