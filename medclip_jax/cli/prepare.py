"""``medclip prepare``: scans and reports in, shards out."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from medclip_jax.cli.prepare_frames import add_frame_arguments, frame_series
from medclip_jax.corpora.registry import CORPORA, Place, read_corpus

if TYPE_CHECKING:
    from medclip_jax.corpora.folder import StudyTable
    from medclip_jax.reports.definitions import Findings
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

  # The complete scan, resized to one shape, whatever its extent: each keeps a spacing of its own.
  medclip prepare --table studies.csv --out shards --fit resize --shape 64 128 128

  # More scans than one machine can do: the same command in a SLURM array or a Kubernetes indexed job.
  medclip prepare --table studies.csv --root scans --out shards --part auto
  medclip prepare --table studies.csv --root scans --out shards --part 3/8   # or by hand, 1/8 to 8/8
  medclip prepare --merge shards                                             # if the last part did not

  # A label of your own, defined in a findings file, beside the seven cardiac findings.
  medclip prepare --table studies.csv --findings cardiac,findings.toml --out shards

  # RadGenome-ChestCT: masks in the table's column organs, sentences by region.
  medclip prepare --table studies.csv --sentences train_region_report.csv --organ-cell 8 --out shards

  # Cardiac MR: a row for each series (cine_sa, lge_sa, ...); of the cines the middle slice alone.
  medclip prepare --corpus cmr --table studies.csv --out shards --series cine_sa:middle lge_sa
  medclip prepare --corpus acdc --root ACDC --out acdc --slices middle

  # No data at hand: generated CT with reports and organ masks, or beating hearts.
  medclip prepare --corpus phantom --count 200 --out shards --workers 2
  medclip prepare --corpus cine --count 200 --out shards --frame-shape 64 64 --frame-spacing 3 3

then:
  medclip inspect shards --out sheet.html

docs/how-to/data.md describes the table, docs/how-to/cardiac-mr.md that of MR series,
docs/reference/shards.md the manifest and what the key is for.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.epilog = EPILOG
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", type=Path, help="folder to write")
    target.add_argument("--merge", type=Path, metavar="OUT", help="put the finished parts in OUT together")
    kinds = "; ".join(f"{name}, {corpus.about}" for name, corpus in CORPORA.items())
    parser.add_argument(
        "--corpus",
        choices=tuple(CORPORA),
        default="folder",
        help=f"where studies come from: {kinds} (%(default)s)",
    )
    source = parser.add_argument_group("your data")
    source.add_argument(
        "--table", type=Path, help="CSV or TSV with one row for each volume; of --corpus cmr, for each series"
    )
    source.add_argument(
        "--root",
        type=Path,
        help="folder that the table's paths start from (the table's); where there is no table, of the corpus",
    )
    source.add_argument(
        "--sentences",
        type=Path,
        metavar="CSV",
        help="sentences by region: columns Volumename, Anatomy, Sentence (RadGenome-ChestCT's)",
    )
    source.add_argument(
        "--encoding",
        help="of the tables, where it is neither UTF-8 nor told by a byte order mark: cp1252, utf-16, ...",
    )
    source.add_argument("--limit", type=int, help="take only the first LIMIT studies")
    phantom = parser.add_argument_group("--corpus phantom, cine")
    phantom.add_argument("--count", type=int, default=100, help="studies to generate (%(default)s)")
    phantom.add_argument(
        "--phantom-folder",
        type=Path,
        help="where the generated studies lie (OUT.phantoms); kept for later runs",
    )
    volume = parser.add_argument_group("volumes", "in the order depth, height, width")
    volume.add_argument(
        "--shape",
        nargs=3,
        type=int,
        metavar=("D", "H", "W"),
        help="voxels (112 224 224)",
    )
    volume.add_argument(
        "--spacing",
        nargs=3,
        type=float,
        metavar=("D", "H", "W"),
        help="mm (3 1.5 1.5); not with --fit resize",
    )
    volume.add_argument(
        "--fit",
        choices=("crop", "resize"),
        default="crop",
        help="'crop' brings every scan to --spacing and cuts or pads it to --shape, so that a voxel is as "
        "large in all scans; 'resize' brings each scan's full extent to --shape, so that nothing is cut off "
        "and the mm of a voxel are each scan's own (%(default)s)",
    )
    volume.add_argument(
        "--crop", default="center", help="'center' of the scan, 'box' (the table's column) or an organ's name"
    )
    volume.add_argument("--modality", choices=("CT", "MR"), default="CT", help="the other one is rejected")
    volume.add_argument(
        "--percentiles",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="map each MR scan's intensities to 0 ... 4095, cut off at these percentiles of its voxels "
        "(the scanner's units; of frames, 1 99)",
    )
    volume.add_argument(
        "--organ-cell", type=int, default=0, metavar="VOXELS", help="prepare organ maps in cells of this size"
    )
    volume.add_argument("--organs", help="comma-separated names (all that the masks show)")
    volume.add_argument(
        "--organ-text",
        choices=("containing", "own"),
        default="containing",
        help="what an organ without a sentence of its own takes: those about the region that contains it, or "
        "none (%(default)s)",
    )
    volume.add_argument(
        "--kernel",
        metavar="NAME",
        help="of DICOM folders, only series of this kernel: soft, medium, sharp, or a name such as 'B3*'",
    )
    volume.add_argument(
        "--series-rule",
        choices=("best", "largest", "thinnest", "original"),
        default="best",
        help="which of several series in a DICOM folder is taken where the table has no column series "
        "(%(default)s: see docs/reference/volumes.md)",
    )
    add_frame_arguments(parser)
    text = parser.add_argument_group("reports")
    text.add_argument(
        "--findings",
        metavar="LIST",
        help="with commas between: names, 'cardiac' (7), 'phantom' (11), 'ct_rate' (18), 'cardiac_mr' (13), "
        "'all', and findings files of your own (.toml, see docs/reference/reports.md) (cardiac; of MR "
        "corpora and cine cardiac_mr, of phantom phantom)",
    )
    text.add_argument(
        "--tokenizer",
        default="train",
        help="'train' learns one on the train split, a folder is copied, or 'none'",
    )
    text.add_argument(
        "--vocabulary-size", type=int, default=8192, help="of a learned tokenizer (%(default)s)"
    )
    text.add_argument(
        "--vocabulary-patients",
        type=int,
        metavar="N",
        help="it learns a word only if the reports of N patients hold it, so that no name travels with the "
        "model (5; for --corpus phantom and cine, 1)",
    )
    text.add_argument(
        "--empty-report",
        choices=("reject", "note"),
        help="studies whose report says nothing (reject; of --corpus acdc, which has no reports, note)",
    )
    split = parser.add_argument_group("splits", "by patient, where the table has no split column")
    split.add_argument(
        "--fractions", nargs=3, type=float, default=(0.8, 0.1, 0.1), metavar=("TRAIN", "VALIDATION", "TEST")
    )
    split.add_argument("--seed", type=int, default=0, help="of the split, and of the phantoms (%(default)s)")
    job = parser.add_argument_group("job")
    job.add_argument("--workers", type=int, help="processes (one for each core)")
    job.add_argument("--key", type=Path, help="key file of the hashed ids (OUT.key, made if needed)")
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
    job.add_argument("--max-rejected", type=float, help="stop above this share of rejections (0.1)")
    job.add_argument(
        "--retry-rejected",
        action="store_true",
        help="also try again what was rejected, and read files again that have changed or appeared (what "
        "could not be read for a reason that may pass is tried again by every run)",
    )
    job.add_argument(
        "--per-shard", type=int, metavar="VOLUMES", help="in one shard (about 256 MB before compression)"
    )


def run(args: argparse.Namespace) -> int:
    """Prepare. Returns 1 where something could not be read that another run may read, else 0."""
    if args.merge is not None:
        return _merge(args)
    from medclip_jax.reports.findings_file import choose_findings
    from medclip_jax.shards.parts import parse_part
    from medclip_jax.shards.prepare import default_key, prepare, prepare_part
    from medclip_jax.shards.settings import PrepareSettings

    part = None if args.part is None else parse_part(args.part, os.environ)
    corpus = CORPORA[args.corpus]
    wanted = args.findings or corpus.findings
    findings, definitions = choose_findings(wanted.split(","))
    studies = _studies(args, definitions)
    series = frame_series(args, studies)
    settings = PrepareSettings(
        shape=tuple(args.shape) if args.shape else PrepareSettings.shape,
        spacing=None if args.spacing is None else tuple(args.spacing),
        fit="crop" if series else args.fit,
        crop=args.crop,
        findings=findings,
        definitions=definitions,
        organs=_names(args.organs) if args.organs else None,
        cell=args.organ_cell,
        tokenizer=None if args.tokenizer == "none" else args.tokenizer,
        vocabulary_size=args.vocabulary_size,
        vocabulary_patients=_vocabulary_patients(args),
        fractions=tuple(args.fractions),
        seed=args.seed,
        modality="MR" if series else args.modality,
        percentiles=None if args.percentiles is None or series else tuple(args.percentiles),
        series=series,
        empty_report=args.empty_report or ("reject" if corpus.has_reports else "note"),
        per_shard=args.per_shard,
        organ_text=args.organ_text,
        kernel=args.kernel,
        series_rule=args.series_rule,
    )
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
    return _status(summaries)


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


def _studies(args: argparse.Namespace, definitions: Findings) -> StudyTable:
    place = Place(definitions, args.table, args.root, args.encoding, args.sentences)
    if CORPORA[args.corpus].generate:
        place = replace(place, table=_generate(args))
    table = read_corpus(args.corpus, place).first(args.limit)
    if args.sentences is not None and not args.organ_cell:
        print("without --organ-cell no organ maps are prepared, nor sentences about organs", file=sys.stderr)
    return table


def _generate(args: argparse.Namespace) -> Path:
    """The table of a generated set."""
    from medclip_jax.corpora.tables import TableError
    from medclip_jax.shards.work import available_cores

    if args.table is not None:
        raise TableError(f"--corpus {args.corpus} makes its own studies: leave --table out, or --corpus")
    where = args.phantom_folder or args.out.with_name(args.out.name + ".phantoms")
    generate = CORPORA[args.corpus].generate
    return generate(where, args.count, seed=args.seed, workers=args.workers or available_cores())


def _phantom_key(args: argparse.Namespace) -> bytes:
    # Nobody is to be protected, and the same command makes the same set everywhere.
    return f"phantom {args.seed}".encode()


def _vocabulary_patients(args: argparse.Namespace) -> int:
    if args.vocabulary_patients is not None:
        return args.vocabulary_patients
    return 1 if CORPORA[args.corpus].generate else 5


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
