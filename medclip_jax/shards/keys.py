"""Keyed hashes: raw ids go in, numbers that mean nothing without the key come out."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from medclip_jax.shards.record import ShardError
from medclip_jax.shards.write import create_text


def keyed_hash(key: bytes, kind: str, value: str, size: int = 16) -> bytes:
    """BLAKE2b of `value` under `key`.

    Args:
        key: up to 64 bytes; who does not hold it can neither invert the hash nor test a guess.
        kind: "volume", "study", ...: equal values of different kinds hash differently.
        value: the raw id.
        size: bytes of the result.
    """
    return hashlib.blake2b(value.encode(), key=key, person=kind.encode(), digest_size=size).digest()


def hashed_text(key: bytes, kind: str, value: str) -> str:
    """Keyed hash as 32 hex digits."""
    return keyed_hash(key, kind, value).hex()


def hashed_integer(key: bytes, kind: str, value: str) -> int:
    """Keyed hash as a signed 64-bit integer."""
    return int.from_bytes(keyed_hash(key, kind, value, 8), "big", signed=True)


def default_key(out: str | os.PathLike) -> Path:
    """The key file beside a prepared folder: ``<out>.key``."""
    out = Path(out).absolute()
    return out.with_name(out.name + ".key")


def read_key(path: Path) -> bytes:
    """Read a key file, or make one that only its owner may read.

    Raises:
        ShardError: the file holds no key.
        OSError: it cannot be read or written.
    """
    made = secrets.token_bytes(32)
    if not path.exists() and create_text(path, made.hex() + "\n", 0o600):
        return made
    try:
        key = bytes.fromhex(path.read_text().strip())
    except ValueError:
        key = b""
    if not 16 <= len(key) <= 64:
        raise ShardError(
            f"'{path}' is not a key file: it must hold 32 to 128 hex digits. Give another --key, or "
            "remove it to have a new key made (all ids then change)"
        )
    return key
