"""What `medclip prepare` and `medclip verify` both take: which studies, and what becomes of each."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from medclip_jax.cli.choose_series import add_tree_arguments, list_left_out, with_tree
from medclip_jax.cli.prepare_frames import add_frame_arguments, frame_series
from medclip_jax.cli.prepare_masks import add_mask_arguments, check_label_arguments, label_source
from medclip_jax.corpora.registry import CORPORA, Place, read_corpus

if TYPE_CHECKING:
    from medclip_jax.corpora.folder import StudyTable
    from medclip_jax.reports.definitions import Findings
    from medclip_jax.shards.settings import PrepareSettings


def add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe which studies there are and what becomes of each."""
    _add_corpus_arguments(parser)
    _add_volume_arguments(parser)
    add_mask_arguments(parser)
    add_tree_arguments(parser)
    add_frame_arguments(parser)
    _add_report_arguments(parser)
    _add_split_arguments(parser)


def _add_corpus_arguments(parser: argparse.ArgumentParser) -> None:
    width = max(map(len, CORPORA))
    lines = [f"  {name:{width}}  {corpus.about}" for name, corpus in CORPORA.items()]
    corpora = parser.add_argument_group(
        "corpora",
        "\n".join(("folder unless --corpus says otherwise; see docs/reference/corpora.md:", *lines)),
    )
    corpora.add_argument(
        "--corpus",
        choices=tuple(CORPORA),
        default="folder",
        metavar="NAME",
        help="where studies come from: one of these names (%(default)s)",
    )
    corpora.add_argument(
        "--table",
        type=Path,
        help="CSV, TSV or .xlsx: of folder, a row for each volume; of cmr, for each series; of dicom, the "
        "reports; of nlst, the participants",
    )
    corpora.add_argument(
        "--root",
        type=Path,
        help="folder of the corpus; of a table, where its paths start (the table's folder)",
    )
    corpora.add_argument("--limit", type=int, metavar="N", help="take only the first N studies")
    corpora.add_argument("--sheet", metavar="NAME", help="of a spreadsheet, the sheet to read (the first)")
    corpora.add_argument(
        "--encoding",
        help="of the tables, where it is neither UTF-8 nor told by a byte order mark: cp1252, utf-16, ...",
    )
    corpora.add_argument(
        "--list-unmatched",
        type=Path,
        metavar="FILE",
        help="of corpora that join tables to volumes: write every id without a partner to this CSV (private)",
    )
    single = parser.add_argument_group("options of single corpora")
    single.add_argument(
        "--ct-rate-version",
        choices=("v1", "v2", "auto"),
        help="of ct_rate: v1, raw values that need slope, intercept and spacing of the metadata; v2 "
        "(folders *_fixed), HU; auto tells by folders, headers and values (auto)",
    )
    single.add_argument(
        "--hu-window",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="of cardiac_clip: HU that 0 and 1 stand for in its arrays (-1024 1500)",
    )
    names = " and ".join(name for name, corpus in CORPORA.items() if "channel" in corpus.options)
    single.add_argument(
        "--channel",
        metavar="NAME",
        help=f"of {names}: which of several channels is read, by name or number in dataset.json",
    )
    single.add_argument(
        "--count", type=int, default=100, metavar="N", help="of phantom and cine: studies (%(default)s)"
    )
    single.add_argument(
        "--phantom-folder",
        type=Path,
        metavar="FOLDER",
        help="of phantom and cine: where the generated studies are kept for later runs (OUT.phantoms)",
    )


def _add_volume_arguments(parser: argparse.ArgumentParser) -> None:
    volume = parser.add_argument_group("volumes", "in the order depth, height, width")
    volume.add_argument("--shape", nargs=3, type=int, metavar=("D", "H", "W"), help="voxels (112 224 224)")
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
        help="crop: bring every scan to --spacing, and cut or pad it to --shape; resize: bring each scan's "
        "full extent to --shape, so that spacings differ (%(default)s)",
    )
    volume.add_argument(
        "--crop",
        default="center",
        metavar="WHERE",
        help="'center' of the scan, 'box' (the table's column), or around an organ by its name (%(default)s)",
    )
    volume.add_argument(
        "--modality",
        choices=("CT", "MR"),
        default="CT",
        help="scans of the other one are rejected (%(default)s)",
    )
    volume.add_argument(
        "--percentiles",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="of MR: map intensities between these percentiles of each scan to 0 ... 4095 (left as they are; "
        "of frames, 1 99)",
    )


def _add_report_arguments(parser: argparse.ArgumentParser) -> None:
    text = parser.add_argument_group("reports")
    text.add_argument(
        "--findings",
        metavar="LIST",
        help="what reports are read for, with commas between: names, 'cardiac' (7), 'phantom' (11), "
        "'ct_rate' (18), 'cardiac_mr' (13), 'merlin' (30), 'inspect' (10), 'rad_chest_ct' (51), "
        "'all', and .toml files of your own, see docs/reference/reports.md (the corpus' own; of folder, "
        "cardiac)",
    )
    text.add_argument(
        "--empty-report",
        choices=("reject", "note"),
        help="what becomes of studies whose report says nothing (reject; of corpora without reports, note)",
    )
    text.add_argument(
        "--redact",
        metavar="LIST",
        help="quantities that no text may state, with commas between: calcium_score, ejection_fraction, "
        "nodule_size, and .toml files of your own, see docs/reference/reports.md. Findings and measurements "
        "keep them",
    )
    text.add_argument(
        "--scrub",
        nargs="?",
        const="patterns",
        default="",
        metavar="MODEL",
        help='replace personal data in the texts by its kind ("[DATE]") as far as patterns find it; with an '
        "installed spaCy model also names and places. Needs medclip-jax[scrub]; no guarantee, see "
        "docs/how-to/data.md",
    )
    text.add_argument(
        "--tokenizer",
        default="train",
        help="'train' learns one on the train split, a folder is copied, 'none' (%(default)s)",
    )
    text.add_argument(
        "--vocabulary-size",
        type=int,
        default=8192,
        metavar="N",
        help="words and pieces of words of a learned tokenizer (%(default)s)",
    )
    text.add_argument(
        "--vocabulary-patients",
        type=int,
        metavar="N",
        help="it learns a word only from the reports of N patients or more, so that no name gets into it (5; "
        "of phantom and cine, 1)",
    )


