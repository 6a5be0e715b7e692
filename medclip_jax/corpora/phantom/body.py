"""Chest wall, skeleton, upper abdomen, lungs with lobes, airways and vessels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from medclip_jax.corpora.phantom.canvas import Canvas, spline, tube_parcels
from medclip_jax.corpora.phantom.organs import ORGANS
from medclip_jax.corpora.phantom.patient import Condition, Patient


@dataclass
class Chest:
    """Surfaces of the chest that later structures need, on the whole grid.

    Attributes:
        cavity: signed distance to the inside of the rib cage.
        lung: signed distance to the pleural cavities (both), after diaphragm and mediastinum.
        lobes: organ value of the lobe each voxel would belong to.
        noise: a smooth field, for uneven surfaces.
    """

    cavity: Float32[np.ndarray, "D H W"]
    lung: Float32[np.ndarray, "D H W"]
    lobes: np.ndarray
    noise: Float32[np.ndarray, "D H W"]
    hilum: dict[str, Float[np.ndarray, 3]]


def spine_y(patient: Patient, z: np.ndarray) -> np.ndarray:
    """Anterior coordinate of the vertebral bodies' centers at height z."""
    back = patient.center_y - patient.half_depth
    return back + 22 + 16 * patient.kyphosis * ((np.asarray(z) + 50) / 120) ** 2


def _profile(z: np.ndarray, patient: Patient) -> np.ndarray:
    """Width of the rib cage at height z as a share of its greatest."""
    t = np.clip((patient.apex + 12 - z) / (patient.apex + 95), 0, 1)
    return (0.28 + 0.72 * np.sin(0.5 * np.pi * t) ** 0.85).astype(np.float32)


def paint_wall(canvas: Canvas, patient: Patient, condition: Condition, rng: np.random.Generator) -> Chest:
    """Paint skin, fat, muscle, ribs, spine, sternum and abdomen; find the lungs' surfaces."""
    x, y, z = canvas.x, canvas.y - np.float32(patient.center_y), canvas.z
    power = np.float32(rng.uniform(1.1, 1.3))
    width = _profile(z, patient) * np.float32(patient.half_width)
    depth = (0.45 + 0.55 * _profile(z, patient)) * np.float32(patient.half_depth)
    # A superellipse through squares of powers: only slice maps are raised to powers.
    u, v = np.abs(x) ** power, np.abs(y) ** power
    r = np.sqrt((u / width**power) ** 2 + (v / depth**power) ** 2)
    radial = np.sqrt(x * x + y * y) / power
    noise = canvas.smooth_noise(rng, 45.0)
    cavity = radial * (1 - 1 / np.maximum(r, 1e-3)) + noise * np.float32(1.2)
    lateral = (x * x) / (x * x + y * y + 1)
    behind = np.clip(-y / patient.half_depth, 0, 1)
    shoulder = np.clip((z - 25) / 60, 0, 1)
    muscle = (patient.muscle + 10 * behind * (1 - lateral)) + shoulder * (28 * lateral + 10)
    fat = patient.fat * (1 - 0.55 * behind) + 2
    skin = muscle + fat.astype(np.float32)
    tissue = np.float32(50 + condition.tissue_gain)
    whole = canvas.whole
    canvas.paint(whole, cavity - skin - 2, 10)
    canvas.paint(whole, cavity - skin, patient.fat_hu)
    if patient.female:
        for side in (-1, 1):
            center = np.array(
                [side * 0.55 * patient.half_width, patient.center_y + patient.half_depth + 12, -45.0]
            )
            size = np.array([55.0, 18 + 0.5 * patient.breast, 48.0])
            canvas.ellipsoid(center, size, patient.fat_hu)
            canvas.ellipsoid(center, size * 0.55, 15 + rng.uniform(-60, 10))
    streaks = noise * 12 if patient.muscle < 14 else 0.0
    canvas.paint(whole, cavity - muscle, tissue + streaks)
    canvas.paint(whole, cavity, patient.fat_hu + 8)
    ribs(canvas, patient, cavity, muscle, rng)
    lung, lobes = _lung_surface(canvas, patient, cavity, noise, rng)
    _abdomen(canvas, patient, condition, cavity, rng)
    _spine(canvas, patient, rng)
    _table(canvas, patient, rng)
    hilum = {"right": np.array([30.0, -12.0, -22.0]), "left": np.array([-32.0, -14.0, -18.0])}
    return Chest(cavity, lung, lobes, noise, hilum)


