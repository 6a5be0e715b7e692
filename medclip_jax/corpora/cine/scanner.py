"""What the scanner adds: contrast of the sequence, coil sensitivity, scale of the intensities, noise."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float32, Int16

CINE: Mapping[str, float] = {
    "blood": 1.0,
    "muscle": 0.36,
    "fat": 0.95,
    "fluid": 1.12,
    "lung": 0.07,
    "liver": 0.40,
    "spleen": 0.50,
    "skeletal": 0.30,
    "bone": 0.45,
    "air": 0.01,
    "scar": 0.36,
}
"""Steady-state free precession: bright blood."""

LATE: Mapping[str, float] = {
    "blood": 0.50,
    "muscle": 0.09,
    "fat": 0.70,
    "fluid": 0.12,
    "lung": 0.05,
    "liver": 0.30,
    "spleen": 0.38,
    "skeletal": 0.22,
    "bone": 0.30,
    "air": 0.01,
    "scar": 1.0,
}
"""Inversion recovery at the inversion time that nulls the muscle."""

AMYLOID: Mapping[str, float] = {**LATE, "blood": 0.28, "muscle": 0.22, "scar": 0.80}
"""Amyloid washes contrast out of the blood and lets no inversion time null the muscle."""


def draw_signal(base: Mapping[str, float], rng: np.random.Generator) -> dict[str, float]:
    """The tissues' signals in one study: those of the sequence, each up to a tenth more or less."""
    return {tissue: value * float(rng.uniform(0.9, 1.1)) for tissue, value in base.items()}


def scan(
    image: Float32[np.ndarray, "*frames H W"], scale: float, noise: float, rng: np.random.Generator
) -> Int16[np.ndarray, "*frames H W"]:
    """Signals to stored intensities.

    Args:
        image: signals; changed.
        scale: intensity of signal 1.
        noise: standard deviation of the noise in either channel, in signals.
        rng: source of coil and noise.
    """
    a, b, c, d, e = rng.uniform(-0.25, 0.25, 5)
    size = image.shape[-1]
    steps = np.linspace(-1, 1, size, dtype=np.float32)
    across, along = steps[None, :], steps[:, None]
    # The coil lies on the chest, which is up and to the left in most planes.
    field = (a - 0.15) * across + (b - 0.2) * along + c * across**2 + d * along**2 + e * across * along
    image *= np.exp(field).astype(np.float32)
    # Magnitude of a complex signal: Rician noise. The second channel's noise is the first one's of pixels
    # far away, which costs nothing and is as independent of the first at its own pixel.
    real = rng.standard_normal(image.shape, dtype=np.float32)
    real *= np.float32(noise)
    other = np.square(np.roll(real, real.size // 2 + size // 3))
    real += image
    np.square(real, out=real)
    real += other
    np.sqrt(real, out=real)
    real *= np.float32(scale)
    np.rint(real, out=real)
    return np.minimum(real, 32767, out=real).astype(np.int16)
