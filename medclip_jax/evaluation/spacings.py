"""How far apart the voxels of a shown volume lie: the set's spacing, or a resized scan's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from medclip_jax.evaluation.degradation import OpenRecords
from medclip_jax.objectives.base import DataSpec
from medclip_jax.shards.record import VOLUME

Spacing = tuple[float, float, float]


def spacing_of_records(spec: DataSpec, open_records: OpenRecords) -> Callable[[int], Spacing]:
    """A function from the index of a record to mm along depth, height, width of its volume.

    Args:
        spec: what the shards fix; its spacing counts where it is that of all volumes.
        open_records: opens the split's records again, for the spacing that resized scans have of their own.
    """
    if None not in spec.spacing:
        return lambda index: tuple(spec.spacing)
    name = f"{VOLUME}_spacing"
    opened = cache(lambda: open_records((name,))[0])  # only where a volume is shown
    return lambda index: tuple(float(step) for step in opened()[index][name])
