"""Taking quantities out of a report's text, sentence by sentence.

`quantities` says what they are and how they are stated, `stating` finds it in a clause.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from medclip_jax.reports.cleaning import clean_text
from medclip_jax.reports.headers import section_of
from medclip_jax.reports.quantities import Quantity
from medclip_jax.reports.sections import cut_sections
from medclip_jax.reports.sentences import sentence_ends
from medclip_jax.reports.stating import Stating, stating

_LEAD = re.compile(r"[\s•●▪*\"“”–-]*(?:\(?(?:\d{1,2}|[a-h])[.)]\s+)?")
_TITLE = re.compile(r"([A-Za-z][^:\n.?!]{0,60}?:)\s*")
_END = re.compile(r"[.!?\s\"'”)]*$")
# Clauses that can each stand alone.
_CLAUSES = re.compile(
    r"(\s*;\s*|,?\s+(?:and|but)\s+(?=(?:there|no)\b|(?:the|an?)\b[^,;]{1,60}\b(?:is|are|was|were|has|have|shows?)\b)"
    r"|,\s+(?=(?:there|no)\b)|,\s+but\s+)",
    re.IGNORECASE,
)
_SHORT_TITLE = 8
"""Words of a sentence up to which one that names a quantity without a value heads a list of values."""


@dataclass(frozen=True)
class Passage:
    """A sentence that stated a quantity.

    Attributes:
        quantity: its name.
        before: the sentence as it was.
        after: as it is now, "" where it is gone.
    """

    quantity: str
    before: str
    after: str

    def marked(self) -> str:
        """The sentence with what was taken out in brackets: "Mild [-calcification of 3-]"."""
        old, new = re.findall(r"\S+", self.before), re.findall(r"\S+", self.after)
        matcher = difflib.SequenceMatcher(
            a=[_plain(w) for w in old], b=[_plain(w) for w in new], autojunk=False
        )
        words = []
        for kind, start, end, *_ in matcher.get_opcodes():
            part = " ".join(old[start:end])
            words += [part if kind == "equal" else f"[-{part}-]"] if part else []
        return " ".join(words)


@dataclass(frozen=True)
class Redacted:
    """A text without quantities.

    Attributes:
        text: what is left.
        passages: what was changed, in the text's order, quantity by quantity.
    """

    text: str
    passages: tuple[Passage, ...] = ()


def redact(text: str, quantities: Sequence[Quantity]) -> Redacted:
    """Take every statement of some quantities out of a text.

    A sentence that says nothing else goes; of others, what states the quantity, so that a sentence stays.
    Where no sentence would stay, all of it goes. Titles of sections stay as long as anything stands under
    them. Sections on how the scan was made name methods ("Agatston score", "130 HU"): there only what is said
    to be a value goes.

    Args:
        text: a report or a part of one.
        quantities: what to take out.

    Returns:
        The text, to the letter where nothing is stated in it; else as `cleaning.clean_text` leaves it.
    """
    passages: list[Passage] = []
    left = text
    for quantity in quantities:
        rules = stating(quantity)
        cleaned = clean_text(left)
        if rules.may_state(cleaned) and (found := _redact(cleaned, rules)).passages:
            left = found.text
            passages += found.passages
    return Redacted(left, tuple(passages))


def _redact(text: str, rules: Stating) -> Redacted:
    technique = _technique(text)
    passages: list[Passage] = []
    pieces: list[str] = []
    pending = ""  # the title of a section whose first sentences are gone
    start, follows = 0, False
    for end in [*sentence_ends(text), len(text)]:
        unit = text[start:end]
        within = any(low <= (start + end) // 2 < high for low, high in technique)
        start = end
        lead, title, body, stop = _parts(unit)
        left = _sentence(body, rules, follows=follows, certain=within) if body else body
        if body:
            names = rules.names_it(body) and len(body.split()) <= _SHORT_TITLE
            follows = not within and (left != body or names)
        pending = "" if title else pending
        if left == body:
            pieces.append(f"{pending}{unit[len(lead) :]}" if body and pending else unit)
            pending = "" if body else pending
            continue
        now = f"{title}{left}{stop}" if left else ""
        passages.append(Passage(rules.quantity.name, (title + body + stop).strip(), now))
        lead = "" if pending else lead
        pieces.append(f"{lead}{pending}{now}" if left else "\n" if "\n" in lead else " ")
        pending = "" if left else pending or title
    return Redacted(_tidy("".join(pieces)), tuple(passages))


def _sentence(body: str, rules: Stating, *, follows: bool, certain: bool) -> str:
    """A sentence without its stop, clause by clause; "" where none is left."""
    parts = _clauses(body)
    kept, changed = "", False
    for index in range(0, len(parts), 2):
        clause = parts[index]
        left = rules.without(clause, follows=follows, certain=certain) if clause.strip() else clause
        if left is not None and left != clause and rules.states(left):
            left = None
        changed |= left != clause
        follows = not certain and left != clause
        if left:
            kept += (parts[index - 1] if kept and index else "") + left
    if not changed:
        return body
    return kept[:1].upper() + kept[1:] if body[:1].isupper() else kept


def _clauses(body: str) -> list[str]:
    """The clauses of a sentence, with what joins them between; none begins or ends within parentheses."""
    parts = _CLAUSES.split(body)
    joined = parts[:1]
    for link, clause in zip(parts[1::2], parts[2::2], strict=True):
        if joined[-1].count("(") > joined[-1].count(")"):
            joined[-1] += link + clause
        else:
            joined += [link, clause]
    return joined


def _parts(unit: str) -> tuple[str, str, str, str]:
    """Bullets and numbers before a sentence, the title of its section, the sentence, and what ends it."""
    lead = _LEAD.match(unit).group()
    rest = unit[len(lead) :]
    title = ""
    found = _TITLE.match(rest)
    if found and section_of(found[1][:-1]):
        title = found.group()
        rest = rest[len(title) :]
    stop = _END.search(rest).group()
    if ")" in stop and rest.count("(") > rest[: len(rest) - len(stop)].count(")"):
        stop = stop[stop.rindex(")") + 1 :]
    return lead, title, rest[: len(rest) - len(stop)], stop


def _technique(text: str) -> list[tuple[int, int]]:
    """Where sections lie that say how the scan was made."""
    spans = []
    for part in cut_sections(text):
        if part.name in ("technique", "examination"):
            place = text.find(part.text)
            if place >= 0:
                spans.append((place, place + len(part.text)))
    return spans


def _tidy(text: str) -> str:
    text = re.sub(r" *\n[ \n]*\n", "\n\n", re.sub(r"[ \t]{2,}", " ", text))
    return "\n".join(line.rstrip() for line in text.split("\n")).strip()


def _plain(word: str) -> str:
    return re.sub(r"\W", "", word).lower()
