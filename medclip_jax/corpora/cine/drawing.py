"""Pictures of the heart in any plane: nested outlines with soft edges over a still background.

Every outline is a squared distance R² from the long axis, and a pixel at the distance r lies inside by
(R² - r²) / |gradient|, which gives the share of the pixel that it covers. From the outside inwards, each
outline adds its share times the step of signal across it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from medclip_jax.corpora.cine.background import draw_background
from medclip_jax.corpora.cine.patient import Patient
from medclip_jax.corpora.cine.planes import Plane

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
    """

    def __init__(self, plane: Plane, patient: Patient):
        self.plane, self.patient = plane, patient
        heart = patient.heart
        x, y, z = plane.points()
        self.x, self.y = x, y
        self.z = z[:1, :1] if plane.kind == "sa" else z
        self.square = x * x + y * y
        self.theta = np.arctan2(y, x)
        self.u = self.z / np.float32(heart.length)
        self.rho = np.sqrt(self.square)
        steep = 0.0
        if plane.kind != "sa":
            widest = heart.tip + (1 - heart.tip) * 0.62
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
        edge = heart.cavity_profile(theta, u) + heart.wall_profile(theta, u)
        edge = np.sqrt(np.maximum(edge + heart.right_profile * level * self.crescent, 0))
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


def draw(
    section: Section, s: Float[np.ndarray, " T"], signal: Mapping[str, float], *, enhanced: bool = False
) -> Float32[np.ndarray, "T H W"]:
    """The signal of every pixel, without noise.

    Args:
        section: the plane.
        s: contraction at every frame, 0 to 1.
        signal: tissue to its signal; see `scanner`.
        enhanced: whether scar shows.
    """
    outlines = section.outlines(s)
    flat = section.plane.kind == "sa"
    image = np.broadcast_to(
        draw_background(section.plane, section.patient, signal), outlines.cavity.shape
    ).copy()
    above = None
    if not flat:
        above = _draw_beyond_base(image, section, s, signal)
    steps = (
        (outlines.fluid, "fluid"),
        (outlines.right_wall, "muscle"),
        (outlines.right, "blood"),
        (outlines.wall, "muscle"),
    )
    share = section.covered(outlines.fat)
    if above is not None:
        share *= above
    image += share * (signal["fat"] - image)
    before = signal["fat"]
    for outline, tissue in steps:
        share = section.covered(outline)
        share *= np.float32(signal[tissue] - before)
        if above is not None:
            share *= above
        image += share
        before = signal[tissue]
    cavity = section.covered(outlines.cavity)
    if enhanced and section.patient.scar is not None:
        _draw_scar(image, section, s, outlines, cavity, above, signal)
    papillaries = section.papillaries(s)
    if papillaries is not None:
        cavity *= np.subtract(1, papillaries, out=papillaries)
    cavity *= np.float32(signal["blood"] - signal["muscle"])
    if above is not None:
        cavity *= above
    image += cavity
    return image


def _draw_scar(image, section, s, outlines, cavity, above, signal) -> None:
    inner = np.maximum(outlines.cavity, 0)
    depth = (section.square - inner) / np.maximum(outlines.wall - inner, 1)
    scar = section.patient.scar.inside(section.theta, section.levels(s), depth)
    share = scar * (section.covered(outlines.wall) - cavity)
    if above is not None:
        share *= above
    image += share.astype(np.float32) * np.float32(signal["scar"] - signal["muscle"])


def _draw_beyond_base(image, section, s, signal) -> np.ndarray:
    """Atria and aorta; returns the share of every pixel that lies before the base."""
    heart, patient, pixel = section.patient.heart, section.patient, section.plane.pixel
    base = (heart.length * heart.stretch(s)).astype(np.float32)[:, None, None]
    above = np.clip((base - section.z) / np.float32(pixel) + np.float32(0.5), 0, 1)
    blood, muscle = signal["blood"], signal["muscle"]
    roof = heart.length + 2.1 * np.array([patient.left_atrium, patient.right_atrium])
    edge = heart.radius + heart.wall
    places = ((0.45 * heart.radius, 0.4 * heart.radius), (-edge - 14.0, 2.0))
    for top, (x, y), width in zip(roof, places, (patient.left_atrium, patient.right_atrium), strict=True):
        half = (0.5 * (top - base) + 3).astype(np.float32)
        flat = ((section.x - x) / width) ** 2 + ((section.y - y) / (0.95 * width)) ** 2
        square = flat + ((section.z - (top - half)) / half) ** 2
        for size, value in ((1 + 2.5 / width, muscle), (1.0, blood)):
            share = np.clip((size**2 - square) * np.float32(0.5 * width / pixel) + np.float32(0.5), 0, 1)
            image += share * (value - image)
    _draw_aorta(image, section, base, signal)
    return above


def _draw_aorta(image, section, base, signal) -> None:
    """The root leaves the left ventricle before its septum and ascends to the right."""
    heart, pixel = section.patient.heart, section.plane.pixel
    start = np.array([-0.5 * heart.radius, -9.0, heart.length])
    toward = np.array([-0.28, -0.62, 1.0])
    toward /= np.linalg.norm(toward)
    away = np.stack(np.broadcast_arrays(section.x - start[0], section.y - start[1], section.z - start[2]))
    along = np.tensordot(toward, away, 1)
    square = np.square(away).sum(axis=0) - along**2
    bulge = 1 - 0.12 * np.clip((along - 20) / 8, 0, 1)
    radius = 0.5 * section.patient.root_mm * bulge
    begin = np.clip((section.z - base) / np.float32(pixel) + np.float32(0.5), 0, 1)
    begin *= np.clip((70 - along) / 8, 0, 1).astype(np.float32)
    for more, tissue in ((2.0, "muscle"), (0.0, "blood")):
        share = np.clip(((radius + more) ** 2 - square) / (2 * radius * pixel) + 0.5, 0, 1).astype(np.float32)
        image += begin * share * (signal[tissue] - image)
