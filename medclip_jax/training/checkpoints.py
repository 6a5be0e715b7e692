"""Saving and restoring, with Orbax behind this one module."""

from __future__ import annotations

import errno
import json
import logging
import re
import shutil
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from medclip_jax.training.state import TrainState, Tree, combine, flatten, unflatten

FOLDER = "checkpoints"
CHECKSUMS = "checksums.json"
_TREES = ("params", "variables", "optimizer", "ema")


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read; the message says what to do."""


class Checkpoints:
    """The checkpoints of one workdir.

    A checkpoint holds the parameters, the other variables, the optimizer's state and the moving average
    as arrays, and the step, the config and the counters as JSON. It appears under its final name only
    when it is complete.

    Args:
        workdir: of the run.
        keep: how many of the newest stay.
        asynchronous: write in the background.
    """

    def __init__(self, workdir: str | Path, *, keep: int = 2, asynchronous: bool = True):
        self.folder = Path(workdir).absolute() / FOLDER
        self._unsealed: set[int] = set()
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_names=(*_TREES, "run"),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                enable_async_checkpointing=asynchronous,
                cleanup_tmp_directories=True,
                step_prefix=None,
            ),
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.wait()
        finally:
            self._guard(self._manager.close)

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, run: Mapping[str, Any]) -> None:
        """Write the state; returns once it is copied from the devices (asynchronous) or written.

        Args:
            state: to save. Its buffers may be overwritten as soon as this returns.
            run: JSON: the config and the counters.

        Raises:
            CheckpointError: the disk is full or not writable. Earlier checkpoints are untouched.
        """
        step = int(jax.device_get(state["step"]))
        if step in self._manager.all_steps():
            return
        arguments = {
            name: ocp.args.PyTreeSave(state[name]) for name in _TREES if jax.tree.leaves(state[name])
        }
        composite = ocp.args.Composite(**arguments, run=ocp.args.JsonSave({**run, "step": step}))
        self.wait()
        self._guard(lambda: self._manager.save(step, args=composite))
        self._unsealed.add(step)

    def wait(self) -> None:
        """Block until everything is written.

        Raises:
            CheckpointError: writing in the background failed.
        """
        unsealed, self._unsealed = self._unsealed, set()
        self._guard(self._manager.wait_until_finished)
        for step in unsealed & set(self.steps()):
            self._guard(lambda step=step: _seal(self.folder / str(step)))

    def restore(self, target: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest checkpoint that can be read, placed as `target` is.

        Args:
            target: a state of the right shapes on the current mesh; only shapes and shardings count.

        Returns:
            The state and the JSON saved with it.

        Raises:
            CheckpointError: there is none that can be read.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                state = self._restore(step, target)
            except Exception as error:
                logging.error(
                    "CHECKPOINT %d in %s CANNOT BE READ (%s: %s). Trying the one before.",
                    step, self.folder, type(error).__name__, str(error).splitlines()[0],
                )  # fmt: skip
                continue
            if step != steps[-1]:
                logging.error(
                    "RESUMING FROM STEP %d INSTEAD OF %d, whose checkpoint is damaged.", step, steps[-1]
                )
                self._set_aside([damaged for damaged in steps if damaged > step])
            return state
        raise CheckpointError(
            f"none of the checkpoints {steps} in {self.folder} can be read: copy one back from a backup, "
            "or start again in a new --workdir"
        )

    def _restore(self, step: int, target: TrainState) -> tuple[TrainState, dict[str, Any]]:
        _verify(self.folder / str(step))
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), dict(target)
        )
        arguments = {
            name: ocp.args.PyTreeRestore(
                shapes[name], restore_args=ocp.checkpoint_utils.construct_restore_args(shapes[name])
            )
            for name in _TREES
            if jax.tree.leaves(target[name])
        }
        restored = self._manager.restore(
            step, args=ocp.args.Composite(**arguments, run=ocp.args.JsonRestore())
        )
        trees = {name: restored[name] if name in arguments else target[name] for name in _TREES}
        counter = jax.device_put(np.asarray(step, np.int32), target["step"].sharding)
        return TrainState(**trees, step=counter), dict(restored["run"])

    def _set_aside(self, steps: Iterable[int]) -> None:
        for step in steps:
            (self.folder / str(step)).rename(self.folder / f"damaged-{step}")
        self._manager.reload()

    def _guard(self, action: Any) -> None:
        try:
            action()
        except Exception as error:
            if _is_full(error):
                free = shutil.disk_usage(self.folder).free
                raise CheckpointError(
                    f"no space left for a checkpoint in {self.folder} ({free / 1e6:.0f} MB free): free some, "
                    "then run the same command again; it goes on from the last complete checkpoint, "
                    f"{self.steps()[-1:] or 'none yet'}"
                ) from error
            raise CheckpointError(f"cannot write a checkpoint to {self.folder}: {error}") from error


def _is_full(error: BaseException | None) -> bool:
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if re.search(r"no space left|disk quota|RESOURCE_EXHAUSTED.*write", str(error), re.IGNORECASE):
            return True
        error = error.__cause__ or error.__context__
    return False


def _seal(folder: Path) -> None:
    """Write down size and checksum of each file of a complete checkpoint."""
    sums = {
        str(path.relative_to(folder)): [path.stat().st_size, _checksum(path)]
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    partial = folder / f"{CHECKSUMS}.partial"
    partial.write_text(json.dumps(sums))
    partial.replace(folder / CHECKSUMS)


def _verify(folder: Path) -> None:
    """Compare a checkpoint with its checksums, if it came so far as to have them.

    Orbax may wait for ever, or return wrong numbers, where a file is damaged.

    Raises:
        CheckpointError: a file is missing or changed.
    """
    if not (folder / CHECKSUMS).exists():
        return
    try:
        sums = json.loads((folder / CHECKSUMS).read_text())
    except ValueError:
        raise CheckpointError(f"{CHECKSUMS} is damaged") from None
    for name, (size, checksum) in sums.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{name} is missing")
        if path.stat().st_size != size:
            raise CheckpointError(f"{name} has {path.stat().st_size} bytes instead of {size}")
        if _checksum(path) != checksum:
            raise CheckpointError(f"{name} has changed since it was written")


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def latest_step(workdir: str | Path) -> int | None:
    """Step of the newest complete checkpoint of a run, None where there is none."""
    folder = Path(workdir) / FOLDER
    if not folder.is_dir():
        return None
    return max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=None)


def restore_params(
    workdir: str | Path, *, include: Iterable[str] = (r".*",), ema: bool = False, step: int | None = None
) -> Tree:
    """Parameters of an earlier run as host arrays, without building its model.

    Args:
        workdir: of that run.
        include: regexes, searched in "path/to/parameter"; only what matches is read.
        ema: take the moving average where there is one.
        step: which checkpoint; default the newest that can be read.

    Raises:
        FileNotFoundError: no run or no checkpoint there.
        CheckpointError: none of its checkpoints can be read.
        ValueError: a regex matches nothing.
    """
    folder = Path(workdir).absolute() / FOLDER
    if latest_step(workdir) is None:
        raise FileNotFoundError(
            f"no checkpoint in {workdir}: give the --workdir of a finished or running run"
        )
    steps = sorted((int(path.name) for path in folder.iterdir() if path.name.isdigit()), reverse=True)
    for candidate in [step] if step is not None else steps:
        try:
            _verify(folder / str(candidate))
            params = _read_tree(folder / str(candidate) / "params", tuple(include))
            if ema and (folder / str(candidate) / "ema").is_dir():
                averaged = _read_tree(folder / str(candidate) / "ema", None)
                params = combine(params, unflatten({
                    path: leaf for path, leaf in flatten(averaged).items() if path in flatten(params)
                }))  # fmt: skip
            return params
        except LookupError as error:
            raise ValueError(error.args[0]) from None
        except Exception as error:
            logging.error(
                "CHECKPOINT %s in %s CANNOT BE READ (%s: %s).",
                candidate, folder, type(error).__name__, str(error).splitlines()[0],
            )  # fmt: skip
    raise CheckpointError(f"no checkpoint in {folder} can be read: copy one back from a backup")


def read_run(workdir: str | Path) -> dict[str, Any]:
    """The JSON beside the newest checkpoint: `config`, `step`, counters."""
    step = latest_step(workdir)
    if step is None:
        raise FileNotFoundError(f"no checkpoint in {workdir}")
    return json.loads((Path(workdir) / FOLDER / str(step) / "run" / "metadata").read_text())


def _read_tree(folder: Path, include: tuple[str, ...] | None) -> Tree:
    with ocp.PyTreeCheckpointer() as reader:
        names = flatten(reader.metadata(folder).item_metadata.tree)
        wanted = set(names)
        if include is not None:
            wanted = set()
            for pattern in include:
                hits = {name for name in names if re.search(pattern, name)}
                if not hits:
                    raise LookupError(
                        f"{pattern!r} matches no parameter of {folder}; it has {list(names)[:8]}..."
                    )
                wanted |= hits
        target = unflatten({
            name: jax.ShapeDtypeStruct(meta.shape, meta.dtype)
            for name, meta in names.items() if name in wanted
        })  # fmt: skip
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
        return reader.restore(
            folder, args=ocp.args.PyTreeRestore(target, restore_args=restore_args, partial_restore=True)
        )
