"""Prompts for zero-shot classification: a template's pair, or a finding's own, one or several."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from medclip_jax.reports.definitions import BUILT_IN, Findings
from medclip_jax.reports.names import finding_name

TEMPLATES: dict[str, tuple[str, str]] = {
    "there_is": ("There is {}.", "There is no {}."),
    "is_present": ("{} is present", "{} is not present"),
}
"""Wording of a pair: Cardiac-CLIP's statements, and HiPro-CT's."""


class Prompts(NamedTuple):
    """Sentences for a finding's presence and for its absence; the vectors of each side are averaged."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]

    def __str__(self) -> str:
        sides = ((f'"{side[0]}"', len(side) - 1) for side in self)
        return " / ".join(f"{first} and {more} more" if more else first for first, more in sides)


def pair(name: str, template: str = "there_is", *, definitions: Findings = BUILT_IN) -> tuple[str, str]:
    """Positive and negative sentence of a finding, from its phrase.

    Args:
        name: of a finding, as `finding_name` understands it.
        template: a key of `TEMPLATES`.
        definitions: the findings that are known.

    Returns:
        (positive, negative), e.g. ("There is cardiomegaly.", "There is no cardiomegaly.").

    Raises:
        UnknownFinding: an unknown finding; the message lists the known ones.
        KeyError: an unknown template, likewise.
    """
    name = finding_name(name, definitions=definitions)
    if template not in TEMPLATES:
        raise KeyError(f"unknown template {template!r}; known: {', '.join(TEMPLATES)}")
    positive, negative = TEMPLATES[template]
    phrase = definitions[name].phrase
    if positive.startswith("{}"):
        phrase = phrase[:1].upper() + phrase[1:]
    return positive.format(phrase), negative.format(phrase)


def prompts_of(name: str, template: str = "there_is", *, definitions: Findings = BUILT_IN) -> Prompts:
    """The prompts by which a finding is classified: its own where it has some, else a template's pair.

    Args and errors as in `pair`.
    """
    positive, negative = pair(name, template, definitions=definitions)
    finding = definitions[finding_name(name, definitions=definitions)]
    return Prompts(finding.positive or (positive,), finding.negative or (negative,))


def describe_prompts(names: Iterable[str], template: str, *, definitions: Findings = BUILT_IN) -> str:
    """The wording in words, as results print it: the template, and which findings have their own.

    Args:
        names: of findings.
        template: a key of `TEMPLATES`.
        definitions: the findings that are known.
    """
    own = [name for name in names if name in definitions and definitions[name].positive]
    parts = [" / ".join(f'"{text.format("X")}"' for text in TEMPLATES[template])]
    parts += [f"{name}: {prompts_of(name, template, definitions=definitions)}" for name in own]
    return "; ".join(parts)