def ribs(canvas, patient, cavity, muscle, rng) -> None:
    """Ribs as oblique bands in the chest wall, cartilage in front, sternum."""
    x, y, z = canvas.x, canvas.y, canvas.z
    depth_in_wall = np.abs(cavity - 5.0)
    near = np.flatnonzero(depth_in_wall < 4.5 + canvas.softness)
    d, hw = np.divmod(near, x.size)
    xs, ys, zs = x.ravel()[hw], y.ravel()[hw] - np.float32(patient.center_y), z.ravel()[d]
    angle = np.arctan2(np.abs(xs) / patient.half_width, ys / patient.half_depth)  # 0 in front, pi at the back
    slope = zs - 28 * (angle - 1.5) + 14 * np.where(angle < 0.9, 0.9 - angle, 0) * 2.0
    pitch = np.float32(rng.uniform(21, 26))
    phase = slope / pitch + np.float32(rng.random())
    off = np.abs(phase - np.rint(phase)) * pitch
    distance = np.maximum(depth_in_wall.ravel()[near] - 3.6, off - np.float32(5.5))
    cartilage = angle < np.float32(0.42)
    bone = np.where(distance < -2.2, patient.bone_hu, rng.uniform(420, 620)).astype(np.float32)
    calcified = rng.random() < 0.5 * np.clip((patient.age - 40) / 40, 0, 1)
    cartilage_hu = np.float32(90) if not calcified else 90 + 330 * (off > 3.2).astype(np.float32)
    value = np.where(cartilage, cartilage_hu, bone)
    fraction = np.clip(0.5 - distance / canvas.softness, 0, 1)
    flat = canvas.hu.ravel()
    flat[near] += fraction * (value - flat[near])
    organs = canvas.organs.ravel()
    organs[near[(fraction > 0.5) & ~cartilage]] = ORGANS["ribs"]
    organs[near[(fraction > 0.5) & cartilage]] = ORGANS["costal_cartilages"]
    front = patient.center_y + patient.half_depth + 5
    top = 0.45 * patient.half_depth
    box = canvas.box(np.array([-30, front - top, -100.0]), np.array([30, front + 14, 55.0]))
    if box is not None:
        middle = front - np.clip((box.z + 20) / 75, 0, 1) * (0.3 * patient.half_depth)
        half = 13 + 9 * np.clip((box.z - 15) / 30, 0, 1)
        distance = np.maximum(np.abs(box.x) - half, np.abs(box.y - middle) - 5.5)
        distance = np.maximum(distance, np.maximum(box.z - 52, -95 - box.z))
        canvas.paint(box, distance, np.where(distance < -2, patient.bone_hu * 0.7, 380), ORGANS["sternum"])


def _lung_surface(canvas, patient, cavity, noise, rng):
    """Signed distance to the pleural cavities, and the lobe map."""
    x, y, z = canvas.x, canvas.y, canvas.z
    right = x > 0
    relative = (y - patient.center_y) / patient.half_depth
    # The mediastinum is narrow behind the sternum, wide at the hila, and as wide as the spine at the back.
    narrow = np.where(
        relative > 0.1,
        34 - 30 * np.clip((relative - 0.1) / 0.55, 0, 1),
        34 - 12 * np.clip((-0.1 - relative) / 0.6, 0, 1),
    )
    wide = (-6 * np.clip((z - 20) / 60, 0, 1) - 8 * np.clip((-z - 20) / 60, 0, 1)).astype(np.float32)
    side = np.where(right, 0, 4).astype(np.float32)
    dome = np.where(right, patient.dome_right, patient.dome_right + patient.dome_left)
    outward = (np.abs(x) - 0.5 * patient.half_width) / (0.62 * patient.half_width)
    front = (y - patient.center_y - 8) / (0.95 * patient.half_depth)
    diaphragm = dome - patient.dome_drop * (outward**2 * np.where(outward > 0, 1, 0.25) + front**2)
    lung = np.maximum(cavity + 2.0, (narrow + side) + wide - np.abs(x))
    lung = np.maximum(lung, 0.85 * (diaphragm.astype(np.float32) - z))
    lung = lung.astype(np.float32)
    lung += 1.5 * noise
    slope, height = rng.uniform(0.85, 1.2), rng.uniform(-30, -5)
    oblique = z - (height - slope * (y - patient.center_y) + 0.0008 * (x * x)).astype(np.float32) * 1.0
    horizontal = z - (rng.uniform(-35, -15) - 0.12 * np.abs(x)).astype(np.float32)
    names = (
        "lung_upper_lobe_left",
        "lung_lower_lobe_left",
        "lung_upper_lobe_right",
        "lung_middle_lobe_right",
        "lung_lower_lobe_right",
    )
    ul, ll, ur, mr, lr = (np.uint8(ORGANS[n]) for n in names)
    upper_right = np.where(horizontal > 0, ur, mr)
    lobes = np.where(right, np.where(oblique > 0, upper_right, lr), np.where(oblique > 0, ul, ll)).astype(
        np.uint8
    )
    canvas.fissure = np.minimum(
        np.abs(oblique) * 0.72, np.where(right & (oblique > 0), np.abs(horizontal), 50)
    )
    return lung, lobes


