"""What a file or folder holds, by a look at a small part of it: enough to notice that it was replaced."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

_WHOLE_BYTES = 1 << 20
"""Files up to this size are read whole."""

_SAMPLE_BYTES = 1 << 12
_SAMPLES = 16

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


def is_missing(path: Path) -> bool:
    """Whether there is no such file or folder; one that cannot be looked at just now is there."""
    try:
        os.stat(path)
    except OSError as error:
        return error.errno in _ABSENT
    except ValueError:  # a NUL in the name
        return True
    return False


def content_state(path: Path) -> str:
    """A text that changes when a file or folder is replaced by another one, also by one of equal size.

    Times are left out: a copy of the archive on another disk is the same archive. Of a gzip file the ends are
    read, because the last bytes are its checksum; of other files above 1 MiB, 16 samples; of each file of a
    folder, its name, its size, and its first and last 4 KiB: the header of a DICOM slice and the end of its
    voxels. An edit of a large file in place can escape that.

    Args:
        path: may be missing or unreadable; that is then its state.
    """
    try:
        if os.path.isdir(path):
            return _folder_state(path)
        return _file_state(path)
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}"


def files_state(files: Sequence[Path]) -> str:
    """The same of files that are one scan, wherever they lie: as of a folder that holds them alone.

    Args:
        files: at least one.
    """
    try:
        return _state_of([os.fspath(file) for file in files], os.path.commonpath([f.parent for f in files]))
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}"


def names_state(files: Sequence[Path]) -> str:
    """A text that changes with the names of the files of a scan, without a look at the disk.

    Args:
        files: at least one.
    """
    folder = os.path.commonpath([file.parent for file in files])
    names = b"\0".join(os.fsencode(os.path.relpath(file, folder)) for file in files)
    return f"{len(files)} {hashlib.sha256(names).hexdigest()}"


def earlier_state(path: Path) -> str | None:
    """What `content_state` was of a folder when it read three of its files alone; None of what is no folder.

    By it, sets that were prepared then are known again.

    Args:
        path: may be missing or unreadable.
    """
    try:
        if not os.path.isdir(path):
            return None
        files = _files_of(path)
        names = hashlib.sha256()
        for file in files:
            names.update(os.fsencode(os.path.relpath(file, path)) + b"\0")
        chosen = sorted({0, len(files) // 2, len(files) - 1}) if files else []
        return f"{len(files)} {names.hexdigest()} {' '.join(_file_state(files[place]) for place in chosen)}"
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}"


def _file_state(path: str | os.PathLike) -> str:
    if not stat.S_ISREG(kind := os.stat(path).st_mode):
        return f"special {stat.S_IFMT(kind)}"  # opening a pipe would wait for its writer
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= _WHOLE_BYTES:
            return f"{size} {hashlib.sha256(file.read()).hexdigest()}"
        digest = hashlib.sha256()
        last = size - _SAMPLE_BYTES
        count = 2 if os.fspath(path).endswith(".gz") else _SAMPLES
        for sample in range(count):
            digest.update(os.pread(file.fileno(), _SAMPLE_BYTES, last * sample // (count - 1)))
        return f"{size} {digest.hexdigest()}"


def _files_of(path: str | os.PathLike) -> list[str]:
    return sorted(os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)


def _folder_state(path: str | os.PathLike) -> str:
    return _state_of(_files_of(path), path)


def _state_of(files: Sequence[str], folder: str | os.PathLike) -> str:
    digest = hashlib.sha256()
    for name in files:
        digest.update(os.fsencode(os.path.relpath(name, folder)) + b"\0")
        if not stat.S_ISREG(os.stat(name).st_mode):
            continue
        with open(name, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(size.to_bytes(8, "big"))
            for start in (0, max(0, size - _SAMPLE_BYTES)):
                digest.update(os.pread(file.fileno(), _SAMPLE_BYTES, start))
    return f"{len(files)} files {digest.hexdigest()}"
