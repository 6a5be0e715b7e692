"""``medclip prepare``: scans and reports in, shards out."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from medclip_jax.cli.prepare_studies import add_study_arguments, read_studies
from medclip_jax.corpora.registry import CORPORA
from medclip_jax.shards.urls import folder_or_url

if TYPE_CHECKING:
    from medclip_jax.shards.manifest import Summary
    from medclip_jax.shards.read import PreparedInfo

HELP = """\
Turn scans and reports into shards for training: read, check, crop, resample, compress.

Run the same command again after any interruption: it resumes where it stopped. Every input ends as
accepted, accepted-with-note or rejected-with-reason in OUT/manifest.jsonl; names, ids and paths never
enter the shards or the manifest. The exit status is 1 where something could not be read that another run
may read (permissions, disk, memory): the same command tries it again."""

EPILOG = """\
examples:
  # Your own data. studies.csv needs the columns volume and report; patient and study where there are any.
  medclip prepare --table studies.csv --root scans --out shards

  # A crop of 192 mm around the heart at finer spacing, with organ maps in cells of 8x8x8 voxels.
  medclip prepare --table studies.csv --out shards --crop heart --shape 128 144 144 \\
      --spacing 1.5 1.33 1.33 --organ-cell 8

  # More scans than one machine can do: the same command in a SLURM array or a Kubernetes indexed job.
  medclip prepare --table studies.csv --root scans --out shards --part auto
  medclip prepare --table studies.csv --root scans --out shards --part 3/8   # or by hand, 1/8 to 8/8
  medclip prepare --merge shards                                             # if the last part did not

  # Public corpora as they were downloaded.
  medclip prepare --corpus ct_rate --root CT-RATE --out shards --list-unmatched unmatched.csv
  medclip prepare --corpus merlin --root merlinabdominalctdataset --out shards --shape 160 224 224

  # A PACS export: series by their headers, reports by accession number, study UID or patient id.
  medclip prepare --corpus dicom --root PACS --table reports.csv --out shards --list-left-out left-out.csv

  # Cardiac MR: a row for each series (cine_sa, lge_sa, ...); of the cines the middle slice alone.
  medclip prepare --corpus cmr --table studies.csv --out shards --series cine_sa:middle lge_sa

  # Without data: generated CT with reports and organ masks.
  medclip prepare --corpus phantom --count 200 --out shards --workers 2

then:
  medclip inspect shards --out sheet.html

docs/reference/corpora.md has a command for every corpus. docs/how-to/data.md describes the table and more
options, docs/how-to/cardiac-mr.md the table of MR series, docs/reference/shards.md the manifest and the key.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.usage = (
        "%(prog)s [--corpus NAME] [--table TABLE] [--root ROOT] --out OUT [options]\n"
        "       %(prog)s --merge OUT"
    )
    parser.epilog = EPILOG
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", type=folder_or_url, help="folder to write, or URL (see object stores)")
    target.add_argument("--merge", type=Path, metavar="OUT", help="put the finished parts in OUT together")
    add_study_arguments(parser)
    _add_job_arguments(parser)
    store = parser.add_argument_group(
        "object stores", "s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, and others of fsspec"
    )
    store.add_argument(
        "--staging",
        type=Path,
        metavar="FOLDER",
        help="of --out URL: where the set is made before it is copied (NAME.staging here, NAME being the "
        "last part of the URL); with --part, a folder that all parts share",
    )
    store.add_argument(
        "--upload", metavar="URL", help="of --out FOLDER and --merge: also copy the finished set to URL"
    )


def _add_job_arguments(parser: argparse.ArgumentParser) -> None:
    job = parser.add_argument_group("job")
    job.add_argument("--workers", type=int, help="processes (one for each core)")
    job.add_argument(
        "--key", type=Path, help="file with the key that ids are hashed with (OUT.key, made if needed)"
    )
    job.add_argument(
        "--part",
        metavar="I/N",
        help="make one of N shares of the work, I from 1 to N; 'auto' or 'auto/N' in a SLURM array or a "
        "Kubernetes indexed job",
    )
    job.add_argument(
        "--engine",
        choices=("processes", "ray"),
        default="processes",
        help="what does the work: processes of this machine, or a Ray cluster (%(default)s)",
    )
    job.add_argument(
        "--max-rejected", type=float, metavar="SHARE", help="stop above this share of rejections (0.1)"
    )
    job.add_argument(
        "--retry-rejected",
        action="store_true",
        help="also try again what was rejected, and read files again that have changed or appeared",
    )
    job.add_argument(
        "--per-shard", type=int, metavar="VOLUMES", help="in one shard (about 256 MB before compression)"
    )


