"""Where a clause states a quantity, and the clause without it.

Rules of form, not of meaning: a value near a name, a degree of what is graded, a whole wording. What cannot
be taken out so that a sentence remains takes the clause with it: a lost clause costs a few words, a score
that stays makes an evaluation worthless.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from medclip_jax.reports.quantities import Quantity

_NUMBER = r"(?<![\w.,/-])(?:[<>≥≤=~]=?\s?)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+[.,]\d+|\d+)(?:st|nd|rd|th)?(?!\w)"
_REACH = 60
"""Characters between a name and its value."""
_BEFORE = 30
"""Characters between a value and the name behind it."""
_LINK = (
    r"(?:[\s:=,()–-]|\b(?:scores?|values?|is|was|are|were|of|remains?|appears?|the|an?|to|be|at|in"
    r"|category|range|group|risk|total|overall|markedly|very|again|now|calculated|estimated|measured"
    r"|as)\b)*"
)
_CERTAIN_LINK = (
    r"\s*(?:scores?\b|values?\b)?\s*(?:[:=]|\b(?:of|is|was|total(?:ed|s)?|measures?|equals)\b)\s*(?:a\s+"
    r"|total\s+)*"
)
_INTENSE = (
    r"(?:(?:very|quite|rather|relatively|at least|up to|only|fairly|more|most|predominantly|overall"
    r"|mostly) )*"
)
_NOUN_OF_AMOUNT = r"(?:amounts?|degrees?|burdens?|loads?|volumes?|quantit(?:y|ies)|extents?|numbers?) of "
_NO_STOP = (
    r"(?!(?:and|or|but|with|without|in|of|at|on|to|for|is|are|was|were|there|no|not|which|causing"
    r"|due)\b)[\w'+-]+"
)
# "coronary and aortic calcification": one noun, two adjectives; not so "cardiomegaly and calcification".
_JOINED = r"[\w-]+(?:ic|al|ar|ary|[a-z]{2}d)(?: arter(?:y|ies))?(?:,| (?:and|or)) "
_COPULA = (
    r"(?:(?:is|are|was|were|appears?|remains?|seems?|being|considered|graded|rated|classified|estimated"
    r"|reported|described)\s+(?:to be |as )?)+"
)
_ENDS = (
    r"(?=\s*(?:$|[.,;:)]|\b(?:in|of|at|on|along|involving|affecting|within|throughout|for|and|but|with|to"
    r"|compared|most|elsewhere)\b))"
)
_DENIED = re.compile(
    r"\b(?:no|not|without|nor|never|any|absence of|free of)\b(?:(?! and | but )[^,;]){0,30}$", re.I
)
_PIECE = re.compile(r"[,;:]\s| and | with | as well as | but ")
_TRAILING = re.compile(
    r"(?:,\s*|\s+)(?:with|giving|yielding|corresponding to|consistent with|representing|having"
    r"|resulting in|total(?:ing)?|where|and (?:an?|the|with)|which|at)\b|,\s*"
)
_LEADING_TO_VALUE = (
    r"(?:[,\s]*(?:\b(?:which |that )?(?:measur(?:ing|es?|ed)|reach(?:ing|es)|sized?|is|was|are|were|has"
    r"|have|had|with|of|up to|about|approximately|approx\.?|around|nearly|almost|from|in|between|an?|the"
    r"|its|their|maximum|maximal|max\.?|mean|average|axial|long(?:est)?|short(?:est)?|largest|greatest"
    r"|transverse|diameters?|dimensions?|size|axis|extent|(?:smaller|less|larger|greater|more"
    r"|bigger) than|at)(?!\w)|[:=~])\s*)*"
)
_BEHIND_VALUE = (
    r"(?:[\s-]*(?:sized?\b|large\b|wide\b|long\b|(?:in|at|on) (?:(?:its|the|maximum|maximal|max|greatest"
    r"|largest|short|long|axial|mean|transverse)\s)*(?:diameters?|size|axis|dimensions?|extent|width"
    r"|length|thickness|cross-section)\b|diameters?\b))*"
)
_ABOUT_BEFORE = re.compile(
    r"^\W*(?:it|this|that|these|they|the (?:largest|biggest|smallest|smaller|larger|other|calcifications?"
    r"|plaques?|burden|score|lesion|dominant)|largest|biggest|(?:one|some|most) of (?:which|them)|which)\b",
    re.I,
)
_OPEN_WORDS = frozenset(
    (
        "and",
        "or",
        "with",
        "of",
        "the",
        "an",
        "is",
        "are",
        "was",
        "were",
        "in",
        "at",
        "to",
        "than",
        "by",
        "has",
    )
)
"""Words in which no sentence ends."""
_MOST_CUTS = 12
"""Statements of one clause."""


class Stating:
    """How one quantity is stated, compiled.

    Args:
        quantity: what to look for.
    """

    def __init__(self, quantity: Quantity):
        self.quantity = quantity
        number = _any(quantity.values) if quantity.values else _NUMBER
        words = _any((*quantity.value_words, *quantity.degrees)) if quantity.value_words else None
        run = _any(quantity.degrees)
        run = rf"{_INTENSE}{run}(?:(?: ?[-/,–] ?| (?:to|or|and) |-to-){_INTENSE}{run})*" if run else ""
        graded = _any(quantity.graded)
        name = _any(quantity.names)
        self._name = _compiled(name)
        self._value = _compiled(number)
        self._other = _compiled(
            rf"[\s-]?(?:{'|'.join(quantity.other_values)})" if quantity.other_values else ""
        )
        self._named_word = _compiled(
            rf"(?:{name}){_LINK}\b(?:{words})\b(?! ?\d)|\b(?:{words})\s+(?:{name})" if words and name else ""
        )
        self._certain = _compiled(rf"(?:{name}){_CERTAIN_LINK}{number}" if name else "")
        self._list = _compiled(_any(quantity.lists))
        self._word = _compiled(rf"\b(?:{words})\b" if words else "")
        self._pattern = _compiled(_any(quantity.patterns))
        self._fragment = _compiled(_any(quantity.fragments))
        self._excluded = _compiled(_any(quantity.excluded))
        self._place = _compiled(_any(quantity.places) or "^")
        self._graded = _compiled(graded)
        self._run = _compiled(rf"(?<![\w+])(?:{run})(?![\w+])" if run else "")
        between = rf"(?:{_JOINED}|{_NO_STOP}[ -]){{0,5}}?"
        self._degrees = [
            _compiled(pattern)
            for pattern in (
                rf"(?<![\w+])(?P<cut>(?:(?:an?"
                rf"|the) )?(?:{run}) {_NOUN_OF_AMOUNT}){between}(?<!\w)(?:{graded})(?!\w)",
                rf"(?<![\w+])(?P<cut>(?:{run})[ -]){between}(?<!\w)(?:{graded})(?!\w)",
                rf"(?<!\w)(?:{graded})(?!\w)[^.;,:]{{0,60}}?(?P<cut>\s+{_COPULA}(?:not )?(?:{run})"
                rf"(?: (?:in|by) (?:degree|extent|severity|amount|nature))?){_ENDS}",
                rf"(?<!\w)(?:{graded})(?!\w)(?:[ ](?!and\b)[\w-]+){{0,4}}?"
                rf"(?P<cut>\s*[:=,(–-]\s*(?:{run})\s*\)?){_ENDS}",
                rf"(?<!\w)(?:{graded})(?!\w)(?P<cut> (?:(?:to|of|in) )?(?:an? )?(?:{run})(?: (?:degree"
                rf"|extent))?){_ENDS}",
            )
        ] if run and graded else []  # fmt: skip
        self._other_name = _compiled(_any(quantity.other_names))
        self._lead, self._behind = _compiled(f"{_LEADING_TO_VALUE}$"), _compiled(_BEHIND_VALUE)
        self._word_of_value = _compiled(rf"(?P<cut>\b(?:{words})[ -]+)" if words else "")
        self._any_name = _compiled(
            "|".join(filter(None, (name, _any((*quantity.patterns, *quantity.fragments)))))
        )

    def may_state(self, text: str) -> bool:
        """Whether a text can state the quantity at all: a quick look, before a closer one."""
        if self._any_name.search(text):
            return True
        return bool(
            self._degrees
            and self._graded.search(text)
            and self._place.search(text)
            and self._run.search(text)
        )

    def names_it(self, clause: str) -> bool:
        """Whether a clause names the quantity or what is graded, with or without a value."""
        return bool(
            self._name.search(clause)
            or (self._graded.search(clause) and self._in_place(clause, 0, len(clause)))
        )

    def without(self, clause: str, *, follows: bool = False, certain: bool = False) -> str | None:
        """A clause without what it states.

        Args:
            clause: without its full stop.
            follows: it comes behind one that named the quantity: an entry of a list, or "it", means that.
            certain: only a value that is said to be one counts: of a section on how the scan was made.

        Returns:
            What is left of it; None where nothing is that could stand alone. The clause itself where it
            states nothing.
        """
        if not follows and not self.may_state(clause):
            return clause
        if certain:
            return None if self._certain.search(clause) or self._pattern.search(clause) else clause
        if follows and self._continues(clause):
            return None
        left = clause
        for _ in range(_MOST_CUTS):
            after = self._one_cut(left, follows)
            if after is None or not re.search(r"\w", after):
                return None
            if after == left:
                return None if left != clause and not _stands(left, least=1) else left
            left = after
        return None

    def states(self, clause: str) -> bool:
        """Whether a clause still states it."""
        return self.without(clause) != clause

    def _continues(self, clause: str) -> bool:
        """Whether it is an entry of a list of values, or says of "it" how much there is."""
        if self._list.search(clause):
            if self._values(clause, 0, len(clause)):
                return True
            if self._word.search(clause) and not self._graded.search(clause):
                return True
        if not _ABOUT_BEFORE.search(clause):
            return False
        if self.quantity.removes == "statement" and self._run.search(clause):
            return True
        return bool(self._values(clause, 0, len(clause)))

    def _one_cut(self, clause: str, follows: bool) -> str | None:
        if self.quantity.removes == "value":
            return self._cut_value(clause, follows)
        if found := self._fragment.search(clause):
            return _tidy(_without_span(clause, *found.span()))
        for found in self._pattern.finditer(clause):
            if not self._is_excluded(clause, found.start(), found.end()):
                return self._cut_statement(clause, found.start(), found.end())
        for name in self._name.finditer(clause):
            if span := self._stated(clause, name.start(), name.end()):
                return self._cut_statement(clause, *span)
        return self._cut_degree(clause)

    def _stated(self, clause: str, start: int, end: int) -> tuple[int, int] | None:
        """From where to where a name and its value go."""
        if self._is_excluded(clause, start, end):
            return None
        if values := self._values(clause, end, end + _REACH):
            return start, values[-1][1]
        if values := self._values(clause, max(0, start - _BEFORE), start):
            between = clause[values[-1][1] : start]
            if re.fullmatch(
                r"[\s(:,–-]*(?:\b(?:of|on|the|units?|total|by|in|as|score|an?)\b[\s(]*)*", between
            ):
                return values[-1][0], end
        if (word := self._named_word.search(clause)) and word.start() <= start and end <= word.end():
            return word.start(), word.end()
        return None

    def _values(self, clause: str, start: int, stop: int) -> list[tuple[int, int]]:
        found = []
        for value in self._value.finditer(clause, start, min(stop, len(clause))):
            dated = re.search(r"\b(?:in|from|since|dated|of) $", clause[: value.start()]) and re.fullmatch(
                r"(?:19|20)\d\d", value.group()
            )
            if not dated and not self._other.match(clause, value.end()):
                found.append(value.span())
        return found

    def _cut_statement(self, clause: str, start: int, end: int) -> str | None:
        """Take a statement out with its parenthesis, or with the phrase at the end that it stands in."""
        opened, closed = clause.rfind("(", 0, start + 1), clause.find(")", end - 1)
        if opened >= 0 and closed >= 0 and ")" not in clause[opened:start] and clause[:opened].strip():
            return _tidy(clause[:opened].rstrip() + clause[closed + 1 :])
        before = [found for found in _TRAILING.finditer(clause, 0, start) if _stands(clause[: found.start()])]
        if not before:
            return None
        rest = clause[end:]
        # What follows in the same phrase goes with it; a later one stays only where it is no list of values.
        stop = re.search(r",\s*", rest)
        while stop and (self._list.search(rest, stop.end()) or self._values(rest, stop.end(), len(rest))):
            rest = rest[stop.end() :]
            stop = re.search(r",\s*", rest)
        kept = rest[stop.start() :] if stop else ""
        return _tidy(clause[: before[-1].start()] + kept)

    def _cut_degree(self, clause: str) -> str | None:
        for pattern in self._degrees:
            for found in pattern.finditer(clause):
                if not self._in_place(clause, *found.span()) or self._is_excluded(clause, *found.span()):
                    continue
                start, end = found.span("cut")
                if "not " in found["cut"]:  # "is not significant": there is some, and little
                    return None
                if denial := _DENIED.search(clause[:start]):
                    return self._cut_statement(clause, denial.start(), _piece(clause, end - 1)[1])
                return _tidy(_without_span(clause, start, end))
        for found in self._run.finditer(
            clause
        ):  # a degree that is left over: "mild in the LAD, severe in the RCA"
            first, last = _piece(clause, found.start())
            opens = re.fullmatch(rf"\s*(?:{_COPULA})?", clause[first : found.start()])
            if (
                re.match(_ENDS, clause[found.end() :])
                and self._graded.search(clause, 0 if opens else first, last)
                and self._place.search(clause)
            ):
                behind = re.match(
                    r" (?:in|of|at|on|along|involving|within|throughout|elsewhere)\b", clause[found.end() :]
                )
                return _tidy(clause[:first] + clause[found.end() + 1 :]) if opens and behind else None
        return clause

    def _cut_value(self, clause: str, follows: bool) -> str | None:
        named = [found.span() for found in self._name.finditer(clause)]
        if not named and not (follows and _ABOUT_BEFORE.search(clause)):
            return clause
        others = [found.span() for found in self._other_name.finditer(clause)]
        for value in self._value.finditer(clause):
            if self._other.match(clause, value.end()) or not _belongs(
                value.span(), named or [(0, 0)], others
            ):
                continue
            start = value.start()
            if (named[:1] and named[0][1] <= start) or not named:
                # What leads from the name to its value: "measuring up to".
                start = self._lead.search(clause[:start]).start()
            return _tidy(_without_span(clause, start, self._behind.match(clause, value.end()).end()))
        for found in self._word_of_value.finditer(clause):
            if any(0 <= start - found.end() <= _BEFORE for start, _ in named):
                return _tidy(_without_span(clause, *found.span("cut")))
        return clause

    def _in_place(self, clause: str, start: int, end: int) -> bool:
        """Whether what is said from `start` to `end` is said of the quantity's places."""
        if not self.quantity.places:
            return True
        first, last = _piece(clause, start)[0], _piece(clause, end - 1)[1]
        while last < len(clause):  # a list goes on, until something else is said
            following = _piece(clause, min(last + 1, len(clause) - 1))
            if following[1] <= last or self._says_more(clause, *following):
                break
            last = following[1]
        while first > 0:
            previous = _piece(clause, first - 1)
            if previous[0] >= first or self._says_more(clause, *previous):
                break
            first = previous[0]
        return self._place.search(clause, first, last) is not None

    def _says_more(self, clause: str, start: int, end: int) -> bool:
        return bool(self._graded.search(clause, start, end) or self._run.search(clause, start, end))

    def _is_excluded(self, clause: str, start: int, end: int) -> bool:
        return any(found.start() < end and start < found.end() for found in self._excluded.finditer(clause))


