"""How a report was read, in words: lines for a terminal, and plain data for JSON and pages."""

from __future__ import annotations

import textwrap
from typing import Any

from medclip_jax.reports.findings import Decision, Evidence, Reading, ReadSection

STATUSES = {1: "present", -1: "absent", 0: "not mentioned"}
"""What a status means."""


def decision_text(decision: Decision) -> str:
    """ "present", "absent" or "not mentioned", with "(uncertain)" where no mention is definite."""
    return STATUSES[decision.status] + (" (uncertain)" if decision.uncertain else "")


def section_title(section: ReadSection) -> str:
    """The title as written, else the section's name, with a remark where the section is not read."""
    title = section.title or section.name.replace("_", " ")
    return title if section.read else f"{title} (not read: {section.name.replace('_', ' ')})"


def cue_text(evidence: Evidence) -> str:
    """What decided about a mention, "no cue" where nothing did and it counts as stated."""
    return f'"{evidence.trigger}"' if evidence.trigger else "no cue"


def describe_reading(reading: Reading, *, width: int = 100) -> list[str]:
    """A reading as lines: each section, its sentences, what each states and why, and the decisions.

    Args:
        reading: from `medclip_jax.reports.findings.read_report`.
        width: characters of a line.
    """
    lines = []
    for section in reading.sections:
        lines.append(f"  {section_title(section)}")
        if not section.read:
            lines += _wrapped(section.text, width, "      ")
        for sentence in section.sentences:
            lines += _wrapped(
                f"[{sentence.topic}] {sentence.text}" if sentence.topic else sentence.text, width
            )
            for name, mentions in sentence.evidence.items():
                lines += [
                    f'      {name}: {mention.assertion.value}, "{mention.mention}" by {cue_text(mention)}'
                    for mention in mentions
                ]
    decided = {name: decision for name, decision in reading.decisions.items() if decision.evidence}
    lines.append("  Decisions" if decided else "  Decisions: no finding is mentioned")
    lines += [f"      {name}: {decision_text(decision)}" for name, decision in decided.items()]
    return lines


def _wrapped(text: str, width: int, indent: str = "    ") -> list[str]:
    return textwrap.wrap(" ".join(text.split()), width, initial_indent=indent, subsequent_indent=indent)


def reading_to_json(reading: Reading) -> dict[str, Any]:
    """The same as JSON types."""
    return {
        "findings": {
            name: {"status": decision.status, "uncertain": decision.uncertain}
            for name, decision in reading.decisions.items()
        },
        "sections": [
            {
                "name": section.name,
                "title": section.title,
                "read": section.read,
                "text": section.text,
                "sentences": [
                    {
                        "text": sentence.text,
                        "topic": sentence.topic,
                        "mentions": [
                            {
                                "finding": name,
                                "mention": mention.mention,
                                "assertion": mention.assertion.value,
                                "cue": mention.trigger,
                            }
                            for name, mentions in sentence.evidence.items()
                            for mention in mentions
                        ],
                    }
                    for sentence in section.sentences
                ],
            }
            for section in reading.sections
        ],
    }
