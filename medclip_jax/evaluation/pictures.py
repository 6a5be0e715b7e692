"""A study in one or two pictures: the middle slice of its volume, or those of its series of frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int16

from medclip_jax.objectives.base import DataSpec
from medclip_jax.shards.record import VOLUME

_MOST = 2
"""Pictures of a study of several series."""


@dataclass(frozen=True)
class View:
    """A picture as it is looked at: anterior or superior above, the patient's right or anterior left.

    Attributes:
        name: of the series that it is of.
        pixels: (H, W) HU, or the intensities of MR.
        spacing: mm between rows, and between columns.
    """

    name: str
    pixels: Int16[np.ndarray, "H W"]
    spacing: tuple[float, float]


def view_arrays(spec: DataSpec) -> tuple[str, ...]:
    """The arrays of a record that `views_of` reads.

    Args:
        spec: what the shards fix.
    """
    arrays = [f"{name}{end}" for name in spec.views for end in ("", "_frames", "_spacing")]
    if spec.shape:
        arrays += [VOLUME, *([f"{VOLUME}_spacing"] if None in spec.spacing else [])]
    return tuple(arrays)


def views_of(record: Mapping[str, Any], spec: DataSpec) -> tuple[View, ...]:
    """The middle axial slice of a volume; of series of frames the first picture of the middle slice.

    Of several series, the first that moves and the first that does not are shown.

    Args:
        record: with those of `view_arrays` that it has.
        spec: what the shards fix.
    """
    if spec.shape:
        spacing = spec.spacing if None not in spec.spacing else record[f"{VOLUME}_spacing"]
        middle = record[VOLUME][record[VOLUME].shape[0] // 2]
        return (View(VOLUME, np.array(middle[::-1, ::-1]), (float(spacing[1]), float(spacing[2]))),)
    names = [name for name in spec.views if len(record.get(name, ()))]
    counts = {name: [int(n) for n in record[f"{name}_frames"]] for name in names}
    kinds = {counts[name][1] > 1: name for name in reversed(names)}
    shown = list(dict.fromkeys([*kinds.values(), *names]))[:_MOST]
    views = []
    for name in sorted(shown, key=names.index):
        slices, phases = counts[name]
        rows, columns = (float(step) for step in record[f"{name}_spacing"][1:])
        views.append(View(name, np.array(record[name][(slices // 2) * phases]), (rows, columns)))
    return tuple(views)
