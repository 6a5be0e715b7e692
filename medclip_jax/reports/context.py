"""What a sentence says about a mention: affirmed, negated, uncertain, history or hypothesis.

Rules in the manner of ConText (Harkema et al., J Biomed Inform 2009): a cue reaches forwards or backwards
over its statement, and what it reaches takes its meaning. The cues are in `medclip_jax.reports.cues`; here is
how far each reaches.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from medclip_jax.reports.cleaning import normalize
from medclip_jax.reports.cues import CUES, DEGREE


class Assertion(Enum):
    """How a sentence puts a mention."""

    AFFIRMED = "affirmed"
    NEGATED = "negated"
    UNCERTAIN = "uncertain"
    HISTORY = "history"
    HYPOTHESIS = "hypothesis"


@dataclass(frozen=True)
class Judgment:
    """The assertion of one mention and the words that made it; "" where nothing did (affirmed by default)."""

    assertion: Assertion
    trigger: str


_FORWARD = {
    "negated_before": Assertion.NEGATED,
    "not_seen_before": Assertion.NEGATED,
    "negated_both": Assertion.NEGATED,
    "unlikely_before": Assertion.NEGATED,
    "gone_before": Assertion.NEGATED,
    "uncertain_before": Assertion.UNCERTAIN,
    "history": Assertion.HISTORY,
    "hypothesis": Assertion.HYPOTHESIS,
    "open": Assertion.HYPOTHESIS,
}
_BACKWARD = {
    "negated_after": Assertion.NEGATED,
    "negated_both": Assertion.NEGATED,
    "unlikely_after": Assertion.NEGATED,
    "answered_no": Assertion.NEGATED,
    "answered_none": Assertion.NEGATED,
    "gone": Assertion.NEGATED,
    "uncertain_after": Assertion.UNCERTAIN,
    "choice_open": Assertion.HYPOTHESIS,
    "not_assessed": Assertion.HYPOTHESIS,
}
_ORDER = (Assertion.NEGATED, Assertion.HYPOTHESIS, Assertion.HISTORY, Assertion.UNCERTAIN)
_ENDS = frozenset(
    {
        "terminator",
        "except",
        "aside",
        "predicate",
        "negated_after",
        "unlikely_after",
        "answered_no",
        "answered_none",
        "answered_yes",
        "gone",
    }
)
"""Kinds that no reach goes beyond."""
_CLAUSES = frozenset({"terminator", "except", "aside"})
"""Kinds at which a clause begins."""
_STOPS = {
    # What has gone is named anywhere before in the statement: "the effusion, which was large, has resolved".
    "gone": frozenset({"terminator", "answered_no", "answered_yes"}),
    # Uncertainty, history and a bare "none" stay within their commas and brackets.
    "answered_none": _ENDS | {"border"},
    "uncertain_before": _ENDS | {"border"},
    "uncertain_after": _ENDS | {"border"},
    "history": _ENDS | {"border"},
}


@dataclass(frozen=True)
class _Cue:
    kind: str
    start: int
    end: int


class _Stops:
    """Where a reach ends, in order."""

    def __init__(self, cues: Sequence[_Cue], kinds: frozenset[str]):
        stops = [cue for cue in cues if cue.kind in kinds]
        self._starts = [cue.start for cue in stops]
        self._ends = [cue.end for cue in stops]

    def between(self, left: int, right: int) -> bool:
        """Whether a stop begins at or after `left` and before `right`."""
        index = bisect_left(self._starts, left)
        return index < len(self._starts) and self._starts[index] < right

    def behind(self, start: int, right: int) -> bool:
        """Whether a stop that ends after `start` begins before `right`."""
        index = bisect_right(self._ends, start)
        return index < len(self._ends) and self._starts[index] < right

    def next(self, position: int, default: int) -> int:
        """Where the first stop at or after a position begins."""
        index = bisect_left(self._starts, position)
        return self._starts[index] if index < len(self._starts) else default


class Sentence:
    """A sentence with its cues found once, so that every finding can ask about its mentions.

    Attributes:
        text: the sentence as `normalize` gives it.
    """

    def __init__(self, text: str):
        self.text = normalize(text)

    @cached_property
    def clauses(self) -> list[tuple[int, int]]:
        """(start, end) of the stretches between terminators."""
        borders = [cue.start for cue in self._cues if cue.kind in _CLAUSES]
        pairs = itertools.pairwise([0, *borders, len(self.text)])
        return [(start, end) for start, end in pairs if end > start]

    @cached_property
    def _cues(self) -> list[_Cue]:
        return _with_new_statements(self.text, _find_cues(self.text))

    @cached_property
    def _stops(self) -> dict[frozenset[str], _Stops]:
        return {kinds: _Stops(self._cues, kinds) for kinds in {_ENDS, *_STOPS.values()}}

    @cached_property
    def _by_kind(self) -> dict[str, list[_Cue]]:
        kinds: dict[str, list[_Cue]] = {}
        for cue in self._cues:
            kinds.setdefault(cue.kind, []).append(cue)
        return kinds

    @cached_property
    def _places(self) -> dict[str, tuple[list[int], list[int]]]:
        return {
            kind: ([cue.start for cue in found], [cue.end for cue in found])
            for kind, found in self._by_kind.items()
        }

    def judge(self, start: int, end: int) -> Judgment:
        """Say how the words from `start` to `end` are meant.

        Args:
            start: index of the mention's first character in `text`.
            end: index behind its last one.

        Returns:
            The strongest of the assertions that reach the mention: negated, hypothesis, history, uncertain,
            and affirmed where none does.
        """
        reached: dict[Assertion, str] = {}
        for kind in self._by_kind:
            for cue, assertion in self._reaching(kind, start, end):
                words = self.text[cue.start : cue.end].strip(" ,;:")
                if kind in _FORWARD and cue.end <= start:
                    excepted = self._exception(end) if assertion is Assertion.NEGATED else ""
                    if excepted:
                        return Judgment(Assertion.AFFIRMED, excepted)
                reached.setdefault(assertion, words)
        for assertion in _ORDER:
            if assertion in reached:
                return Judgment(assertion, reached[assertion])
        return Judgment(Assertion.AFFIRMED, "")

    def _reaching(self, kind: str, start: int, end: int) -> list[tuple[_Cue, Assertion]]:
        """The nearest cue of a kind on either side that reaches a mention."""
        stops = self._stops[_STOPS.get(kind, _ENDS)]
        starts, ends = self._places[kind]
        found = []
        if kind in _FORWARD:
            index = bisect_right(ends, start) - 1
            if index >= 0 and not stops.between(ends[index], start):
                found.append((self._by_kind[kind][index], _FORWARD[kind]))
        if kind in _BACKWARD:
            index = bisect_left(starts, end)
            if index < len(starts) and not stops.behind(start, starts[index]):
                found.append((self._by_kind[kind][index], _BACKWARD[kind]))
        if kind in ("negated_before", "unchanged"):
            # "heart is not enlarged", "no increase in heart size": the denial is part of the mention.
            index = bisect_left(ends, start + 1)
            if index < len(starts) and starts[index] < end:
                inside = start <= starts[index] and ends[index] <= end
                if inside or kind == "unchanged":
                    found.append((self._by_kind[kind][index], Assertion.NEGATED))
        return found

    def _exception(self, end: int) -> str:
        """The exception from a denial behind a mention, where it names nothing but a place or a size."""
        for cue in self._by_kind.get("except", ()):
            if cue.start < end:
                continue
            between = self.text[end : cue.start].rstrip(" ,")
            if len(between) > _NEAR or re.search(r",|\b(?:or|and|nor)\b", between):
                break
            stop = self._stops[_ENDS].next(cue.end, len(self.text))
            rest = self.text[cue.end : stop]
            return self.text[cue.start : cue.end] if _PART.search(rest) and not _FINDING.search(rest) else ""
        one = _ONE.search(self.text, end, end + _FAR)
        return one.group().strip(" ,") if one and not _FINDING.search(self.text, end, one.start()) else ""


_NEAR, _FAR = 40, 80
"""Characters behind a mention within which its exception, and a word that takes it up again, must begin."""
_PART = re.compile(
    r"\b(?:right|left|upper|lower|middle|base|bases|apex|apices|lobes?|lingula|segment|side|focus|foci|area|areas"
    r"|region|one|few|single|some|tiny|trace|small|minimal|solitary|previously|known|mm|cm|r[uml]l|l[ul]l)\b|\d"
)
_FINDING = re.compile(
    r"\w*atelecta|nodul|effusion|consolidat|emphysem|fibro|scar|cyst|calcif|thicken|opaci|mass|edema|pneumo"
    r"|bronchiect|hernia|cardiomeg|stenos|plaque|adenopath|granulom|fractur|infiltrat|device|catheter|stent"
)
_ONE = re.compile(
    rf"(?:\band|\bbut|,) (?:an? )?(?:{DEGREE} |large |new )*(?:one\b|(?:present|seen|noted) (?=on\b|in\b))"
    r"|(?:\band|\bbut|[,;]) (?:[\w-]+ ){0,5}there is one\b"
    rf"|(?:\band|\bbut|,) (?:an? )?(?:{DEGREE}|large) (?=(?:on|in|at) the\b)"
)


def _find_cues(text: str) -> list[_Cue]:
    taken = bytearray(len(text) + 1)
    found: list[_Cue] = []
    for kind, pattern in CUES:
        for match in pattern.finditer(text):
            # A group of this name is the cue, where the pattern looks at more than the cue.
            start, end = match.span("cue") if match.lastgroup == "cue" else match.span()
            if any(taken[start:end]):
                continue
            taken[start:end] = b"\x01" * (end - start)
            found.append(_Cue(kind, start, end))
    return sorted(found, key=lambda cue: cue.start)


_LIST = re.compile(r"\b(?:or|nor|and)\b|/")
_ALTERNATIVE = re.compile(r"\b(?:or|nor)\b")
_ADJECTIVE = re.compile(r"(?:\w(?:al|ic|ous|ive|ed|ar|able|ant|ent|iform|chy)|large|acute|focal|new)$")
_FINITE = re.compile(
    r"\s*(?:\w[\w-]* ){1,4}?(?:(?:is|are|was|were) (?!not\b|observed|detected|seen|noted|identified"
    r"|found|present"
    r"|visuali)|shows?\b|demonstrates?\b|reveals?\b|contains?\b|has\b|have\b|measures?\b)"
)
_PLURAL = re.compile(r"[^sui]s$")
_PLACE = re.compile(r"\b(?:in|at|on) (?:the|both)\b")
_ABSENCE = re.compile(r"\bin the absence of [^,.;]{1,40}?(?P<end> (?=an? )|,)")


def _with_new_statements(text: str, cues: list[_Cue]) -> list[_Cue]:
    """Add terminators where a statement follows a denial without any word that parts them.

    "No effusion, heart is enlarged", "no embolism, consolidation in the right lower lobe is seen" and "no
    effusion, cardiomegaly" are two statements each; a list under one denial has "or", more than two items or
    one predicate. And "no effusion, small nodule or mass" is one list, in spite of its word of degree.
    """
    ends = [n for n, cue in enumerate(cues) if cue.kind in _ENDS]
    dropped: set[int] = set()
    added: list[_Cue] = []
    for first, last in itertools.pairwise([-1, *ends, len(cues)]):
        inner = cues[first + 1 : last]
        denial = next((cue for cue in reversed(inner) if cue.kind == "negated_before"), None)
        if denial is None:
            continue
        tail = cues[last] if last < len(cues) else None
        stop = tail.start if tail else len(text)
        if tail and tail.kind == "terminator" and text[tail.start] == "," and tail.end - tail.start == 2:
            following = next((cues[n].start for n in ends if n > last), len(text))
            between = _ALTERNATIVE.search(text, tail.end, following)
            if between and not _PLACE.search(text, tail.end, between.start()):
                dropped.add(last)
            continue
        commas = [
            cue for cue in inner
            if cue.kind == "border" and text[cue.start] in ", " and cue.start >= denial.end
        ]  # fmt: skip
        for comma in commas:
            if _FINITE.match(text, comma.end, stop) and not _ALTERNATIVE.search(text, comma.end, stop):
                added.append(_Cue("terminator", comma.start, comma.end))
        if not commas:
            continue
        comma = commas[-1]
        # "No A or B, C": the list is closed by its "or". "No A, B or C" and "no A, B, C" are one.
        closed = tail is None and _ALTERNATIVE.search(text, denial.end, comma.start)
        if _LIST.search(text, comma.end, stop) or not (closed or len(commas) == 1):
            continue
        if not closed and _LIST.search(text, denial.end, stop):
            continue
        # "No nodes, cardiomegaly is noted": the predicate is not that of the plural before it.
        own_predicate = (
            tail is not None
            and tail.kind == "predicate"
            and (
                _PLACE.search(text, comma.end, stop)
                or (text.startswith(("is ", "was "), stop) and _PLURAL.search(text[: comma.start].rstrip()))
            )
        )
        if (tail is None or own_predicate) and not _ADJECTIVE.search(text[denial.end : comma.start].rstrip()):
            added.append(_Cue("terminator", comma.start, comma.end))
    added += [_Cue("terminator", match.start("end"), match.end("end")) for match in _ABSENCE.finditer(text)]
    replaced = {cue.start for cue in added}
    kept = [
        cue
        for n, cue in enumerate(cues)
        if n not in dropped and (cue.kind != "border" or cue.start not in replaced)
    ]
    return sorted([*kept, *added], key=lambda cue: cue.start)
