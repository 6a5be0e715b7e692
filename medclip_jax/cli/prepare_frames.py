"""What `medclip prepare` takes for corpora of MR series: which of them, which slices, and how large."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from medclip_jax.corpora.registry import CORPORA

if TYPE_CHECKING:
    from medclip_jax.corpora.study import Study
    from medclip_jax.shards.series import SeriesSettings

SHAPE, SPACING, PERCENTILES = (224, 224), (1.4, 1.4), (1.0, 99.0)

_OF_VOLUMES = {
    "shape": "--frame-shape",
    "spacing": "--frame-spacing",
    "organ_cell": "",
    "organs": "",
    "kernel": "",
}
"""Options of volumes that do not go with frames, and what stands in for them."""

_OF_FRAMES = ("series", "slices", "frame_shape", "frame_spacing")


def add_frame_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options of frames."""
    names = ", ".join(name for name, corpus in CORPORA.items() if corpus.has_frames)
    frames = parser.add_argument_group(
        f"frames, of --corpus {names}", "pictures of MR series, in their plane"
    )
    frames.add_argument(
        "--series",
        nargs="+",
        metavar="NAME",
        help="which series become arrays of the record, in this order (all that the studies name); "
        "NAME:middle or NAME:all says which of its slices",
    )
    frames.add_argument(
        "--slices",
        choices=("all", "middle"),
        help="every slice of a series or the middle one, each with all its phases (all)",
    )
    frames.add_argument("--frame-shape", nargs=2, type=int, metavar=("H", "W"), help="pixels (224 224)")
    frames.add_argument(
        "--frame-spacing",
        nargs=2,
        type=float,
        metavar=("H", "W"),
        help="mm per pixel (1.4 1.4); with --fit resize, and of --corpus cmr_clip, the full picture is "
        "resized",
    )


def frame_series(args: argparse.Namespace, studies: Iterable[Study]) -> tuple[SeriesSettings, ...]:
    """What the series of the studies become; () for corpora of volumes.

    Args:
        args: of the command.
        studies: of the corpus.

    Raises:
        ShardError: an option does not go with the corpus, or names a series that no study has.
    """
    from medclip_jax.corpora.cmr import in_order
    from medclip_jax.shards.arrays import ShardError
    from medclip_jax.shards.series import FRAMES, SeriesSettings

    corpus = CORPORA[args.corpus]
    has_frames = corpus.has_frames
    for name in _OF_VOLUMES if has_frames else _OF_FRAMES:
        if getattr(args, name):
            take = f": take {_OF_VOLUMES[name]}" if has_frames and _OF_VOLUMES[name] else ""
            kind = "volumes" if has_frames else "frames"
            raise ShardError(
                f"--{name.replace('_', '-')} is of {kind}, and --corpus {args.corpus} has none{take}"
            )
    if not has_frames:
        return ()
    resized = args.fit == "resize" or not corpus.knows_spacing
    if resized and args.frame_spacing:
        why = "--fit resize" if args.fit == "resize" else f"--corpus {args.corpus}, which knows no mm,"
        raise ShardError(f"{why} resizes the full pictures: leave --frame-spacing out")
    spacing = (None, None) if resized else tuple(args.frame_spacing or SPACING)
    there = in_order({series.name for study in studies if study.has_scan for series in study.series})
    chosen = []
    for entry in args.series or there:
        name, _, slices = entry.partition(":")
        if name not in there:
            raise ShardError(f"--series {name}: no study has it; they have {', '.join(there) or 'none'}")
        if slices and slices not in FRAMES:
            raise ShardError(f"--series {entry}: behind the name stands {' or '.join(FRAMES)}")
        chosen.append(
            SeriesSettings(
                name,
                (None, *(args.frame_shape or SHAPE)),
                (None, *spacing),
                "MR",
                tuple(args.percentiles or PERCENTILES),
                required=False,
                frames=slices or args.slices or "all",
            )
        )
    return tuple(chosen)
