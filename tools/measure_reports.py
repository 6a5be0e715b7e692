"""Precision, recall and F1 of the report rules against a table of labeled reports.

    python tools/measure_reports.py --table ct_rate_reports_labels_800.csv --half odd
    python tools/measure_reports.py --table ct_rate_reports_labels_800.csv --half odd --reader negspacy

The table has one report a row: a text column (`report_text`, or CT-RATE's `Findings_EN` and `Impressions_EN`)
and label columns with CT-RATE's titles, 1 present and 0 absent. Rules were tuned on the even rows only,
counted from 0: report the odd ones. `negspacy` compares with a well-kept library (`pip install spacy
negspacy`). Prints counts and scores, never text.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from medclip_jax.reports.agreement import Agreement
from medclip_jax.reports.findings import CT_RATE_COLUMNS, CT_RATE_FINDINGS, extract
from medclip_jax.reports.sections import clean

ELEVEN = (
    "arterial_wall_calcification",
    "cardiomegaly",
    "pericardial_effusion",
    "coronary_calcification",
    "hiatal_hernia",
    "lymphadenopathy",
    "emphysema",
    "atelectasis",
    "pleural_effusion",
    "consolidation",
    "bronchiectasis",
)
"""Findings whose label has one plain meaning in words; docs/reference/reports.md says why these."""

# 34 phrases for the comparison, chosen on the even rows too; a phrase matcher cannot ask for two ideas in a
# clause.
PHRASES = {
    "arterial_wall_calcification": (
        "atheroma",
        "atheromatous",
        "atherosclerotic",
        "aortic calcification",
        "plaques in the aorta",
        "plaque in the aorta",
    ),
    "cardiomegaly": (
        "cardiomegaly",
        "heart size increased",
        "heart size has increased",
        "heart is larger than normal",
        "cardiothoracic ratio increased",
        "ctr increased",
        "increase in heart size",
    ),
    "pericardial_effusion": ("pericardial effusion", "pericardial fluid", "effusion in the pericardial"),
    "coronary_calcification": ("coronary arteries", "coronary artery", "coronary vascular structures"),
    "hiatal_hernia": ("hiatal hernia", "hiatus hernia"),
    "lymphadenopathy": ("lymph node", "lymph nodes", "lymphadenopathy"),
    "emphysema": ("emphysema", "emphysematous"),
    "atelectasis": ("atelectasis", "atelectatic"),
    "pleural_effusion": ("pleural effusion", "bilateral effusion"),
    "consolidation": ("consolidation", "consolidations"),
    "bronchiectasis": ("bronchiectasis", "bronchiectatic"),
}


def read_table(path: Path, half: str = "all") -> tuple[list[str], dict[str, list[bool]]]:
    """Read texts and labels.

    Args:
        path: CSV with the columns named above.
        half: "even" or "odd" rows, counted from 0, or "all".

    Returns:
        The texts, and per finding the labels in the same order.

    Raises:
        FileNotFoundError, ValueError: no such table, or one without text or label columns.
    """
    if not path.exists():
        raise FileNotFoundError(f"no table at {path}: give the CSV with reports and labels by --table")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    rows = {"even": rows[::2], "odd": rows[1::2], "all": rows}[half]
    header = set(rows[0]) if rows else set()
    text_columns = [name for name in ("report_text", "Findings_EN", "Impressions_EN") if name in header]
    columns = {name: title for title, name in CT_RATE_COLUMNS.items() if title in header}
    if not text_columns or not columns:
        raise ValueError(
            f"{path} needs a text column (report_text, or Findings_EN and Impressions_EN) and at least one "
            f"label column titled as in CT-RATE, for instance {next(iter(CT_RATE_COLUMNS))!r}"
        )
    texts = ["\n".join(clean(row[column]) for column in text_columns) for row in rows]
    labels = {
        name: [float(row[columns[name]] or 0) > 0 for row in rows]
        for name in CT_RATE_FINDINGS
        if name in columns
    }
    return texts, labels


def score(statuses: Sequence[int], labels: Sequence[bool]) -> Agreement:
    """Count agreement over reports."""
    found = Agreement()
    for status, label in zip(statuses, labels, strict=True):
        found.add(status, 1 if label else -1, two_valued=True)
    return found


def micro(scores: Iterable[Agreement]) -> Agreement:
    """Counts of several findings added up."""
    return sum(scores, start=Agreement())


Reader = Callable[[str, Sequence[str]], Mapping[str, int]]


def negspacy_reader() -> Reader:
    """Phrases and negspaCy's clinical English triggers, the library's default set-up."""
    import negspacy.negation  # noqa: F401  registers the pipe
    import spacy
    from negspacy.termsets import termset

    pipeline = spacy.blank("en")
    pipeline.add_pipe("sentencizer")
    ruler = pipeline.add_pipe("entity_ruler", config={"phrase_matcher_attr": "LOWER"})
    ruler.add_patterns(
        [{"label": name, "pattern": phrase} for name, phrases in PHRASES.items() for phrase in phrases]
    )
    pipeline.add_pipe(
        "negex",
        config={"neg_termset": termset("en_clinical").get_patterns(), "ent_types": list(PHRASES)},
    )

    def read(text: str, findings: Sequence[str]) -> dict[str, int]:
        statuses = dict.fromkeys(findings, 0)
        for entity in pipeline(text).ents:
            if entity.label_ in statuses:
                status = -1 if entity._.negex else 1
                statuses[entity.label_] = max(statuses[entity.label_], status) or status
        return statuses

    return read


def measure(
    texts: Sequence[str], labels: Mapping[str, Sequence[bool]], reader: Reader
) -> dict[str, Agreement]:
    """Score a reader on every labeled finding."""
    statuses = [reader(text, list(labels)) for text in tqdm(texts, unit="report", file=sys.stderr)]
    return {name: score([status[name] for status in statuses], labels[name]) for name in labels}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--table", type=Path, required=True, help="CSV with reports and CT-RATE's label columns"
    )
    parser.add_argument(
        "--half", choices=("even", "odd", "all"), default="odd", help="rows to use (default odd)"
    )
    parser.add_argument("--reader", choices=("rules", "negspacy"), default="rules")
    parser.add_argument("--json", action="store_true", help="one JSON line per finding instead of a table")
    options = parser.parse_args(arguments)
    texts, labels = read_table(options.table, options.half)
    reader: Reader = extract
    if options.reader == "negspacy":
        labels = {name: values for name, values in labels.items() if name in PHRASES}
        reader = negspacy_reader()
    start = time.perf_counter()
    scores = measure(texts, labels, reader)
    seconds = time.perf_counter() - start
    rows = [(name, sum(labels[name]), scores[name]) for name in labels]
    rows.append(
        (
            "micro, the eleven",
            sum(sum(labels[n]) for n in ELEVEN if n in labels),
            micro([scores[n] for n in ELEVEN if n in scores]),
        )
    )
    if len(labels) > len(ELEVEN):
        rows.append(("micro, all", sum(map(sum, labels.values())), micro(scores.values())))
    if options.json:
        for name, positive, result in rows:
            print(
                json.dumps(
                    {
                        "finding": name,
                        "reports": len(texts),
                        "positive": positive,
                        "precision": round(result.precision, 4),
                        "recall": round(result.recall, 4),
                        "f1": round(result.f1, 4),
                    }
                )
            )
        return 0
    print(f"{options.reader}, {options.half} rows, n = {len(texts)}, {len(texts) / seconds:.0f} reports/s")
    print("\n| finding | positive | precision | recall | F1 |\n|---|---:|---:|---:|---:|")
    for name, positive, result in rows:
        mark = "\\*" if name in ELEVEN else ""
        print(
            f"| {name}{mark} | {positive} | {result.precision:.3f} | {result.recall:.3f} | {result.f1:.3f} |"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
