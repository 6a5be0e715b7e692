"""Text as it leaves hospital systems, made readable: markup, broken characters, line breaks, spellings.

`clean_text` mends what is a fault of storage or transport and keeps the words as they are. `normalize` goes
further, for matching alone: lower case, written-out contractions, American spellings.
"""

from __future__ import annotations

import html
import itertools
import re
import unicodedata

_TAG_NAMES = (
    r"a|b|i|u|em|strong|span|font|div|p|br|hr|li|ul|ol|dl|dt|dd|table|tbody|thead|tr|td|th|html|body|head|title"
    r"|h[1-6]|pre|sup|sub|center|style|script|meta|blockquote|o:p"
)
_BREAKING_TAG = re.compile(r"<\s*/?\s*(?:p|br|hr|div|li|tr|h[1-6]|dt|dd|blockquote)\b[^<>]{0,200}>", re.I)
_TAG = re.compile(rf"<\s*/?\s*(?:{_TAG_NAMES})\b[^<>]{{0,200}}>|<!--", re.I)
# Line breaks as systems write them out: escaped (\n), HL7 (\.br\, \X0D\), Excel (_x000D_), Unicode.
_WRITTEN_BREAK = re.compile(
    r"\\r\\n|\\[nr](?![a-z]{2}[a-z]*\\)|\\\.br\\|\\X0[AD]\\|_x000[DA]_|\r\n?|[\v\f\x85\u2028\u2029]"
)
_SPACE = re.compile(r"[\t\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_INVISIBLE = re.compile(r"\u00ad[ \t]*\n?[ \t]*|[\ufeff\u200b-\u200f\u2060]|[\x00-\x08\x0e-\x1f\x7f]")
# UTF-8 that was read as Windows-1252 ("â€“" for a dash): the lead byte of two or three, and what follows it.
_MOJIBAKE = re.compile("[Â-ï][\x80-\xbf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc"
                       "\u2013-\u203a\u20ac\u2122]{1,2}")  # fmt: skip
_COMPATIBILITY = re.compile("[\ufb00-\ufb06\uff01-\uff5e]")
# "Effusion ........ none". Possessive, so that a long run is looked at once.
_LEADER = re.compile(r"(?<![._…])(?:\.{4,}+|_{4,}+|…{2,}+)[ \t]*+(?=[A-Za-z])")
# Two columns: "Heart", a tab or several spaces, "Normal".
_COLUMN = re.compile(r"^([A-Za-z][A-Za-z /,]{2,40}?)(?:\t+| {4,})(?=\S[^\t\n]*$)", re.MULTILINE)
# "Effusion: no", two spaces or a tab, "Nodule: yes".
_NEXT_COLUMN = re.compile(r"(: ?(?:none|no|nil|yes|present|absent))(?: {2,}|\t)(?=[A-Z])", re.IGNORECASE)
_LOST_APOSTROPHE = re.compile("(?<=n)\ufffd(?=t\\b)|(?<=\\w)\ufffd(?=s\\b)")


def clean_text(text: str) -> str:
    """Mend what storage and transport did to a text; words, case and order stay.

    Markup goes, escaped and foreign line breaks become line breaks, ligatures, soft hyphens and wrongly
    decoded characters are resolved, and lines that were only wrapped are joined.

    Args:
        text: a report or a part of one.
    """
    if "<" in text or "&" in text:
        text = html.unescape(_strip_tags(text))
        text = _strip_tags(text)  # markup that was itself escaped
    text = _MOJIBAKE.sub(_decode_again, text)
    text = _COMPATIBILITY.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    text = _LOST_APOSTROPHE.sub("'", text).replace("\ufffd", " ")
    text = _WRITTEN_BREAK.sub("\n", text).replace("\\t", "\t")
    text = text.replace("…", "...")
    text = _NEXT_COLUMN.sub("\\1\n", text)
    text = _COLUMN.sub(r"\1: ", _LEADER.sub(": ", _INVISIBLE.sub("", text)))
    return join_wrapped_lines(_SPACE.sub(" ", text))


def _strip_tags(text: str) -> str:
    return _TAG.sub(" ", _BREAKING_TAG.sub("\n", text))


def _decode_again(found: re.Match[str]) -> str:
    encoded = bytearray()
    for character in found[0]:
        # Five bytes have no character in Windows-1252 and come through as they are.
        encoded += bytes((ord(character),)) if ord(character) < 256 else character.encode("cp1252", "replace")
    try:
        return encoded.decode("utf-8")
    except UnicodeDecodeError:
        return found[0]


_BULLET = r"[-*•●▪–]\s|\d{1,2}[.)]\s|[\[(][ xX]?[\])]|[☐☑☒□■✓✔]"
_ITEM = re.compile(rf"\s*(?:{_BULLET})")
_ENDED = re.compile(r"[.!?:;]\W*$")
_GOES_ON = re.compile(r"[a-z(,]|\d+(?:[.,]\d+)?[ x]?(?:mm|cm|x)\b|%")
# A line that ends in one of these is not finished, whatever the case of the next one.
_UNFINISHED = re.compile(
    r"(?:,|\b(?:an?|the|of|in|on|at|to|for|from|with|without|and|or|nor|no|not|is|are|was|were|by|than|as|has"
    r"|have|been|be|there|this|both|mild|moderate|severe|small|large|minimal|left|right|bilateral|pleural"
    r"|pericardial|pulmonary|coronary|main|upper|lower|middle|lymph|ground|thoracic))\s*$",
    re.I,
)
_LABEL = re.compile(r"\s*[^\s:.;][^:.;\n]{1,50}:")
_HEADER_LINE = re.compile(
    r"\s*(?:findings?|impressions?|conclusions?|technique|comparison|indications?"
    r"|(?:clinical )?history|opinion"
    r"|recommendations?|addendum|clinical \w+)\s*:",
    re.I,
)
_HYPHEN = re.compile(r"([A-Za-z]+)-$")
_COMPOUND_HEAD = re.compile(
    r"(?:non|ground|left|right|well|ill|low|high|part|follow|soft|thick|thin|long|short|new|end|tree|in|air|full)$",
    re.I,
)
_ANSWER_LINE = re.compile(r"(?:no(?:ne)?|nil|yes|absent|present|negative|positive|normal|not \w+)\W*$", re.I)
_NARROWEST_PAGE = 40
"""Characters from which lines of about equal length are taken for a page's width."""
_LONGEST_PARAGRAPH = 8
"""Lines within which the end of a paragraph is looked for."""


def join_wrapped_lines(text: str) -> str:
    """Join lines that were broken only for the width of a page.

    A line goes on where the next begins in lower case or with a measure, or where it ends in a word that
    cannot end a statement. In text of capitals, where case tells nothing, it goes on as well where other
    lines close with a full stop and it does not, or where the next word would not have fitted.

    Args:
        text: with "\\n" as its only line break.
    """
    lines = text.split("\n")
    if len(lines) < 2:
        return text
    width = max(map(len, lines))
    caseless = text.islower()
    joined = [lines[0]]
    for index in range(1, len(lines)):
        before, following = joined[-1].rstrip(), lines[index].strip()
        if not (before and following and _continues(before[-60:], lines, index, width, caseless)):
            joined.append(lines[index])
            continue
        word = _HYPHEN.search(before[-16:])
        if word and following[0].isalpha():
            joined[-1] = (before if _COMPOUND_HEAD.match(word[1]) else before[:-1]) + following
        else:
            joined[-1] = f"{before} {following}"
    return "\n".join(joined)


def _continues(before: str, lines: list[str], index: int, width: int, caseless: bool) -> bool:
    """Whether a line goes on with the statement of the one before it, of which `before` is the end."""
    following, last = lines[index].strip(), lines[index - 1].rstrip()
    if before.endswith(":") and _ANSWER_LINE.match(following):
        return True
    if _ENDED.search(before[-3:]) or _ITEM.match(following) or _HEADER_LINE.match(following):
        return False
    labeled = _LABEL.match(following)
    if labeled and _LABEL.match(last) and (caseless or not following[0].islower()):
        return False
    if _UNFINISHED.search(before[-16:]) or _HYPHEN.search(before[-16:]):
        return not labeled
    if not caseless and not (before.isupper() and following[:60].isupper()):
        return bool(_GOES_ON.match(following))
    if labeled:
        return False
    if width >= _NARROWEST_PAGE and len(last) + 1 + len(following.split()[0]) > width:
        return True
    # In a paragraph that closes with a full stop, a line without one goes on.
    paragraph = itertools.takewhile(str.strip, lines[index : index + _LONGEST_PARAGRAPH])
    return list(paragraph)[-1].rstrip().endswith(".")


_SPELLINGS = tuple(
    (re.compile(pattern), written)
    for pattern, written in (
        (r"oe(?=dema|sophag)", "e"),
        (r"(?<=h)ae(?=m[ao]|mo)|(?<=an)ae(?=mi)", "e"),
        (r"(?<=tum)our|(?<=vap)our", "or"),
        (r"\bcalibre\b", "caliber"),
        (r"\b(centi|milli)metre(s?)\b", r"\1meter\2"),
        (r"\bcentre(d?)\b", r"center\1"),
        (r"\bfibre", "fiber"),
        (r"\b(\w*visual|calc|organ|local|recogn|character|general)is(?=e|ing|ation)", r"\1iz"),
    )
)
_CONTRACTIONS = tuple(
    (re.compile(pattern), written)
    for pattern, written in (
        (r"\bcan'?t\b|\bcan not\b", "cannot"),
        (r"\bwon'?t\b(?! to)", "will not"),
        (r"\bw/o\b", "without"),
        (r"\bwnl\b", "within normal limits"),
        (r"\b(is|are|was|were|do|does|did|has|have|had|could|would|should)n'?t\b", r"\1 not"),
        (r"\b(there|it|heart|lung)'s\b", r"\1 is"),
    )
)
_REWRITTEN = (*_CONTRACTIONS, *_SPELLINGS)
_WRITTEN_OTHERWISE = re.compile("|".join(f"(?:{pattern.pattern})" for pattern, _ in _REWRITTEN))
_DASHES = re.compile("[‐‑‒–—−]")


def normalize(text: str) -> str:
    """A sentence in the form in which the rules look at it.

    Lower case, single spaces, plain quotes and dashes, contractions written out ("isn't" as "is not"),
    spellings of American English.

    Args:
        text: a sentence.
    """
    text = _DASHES.sub("-", text.lower()).replace("’", "'").replace("‘", "'")
    text = text.replace("“", '"').replace("”", '"')
    if _WRITTEN_OTHERWISE.search(text):
        for pattern, written in _REWRITTEN:
            text = pattern.sub(written, text)
    return " ".join(text.split())
