"""What lies around the heart: chest wall, lung, liver, great vessels; nothing of it moves."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float32

from medclip_jax.corpora.cine.patient import Patient
from medclip_jax.corpora.cine.planes import Plane

Ellipse = tuple[float, float, float, float, float]
"""Middle, half axes and turn, mm and radians."""

_CHEST: Mapping[str, Ellipse] = {
    "sa": (34.0, 2.0, 128.0, 104.0, -0.5),
    "4ch": (8.0, 66.0, 150.0, 128.0, 0.15),
    "2ch": (62.0, 4.0, 128.0, 118.0, -0.25),
    "3ch": (62.0, 4.0, 128.0, 118.0, -0.25),
}
"""The inside of the chest wall, from the middle of the heart."""

_ORGANS: Mapping[str, tuple[tuple[str, Ellipse], ...]] = {
    "sa": (
        ("liver", (-48.0, 102.0, 92.0, 56.0, 0.12)),
        ("spleen", (78.0, 108.0, 46.0, 34.0, -0.3)),
        ("vessel", (84.0, 52.0, 1.0, 1.0, 0.0)),
    ),
    "4ch": (
        ("fat", (-10.0, 60.0, 52.0, 34.0, 0.1)),
        ("bone", (4.0, 132.0, 25.0, 22.0, 0.0)),
        ("vessel", (36.0, 104.0, 1.0, 1.0, 0.0)),
    ),
    "2ch": (
        ("liver", (-26.0, 104.0, 118.0, 56.0, 0.1)),
        ("vessel", (104.0, 42.0, 1.0, 1.0, 0.0)),
    ),
    "3ch": (
        ("liver", (-30.0, 108.0, 118.0, 56.0, 0.1)),
        ("vessel", (110.0, 40.0, 1.0, 1.0, 0.0)),
    ),
}
"""Organs behind and below; a vessel is as large as the patient's descending aorta."""


def draw_background(
    plane: Plane, patient: Patient, signal: Mapping[str, float]
) -> Float32[np.ndarray, "H W"]:
    """The signal of what does not move.

    Args:
        plane: of the picture.
        patient: whose chest it is.
        signal: tissue to its signal.
    """
    p, q = _in_plane(plane, patient)
    vessel = 0.36 * patient.root_mm
    image = np.full(p.shape, signal["lung"], np.float32)
    for tissue, (x, y, a, b, turn) in _ORGANS[plane.kind]:
        if tissue == "vessel":
            a = b = vessel + 1.5
            _mix(image, _inside(p, q, (x, y, a, b, turn), plane.pixel), signal["muscle"])
            a = b = vessel
            tissue = "blood"
        _mix(image, _inside(p, q, (x, y, a, b, turn), plane.pixel), signal[tissue])
    x, y, a, b, turn = _CHEST[plane.kind]
    for more, tissue in ((0.0, "skeletal"), (14.0, "fat"), (14.0 + patient.skin_fat_mm, "air")):
        outside = 1 - _inside(p, q, (x, y, a + more, b + more, turn), plane.pixel)
        _mix(image, outside, signal[tissue])
    return image


def _in_plane(plane: Plane, patient: Patient) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates to the right and down in the picture as it is before it is turned."""
    x, y, z = plane.points()
    along = z - np.float32(0.5 * patient.heart.length)
    if plane.kind == "sa":
        return x, y
    if plane.kind == "4ch":
        return x, along
    return along, (y if plane.kind == "2ch" else np.float32(0.62) * x + np.float32(0.78) * y)


def _inside(p: np.ndarray, q: np.ndarray, ellipse: Ellipse, pixel: float) -> np.ndarray:
    x, y, a, b, turn = map(np.float32, ellipse)
    cos, sin = np.cos(turn), np.sin(turn)
    p, q = p - x, q - y
    square = ((cos * p + sin * q) / a) ** 2 + ((cos * q - sin * p) / b) ** 2
    return np.clip((1 - square) * np.float32(0.5 * min(a, b) / (1.5 * pixel)) + np.float32(0.5), 0, 1)


def _mix(image: np.ndarray, share: np.ndarray, value: float) -> None:
    image += share * (np.float32(value) - image)
