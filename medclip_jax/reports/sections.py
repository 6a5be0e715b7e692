"""Cutting a report into its sections by their headers."""

from __future__ import annotations

import re

HEADERS: dict[str, tuple[str, ...]] = {
    "clinical_information": (
        "clinical information",
        "clinical history",
        "clinical indication",
        "clinical data",
        "clinical details",
        "clinical statement",
        "clinical question",
        "patient history",
        "medical history",
        "relevant history",
        "reason for exam",
        "reason for examination",
        "reason for study",
        "history",
        "indication",
        "indications",
        "clinical",
    ),
    "technique": (
        "technique",
        "technical information",
        "examination technique",
        "imaging technique",
        "procedure",
        "protocol",
        "method",
        "methods",
        "scan technique",
    ),
    "comparison": ("comparison", "comparisons", "comparison study", "prior studies", "prior examinations"),
    "examination": ("examination", "exam", "study", "type of examination", "exam type"),
    "findings": (
        "findings",
        "finding",
        "imaging findings",
        "ct findings",
        "radiological findings",
        "observations",
        "report",
        "description",
        "results",
        "result",
    ),
    "impression": (
        "impression",
        "impressions",
        "conclusion",
        "conclusions",
        "opinion",
        "interpretation",
        "summary",
        "diagnosis",
        "final diagnosis",
        "assessment",
        "comment",
        "conclusion and recommendations",
        "findings and impression",
    ),
    "recommendation": ("recommendation", "recommendations", "advice", "follow up", "follow-up"),
}
"""Section name to the headers that open it, lower case. `findings` takes a report without headers."""

_NAMES = {header: name for name, headers in HEADERS.items() for header in headers}
_SPELLINGS = "|".join(sorted((re.escape(header) for header in _NAMES), key=len, reverse=True))
# A header is a known title with a colon at the start of a line or sentence, or alone on its line; markdown
# signs, numbering and a language tag ("Findings_EN") may stand around it.
_HEADER = re.compile(
    rf"(?:^|(?<=[.!?\n\"”]))[ \t]*(?:[#*_>\-•]+[ \t]*)?(?:\d+[.)][ \t]*)?"
    rf"(?P<title>{_SPELLINGS})(?:_en)?(?:[ \t]*\([^)\n]{{0,30}}\))?[ \t]*[*_]*"
    rf"(?:[ \t]*:[*_]*|[ \t]+[-–](?=[ \t])|[ \t]*(?=\r?\n|$))",
    re.IGNORECASE | re.MULTILINE,
)
_EMPTY = re.compile(
    r"(?:not (?:given|available|provided|specified|stated|applicable|reported)|none(?: given| provided)?|nan"
    r"|null|n/?a|nil|unknown|empty|undefined|see (?:above|below)"
    r"|no (?:information|data|report|text|clinical information)(?: (?:given|available|provided))?"
    r"|\W*)[\s.\"'*-]*",
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
    return "" if _EMPTY.fullmatch(stripped) else stripped


def split_sections(text: object) -> dict[str, str]:
    """Split a report at its headers.

    Args:
        text: the report; None, NaN and "Not given." count as empty.

    Returns:
        Section name (a key of `HEADERS`) to its text, in the report's order, empty sections left out. Text
        before the first header, and a report without headers, is "findings"; if a findings section follows,
        that text is "preamble". A header that comes twice is joined by a line break. An empty report gives
        {}.
    """
    report = clean(text)
    if not report:
        return {}
    matches = list(_HEADER.finditer(report))
    edges = [*(match.start() for match in matches), len(report)]
    pieces = [("findings", report[: edges[0]])]
    for match, end in zip(matches, edges[1:], strict=True):
        pieces.append((_NAMES[match["title"].lower()], report[match.end() : end]))
    titled = {name for name, _ in pieces[1:]}
    if "findings" in titled:
        pieces[0] = ("preamble", pieces[0][1])
    sections: dict[str, str] = {}
    for name, piece in pieces:
        content = clean(piece)
        if content:
            sections[name] = f"{sections[name]}\n{content}" if name in sections else content
    return sections
