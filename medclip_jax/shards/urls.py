"""Whether a place is a URL of an object store or a path; apart from `shards.store`, so that help is quick."""

from __future__ import annotations

import os
from pathlib import Path


def is_url(place: str | os.PathLike) -> bool:
    """Whether a place is a URL and no path of this machine."""
    return isinstance(place, str) and "://" in place


def folder_or_url(text: str) -> str | Path:
    """A place from the command line: URLs stay text, all else is a path."""
    return text.rstrip("/") if is_url(text) else Path(text)
