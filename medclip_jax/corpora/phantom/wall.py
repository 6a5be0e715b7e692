"""Chest wall, skeleton, upper abdomen and couch: everything around the lungs and the mediastinum."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from medclip_jax.corpora.phantom.canvas import Canvas, spline
from medclip_jax.corpora.phantom.organs import ORGANS
from medclip_jax.corpora.phantom.patient import Condition, Patient


def spine_y(patient: Patient, z: float | np.ndarray) -> np.ndarray:
    """Anterior coordinate of the vertebral bodies' centers at height z: they stand out into the chest."""
    back = patient.center_y - patient.half_depth
    return back + 30 + 9 * patient.kyphosis * ((np.asarray(z) + 50) / 120) ** 2


def rib_cage_profile(z: np.ndarray, patient: Patient) -> np.ndarray:
    """Width of the rib cage at height z as a share of its greatest."""
    t = np.clip((patient.apex + 10 - z) / (patient.apex + 90), 0, 1)
    return np.asarray(0.2 + 0.8 * np.sin(0.5 * np.pi * t) ** 0.72, np.float32)


def paint_wall(
    canvas: Canvas, patient: Patient, condition: Condition, rng: np.random.Generator
) -> Float32[np.ndarray, "D H W"]:
    """Paint skin, fat, muscle, bones and abdomen.

    Returns:
        Signed distance (mm) to the inside of the rib cage.
    """
    x, y, z = canvas.x, canvas.y - np.float32(patient.center_y), canvas.z
    power = np.float32(rng.uniform(1.08, 1.3))
    width = rib_cage_profile(z, patient) * np.float32(patient.half_width)
    depth = (0.42 + 0.58 * rib_cage_profile(z, patient)) * np.float32(patient.half_depth)
    # A superellipse as a sum of squared powers, so that only slice maps are raised to powers.
    r = np.sqrt((np.abs(x) ** power / width**power) ** 2 + (np.abs(y) ** power / depth**power) ** 2)
    radial = np.sqrt(x * x + y * y)
    noise = canvas.smooth_noise(rng, 40.0)
    cavity = (1 - 1 / np.maximum(r, np.float32(1e-3))) * (radial / power) + noise
    # Thickness of the layers around the rib cage, by direction: 0 in front and behind, 1 at the sides.
    side = (x * x) / (radial * radial + 1)
    behind = np.clip(-y / patient.half_depth, 0, 1)
    front = np.clip(y / patient.half_depth, 0, 1)
    upper = np.clip((z + 20) / 70, 0, 1)
    # The shoulder girdle keeps the body wide where the rib cage narrows.
    girdle = (patient.half_width - width + 10 * upper) * (side * side) + 0.7 * (
        patient.half_depth - depth
    ) * (1 - side)
    muscle = patient.muscle + 12 * behind * (1 - side) + 8 * (behind + front) * side * upper + girdle
    fat = 2 + patient.fat * (0.75 + 0.35 * side - 0.4 * behind)
    muscle, fat = muscle.astype(np.float32), fat.astype(np.float32)
    tissue = np.float32(50 + condition.tissue_gain)
    whole = canvas.whole
    canvas.paint(whole, cavity - (muscle + (fat + 2)), 10)
    canvas.paint(whole, cavity - (muscle + fat), patient.fat_hu)
    if patient.female:
        _breasts(canvas, patient, rng)
    if rng.random() < 0.1:
        _arms(canvas, patient, tissue, rng)
    # Fat between the muscle layers: a band in the middle of thick muscle, broken by the noise.
    layer = np.abs(cavity - 0.62 * muscle + 4 * noise) - (0.13 * muscle - 1.5)
    marbling = canvas.cover(layer) * np.float32(-110 * rng.uniform(0.3, 1))
    canvas.paint(whole, cavity - muscle, tissue + marbling)
    canvas.paint(whole, cavity, patient.fat_hu + 8)
    _ribs(canvas, patient, cavity, rng)
    _sternum(canvas, patient, rng)
    _shoulders(canvas, patient, rng)
    _abdomen(canvas, patient, condition, cavity, rng)
    _spine(canvas, patient, tissue, rng)
    _couch(canvas, patient, rng)
    return cavity


