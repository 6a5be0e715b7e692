"""What `medclip prepare` takes for organ masks and label maps."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from medclip_jax.corpora.registry import CORPORA

if TYPE_CHECKING:
    from medclip_jax.corpora.study import Study


def add_mask_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options of organ masks and label maps."""
    masks = parser.add_argument_group("organs and label maps, of volumes")
    masks.add_argument(
        "--masks",
        type=Path,
        metavar="DIR",
        help="organ masks of TotalSegmentator beside any corpus: for a volume NAME.nii.gz a folder DIR/NAME "
        "of one NIfTI for each class, or one file DIR/NAME.nii.gz with all classes",
    )
    masks.add_argument(
        "--organ-cell",
        type=int,
        default=0,
        metavar="VOXELS",
        help="prepare organ maps in cells of this size (none)",
    )
    masks.add_argument("--organs", metavar="LIST", help="names with commas between (all that the masks show)")
    masks.add_argument(
        "--sentences",
        type=Path,
        metavar="CSV",
        help="of folder: sentences by region, columns Volumename, Anatomy, Sentence",
    )
    masks.add_argument(
        "--organ-text",
        choices=("containing", "own"),
        default="containing",
        help="what an organ without a sentence of its own takes: those about the region that contains it, or "
        "none (%(default)s)",
    )
    masks.add_argument(
        "--label-maps",
        choices=("corpus", "organs", "none"),
        help="prepare the class of each voxel: from the corpus' label maps, or from the organ masks (corpus, "
        "where there are any, else none)",
    )


def check_label_arguments(args: argparse.Namespace) -> None:
    """Check, before a corpus is read or made, that what is asked of label maps can be.

    Raises:
        ShardError: label maps of a corpus of frames.
    """
    from medclip_jax.shards.arrays import ShardError

    if args.label_maps in ("corpus", "organs") and CORPORA[args.corpus].has_frames:
        raise ShardError(
            f"--label-maps {args.label_maps} is of volumes, and --corpus {args.corpus} has frames: leave "
            "it out"
        )


def label_source(args: argparse.Namespace, studies: Iterable[Study]) -> str:
    """Where label maps come from, for `PrepareSettings.label_maps`; "" for none.

    Args:
        args: of the command.
        studies: of the corpus.
    """
    if args.label_maps is None:
        return "corpus" if any(study.label_map is not None for study in studies) else ""
    return "" if args.label_maps == "none" else args.label_maps
