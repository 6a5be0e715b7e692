"""How a run goes, from the files in its workdir alone: also while it runs, and from another machine."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medclip_jax.training.checkpoints import FOLDER
from medclip_jax.training.goodput import BEAT_SECONDS, BUCKETS, goodput, read_heartbeat
from medclip_jax.training.workdir import read_metrics

SILENCE_SECONDS = 6 * BEAT_SECONDS
"""After so long without a heartbeat, a run that did not say goodbye counts as killed."""

_EVALUATED = "evaluation_seconds"


@dataclass(frozen=True)
class SavedStep:
    """A checkpoint on disk: its step, its size in bytes, and when it was written (seconds since 1970)."""

    step: int
    size: int
    time: float


@dataclass(frozen=True)
class RunStatus:
    """What is known of a run.

    Attributes:
        workdir: of the run.
        state: "starting", "running", "killed", "stopped", "finished", or "unknown" where there is no
            heartbeat (a run of an earlier version).
        silent: seconds since the last sign of life, None where there was none.
        step: steps done.
        steps: of the run in total, 0 where that is not known.
        stalled: seconds since the last step of a run that is alive, None otherwise.
        seconds: by bucket of `training.goodput.BUCKETS`, over all starts; {} without a heartbeat.
        starts: how often the run was started.
        latest: the last training metrics that were logged, by name, `step` included.
        evaluation: the last evaluation, by name, `step` included; {} where there was none.
        checkpoints: complete ones, oldest first.
        damaged: folders of checkpoints that were set aside.
        records: all lines of `metrics.jsonl`.
    """

    workdir: Path
    state: str
    silent: float | None = None
    step: int = 0
    steps: int = 0
    stalled: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    starts: int = 0
    latest: Mapping[str, float] = field(default_factory=dict)
    evaluation: Mapping[str, float] = field(default_factory=dict)
    checkpoints: tuple[SavedStep, ...] = ()
    damaged: tuple[str, ...] = ()
    records: tuple[Mapping[str, float], ...] = ()

    @property
    def goodput(self) -> float | None:
        """Share of the time alive in which the model was trained; None without a heartbeat."""
        return goodput(self.seconds) if self.seconds else None

    @property
    def remaining(self) -> float | None:
        """Seconds until the last step at the last logged rate, with the run's share of saving and evaluating.

        None for a run that is not running, or has not logged a rate yet.
        """
        rate = self.latest.get("seconds_per_step")
        if self.state not in ("starting", "running") or not rate or not self.steps:
            return None
        training = self.seconds["step"] + self.seconds["input"]
        other = self.seconds["evaluation"] + self.seconds["checkpoint"]
        return (self.steps - self.step) * rate * (1.0 + (other / training if training else 0.0))


def read_status(workdir: str | Path, *, now: float | None = None) -> RunStatus:
    """Read a workdir; changes nothing in it.

    Args:
        workdir: of a run.
        now: seconds since 1970; default the clock's.

    Raises:
        FileNotFoundError: no run there.
    """
    workdir = Path(workdir)
    now = time.time() if now is None else now
    beat = read_heartbeat(workdir)
    metrics, config = workdir / "metrics.jsonl", workdir / "config.json"
    if beat is None and not metrics.exists() and not config.exists():
        raise FileNotFoundError(f"no run in {workdir}: give the --workdir of `medclip train`")
    records = [{"step": step, **numbers} for step, numbers, _ in read_metrics(metrics)]
    trained = [record for record in records if "loss" in record]
    evaluated = [record for record in records if _EVALUATED in record]
    saved, damaged = _checkpoints(workdir / FOLDER)
    known: dict[str, Any] = {"state": "unknown", "steps": _steps(config)}
    if trained:
        known["step"] = int(trained[-1]["step"])
    if beat is not None:
        silent = max(0.0, now - beat["time"])
        state = beat["state"]
        if state == "running":
            state = "killed" if silent > SILENCE_SECONDS else "running" if beat["step_time"] else "starting"
        if state == "running":
            known["stalled"] = max(0.0, now - beat["step_time"])
        known |= {"state": state, "silent": silent, "starts": int(beat["counters"]["starts"]),
                  "step": max(beat["step"], known.get("step", 0)), "steps": beat["steps"],
                  "seconds": {bucket: beat["counters"][bucket] for bucket in BUCKETS}}  # fmt: skip
    return RunStatus(
        workdir=workdir,
        latest=trained[-1] if trained else {},
        evaluation=evaluated[-1] if evaluated else {},
        checkpoints=saved,
        damaged=damaged,
        records=tuple(records),
        **known,
    )


def _steps(config: Path) -> int:
    try:
        return int(json.loads(config.read_text())["steps"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0


def _checkpoints(folder: Path) -> tuple[tuple[SavedStep, ...], tuple[str, ...]]:
    """Complete checkpoints, oldest first, and names of those that were set aside."""
    saved, damaged = [], []
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.startswith("damaged-"):
            damaged.append(path.name)
        elif path.name.isdigit():
            try:
                size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
                saved.append(SavedStep(int(path.name), size, path.stat().st_mtime))
            except FileNotFoundError:
                continue  # an old one, being deleted
    return tuple(sorted(saved, key=lambda one: one.step)), tuple(sorted(damaged))
