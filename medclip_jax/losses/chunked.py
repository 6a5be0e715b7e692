"""Rows of a batch against the full batch, some rows at a time, each device its own rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from medclip_jax.sharding import batch_axes, batch_shards

AUTOMATIC_PAIRS = 4096 * 4096
"""Pairs (rows of a device x batch) up to which `automatic` keeps a full matrix: 64 MiB in float32."""


def automatic(batch: int) -> int:
    """Rows at a time such that they make at most `AUTOMATIC_PAIRS` pairs on a device; 0 where all rows do."""
    rows = max(AUTOMATIC_PAIRS // batch, 1)
    return 0 if _local(batch) <= rows else rows


def map_rows(function: Callable[[Any, Any], Any], rows: Any, columns: Any, chunk_rows: int = 0) -> Any:
    """``function(rows, columns)``, row by row independent, without holding all rows' work at once.

    Under a mesh (see `medclip_jax.sharding`) each device takes its part of the rows and meets all columns,
    which are gathered once. With `chunk_rows` it takes that many rows at a time and computes them again in
    the backward pass, so that what is kept for it grows linearly with the batch.

    Args:
        function: from arrays with some rows on the first axis, and the columns, to arrays with these rows
            on the first axis. It must stay finite on rows of zeros, and close over no traced value.
        rows: tree of arrays (B, ...).
        columns: tree of arrays that every row needs whole.
        chunk_rows: rows of one device at a time; 0 = all at once, and kept for the backward pass.

    Returns:
        What `function` returns for all B rows.

    Raises:
        ValueError: `chunk_rows` is negative.
    """
    if chunk_rows < 0:
        raise ValueError(f"chunk_rows={chunk_rows}: give the rows at a time, or 0")
    batch = jax.tree.leaves(rows)[0].shape[0]
    axes = batch_axes()
    if _local(batch) == batch:
        return _map_local(function, rows, columns, chunk_rows)
    return jax.shard_map(
        lambda rows, columns: _map_local(function, rows, columns, chunk_rows),
        in_specs=(PartitionSpec(axes), PartitionSpec()),
        out_specs=PartitionSpec(axes),
        axis_names=set(axes),
        # Else the columns' gradient would be summed over the devices once a chunk instead of once.
        check_vma=False,
    )(rows, columns)


def _local(batch: int) -> int:
    """Rows that one device of the mesh in force takes."""
    return batch if batch % batch_shards() else batch // batch_shards()


def _map_local(function, rows, columns, chunk_rows):
    batch = jax.tree.leaves(rows)[0].shape[0]
    if not chunk_rows or chunk_rows >= batch:
        return function(rows, columns)
    chunks = -(-batch // chunk_rows)

    def fold(x):
        filled = jnp.pad(x, [(0, chunks * chunk_rows - batch)] + [(0, 0)] * (x.ndim - 1))
        return filled.reshape(chunks, chunk_rows, *x.shape[1:])

    once = jax.checkpoint(lambda part: function(part, columns), prevent_cse=False)
    out = jax.lax.map(once, jax.tree.map(fold, rows))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:batch], out)
