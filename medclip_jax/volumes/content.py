"""The bytes of a file: inflated no further than its header states, checksums verified, memory bounded."""

from __future__ import annotations

import bz2
import zlib
from pathlib import Path

from medclip_jax.volumes.volume import VolumeRejected

try:  # ISA-L inflates at about twice zlib's rate, with the same interface and checksums.
    from isal import isal_zlib as inflater
except ImportError:
    inflater = zlib

MOST_BYTES = 8 << 30
"""Voxels of one file, inflated: four times 1024 x 1024 x 1024 in 16 bits."""

_LARGE = 256 << 20
_MOST_RATIO = 100
"""Noise keeps scans from shrinking to less than about a tenth; label maps may shrink to a thousandth."""

_SURPLUS = 1 << 20
"""Bytes beyond what the header states that are still inflated, to reach the checksum."""

_LONGEST_HEADER = 1 << 16
"""Bytes of a gzip header with its file name and comment, and more."""

GZIP, ZLIB = 31, 15
"""Wrappers around deflated data, as zlib numbers them."""


def check_size(stated: int, stored: int, *, labels: bool = False) -> None:
    """Refuse, before anything is inflated, what no scan needs or what does not fit into memory.

    Args:
        stated: bytes of voxels by the header.
        stored: bytes of the file that holds them.
        labels: the file is a label map, which may be compressed to very little.

    Raises:
        VolumeRejected: "implausible-size" or "out-of-memory".
    """
    if stated > MOST_BYTES or (not labels and stated > _LARGE and stated > _MOST_RATIO * stored):
        raise VolumeRejected(
            "implausible-size",
            f"The header states {stated / 2**20:,.0f} MiB of voxels in a file of {stored / 2**20:,.1f} MiB: "
            "that is no scan. Export it again.",
        )
    free = _free_memory()
    if free is not None and stated > _LARGE and 2 * stated > free:
        raise VolumeRejected(
            "out-of-memory",
            f"The volume takes {stated / 2**20:,.0f} MiB and about as much again to work on, and "
            f"{free / 2**20:,.0f} MiB are free: use fewer --workers, or more memory.",
        )


def _free_memory() -> int | None:
    """Bytes that can still be had by this process's machine or container; None where that is not told."""
    free = None
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) << 10
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            # What caches hold is given back when it is needed.
            facts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            used = int((group / "memory.current").read_text()) - int(facts.get("inactive_file", 0))
            left = int(limit) - used
            free = left if free is None else min(free, left)
    except (OSError, ValueError):
        pass
    return free


def inflate(content: bytes, wanted: int, wrapper: int) -> tuple[bytes, int]:
    """Inflate all members of gzip or zlib data, up to the bytes wanted, and verify their checksums.

    Args:
        content: compressed.
        wanted: bytes to expect.
        wrapper: `GZIP` or `ZLIB`.

    Returns:
        At most the bytes wanted, and how many came after them.

    Raises:
        VolumeRejected: "damaged-gzip", "truncated-file", or "size-mismatch" where far more bytes follow.
    """
    parts, length, surplus, left = [], 0, 0, content
    while left and (not parts or _begins_member(left, wrapper)):
        member = inflater.decompressobj(wrapper)
        try:
            while not member.eof:
                room = wanted - length if length < wanted else _SURPLUS
                part = member.decompress(left, room)
                left = member.unconsumed_tail
                if length < wanted:
                    parts.append(part)
                    length += len(part)
                else:
                    surplus += len(part)
                if surplus > _SURPLUS:
                    raise VolumeRejected(
                        "size-mismatch",
                        f"Over {surplus:,} more bytes are stored than the header's shape needs: the header "
                        "is damaged. Export the file again.",
                    )
                if not part and not left and not member.eof:
                    raise VolumeRejected(
                        "truncated-file",
                        f"The {'gzip' if wrapper == GZIP else 'zlib'} data end early: copy or download the "
                        "file again.",
                    )
        except (inflater.error, zlib.error):
            raise _damaged() from None
        left = member.unused_data
    return (parts[0] if len(parts) == 1 else b"".join(parts)), surplus + len(left.rstrip(b"\0"))


def _begins_member(content: bytes, wrapper: int) -> bool:
    return wrapper == GZIP and content[:2] == b"\x1f\x8b"


def peek(content: bytes, count: int) -> bytes:
    """The first bytes of gzip data, without the rest; fewer where they end early.

    Raises:
        VolumeRejected: "damaged-gzip".
    """
    # Deflated data are at most an eighth longer than what they hold; the rest would only be copied.
    start = memoryview(content)[: 2 * count + _LONGEST_HEADER]
    try:
        return inflater.decompressobj(GZIP).decompress(start, count)
    except (inflater.error, zlib.error):
        raise _damaged() from None


def _damaged() -> VolumeRejected:
    return VolumeRejected(
        "damaged-gzip",
        "The compressed data do not match their checksum: copy or download the file again.",
    )


def inflate_bzip2(content: bytes, wanted: int) -> tuple[bytes, int]:
    """As `inflate`, for bzip2."""
    reader = bz2.BZ2Decompressor()
    try:
        parts, length = [], 0
        part = reader.decompress(content, wanted)
        while True:
            parts.append(part)
            length += len(part)
            if reader.eof or length > wanted + _SURPLUS or (not part and reader.needs_input):
                break
            part = reader.decompress(b"", max(wanted - length, 1 << 16))
    except (OSError, EOFError, ValueError):
        raise _damaged() from None
    if not reader.eof and length <= wanted + _SURPLUS:
        raise VolumeRejected(
            "truncated-file", "The compressed data end early: copy or download the file again."
        )
    whole = b"".join(parts)
    if len(whole) > wanted + _SURPLUS:
        raise VolumeRejected(
            "size-mismatch",
            "Far more bytes are stored than the header's shape needs: the header is damaged. Export the file "
            "again.",
        )
    return whole[:wanted], max(0, len(whole) - wanted) + len(reader.unused_data)
