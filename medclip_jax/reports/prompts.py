"""Prompts for zero-shot classification: a template's pair, a named set, or a finding's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from medclip_jax.reports.definitions import BUILT_IN, Findings
from medclip_jax.reports.names import finding_name

TEMPLATES: dict[str, tuple[str, str]] = {
    "there_is": ("There is {}.", "There is no {}."),
    "is_present": ("{} is present", "{} is not present"),
}
"""Wording of a pair: Cardiac-CLIP's statements, and HiPro-CT's."""


POSITIVE_SETS: dict[str, Mapping[str, tuple[str, ...]]] = {
    "cmr_clip": {
        "left_ventricular_dysfunction": ("Left ventricle with systolic dysfunction",),
        "right_ventricular_dysfunction": ("Right ventricle with systolic dysfunction",),
        "left_ventricular_dilation": ("Left ventricle is dilated", "Left ventricle is enlarged in size"),
        "right_ventricular_dilation": ("Right ventricle is dilated", "Right ventricle is enlarged in size"),
        "left_ventricular_hypertrophy": (
            "There is left ventricular hypertrophy",
            "There is septal hypertrophy",
            "LV is thickened",
        ),
        "late_gadolinium_enhancement": (
            "Delayed-enhancement imaging reveals transmural enhancement",
            "Delayed-enhancement imaging reveals patchy enhancement",
            "There is a large area of LAD scar",
        ),
        "aortic_dilation": (
            "Aortic root is ectatic",
            "Ascending aortic is dilated",
            "Descending aorta is dilated",
        ),
    },
}
"""Named prompts for presence alone, of some findings; others have the positive sentence of "there_is"."""

WORDINGS = (*TEMPLATES, *POSITIVE_SETS)
"""What `prompts_of` takes as a template."""


class Prompts(NamedTuple):
    """Sentences for a finding's presence and for its absence, () where nobody wrote any."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]

    def __str__(self) -> str:
        sides = ((f'"{side[0]}"', len(side) - 1) for side in self if side)
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
        raise KeyError(f"unknown template {template!r} of a pair; known: {', '.join(TEMPLATES)}")
    positive, negative = TEMPLATES[template]
    phrase = definitions[name].phrase
    if positive.startswith("{}"):
        phrase = phrase[:1].upper() + phrase[1:]
    return positive.format(phrase), negative.format(phrase)


def prompts_of(name: str, template: str = "there_is", *, definitions: Findings = BUILT_IN) -> Prompts:
    """The prompts by which a finding is classified: its own where it has some, else a template's.

    Args:
        name: of a finding, as `finding_name` understands it.
        template: one of `WORDINGS`; those of `POSITIVE_SETS` have no negative side.
        definitions: the findings that are known.

    Raises:
        UnknownFinding: an unknown finding; the message lists the known ones.
        KeyError: an unknown template, likewise.
    """
    name = finding_name(name, definitions=definitions)
    finding = definitions[name]
    if finding.positive:
        return Prompts(finding.positive, finding.negative)
    if template in POSITIVE_SETS:
        usual = pair(name, definitions=definitions)[0]
        return Prompts(POSITIVE_SETS[template].get(name, (usual,)), ())
    positive, negative = pair(name, template, definitions=definitions)
    return Prompts((positive,), (negative,))


def describe_prompts(
    names: Iterable[str], template: str, *, positive: bool = False, definitions: Findings = BUILT_IN
) -> str:
    """The wording in words, as results print it: the template, and which findings have prompts of their own.

    Args:
        names: of findings.
        template: one of `WORDINGS`.
        positive: only the side of presence is used.
        definitions: the findings that are known.
    """
    listed = POSITIVE_SETS.get(template, {})
    sides = TEMPLATES["there_is"][:1] if template in POSITIVE_SETS else TEMPLATES[template]
    parts = [" / ".join(f'"{text.format("X")}"' for text in sides[: 1 if positive else 2])]
    for name in names:
        if name in listed or (name in definitions and definitions[name].positive):
            own = prompts_of(name, template, definitions=definitions)
            parts.append(f"{name}: {Prompts(own.positive, ()) if positive else own}")
    return "; ".join(parts)
