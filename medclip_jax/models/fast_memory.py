"""How much of a TPU's fast memory (VMEM) the kernels of attention may take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

MOST_KEYS = 22 * 128
"""Keys of 16 bits that a kernel holds in the 16 MiB that it has. Many: the queries' gradients are summed over
such blocks."""

ROOMY = ("TPU v5 lite", "TPU v5e", "TPU v5", "TPU v5p", "TPU v6 lite", "TPU v6e")
"""Kinds of devices with 64 MiB of fast memory or more."""

ROOMY_OPTIONS, ROOMY_KEYS = {"xla_tpu_scoped_vmem_limit_kib": 32 * 1024}, 44 * 128
"""Options of a program in which kernels have 32 MiB, and the keys of 16 bits that these hold: as many
compile for v5e, v5p and v6e."""

_most_keys = ContextVar("most_keys", default=MOST_KEYS)


def program_options(device_kind: str) -> Mapping[str, int]:
    """Options to compile a program with whose attention is traced inside `held_by`; {} for none.

    Args:
        device_kind: of `jax.Device`.
    """
    return ROOMY_OPTIONS if device_kind in ROOMY else {}


@contextmanager
def held_by(options: Mapping[str, int]) -> Iterator[None]:
    """Inside, kernels hold as many keys as a program that is compiled with these options has memory for."""
    token = _most_keys.set(ROOMY_KEYS if options else MOST_KEYS)
    try:
        yield
    finally:
        _most_keys.reset(token)


def most_keys(itemsize: int) -> int:
    """Keys that a kernel may hold in the program that is being traced.

    Args:
        itemsize: bytes of one feature of a key.
    """
    return _most_keys.get() * 2 // max(itemsize, 2)
