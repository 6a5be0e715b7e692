"""`medclip import`: a published checkpoint becomes a model of ours."""

from __future__ import annotations

import argparse

HELP = "turn a published checkpoint into a folder that loads, embeds and starts a training"

EPILOG = """\
example:
  medclip import --format cardiac_clip --checkpoint cardiac_clip.ckpt --text-encoder PUBMEDBERT \\
      --out cardiac_clip
  medclip embed cardiac_clip scan.nii.gz --text "There is cardiomegaly."
  medclip train --config configs/cardiac_clip/released.py --config.initial_weights.workdir=cardiac_clip ...

What the checkpoint does not tell (window, orientation, spacing) has defaults, see docs/how-to/weights.md.
Towers alone need no import: config.objective.vision.weights and config.objective.text.folder name files.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EPILOG
    parser.add_argument(
        "--format", required=True, choices=["cardiac_clip"], help="whose checkpoint: cardiac_clip"
    )
    parser.add_argument(
        "--checkpoint", required=True, metavar="FILE", help=".ckpt of tensors alone, or .safetensors"
    )
    parser.add_argument(
        "--text-encoder",
        required=True,
        metavar="FOLDER",
        help="PubMedBERT's config.json and tokenizer files: a local folder (its weights are not read)",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--window",
        nargs=2,
        type=float,
        default=(-1024.0, 1500.0),
        metavar=("LOW", "HIGH"),
        help="HU that stand for its intensities 0 and 1 (default: -1024 1500)",
    )
    parser.add_argument(
        "--orientation",
        default="SPL",
        metavar="LETTERS",
        help="where the depth, height and width of its arrays grow to (default: SPL)",
    )
    parser.add_argument(
        "--shape",
        nargs=3,
        type=int,
        default=(128, 144, 144),
        metavar=("D", "H", "W"),
        help="voxels (default: 128 144 144)",
    )
    parser.add_argument(
        "--spacing",
        nargs=3,
        type=float,
        default=(1.0, 1.25, 1.25),
        metavar=("D", "H", "W"),
        help="mm per voxel (default: 1 1.25 1.25)",
    )
    parser.add_argument(
        "--lower-case",
        action="store_true",
        help="fold the case of texts, which the published code does not",
    )


def run(args: argparse.Namespace) -> int:
    """Import; 0 when the folder was written."""
    from medclip_jax.export.released_cardiac_clip import Choices, import_release
    from medclip_jax.weights.vision import summarize

    choices = Choices(
        window=tuple(args.window),
        orientation=args.orientation.upper(),
        shape=tuple(args.shape),
        spacing=tuple(args.spacing),
        lower_case=args.lower_case,
    )
    release = import_release(args.checkpoint, args.text_encoder, args.out, choices=choices)
    print(f"left out: {summarize(release.left_out, parts=2)}")
    print(f"{args.out}: load it with medclip_jax.load, or try `medclip embed {args.out} SCAN --text TEXT`")
    return 0
