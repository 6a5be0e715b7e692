"""Cutting a report into its sections by their headers, and finding its body where no header opens it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from medclip_jax.reports.cleaning import clean_text
from medclip_jax.reports.headers import ADMINISTRATIVE, HEADERS, is_region, section_of

__all__ = ["HEADERS", "Section", "clean", "cut_sections", "split_sections"]

NOT_READ = frozenset({"clinical_information", "technique", "comparison", "examination", "administrative"})
"""Sections that say why, how and by whom the scan was made, not what it shows."""
_LONGEST_REQUEST = 400
"""Characters up to which such a section on one line is always believed to be one."""
_LONGEST_TITLE_LINE = 80
"""Characters up to which text before the first header may be a title ("CT CHEST WITHOUT CONTRAST")."""


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes:
        name: key of `HEADERS`, "preamble" (before the first header) or "administrative" (names, dates).
        title: the header as written, "" where there is none.
        text: what stands under it, cleaned.
        read: whether it says what the scan shows.
    """

    name: str
    title: str
    text: str
    read: bool


_TITLE = r"[A-Za-z][^:\n.?!]{0,60}?"
_MARK = r"[ \t]*(?:[#*_>\-•]+[ \t]*)?(?:\d+[.)][ \t]*)?"
# At the start of a line: a title with a colon or a dash behind it, or alone; markdown signs, numbering and a
# language tag ("Findings_EN") may stand around it.
_LINE_TITLE = re.compile(
    rf"{_MARK}(?P<title>{_TITLE})(?:_EN\b)?(?:[ \t]*\([^)\n]{{0,30}}\))?[ \t]*[*_]*"
    r"(?:[ \t]*(?P<colon>:)[*_]*|[ \t]+[-–](?=[ \t])|[ \t]*$)",
    re.IGNORECASE,
)
_USUAL = "|".join(
    sorted((re.escape(h) for headers in HEADERS.values() for h in headers), key=len, reverse=True)
)
# Without a colon, in capitals before text that is not: "FINDINGS The heart ...".
_CAPITAL_TITLE = re.compile(rf"{_MARK}(?P<title>{_USUAL.upper()})[ \t]+(?=[A-Z][a-z])")
# Within a line: after a full stop, or a usual one in capitals anywhere.
_INLINE_TITLE = re.compile(
    rf"(?<=[.!?;\"”])[ \t]*(?P<title>[A-Za-z][A-Za-z/&' \-]{{1,50}}?)[ \t]*:"
    rf"|(?<=\s)(?P<capitals>{_USUAL.upper()})[ \t]*:"
    rf"|(?<=[.!?])[ \t]+(?P<signature>(?=[A-Z])(?i:{ADMINISTRATIVE.pattern}))"
)
# Only these open a section within a line in small letters; "the study: ..." does not.
_PLAIN_TITLES = frozenset(
    {
        "findings",
        "impression",
        "impressions",
        "conclusion",
        "conclusions",
        "opinion",
        "technique",
        "comparison",
        "indication",
    }
)
_EMPTY = re.compile(
    r"(?:not (?:given|available|provided|specified|stated|applicable|reported)|none(?: given| provided)?|nan"
    r"|null|n/?a|nil|unknown|empty|undefined|see (?:above|below)"
    r"|no (?:information|data|report|text|clinical information)(?: (?:given|available|provided))?)?"
    r"\W*",
    re.IGNORECASE,
)


def clean(text: object) -> str:
    """Text as it came from a table, or "" where it says that there is none.

    Args:
        text: a cell: a string, None or NaN. "Not given.", "nan", "N/A", "-" and the like count as empty.

    Returns:
        The text with outer white space and quotes removed.
    """
    if text is None or (isinstance(text, float) and text != text):
        return ""
    stripped = str(text).replace("\ufeff", "").replace("\xa0", " ").strip().strip("\"'").strip()
    return "" if _EMPTY.fullmatch(stripped.lstrip("_*-. \t")) else stripped


def split_sections(text: object) -> dict[str, str]:
    """Split a report at its headers.

    Args:
        text: the report; None, NaN and "Not given." count as empty.

    Returns:
        Section name (a key of `HEADERS`) to its text, in the report's order, empty sections and lines of
        names and signatures left out. Text before the first header, a report without headers, and a body
        that runs on behind the request are "findings"; if a findings section follows, text before the
        first header is "preamble". A header that comes twice is joined by a line break. An empty report
        gives {}.
    """
    sections: dict[str, str] = {}
    for part in cut_sections(text):
        if part.name != "administrative":
            sections[part.name] = (
                f"{sections[part.name]}\n{part.text}" if part.name in sections else part.text
            )
    return sections


def cut_sections(text: object) -> list[Section]:
    """The parts of a report in its order, with what is read and what is not.

    Args:
        text: as for `split_sections`.
    """
    report = clean(clean_text(text)) if isinstance(text, str) else clean(text)
    if not report:
        return []
    parts = [part for part in map(_cleaned, _cut(report.split("\n"))) if part.text]
    if any(part.name == "findings" and part.title for part in parts):
        return [replace(p, name="preamble") if p.name == "findings" and not p.title else p for p in parts]
    return _recover_body(parts)


