"""Findings as sentences."""

from __future__ import annotations

from collections.abc import Mapping

from medclip_jax.reports import prompts
from medclip_jax.reports.definitions import BUILT_IN, Findings


def statements(findings: Mapping[str, int], definitions: Findings = BUILT_IN) -> list[str]:
    """Write one sentence per finding: "There is X." or "There is no X."

    Args:
        findings: name to 1 present, -1 absent, 0 not mentioned; not mentioned is written as absent, as
            Cardiac-CLIP does. A finding that no wording states is never mentioned, present or not: then
            nothing is written of it.
        definitions: the library's findings, and your own where there are any.

    Returns:
        The sentences in the mapping's order.

    Raises:
        KeyError: a name that is not in `definitions`.
    """
    sentences = []
    for name, status in findings.items():
        positive, negative = prompts.pair(name, definitions=definitions)
        if status or definitions[name].is_read:
            sentences.append(positive if status > 0 else negative)
    return sentences
