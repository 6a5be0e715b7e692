"""Large arrays out of a pool, because fresh memory costs more to touch than a volume costs to decompress."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from jaxtyping import Shaped

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


class _Block:
    """Memory for the rows of one batch, given away row by row."""

    def __init__(self, count: int, shape: tuple[int, ...], dtype: np.dtype):
        self.array = _take((count, *shape), dtype)
        self.given = 0

    def next_row(self) -> np.ndarray:
        self.given += 1
        return self.array[self.given - 1]


class _Rows(threading.local):
    """What this thread reads for: how many rows make a batch, and the blocks of the one that it reads."""

    count = 0

    def __init__(self):
        self.blocks: dict[tuple[tuple[int, ...], np.dtype], _Block] = {}


_rows = _Rows()


def borrow(shape: tuple[int, ...], dtype: type | np.dtype) -> np.ndarray:
    """An uninitialized array whose memory is reused once it and all its views are gone.

    Safe to keep for any time and to hand to other threads: the memory only returns to the pool when
    Python's reference count says that nobody can see it. Within `rows` it is a row of a batch.

    Args:
        shape: of the array.
        dtype: of the array.
    """
    dtype = np.dtype(dtype)
    if _rows.count < 2 or int(np.prod(shape)) * dtype.itemsize < _POOLED_BYTES:
        return _take(shape, dtype)
    block = _rows.blocks.get((shape, dtype))
    if block is None or block.given == _rows.count:
        block = _rows.blocks[shape, dtype] = _Block(_rows.count, shape, dtype)
    return block.next_row()


def _take(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape)) * dtype.itemsize
    if size < _POOLED_BYTES:
        return np.empty(shape, dtype)
    try:
        buffer = _free[size].pop()
    except IndexError:
        buffer = np.empty(size, np.uint8)
    return np.asarray(_Lease(buffer)).view(dtype).reshape(shape)


@contextlib.contextmanager
def rows(count: int) -> Iterator[None]:
    """Lay what this thread borrows out for a batch: arrays of one shape and type become neighbors.

    A batch may be read in several such contexts, which `stack_samples` ends; it then finds that its rows
    already lie where they belong, and copies nothing.

    Args:
        count: of the rows of a batch.
    """
    _rows.count = count
    try:
        yield
    finally:
        _rows.count = 0


def stack_samples(samples: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """A batch of samples, which is the end of what this thread's `rows` are for.

    Args:
        samples: name to array, the same names, shapes and types in each.

    Returns:
        Name to array with the samples on its first axis.

    Raises:
        ValueError: shapes differ.
    """
    blocks, _rows.blocks = _rows.blocks, {}
    return {name: _stack([sample[name] for sample in samples], blocks) for name in samples[0]}


def _stack(
    arrays: Sequence[Shaped[np.ndarray, ...]], blocks: dict[tuple[tuple[int, ...], np.dtype], _Block]
) -> Shaped[np.ndarray, "B ..."]:
    if len(arrays) == 1:
        return arrays[0][np.newaxis]
    shape, dtype = arrays[0].shape, arrays[0].dtype
    block = blocks.get((shape, dtype))
    if block is not None and len(block.array) == len(arrays):
        pairs = zip(arrays, block.array, strict=True)
        if all(array.__array_interface__ == row.__array_interface__ for array, row in pairs):
            return block.array
    return np.stack(arrays, out=_take((len(arrays), *shape), dtype))