@lru_cache(maxsize=64)
def stating(quantity: Quantity) -> Stating:
    """The compiled form of a quantity."""
    return Stating(quantity)


def _piece(clause: str, place: int) -> tuple[int, int]:
    """From where to where the part of a clause goes that a place lies in."""
    start = 0
    for found in _PIECE.finditer(clause):
        if found.end() > place:
            return start, found.end()
        start = found.end()
    return start, len(clause)


def _belongs(
    value: tuple[int, int], named: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]
) -> bool:
    """Whether a value is that of a name: the next one before it is not of something else, or one follows."""
    before = [(end, True) for _, end in named if end <= value[0]] + [
        (end, False) for _, end in others if end <= value[0]
    ]
    if any(0 <= start - value[1] <= _BEFORE for start, _ in named):
        return True
    return max(before)[1] if before else False


def _stands(text: str, least: int = 2) -> bool:
    """Whether a text could be a sentence: some words, of which the last joins nothing."""
    words = re.findall(r"[^\W\d_]{2,}", text)
    return len(words) >= least and words[-1].lower() not in _OPEN_WORDS


def _without_span(text: str, start: int, end: int) -> str:
    """A text without a part of it, its article and its capital as they then must be."""
    before, after = text[:start], text[end:]
    article = re.search(r"\b(a|an)\s+$", before, re.I)
    if article and after.lstrip():
        vowel = after.lstrip()[0].lower() in "aeio"
        written = {True: "an", False: "a"}[vowel]
        written = written.capitalize() if article[1][0].isupper() else written
        before = before[: article.start()] + written + " "
    elif not before.strip() and after.lstrip()[:1].islower() and text[: start + 1].strip()[:1].isupper():
        after = after.lstrip()
        after = after[0].upper() + after[1:]
    return before + (" " if before[-1:].isalnum() and after[:1].isalnum() else "") + after


def _tidy(text: str) -> str:
    """Spaces, commas and empty parentheses that a part left behind."""
    text = re.sub(r"\(\s*[,;]?\s*\)|\[\s*\]", "", text)
    text = re.sub(r"[ \t]{2,}", " ", text)
    text = re.sub(r"\s+([,;:.)])", r"\1", text)
    text = re.sub(r"([,;:])(?:\s*[,;:])+", r"\1", text)
    return re.sub(r"[\s,;:(–-]+$", "", re.sub(r"^[\s,;:)]+", "", text))


def _any(patterns: Sequence[str]) -> str:
    return f"(?:{'|'.join(f'(?:{pattern})' for pattern in patterns)})" if patterns else ""


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(f"(?:{pattern})" if pattern else r"(?!)", re.IGNORECASE)
