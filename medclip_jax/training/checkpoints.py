"""Saving and restoring, with Orbax behind this one module."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from medclip_jax.parameters import Tree, combine, flatten, unflatten
from medclip_jax.training.checksums import SEALED, CheckpointError, seal, verify
from medclip_jax.training.durable import synchronize, write_durably
from medclip_jax.training.state import TrainState

FOLDER = "checkpoints"
NEWEST, BEST = "newest", "best"
"""Files in that folder that hold a step: the last that was written, and the one that scored best, if any."""
_TREES = ("params", "variables", "optimizer", "ema")
_UNFINISHED = "{step}.orbax-checkpoint-tmp*"
"""Pattern of the folder of a checkpoint that Orbax has not yet given its final name."""


class Checkpoints:
    """The checkpoints of one workdir. With several processes, all make one and call its methods alike.

    A checkpoint holds the parameters, the other variables, the optimizer's state and the moving average
    as arrays, the step, the config and the counters as JSON, and checksums of all its files. It appears
    under its final name only when it is complete: a kill leaves none or all of it.

    Args:
        workdir: of the run, seen by all processes.
        keep: how many of the newest stay, beside the one that is marked as the best.
        asynchronous: write in the background.
    """

    def __init__(self, workdir: str | Path, *, keep: int = 2, asynchronous: bool = True):
        check_path(workdir)
        self.folder = Path(workdir).absolute() / FOLDER
        self._asynchronous = asynchronous
        self._writing: int | None = None
        if jax.process_index() == 0:
            _forget_unwritten(self.folder)  # before Orbax clears away what tells of it
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_names=(*_TREES, "run"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_NewestAndBest(keep, self.folder),
                # Also where each save is waited for, since only then there is a hook before the commit.
                enable_async_checkpointing=True,
                async_options=ocp.AsyncOptions(
                    post_finalization_callback=self._seal_before_commit,
                    # Made in the background, a folder that cannot be made leaves threads that wait for it
                    # for five minutes, and keep the process.
                    create_directories_asynchronously=False,
                ),
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
        run = {**run, "step": step, SEALED: True}
        composite = ocp.args.Composite(**arguments, run=ocp.args.JsonSave(run))
        self.wait()
        self._writing = step
        self._guard(lambda: self._manager.save(step, args=composite, force=True))
        if not self._asynchronous:
            self.wait()

    def mark_best(self, step: int | None) -> None:
        """Keep the checkpoint of a step from now on, and let it be the one that is used; None for none.

        Args:
            step: with a checkpoint, which may still be on its way.
        """
        self.wait()
        if jax.process_index() != 0 or step == best_step(self.folder.parent):
            return
        if step is None:
            (self.folder / BEST).unlink(missing_ok=True)
        else:
            write_durably(self.folder / BEST, str(step))

    def wait(self) -> None:
        """Block until everything is written.

        Raises:
            CheckpointError: writing in the background failed.
        """
        if self._writing is None:
            return
        self._guard(self._manager.wait_until_finished)
        if jax.process_index() == 0:
            self._guard(lambda: synchronize(self.folder))  # its final name
        self._writing = None

    def restore(self, target: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest checkpoint that can be read, placed as `target` is.

        Where it was saved on other devices, or by another number of processes, does not matter. With
        several processes the first one looks which files are intact, and the others follow it.

        Args:
            target: a state of the right shapes on the current mesh; only shapes and shardings count, so
                its leaves may as well be `jax.ShapeDtypeStruct`.

        Returns:
            The state and the JSON saved with it.

        Raises:
            CheckpointError: there is none that can be read.
        """
        steps = self.steps()
        newest = _newest(self.folder)
        if newest is not None and newest > max(steps, default=-1):
            logging.error(
                "CHECKPOINT %d, THE NEWEST THAT WAS WRITTEN, IS GONE from %s. Trying the one before.",
                newest, self.folder,
            )  # fmt: skip
        found = _newest_readable(self.folder, steps, target)
        if found is None:
            raise CheckpointError(
                f"none of the checkpoints {steps} in {self.folder} can be read: copy one back from a backup, "
                "or start again in a new --workdir"
            )
        step = found[1]["step"]
        if step != steps[-1]:
            logging.error(
                "RESUMING FROM STEP %d INSTEAD OF %d, whose checkpoint is damaged.", step, steps[-1]
            )
            self._set_aside([damaged for damaged in steps if damaged > step])
        return found

    def _seal_before_commit(self) -> None:
        """Finish the folder of the checkpoint that is about to be renamed, and write down its step.

        A kill before the renaming leaves the folder under its other name, which tells that nothing was lost.
        """
        for folder in self.folder.glob(_UNFINISHED.format(step=self._writing)):
            seal(folder)
        write_durably(self.folder / NEWEST, str(self._writing))

    def _set_aside(self, steps: Iterable[int]) -> None:
        if jax.process_index() == 0:
            for step in steps:
                # The same step may have been damaged before.
                names = [f"damaged-{step}", *(f"damaged-{step}-{count}" for count in range(2, 1000))]
                target = next(self.folder / name for name in names if not (self.folder / name).exists())
                (self.folder / str(step)).rename(target)
        _all_agree(True)  # nobody looks before they are away
        self._manager.reload()

    def _guard(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            self._writing = None
            last = _steps(self.folder)[-1:] or "none yet"
            if jax.process_index() == 0:
                with contextlib.suppress(OSError):
                    _forget_unwritten(self.folder)
            if _is_full(error):
                raise CheckpointError(
                    f"no space left for a checkpoint in {self.folder} ({_free(self.folder)} free): free "
                    "some, then run the same command again; it resumes from the last complete checkpoint, "
                    f"{last}"
                ) from error
            raise CheckpointError(f"cannot write a checkpoint to {self.folder}: {error}") from error


@dataclass
class _NewestAndBest:
    """Which checkpoints stay; an Orbax `PreservationPolicy`."""

    keep: int
    folder: Path

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Whether each of the checkpoints, oldest first, stays."""
        best, newest = best_step(self.folder.parent), len(checkpoints) - self.keep
        return [place >= newest or one.step == best for place, one in enumerate(checkpoints)]


def best_step(workdir: str | Path) -> int | None:
    """The step that scored best by `config.evaluation.best`, None for runs that look for none."""
    try:
        return int((Path(workdir) / FOLDER / BEST).read_text())
    except (OSError, ValueError):
        return None


def used_step(workdir: str | Path) -> int | None:
    """The step whose weights are used where none is named: the best where there is one, else the newest.

    Raises:
        CheckpointError: as `latest_step`.
    """
    best = best_step(workdir)
    return latest_step(workdir) if best is None else best


def check_path(workdir: str | Path) -> None:
    """See that the libraries that read and write checkpoints can do so in a folder.

    TensorStore turns a backslash into a slash, and Orbax takes a path for a pattern where it puts together
    what it wrote: the checkpoint would be empty.

    Raises:
        CheckpointError: the path has a character that they take for something else.
    """
    unfit = sorted(set(str(Path(workdir).absolute())) & set("\\*?[]"))
    if unfit:
        raise CheckpointError(
            f"no checkpoint can be written or read in {workdir}: its path has {' '.join(unfit)} in it. "
            "Rename the folder, or give another --workdir"
        )


def restore_from(path: str | Path, target: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """A state from anywhere, read only: the newest readable of another workdir, or a given checkpoint.

    With several processes, all call it alike.

    Args:
        path: a workdir, or one checkpoint in it (`WORKDIR/checkpoints/STEP`).
        target: a state of the right shapes on the current mesh; only shapes and shardings count.

    Returns:
        The state and the JSON saved with it.

    Raises:
        FileNotFoundError: no checkpoint there.
        CheckpointError: none can be read.
    """
    check_path(path)
    path = Path(path).absolute()
    if path.name.isdigit() and path.parent.name == FOLDER:
        folder, steps = path.parent, [int(path.name)] if path.is_dir() else []
    else:
        folder, steps = path / FOLDER, _steps(path / FOLDER)
    if not steps:
        raise FileNotFoundError(
            f"no checkpoint in {path}: give a --workdir of an earlier run, or one of its checkpoints/STEP"
        )
    found = _newest_readable(folder, steps, target)
    if found is None:
        raise CheckpointError(f"no checkpoint in {path} can be read: copy one back from a backup")
    return found


def _newest_readable(
    folder: Path, steps: Iterable[int], target: TrainState
) -> tuple[TrainState, dict[str, Any]] | None:
    """The newest of these checkpoints that all processes can read, None where there is none."""
    for step in sorted(steps, reverse=True):
        found = None
        if _decide(_intact, folder / str(step)):
            try:
                found = _read(folder / str(step), target)
            except Exception as error:
                _complain(folder / str(step), error)
        if _all_agree(found is not None):
            return found
    return None


def _read(folder: Path, target: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """One checkpoint, placed as `target` is: the saved placement is never asked for."""
    run = json.loads((folder / "run" / "metadata").read_text())
    trees: dict[str, Any] = {}
    for name in _TREES:
        if not jax.tree.leaves(target[name]):
            trees[name] = target[name]
            continue
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), target[name]
        )
        restore_args = ocp.checkpoint_utils.construct_restore_args(shapes)
        trees[name] = ocp.PyTreeCheckpointHandler().restore(
            folder / name, args=ocp.args.PyTreeRestore(shapes, restore_args=restore_args)
        )
    step = jax.device_put(np.asarray(run["step"], np.int32), target["step"].sharding)
    return TrainState(**trees, step=step), run


def _intact(folder: Path) -> bool:
    """Whether a checkpoint's files are as they were written."""
    try:
        verify(folder)
    except (CheckpointError, OSError) as error:
        _complain(folder, error)
        return False
    return True


def _complain(folder: Path, error: Exception) -> None:
    logging.error(
        "CHECKPOINT %s in %s CANNOT BE READ (%s: %s). Trying the one before.",
        folder.name, folder.parent, type(error).__name__, str(error).splitlines()[0],
    )  # fmt: skip


def _decide(question: Callable[[Path], bool], folder: Path) -> bool:
    """What the first process finds, in all processes."""
    if jax.process_count() == 1:
        return question(folder)
    own = question(folder) if jax.process_index() == 0 else False
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(own)))


