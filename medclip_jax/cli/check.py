"""`medclip check`: what a config needs and how fast it should be, without any accelerator."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medclip_jax.cli import check_data, show_config
from medclip_jax.cli.overrides import accept_overrides

if TYPE_CHECKING:
    from medclip_jax.planning.chips import Chip

HELP = """say whether a config fits its devices, and what it costs

Everything is worked out from shapes: no accelerator and no data are needed. Exit code 0: it fits; 1: it does
not, and what would make it fit is printed; 2: the config is wrong."""

EPILOG = """\
any field of the config is set by --config.section.field=value, as often as you like

examples:
  medclip check --config configs/own/mae.py --chip here --config.data.shards=shards
  medclip check --config configs/own/mae.py --chip rtx4090
  medclip check --config configs/cardiac_clip/mae.py --chip h100 --devices 8
  medclip check --config configs/cardiac_clip/contrastive.py --chip v5e-64 --config.batch_size=1024
  medclip check --config configs/cardiac_clip/mae.py --chip a100 --devices 8 --mesh data=4,fsdp=2 --compile
  medclip check --config configs/cardiac_clip/mae.py --tpu v5e:8x8 --config.batch_size=512

How to read it. MEMORY adds up what one device holds; "activations" is what the encoders keep between
forward and backward pass, the usual reason for not fitting. SPEED is a roofline with stated efficiencies:
what well-fed chips should reach, not a measurement. INPUT is what the hosts must deliver for that. How the
figures come about, and how far they are from what compilers say: docs/reference/scaling.md.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments. Fields of the config follow as ``--config.a.b=value``."""
    parser.add_argument("--config", required=True, metavar="FILE", help="Python file with get_config()")
    parser.add_argument(
        "--chip",
        default="h100",
        metavar="NAME",
        help="h100 (default), a100, rtx4090, v5e, ...; a slice: v5e-64; memory and bfloat16 rate of any GPU: "
        "24GB:165TF; or 'here' for this machine",
    )
    parser.add_argument("--devices", type=int, metavar="N", help="chips; default 1, or those of the slice")
    parser.add_argument("--mesh", metavar="data=D,fsdp=F", help="instead of the config's mesh")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="also compile the step for as many simulated CPU devices: memory and collectives (minutes)",
    )
    parser.add_argument(
        "--tpu",
        metavar="CHIP:SHAPE",
        help="compile the step for a TPU topology such as v5e:8x8; the TPU's own compiler decides whether it "
        "fits, and estimates the time (minutes; takes libtpu: pip install 'medclip_jax[tpu]')",
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures here as well")
    show_config.add_arguments(parser)
    check_data.add_arguments(parser)
    parser.epilog = EPILOG
    accept_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Print the report; 0 where the config fits, 1 where it does not.

    Raises:
        ValueError: a config or a flag that cannot work; the message says what to change.
        OSError: a file that is not there.
    """
    import jax

    jax.config.update("jax_platforms", "cpu")  # whatever is plugged in: nothing is computed here
    from medclip_jax.cli import check_report
    from medclip_jax.cli.cycles_report import cycles_report
    from medclip_jax.planning.ahead import compile_step
    from medclip_jax.planning.remedies import remedies, settled
    from medclip_jax.planning.shapes import build
    from medclip_jax.training.config import load_config

    chip, count = _chip(args)
    if args.tpu and args.devices not in (None, count):
        raise ValueError(f"--tpu {args.tpu} has {count} chips: leave --devices out")
    devices = args.devices or count or 1
    if devices < 1:
        raise ValueError(f"--devices {devices}: give at least 1")
    overrides = [*args.overrides, *_mesh(args.mesh)]
    config = load_config(args.config, overrides)
    if args.show_config:
        print(show_config.shown(config))
        return 0
    data = check_data.assume(config, args)
    model = build(config, data.spec, samples=data.samples)
    model, found = settled(model, chip, devices)
    # The same for whoever reads the config anew.
    overrides += [f"--config.{name}={model.config[name]}" for name in ("batch_size", "microbatches")]
    figures = check_report.figures(model, data, found)
    print(check_report.report(model, data, found), flush=True)
    if chosen := check_report.chosen(config, model):
        print(f"\n{chosen}", flush=True)
    fits = found.fits

    targets = [("compiled", {"devices": devices})] if args.compile else []
    targets += [("compiled_tpu", {"topology": args.tpu})] if args.tpu else []
    for name, target in targets:
        print("\ncompiling the step, which takes minutes ...", file=sys.stderr, flush=True)
        compiled = compile_step(args.config, overrides, data.spec, **target)
        print("\n" + check_report.compiled_report(compiled, found), flush=True)
        figures[name] = check_report.compiled_figures(compiled)
        if compiled.cycles:
            share = found.flops / found.devices, found.batch_size / found.devices
            print("\n" + cycles_report(compiled.cycles, chip, *share), flush=True)
        if args.tpu and name == "compiled_tpu":
            # The compiler that will be asked in the end has the last word.
            fits = not compiled.overflow
    figures["fits"] = fits
    if not found.fits:
        print("\nlooking for what would make it fit ...", file=sys.stderr, flush=True)
        tried = remedies(model, chip, found)
        print("\n" + check_report.remedies_report(tried, found), flush=True)
        figures["remedies"] = check_report.remedies_figures(tried)
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if fits else 1


def _chip(args: argparse.Namespace) -> tuple[Chip, int | None]:
    from medclip_jax.planning.chips import find_chip, find_topology
    from medclip_jax.planning.here import chip_here

    if args.tpu:
        return find_topology(args.tpu)
    return chip_here() if args.chip == "here" else find_chip(args.chip)


def _mesh(text: str | None) -> list[str]:
    if text is None:
        return []
    sizes: dict[str, Any] = {}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in ("data", "fsdp") or not size.removeprefix("-").isdigit():
            raise ValueError(f"--mesh {text}: write for example --mesh data=4,fsdp=2")
        sizes[name] = size
    return [f"--config.mesh.{name}={size}" for name, size in sizes.items()]