def _abdomen(canvas, patient, condition, cavity, rng) -> None:
    """Liver, spleen and stomach under the diaphragm; the lungs are painted over them."""
    low = float(canvas.z.min())
    box = canvas.box(
        np.array([-patient.half_width - 5, -120, low]),
        np.array([patient.half_width + 5, 130, patient.dome_right + 15]),
    )
    if box is None:
        return
    inside = cavity[box.window] + 4
    fill = condition.tissue_gain
    liver_hu = (rng.uniform(50, 65) if rng.random() < 0.75 else rng.uniform(5, 40)) + 2.5 * fill
    liver = np.maximum(inside, -box.x * 0.8 - 40 + 0.35 * (box.y - 10))
    canvas.paint(box, liver.astype(np.float32), liver_hu, ORGANS["liver"])
    spleen = np.array(
        [-0.66 * patient.half_width, patient.center_y - 0.45 * patient.half_depth, patient.dome_right - 45]
    )
    canvas.ellipsoid(spleen, np.array([30.0, 32, 42]), 48 + 3.5 * fill, ORGANS["spleen"])
    stomach = np.array([-0.45 * patient.half_width, patient.center_y + 15, patient.dome_right - 42])
    radii = np.array([38.0, 40, 32]) * rng.uniform(0.8, 1.1)
    canvas.ellipsoid(stomach, radii, 25, ORGANS["stomach"])
    if rng.random() < 0.7:
        canvas.ellipsoid(stomach + [0, 0.35 * radii[1], 3], radii * 0.55, -980)


def _spine(canvas, patient, rng) -> None:
    """Vertebral bodies with cortex, discs, canal and processes."""
    low, high = float(canvas.z.min()), float(canvas.z.max())
    back = patient.center_y - patient.half_depth
    box = canvas.box(np.array([-45, back - 45, low]), np.array([45, back + 75, high]))
    if box is None:
        return
    ys = box.y - spine_y(patient, box.z).astype(np.float32)
    pitch = np.float32(rng.uniform(21, 25))
    phase = box.z / pitch + np.float32(rng.random())
    level = np.abs(phase - np.rint(phase)) * pitch  # 0 in the middle of a vertebra
    ring = (np.sqrt((box.x / 17) ** 2 + (ys / 14.5) ** 2) - 1) * 15
    disc = (level > pitch / 2 - 2.6).astype(np.float32)
    process = np.maximum(np.abs(box.x) - 3.2, np.abs(ys + 42) - 14) + 0 * level
    arch = np.abs(np.sqrt((box.x / 12) ** 2 + ((ys + 24) / 12) ** 2) - 1) * 12 - 4
    arch = np.minimum(arch, np.maximum(np.abs(ys + 24 + 0.35 * np.abs(box.x)) - 5.5, np.abs(box.x) - 34))
    arch = np.maximum(np.minimum(arch, process), level - pitch * 0.36)
    canvas.paint(box, arch.astype(np.float32), patient.bone_hu + 220, ORGANS["vertebrae"])
    canal = (np.sqrt((box.x / 9) ** 2 + ((ys + 24) / 8) ** 2) - 1) * 8.5
    canvas.paint(box, (canal + 0 * box.z).astype(np.float32), 25, ORGANS["spinal_cord"])
    bone = np.where((ring > -2.5) | (level > pitch / 2 - 4.5), patient.bone_hu + 190, patient.bone_hu)
    canvas.paint(
        box, ring.astype(np.float32), np.where(disc > 0, 85, bone).astype(np.float32), ORGANS["vertebrae"]
    )


def _table(canvas, patient, rng) -> None:
    """The couch: a thin shallow shell under the back."""
    back = patient.center_y - patient.half_depth - patient.muscle - 12 - 0.5 * patient.fat
    surface = back - 6 + (canvas.x / 420) ** 2 * 60 - canvas.y
    shell = np.broadcast_to(np.abs(surface - 2), canvas.shape)
    fraction = np.clip(0.5 - (shell - 1.6) / canvas.softness, 0, 1) * (canvas.hu < -600)
    canvas.hu += fraction * (np.float32(rng.uniform(-350, 0)) - canvas.hu)


