"""`medclip import`: a published checkpoint becomes a model of ours."""

from __future__ import annotations

import argparse

HELP = "turn a published checkpoint into a folder that loads, embeds and starts a training"

EPILOG = """\
examples:
  medclip import --format cardiac_clip --checkpoint cardiac_clip.ckpt --text-encoder PUBMEDBERT \\
      --out cardiac_clip
  medclip embed cardiac_clip scan.nii.gz --text "There is cardiomegaly."
  medclip train --config configs/cardiac_clip/released.py --config.initial_weights.workdir=cardiac_clip ...
  medclip import --format asap --checkpoint ASAP.pth --text-encoder CXR_BERT --out asap
  medclip import --format cmr_clip --checkpoint pytorch_model.bin --text-encoder BIO_CLINICALBERT \\
      --out cmr_clip

What the Cardiac-CLIP checkpoint does not tell (window, orientation, spacing) has defaults, see
docs/how-to/weights.md; of the other two nothing is left to choose. Towers alone need no
import: config.objective.vision.weights and config.objective.text.folder name files.
"""

CHOICES = ("window", "orientation", "shape", "spacing", "lower_case")
"""What is to be chosen for a Cardiac-CLIP checkpoint: the arguments of `Choices` there."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EPILOG
    parser.add_argument(
        "--format", required=True, choices=["cardiac_clip", "asap", "cmr_clip"], help="whose checkpoint"
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="FILE",
        help=".ckpt, .pth or .bin of tensors alone, or .safetensors",
    )
    parser.add_argument(
        "--text-encoder",
        required=True,
        metavar="FOLDER",
        help="config.json and tokenizer files of the BERT it was trained with (PubMedBERT, CXR-BERT, "
        "Bio_ClinicalBERT): a local folder (its weights are not read)",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    group = parser.add_argument_group("of --format cardiac_clip")
    group.add_argument(
        "--window",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="HU that stand for its intensities 0 and 1 (default: -1024 1500)",
    )
    group.add_argument(
        "--orientation",
        metavar="LETTERS",
        help="where the depth, height and width of its arrays grow to (default: SPL)",
    )
    group.add_argument(
        "--shape", nargs=3, type=int, metavar=("D", "H", "W"), help="voxels (default: 128 144 144)"
    )
    group.add_argument(
        "--spacing",
        nargs=3,
        type=float,
        metavar=("D", "H", "W"),
        help="mm per voxel (default: 1 1.25 1.25)",
    )
    group.add_argument(
        "--lower-case",
        action="store_true",
        default=None,
        help="fold the case of texts, which the published code does not",
    )


def run(args: argparse.Namespace) -> int:
    """Import; 0 when the folder was written."""
    from medclip_jax.export import released_asap, released_cardiac_clip, released_cmr_clip
    from medclip_jax.weights.vision import summarize

    given = {name: getattr(args, name) for name in CHOICES if getattr(args, name) is not None}
    known = {"asap": released_asap, "cmr_clip": released_cmr_clip}
    if args.format in known:
        if given:
            options = ", ".join("--" + name.replace("_", "-") for name in given)
            raise ValueError(
                f"{options}: of --format cardiac_clip; of {args.format} all is known: leave it out"
            )
        release = known[args.format].import_release(args.checkpoint, args.text_encoder, args.out)
    else:
        if "orientation" in given:
            given["orientation"] = given["orientation"].upper()
        given = {name: tuple(x) if isinstance(x, list) else x for name, x in given.items()}
        choices = released_cardiac_clip.Choices(**given)
        release = released_cardiac_clip.import_release(
            args.checkpoint, args.text_encoder, args.out, choices=choices
        )
    print(f"left out: {summarize(release.left_out, parts=2)}")
    scans = "STUDY" if release.spec.frame_shape else "SCAN"
    print(f"{args.out}: load it with medclip_jax.load, or try `medclip embed {args.out} {scans} --text TEXT`")
    return 0
