"""`--show-config`: every field of the resolved config, and what set it."""

from __future__ import annotations

import argparse

from medclip_jax.sections import Section, leaves

WIDEST = 60
"""Columns up to which origins are aligned."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flag."""
    parser.add_argument(
        "--show-config",
        action="store_true",
        help="print every field and what set it (default, a line of a file, override), and stop",
    )


def shown(config: Section) -> str:
    """One line a field: `config.section.field = value  # origin`.

    Args:
        config: as `training.config.load_config` returns it.
    """
    lines = [(f"config.{name} = {value!r}", origin) for name, value, origin in leaves(config)]
    width = max(len(line) for line, _ in lines if len(line) <= WIDEST)
    return "\n".join(f"{line:{width}}  # {origin}" for line, origin in lines)
