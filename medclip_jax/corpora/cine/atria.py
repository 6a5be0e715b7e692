"""What lies beyond the base of the ventricles: both atria and the root of the aorta."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Float32

from medclip_jax.corpora.cine.section import Section

_TOWARD = np.array([-0.28, -0.62, 1.0]) / np.linalg.norm([-0.28, -0.62, 1.0])
"""Where the aorta ascends to from the base."""

_ASCENDING_MM = 55.0
"""Length of it that is drawn; then it leaves the planes for its arch."""


def draw_beyond_base(
    image: Float32[np.ndarray, "T H W"],
    section: Section,
    s: Float[np.ndarray, " T"],
    signal: Mapping[str, float],
) -> None:
    """Draw over the background what the ventricles will be drawn over.

    The roofs of the atria stay where they are, so that the atria fill while the base moves to the apex.

    Args:
        image: changed.
        section: the plane.
        s: contraction at every frame.
        signal: tissue to its signal.
    """
    heart, patient, pixel = section.patient.heart, section.patient, section.plane.pixel
    base = (heart.length * heart.stretch(s)).astype(np.float32)[:, None, None]
    outer = heart.radius + heart.wall
    for (x, y), width in (
        ((0.5 * heart.radius, -3.0), patient.left_atrium),
        ((-outer - 14.0, -8.0), patient.right_atrium),
    ):
        top = np.float32(heart.length + 2.1 * width)
        half = 0.5 * (top - base) + np.float32(3)
        flat = ((section.x - x) / width) ** 2 + ((section.y - y) / (0.95 * width)) ** 2
        square = flat + ((section.z - (top - half)) / half) ** 2
        for size, tissue in ((1 + 2.5 / width, "muscle"), (1.0, "blood")):
            share = (np.float32(size**2) - square) * np.float32(0.5 * width / pixel)
            share += np.float32(0.5)
            np.clip(share, 0, 1, out=share)
            image += share * (np.float32(signal[tissue]) - image)
    _draw_aorta(image, section, base, signal)


def _draw_aorta(image, section, base, signal) -> None:
    """The root leaves the left ventricle before its septum and ascends to the right."""
    heart, pixel = section.patient.heart, np.float32(section.plane.pixel)
    x, y, z = section.x + 0.5 * heart.radius, section.y + 9.0, section.z - heart.length
    along = x * np.float32(_TOWARD[0]) + y * np.float32(_TOWARD[1]) + z * np.float32(_TOWARD[2])
    square = x * x + y * y + z * z - along * along
    bulge = 1 - 0.12 * np.clip((along - 20) / 8, 0, 1)
    radius = 0.5 * section.patient.root_mm * bulge
    shown = np.clip((section.z - base) / pixel + np.float32(0.5), 0, 1)
    shown = shown * np.clip((_ASCENDING_MM - along) / 6, 0, 1)
    for more, tissue in ((2.0, "muscle"), (0.0, "blood")):
        share = np.clip(((radius + more) ** 2 - square) / (2 * radius * pixel) + 0.5, 0, 1)
        image += shown * share * (np.float32(signal[tissue]) - image)
