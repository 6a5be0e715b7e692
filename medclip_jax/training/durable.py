"""Small files that appear complete and stay, also where the machine loses its power right after."""

from __future__ import annotations

import os
from pathlib import Path


def write_durably(path: Path, text: str) -> None:
    """Write a file, completely or not at all, and have it on the disk when this returns.

    Args:
        path: of the file; one writer at a time.
        text: its content.

    Raises:
        OSError: it cannot be written; an earlier file is untouched.
    """
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    replace_durably(partial, path)


def replace_durably(source: Path, target: Path) -> None:
    """Give a written file its final name, with content and name on the disk when this returns."""
    synchronize(source)
    source.replace(target)
    synchronize(target.parent)


def synchronize(path: Path) -> None:
    """Have the system put a file's content, or a folder's names, on the disk.

    Raises:
        OSError: the disk is full or fails, which for a file may come up here only.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
