"""What the demos of all systems share: their size, their trainings, and the time of their stages."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medclip_jax.corpora.folder import StudyTable


@dataclass(frozen=True)
class Size:
    """How much of everything; the trainings themselves stand in `configs`."""

    phantoms: int
    overrides: tuple[str, ...] = ()


def make_shards(
    recipe: str,
    write: Callable[..., Path],
    read: Callable[[Path], StudyTable],
    args: argparse.Namespace,
    count: int,
    clock: Stages,
) -> Path:
    """Generate studies and prepare them, or go on with it.

    Args:
        recipe: "demo/data.py", of the configs that came with the package: `PHANTOMS`, how studies are drawn,
            and `SETTINGS`, how they are prepared.
        write: generates studies, see `corpora.phantom.write`.
        read: the table that it writes.
        args: of the command.
        count: studies.
        clock: of the demo's stages.

    Returns:
        The prepared folder.
    """
    from medclip_jax.shards.prepare import default_key, prepare
    from medclip_jax.training.config import shipped_configs
    from medclip_jax.training.config_module import config_module

    with config_module(shipped_configs() / recipe) as module:
        drawn, settings = module.PHANTOMS, module.SETTINGS
    out = args.out / "shards"
    table = args.out / "phantoms" / "studies.csv"
    if not table.exists():  # written last
        with clock.stage("phantoms"):
            write(table.parent, count, seed=args.seed, settings=drawn, workers=args.workers)
    with clock.stage("prepare"):
        prepare(read(table), out, settings, workers=args.workers, key=default_key(out))
    return out


def train_config(config: str, workdir: Path, overrides: Sequence[str]) -> bool:
    """Train, or go on with it; whether to the end: Ctrl-C and SIGTERM stop it at a checkpoint.

    Args:
        config: "demo/mae.py", of the configs that came with the package.
        workdir: of the run.
        overrides: as on the command line.
    """
    from medclip_jax.training.config import load_config, shipped_configs
    from medclip_jax.training.loop import train
    from medclip_jax.training.status import read_status

    train(load_config(shipped_configs() / config, overrides), workdir)
    return read_status(workdir).state == "finished"


def machine() -> str:
    """What the demo runs on, in words."""
    import jax

    return (
        f"{os.cpu_count()} cores, JAX {jax.__version__} on {jax.default_backend()}, "
        f"Python {platform.python_version()}"
    )


def nested(metrics: Mapping[str, float]) -> dict[str, Any]:
    """``{"a/b": 1}`` to ``{"a": {"b": 1}}``."""
    tree: dict[str, Any] = {}
    for path, value in metrics.items():
        *parents, last = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    return tree


def defined(tree: Any) -> Any:
    """The same with None for NaN, which JSON does not know."""
    if isinstance(tree, Mapping):
        return {name: defined(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [defined(value) for value in tree]
    return None if isinstance(tree, float) and math.isnan(tree) else tree


class Stages:
    """Wall time of each stage, kept on disk so that an interrupted demo adds up, and peak memory."""

    def __init__(self, path: Path, workers: int):
        self.path = path
        self.workers = workers

    def seconds(self) -> dict[str, float]:
        """Stage to its wall time, all runs together."""
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done inside, under the name of a stage."""
        print(f"\n== {name}", file=sys.stderr, flush=True)
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = self.seconds()
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(seconds))

    def peak_memory_gb(self) -> float:
        """The larger of this process's peak and of its workers' (the largest one, times their number)."""
        unit = 1024**3 if sys.platform == "darwin" else 1024**2
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
        worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit
        return max(own, worker * self.workers)
