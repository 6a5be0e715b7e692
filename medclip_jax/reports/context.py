"""What a sentence says about a mention: affirmed, negated, uncertain, history or hypothesis.

Rules in the manner of ConText (Harkema et al., J Biomed Inform 2009): a trigger reaches forwards or backwards
over its clause until a terminator or a finished predicate, and what it reaches takes its meaning. All text is
lower case.
"""

from __future__ import annotations

import itertools
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
    r"(?:observed|detected|seen|noted|identified|found|present|visuali[sz]ed|distinguished|demonstrated|evident"
    r"|encountered|monitored|followed|watched|available|selected|determined|noticed|recogni[sz]ed|appreciated"
    r"|shown)"
)
_DEGREE = r"(?:mild|minimal|small|moderate|trace|stable|unchanged|mildly|minimally|moderately)"
_EXTENT = (
    r"(?:(?:significant|interval|obvious|relevant|appreciable|substantial|definite|marked|major|notable|clear"
    r"|considerable|other|important|prominent|remarkable|size|dimensional) ){0,2}"
)

# In order of precedence: words taken by one kind are not looked at for the kinds below it.
_TRIGGERS: tuple[tuple[str, str], ...] = (
    # "no", "not", "without" that deny a change, a contrast medium or an assessment, not the finding.
    (
        "pseudo",
        rf"\bno {_EXTENT}(?:changes?|difference|progression|regression)\b"
        r"|\bno (?:increase|decrease) in (?:the )?(?:\w+ )?(?:sizes?|numbers?|diameter|dimensions?)\b"
        r"|\b(?:without|lack of|no) (?:\w+ ){0,2}?contrast\b"
        rf"|\bwithout (?:any )?{_EXTENT}(?:changes?|difference)\b"
        r"|\bnot only\b|\bnot (?:\w+ )?(?:change|changed|differ)\b|\bnon-?contrast\w*"
        r"|\bnot (?:be )?(?:given|administered|used)\b|\bnot (?:\w+ )?increased in size\b"
        r"|\b(?:can|could|may|did|do|does) ?not (?:be )?(?:\w+ )?"
        r"(?:evaluated|assessed|differentiated|change|distinguished from)\b",
    ),
    (
        "uncertain_before",
        r"\b(?:possibl[ey]|probabl[ey]|likely|suspicious (?:for|of)|suspected|suspicion of|questionable"
        r"|may (?:be|represent|belong|suggest|indicate)|might (?:be|represent)|could (?:be|represent)"
        r"|equivocal|can ?not exclude|concerning for|differential diagnosis|doubtful)\b",
    ),
    (
        "uncertain_after",
        r"\?|\b(?:can ?not|could not|can't) be (?:\w+ )?(?:excluded|ruled out)\b|\bnot (?:be )?excluded\b"
        r"|\b(?:is|are|was|were) (?:suspected|suspicious|questionable|possible|doubtful)\b",
    ),
    # What was there once and has gone, however long the sentence between.
    (
        "gone",
        rf"\b(?:is|are|was|were) (?:not|no longer) {_SEEN} (?:in|on|at) (?:the |this )?"
        r"(?:current|present|today)"
        rf"|\b(?:previous|prior)\b[^.;]{{0,60}}?\b(?:is|are|was|were) (?:not|no longer) {_SEEN}\b"
        r"|\b(?:is|are|was|were|has|have)? ?(?:completely |totally )?(?:resolved|disappeared|resorbed)\b"
        r"|\b(?:complete|total|full) (?:regression|resolution|resorption)\b|\bregressed completely\b"
        r"|\bcompletely regressed\b|\b(?:is|are|was|were|has been|have been) removed\b",
    ),
    # "Effusion - no thickening was detected": one denial for both sides of the dash.
    (
        "negated_both",
        rf"(?<=\w) ?[-/] ?no\b(?=(?: [\w-]+){{1,4}}? (?:is|are|was|were) {_SEEN})",
    ),
    (
        "negated_after",
        rf"\b(?:{_BE} |do |does |did )?(?:not|never|no longer) (?:\w+ )?(?:\w+ly )?(?:{_BE} )?{_SEEN}\b"
        rf"|\b(?:can|could) ?not be {_SEEN}\b"
        r"|\b(?:is|are|was|were) (?:absent|negative(?! for)|excluded|ruled out)\b"
        r"|\b(?:not|no longer) exists?\b|: ?(?:none|no|negative|absent)\b(?= ?(?:[.,;)]|$))|\(-\)",
    ),
    (
        "negated_before",
        r"\bno\b|\bnot\b|\bwithout\b|\babsen(?:ce|t)(?: of)?\b|\bfree (?:of|from)\b|\bnegative for\b"
        r"|\bneither\b|\bnor\b|\bdenies\b|\bfailed to (?:show|reveal|demonstrate)\b|\bnone of\b|\black of\b"
        r"|\bruled out\b|\bcannot\b",
    ),
    (
        "history",
        r"\bhistory of\b|\bknown case of\b|\boperated (?:for|due to)\b|\bh/o\b|\bs/p\b|\bstatus post\b",
    ),
    (
        "hypothesis",
        r"\b(?:to|in order to) (?:rule out|exclude|assess for|evaluate for|look for)\b|\bin terms of\b"
        r"|\bevaluate for\b|\br/o\b|\brule out\b|\bindication\b|\bif (?:there is|clinically)\b",
    ),
    (
        "terminator",
        r"\bbut\b|\bhowever\b|\balthough\b|\bthough\b|\bexcept(?: for)?\b|\bapart from\b|\baside from\b"
        r"|\bother than\b|\bwhereas\b|\bwhile\b|\byet\b|\bnevertheless\b|\bon the other hand\b|;"
        r"|\bthere (?:is|are|was|were)\b(?! no)|\bdue to\b|\bsecondary to\b|\bwhich\b|\bin addition\b"
        rf"|\botherwise\b|\bbesides\b|\bthen\b|(?:,|\band) (?=(?:an? )?{_DEGREE}\b)|\band (?=no\b|without\b)",
    ),
    ("predicate", rf"\b{_BE} (?:also |again |still |\w+ly )?{_SEEN}\b"),
    # Uncertainty, history and hypothesis reach less far than negation does.
    ("border", r"[,()]"),
)
_FORWARD = {
    "negated_before": Assertion.NEGATED,
    "negated_both": Assertion.NEGATED,
    "uncertain_before": Assertion.UNCERTAIN,
    "history": Assertion.HISTORY,
    "hypothesis": Assertion.HYPOTHESIS,
}
_BACKWARD = {
    "negated_after": Assertion.NEGATED,
    "negated_both": Assertion.NEGATED,
    "gone": Assertion.NEGATED,
    "uncertain_after": Assertion.UNCERTAIN,
}
_ENDS = frozenset({"terminator", "predicate", "negated_after", "gone"})
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
        text: the sentence in lower case, white space collapsed.
        clauses: (start, end) of the stretches between terminators.
    """

    def __init__(self, text: str):
        self.text = " ".join(text.lower().split())
        self._triggers = _find_triggers(self.text)
        borders = [trigger.start for trigger in self._triggers if trigger.kind == "terminator"]
        edges = [0, *borders, len(self.text)]
        self.clauses = [(start, end) for start, end in itertools.pairwise(edges) if end > start]

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
            forward, backward = _FORWARD.get(trigger.kind), _BACKWARD.get(trigger.kind)
            if forward and trigger.end <= start and self._reach_forward(position, forward) >= start:
                reached.setdefault(forward, words)
            elif backward and trigger.start >= end and self._reach_backward(position, backward) <= start:
                reached.setdefault(backward, words)
            elif trigger.kind == "negated_before" and start <= trigger.start and trigger.end <= end:
                reached.setdefault(Assertion.NEGATED, words)  # "heart is not enlarged"
        for assertion in _ORDER:
            if assertion in reached:
                return Judgement(assertion, reached[assertion])
        return Judgement(Assertion.AFFIRMED, "")

    def _stops(self, trigger: _Trigger, assertion: Assertion) -> bool:
        return trigger.kind in _ENDS or (trigger.kind == "border" and assertion is not Assertion.NEGATED)

    def _reach_forward(self, position: int, assertion: Assertion) -> int:
        for trigger in self._triggers[position + 1 :]:
            if self._stops(trigger, assertion):
                return trigger.start
        return len(self.text)

    def _reach_backward(self, position: int, assertion: Assertion) -> int:
        if self._triggers[position].kind == "gone":
            return 0
        for trigger in reversed(self._triggers[:position]):
            if self._stops(trigger, assertion):
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
