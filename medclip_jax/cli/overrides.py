"""Settings on a command line: `--config.section.field=value`, and `name=value,...` of one option."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any


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


def named_values(text: str, settings: type, option: str) -> dict[str, Any]:
    """Read "name=value,name=value".

    Args:
        text: what the option was given.
        settings: a dataclass whose fields, with defaults that are texts and numbers, can be set.
        option: for messages.

    Raises:
        ValueError: no "=", no such name, or a value that its field cannot have.
    """
    kinds = {field.name: type(field.default) for field in dataclasses.fields(settings)}
    found: dict[str, Any] = {}
    for part in text.split(","):
        name, separator, value = (piece.strip() for piece in part.partition("="))
        if not separator or name not in kinds:
            raise ValueError(f"{option} {text}: write NAME=VALUE,... with a NAME of {', '.join(kinds)}")
        try:
            found[name] = kinds[name](value)
        except ValueError:
            raise ValueError(f"{option} {text}: {name} must be of type {kinds[name].__name__}") from None
    return found
