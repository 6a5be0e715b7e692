"""`medclip cache-text`: encode the texts of a run once, where its text encoder does not learn."""

from __future__ import annotations

import argparse
import logging

from medclip_jax.cli.overrides import accept_overrides

HELP = """encode all texts that a run can show, once, for a frozen text encoder

The run then looks vectors up instead of encoding reports in every step, twice with microbatches."""

_EPILOG = """\
give the config and the overrides of the run, without the folder that is written here:
  medclip cache-text --config configs/strong/frozen.py --out vectors --config.data.shards=shards
  medclip train --config configs/strong/frozen.py --workdir runs/frozen --config.data.shards=shards \\
      --config.data.text_vectors.folder=vectors

The folder holds a vector for each distinct text. They are made of reports: keep it where the shards are.
Refused: a text encoder that learns, adapters included, and config.data.text.some_statements with
config.data.most_statements other than 1 or 2, of which there are too many.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments. Fields of the config follow as ``--config.a.b=value``."""
    parser.add_argument("--config", required=True, metavar="FILE", help="Python file with get_config()")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="gets the vectors")
    parser.epilog = _EPILOG
    accept_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Encode and write; 0 when done.

    Raises:
        ValueError: a config that cannot work, or data that do not fit it.
        OSError: a file that is not there or cannot be written.
    """
    from medclip_jax.training.config import load_config
    from medclip_jax.training.text_cache import cache_texts

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    config = load_config(args.config, args.overrides)
    found = cache_texts(config, args.out, progress=config.log.progress)
    print(
        f"{found.texts} distinct texts of {found.records} records, {found.width} numbers each, "
        f"{found.nbytes / 1e6:.1f} MB: {args.out}\n"
        f"train with --config.data.text_vectors.folder={args.out}"
    )
    return 0
