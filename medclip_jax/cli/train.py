"""`medclip train`: run a config."""

from __future__ import annotations

import argparse
import logging
import sys

HELP = "train a model from a config file, or go on where a workdir stopped"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--config", required=True, metavar="FILE", help="Python file with get_config()")
    parser.add_argument(
        "--workdir", required=True, metavar="FOLDER", help="checkpoints, metrics, config.json"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="--config.a.b=value",
        help="change one field, e.g. --config.optimizer.learning_rate=3e-4 --config.data.shards=FOLDER",
    )


def run(args: argparse.Namespace) -> int:
    """Train; 0 when done or stopped by SIGTERM after saving, 1 with a message otherwise."""
    from medclip_jax.training.checkpoints import CheckpointError
    from medclip_jax.training.config import load_config
    from medclip_jax.training.loop import train
    from medclip_jax.training.nonfinite import NonFiniteError

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        metrics = train(load_config(args.config, args.overrides), args.workdir)
    except (ValueError, KeyError, FileNotFoundError, ImportError, CheckpointError, NonFiniteError) as error:
        print(f"medclip train: {error.args[0] if error.args else error}", file=sys.stderr)
        return 1
    for name, value in metrics.items():
        print(f"{name:40s} {value:.6g}")
    return 0
