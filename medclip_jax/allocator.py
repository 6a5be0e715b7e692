"""glibc's allocator, told to keep the memory that volumes pass through."""

from __future__ import annotations

import ctypes
import functools
import os
import platform

SWITCH = "MEDCLIP_ALLOCATOR"
"""Environment variable; "0" leaves the allocator as it is."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of `mallopt`, from glibc's malloc.h."""

_LARGEST_MMAP_THRESHOLD = 32 << 20
"""Bytes; glibc takes no more on 64 bit."""

_LARGEST_TRIM_THRESHOLD = 2**31 - 1
"""Bytes; `mallopt` takes an int."""

_OWN_CHOICES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
"""Environment variables by which a user sets the same."""


@functools.cache
def keep_freed_memory() -> bool:
    """Let glibc reuse freed blocks of up to 32 MiB instead of returning them to the system.

    By default it asks the system for each block the size of a volume and gives it back at once, so that every
    page is cleared and mapped anew, several times a volume. With these thresholds a process keeps the most
    memory that it ever had in use in such blocks, and no more. Only the first call in a process counts.

    Nothing happens where ``MEDCLIP_ALLOCATOR=0``, where ``MALLOC_MMAP_THRESHOLD_``,
    ``MALLOC_TRIM_THRESHOLD_`` or ``GLIBC_TUNABLES`` say what they shall be, and without glibc.

    Returns:
        Whether the thresholds were set.
    """
    chosen = any(name in os.environ for name in _OWN_CHOICES) or "glibc.malloc." in os.environ.get(
        "GLIBC_TUNABLES", ""
    )
    if os.environ.get(SWITCH) == "0" or chosen or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(
        mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        and mallopt(_TRIM_THRESHOLD, _LARGEST_TRIM_THRESHOLD)
    )
