"""Arguments that say which DICOM series of an archive are taken: the same for `index` and `prepare`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medclip_jax.corpora.folder import StudyTable
    from medclip_jax.corpora.registry import Corpus, Place

RULES = ("best", "largest", "thinnest", "original", "all")

_MIN_SLICES = 10
"""Fewer slices are a scout, a biopsy or bolus tracking, and no scan; `medclip index` lists them as well."""


def add_choice_arguments(
    parser: argparse._ActionsContainer, *, rule: str, min_slices: int, orientation: str
) -> None:
    """Declare the arguments; unless they are given, they are None.

    Args:
        parser: of the command.
        rule, min_slices, orientation: what the command takes by default, for its help.
    """
    parser.add_argument(
        "--kernel",
        metavar="NAME",
        help="only series of this kernel: soft, medium, sharp, or a name such as 'B3*'",
    )
    parser.add_argument(
        "--series-rule",
        choices=RULES,
        help="which of several series of an examination is taken where nothing names one "
        f"({rule}: see docs/reference/volumes.md); all, of trees, keeps every one",
    )
    parser.add_argument(
        "--min-slices", type=int, metavar="N", help=f"leave out series with fewer slices ({min_slices})"
    )
    parser.add_argument(
        "--orientation",
        choices=("any", "axial"),
        help=f"axial leaves out coronal, sagittal and oblique series ({orientation})",
    )
    parser.add_argument(
        "--only-original",
        action="store_true",
        help="leave out series that were reformatted or computed from others",
    )


def takes_all(args: argparse.Namespace) -> bool:
    """Whether nothing was said about the choice of series."""
    return args.kernel is None and args.series_rule in (None, "all") and not narrows(args)


def narrows(args: argparse.Namespace) -> bool:
    """Whether an argument was given that leaves out series of an archive."""
    return args.min_slices is not None or args.orientation is not None or args.only_original


def choice_of(
    args: argparse.Namespace, *, modality: str, rule: str, min_slices: int, orientation: str
) -> dict[str, Any]:
    """The choice that arguments describe, as those of `volumes.dicom_selection.SeriesChoice`.

    Args:
        args: with those of `add_choice_arguments`.
        modality: of the series.
        rule, min_slices, orientation: where they do not say.

    Raises:
        ValueError: an argument makes no sense.
    """
    if args.min_slices is not None and args.min_slices < 1:
        raise ValueError(f"--min-slices {args.min_slices}: it must be 1 or more")
    return {
        "rule": args.series_rule or rule,
        "kernel": args.kernel,
        "modality": modality,
        "min_slices": args.min_slices or min_slices,
        "orientation": args.orientation or orientation,
        "original": args.only_original,
    }


def add_tree_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of corpora that are a tree of DICOM files.

    Args:
        parser: of a command that reads corpora.
    """
    group = parser.add_argument_group(
        "DICOM series",
        "of --corpus dicom and nlst; --kernel and --series-rule also where a folder holds several series",
    )
    add_choice_arguments(
        group,
        rule="best",
        min_slices=_MIN_SLICES,
        orientation="axial; of MR, any",
    )
    group.add_argument(
        "--header-cache",
        type=Path,
        metavar="FILE",
        help="what the headers said, for the next run: private, as the archive is (prepare: "
        "OUT.headers.jsonl; verify: none)",
    )
    group.add_argument(
        "--list-left-out",
        type=Path,
        metavar="FILE",
        help="write every series and file that no study takes to this CSV, with path and reason (private)",
    )


def with_tree(place: Place, args: argparse.Namespace, corpus: Corpus) -> Place:
    """A corpus' place, with what the arguments say of a tree of DICOM files.

    Args:
        place: of the corpus.
        args: with those of `add_tree_arguments`.
        corpus: that is read.

    Raises:
        TableError: arguments that this corpus does not take.
    """
    from medclip_jax.corpora.tables import TableError
    from medclip_jax.pool import available_cores

    if not corpus.chooses_series:
        if narrows(args) or args.series_rule == "all" or args.list_left_out is not None:
            raise TableError(
                f"--corpus {args.corpus} does not search for series: leave --series-rule all, --min-slices, "
                "--orientation, --only-original and --list-left-out out, or take --corpus dicom"
            )
        return place
    orientation = "axial" if args.modality == "CT" else "any"
    choice = choice_of(
        args, modality=args.modality, rule="best", min_slices=_MIN_SLICES, orientation=orientation
    )
    workers = getattr(args, "workers", None) or available_cores()
    return replace(place, choice=choice, workers=workers)


def list_left_out(path: Path, table: StudyTable) -> None:
    """Write what no study of a tree takes, for the user alone.

    Args:
        path: CSV.
        table: of the tree.
    """
    from medclip_jax.corpora.dicom_index import write_left_out

    write_left_out(table.left_out, path)
    print(
        f"{len(table.left_out)} series and files that no study takes are listed in '{path}'", file=sys.stderr
    )