def run(args: argparse.Namespace) -> int:
    """Prepare. Returns 1 where something could not be read that another run may read, else 0."""
    _settle_store(args)
    if args.merge is not None:
        return _merge(args)
    from medclip_jax.shards.parts import parse_part
    from medclip_jax.shards.prepare import default_key, prepare, prepare_part

    part = None if args.part is None else parse_part(args.part, os.environ)
    corpus = CORPORA[args.corpus]
    if corpus.chooses_series and args.header_cache is None:
        args.header_cache = args.out.with_name(f"{args.out.name}.headers.jsonl")
    studies, settings = read_studies(args)
    settings = replace(settings, per_shard=args.per_shard)
    summaries: list[Summary] = []
    options = {
        "workers": args.workers,
        "key": args.key or (_phantom_key(args) if corpus.generate else default_key(args.out)),
        "max_rejected": 0.1 if args.max_rejected is None else args.max_rejected,
        "engine": args.engine,
        "retry_rejected": args.retry_rejected,
        "observe": summaries.append,
    }
    if part is None:
        info = prepare(studies, args.out, settings, **options)
    else:
        info = prepare_part(part, studies, args.out, settings, command=_command(), **options)
    if info is not None:
        _say_done(info)
        _upload(args, info)
    return _status(summaries)


def _settle_store(args: argparse.Namespace) -> None:
    """Make `--out URL` a folder and `--upload URL`, and see that the store answers before the work begins."""
    from medclip_jax.shards.publish import check_target
    from medclip_jax.shards.record import ShardError

    if isinstance(args.out, str):
        if args.upload is not None:
            raise ShardError("--out is a URL already: leave --upload out, or give --out a folder")
        if args.part is not None and args.staging is None:
            raise ShardError(
                "parts are put together in one folder before anything is copied to a store: give all of them "
                "the same --staging FOLDER, which they share"
            )
        args.upload = args.out
        args.out = args.staging or Path(args.out.rpartition("/")[2] + ".staging")
    elif args.staging is not None:
        raise ShardError("--staging goes with --out URL alone: here, --out is the folder")
    if args.upload is not None:
        check_target(args.upload)


def _upload(args: argparse.Namespace, info: PreparedInfo) -> None:
    from medclip_jax.shards.publish import publish

    if args.upload is not None:
        publish(info.folder, args.upload, say=lambda line: print(line, file=sys.stderr))


def _status(summaries: Sequence[Summary]) -> int:
    """1 where something could not be read that another run may read."""
    return int(any(summary.passing for summary in summaries))


def _merge(args: argparse.Namespace) -> int:
    from medclip_jax.shards.merge import merge

    info, summary = merge(
        args.merge,
        max_rejected=args.max_rejected,
        key=args.key,
        say=lambda line: print(line, file=sys.stderr),
    )
    print(f"'{args.merge}' is already complete" if summary is None else summary.text(), file=sys.stderr)
    _say_done(info)
    _upload(args, info)
    return _status([summary] if summary is not None else [])


def _say_done(info: PreparedInfo) -> None:
    count = sum(info.splits.values())
    print(f"{count} records in '{info.folder}'. Look at them: medclip inspect {info.folder}")


def _command() -> list[str]:
    """This command without its part."""
    words = iter(sys.argv[1:])
    kept = []
    for word in words:
        if word == "--part":
            next(words, None)
        elif not word.startswith("--part="):
            kept.append(word)
    return ["medclip", *kept]


def _phantom_key(args: argparse.Namespace) -> bytes:
    # Nobody is to be protected, and the same command makes the same set everywhere.
    return f"phantom {args.seed}".encode()
