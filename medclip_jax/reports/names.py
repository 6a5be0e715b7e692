"""Findings by the names that people write: any case, spaces for underscores, phrases, titles of columns."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from medclip_jax.reports.definitions import BUILT_IN, Findings, plain_spelling


class UnknownFinding(KeyError, ValueError):
    """No finding of that name; the message lists the nearest and the known ones.

    Attributes:
        near: names that were perhaps meant.
    """

    def __init__(self, message: str, near: Iterable[str] = ()):
        super().__init__(message)
        self.near = tuple(near)

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError would show it in quotes


def finding_name(given: str, known: Iterable[str] | None = None, *, definitions: Findings = BUILT_IN) -> str:
    """The finding that is meant.

    "Pericardial effusion", "pericardial-effusion" and "PERICARDIAL_EFFUSION " are all pericardial_effusion;
    so are a finding's phrase, its plural, and the titles of its label columns, such as CT-RATE's.

    Args:
        given: as a person wrote it.
        known: names that are to be had here, such as those of some shards; None for all of `definitions`.
        definitions: whose phrases and titles are understood.

    Returns:
        One of `known`.

    Raises:
        UnknownFinding: none is meant.
        TypeError: `given` is no string.
    """
    if not isinstance(given, str):
        raise TypeError(f"the name of a finding is a string, not {given!r}")
    known = tuple(definitions if known is None else known)
    spellings = {plain_spelling(name): name for name in known}
    plain = plain_spelling(given)
    for candidate in (plain, plain_spelling(definitions.spellings.get(plain, ""))):
        if candidate in spellings:
            return spellings[candidate]
    near = [spellings[name] for name in difflib.get_close_matches(plain, spellings, n=2, cutoff=0.75)]
    hint = f", perhaps {' or '.join(near)}" if near else ""
    raise UnknownFinding(f"unknown finding {given!r}{hint}; known: {', '.join(sorted(known))}", near)


def is_finding(given: str, *, definitions: Findings = BUILT_IN) -> bool:
    """Whether `finding_name` finds one."""
    try:
        finding_name(given, definitions=definitions)
    except UnknownFinding:
        return False
    return True
