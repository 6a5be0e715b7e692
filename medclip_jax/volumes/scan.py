"""What a file reader hands over: voxels as stored, before orientation, Hounsfield units and checks."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Shaped


@dataclass(frozen=True)
class Scan:
    """The content of one file or series, in the file's own orientation.

    Attributes:
        voxels: values with the header's own rescale applied, axes in the order the affine expects;
            of a moving series a last axis of phases.
        affine: maps the homogeneous array index ``(i, j, k, 1)`` to RAS+ world mm.
        placed: False when the header says nothing about orientation and spacing.
        modality: what the header says, or None when the format does not hold it.
        provenance: see `Volume`. No patient data.
        notes: see `Volume`.
    """

    voxels: Shaped[np.ndarray, "I J K *phases"]
    affine: Float[np.ndarray, "4 4"]
    placed: bool = True
    modality: str | None = None
    provenance: dict[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
