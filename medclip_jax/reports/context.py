"""What a sentence says about a mention: affirmed, negated, uncertain, history or hypothesis.

Rules in the manner of ConText (Harkema et al., J Biomed Inform 2009): a trigger reaches forwards or backwards over its
clause until a terminator or a finished predicate, and what it reaches takes its meaning. All text is lower case.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum


class Assertion(Enum):
    """How a sentence puts a mention."""

    AFFIRMED = "affirmed"
    NEGATED = "negated"
    UNCERTAIN = "uncertain"
    HISTORY = "history"
    HYPOTHESIS = "hypothesis"


@dataclass(frozen=True)
class Judgement:
    """The assertion of one mention and the words that made it; "" where nothing did (affirmed by default)."""

    assertion: Assertion
    trigger: str


_BE = r"(?:is|are|was|were|be|been|being|has been|have been)"
_SEEN = (
    r"(?:observed|detected|seen|noted|identified|found|present|visuali[sz]ed|distinguished|demonstrated|evident|"
    r"encountered|monitored|followed|watched|available|selected|determined|noticed|recogni[sz]ed|appreciated|shown)"
)

_TRIGGERS: tuple[tuple[str, str], ...] = (
    # Words with "no" or "not" in them that deny a change or a certainty, not the finding.
    (
        "pseudo",
        r"\bno (?:\w+ ){0,2}?(?:change|difference|interval change|progression|regression|longer enlarged)\b"
        r"|\bwithout (?:\w+ ){0,2}?(?:change|difference|contrast|progression|intravenous)\b|\bnot only\b"
        r"|\bnot (?:\w+ )?(?:change|changed|differ|increase in size)\b|\bno (?:increase|decrease)\b"
        r"|\bnon-?contrast\w*|\bnot (?:be )?(?:given|administered|used)\b"
        r"|\b(?:can|could|may)(?:not| not) be (?:\w+ )?(?:evaluated|assessed|differentiated|distinguished from)\b",
    ),
    (
        "uncertain_before",
        r"\b(?:possibl[ey]|probabl[ey]|likely|suspicious (?:for|of)|suspected|suspicion of|may (?:be|represent|"
        r"belong|suggest|indicate)|might (?:be|represent)|could (?:be|represent)|questionable|equivocal|"
        r"cannot exclude|can not exclude|concerning for|differential diagnosis|doubtful)\b",
    ),
    (
        "uncertain_after",
        r"\?|\b(?:can ?not|could not|can't) be (?:\w+ )?(?:excluded|ruled out)\b|\bnot excluded\b"
        r"|\b(?:is|are|was|were) (?:suspected|suspicious|questionable|possible|doubtful|considered|thought)\b",
    ),
    (
        "negated_after",
        rf"\b(?:{_BE} |do not |does not |did not )?(?:not|never) (?:\w+ )?(?:\w+ly )?(?:{_BE} )?{_SEEN}\b"
        rf"|\bcan ?not be {_SEEN}\b|\bcould not be {_SEEN}\b"
        r"|\b(?:is|are|was|were) (?:absent|negative|excluded|ruled out)\b"
        r"|\b(?:has|have) (?:completely |totally )?(?:resolved|disappeared|regressed completely)\b"
        r"|\b(?:not|no longer) (?:exist|exists|available|present|visible)\b|: ?(?:none|no|negative|absent)\b",
    ),
    (
        "negated_before",
        r"\bno\b(?! \d)|\bnot\b|\bwithout\b|\babsen(?:ce|t)(?: of)?\b|\bfree (?:of|from)\b|\bnegative for\b"
        r"|\bneither\b|\bnor\b|\bdenies\b|\bfailed to (?:show|reveal|demonstrate)\b|\bnone of\b|\black of\b"
        r"|\bruled out\b|\bcannot\b",
    ),
    (
        "history",
        r"\bhistory of\b|\bpreviously (?:described|known|existing|observed|seen|defined|reported)\b|\bknown case of\b"
        r"|\bwas present (?:in|on) the (?:previous|prior)\b|\boperated (?:for|due to)\b|\bh/o\b|\bs/p\b",
    ),
    (
        "hypothesis",
        r"\b(?:to|in order to) (?:rule out|exclude|assess for|evaluate for|look for)\b|\bin terms of\b"
        r"|\bevaluate for\b|\br/o\b|\brule out\b|\bindication\b|\bif (?:there is|clinically)\b",
    ),
    (
        "terminator",
        r"\bbut\b|\bhowever\b|\balthough\b|\bthough\b|\bexcept(?: for)?\b|\bapart from\b|\baside from\b|\bother than\b"
        r"|\bwhereas\b|\bwhile\b|\byet\b|\bnevertheless\b|\bon the other hand\b|;|\bthere (?:is|are|was|were)\b(?! no)"
        r"|\bdue to\b|\bsecondary to\b|\bwhich\b|\bin addition\b|\botherwise\b|\bbesides\b|\bthen\b",
    ),
    ("predicate", rf"\b{_BE} (?:also |again |still |\w+ly )?{_SEEN}\b"),
)
_FORWARD = {
    "negated_before": Assertion.NEGATED,
    "uncertain_before": Assertion.UNCERTAIN,
    "history": Assertion.HISTORY,
    "hypothesis": Assertion.HYPOTHESIS,
}
_BACKWARD = {"negated_after": Assertion.NEGATED, "uncertain_after": Assertion.UNCERTAIN}
_ORDER = (Assertion.NEGATED, Assertion.HYPOTHESIS, Assertion.HISTORY, Assertion.UNCERTAIN)
_COMPILED = tuple((kind, re.compile(pattern)) for kind, pattern in _TRIGGERS)


@dataclass(frozen=True)
class _Trigger:
    kind: str
    start: int
    end: int


class Sentence:
    """A sentence with its triggers found once, so that every finding can ask about its mentions.

    Attributes:
        text: the sentence in lower case.
        clauses: (start, end) of the stretches between terminators.
    """

    def __init__(self, text: str):
        self.text = " ".join(text.lower().split())
        self._triggers = _find_triggers(self.text)
        self.clauses = self._split()

    def _split(self) -> list[tuple[int, int]]:
        borders = [0]
        for trigger in self._triggers:
            if trigger.kind == "terminator":
                borders.append(trigger.start)
        borders.append(len(self.text))
        return [(start, end) for start, end in zip(borders, borders[1:], strict=False) if end > start]

    def judge(self, start: int, end: int) -> Judgement:
        """Say how the words from `start` to `end` are meant.

        Args:
            start: index of the mention's first character in `text`.
            end: index behind its last one.

        Returns:
            The strongest of the assertions that reach the mention: negated, hypothesis, history, uncertain,
            and affirmed where none does.
        """
        reached: dict[Assertion, str] = {}
        for position, trigger in enumerate(self._triggers):
            words = self.text[trigger.start : trigger.end]
            if trigger.kind in _FORWARD and trigger.end <= start:
                if self._reach_forward(position) >= start:
                    reached.setdefault(_FORWARD[trigger.kind], words)
            elif (
                trigger.kind in _BACKWARD and trigger.start >= end and self._reach_backward(position) <= start
            ):
                reached.setdefault(_BACKWARD[trigger.kind], words)
            elif trigger.kind == "negated_before" and start <= trigger.start and trigger.end <= end:
                reached.setdefault(Assertion.NEGATED, words)
        for assertion in _ORDER:
            if assertion in reached:
                return Judgement(assertion, reached[assertion])
        return Judgement(Assertion.AFFIRMED, "")

    def _reach_forward(self, position: int) -> int:
        for trigger in self._triggers[position + 1 :]:
            if trigger.kind in ("terminator", "predicate", "negated_after"):
                return trigger.start
        return len(self.text)

    def _reach_backward(self, position: int) -> int:
        for trigger in reversed(self._triggers[:position]):
            if trigger.kind in ("terminator", "predicate", "negated_after"):
                return trigger.end
        return 0


def _find_triggers(text: str) -> list[_Trigger]:
    taken = bytearray(len(text))
    found: list[_Trigger] = []
    for kind, pattern in _COMPILED:
        for match in pattern.finditer(text):
            start, end = match.span()
            if any(taken[start:end]):
                continue
            taken[start:end] = b"\x01" * (end - start)
            if kind != "pseudo":
                found.append(_Trigger(kind, start, end))
    return sorted(found, key=lambda trigger: trigger.start)
