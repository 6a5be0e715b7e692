"""`medclip segment`: the classes of the voxels of scans, as image files on the scans' own grids."""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medclip_jax.inference.model import Model
    from medclip_jax.inference.scans import Entry

HELP = "segment scans with a trained model: label maps on the scans' own grids"

EPILOG = """\
examples:
  medclip segment runs/unetr scan.nii.gz --out labels
  medclip segment runs/unetr archive/ --out labels --overlap 0.5
  medclip segment runs/unetr dicom_folder --out labels --dicom-seg      # a DICOM SEG object beside

The folder gets a label map for each scan, and segments.csv: scan, file, value, class, milliliters.
Exit code: 0 all scans were segmented, 1 some were not, 2 none was, or the arguments are wrong.
"""

TABLE = "segments.csv"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EPILOG
    parser.add_argument("model", metavar="MODEL", help="--workdir of medclip train, of a segmentation model")
    parser.add_argument(
        "scans",
        nargs="+",
        metavar="FILES",
        help="NIfTI, NRRD, MHA files, DICOM folders, folders to search for them, patterns in quotes",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="for the label maps; it is made")
    parser.add_argument(
        "--format",
        default="nii.gz",
        choices=("nii.gz", "nii", "nrrd", "mha"),
        help="of the label maps (default: nii.gz)",
    )
    parser.add_argument(
        "--overlap",
        type=float,
        default=0.75,
        metavar="SHARE",
        help="of neighboring windows along each axis (default: 0.75; 0.5 is eight times as fast)",
    )
    parser.add_argument(
        "--center",
        nargs=3,
        type=float,
        metavar=("X", "Y", "Z"),
        help="middle of the crop in RAS mm, for models of crops around an organ (default: the scan's middle)",
    )
    parser.add_argument(
        "--dicom-seg",
        action="store_true",
        help='a DICOM SEG object for each DICOM series, too; needs pip install "medclip-jax[seg]"',
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="windows at a time (default: 1 on a CPU, else 4)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="compute in this precision")
    parser.add_argument("--step", type=int, help="which checkpoint (default: the best or newest)")
    parser.add_argument(
        "--shards", metavar="FOLDER", help="prepared folder, for a run that kept no copy of its settings"
    )


def run(args: argparse.Namespace) -> int:
    """Segment; 0 when every scan could be, 1 when some could not, 2 when none could."""
    from medclip_jax.inference.load import load
    from medclip_jax.inference.scans import find_scans

    if not 0 <= args.overlap < 1:
        raise ValueError(f"--overlap {args.overlap}: it is the share of a window, 0 or more and below 1")
    if args.dicom_seg:
        _check_highdicom()
    left_out: Counter[str] = Counter()
    entries = find_scans(args.scans, left_out=left_out)
    if left_out:
        told = ", ".join(f"{count} {kind}" for kind, count in left_out.most_common())
        print(f"left out, because it is no volume: {told}", file=sys.stderr)
    model = load(args.model, step=args.step, shards=args.shards, batch_size=args.batch_size, dtype=args.dtype)
    if reason := model.embedder.lacks("label maps"):
        raise ValueError(reason)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    done = 0
    with open(out / TABLE, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("scan", "file", "value", "class", "milliliters"))
        for entry, name in zip(entries, names_of(entries), strict=True):
            try:
                rows = _segment(model, entry, out, name, args)
            except ValueError as error:  # a scan that cannot be used, or slices that the format cannot hold
                print(f"not segmented: {entry.scan}: {error}", file=sys.stderr)
                continue
            table.writerows(rows)
            file.flush()
            done += 1
    print(
        f"{done} of {len(entries)} scans segmented, {', '.join(model.objective.segmented_classes())}: {out}"
    )
    return 0 if done == len(entries) else 1 if done else 2


def _check_highdicom() -> None:
    from importlib.util import find_spec

    if find_spec("highdicom") is None:
        raise ValueError('--dicom-seg needs highdicom: pip install "medclip-jax[seg]"')


def names_of(entries: Sequence[Entry]) -> Iterator[str]:
    """A file name for each scan, without ending: that of the scan, numbered where several share it."""
    from medclip_jax.volumes.formats import SUFFIXES

    taken: Counter[str] = Counter()
    for entry in entries:
        name = Path(entry.scan).name.replace("#", "_")
        ending = next((end for end in SUFFIXES if name.lower().endswith(end)), "")
        name = name[: len(name) - len(ending)] or "scan"
        taken[name] += 1
        yield name if taken[name] == 1 else f"{name}-{taken[name]}"


def _segment(
    model: Model, entry: Entry, out: Path, name: str, args: argparse.Namespace
) -> list[tuple[str, str, int, str, str]]:
    """Segment a scan and write it; the rows of the table.

    Raises:
        ValueError: the scan cannot be used, or the format cannot hold it.
    """
    from medclip_jax.inference.preparation import CENTER_ASSUMED

    prepared = model.preparation.read(entry.path, entry.center or args.center, series=entry.series)
    if CENTER_ASSUMED in prepared.notes:
        print(
            f"{entry.scan}: cropped around its middle, and the model was trained on crops around "
            f"{model.crop!r}: give --center X Y Z",
            file=sys.stderr,
        )
    found = model.segment_prepared(prepared, overlap=args.overlap)
    file = out / f"{name}.{args.format}"
    found.save(file)
    if args.dicom_seg:
        try:
            found.save_dicom(out / f"{name}.seg.dcm", entry.path if isinstance(entry.path, tuple) else ())
        except ValueError as error:
            print(f"{entry.scan}: no DICOM segmentation: {error}", file=sys.stderr)
    return [
        (entry.scan, file.name, value, label, f"{volume:.2f}")
        for value, (label, volume) in enumerate(found.milliliters().items(), 1)
    ]