def _cleaned(part: Section) -> Section:
    return replace(part, text=clean(part.text), read=part.name not in NOT_READ)


class _Open:
    """A section that is being filled."""

    def __init__(self, name: str, title: str = ""):
        self.name = name
        self.title = title
        self.pieces: list[str] = []

    def again(self) -> _Open:
        """The same section once more, behind something that interrupted it."""
        return _Open(self.name, self.title)


def _cut(lines: Sequence[str]) -> list[Section]:
    parts = [_Open("findings")]
    body: _Open | None = None  # the last part under a title that is read
    for line in lines:
        name, title, rest = _open(line, parts[-1])
        if name == "administrative":
            signature = _Open(name, title)
            signature.pieces.append(rest)
            parts += [signature, parts[-1].again()]
            continue
        if name:
            parts.append(_Open(name, title))
            body = parts[-1] if name not in NOT_READ else body
        elif parts[-1].pieces:
            parts[-1].pieces.append("\n")
        body = _fill(parts, rest, body)
    return [Section(part.name, part.title, "".join(part.pieces), True) for part in parts]


def _open(line: str, current: _Open) -> tuple[str | None, str, str]:
    """What a line opens (None: it goes on), under which title, and the rest of the line."""
    if ADMINISTRATIVE.match(line.strip()):
        return "administrative", "", line
    found = _LINE_TITLE.match(line)
    if found:
        title = found["title"].strip(" \t*_")
        name = section_of(title)
        if name and (title[0].isupper() or title.lower() in _PLAIN_TITLES or found["colon"]):
            return name, title, line[found.end() :]
        if current.name in NOT_READ and is_region(title) and found["colon"]:
            return "findings", title, line  # "LUNGS: ..." behind the technique: the body begins
    found = _CAPITAL_TITLE.match(line)
    if found:
        return section_of(found["title"]), found["title"], line[found.end() :]
    return None, "", line


def _fill(parts: list[_Open], text: str, body: _Open | None) -> _Open | None:
    """Put the text of a line into the open section, or into those that titles within the line open.

    Returns:
        The last part under a title that is read.
    """
    start = 0
    titles = list(_INLINE_TITLE.finditer(text))
    for index, found in enumerate(titles):
        title = found["title"] or found["capitals"] or ""
        name = "administrative" if found["signature"] else section_of(title)
        end = found.end()
        if found["signature"]:
            end = found.start("signature")
        elif name is None and parts[-1].name in NOT_READ and is_region(title):
            name, end = "findings", found.start("title")  # the title stays with its text
        elif name is None or not (title[0].isupper() or title in _PLAIN_TITLES):
            continue
        parts[-1].pieces.append(text[start : found.start()])
        parts.append(_Open(name, title))
        start = end
        if name not in NOT_READ:
            body = parts[-1]
        elif body and name != "administrative" and index == len(titles) - 1:
            # "... Comparison: smaller than in May. There is ..." within the findings is one sentence long.
            sentence = re.compile(r"[.!?]\s").search(text, start)
            if sentence:
                parts[-1].pieces.append(text[start : sentence.end()])
                parts.append(body.again())
                start = sentence.end()
    parts[-1].pieces.append(text[start:])
    return body


def _recover_body(parts: list[Section]) -> list[Section]:
    """Find the body of a report that no header opens: it runs on behind the request or the technique."""
    if any(part.name == "findings" and not _is_title_line(part) for part in parts):
        return parts
    requests = [n for n, part in enumerate(parts) if part.name in NOT_READ - {"administrative"}]
    if not requests:
        return parts
    # Those before it are followed by the next header; only the last can hide the body.
    position = requests[-1]
    request, body = _split_request(parts[position].text, sum(len(part.text) for part in parts if part.read))
    if not body:
        return parts
    found = Section("findings", "", body, True)
    titles = [replace(p, name="preamble") if p.name == "findings" else p for p in parts[:position]]
    history = [replace(parts[position], text=request)] if request else []
    return [*titles, *history, found, *parts[position + 1 :]]


def _is_title_line(part: Section) -> bool:
    text = part.text
    return len(text) <= _LONGEST_TITLE_LINE and "\n" not in text and not text.rstrip().endswith(".")


def _split_request(text: str, others: int) -> tuple[str, str]:
    """A request and the body behind it; `others` characters are read elsewhere in the report."""
    first, blank, rest = text.partition("\n\n")
    if not blank:
        first, _, rest = text.partition("\n")
    if rest.strip():
        return first, rest.strip()
    end = re.search(r"[.!?]\s+(?=[A-Z])", text)
    if end and (others == 0 or len(text) > max(_LONGEST_REQUEST, others)):
        return text[: end.end()].strip(), text[end.end() :]
    return text, ""
