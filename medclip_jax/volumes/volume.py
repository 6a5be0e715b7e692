"""The one form in which a scan travels through the host side of the library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int16

AIR_HU = -1024
"""Value written where a volume has no data: outside a crop, outside the field of view."""


@dataclass(frozen=True)
class Volume:
    """A 3D scan in canonical orientation.

    Array order is ``(depth, height, width)`` everywhere in the library, with indices growing towards
    the patient's **S**uperior, **A**nterior and **R**ight: the RAS+ axes, slowest first. So
    ``voxels[0]`` is the lowest axial slice, and ``voxels[:, 0]`` the most posterior coronal one.

    Attributes:
        voxels: (D, H, W) Hounsfield units for CT, scanner units for MR.
        spacing: distance in mm between voxel centers along depth, height, width.
        affine: (4, 4) maps homogeneous index ``(d, h, w, 1)`` to RAS+ world mm. NOTE the index order.
        provenance: how the file was read (format, original orientation, spacing, rescale). Never holds
            names, ids, dates or institutions.
        notes: short codes of what was corrected or is doubtful; empty when the file was clean. They become
            the ``accepted-with-note`` entries of the manifest.
    """

    voxels: Int16[np.ndarray, "D H W"]
    spacing: tuple[float, float, float]
    affine: Float[np.ndarray, "4 4"]
    provenance: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class VolumeRejected(ValueError):
    """A file that must not enter training; ``code`` is stable, the message says what to do.

    Args:
        code: short kebab-case reason, e.g. ``"truncated-file"``; counted in the manifest.
        message: what is wrong and what the user can do. Must hold no patient data.
    """

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code
