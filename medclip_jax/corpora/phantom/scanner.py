"""What the scanner adds: reconstruction kernel, noise, drift, field of view, storage orientation."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32, Int16

from medclip_jax.corpora.phantom.canvas import Canvas

SHARP_KERNEL = 0.6
"""Sharpness from which a reconstruction's kernel sharpens the image; below, it smooths."""


def blur(image: Float32[np.ndarray, "D H W"], side: float, axes=(0, 1, 2)) -> Float32[np.ndarray, "D H W"]:
    """Convolve with (side, 1 - 2 side, side) along `axes`; borders keep their value."""
    for axis in axes:
        a = np.moveaxis(image, axis, 0)
        out = a * np.float32(1 - 2 * side)
        out[1:] += np.float32(side) * a[:-1]
        out[:-1] += np.float32(side) * a[1:]
        out[0] += np.float32(side) * a[0]
        out[-1] += np.float32(side) * a[-1]
        image = np.moveaxis(out, 0, axis)
    return image


def add_scanner(
    canvas: Canvas, sigma: float, sharpness: float, thickness: float, rng: np.random.Generator
) -> None:
    """Blur or sharpen the image, then add noise correlated by the same kernel, stronger in thick bodies.

    Args:
        canvas: changed in place.
        sigma: noise standard deviation (HU) at the center of a slim body.
        sharpness: 0 smooth ... 1 sharp kernel.
        thickness: mean body thickness, mm.
        rng: source of the noise.
    """
    hu = canvas.hu
    if sharpness < SHARP_KERNEL:
        hu = blur(hu, 0.16 * (SHARP_KERNEL - sharpness))
    else:
        hu = hu + (sharpness - 0.5) * (hu - blur(hu, 0.2, (1, 2)))
    noise = rng.standard_normal(canvas.shape, dtype=np.float32)
    side = 0.25 * (1 - 0.8 * sharpness)
    noise = blur(noise, side, (1, 2))
    noise = blur(noise, 0.1, (0,))
    noise /= np.float32(noise[::3, ::3, ::3].std())
    radial = (canvas.x / 190) ** 2 + (canvas.y / 140) ** 2
    swell = np.clip(1.15 - 0.6 * radial, 0.4, None) * np.clip(thickness / 250, 0.75, 1.8) ** 1.5
    shoulder = 1 + 0.8 * np.clip((canvas.z - 45) / 40, 0, 1)
    canvas.hu = hu + np.float32(sigma) * (swell * shoulder).astype(np.float32) * noise


def store(
    canvas: Canvas, voxels: np.ndarray, orientation: str, shift: Float[np.ndarray, 3]
) -> tuple[np.ndarray, Float[np.ndarray, "4 4"]]:
    """Turn a (D, H, W) array into storage order (i, j, k) of `orientation`, with its NIfTI affine.

    Args:
        canvas: the grid of `voxels`.
        voxels: (D, H, W).
        orientation: three letters of RLAPSI: where i, j, k grow to.
        shift: world position (RAS mm) of the patient coordinates' origin.

    Returns:
        The array indexed (i, j, k), contiguous as nibabel writes it, and the (4, 4) affine.
    """
    spacing = dict(zip("SAR", canvas.spacing, strict=True))
    start = dict(zip("SAR", canvas.start, strict=True))
    count = dict(zip("SAR", canvas.shape, strict=True))
    opposite = {"L": "R", "P": "A", "I": "S"}
    affine = np.eye(4)
    affine[:3, 3] = np.array([start["R"], start["A"], start["S"]]) + shift
    axes, flips = [], []
    for column, letter in enumerate(orientation):
        axis = opposite.get(letter, letter)
        row = "RAS".index(axis)
        axes.append("SAR".index(axis))
        affine[:3, column] = 0
        affine[row, column] = spacing[axis]
        if letter in opposite:
            flips.append(column)
            affine[row, column] = -spacing[axis]
            affine[row, 3] += spacing[axis] * (count[axis] - 1)
    return np.flip(voxels.transpose(axes), flips), affine


def to_int16(hu: Float32[np.ndarray, "D H W"]) -> Int16[np.ndarray, "D H W"]:
    """Round and clip to what 12-bit CT stores."""
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
