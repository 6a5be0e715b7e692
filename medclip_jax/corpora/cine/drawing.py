"""Pictures of the heart in any plane: nested outlines with soft edges over a still background."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Float32

from medclip_jax.corpora.cine.atria import draw_beyond_base
from medclip_jax.corpora.cine.patient import Patient
from medclip_jax.corpora.cine.planes import Plane
from medclip_jax.corpora.cine.section import Outlines, Section, heart_window


def draw(
    background: Float32[np.ndarray, "H W"],
    plane: Plane,
    patient: Patient,
    s: Float[np.ndarray, " T"],
    signal: Mapping[str, float],
    *,
    enhanced: bool = False,
) -> Float32[np.ndarray, "T H W"]:
    """The signal of every pixel, without noise.

    Args:
        background: the signal of what does not move, see `background.draw_background`.
        plane: of the pictures.
        patient: whose heart it is.
        s: contraction at every frame, 0 to 1.
        signal: tissue to its signal; see `scanner`.
        enhanced: whether scar shows.
    """
    pictures = np.repeat(background[None], len(s), axis=0)
    window = heart_window(plane, patient)
    section = Section(plane, patient, window)
    image = pictures[:, *window]
    if plane.kind != "sa":
        draw_beyond_base(image, section, s, signal)
    outlines, before_base = section.outlines(s), section.before_base(s)
    share = section.covered(outlines.fat)
    share *= before_base
    image += share * (np.float32(signal["fat"]) - image)
    # From the outside inwards, each outline adds its share times the step of signal across it.
    tissue = "fat"
    for outline, inner in (
        (outlines.fluid, "fluid"),
        (outlines.right_wall, "muscle"),
        (outlines.right, "blood"),
        (outlines.wall, "muscle"),
    ):
        share = section.covered(outline)
        share *= np.float32(signal[inner] - signal[tissue])
        share *= before_base
        image += share
        tissue = inner
    cavity = section.covered(outlines.cavity)
    if enhanced and patient.scar is not None:
        image += (
            before_base * _scar(section, s, outlines, cavity) * np.float32(signal["scar"] - signal["muscle"])
        )
    papillaries = section.papillaries(s)
    if papillaries is not None:
        cavity *= np.subtract(1, papillaries, out=papillaries)
    cavity *= np.float32(signal["blood"] - signal["muscle"])
    cavity *= before_base
    image += cavity
    return pictures


def _scar(
    section: Section, s: np.ndarray, outlines: Outlines, cavity: Float32[np.ndarray, "T H W"]
) -> Float32[np.ndarray, "T H W"]:
    """Share of every pixel that is scar."""
    inner = np.maximum(outlines.cavity, 0)
    depth = (section.square - inner) / np.maximum(outlines.wall - inner, 1)
    scar = section.patient.scar.inside(section.theta, section.levels(s), depth)
    return (scar * (section.covered(outlines.wall) - cavity)).astype(np.float32)
