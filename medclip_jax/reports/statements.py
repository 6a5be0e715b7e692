"""Findings as sentences, and as the vector that soft targets are made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Int8

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


def pathology_vector(statuses: Mapping[str, int], findings: Iterable[str]) -> Int8[np.ndarray, " F"]:
    """The vector y in {-1, +1} whose cosines are Cardiac-CLIP's soft targets.

    Args:
        statuses: name to 1 present, -1 absent, 0 not mentioned; a missing name counts as not mentioned.
        findings: names of the vector's entries, in order.

    Returns:
        (F,) +1 where present, -1 where absent or not mentioned.
    """
    return np.array([1 if statuses.get(name, 0) > 0 else -1 for name in findings], np.int8)
