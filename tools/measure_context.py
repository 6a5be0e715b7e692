"""How the scope rules of libraries compare with `medclip_jax.reports.context`, all else equal.

    python tools/measure_context.py --engine medspacy --readings readings.csv --table reports.csv

Sections, sentences, mentions, labels and numbers are this package's in every case; only the question how a
sentence means a mention is put to another engine: `medspacy` (its ConText with the default rules) or
`negspacy` (its clinical English triggers). Both need an environment of their own: medspacy pins numpy 1.26,
which this package does not take; no module that needs numpy is imported here. Readings are a CSV of text,
finding, status; the table is scored on its even rows, as `tools/measure_reports.py` does it.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from measure_reports import ELEVEN, measure, micro, read_table

from medclip_jax.reports import findings
from medclip_jax.reports.agreement import Agreement
from medclip_jax.reports.context import Assertion, Judgment, Sentence


def medspacy_engine() -> Callable[[Any], Assertion]:
    """Assertion of the only entity of a document, by medspaCy."""
    import spacy
    from medspacy.context import ConText

    nlp = spacy.blank("en")
    context = ConText(nlp, rules="default")

    def judge(document: Any) -> Assertion:
        for token in document:
            token.is_sent_start = token.i == 0
        marks = context(document).ents[0]._
        if marks.is_negated:
            return Assertion.NEGATED
        if marks.is_hypothetical:
            return Assertion.HYPOTHESIS
        if marks.is_historical or marks.is_family:
            return Assertion.HISTORY
        return Assertion.UNCERTAIN if marks.is_uncertain else Assertion.AFFIRMED

    judge.nlp = nlp
    return judge


def negspacy_engine() -> Callable[[Any], Assertion]:
    """Likewise by negspaCy, which knows negation alone."""
    import spacy
    from negspacy.negation import Negex
    from negspacy.termsets import termset

    nlp = spacy.blank("en")
    sentencizer = nlp.add_pipe("sentencizer")
    triggers = termset("en_clinical").get_patterns()
    negex = nlp.add_pipe("negex", config={"neg_termset": triggers})
    assert isinstance(negex, Negex)

    def judge(document: Any) -> Assertion:
        negex(sentencizer(document))
        return Assertion.NEGATED if document.ents[0]._.negex else Assertion.AFFIRMED

    judge.nlp = nlp
    return judge


def use_engine(judge: Callable[[Any], Assertion]) -> None:
    """Let every sentence put its mentions to an engine."""

    class Judged(Sentence):
        def judge(self, start: int, end: int) -> Judgment:
            document = judge.nlp.make_doc(self.text)
            document.ents = [document.char_span(start, end, label="mention", alignment_mode="expand")]
            return Judgment(judge(document), "")

    findings.Sentence = Judged


def main(arguments: Sequence[str] | None = None) -> int:
    """Print both figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=("rules", "medspacy", "negspacy"), default="rules")
    parser.add_argument("--readings", type=Path, help="CSV of text, finding, status")
    parser.add_argument("--table", type=Path, help="CSV of reports with CT-RATE's label columns")
    options = parser.parse_args(arguments)
    if options.engine != "rules":
        use_engine({"medspacy": medspacy_engine, "negspacy": negspacy_engine}[options.engine]())
    if options.readings:
        total = Agreement()
        with options.readings.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file):
                status = findings.extract(row["text"], [row["finding"]])[row["finding"]]
                total.add(status, int(row["status"]))
        print(f"{options.engine}: {total.share:.3f} of {total.labeled} readings, {total.swapped} swapped")
    if options.table:
        texts, labels = read_table(options.table, "even")
        scores = measure(texts, {name: labels[name] for name in ELEVEN}, findings.extract)
        print(f"{options.engine}: micro F1 {micro(list(scores.values())).f1:.3f} over the eleven, even rows")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