def _all_agree(answer: bool) -> bool:
    """Whether all processes say yes; waits for all of them."""
    if jax.process_count() == 1:
        return answer
    return bool(multihost_utils.process_allgather(np.asarray(answer)).all())


def _is_full(error: BaseException | None) -> bool:
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if re.search(r"no space left|disk quota|RESOURCE_EXHAUSTED.*write", str(error), re.IGNORECASE):
            return True
        error = error.__cause__ or error.__context__
    return False


def _free(folder: Path) -> str:
    disk = os.statvfs(folder)
    if disk.f_files and not disk.f_favail:
        return "no further files"  # each takes an inode, of which a disk may have too few
    return f"{disk.f_bavail * disk.f_frsize / 1e6:.0f} MB"


def latest_step(workdir: str | Path) -> int | None:
    """Step of the newest complete checkpoint of a run, None where there never was one.

    Raises:
        CheckpointError: there were some, and all are gone.
    """
    folder = Path(workdir) / FOLDER
    steps = _steps(folder)
    if not steps and (newest := _newest(folder)) is not None:
        raise CheckpointError(
            f"all checkpoints are gone from {folder}, where step {newest} was saved: copy them back from a "
            f"backup, or delete {folder / NEWEST} to begin from scratch"
        )
    return max(steps, default=None)


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def _newest(folder: Path) -> int | None:
    """The step last known to be written, whether or not it is still there."""
    try:
        newest = int((folder / NEWEST).read_text())
    except (OSError, ValueError):
        return None
    if not (folder / str(newest)).exists() and any(folder.glob(_UNFINISHED.format(step=newest))):
        return max(_steps(folder), default=None)  # cut off just before it got its name
    return newest


