"""One run at a time in a workdir, also where several machines share it and its file system knows no locks.

Who holds a workdir stands in `lock-N.json` with the highest N. To take it means to create the next one, which
the file system lets exactly one process do. Its time of change is the holder's sign of life; 0 means that the
holder let go. A file of a lower number means nothing and is removed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from medclip_jax.training.durable import synchronize

BEAT_SECONDS = 5.0
"""How often a run shows that it lives."""

STALE_SECONDS = 60.0
"""A run on another machine that was silent for so long counts as dead."""

WATCH_SECONDS = 2.5 * BEAT_SECONDS
"""For so long a silent run is watched at least: the clocks of two machines may differ."""

_NAME = re.compile(r"lock-(\d+)\.json")


class WorkdirInUse(ValueError):
    """Another run holds the workdir; the message says which."""


class Holder(NamedTuple):
    """A lock file.

    Attributes:
        number: N of its name.
        file: where it lies.
        changed: its time of change, seconds since 1970 by the file system's clock; 0 once it was let go.
        content: `host`, `machine`, `pid`, `process`, `job`, `restarts`; {} where it cannot be read.
    """

    number: int
    file: Path
    changed: float
    content: Mapping[str, Any]


class WorkdirLock:
    """Holds a workdir as long as it is entered.

    A lock whose process is known to be dead is taken over at once: on the same machine, or where SLURM has
    started the same job again. Of a process on another machine only the signs of life are seen: one that
    gives any is alive; one that was silent for `STALE_SECONDS` is dead, which may have to be waited for.

    Args:
        folder: the workdir, which exists.
        holding: False in all processes of a run but the first: then nothing is done.

    Raises:
        WorkdirInUse: when entered: another run holds it.
    """

    def __init__(self, folder: Path, *, holding: bool = True):
        self._folder = folder
        self._holding = holding
        self._file: Path | None = None
        self._lost = False
        self._closing = threading.Event()

    def __enter__(self) -> WorkdirLock:
        if self._holding:
            self._take()
            self._thread = threading.Thread(target=self._keep_beating, name="lock", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._holding:
            self._closing.set()
            self._thread.join()
            with contextlib.suppress(OSError):  # gone: another run took over
                os.utime(self._file, (0, 0))

    def check(self) -> None:
        """See that no other run took over while this one could not show that it lives.

        Raises:
            WorkdirInUse: one did.
        """
        if self._lost:
            raise WorkdirInUse(
                f"{self._file} is gone: another run took over, because this one gave no sign of life for "
                f"{STALE_SECONDS:.0f} s, or somebody removed it. This run ends and saves nothing more"
            )

    def _take(self) -> None:
        own = json.dumps(describe_process())
        candidate = self._folder / f"lock-{secrets.token_hex(4)}.partial"
        try:
            candidate.write_text(own)
            synchronize(candidate)
            # By the file system's clock, as the signs of life are.
            begin = candidate.stat().st_mtime - time.monotonic()
            seen = None
            while True:
                holder = _find(self._folder)
                if holder is None or _is_gone(holder):
                    if self._create(holder, candidate, own):
                        return
                    continue
                age = begin + time.monotonic() - holder.changed
                told = (
                    f"{self._folder} is used by a run on {holder.content.get('host', 'an unknown host')}, "
                    f"process {holder.content.get('pid', 'unknown')}, whose last sign of life came "
                    f"{max(age, 0.0):.0f} s ago ({holder.file.name})"
                )
                beats = seen is not None and seen.number == holder.number and seen.changed != holder.changed
                if beats or _is_here(holder):
                    raise WorkdirInUse(
                        f"{told}: wait for its end, stop it, or give another --workdir. Where it is surely "
                        f"dead, remove {holder.file}"
                    )
                if seen is None or seen.number != holder.number:
                    seen, since = holder, time.monotonic()
                    logging.warning("%s: waiting up to %.0f s for another one", told, STALE_SECONDS)
                silent = time.monotonic() - since
                if silent > STALE_SECONDS or (age > STALE_SECONDS and silent > WATCH_SECONDS):
                    logging.warning("it gave none and counts as dead: this run takes over")
                    if self._create(holder, candidate, own):
                        return
                time.sleep(BEAT_SECONDS / 10)
        finally:
            candidate.unlink(missing_ok=True)

    def _create(self, before: Holder | None, candidate: Path, content: str) -> bool:
        """Whether this process made the next lock file."""
        number = before.number + 1 if before else 1
        file = self._folder / f"lock-{number}.json"
        if not _create_alone(file, candidate, content):
            return False
        numbers = _files(self._folder)
        if max(numbers) > number:  # long ago decided: others came and went
            file.unlink(missing_ok=True)
            return False
        for old in numbers.keys() - {number}:
            numbers[old].unlink(missing_ok=True)
        self._file = file
        return True

    def _keep_beating(self) -> None:
        while not self._closing.wait(BEAT_SECONDS):
            try:
                os.utime(self._file)
            except FileNotFoundError:
                self._lost = True
                return
            except OSError:
                continue  # a file system that is away for a moment


def is_locked(folder: Path) -> bool:
    """Whether a run holds a workdir, or did before."""
    return bool(_files(folder))


def _create_alone(file: Path, candidate: Path, content: str) -> bool:
    """Create a file unless it exists: of several processes that do this at once, one succeeds."""
    try:
        os.link(candidate, file)
    except FileExistsError:
        # Over NFS, the answer to a link that was made may be lost and the question be put again.
        return candidate.stat().st_nlink > 1
    except OSError:  # a file system without links
        try:
            with file.open("x") as stream:
                stream.write(content)
        except FileExistsError:
            return False
    return True


def _files(folder: Path) -> dict[int, Path]:
    """Lock files by number."""
    return {int(found[1]): path for path in folder.iterdir() if (found := _NAME.fullmatch(path.name))}


def _find(folder: Path) -> Holder | None:
    """The lock file that counts, None where there never was one."""
    while files := _files(folder):
        number = max(files)
        try:
            changed = files[number].stat().st_mtime
            content = json.loads(files[number].read_text())
        except FileNotFoundError:
            continue  # the next one was just created
        except (OSError, ValueError, RecursionError):
            content = {}
        return Holder(number, files[number], changed, content if isinstance(content, dict) else {})
    return None


def describe_process() -> dict[str, Any]:
    """This process, for others to know whether it lives."""
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "process": _started(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "restarts": _restarts(),
    }


def is_dead(content: Mapping[str, Any]) -> bool:
    """Whether a process, by what `describe_process` told of it, is one of this machine and dead."""
    if not _is_of_this_machine(content):
        return False
    started = _started(content["pid"])
    # Another process may have been given the number.
    return started is None or bool(started and content["process"] and started != content["process"])


def _is_gone(holder: Holder) -> bool:
    """Whether a holder let go, or is known to be dead."""
    content = holder.content
    if holder.changed == 0 or is_dead(content):
        return True
    # SLURM starts a job again only after it has ended its processes.
    again = bool(content.get("job")) and content["job"] == os.environ.get("SLURM_JOB_ID")
    return again and content.get("restarts", 0) < _restarts()


def _is_here(holder: Holder) -> bool:
    """Whether a holder is a living process of this machine."""
    return _is_of_this_machine(holder.content) and not _is_gone(holder)


def _is_of_this_machine(content: Mapping[str, Any]) -> bool:
    return (
        content.get("host") == socket.gethostname()
        and content.get("machine") == _machine()
        and isinstance(content.get("pid"), int)
        and "process" in content
    )


def _machine() -> str:
    """Tells this start of this machine, and this container's process ids, from others of the same name."""
    found = []
    with contextlib.suppress(OSError):
        found.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        found.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(found)


def _started(pid: int) -> str | None:
    """When a process began, by the machine's own count; "" where that is not told, None for a dead one."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # of another user
    try:
        # The name, in parentheses, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return None if fields[0] in "ZX" else fields[19]


def _restarts() -> int:
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    return int(count) if count.isdigit() else 0
