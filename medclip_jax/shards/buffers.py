"""Large arrays out of a pool, because fresh memory costs more to touch than a volume costs to decompress."""

from __future__ import annotations

from collections import defaultdict, deque
from functools import partial

import numpy as np

_POOLED_BYTES = 1 << 18
"""Below this, malloc reuses memory by itself."""

_KEPT = 16
"""Free buffers kept for each size; more are given back to the system."""

_free: dict[int, deque[np.ndarray]] = defaultdict(partial(deque, maxlen=_KEPT))
"""Size in bytes to free buffers. Without a lock: the end of a lease may come at any moment, also while this
thread is in `borrow`, and each use of a deque is atomic."""


class _Lease:
    """Owner of a buffer while any array or view of it lives; its end puts the buffer back."""

    def __init__(self, buffer: np.ndarray):
        self._buffer = buffer
        self.__array_interface__ = buffer.__array_interface__

    def __del__(self, free=_free):  # bound: the last arrays outlive the module's names
        free[self._buffer.nbytes].append(self._buffer)


def borrow(shape: tuple[int, ...], dtype: type | np.dtype) -> np.ndarray:
    """An uninitialized array whose memory is reused once it and all its views are gone.

    Safe to keep for any time and to hand to other threads: the memory only returns to the pool when
    Python's reference count says that nobody can see it.

    Args:
        shape: of the array.
        dtype: of the array.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size < _POOLED_BYTES:
        return np.empty(shape, dtype)
    try:
        buffer = _free[size].pop()
    except IndexError:
        buffer = np.empty(size, np.uint8)
    return np.asarray(_Lease(buffer)).view(dtype).reshape(shape)