def _add_split_arguments(parser: argparse.ArgumentParser) -> None:
    split = parser.add_argument_group("splits", "by patient, where the corpus says none")
    split.add_argument(
        "--fractions",
        nargs=3,
        type=float,
        metavar=("TRAIN", "VALIDATION", "TEST"),
        help="of the patients (0.8 0.1 0.1; of ct_rate and rad_genome, whose test split is given, "
        "0.95 0.05 0)",
    )
    split.add_argument(
        "--one-per-report",
        action="store_true",
        help="keep one volume of every report in each split, the first by id; the others are listed as "
        "repeated-report, and do not count for --max-rejected",
    )
    split.add_argument("--seed", type=int, default=0, help="of the split, and of phantoms (%(default)s)")


def read_studies(args: argparse.Namespace) -> tuple[StudyTable, PrepareSettings]:
    """Read the corpus that the arguments of `add_study_arguments` name, and say what becomes of its studies.

    Args:
        args: of the command; where studies are generated and `phantom_folder` is not given, also `out`.

    Raises:
        ValueError: arguments that do not go together, or a table that cannot be understood.
    """
    from medclip_jax.reports.findings_file import choose_findings
    from medclip_jax.reports.quantities import choose_quantities
    from medclip_jax.shards.settings import PrepareSettings

    corpus = CORPORA[args.corpus]
    wanted = args.findings or corpus.findings
    findings, definitions = choose_findings(wanted.split(","))
    studies = _studies(args, definitions)
    series = frame_series(args, studies)
    return studies, PrepareSettings(
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
        fractions=tuple(args.fractions or corpus.fractions),
        seed=args.seed,
        modality="MR" if series else args.modality,
        percentiles=None if args.percentiles is None or series else tuple(args.percentiles),
        series=series,
        empty_report=args.empty_report or ("reject" if _brings_reports(args) else "note"),
        organ_text=args.organ_text,
        one_per_report=args.one_per_report,
        scrub=args.scrub,
        redact=choose_quantities((args.redact or "").split(",")),
        kernel=args.kernel,
        series_rule="best" if args.series_rule in (None, "all") else args.series_rule,
        label_maps=label_source(args, studies),
    )


def _studies(args: argparse.Namespace, definitions: Findings) -> StudyTable:
    check_label_arguments(args)
    given = {field.name: getattr(args, field.name) for field in fields(Place) if field.default is None}
    place = Place(definitions, **given)
    if CORPORA[args.corpus].generate:
        place = replace(place, table=_generate(args))
    table = read_corpus(args.corpus, with_tree(place, args, CORPORA[args.corpus]))
    if args.list_left_out is not None:
        list_left_out(args.list_left_out, table)
    if args.list_unmatched is not None:
        _list_unmatched(args.list_unmatched, table, args.corpus)
    table = table.first(args.limit)
    if args.sentences is not None and not args.organ_cell:
        print("without --organ-cell no organ maps are prepared, nor sentences about organs", file=sys.stderr)
    return table


def _brings_reports(args: argparse.Namespace) -> bool:
    """Whether the corpus has reports: of one that can do without a table, whether the table is there."""
    corpus = CORPORA[args.corpus]
    return corpus.has_reports and (args.table is not None or "table" not in corpus.options[1:])


def _list_unmatched(path: Path, table: StudyTable, corpus: str) -> None:
    from medclip_jax.corpora.joining import write_unmatched
    from medclip_jax.corpora.tables import TableError

    if not table.unmatched:
        raise TableError(f"--corpus {corpus} joins no tables to its volumes here: leave --list-unmatched out")
    count = write_unmatched(path, table.unmatched)
    print(f"{count} ids without a partner are listed in '{path}'", file=sys.stderr)


def _generate(args: argparse.Namespace) -> Path:
    """The table of a generated set."""
    from medclip_jax.corpora.tables import TableError
    from medclip_jax.pool import available_cores

    if args.table is not None:
        raise TableError(f"--corpus {args.corpus} makes its own studies: leave --table out, or --corpus")
    where = args.phantom_folder or args.out.with_name(args.out.name + ".phantoms")
    generate = CORPORA[args.corpus].generate
    options = {"label_maps": True} if args.label_maps == "corpus" else {}
    return generate(where, args.count, seed=args.seed, workers=args.workers or available_cores(), **options)


def _vocabulary_patients(args: argparse.Namespace) -> int:
    if args.vocabulary_patients is not None:
        return args.vocabulary_patients
    return 1 if CORPORA[args.corpus].generate else 5


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
