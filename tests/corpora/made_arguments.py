"""Arguments of `medclip prepare`, as its parser gives them."""

import argparse

from medclip_jax.cli.prepare import add_arguments


def arguments(*words: str) -> argparse.Namespace:
    """The parsed arguments of a command line without its first two words; ``--out`` is added."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["--out", "unused", *words])