def _forget_unwritten(folder: Path) -> None:
    """Where the newest step is told of and was cut off before it was there, tell of the one before."""
    newest = _newest(folder)
    file = folder / NEWEST
    if newest is None:
        file.unlink(missing_ok=True)
    elif file.read_text() != str(newest):
        write_durably(file, str(newest))


def restore_weights(
    workdir: str | Path, *, include: Iterable[str] = (r".*",), ema: bool = False, step: int | None = None
) -> Tree:
    """Parameters and other variables of an earlier run as one tree of host arrays, without its model.

    Args:
        workdir: of that run.
        include: regexes, searched in "path/to/array"; only what matches is read.
        ema: take the moving average where there is one.
        step: which checkpoint; default the best where the run looks for it (`config.evaluation.best`), else
            the newest that can be read.

    Raises:
        FileNotFoundError: no run or no checkpoint there, or none of this step; the message lists those there.
        CheckpointError: none of its checkpoints can be read.
        ValueError: a regex matches nothing.
    """
    check_path(workdir)
    folder = Path(workdir).absolute() / FOLDER
    if latest_step(workdir) is None:
        raise FileNotFoundError(
            f"no checkpoint in {workdir}: give the --workdir of a finished or running run"
        )
    steps = _steps(folder)
    if step is None and (step := best_step(workdir)) is not None:
        logging.info("step %d of %s, the best by config.evaluation.best", step, workdir)
    if step is not None and step not in steps:
        raise FileNotFoundError(
            f"no checkpoint of step {step} in {workdir}: there {'is' if len(steps) == 1 else 'are'} "
            f"{', '.join(map(str, steps))}"
        )
    for candidate in [step] if step is not None else reversed(steps):
        try:
            verify(folder / str(candidate))
            return _read_weights(folder / str(candidate), tuple(include), ema=ema)
        except LookupError as error:
            raise ValueError(error.args[0]) from None
        except Exception as error:
            logging.error(
                "CHECKPOINT %s in %s CANNOT BE READ (%s: %s).",
                candidate, folder, type(error).__name__, str(error).splitlines()[0],
            )  # fmt: skip
    raise CheckpointError(
        f"no checkpoint in {folder} can be read: copy one back from a backup"
        if step is None
        else f"the checkpoint of step {step} in {folder} cannot be read: copy it back from a backup, or take "
        f"another (--step, step=) of {', '.join(map(str, steps))}"
    )


