"""``medclip verify``: read and check an archive as prepare would, without writing shards."""

from __future__ import annotations

import argparse
import csv
import json
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from medclip_jax.cli.prepare_studies import add_study_arguments, read_studies
from medclip_jax.corpora.registry import CORPORA

if TYPE_CHECKING:
    from medclip_jax.corpora.folder import StudyTable
    from medclip_jax.shards.verify import Verification

NONE_FOUND = 3
"""Exit status where the corpus has no study."""

HELP = """\
Read and check an archive as prepare would, and write no shards: what is there, and in what state?

It takes prepare's arguments. Tables are read and joined, every scan is opened, checked, cropped and
resampled (with --sample N, only N of them), and what became of each is counted: accepted, accepted with a
note, rejected with a reason; rows without a volume and volumes without a row; splits by patient; how often
each finding is labeled and stated; how long reports are and how many are empty or repeated. The screen names
rows and, where tables do not match, a few ids; paths and complete lists of ids stand in the files of --list,
--list-unmatched and --list-left-out alone."""

EPILOG = """\
examples:
  medclip verify --table studies.csv --root scans
  medclip verify --table studies.csv --root scans --page verify.html --json verify.json
  medclip verify --table studies.csv --sample 200              # 200 scans, and all of the tables
  medclip verify ACDC --corpus acdc --page verify.html
  medclip verify PACS --corpus dicom --table reports.csv --list-left-out left-out.csv
  medclip verify --table studies.csv --list bad.csv            # paths of what was rejected or noted: private

exit status:
  0  every study that was read is accepted, with a note or without
  1  some are rejected
  2  the command or the table cannot be understood
  3  there is no study
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.usage = "%(prog)s [ROOT] [--corpus NAME] [--table TABLE] [options]"
    parser.epilog = EPILOG
    parser.add_argument("folder", nargs="?", type=Path, metavar="ROOT", help="another way to write --root")
    add_study_arguments(parser)
    job = parser.add_argument_group("verifying")
    job.add_argument(
        "--sample", type=int, metavar="N", help="read N scans, drawn by --seed; tables are checked completely"
    )
    job.add_argument("--workers", type=int, help="processes (one for each core)")
    job.add_argument(
        "--key",
        type=Path,
        help="key file of prepare, so that patients without a split are drawn as it will draw them (a key "
        "for this run alone)",
    )
    job.add_argument("--page", type=Path, metavar="FILE", help="write an HTML page with pictures (private)")
    job.add_argument("--pictures", type=int, default=12, help="accepted studies drawn on it (%(default)s)")
    job.add_argument("--json", type=Path, metavar="FILE", help="write the counts for programs to read")
    job.add_argument(
        "--list",
        type=Path,
        metavar="FILE",
        help="write a CSV of every study that is rejected or noted, with its path (private)",
    )


def run(args: argparse.Namespace) -> int:
    """Verify. Returns 1 where a study is rejected, 3 where there is none, else 0."""
    from medclip_jax.pages.verification import page, tables, to_json
    from medclip_jax.shards.keys import read_key
    from medclip_jax.shards.plan import REPEATED_REPORT
    from medclip_jax.shards.record import ShardError
    from medclip_jax.shards.verify import verify

    if args.folder is not None:
        if args.root is not None:
            raise ShardError("the folder is given twice: as ROOT, or with --root")
        args.root = args.folder
    if CORPORA[args.corpus].generate and args.phantom_folder is None:
        raise ShardError(f"--corpus {args.corpus} generates studies: say where, with --phantom-folder FOLDER")
    studies, settings = read_studies(args)
    for remark in studies.remarks:
        print(f"table: {remark}", file=sys.stderr)
    if not len(studies):
        print("there is no study: check the table, --root and --limit", file=sys.stderr)
        return NONE_FOUND
    found = verify(
        studies,
        settings,
        sample=args.sample,
        workers=args.workers,
        key=read_key(args.key) if args.key else secrets.token_bytes(32),
        pictures=args.pictures if args.page else 0,
    )
    for table in tables(found):
        print(f"{table}\n")
    if args.json is not None:
        args.json.write_text(json.dumps(to_json(found), indent=1) + "\n")
    if args.page is not None:
        page(found, f"Verification of a corpus ({args.corpus})").write(args.page)
        print(f"page: {args.page} (images of patients: keep it as private as the scans)")
    if args.list is not None:
        count = _write_list(args.list, studies, found)
        print(f"{count} lines in '{args.list}': with paths, so keep it private")
    rejected = {entry["reason"] for entry in found.entries if entry["class"] == "rejected-with-reason"}
    return int(bool(rejected - {REPEATED_REPORT}))


def _write_list(file: Path, studies: StudyTable, found: Verification) -> int:
    """Every rejection and note with its path, readable by their owner alone."""
    paths = {study.row or place: study.path for place, study in enumerate(studies, start=1)}
    lines = []
    for entry in found.entries:
        path = "" if paths[entry["row"]] == Path() else str(paths[entry["row"]])
        if "reason" in entry:
            lines.append((path, entry["row"], "rejected", entry["reason"], entry["message"]))
        else:
            lines += [(path, entry["row"], "note", note, "") for note in entry["notes"]]
    with open(
        file,
        "w",
        encoding="utf-8",
        errors="surrogateescape",  # names that are not UTF-8 are written as the bytes they are
        newline="",
        opener=lambda name, flags: os.open(name, flags, 0o600),
    ) as opened:
        table = csv.writer(opened, lineterminator="\n")
        table.writerow(("path", "row", "kind", "code", "what_to_do"))
        table.writerows(lines)
    return len(lines)
