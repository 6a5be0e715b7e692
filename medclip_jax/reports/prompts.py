"""Prompt pairs for zero-shot classification."""

from __future__ import annotations

from medclip_jax.reports.names import finding_name
from medclip_jax.reports.vocabulary import FINDINGS

TEMPLATES: dict[str, tuple[str, str]] = {
    "there_is": ("There is {}.", "There is no {}."),
    "is_present": ("{} is present", "{} is not present"),
}
"""Wording of a pair: Cardiac-CLIP's statements, and HiPro-CT's."""


def pair(name: str, template: str = "there_is") -> tuple[str, str]:
    """Positive and negative prompt of a finding.

    Args:
        name: of a finding, as `finding_name` understands it.
        template: a key of `TEMPLATES`.

    Returns:
        (positive, negative), e.g. ("There is cardiomegaly.", "There is no cardiomegaly.").

    Raises:
        UnknownFinding: an unknown finding; the message lists the known ones.
        KeyError: an unknown template, likewise.
    """
    name = finding_name(name)
    if template not in TEMPLATES:
        raise KeyError(f"unknown template {template!r}; known: {', '.join(TEMPLATES)}")
    positive, negative = TEMPLATES[template]
    phrase = FINDINGS[name].phrase
    if positive.startswith("{}"):
        phrase = phrase[:1].upper() + phrase[1:]
    return positive.format(phrase), negative.format(phrase)
