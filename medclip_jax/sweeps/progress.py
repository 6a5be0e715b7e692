"""How far each unit of a sweep is, read from what its run left in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ml_collections import ConfigDict

from medclip_jax.sweeps.units import EXIT_CODE_FILE, LOG_FILE
from medclip_jax.training.checkpoints import latest_step
from medclip_jax.training.config import total_steps
from medclip_jax.training.goodput import read_heartbeat

State = Literal["finished", "failed", "stopped", "waiting"]
"""Done; ended with an error; begun and not done; not begun."""

_TAIL_BYTES = 65536


class Progress(NamedTuple):
    """Of one unit.

    Attributes:
        state: see `State`.
        step: last step that was logged.
        steps: of the run; 0 where they follow from epochs, the shards are not here, and it never began.
    """

    state: State
    step: int
    steps: int


def progress(folder: str | Path, config: Mapping[str, Any]) -> Progress:
    """How far a run is.

    Args:
        folder: its workdir.
        config: the resolved config, or what its `config.json` holds.
    """
    folder = Path(folder)
    config = ConfigDict(config)
    steps = config.steps or _steps_of_epochs(config.epochs, config.batch_size, config.data.to_json())
    # Where the shards are elsewhere, the run itself has said it.
    beat = read_heartbeat(folder) or {}
    if config.evaluation.get("best", {}).get("patience") and beat.get("state") == "finished":
        steps = beat["steps"]  # it may have ended early
    steps = steps or beat.get("steps", 0)
    last = last_records(folder / "metrics.jsonl")
    step = max((record["step"] for record in last), default=0)
    evaluated = not (config.evaluation.evaluators or config.evaluation.get("protocols")) or any(
        "evaluation_seconds" in record for record in last if record["step"] == step
    )
    if steps and (latest_step(folder) or 0) >= steps and step >= steps and evaluated:
        return Progress("finished", step, steps)
    code = folder / EXIT_CODE_FILE
    if code.exists() and code.read_text().strip() not in ("", "0"):
        return Progress("failed", step, steps)
    return Progress("stopped" if step else "waiting", step, steps)


def last_records(file: Path) -> list[dict[str, Any]]:
    """The last lines of a `metrics.jsonl`, oldest first; [] where there is none."""
    records = []
    for line in _tail(file).splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # cut at either end
            continue
        if isinstance(record, dict) and "step" in record:
            records.append(record)
    return records


def log_tail(folder: str | Path, lines: int = 12) -> str:
    """The last lines that a unit printed, each as a terminal would show it; "" where there are none."""
    # A progress bar draws over itself with \r.
    shown = [line.rsplit("\r", 1)[-1] for line in _tail(Path(folder) / LOG_FILE).rstrip().split("\n")]
    return "\n".join(shown[-lines:])


def _tail(file: Path) -> str:
    if not file.exists():
        return ""
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - _TAIL_BYTES))
        return stream.read().decode(errors="replace")


@lru_cache
def _steps_of_epochs(epochs: float, batch_size: int, data: str) -> int:
    from medclip_jax.shards.mixture import open_training

    try:
        samples = len(open_training(ConfigDict(json.loads(data)), fields=()))
    except (OSError, ValueError):  # they lie where the units run, not here
        return 0
    return total_steps(ConfigDict({"steps": 0, "epochs": epochs, "batch_size": batch_size}), samples)
