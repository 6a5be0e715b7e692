"""`medclip train`: run a config."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

from medclip_jax.cli import show_config
from medclip_jax.cli.metric_lines import metric_lines
from medclip_jax.cli.overrides import accept_overrides

if TYPE_CHECKING:
    from medclip_jax.training.distributed import Processes

HELP = "train a model from a config file, or resume where a workdir stopped"

_EPILOG = """\
any field of the config is set by --config.section.field=value, as often as you like:
  medclip train --config configs/demo/mae.py --workdir runs/mae --config.data.shards=shards --config.steps=900

the same command resumes where the workdir stopped, on any number of devices and processes;
SIGTERM or Ctrl-C once: the step under way is saved, exit 0. From where a new workdir starts:
  --config.checkpoint.resume=runs/other            everything of another run, its step included
  --config.initial_weights.workdir=runs/mae        parameters alone

one machine: all its devices are used. Models and batches that do not fit:
  --config.mesh.fsdp=8                             parameters and optimizer split over 8 devices
  --config.microbatches=4                          a batch encoded in 4 slices, same loss and gradient

many processes: the same command on every host, found by itself under SLURM (srun medclip train ...), on a
TPU pod, and by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID (or Kubernetes' index). By hand:
  host0$ medclip train ... --config.distributed.coordinator=host0:12345 \\
             --config.distributed.process_count=2 --config.distributed.process_index=0
  host1$ the same with process_index=1
workdir and shards must be shared. launch/ has scripts; docs/explanation/multi-process.md tells the rest.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments. Fields of the config follow as ``--config.a.b=value``."""
    parser.add_argument("--config", required=True, metavar="FILE", help="Python file with get_config()")
    parser.add_argument(
        "--workdir",
        metavar="FOLDER",
        help="checkpoints, metrics, config.json; shared by all processes",
    )
    show_config.add_arguments(parser)
    parser.epilog = _EPILOG
    accept_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Train; 0 when done, or when stopped by SIGTERM after saving; 1 where a step was not finite.

    Where this is one of several processes, it ends with the others: see `training.distributed.fail`.

    Raises:
        ValueError: a config that cannot work, a checkpoint that cannot be read or written.
        OSError: a file that is not there.
    """
    from medclip_jax.training.config import load_config

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _leave)
    config = load_config(args.config, args.overrides)
    if args.show_config:
        print(show_config.shown(config))
        return 0
    if not args.workdir:
        raise ValueError("give --workdir FOLDER: checkpoints and metrics go there")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    # JAX's own notes on how processes find each other.
    logging.getLogger("jax").setLevel(logging.WARNING)
    from medclip_jax.training import distributed

    # Before anything touches a device.
    processes = distributed.start(config.distributed, workdir=args.workdir)
    if not processes.first:
        logging.basicConfig(
            level=logging.WARNING, format=f"%(levelname)s process {processes.index}: %(message)s", force=True
        )
    from medclip_jax.training.loop import train
    from medclip_jax.training.nonfinite import NonFiniteError

    try:
        if not config.microbatches:
            config.microbatches = _microbatches(config, processes)
        metrics = train(config, args.workdir)
    except BaseException as error:
        if processes.count > 1:
            distributed.fail(error)
        if not isinstance(error, NonFiniteError):
            raise
        print(f"medclip train: {error}", file=sys.stderr)
        return 1
    if processes.first:
        print("\n".join(metric_lines(metrics)))
    return 0


def _microbatches(config: Any, processes: Processes) -> int:
    """As few as the memory of this machine allows, by the estimate of `medclip check`."""
    if processes.count > 1:
        raise ValueError(
            "config.microbatches=0 is chosen for one process alone: `medclip check` says how many are needed "
            "(--config.microbatches=N)"
        )
    import jax

    from medclip_jax.cli.check_data import of_shards
    from medclip_jax.planning.here import chip_of
    from medclip_jax.planning.remedies import fewest_microbatches
    from medclip_jax.planning.shapes import build

    data = of_shards(config)
    model = build(config, data.spec, samples=data.samples)
    chip = chip_of(jax.local_devices()[0])
    found = fewest_microbatches(model, chip, jax.device_count())
    needed, there = found.memory.total / 2**30, chip.usable_bytes / 2**30
    logging.info(
        "batch %d in %d microbatches: %.1f GiB by estimate, %.1f GiB are there",
        found.batch_size, found.microbatches, needed, there,
    )  # fmt: skip
    if not found.fits:
        logging.warning("this may not fit into the memory: `medclip check --chip here` says what would")
    return found.microbatches


def _leave(number: int, frame: FrameType | None) -> None:
    """SIGTERM before training listens for it, and after: there is nothing to save, or all of it is saved."""
    raise SystemExit(0)