def _breasts(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """Fat with a glandular core; flattened and moved to the sides, as in a supine patient."""
    gland = rng.uniform(-70, 25)
    for sign in (-1, 1):
        center = np.array(
            [
                sign * 0.58 * patient.half_width,
                patient.center_y + 0.86 * patient.half_depth + patient.muscle,
                -45,
            ]
        )
        size = np.array([50.0, 14 + 0.55 * patient.breast, 46.0])
        canvas.ellipsoid(center, size, patient.fat_hu)
        canvas.ellipsoid(center + np.array([0, 0.3 * size[1], 0]), size * rng.uniform(0.35, 0.6), gland)


def _arms(canvas: Canvas, patient: Patient, tissue: float, rng: np.random.Generator) -> None:
    """Arms beside the body, in the few who cannot raise them."""
    for sign in (-1, 1):
        out = patient.half_width + patient.muscle + patient.fat + rng.uniform(38, 50)
        points = np.array(
            [[sign * out, patient.center_y - 20, -300.0], [sign * (out - 8), patient.center_y - 15, 120]]
        )
        canvas.tube(points, 36.0, tissue, wall=(6 + 0.3 * patient.fat, patient.fat_hu))
        canvas.tube(points, 8.0, patient.bone_hu, wall=(3.5, 1000))


def _ribs(canvas: Canvas, patient: Patient, cavity: np.ndarray, rng: np.random.Generator) -> None:
    """Ribs as oblique bands in the chest wall, with cartilage in front."""
    in_wall = np.abs(cavity - np.float32(5.0))
    near = np.flatnonzero(in_wall < 4.0 + canvas.softness)
    d, hw = np.divmod(near, canvas.x.size)
    xs, ys = canvas.x.ravel()[hw], canvas.y.ravel()[hw] - np.float32(patient.center_y)
    zs, in_wall = canvas.z.ravel()[d], in_wall.ravel()[near]
    angle = np.arctan2(np.abs(xs) / patient.half_width, ys / patient.half_depth)  # 0 in front, pi behind
    # Ribs fall from the spine to the side and front; the cartilage climbs back to the sternum.
    along = zs - 30 * (angle - 1.5) + 30 * np.maximum(0.85 - angle, 0)
    pitch = np.float32(rng.uniform(21, 26))
    phase = along / pitch + np.float32(rng.random())
    off = np.abs(phase - np.rint(phase)) * pitch
    distance = np.maximum(in_wall - np.float32(3.6), off - np.float32(5.2))
    distance += np.float32(1.5) * np.clip(in_wall - 2.4, 0, None) * (off > 3.8)
    cartilage = angle < np.float32(0.45)
    hu = np.where(distance < -2.2, patient.bone_hu, rng.uniform(420, 650)).astype(np.float32)
    old = float(np.clip((patient.age - 40) / 40, 0, 1))
    calcified = 330 * rng.random() * (rng.random() < 0.6 * old)
    hu = np.where(cartilage, 95 + calcified * (distance > -2.0), hu).astype(np.float32)
    fraction = np.clip(0.5 - distance / canvas.softness, 0, 1)
    flat = canvas.hu.reshape(-1)
    flat[near] += fraction * (hu - flat[near])
    organs = canvas.organs.reshape(-1)
    organs[near[(fraction > 0.5) & ~cartilage]] = ORGANS["ribs"]
    organs[near[(fraction > 0.5) & cartilage]] = ORGANS["costal_cartilages"]


def _sternum(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """Manubrium, body and a slanting plate of marrow in thin cortex."""
    front = patient.center_y + patient.half_depth + 4
    box = canvas.box(np.array([-34, front - 60, -105.0]), np.array([34, front + 14, 62.0]))
    if box is None:
        return
    slant = (1 - rib_cage_profile(box.z, patient)) * 0.58 * patient.half_depth
    half = 12 + 12 * np.clip((box.z - 18) / 25, 0, 1) - 4 * np.clip((-55 - box.z) / 30, 0, 1)
    flat = np.sqrt((box.x / half) ** 2 + ((box.y - front + slant) / 6.0) ** 4)
    distance = np.maximum((flat - 1) * 5.5, np.maximum(box.z - 56, -92 - box.z))
    hu = np.where(distance < -2, 0.75 * patient.bone_hu, rng.uniform(300, 420)).astype(np.float32)
    canvas.paint(box, distance.astype(np.float32), hu, ORGANS["sternum"])


def _shoulders(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """Scapulae as curved plates behind the ribs, and clavicles in front of the apices."""
    for sign in (-1, 1):
        edge = patient.half_width
        back = patient.center_y - patient.half_depth
        lift = rng.uniform(-8, 8)
        center = np.array([sign * 0.68 * edge, back + 6, 52.0 + lift])
        normal = np.array([sign * 0.5, -0.86, -0.05])
        normal /= np.linalg.norm(normal)
        up = np.array([0.0, 0, 1]) - normal * normal[2]
        up /= np.linalg.norm(up)
        axes = np.stack([normal, up, np.cross(normal, up)])
        canvas.ellipsoid(center, np.array([4.0, 55, 32]), patient.bone_hu + 260, None, axes)
        canvas.ellipsoid(center, np.array([2.0, 51, 28]), patient.bone_hu, None, axes)
        top = patient.apex - 14 + lift
        front = patient.center_y + 0.55 * patient.half_depth
        way = np.array(
            [
                [22, front, 56],
                [0.45 * edge, front + 6, top - 4],
                [0.75 * edge, front - 25, top + 12],
                [edge, front - 45, top + 16],
            ]
        )
        way[:, 0] *= sign
        canvas.tube(spline(way, 7), 4.5, patient.bone_hu + 60, wall=(2.0, 620))


def _abdomen(
    canvas: Canvas, patient: Patient, condition: Condition, cavity: np.ndarray, rng: np.random.Generator
) -> None:
    """Liver, spleen, stomach and fat under the diaphragm; the lungs are painted over them."""
    low = float(canvas.z.min())
    reach = patient.half_width + 5
    box = canvas.box(np.array([-reach, -130, low]), np.array([reach, 130, patient.dome_right + 15]))
    if box is None:
        return
    inside = cavity[box.window] + 4
    gain = condition.tissue_gain
    liver_hu = (rng.uniform(50, 65) if rng.random() < 0.75 else rng.uniform(5, 40)) + 2.5 * gain
    texture = 4 * canvas.smooth_noise(rng, 12.0, box)
    edge = -0.8 * box.x - rng.uniform(25, 50) + 0.35 * (box.y - 10) + 0.004 * (box.y - 35) ** 2
    edge = edge + 5 * canvas.smooth_noise(rng, 35.0, box)
    canvas.paint(box, np.maximum(inside, edge), liver_hu + texture, ORGANS["liver"])
    behind = patient.center_y - 0.42 * patient.half_depth
    spleen = np.array([-0.66 * patient.half_width, behind, patient.dome_right - 45])
    canvas.ellipsoid(
        spleen, np.array([28.0, 34, 42]) * rng.uniform(0.8, 1.2), 48 + 3.5 * gain, ORGANS["spleen"]
    )
    stomach = np.array([-0.45 * patient.half_width, patient.center_y + 15, patient.dome_right - 42])
    radii = np.array([38.0, 40, 32]) * rng.uniform(0.75, 1.1)
    canvas.ellipsoid(stomach, radii, 40 + gain, ORGANS["stomach"])
    canvas.ellipsoid(stomach, radii - 4, rng.uniform(5, 40), ORGANS["stomach"])
    if rng.random() < 0.7:
        canvas.ellipsoid(stomach + np.array([0, 0.4 * radii[1], 3]), radii * rng.uniform(0.35, 0.55), -980)


def _spine(canvas: Canvas, patient: Patient, tissue: float, rng: np.random.Generator) -> None:
    """Vertebral bodies with cortex, discs, canal and processes, in paraspinal muscle."""
    back = patient.center_y - patient.half_depth
    low, high = float(canvas.z.min()), float(canvas.z.max())
    box = canvas.box(np.array([-52, back - 34, low]), np.array([52, back + 85, high]))
    if box is None:
        return
    ys = box.y - spine_y(patient, box.z).astype(np.float32)
    x = box.x
    pitch = np.float32(rng.uniform(21, 25))
    phase = box.z / pitch + np.float32(rng.random())
    level = np.abs(phase - np.rint(phase)) * pitch  # 0 in the middle of a vertebra
    muscle = np.sqrt(((np.abs(x) - 12) / 25) ** 2 + ((ys + 34) / 20) ** 2)
    canvas.paint(box, ((muscle - 1) * 20).astype(np.float32), tissue)
    body = (np.sqrt((x / 16) ** 2 + (ys / 14) ** 2) - 1) * 14.5
    spinous = np.maximum(np.abs(x) - 3.0, np.abs(ys + 40) - 11)
    ring = np.abs(np.sqrt((x / 12) ** 2 + ((ys + 23) / 11) ** 2) - 1) * 11.5 - 3.5
    transverse = np.maximum(np.abs(ys + 24 + 0.3 * np.abs(x)) - 4.5, np.abs(x) - 30)
    arch = np.minimum(np.minimum(ring, transverse), spinous)
    arch = np.maximum(arch, level - pitch * 0.34)
    canvas.paint(box, arch.astype(np.float32), patient.bone_hu + 200, ORGANS["vertebrae"])
    canal = ((np.sqrt((x / 9) ** 2 + ((ys + 22) / 8) ** 2) - 1) * 8.5).astype(np.float32)
    canvas.paint(box, canal, 25, ORGANS["spinal_cord"])
    cortex = (body > -2.2) | (level > pitch / 2 - 4.6)
    hu = np.where(cortex, patient.bone_hu + 180, patient.bone_hu + 0 * level)
    hu = np.where(level > pitch / 2 - 2.4, 85, hu).astype(np.float32)
    canvas.paint(box, body.astype(np.float32), hu, ORGANS["vertebrae"])


def _couch(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """The scanner's couch: a thin shallow shell under the back."""
    back = patient.center_y - patient.half_depth - patient.muscle - 12 - 0.4 * patient.fat
    surface = back - 8 + (canvas.x / 420) ** 2 * 60 - canvas.y
    shell = np.clip(0.5 - (np.abs(surface) - 1.6) / canvas.softness, 0, 1).astype(np.float32)
    rows = np.flatnonzero(shell[0].any(1))
    if len(rows):
        part = canvas.hu[:, rows[0] : rows[-1] + 1]
        fraction = shell[:, rows[0] : rows[-1] + 1] * (part < -600)
        part += fraction * (np.float32(rng.uniform(-350, 0)) - part)
