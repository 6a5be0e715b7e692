"""Splitting report text into sentences."""

from __future__ import annotations

import re

from medclip_jax.reports.cleaning import join_wrapped_lines

_ABBREVIATIONS = re.compile(
    r"(?:dr|mrs?|prof|no|nr|figs?|approx|ca|cf|vs|etc|e\.g|i\.e|al|ser|im|img|inc|resp|max|min|avg|diam|incl|excl"
    r"|ant|post|sup|inf|lat|med|vert|segm?|pl|eff|bilat|rt|lt|sig|susp|poss|prob|calc|st|consol)"
)
_PERSON = frozenset({"dr", "mr", "mrs", "ms", "prof"})
# Double quotes part the points of CT-RATE's impressions. One that hugs a word in small letters quotes it.
_BREAK = re.compile(
    r"[.!?]+[\"')\]]*(?=\s|$|[A-Z(\"•*])|(?<=[a-z]{3})\.(?=[a-z]{4})"
    r"|(?<!\S)(?<![:,] )\"(?=\s*[A-Z\d]|\s|$)|\"(?=\s+[A-Z\"]|\s*$)|[•●▪\n\r]+"
)
_BULLETS = ' \t\r\n"“”•●▪*-–'
_ITEM = re.compile(r"^\(?(?:\d{1,2}|[a-h])[.)]\s+")
_NUMBER = re.compile(r"(?<!\S)\(?(\d{1,2}|[a-h])[.)]\s+(?=[A-Z\d])")
# The answer to what stands before it ("Consolidation? No.").
_ANSWER = re.compile(
    r"\s*[-–:]?\s*(?:no(?:ne)?|nil|yes|negative|positive|absent|present|not (?:seen|present|identified"
    r"|detected|observed))"
    r"\b(?: (?:seen|identified|detected|present|noted))?\s*(?:[.;,]|$)",
    re.IGNORECASE | re.MULTILINE,
)
LONGEST_SENTENCE = 1000
"""Characters. What is longer is no sentence, and is cut, so that the cost of reading grows with length."""


def split_sentences(text: str) -> list[str]:
    """Split a report into sentences.

    A full stop ends a sentence unless it stands inside a number ("3.5 x 2 cm") or after an abbreviation that
    no capital follows. Line breaks (but not of wrapped lines), bullets, the numbers of a list that runs on
    in one line and the double quotes with which CT-RATE separates the points of its impressions also end
    one. A semicolon does not: what stands before it ("In the lung window; ...") is often no statement of
    its own. A question mark does not where the answer follows. More than `LONGEST_SENTENCE` characters
    without an end are cut at a comma or a space.

    Args:
        text: any report text.

    Returns:
        The sentences in order, without bullets and item numbers; none is empty.
    """
    text = join_wrapped_lines(text.replace("\r\n", "\n"))
    pieces: list[str] = []
    start = 0
    items = _numbered_items(text)
    numbers = {end for start, end in items}  # the full stop of an item's number ends nothing
    for end in sorted({start for start, end in items} | (set(_ends(text)) - numbers)):
        pieces.append(text[start:end])
        start = end
    pieces.append(text[start:])
    sentences = (_ITEM.sub("", piece.strip(_BULLETS)).strip(_BULLETS) for piece in pieces)
    return [part for sentence in sentences for part in _cut_long(sentence) if re.search(r"\w", part)]


def sentence_ends(text: str) -> list[int]:
    """Where each sentence of a report ends.

    Args:
        text: any report text.

    Returns:
        For each sentence of `split_sentences`, how many characters of `text` there are up to its end. What
        stands between two sentences, a bullet or an item's number, is of the later one.
    """
    ends: list[int] = []
    end = 0
    for sentence in split_sentences(text):
        for word in sentence.split():
            # A word that a line break parted stands there in pieces: then letter by letter.
            pieces = (word,) if text.find(word, end, end + _NEAR) >= 0 else tuple(word)
            for piece in pieces:
                start = text.find(piece, end)
                end = start + len(piece) if start >= 0 else end
        ends.append(end)
    return ends


_NEAR = 200
"""Characters after a word within which the next one begins."""


def _ends(text: str) -> list[int]:
    ends: list[int] = []
    for match in _BREAK.finditer(text):
        before = text[max(match.start() - 12, ends[-1] if ends else 0) : match.start()]
        if match.group().startswith("."):
            if re.fullmatch(r"\s*\d{1,2}", before):  # the number of a list's item
                continue
            after = text[match.end() : match.end() + 2].lstrip()
            word = re.search(r"(?:^|(?<=[^\w.]))[\w.]+$", before)
            token = word.group().lower() if word else ""
            if token in _PERSON and after:
                continue
            if _ABBREVIATIONS.fullmatch(token) and (not after or not after[0].isupper()):
                continue
        elif match.group().startswith("?") and _ANSWER.match(text, match.end()):
            continue
        ends.append(match.end())
    return ends


def _numbered_items(text: str) -> list[tuple[int, int]]:
    """Where the items of "1. ... 2. ... 3. ..." begin, from the second on, and where their numbers end.

    The first stands where a sentence may begin, so that "segment 1. ... segment 2. ..." is no list.
    """
    items: list[tuple[int, int]] = []
    expected: int | None = None
    for match in _NUMBER.finditer(text):
        number = int(match[1]) if match[1].isdigit() else ord(match[1]) - ord("a") + 1
        if number == 1 and re.search(r"(?:^|[^\w\s,])\s*$", text[max(0, match.start() - 12) : match.start()]):
            expected = 2
        elif number == expected:
            items.append((match.start(), match.end(1) + 1))
            expected += 1
    return items


def _cut_long(sentence: str) -> list[str]:
    parts = []
    start = 0
    while len(sentence) - start > LONGEST_SENTENCE:
        end = start + LONGEST_SENTENCE
        half = start + LONGEST_SENTENCE // 2
        cut = max(sentence.rfind(mark, half, end) for mark in (";", ","))
        cut = cut if cut > 0 else sentence.rfind(" ", half, end)
        cut = cut + 1 if cut > 0 else end
        parts.append(sentence[start:cut].strip())
        start = cut
    return [*parts, sentence[start:].strip()]
