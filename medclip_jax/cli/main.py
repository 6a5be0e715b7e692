"""``medclip COMMAND ...``: picks the command, and turns known errors into one clear line.

A command is a module with ``HELP: str``, ``add_arguments(parser)`` and ``run(args) -> int``. Modules that
it needs for its work are imported in ``run``, so that ``--help`` stays fast.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence

COMMANDS: dict[str, tuple[str, str]] = {
    "prepare": ("medclip_jax.cli.prepare", "turn scans and reports into shards for training"),
    "inspect": ("medclip_jax.cli.inspect", "verify prepared shards and draw a contact sheet"),
    "check": ("medclip_jax.cli.check", "say whether a config fits its devices, and what it costs"),
    "train": ("medclip_jax.cli.train", "train a model by a config file"),
    "status": ("medclip_jax.cli.status", "show how a run goes: progress, curves, where its time went"),
    "sweep": ("medclip_jax.cli.sweep", "train a config with many values of its fields, and compare"),
    "evaluate": ("medclip_jax.cli.evaluate", "measure a trained model on prepared shards"),
    "import": ("medclip_jax.cli.import_weights", "turn a published checkpoint into a model"),
    "embed": ("medclip_jax.cli.embed", "embed a scan and compare it with texts"),
    "export": ("medclip_jax.cli.export", "write a trained model for PyTorch, transformers and the hub"),
    "demo": ("medclip_jax.cli.demo", "run the whole job on generated scans"),
}
"""Command to its module and to its line in ``medclip --help``."""

_EPILOG = """\
examples:
  medclip demo                                             the whole job on generated scans, in minutes
  medclip prepare --table studies.csv --root scans --out shards
  medclip inspect shards --out sheet.html
  medclip check --config configs/cardiac_clip/mae.py --chip h100 --devices 8
  medclip train --config configs/cardiac_clip/mae.py --workdir runs/mae --config.data.shards=shards
  medclip status runs/mae

Every command explains itself: medclip COMMAND --help.
Errors that a user can mend are one line; MEDCLIP_TRACEBACK=1 shows where they rose.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: default: those of the process.

    Returns:
        0 where all went well, 1 where the command found something wrong, 2 for an error that the user
        can mend, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="medclip",
        description="Vision-language pretraining on 3D medical volumes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((argument for argument in arguments if not argument.startswith("-")), None)
    modules = {}
    for name, (module, line) in COMMANDS.items():
        command = commands.add_parser(
            name, help=line, add_help=True, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name == chosen:
            modules[name] = importlib.import_module(module)
            command.description = modules[name].HELP
            modules[name].add_arguments(command)
    args = parser.parse_args(arguments)
    # Orbax tells of every file, and warns of metadata that a checkpoint need not have.
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        return modules[args.command].run(args)
    except KeyboardInterrupt:
        print("\nmedclip: stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if os.environ.get("MEDCLIP_TRACEBACK"):
            raise
        print(f"medclip {args.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
