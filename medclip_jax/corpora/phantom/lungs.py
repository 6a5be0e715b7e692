"""Lungs: pleural surface, five lobes, parenchyma, vessels and airways."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Float32, UInt8

from medclip_jax.corpora.phantom.canvas import Canvas, spline, tube_parcels
from medclip_jax.corpora.phantom.organs import ORGANS
from medclip_jax.corpora.phantom.patient import Condition, Patient

LOBES = tuple(
    ORGANS[f"lung_{name}"]
    for name in (
        "upper_lobe_left",
        "lower_lobe_left",
        "upper_lobe_right",
        "middle_lobe_right",
        "lower_lobe_right",
    )
)
"""Label values of the five lobes; they are consecutive."""

VESSEL_CANDIDATES = 2600
"""Random points, of which those in the lungs (about a third) become terminal vessel branches."""


@dataclass
class Chest:
    """Surfaces that later structures need, on the full grid.

    Attributes:
        cavity: signed distance (mm) to the inside of the rib cage.
        lung: signed distance to the pleural cavities, above the diaphragm and beside the mediastinum.
        lobes: organ value of the lobe that a voxel would belong to.
        fissure: distance to the nearest fissure.
        noise: a smooth field for uneven surfaces.
        bronchi: parcels of air in the bronchi: points, mm³.
    """

    cavity: Float32[np.ndarray, "D H W"]
    lung: Float32[np.ndarray, "D H W"]
    lobes: UInt8[np.ndarray, "D H W"]
    fissure: Float32[np.ndarray, "D H W"]
    noise: Float32[np.ndarray, "D H W"]
    bronchi: tuple[np.ndarray, np.ndarray] = field(default_factory=lambda: (np.zeros((0, 3)), np.zeros(0)))


def shape_lungs(
    canvas: Canvas, patient: Patient, cavity: Float32[np.ndarray, "D H W"], rng: np.random.Generator
) -> Chest:
    """Find the pleural cavities, fissures and lobes."""
    x, y, z = canvas.x, canvas.y, canvas.z
    right = x > 0
    along = (y - patient.center_y) / patient.half_depth  # -1 at the back, 1 in front
    noise = canvas.smooth_noise(rng, 30.0)
    # The mediastinum is narrow behind the sternum, wide at the hila, and as wide as the spine at the back.
    anterior = rng.uniform(3, 15)
    half = anterior + (35 - anterior) * np.exp(-(((along + 0.1) / 0.42) ** 2))
    half += (26 - 0.7 * anterior) / (1 + np.exp((along + 0.55) / 0.08))
    half += np.where(right, -2, 4)
    taper = -7 * np.clip((z - 15) / 60, 0, 1) - 8 * np.clip((-z - 25) / 60, 0, 1)
    beside = (half.astype(np.float32) + taper.astype(np.float32)) - np.abs(x) + 2.5 * noise
    dome = np.where(right, patient.dome_right, patient.dome_right + patient.dome_left)
    outward = (np.abs(x) - 0.48 * patient.half_width) / (0.62 * patient.half_width)
    front = (y - patient.center_y - 12) / (0.98 * patient.half_depth)
    fall = outward**2 * np.where(outward > 0, 1, 0.25) + front**2 * np.where(front > 0, 0.6, 1)
    above = (dome - patient.dome_drop * fall).astype(np.float32) - z
    lung = np.maximum(np.maximum(cavity + 2, beside), 0.85 * above + 1.5 * noise)
    slope, height = rng.uniform(0.85, 1.2), rng.uniform(-38, -12)
    bow = height - slope * (y - patient.center_y) + 0.0008 * x * x
    oblique = z - bow.astype(np.float32) + 3 * noise
    horizontal = z - (rng.uniform(-28, -8) - 0.12 * np.abs(x)).astype(np.float32) + 3 * noise
    upper_left, lower_left, upper, middle, lower = (np.uint8(value) for value in LOBES)
    front_right = np.where(horizontal > 0, upper, middle)
    lobes = np.where(
        oblique > 0, np.where(right, front_right, upper_left), np.where(right, lower, lower_left)
    )
    fissure = np.abs(oblique) * np.float32(1 / np.hypot(1, slope))
    fissure = np.where(right & (oblique > 0), np.minimum(fissure, np.abs(horizontal)), fissure)
    return Chest(cavity, lung, lobes, fissure, noise)


def paint_lungs(
    canvas: Canvas, patient: Patient, condition: Condition, chest: Chest, rng: np.random.Generator
) -> None:
    """Parenchyma, denser where it hangs, with faint fissures and a little texture; labels the lobes."""
    down = np.clip(-(canvas.y - patient.center_y) / patient.half_depth, -1, 1)
    hu = np.float32(condition.lung_hu) + np.float32(rng.uniform(15, 100)) * down.astype(np.float32)
    # A fissure is about 1 mm thick: on thicker voxels it fills only a share of them.
    line = np.clip(1 - chest.fissure / max(1.0, 0.6 * canvas.softness), 0, 1)
    line *= np.float32(min(1.0, 0.8 / canvas.softness) * rng.uniform(150, 350))
    hu = hu + np.float32(rng.uniform(8, 22)) * chest.noise + line
    fraction = canvas.cover(chest.lung)
    canvas.blend(canvas.whole, fraction, hu)
    inside = fraction > 0.5
    canvas.organs[inside] = chest.lobes[inside]


def grow_tree(
    root: Float[np.ndarray, 3], targets: Float[np.ndarray, "N 3"], terminal: float
) -> tuple[Float[np.ndarray, "N 3"], Float[np.ndarray, "N 3"], Float[np.ndarray, N]]:
    """A vessel tree that reaches every target, grown from near to far.

    Each target joins the node that costs least: the gap plus a share of the way back to the root. Radii
    follow Murray's law with exponent 2.7: the parent's radius to that power is the sum of its children's.

    Args:
        root: (x, y, z) where the tree enters the lung, mm.
        targets: ends of the terminal branches.
        terminal: their radius, mm.

    Returns:
        Starts, ends and radii of the branches.
    """
    order = np.argsort(np.linalg.norm(targets - root, axis=1))
    nodes = np.concatenate([root[None], targets[order]])
    path = np.zeros(len(nodes))
    parents = np.zeros(len(nodes), int)
    squares = (nodes**2).sum(1)
    gap = np.sqrt(np.maximum(squares[:, None] + squares - 2 * nodes @ nodes.T, 0))
    for n in range(1, len(nodes)):
        parents[n] = best = int(np.argmin(gap[n, :n] + 0.35 * path[:n]))
        path[n] = path[best] + gap[n, best]
    load = np.ones(len(nodes))
    for n in range(len(nodes) - 1, 0, -1):
        load[parents[n]] += load[n]
    return nodes[parents[1:]], nodes[1:], terminal * load[1:] ** (1 / 2.7)


def paint_vessels(canvas: Canvas, condition: Condition, chest: Chest, rng: np.random.Generator) -> None:
    """Pulmonary arteries and veins inside the lungs; the bronchi beside the arteries are kept for later."""
    targets, _ = canvas.candidates(rng, VESSEL_CANDIDATES)
    artery = np.sin(1e3 * targets[:, 0]) > 0  # a coin that stays with its point
    inside = canvas.at(chest.lung, targets) < -3
    targets, artery = targets[inside], artery[inside]
    wide = float(np.sqrt(condition.trunk_radius / 12.5))
    size = rng.uniform(0.62, 0.78)
    step = 0.75 * canvas.softness
    vessels, bronchi = [], []
    for sign in (1, -1):
        own = targets[:, 0] * sign > 0
        hilum = np.array([sign * 34.0, -13, -20])
        starts, ends, radii = grow_tree(hilum + np.array([0, 0, 8]), targets[own & artery], size * wide)
        vessels.append(tube_parcels(starts, ends, radii, step))
        large = radii > 1.5
        shift = np.array([0.3 * sign, -1.0, -0.6]) * (1.8 * radii[large, None])
        bronchi.append((starts[large] + shift, ends[large] + shift, radii[large]))
        vessels.append(
            tube_parcels(
                *grow_tree(hilum + np.array([sign * -6, 4, -14]), targets[own & ~artery], size), step
            )
        )
    points, mm3 = (np.concatenate(part) for part in zip(*vessels, strict=True))
    blood = np.float32(0.5 * (condition.blood_left + condition.blood_right))
    _blend_in_lung(canvas, chest, points, mm3, blood)
    starts, ends, radii = (np.concatenate(part) for part in zip(*bronchi, strict=True))
    walls = tube_parcels(starts, ends, 0.85 * radii + 0.4, step)
    _blend_in_lung(canvas, chest, *walls, np.float32(-350))
    chest.bronchi = tube_parcels(starts, ends, 0.85 * radii, min(step, 2.0))


def _blend_in_lung(canvas: Canvas, chest: Chest, points: np.ndarray, mm3: np.ndarray, hu: np.float32) -> None:
    """Blend parcels in where there is lung; never makes a voxel less dense."""
    found = canvas.occupancy(points, mm3)
    if found is None:
        return
    box, (fraction,) = found
    fraction = np.minimum(fraction, canvas.cover(chest.lung[box.window] - 3))
    canvas.blend(box, fraction, np.maximum(hu, canvas.hu[box.window]))


def paint_airways(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> None:
    """Trachea, main bronchi, and the air of the bronchi inside the lungs."""
    found = canvas.occupancy(*chest.bronchi)
    if found is not None:
        box, (fraction,) = found
        organs = canvas.organs[box.window]
        in_lobes = (organs >= min(LOBES)) & (organs <= max(LOBES))
        canvas.blend(box, np.minimum(fraction, 1) * in_lobes, np.float32(-985))
    lean = rng.uniform(-4, 6)
    trachea = spline(np.array([[lean, -2, 150], [lean, -6, 80], [2, -12, 40], [0, -14, 3]]), 10)
    radius = rng.uniform(7.0, 10)
    canvas.tube(trachea, radius, -998, ORGANS["trachea"], wall=(1.6, 30))
    right = spline(np.array([[0, -14, 3], [14, -15, -12], [30, -16, -26], [40, -20, -44]]), 7)
    left = spline(np.array([[0, -14, 3], [-18, -15, -10], [-38, -18, -20], [-50, -25, -38]]), 7)
    taper = np.linspace(1, 0.62, 7)
    for points, share in ((right, 0.82), (left, 0.7)):
        canvas.tube(points, radius * share * taper, -992, None, wall=(1.5, 20))
