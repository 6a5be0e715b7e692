"""Sentences of generated reports, from templates with alternatives and slots."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np


def pick(options: Sequence[str], rng: np.random.Generator) -> str:
    """One of the options, each with the same chance."""
    return options[int(rng.integers(len(options)))]


def fill(template: str, slots: Mapping[str, str], rng: np.random.Generator) -> str:
    """A sentence, with a capital at its beginning.

    Args:
        template: with slots in braces and alternatives in brackets: "A {size} effusion [is seen|is present]."
        slots: name to text.
        rng: chooses among the alternatives.
    """
    text = re.sub(r"\[([^]]+)\]", lambda found: pick(found[1].split("|"), rng), template)
    text = re.sub(r"\{([^}]+)\}", lambda found: slots[found[1]], text)
    text = re.sub(r" +", " ", text)
    return text[0].upper() + text[1:]
