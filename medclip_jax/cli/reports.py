"""`medclip reports`: how reports are read."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medclip_jax.corpora.report_files import ReportSet
    from medclip_jax.reports.agreement import Agreement
    from medclip_jax.reports.findings import Reading

HELP = """\
Show how reports are read, so that you can check it on yours: sections that are read and those that are not,
every sentence, the finding that it mentions, the words that decided how it is meant, and the decision for
each report. `medclip prepare` reads reports in the same way.

FILE is a text file with one report, a folder of text files, a CSV or TSV with a column report (or findings
and impression), or - for one report from standard input. Where a table has columns named by findings
("label: cardiomegaly", or CT-RATE's titles), or the columns finding and status, the readings are compared
with them. Nothing leaves this machine, and only --out writes a file; it holds the reports' text."""

EPILOG = """\
examples:
  echo "No pleural effusion, small pericardial effusion." | medclip reports -
  medclip reports report.txt
  medclip reports reports.csv --summary
  medclip reports reports.csv --findings "pericardial effusion" cardiomegaly --differences
  medclip reports reports.csv --findings findings.toml --summary   # findings of your own
  medclip reports reports/ --out readings.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.epilog = EPILOG
    parser.add_argument("file", metavar="FILE", help="text file, folder, CSV or TSV, or - for standard input")
    parser.add_argument(
        "--findings",
        nargs="+",
        metavar="NAME",
        help="findings to read, by name, as cardiac, phantom, ct_rate, cardiac_mr, merlin, inspect or all, "
        "or a findings file of your own (.toml) (default: all)",
    )
    parser.add_argument("--column", help="column of the table that holds the reports")
    parser.add_argument("--encoding", help="of the files, for example cp1252 (default UTF-8)")
    parser.add_argument(
        "--uncertain",
        choices=("present", "absent", "unknown"),
        default="present",
        help="what a finding counts as whose only mentions are uncertain (default present)",
    )
    parser.add_argument("--summary", action="store_true", help="counts per finding, without the reports")
    parser.add_argument(
        "--differences", action="store_true", help="only reports that are read other than labeled"
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON a report instead of text")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PAGE",
        help="write all as an .html page, or as .jsonl with a line a report",
    )


def run(args: argparse.Namespace) -> int:
    """Print the readings.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown finding, a findings file that cannot be used, a table without reports,
            differences without labels.
    """
    from medclip_jax.corpora.report_files import read_report_files
    from medclip_jax.reports.explanation import describe_reading, reading_to_json
    from medclip_jax.reports.findings import read_report
    from medclip_jax.reports.findings_file import choose_findings

    names, definitions = choose_findings(args.findings or ["all"])
    if args.out and args.out.suffix.lower() not in (".html", ".jsonl"):
        raise ValueError(f"--out writes .html or .jsonl, not '{args.out.name}'")
    found = read_report_files(args.file, column=args.column, encoding=args.encoding, definitions=definitions)
    if args.differences and not any(report.labels for report in found.reports):
        raise ValueError(f"'{args.file}' has no labels to differ from: see medclip reports --help")
    readings = [
        read_report(report.text, names, uncertain=args.uncertain, definitions=definitions)
        for report in found.reports
    ]
    agreements, differing = _compare(found, readings, names)
    chosen = [
        (report.name, reading)
        for report, reading in zip(found.reports, readings, strict=True)
        if not args.differences or report.name in differing
    ]
    tables = _tables(names, readings, agreements, found.two_valued)
    lines_of_json = [
        json.dumps({"report": name, **reading_to_json(reading)}, ensure_ascii=False)
        for name, reading in chosen
    ]
    if args.json:
        print("\n".join(lines_of_json))
    else:
        for name, reading in () if args.summary else chosen:
            print(name)
            lines = describe_reading(reading)
            lines += [f"      labeled otherwise: {text}" for text in differing.get(name, ())]
            print("\n".join(lines), end="\n\n")
        if args.summary or agreements or len(readings) > 1:
            for title, header, rows in tables:
                print(f"{title}\n{_aligned([header, *rows])}\n")
            print("\n".join(found.remarks), end="\n" if found.remarks else "")
    if args.out and args.out.suffix.lower() == ".jsonl":
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("".join(f"{line}\n" for line in lines_of_json), encoding="utf-8")
    elif args.out:
        from medclip_jax.pages.reports import write_reports_page

        write_reports_page(args.out, chosen, tables, found.remarks)
    return 0


def _compare(
    found: ReportSet, readings: Sequence[Reading], names: Sequence[str]
) -> tuple[dict[str, Agreement], dict[str, list[str]]]:
    """Agreement with the labels by finding, and by report what is labeled otherwise."""
    from medclip_jax.reports.agreement import Agreement
    from medclip_jax.reports.explanation import STATUSES

    agreements: dict[str, Agreement] = {}
    differing: dict[str, list[str]] = {}
    for report, reading in zip(found.reports, readings, strict=True):
        for name in names:
            label = report.labels.get(name)
            if label is None:
                continue
            status = reading.decisions[name].status
            agreement = agreements.setdefault(name, Agreement())
            if not agreement.add(status, label, two_valued=found.two_valued):
                labeled = "not present" if found.two_valued and label < 0 else STATUSES[label]
                differing.setdefault(report.name, []).append(
                    f"{name}: read {STATUSES[status]}, labeled {labeled}"
                )
    return agreements, differing


def _tables(
    names: Sequence[str], readings: Sequence[Reading], agreements: dict[str, Agreement], two_valued: bool
) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows of the counts and of the comparison with labels."""
    from medclip_jax.reports.agreement import Agreement

    counts = []
    for name in names:
        decisions = [reading.decisions[name] for reading in readings]
        statuses = [decision.status for decision in decisions]
        counted = [
            statuses.count(1),
            statuses.count(-1),
            statuses.count(0),
            sum(d.uncertain for d in decisions),
        ]
        counts.append([name, *map(str, counted)])
    header = ["finding", "present", "absent", "not mentioned", "uncertain"]
    tables = [(f"Findings in {len(readings)} reports", header, counts)]
    if agreements:
        total = sum(agreements.values(), Agreement())
        rows = [
            [
                name,
                str(one.labeled),
                f"{one.share:.3f}",
                str(one.swapped),
                f"{one.precision:.3f}",
                f"{one.recall:.3f}",
                f"{one.f1:.3f}",
            ]
            for name, one in [*agreements.items(), ("all", total)]
        ]
        header = ["finding", "labeled", "equal", "swapped", "precision", "recall", "F1"]
        title = "Compared with the labels" + (", present or not" if two_valued else "")
        tables.append((title, header, rows))
    return tables


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells))
    return "\n".join(lines)
