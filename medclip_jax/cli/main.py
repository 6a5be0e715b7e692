"""``medclip COMMAND ...``: picks the command, and turns known errors into one clear line.

A command is a module with ``HELP: str``, ``add_arguments(parser)`` and ``run(args) -> int``. Modules that
it needs for its work are imported in ``run``, so that ``--help`` stays fast.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import select
import sys
from collections.abc import Sequence

COMMANDS: dict[str, tuple[str, str]] = {
    "index": ("medclip_jax.cli.index", "write a table of studies from the DICOM headers of an archive"),
    "prepare": ("medclip_jax.cli.prepare", "turn scans and reports into shards for training"),
    "verify": ("medclip_jax.cli.verify", "check scans and tables as prepare would, without writing shards"),
    "reports": ("medclip_jax.cli.reports", "show how reports are read, and compare with labels"),
    "inspect": ("medclip_jax.cli.inspect", "verify prepared shards and draw a contact sheet"),
    "check": ("medclip_jax.cli.check", "say whether a config fits its devices, and what it costs"),
    "label": ("medclip_jax.cli.label", "add labels of your own to a prepared set"),
    "cache-text": ("medclip_jax.cli.cache_text", "encode a run's texts once, for a frozen text encoder"),
    "train": ("medclip_jax.cli.train", "train a model by a config file"),
    "status": ("medclip_jax.cli.status", "show how a run goes: progress, curves, where its time went"),
    "sweep": ("medclip_jax.cli.sweep", "train a config with many values of its fields, and compare"),
    "evaluate": ("medclip_jax.cli.evaluate", "measure a trained model on prepared shards"),
    "compare": ("medclip_jax.cli.compare", "compare results on the same volumes, with tests"),
    "import": ("medclip_jax.cli.import_weights", "turn a published checkpoint into a model"),
    "embed": ("medclip_jax.cli.embed", "embed a scan and compare it with texts"),
    "segment": ("medclip_jax.cli.segment", "segment scans with a trained model"),
    "export": ("medclip_jax.cli.export", "write a trained model for PyTorch, transformers and the hub"),
    "demo": ("medclip_jax.cli.demo", "run the whole job on generated scans"),
}
"""Command to its module and to its line in ``medclip --help``."""

_EPILOG = """\
examples:
  medclip demo                                             the whole job on generated scans, in minutes
  medclip prepare --table studies.csv --root scans --out shards
  medclip reports reports.csv --summary                    how reports are read
  medclip inspect shards --out sheet.html
  medclip check --config configs/cardiac_clip/mae.py --chip h100 --devices 8
  medclip train --config configs/cardiac_clip/mae.py --workdir runs/mae --config.data.shards=shards
  medclip status runs/mae

Every command explains itself: medclip COMMAND --help.
Errors that a user can fix are one line; MEDCLIP_TRACEBACK=1 shows where they rose.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: default: those of the process.

    Returns:
        0 where all went well, 1 where the command found something wrong, 2 for an error that the user
        can fix, 130 after Ctrl-C, 141 where whoever read the output (such as `head`) wanted no more of it.
    """
    try:
        try:
            return _run(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            sys.stdout.flush()  # here, and not at the interpreter's end, where nobody could catch the error
    except BrokenPipeError:
        # What is still buffered goes nowhere, so that the interpreter's end has nothing to complain of.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in _closed_outputs():
            os.dup2(nowhere, number)
        os.close(nowhere)
        return 141


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="medclip",
        description="Vision-language pretraining on 3D medical volumes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-V", "--version", action=_ShowVersion)
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
        if isinstance(error, BrokenPipeError) and _closed_outputs():
            raise
        if os.environ.get("MEDCLIP_TRACEBACK"):
            raise
        print(f"medclip {args.command}: {error}", file=sys.stderr)
        return 2


def _closed_outputs() -> list[int]:
    """File numbers of those of standard output and error that nobody reads any more."""
    watched = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # replaced by something that is no file
            watched.register(stream.fileno(), 0)
    return [number for number, event in watched.poll(0) if event & (select.POLLERR | select.POLLHUP)]


class _ShowVersion(argparse.Action):
    """Read from the installed package only where it is wanted."""

    def __init__(self, option_strings: list[str], dest: str):
        super().__init__(option_strings, dest, nargs=0, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from medclip_jax import __version__

        print(f"medclip {__version__}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
