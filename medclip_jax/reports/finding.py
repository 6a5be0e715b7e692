"""A finding and the wording that states it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One finding and the wording that states it.

    Attributes:
        name: snake_case key used everywhere in the library.
        phrase: what stands for X in "There is X."
        patterns: each match is a mention; a negation in its clause makes it absence.
        together: pairs (core, place); the core is a mention where both match in one clause.
        implied: pairs as in `together` whose presence proves the finding but whose denial says nothing of it.
        normal: statements of normality; a match means absent unless it is itself negated.
        excluded: wordings that contain a mention but mean something else ("subcutaneous emphysema").
        lasting: "status post" leaves it in the body.
        labeled: as `patterns`, over "label: value" of a structured report ("heart: mildly enlarged").
        labeled_normal: as `normal`, likewise.
        numbers: keys of `medclip_jax.reports.numbers.READERS`, whose numbers decide the finding.
        positive: its own prompts for its presence, whose vectors are averaged; () for a template's wording.
        negative: likewise for its absence.
        columns: titles of label columns that mean it, beside its name and its phrase.
    """

    name: str
    phrase: str
    patterns: tuple[str, ...] = ()
    together: tuple[tuple[str, str], ...] = ()
    implied: tuple[tuple[str, str], ...] = ()
    normal: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    lasting: bool = False
    labeled: tuple[str, ...] = ()
    labeled_normal: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    @property
    def is_read(self) -> bool:
        """Whether there is any wording by which a report can state it."""
        ways = (self.patterns, self.together, self.implied, self.normal)
        return any((*ways, self.labeled, self.labeled_normal, self.numbers))
