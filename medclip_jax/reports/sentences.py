"""Splitting report text into sentences."""

from __future__ import annotations

import re

_ABBREVIATIONS = re.compile(
    r"(?:dr|mrs?|prof|no|nr|figs?|approx|ca|cf|vs|etc|e\.g|i\.e|al|ser|im|img|inc|resp|max|min|avg|diam|incl|excl"
    r"|ant|post|sup|inf|lat|med|vert|segm?)"
)
_BREAK = re.compile(r"[.!?]+[\"')\]]*(?=\s|$|[A-Z(\"•*])|[\"•●▪\n\r]+")

_BULLETS = ' \t\r\n"“”•●▪*-–'
_ITEM = re.compile(r"^\d{1,2}[.)]\s+")
# A line that goes on in lower case or with a number is a wrapped line, not the next item.
_WRAPPED = re.compile(r"(?<![.!?:;\s])[ \t]*\r?\n[ \t]*(?=[a-z(]|\d+(?:[.,]\d+)?[ x]?(?:mm|cm|x)\b)")


def split_sentences(text: str) -> list[str]:
    """Split a report into sentences.

    A full stop ends a sentence unless it stands inside a number ("3.5 x 2 cm") or after an abbreviation that
    no capital follows. Line breaks (but not of wrapped lines), bullets and the double quotes with which
    CT-RATE separates the points of its impressions also end one. A semicolon does not: what stands before it
    ("In the lung window; ...") is often no statement of its own.

    Args:
        text: any report text.

    Returns:
        The sentences in order, without bullets and item numbers; none is empty.
    """
    text = _WRAPPED.sub(" ", text)
    pieces: list[str] = []
    start = 0
    for match in _BREAK.finditer(text):
        if match.group().startswith("."):
            before = text[start : match.start()]
            if re.fullmatch(r"\s*\d{1,2}", before):  # the number of a list's item
                continue
            after = text[match.end() : match.end() + 2].lstrip()
            word = re.search(r"[\w.]+$", before)
            token = word.group().lower() if word else ""
            if _ABBREVIATIONS.fullmatch(token) and (not after or not after[0].isupper()):
                continue
        pieces.append(text[start : match.end()])
        start = match.end()
    pieces.append(text[start:])
    sentences = (_ITEM.sub("", piece.strip(_BULLETS)).strip(_BULLETS) for piece in pieces)
    return [sentence for sentence in sentences if re.search(r"\w", sentence)]
