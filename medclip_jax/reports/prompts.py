"""Prompts for zero-shot classification: a template's pair, a named set, or a finding's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from medclip_jax.reports.definitions import BUILT_IN, Findings
from medclip_jax.reports.names import finding_name

TEMPLATES: dict[str, tuple[str, str]] = {
    "there_is": ("There is {}.", "There is no {}."),
    "is_present": ("{} is present", "{} is not present"),
}
"""Wording of a pair: Cardiac-CLIP's statements, and HiPro-CT's."""

PUBLISHED: dict[str, tuple[tuple[str, str], ...]] = {
    "ct_clip": (("{} is present.", "{} is not present."),),
    "fvlm": (("{}.", "Not {}."),),
    "hlip": (("The volume shows: {}.", "The volume shows: Not {lower}."),),
    "mean7": (
        ("{}.", "No {}."),
        ("Findings are compatible with {}.", "Findings are not compatible with {}."),
        ("There is {}.", "There is no {}."),
        ("{} is seen.", "{} is not seen."),
        ("{}.", "Not {}."),
        ("{} is observed.", "{} is not observed."),
        ("{} is present.", "{} is not present."),
    ),
}
"""Wordings of published evaluations, of one pair or several; ``{lower}`` begins with a small letter.

CT-CLIP's, fVLM's, HLIP's and the seven pairs of RadFinder.
"""

CLASS_NAME = "class_name"
"""The bare name of a finding, without a negative prompt, as T3D's article has it."""

PAIRS: tuple[tuple[str, str], ...] = (
    ("There is {}.", "There is no {}."),
    ("{} is present.", "{} is not present."),
    ("{} is seen.", "{} is not seen."),
    ("Findings are compatible with {}.", "Findings are not compatible with {}."),
    ("Evidence of {}.", "No evidence of {}."),
)
"""Wordings that training draws from, see `worded`: one alone would be learned by its words, not its sense."""

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

WORDINGS = (*TEMPLATES, *PUBLISHED, CLASS_NAME, *POSITIVE_SETS)
"""What `prompts_of` takes as a template."""

POSITIVE_ONLY = (CLASS_NAME, *POSITIVE_SETS)
"""Those of them without a negative side."""


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
    return _filled(TEMPLATES[template], definitions[name].phrase)


def worded(
    name: str, wordings: Sequence[tuple[str, str]] = PAIRS, *, definitions: Findings = BUILT_IN
) -> list[tuple[str, str]]:
    """A finding in several wordings: a pair of sentences for each, presence first.

    A finding that has prompts of its own has those, repeated until there are as many pairs.

    Args:
        name: of a finding, as `finding_name` understands it.
        wordings: pairs with {} where the finding's phrase goes.
        definitions: the findings that are known.

    Raises:
        UnknownFinding: an unknown finding; the message lists the known ones.
    """
    finding = definitions[finding_name(name, definitions=definitions)]
    if finding.positive:
        sides = finding.positive, finding.negative
        return [tuple(side[index % len(side)] for side in sides) for index in range(len(wordings))]
    return [_filled(pair, finding.phrase) for pair in wordings]


def _filled(templates: tuple[str, str], phrase: str) -> tuple[str, str]:
    positive, negative = (_spoken(text, phrase, as_it_is=False) for text in templates)
    return positive, negative


def prompts_of(
    name: str, template: str = "there_is", *, called: str = "", definitions: Findings = BUILT_IN
) -> Prompts:
    """The prompts by which a finding is classified: its own where it has some, else a template's.

    Args:
        name: of a finding, as `finding_name` understands it.
        template: one of `WORDINGS`; those of `POSITIVE_ONLY` have no negative side.
        called: what stands for X, as it is; "" for the finding's phrase, with a capital where it begins a
            sentence.
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
    positive, negative = zip(*_pairs(template), strict=True)
    spoken = tuple(
        tuple(_spoken(text, called or finding.phrase, as_it_is=bool(called)) for text in side if text)
        for side in (positive, negative)
    )
    return Prompts(*spoken)


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
    pairs = (TEMPLATES["there_is"][:1],) if template in POSITIVE_SETS else _pairs(template)
    parts = []
    for sides in pairs:
        shown = (_spoken(text, "X", as_it_is=True) for text in sides[: 1 if positive else 2] if text)
        parts.append(" / ".join(f'"{text}"' for text in shown))
    for name in names:
        if name in listed or (name in definitions and definitions[name].positive):
            own = prompts_of(name, template, definitions=definitions)
            parts.append(f"{name}: {Prompts(own.positive, ()) if positive else own}")
    return "; ".join(parts)


def _pairs(template: str) -> tuple[tuple[str, str], ...]:
    """The pairs of a template, with "" for a side that it lacks."""
    if template in TEMPLATES:
        return (TEMPLATES[template],)
    if template == CLASS_NAME:
        return (("{}", ""),)
    if template in PUBLISHED:
        return PUBLISHED[template]
    raise KeyError(f"unknown template {template!r}; known: {', '.join(WORDINGS)}")


def _spoken(text: str, phrase: str, *, as_it_is: bool) -> str:
    if not as_it_is and text.startswith("{}"):
        phrase = phrase[:1].upper() + phrase[1:]
    lower = phrase if phrase[1:2].isupper() or phrase == "X" else phrase[:1].lower() + phrase[1:]
    return text.format(phrase, lower=lower)
