"""``medclip demo``: the whole job on generated scans, from nothing to a page that shows what was learned."""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
from pathlib import Path

from medclip_jax.cli.demo_stages import Stages

HELP = """\
Run the whole job on generated scans, and write OUT/report.html and OUT/summary.json. By default: invent
chest CTs with reports, prepare them, train a masked autoencoder and then Cardiac-CLIP, test on unseen scans.
With --system cmr_clip: invent cardiac MR studies with impressions, train CMR-CLIP, test it, and show beating
hearts with what the model looks at. About ten minutes and 2 GB on two CPU cores. Run again to resume after
an interruption."""

EPILOG = """\
examples:
  medclip demo
  medclip demo --system cmr_clip               cardiac MR that beats
  medclip demo --scan my_chest_ct.nii.gz       show what the model makes of a real scan, too
  medclip demo --short                         two minutes: everything runs, little is learned
"""

SYSTEMS = {"cardiac_clip": "medclip_jax.cli.demo_chest", "cmr_clip": "medclip_jax.cli.demo_heart"}
"""System to the module that demonstrates it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.epilog = EPILOG
    parser.add_argument("--system", choices=SYSTEMS, default="cardiac_clip", help="(default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, help="folder to write (medclip-demo; with --system cmr_clip medclip-demo-cmr)"
    )
    parser.add_argument(
        "--scan", type=Path, help="a real chest CT to embed: NIfTI, NRRD, MHA or a DICOM folder"
    )
    parser.add_argument("--short", action="store_true", help="a few steps on a few scans")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (one for each core)")
    parser.add_argument("--seed", type=int, default=0, help="of the scans (%(default)s)")
    parser.add_argument("--restart", action="store_true", help="discard what an earlier demo left in OUT")


def run(args: argparse.Namespace) -> int:
    """Run the demo. Returns 0, also where it was told to stop, or raises an error that says what to do."""
    if args.scan and args.system != "cardiac_clip":
        raise ValueError("--scan shows a chest CT: leave it out, or take --system cardiac_clip")
    if args.out is None:
        args.out = Path("medclip-demo" if args.system == "cardiac_clip" else "medclip-demo-cmr")
    if args.restart:
        shutil.rmtree(args.out, ignore_errors=True)
    demo = importlib.import_module(SYSTEMS[args.system])
    return demo.run(args, Stages(args.out / "seconds.json", args.workers))
