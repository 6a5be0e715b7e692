"""Findings by the names that people write: any case, spaces for underscores, phrases, titles of columns."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from functools import cache

from medclip_jax.reports.vocabulary import CT_RATE_COLUMNS, FINDINGS


class UnknownFinding(KeyError, ValueError):
    """No finding of that name; the message lists the nearest and the known ones."""

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError would show it in quotes


def finding_name(given: str, known: Iterable[str] = FINDINGS) -> str:
    """The finding that is meant.

    "Pericardial effusion", "pericardial-effusion" and "PERICARDIAL_EFFUSION " are all pericardial_effusion;
    so are a finding's phrase, its plural, and the titles of CT-RATE's columns.

    Args:
        given: as a person wrote it.
        known: names that are to be had here, such as those of some shards.

    Returns:
        One of `known`.

    Raises:
        UnknownFinding: none is meant.
        TypeError: `given` is no string.
    """
    if not isinstance(given, str):
        raise TypeError(f"the name of a finding is a string, not {given!r}")
    known = tuple(known)
    spellings = {_plain(name): name for name in known}
    plain = _plain(given)
    for candidate in (plain, _plain(_other_spellings().get(plain, ""))):
        if candidate in spellings:
            return spellings[candidate]
    near = difflib.get_close_matches(plain, spellings, n=2, cutoff=0.75)
    hint = f", perhaps {' or '.join(spellings[name] for name in near)}" if near else ""
    raise UnknownFinding(f"unknown finding {given!r}{hint}; known: {', '.join(sorted(known))}")


def is_finding(given: str) -> bool:
    """Whether `finding_name` finds one."""
    try:
        finding_name(given)
    except UnknownFinding:
        return False
    return True


def _plain(text: str) -> str:
    """Lower case, words joined by underscores, the last one in the singular."""
    plain = "_".join(re.findall(r"[^\W_]+", text.casefold()))
    return plain[:-1] if plain.endswith("s") and not plain.endswith(("ss", "is", "us")) else plain


@cache
def _other_spellings() -> Mapping[str, str]:
    phrases = {_plain(finding.phrase): name for name, finding in FINDINGS.items()}
    return phrases | {_plain(title): name for title, name in CT_RATE_COLUMNS.items()}