def saved_run(workdir: str | Path) -> dict[str, Any] | None:
    """The JSON of the newest checkpoint whose JSON can be read, None where there is none."""
    folder = Path(workdir) / FOLDER
    for step in reversed(_steps(folder)):
        with contextlib.suppress(OSError, ValueError, RecursionError):
            run = json.loads((folder / str(step) / "run" / "metadata").read_text())
            if isinstance(run, dict):
                return run
    return None


def _read_weights(folder: Path, include: tuple[str, ...], *, ema: bool) -> Tree:
    # The handler and not a checkpointer: that one looks for files which only a whole checkpoint has.
    reader = ocp.PyTreeCheckpointHandler()
    # A tree without leaves was not written. Of two trees that hold the same array, the later one counts.
    optional = [name for name in ("variables", *(["ema"] if ema else [])) if (folder / name).is_dir()]
    held = {name: flatten(reader.metadata(folder / name).tree) for name in ("params", *optional)}
    names = list(dict.fromkeys(path for tree in held.values() for path in tree))
    for pattern in include:
        if not any(re.search(pattern, name) for name in names):
            raise LookupError(f"{pattern!r} matches no parameter of {folder}; it has {names[:8]}...")
    found = []
    for name, tree in held.items():
        target = unflatten({
            path: jax.ShapeDtypeStruct(meta.shape, meta.dtype)
            for path, meta in tree.items() if any(re.search(pattern, path) for pattern in include)
        })  # fmt: skip
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
        arguments = ocp.args.PyTreeRestore(target, restore_args=restore_args, partial_restore=True)
        found.append(reader.restore(folder / name, args=arguments) if target else {})
    return combine(*found)
