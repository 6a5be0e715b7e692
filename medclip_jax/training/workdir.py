"""The folder of one run: its resolved config, metrics and checkpoints."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from medclip_jax.training.config import to_json

MAY_CHANGE = ("steps", "epochs", "checkpoint", "log", "evaluation", "stop_on_nan", "mesh", "initial_weights",
              "data.workers", "data.prefetch", "data.shards")  # fmt: skip
"""What a resumed run may set anew. A longer run stretches its learning rate schedule from there on."""


class Workdir:
    """Where a run writes.

    Args:
        path: created where it does not exist.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path).absolute()
        self.path.mkdir(parents=True, exist_ok=True)

    @property
    def config_file(self) -> Path:
        """The resolved config as JSON."""
        return self.path / "config.json"

    @property
    def metrics_file(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    def check_config(self, config: ConfigDict, *, resuming: bool) -> None:
        """Check that a config continues the run whose checkpoint lies here.

        Args:
            config: resolved.
            resuming: whether a checkpoint will be restored.

        Raises:
            ValueError: resuming with other values for keys outside of `MAY_CHANGE`; lists them.
        """
        if not resuming or not self.config_file.exists():
            return
        changed = differences(json.loads(self.config_file.read_text()), to_json(config))
        refused = [line for name, line in changed.items() if not _may_change(name)]
        if refused:
            raise ValueError(
                f"{self.path} holds a run with another config:\n  " + "\n  ".join(refused) + "\n"
                "Set these back to resume it, or give a new --workdir (with "
                f"config.initial_weights.workdir={str(self.path)!r} to start from its weights)"
            )

    def write_config(self, config: ConfigDict) -> None:
        """Write `config.json`, whole or not at all."""
        _replace(self.config_file, json.dumps(to_json(config), indent=2) + "\n")

    def forget_metrics_after(self, step: int) -> dict[str, float]:
        """Drop the lines of steps that will be run again, so that each step stands there once.

        Returns:
            The numbers logged for `step` itself, {} where there are none.
        """
        if not self.metrics_file.exists():
            return {}
        kept, last = [], {}
        for line in self.metrics_file.read_text().splitlines():
            try:
                numbers = json.loads(line)
                number = numbers.pop("step")
            except (ValueError, KeyError):
                continue  # a line cut short by a kill
            if number <= step:
                kept.append(line + "\n")
            if number == step:
                last |= {name: math.nan if value is None else value for name, value in numbers.items()}
        _replace(self.metrics_file, "".join(kept))
        return last


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Keys that differ, each with a line that shows both values."""
    found: dict[str, str] = {}
    for name in [*old, *(name for name in new if name not in old)]:
        path = f"{prefix}{name}"
        before, after = old.get(name, "(not there)"), new.get(name, "(not there)")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found.update(differences(before, after, f"{path}."))
        elif before != after:
            found[path] = f"config.{path}: {before!r} there, {after!r} now"
    return found


def _may_change(name: str) -> bool:
    return any(name == key or name.startswith(f"{key}.") for key in MAY_CHANGE)
