"""The texts of one record: read from the report as it is, written without what the settings keep out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from medclip_jax.corpora.study import Study
from medclip_jax.shards.plan import report_of, says_nothing
from medclip_jax.shards.settings import PrepareSettings


@dataclass(frozen=True)
class Texts:
    """What a study's report becomes.

    Attributes:
        report: as written into the set.
        findings_text: likewise, of the section.
        impression: likewise.
        source: what findings are read from, as the archive has it: no history, no technique. Never written.
        redacted: quantity to the passages of it that were taken out.
        scrubbed: kind of personal data to how often it was replaced.
    """

    report: str
    findings_text: str
    impression: str
    source: str
    redacted: Mapping[str, int] = field(default_factory=dict)
    scrubbed: Mapping[str, int] = field(default_factory=dict)


def read_texts(study: Study, settings: PrepareSettings) -> Texts:
    """The texts of a study.

    Args:
        study: raw.
        settings: resolved.
    """
    from medclip_jax.reports.sections import split_sections

    report = report_of(study)
    found = {name: text for name, text in split_sections(report).items() if not says_nothing(text)}
    found |= {name: text.strip() for name, text in study.sections.items() if not says_nothing(text)}
    findings, impression = found.get("findings", ""), found.get("impression", "")
    # An addendum is read under its title, because it corrects the rest.
    addendum = f"ADDENDUM: {found['addendum']}" if "addendum" in found else ""
    source = "\n".join(filter(None, (findings, impression, addendum))) or report
    whole, findings, impression = (withhold(text, settings) for text in (report, findings, impression))
    return Texts(
        whole.text,
        findings.text,
        impression.text,
        source,
        # The sections are mostly parts of the report: what is taken out of both is one passage.
        dict(whole.redacted | (findings.redacted + impression.redacted)),
        dict(whole.scrubbed | (findings.scrubbed + impression.scrubbed)),
    )


@dataclass(frozen=True)
class Withheld:
    """A text without what the settings keep out of the set.

    Attributes:
        text: what is left.
        redacted: quantity to passages.
        scrubbed: kind of personal data to places.
    """

    text: str
    redacted: Counter[str] = field(default_factory=Counter)
    scrubbed: Counter[str] = field(default_factory=Counter)


def withhold(text: str, settings: PrepareSettings) -> Withheld:
    """Take out of a text what the settings keep out of the set.

    Args:
        text: of a report.
        settings: resolved.
    """
    redacted, scrubbed = Counter(), Counter()
    if text and settings.redact:
        from medclip_jax.reports.redaction import redact

        found = redact(text, settings.redact)
        text, redacted = found.text, Counter(passage.quantity for passage in found.passages)
    if text and settings.scrub:
        from medclip_jax.reports.scrubbing import scrubber

        clean = scrubber(settings.scrub)(text)
        text, scrubbed = clean.text, clean.counts
    return Withheld(text, redacted, scrubbed)
