"""`--config.section.field=value` on a command line, for every command that takes a config."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def accept_overrides(parser: argparse.ArgumentParser, name: str = "overrides") -> None:
    """Collect arguments that set a field of the config, wherever they stand.

    Args:
        parser: of the command. Its result gets them, as they were written, after what `name` holds already.
        name: attribute of the result.
    """
    parse = parser.parse_known_args

    def parse_known_args(
        args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        # argparse knows no open set of options, so these are taken out before it looks.
        args = list(sys.argv[1:] if args is None else args)
        overrides = [argument for argument in args if argument.startswith("--config.")]
        namespace, rest = parse([argument for argument in args if argument not in overrides], namespace)
        setattr(namespace, name, [*getattr(namespace, name, []), *overrides])
        return namespace, rest

    parser.parse_known_args = parse_known_args
