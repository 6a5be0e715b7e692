"""The page of `medclip reports`: how each report was read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medclip_jax.pages.html import Page
from medclip_jax.reports.explanation import cue_text, decision_text, section_title
from medclip_jax.reports.findings import Reading


def write_reports_page(
    path: str | Path,
    readings: Sequence[tuple[str, Reading]],
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]],
    remarks: Sequence[str] = (),
) -> Path:
    """Write how reports were read as one HTML file. It holds the reports' text.

    Args:
        path: of the file.
        readings: name of each report, and its reading.
        tables: title, header and rows of what is counted over all reports.
        remarks: shown at the top.

    Returns:
        The path.
    """
    page = Page("How reports are read", f"{len(readings)} reports, by rules")
    page.section("Summary", "This page holds the text of the reports: treat it as you treat them.")
    for remark in remarks:
        page.paragraph(remark, note=True)
    for title, header, rows in tables:
        page.heading(title)
        page.rows(header, rows)
    page.section(
        "Reports",
        "Every sentence, the findings that it mentions, the words that were recognized, the cue that decided "
        "how they are meant, and the decisions. Sections that are not read are named.",
    )
    for name, reading in readings:
        page.heading(name)
        rows = []
        for section in reading.sections:
            title = section_title(section)
            if not section.read:
                rows.append((title, section.text, "", "", "", ""))
            for sentence in section.sentences:
                said = [(n, mention) for n, mentions in sentence.evidence.items() for mention in mentions]
                rows += [
                    (title, sentence.text, name, mention.mention, cue_text(mention), mention.assertion.value)
                    for name, mention in said
                ] or [(title, sentence.text, "", "", "", "")]
        page.rows(("section", "sentence", "finding", "mention", "cue", "meant as"), rows, prose=True)
        decided = {n: decision_text(d) for n, d in reading.decisions.items() if d.evidence}
        page.pairs(decided or {"decisions": "no finding is mentioned"})
    return page.write(path)
