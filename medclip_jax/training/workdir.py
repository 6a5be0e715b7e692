"""The folder of one run: its resolved config, metrics and checkpoints."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from medclip_jax.training.checkpoints import check_path, saved_run
from medclip_jax.training.config import complete, to_json
from medclip_jax.training.durable import replace_durably, write_durably

MAY_CHANGE = ("steps", "epochs", "checkpoint", "log", "evaluation", "stop_on_nan", "mesh", "microbatches",
              "distributed", "initial_weights", "data.workers", "data.prefetch", "data.shards",
              "data.sets", "data.prepare")  # fmt: skip
"""What a resumed run may set anew. A longer run stretches its learning rate schedule from there on."""

CONFIG = "config.json"
PREPARATION = "prepare.json"
TOKENIZER = "tokenizer"
TEXT_ENCODER = "text_encoder"
"""Copies of what a trained model needs besides its checkpoint, so that a workdir can be moved alone."""

_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".h5", ".onnx", ".ot", ".msgpack"}


class Workdir:
    """Where a run writes.

    Args:
        path: created where it does not exist.

    Raises:
        CheckpointError: no checkpoint could be written there.
    """

    def __init__(self, path: str | os.PathLike):
        check_path(path)
        self.path = Path(path).absolute()
        self.path.mkdir(parents=True, exist_ok=True)

    @property
    def config_file(self) -> Path:
        """The resolved config as JSON."""
        return self.path / CONFIG

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
        before = saved_config(self.path) if resuming else None
        if before is None:
            return
        changed = differences(before, to_json(config))
        refused = [line for name, line in changed.items() if not _may_change(name)]
        if refused:
            raise ValueError(
                f"{self.path} holds a run with another config:\n  " + "\n  ".join(refused) + "\n"
                "Set these back to resume it, or give a new --workdir (with "
                f"config.initial_weights.workdir={str(self.path)!r} to start from its weights)"
            )

    def write_config(self, config: ConfigDict) -> None:
        """Write `config.json`, completely or not at all."""
        write_durably(self.config_file, json.dumps(to_json(config), indent=2) + "\n")

    def keep_preparation(
        self,
        shards: str | os.PathLike,
        *,
        tokenizer: str | os.PathLike | None = None,
        text_encoder: str | os.PathLike | None = None,
        tables: Sequence[str] = (),
    ) -> None:
        """Copy what using the model takes, so that shards and model folders may move or go.

        Args:
            shards: prepared folder; its `prepare.json` is copied.
            tokenizer: folder of the tokenizer in use; its files but weights are copied to `tokenizer/`.
            text_encoder: Hugging Face folder that the text tower is built from; its config.json is copied to
                `text_encoder/`. Its weights are not: the checkpoints hold them, trained on.
            tables: names of tables of labels; their columns are kept, and none of their rows.
        """
        # Imported here: a bare training machine has neither TFDS nor blosc2, and both take long to import.
        from medclip_jax.shards.label_tables import read_label_table, write_label_table
        from medclip_jax.shards.read import local_folder

        _copy(local_folder(shards) / PREPARATION, self.path / PREPARATION)
        for name in tables:
            write_label_table(self.path, replace(read_label_table(local_folder(shards), name), rows={}))
        for file in sorted(Path(tokenizer).iterdir()) if tokenizer else ():
            if file.is_file() and file.suffix not in _WEIGHTS:
                _copy(file, self.path / TOKENIZER / file.name)
        if text_encoder:
            _copy(Path(text_encoder) / "config.json", self.path / TEXT_ENCODER / "config.json")

    def metrics_at(self, step: int) -> dict[str, float]:
        """The numbers logged for a step, {} where there are none."""
        found: dict[str, float] = {}
        for number, numbers, _ in read_metrics(self.metrics_file):
            if number == step:
                found |= numbers
        return found

    def forget_metrics_after(self, step: int) -> None:
        """Drop the lines of steps that will be run again, so that each step stands there once."""
        if self.metrics_file.exists():
            kept = [line for number, _, line in read_metrics(self.metrics_file) if number <= step]
            write_durably(self.metrics_file, "".join(line + "\n" for line in kept))


def saved_config(workdir: str | os.PathLike) -> dict[str, Any] | None:
    """The config of a run, with defaults for what it lacks; None where there is none that can be read.

    Where `config.json` is damaged, the newest checkpoint tells it.
    """
    file = Path(workdir) / CONFIG
    try:
        saved = json.loads(file.read_text())
        saved["steps"]  # each has them
        return complete(saved)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        logging.warning("%s is damaged (%s): the config in the newest checkpoint counts", file, error)
    run = saved_run(workdir)
    return complete(run["config"]) if run else None


def read_metrics(file: Path) -> Iterator[tuple[int, dict[str, float], str]]:
    """Step, numbers and text of each line of a `metrics.jsonl` that is whole; of others, a warning."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return
    except OSError as error:
        logging.warning("%s cannot be read: %s", file, error)
        return
    skipped = 0
    for line in lines:
        try:
            numbers = json.loads(line)
            step = numbers.pop("step")
            values = {str(name): math.nan if v is None else float(v) for name, v in numbers.items()}
            if not isinstance(step, int):
                raise TypeError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            skipped += 1
            continue
        yield step, values, line
    if skipped > 1:  # one is what a kill leaves
        logging.warning("%s: %d lines are damaged and left out", file, skipped)


def _copy(source: Path, target: Path) -> None:
    """Copy a file, completely or not at all; again only where it has changed."""
    found = source.stat()
    if target.exists() and (target.stat().st_size, target.stat().st_mtime) == (found.st_size, found.st_mtime):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    shutil.copy2(source, partial)
    replace_durably(partial, target)


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