def paint_lungs(canvas: Canvas, patient: Patient, condition: Condition, chest: Chest, rng) -> None:
    """Lung parenchyma with gravity gradient, fissures and lobe labels."""
    gradient = np.float32(rng.uniform(20, 110)) * np.clip(
        -(canvas.y - patient.center_y) / patient.half_depth, -1, 1
    )
    value = np.float32(condition.lung_hu) + gradient + 18 * chest.noise
    line = np.clip(1 - canvas.fissure / max(1.2, 0.5 * canvas.softness), 0, 1) * np.float32(
        1.2 / canvas.softness * 330
    )
    value = value + line
    fraction = canvas.cover(chest.lung)
    canvas.blend(canvas.whole, fraction, value)
    inside = fraction > 0.5
    canvas.organs[inside] = chest.lobes[inside]


def grow_tree(root: Float[np.ndarray, 3], targets: Float[np.ndarray, "N 3"], terminal: float):
    """A vessel tree from `root` to every target: (starts, ends, radii), thickened by Murray's law."""
    order = np.argsort(np.linalg.norm(targets - root, axis=1))
    nodes = np.empty((len(targets) + 1, 3))
    nodes[0] = root
    path = np.zeros(len(nodes))
    parents = np.zeros(len(nodes), int)
    nodes[1:] = targets[order]
    gap = np.sqrt(((nodes[:, None] - nodes[None]) ** 2).sum(-1))
    for n in range(1, len(nodes)):
        parents[n] = best = int(np.argmin(gap[n, :n] + 0.35 * path[:n]))
        path[n] = path[best] + gap[n, best]
    load = np.ones(len(nodes))
    for n in range(len(nodes) - 1, 0, -1):
        load[parents[n]] += load[n]
    radii = terminal * load[1:] ** (1 / 2.7)
    return nodes[parents[1:]], nodes[1:], radii


def paint_vessels(canvas: Canvas, condition: Condition, chest: Chest, rng: np.random.Generator) -> None:
    """Pulmonary arteries, veins and bronchi inside the lungs."""
    inside = np.flatnonzero(chest.lung.ravel() < -4)
    if len(inside) == 0:
        return
    picks = rng.choice(inside, 520)
    d, h, w = np.unravel_index(picks, canvas.shape)
    points = np.stack([canvas.x[0, h, w], canvas.y[0, h, w], canvas.z[d, 0, 0]], axis=1).astype(float)
    wide = float(condition.trunk_radius / 12.5)
    parcels, volumes, air, air_mm3 = [], [], [], []
    for side, sign in (("right", 1), ("left", -1)):
        own = points[points[:, 0] * sign > 0]
        half = len(own) // 2
        for kind, targets in (("artery", own[:half]), ("vein", own[half:])):
            root = chest.hilum[side] + ([0, 0, 8] if kind == "artery" else [0, 6, -12])
            starts, ends, radii = grow_tree(root, targets, 0.62 * (wide**0.5 if kind == "artery" else 1))
            p, v = tube_parcels(starts, ends, radii, canvas.softness * 0.7)
            parcels.append(p)
            volumes.append(v)
            if kind == "artery":
                big = radii > 1.7
                shift = np.array([0, -1.0, -0.5])[None] * (1.9 * radii[big, None])
                p, v = tube_parcels(
                    starts[big] + shift, ends[big] + shift, 0.75 * radii[big], canvas.softness * 0.7
                )
                air.append(p)
                air_mm3.append(v)
    found = canvas.occupancy(np.concatenate(parcels), np.concatenate(volumes))
    if found is not None:
        box, (fraction,) = found
        fraction = np.minimum(fraction, canvas.cover(chest.lung[box.window] - 3))
        blood = np.float32(0.5 * (condition.blood_left + condition.blood_right))
        canvas.blend(box, fraction, np.maximum(blood, canvas.hu[box.window]))
    chest.bronchi = (np.concatenate(air), np.concatenate(air_mm3))


def paint_airways(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> None:
    """Trachea, main bronchi, and the air of the bronchi inside the lungs."""
    canvas.splat(*chest.bronchi, -990)
    lean = rng.uniform(-3, 3)
    trachea = spline(np.array([[lean, -2, 150], [lean, -6, 80], [0, -12, 40], [0, -14, 5]]), 10)
    radius = rng.uniform(7.5, 10)
    canvas.tube(trachea, radius, -995, ORGANS["trachea"], wall=(1.8, 30))
    right = spline(np.array([[0, -14, 4], [14, -15, -10], [30, -15, -24], [42, -18, -42]]), 8)
    left = spline(np.array([[0, -14, 4], [-18, -15, -8], [-36, -18, -18], [-50, -24, -36]]), 8)
    for points, size in ((right, 0.8), (left, 0.7)):
        canvas.tube(points, radius * size * np.linspace(1, 0.75, 8), -990, None, wall=(1.5, 20))
