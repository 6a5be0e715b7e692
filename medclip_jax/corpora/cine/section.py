"""The heart cut by a plane: nested outlines, and the share of every pixel that each of them covers.

Every outline is a squared distance R² from the long axis, and a pixel at the distance r lies inside by
(R² - r²) / |gradient|, which gives the share of the pixel that it covers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from medclip_jax.corpora.cine.heart import ANGLES, WIDEST
from medclip_jax.corpora.cine.patient import Patient
from medclip_jax.corpora.cine.planes import Plane

Window = tuple[slice, slice]
"""Rows and columns of a picture."""

PAPILLARY = ((-0.75, 5.0), (1.75, 4.5))
"""Angle and radius of the two muscles."""

PAPILLARY_LEVELS = (0.3, 0.72)


@dataclass(frozen=True)
class Outlines:
    """Squared radii of the nested surfaces at every frame and pixel of one plane, mm²; each (T, H, W).

    Attributes:
        cavity: of the left ventricle.
        wall: its outer surface.
        right: of the right ventricle's cavity, equal to `wall` where there is none.
        right_wall: its outer surface.
        fluid: outer surface of the pericardial fluid.
        fat: of the fat around the heart.
    """

    cavity: np.ndarray
    wall: np.ndarray
    right: np.ndarray
    right_wall: np.ndarray
    fluid: np.ndarray
    fat: np.ndarray


class Section:
    """One plane through one heart: everything about it that does not move.

    Args:
        plane: of the picture.
        patient: whose heart it is.
        window: rows and columns to look at; all by default.
    """

    def __init__(self, plane: Plane, patient: Patient, window: Window = (slice(None), slice(None))):
        self.plane, self.patient = plane, patient
        heart = patient.heart
        x, y, z = (axis[window] for axis in plane.points())
        self.x, self.y = x, y
        self.z = z[:1, :1] if plane.kind == "sa" else z
        self.square = x * x + y * y
        self.theta = np.arctan2(y, x)
        self.u = self.z / np.float32(heart.length)
        self.rho = np.sqrt(self.square)
        steep = 0.0
        if plane.kind != "sa":
            widest = heart.tip + (1 - heart.tip) * WIDEST
            steep = 2 * (heart.radius + heart.wall) ** 2 * (widest - self.u) / (heart.length * widest**2)
        pixel = np.float32(plane.pixel)
        slope = np.sqrt(4 * np.maximum(self.square, 0.25 * pixel**2) + np.square(steep))
        self.sharpness = (1 / (1.2 * pixel * slope)).astype(np.float32)
        self._still_shapes()

    def _still_shapes(self) -> None:
        """Everything of the outlines that no frame changes."""
        heart, patient, theta, u = self.patient.heart, self.patient, self.theta, self.u
        self.round, self.trabeculae = heart.roundness(theta), heart.trabeculae(theta)
        self.outline = self.round + self.trabeculae
        self.thick = heart.thickness_profile(theta, u)
        self.crescent = heart.crescent(theta)
        # What surrounds the heart keeps its thickness: its areas are those at mean contraction.
        level = heart.right_level(u)
        edge = np.sqrt(np.maximum(heart.outer(theta, u, heart.beat.mean), 0))
        rim = np.minimum(4 * self.crescent, 1) * np.minimum(4 * level, 1)
        self.right_shell = _shell(edge, heart.right_wall * rim)
        # Fluid gathers behind and below, fat before and to the right. Neither lies beyond the apex.
        tip = np.clip(u / 0.04 + 1, 0, 1)
        fluid = patient.effusion_mm * (0.65 + 0.35 * np.cos(theta - 1.2)) * tip
        self.fluid_shell = _shell(edge, fluid)
        self.fat_shell = _shell(edge + fluid, patient.fat_mm * (0.65 + 0.35 * np.cos(theta + 2.2)) * tip)

    def covered(self, outline: np.ndarray) -> Float32[np.ndarray, "T H W"]:
        """Share of every pixel inside an outline."""
        out = outline - self.square
        out *= self.sharpness
        out += np.float32(0.5)
        return np.clip(out, 0, 1, out=out)

    def levels(self, s: Float[np.ndarray, " T"]) -> np.ndarray:
        """Level of every pixel in every frame: (T, 1, 1) across the long axis, else (T, H, W)."""
        stretch = self.patient.heart.stretch(s).astype(np.float32)
        return self.u / stretch[:, None, None]

    def outlines(self, s: Float[np.ndarray, " T"]) -> Outlines:
        """The surfaces at contractions `s`."""
        heart, theta = self.patient.heart, self.theta
        left = (heart.beat.mean - s).astype(np.float32)[:, None, None]
        stretch = heart.stretch(s).astype(np.float32)[:, None, None]
        u = self.levels(s)
        bullet = np.float32(heart.radius**2) * heart.bullet(u)
        widest = np.maximum(bullet, 0)
        cavity = heart.left_gain(theta, self.u) * left
        cavity += 1
        cavity *= self.outline
        cavity *= bullet
        wall = (2 * np.sqrt(widest)) * np.sqrt(self.round)
        wall += self.thick
        wall *= self.thick
        wall *= heart.cap(u)
        wall -= widest * self.trabeculae
        wall /= stretch
        wall += np.maximum(cavity, 0)
        full = heart.right_level(u) * (1 + np.float32(heart.right_gain) * left) * heart.right_profile
        right = self.crescent * full
        right += wall
        right_wall = right + self.right_shell
        fluid = right_wall + self.fluid_shell
        return Outlines(cavity, wall, right, right_wall, fluid, fluid + self.fat_shell)

    def before_base(self, s: Float[np.ndarray, " T"]) -> np.ndarray:
        """Share of every pixel on the ventricles' side of the base, of the shape of `levels`."""
        base = (self.patient.heart.length * self.patient.heart.stretch(s)).astype(np.float32)[:, None, None]
        return np.clip((base - self.z) / np.float32(self.plane.pixel) + np.float32(0.5), 0, 1)

    def papillaries(self, s: Float[np.ndarray, " T"]) -> Float32[np.ndarray, "T H W"] | None:
        """Share of every pixel inside one of the two papillary muscles; None where the plane misses them."""
        heart, size = self.patient.heart, 1.2 * self.plane.pixel
        u = self.levels(s)
        low, high = PAPILLARY_LEVELS
        taper = np.clip(np.minimum(u - low, high - u) / 0.08 + 0.5, 0, 1)
        if not taper.any():
            return None
        taper = taper / heart.stretch(s).astype(np.float32)[:, None, None]
        shares = []
        for angle, radius in PAPILLARY:
            gain = heart.left_gain(np.array(angle), np.array(0.5)) * (heart.beat.mean - s)
            place = heart.radius * np.sqrt(heart.roundness(np.array(angle)) * (1 + gain)) - 0.8 * radius
            place = place.astype(np.float32)[:, None, None]
            share = (-2 * place) * (self.rho * np.cos(self.theta - angle))
            share += self.square
            share += place**2 - radius**2 * taper
            share *= np.float32(-1 / (2 * radius * size))
            share += 0.5 * np.minimum(taper, 1)
            shares.append(np.clip(share, 0, 1, out=share))
        return np.maximum(*shares, out=shares[0])


def _shell(radius: np.ndarray, thickness: np.ndarray | float) -> np.ndarray:
    """Squared outer less squared inner radius of a layer."""
    return (2 * radius + thickness) * thickness


def heart_window(plane: Plane, patient: Patient) -> Window:
    """The part of a short-axis picture that the heart reaches at any time; everything of another."""
    if plane.kind != "sa":
        return slice(None), slice(None)
    heart = patient.heart
    levels = plane.center[2] / (heart.length * heart.stretch(np.linspace(0, 1, 5)))[:, None]
    reach = np.sqrt(np.maximum(heart.outer(ANGLES, levels, 0.0).max(axis=0), 0))
    reach += heart.right_wall + patient.effusion_mm + patient.fat_mm + 2 * plane.pixel
    rim = np.stack([reach * np.cos(ANGLES), reach * np.sin(ANGLES)], axis=1) - plane.center[:2]
    sides = []
    for axis in (plane.down, plane.right):
        places = rim @ axis[:2] / plane.pixel + 0.5 * (plane.size - 1)
        low, high = np.clip((np.floor(places.min()), np.ceil(places.max()) + 1), 0, plane.size)
        sides.append(slice(int(low), int(high)))
    return sides[0], sides[1]
