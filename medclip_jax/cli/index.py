"""`medclip index`: a table of studies from the DICOM headers of an archive."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from medclip_jax.cli.choose_series import add_choice_arguments, choice_of, takes_all

HELP = """\
Write a table of studies from the DICOM headers of an archive: one row a series, for `medclip prepare`.

Only headers are read. The table holds patient ids, accession numbers and paths: it is PRIVATE, readable
by you alone, as is the list of what was left out and the cache. What `medclip prepare` makes of it holds
keyed hashes in their place."""

EPILOG = """\
examples:
  medclip index PACS/ --out studies.csv
  medclip index PACS/ --out studies.csv --reports reports.csv --series-rule best
  medclip index PACS/ --out studies.csv --kernel soft --orientation axial --min-slices 40
  medclip prepare --table studies.csv --out shards
  medclip index PACS/ --frames --out series.csv     # cardiac MR: docs/how-to/cardiac-mr.md

--reports is a CSV with a column accession (or accession_number, study, ...) and report (or findings,
impression); its other columns go along. Series without a report, reports without a series, and series that
cannot become a volume are counted, and listed with the reason in OUT.left-out.csv.
A second run reads only the files that have changed: the rest comes from OUT.cache.jsonl.

Without a table in between: medclip prepare --corpus dicom --root PACS/ --table reports.csv
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EPILOG
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="folders to search, with all below")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.csv", help="table to write")
    parser.add_argument("--reports", type=Path, metavar="CSV", help="reports, joined by accession number")
    parser.add_argument("--reports-key", metavar="COLUMN", help="of accession numbers in --reports")
    parser.add_argument("--encoding", help="of --reports (default: UTF-8, or what its first bytes say)")
    parser.add_argument(
        "--modality", choices=("CT", "MR"), help="others are left out (CT; with --frames, MR)"
    )
    parser.add_argument(
        "--frames",
        action="store_true",
        help="a row for each series of slices with any number of phases, for prepare --corpus cmr; the "
        "column series is for you to fill in, by the description",
    )
    add_choice_arguments(parser, rule="all; with --kernel best", min_slices=1, orientation="any")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that read headers (default: one for each core)"
    )


def run(args: argparse.Namespace) -> int:
    """Index; 0 when there is at least one row."""
    from medclip_jax.corpora.dicom_index import (
        KEYWORDS,
        join_reports,
        list_unread,
        make_frame_index,
        make_index,
        write_index,
    )
    from medclip_jax.pool import available_cores
    from medclip_jax.volumes.dicom_archive import survey_archive
    from medclip_jax.volumes.dicom_selection import SeriesChoice

    if args.out.suffix != ".csv":
        raise ValueError(f"--out {args.out}: the table is a CSV file, name it .csv")
    if args.frames and not takes_all(args):
        raise ValueError("--frames lists all series: leave --kernel, --series-rule and the like out")
    modality = args.modality or ("MR" if args.frames else "CT")
    if args.workers is not None and args.workers < 1:
        raise ValueError(f"--workers {args.workers}: it must be 1 or more")
    for folder in args.folders:
        if not os.path.isdir(folder):
            raise ValueError(f"no folder '{folder}': give the folders that hold the DICOM files")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    archive = survey_archive(
        args.folders,
        also=KEYWORDS,
        workers=args.workers or available_cores(),
        cache=args.out.with_suffix(".cache.jsonl"),
    )
    if args.frames:
        index = make_frame_index(archive.series, modality)
    else:
        rule = "all" if args.kernel is None else "best"
        choice = choice_of(args, modality=modality, rule=rule, min_slices=1, orientation="any")
        index = make_index(archive.series, SeriesChoice(**choice))
    list_unread(index, archive)
    if args.reports is not None:
        index = join_reports(index, args.reports, key=args.reports_key, encoding=args.encoding)
    left_out = args.out.with_suffix(".left-out.csv")
    write_index(index, args.out, left_out)
    print(f"{len(archive.series)} series; {len(index.rows)} rows in {args.out} (private: it names patients)")
    for line in archive.remarks():
        print(line)
    for code, count in index.counts().most_common():
        print(f"  left out, {code}: {count}")
    if index.left_out:
        print(f"each with its reason: {left_out}")
    if not index.rows:
        why = f": {left_out} says why" if index.left_out else ": no DICOM slices were found"
        raise ValueError(f"no series can be prepared{why}")
    if args.frames:
        print("fill in the column series (cine_sa, lge_sa, ...; rows without are passed over), then:")
        print(f"medclip prepare --corpus cmr --table {args.out} --out shards")
    elif args.reports is not None:
        print(f"next: medclip prepare --table {args.out} --out shards")
    return 0
