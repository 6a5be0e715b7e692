"""The findings: plaques, stenosis, effusions, nodules, emphysema, consolidation, and distractors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from medclip_jax.corpora.phantom.calcium import Plaque, plaque_parcels, standard_score
from medclip_jax.corpora.phantom.canvas import Canvas, spline, tube_parcels
from medclip_jax.corpora.phantom.heart import Cloud, Heart
from medclip_jax.corpora.phantom.lungs import Chest
from medclip_jax.corpora.phantom.organs import LESIONS, LUNG_LOBES, ORGANS
from medclip_jax.corpora.phantom.patient import Condition, Patient
from medclip_jax.corpora.phantom.settings import PhantomSettings


@dataclass(frozen=True)
class Nodule:
    """A painted nodule: mean diameter in mm, label value of its lobe, and kind."""

    diameter: float
    lobe: int
    part_solid: bool


def _frame(along: np.ndarray, outward: np.ndarray) -> np.ndarray:
    """Rows: unit vectors along a vessel, outward from it, and across."""
    along = along / np.linalg.norm(along)
    outward = outward - along * (outward @ along)
    outward = outward / max(np.linalg.norm(outward), 1e-6)
    return np.stack([along, outward, np.cross(along, outward)])


def _wall_plaque(points, radii, place, rng, length, thickness, spread, hu) -> Plaque:
    """A flat plaque in the wall of a tube at fractional index `place`."""
    i = int(np.clip(place, 1, len(points) - 2))
    along = points[i + 1] - points[i - 1]
    frame = _frame(along, rng.normal(size=3))
    center = points[i] + frame[1] * radii[i]
    return Plaque(center, np.array([length, thickness, spread]) / 2, frame, hu)


def coronary_plaques(
    condition: Condition, heart: Heart, rng: np.random.Generator
) -> tuple[list[Plaque], float]:
    """Plaques along the coronaries until the wanted grade is reached, and their Agatston score."""
    if condition.calcium_grade == 0:
        return [], 0.0
    low = (2.0, 12.0, 105.0, 420.0)[condition.calcium_grade - 1]
    high = (10.0, 95.0, 390.0, 4000.0)[condition.calcium_grade - 1]
    goal = low + (high - low) * np.sqrt(rng.random())
    names = list(heart.arteries)
    plaques: list[Plaque] = []
    score = 0.0
    for _ in range(60):
        if score >= goal:
            break
        name = names[rng.choice(len(names), p=[0.5, 0.2, 0.3])]
        points, radii = heart.arteries[name], heart.radii[name]
        size = float(
            np.clip(rng.lognormal(np.log((1.6, 2.6, 4.0, 6.0)[condition.calcium_grade - 1]), 0.35), 1, 12)
        )
        hu = float(np.clip(rng.lognormal(np.log(850), 0.3), 180, 1200))
        place = len(points) * (0.08 + 0.7 * rng.random() ** 1.3)
        plaque = _wall_plaque(
            points, radii, place, rng, size, np.clip(0.55 * size, 1, 3), np.clip(0.8 * size, 1, 4), hu
        )
        gain = standard_score([plaque])
        if score + gain <= high:
            plaques.append(plaque)
            score += gain
    return plaques, standard_score(plaques)


def aortic_plaques(condition: Condition, heart: Heart, rng: np.random.Generator) -> list[Plaque]:
    """Calcified plaques in the wall of the arch and the descending aorta."""
    severity = condition.severities.get("aortic_calcification")
    if severity is None:
        return []
    count = 4 + rng.poisson(4 + 14 * severity)
    inside = np.flatnonzero((heart.aorta[:, 2] > -150) & (np.arange(34) > 4))
    plaques = []
    for _ in range(count):
        place = rng.choice(inside)
        length, spread = rng.uniform(5, 11 + 9 * severity), rng.uniform(4, 9 + 6 * severity)
        hu = float(np.clip(rng.lognormal(np.log(800), 0.3), 300, 1400))
        plaques.append(
            _wall_plaque(heart.aorta, heart.aorta_radii, place, rng, length, rng.uniform(2, 4), spread, hu)
        )
    return plaques


def paint_plaques(canvas: Canvas, plaques: list[Plaque]) -> None:
    """Blend plaques into the canvas with exact partial volume."""
    if not plaques:
        return
    points, volumes, hu = [], [], []
    for plaque in plaques:
        p, v = plaque_parcels(plaque, min(0.9, 0.35 * canvas.softness))
        points.append(p)
        volumes.append(v)
        hu.append(np.full(len(v), plaque.hu))
    points, volumes, hu = np.concatenate(points), np.concatenate(volumes), np.concatenate(hu)
    found = canvas.occupancy(points, volumes, volumes * hu)
    if found is None:
        return
    box, (share, mass) = found
    full = np.maximum(share, 1)  # overlapping plaques fill a voxel once
    part = canvas.hu[box.window]
    part += mass / full - share / full * part


def draw_narrowing(condition: Condition, heart: Heart, rng: np.random.Generator) -> tuple[dict, float]:
    """Share of the diameter lost along each artery, and the greatest loss. A little everywhere is normal."""
    lost = {}
    for name, points in heart.arteries.items():
        t = np.arange(len(points))
        mild = rng.uniform(0, 0.25) * np.exp(-(((t - rng.uniform(5, 30)) / 2.5) ** 2))
        lost[name] = mild
    severity = condition.severities.get("coronary_stenosis")
    worst = 0.0
    if severity is not None:
        for name in rng.permutation(list(heart.arteries))[: 1 + int(rng.random() < 0.35 + 0.3 * severity)]:
            worst_here = 0.5 + 0.49 * severity
            t = np.arange(len(heart.arteries[name]))
            place, length = rng.uniform(4, 18), rng.uniform(2.0, 4.5)
            lost[name] = np.maximum(lost[name], worst_here * np.exp(-(((t - place) / length) ** 4)))
            worst = max(worst, worst_here)
    return lost, worst


def paint_soft_aorta(canvas: Canvas, condition: Condition, heart: Heart, rng: np.random.Generator) -> None:
    """Soft plaque: thickened wall of the arch and descending aorta."""
    if not condition.soft_aortic_plaque:
        return
    for _ in range(rng.integers(2, 5)):
        place = rng.integers(11, 30)
        plaque = _wall_plaque(
            heart.aorta,
            heart.aorta_radii - 2.0,
            place,
            rng,
            rng.uniform(14, 30),
            6.0,
            rng.uniform(10, 18),
            0.0,
        )
        canvas.ellipsoid(plaque.center, plaque.radii, rng.uniform(20, 60), None, plaque.axes)


def paint_pleural_effusion(
    canvas: Canvas, patient: Patient, condition: Condition, chest: Chest, rng: np.random.Generator
) -> dict[str, float]:
    """Dependent crescents along the chest wall, with compressed lung beside. Returns side to depth in mm."""
    severity = condition.severities.get("pleural_effusion")
    if severity is None:
        return {}
    sides = [("right", 1), ("left", -1)]
    keep = rng.choice(3, p=[0.4, 0.25, 0.35])
    found = {}
    low_z = float(patient.dome_right - 55)
    for name, sign in [sides[0]] if keep == 0 else [sides[1]] if keep == 1 else sides:
        depth = (8 + 48 * severity) * rng.uniform(0.75, 1.1)
        top = low_z + 55 + 150 * severity
        box = canvas.box(
            np.array([min(0, sign * 170), -130.0, low_z - 60]),
            np.array([max(0, sign * 170), 130.0, top + 20]),
        )
        if box is None:
            continue
        behind = np.clip(
            (-(box.y - patient.center_y) / patient.half_depth + 0.25 + 0.5 * severity) / 1.1, 0, 1
        )
        height = np.clip((top - box.z) / 60, 0, 1)
        layer = depth * behind**0.8 * height
        lung = chest.lung[box.window]
        fluid = np.maximum(lung, -chest.cavity[box.window] - 2 - layer)
        fluid = np.maximum(fluid, -sign * box.x)
        collapse = np.maximum(
            np.maximum(lung, -chest.cavity[box.window] - 2 - 1.35 * layer - 3 * severity), -sign * box.x
        )
        canvas.paint(box, collapse.astype(np.float32), 38 + 2.5 * condition.tissue_gain)
        canvas.blend(box, canvas.cover(fluid), rng.uniform(-2, 20), ORGANS["pleural_effusion"])
        found[name] = float(depth)
    return found


def paint_emphysema(
    canvas: Canvas, condition: Condition, chest: Chest, patient: Patient, rng: np.random.Generator
) -> float:
    """Low-attenuation areas, mostly upper lobes, and bullae. Returns the share of lung below -950 HU."""
    severity = condition.severities.get("emphysema")
    if severity is None:
        return 0.0
    field = canvas.smooth_noise(rng, rng.uniform(8, 14))
    upper = np.clip((canvas.z - patient.dome_right) / (patient.apex - patient.dome_right), 0, 1)
    level = 1.1 - 1.0 * severity - 0.9 * (upper - 0.5)
    holes = np.clip((field - level) * 1.4, 0, 1) * canvas.cover(chest.lung + 2)
    canvas.hu += holes * (np.float32(rng.uniform(-985, -965)) - canvas.hu)
    canvas.lesions[holes > 0.5] = LESIONS["emphysema"]
    points, _ = canvas.candidates(rng, 1500)
    depth = canvas.at(chest.lung, points)
    rim = np.flatnonzero((depth < -3) & (depth > -22) & (points[:, 2] > patient.dome_right + 40))
    for center in points[rim[: rng.poisson(3.5 * severity)]]:
        radii = rng.uniform(6, 10 + 14 * severity) * rng.uniform(0.75, 1.2, 3)
        box = canvas.box(center - radii - 5, center + radii + 5)
        distance = np.sqrt(
            ((box.x - center[0]) / radii[0]) ** 2
            + ((box.y - center[1]) / radii[1]) ** 2
            + ((box.z - center[2]) / radii[2]) ** 2
        )
        distance = np.maximum((distance - 1) * radii.min(), chest.lung[box.window] + 1)
        canvas.blend(box, canvas.cover(distance - 1.2), -780)
        canvas.blend(box, canvas.cover(distance), -992, lesion=LESIONS["emphysema"])
    lung = chest.lung < -2
    return float(holes[lung].mean())


def _aerated(
    canvas: Canvas,
    condition: Condition,
    chest: Chest,
    heart: Heart,
    points: Float[np.ndarray, "N 3"],
    depth: float,
) -> Bool[np.ndarray, " N"]:
    """Which points lie `depth` mm inside open lung.

    That is: away from fluid and consolidation, clear of the heart that is painted later, and not so near a
    fissure that their lobe depends on the grid.
    """
    cloud = Cloud(*(points[:, k][None, :, None].astype(np.float32) for k in range(3)))
    clear = heart.hull(cloud).ravel() > heart.fat + condition.pericardial_mm + 8
    inside = (canvas.at(chest.lung, points) < -depth) & (canvas.at(chest.fissure, points) > 4)
    return clear & inside & (canvas.at(canvas.hu, points) < -600)


def paint_consolidation(
    canvas: Canvas, condition: Condition, chest: Chest, heart: Heart, rng: np.random.Generator
) -> list[int]:
    """Airless lung in one or two segments or a lobe, with a hazy rim. Returns the lobes' label values."""
    severity = condition.severities.get("consolidation")
    if severity is None:
        return []
    lobes = []
    for _ in range(1 + int(rng.random() < 0.4 * severity)):
        value = int(rng.choice([10, 11, 12, 13, 14], p=[0.17, 0.28, 0.17, 0.1, 0.28]))
        points, places = canvas.candidates(rng, 3000)
        open_lung = _aerated(canvas, condition, chest, heart, points, 3.0)
        fits = np.flatnonzero((chest.lobes[places] == value) & open_lung)
        if len(fits) == 0:
            fits = np.flatnonzero(open_lung)
            value = int(chest.lobes[places][fits[0]])
        center = points[fits[0]]
        size = (14 + 42 * severity) * rng.uniform(0.8, 1.2)
        box = canvas.box(center - 2 * size, center + 2 * size)
        distance = (
            np.sqrt((box.x - center[0]) ** 2 + (box.y - center[1]) ** 2 + (box.z - center[2]) ** 2) - size
        )
        distance = distance + 0.30 * size * canvas.smooth_noise(rng, 14.0, box)
        inside = canvas.cover(chest.lung[box.window]) * (canvas.organs[box.window] == value)
        halo = np.clip(0.5 - distance / 18, 0, 1) * inside
        part = canvas.hu[box.window]
        part += 0.45 * halo * (30 - part)
        dense = np.clip(0.5 - distance / 6, 0, 1) * inside
        hu = rng.uniform(15, 50) + 1.5 * condition.tissue_gain
        canvas.blend(box, dense * 0.97, hu, lesion=LESIONS["consolidation"])
        lobes.append(value)
    return lobes


def paint_nodules(
    canvas: Canvas,
    condition: Condition,
    settings: PhantomSettings,
    chest: Chest,
    heart: Heart,
    rng: np.random.Generator,
) -> list[Nodule]:
    """Solid and part-solid nodules. Returns each."""
    severity = condition.severities.get("lung_nodule")
    if severity is None:
        return []
    found = []
    smallest, largest = settings.nodule_mm
    points, places = canvas.candidates(rng, 1500)
    fits = np.flatnonzero(_aerated(canvas, condition, chest, heart, points, 6.0))
    for number, which in enumerate(fits[: 1 + rng.poisson(settings.more_nodules)]):
        center = points[which]
        reach = severity**1.4 if number == 0 else 0.55 * severity * rng.random()
        diameter = smallest + (largest - smallest) * reach
        radii = diameter / 2 * rng.uniform(0.85, 1.12, 3)
        axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        part_solid = diameter > 9 and rng.random() < 0.25
        hu = rng.uniform(15, 60) + 2 * condition.tissue_gain
        nodule = LESIONS["lung_nodule"]
        if part_solid:
            canvas.ellipsoid(center, radii, rng.uniform(-560, -420), None, axes, nodule)
            canvas.ellipsoid(center + radii * rng.uniform(-0.2, 0.2, 3), radii * 0.55, hu, None, axes, nodule)
        else:
            canvas.ellipsoid(center, radii, hu, None, axes, nodule)
            for _ in range(rng.integers(0, 5)):  # lobulation
                place = center + rng.normal(size=3) * radii * 0.4
                canvas.ellipsoid(place, radii * 0.6, hu, None, axes, nodule)
        found.append(Nodule(float(diameter), int(chest.lobes[places][which]), bool(part_solid)))
    return found


def lesion_map(canvas: Canvas) -> UInt8[np.ndarray, "D H W"]:
    """Values of `LESION_CLASSES`, once everything is painted: the heart and the fluids lie over the lungs."""
    lesions = np.where(np.isin(canvas.organs, LUNG_LOBES), canvas.lesions, 0).astype(np.uint8)
    for name in ("pleural_effusion", "pericardial_effusion"):
        lesions[canvas.organs == ORGANS[name]] = LESIONS[name]
    return lesions


def distractor_plaques(
    heart: Heart, patient: Patient, scale: float, rng: np.random.Generator
) -> tuple[list[Plaque], list[str]]:
    """Calcifications that are no arterial plaque: nodes, mitral annulus, aortic valve."""
    plaques: list[Plaque] = []
    names: list[str] = []
    old = np.clip((patient.age - 35) / 45, 0, 1) * scale
    eye = np.eye(3)
    if rng.random() < 0.3 * scale:
        names.append("calcified lymph nodes")
        for _ in range(rng.integers(1, 5)):
            center = np.array([rng.choice([-34.0, -10, 8, 36]), rng.uniform(-30, 2), rng.uniform(-35, 25)])
            plaques.append(Plaque(center, rng.uniform(2, 5, 3), eye, float(rng.uniform(250, 800))))
    if rng.random() < 0.35 * old:
        names.append("mitral annular calcification")
        long, septal, side = heart.frame
        middle = heart.chambers["lv"].center - long * 30 * heart.scale
        for angle in rng.uniform(2.0, 4.5, rng.integers(2, 6)):
            center = middle + 17 * heart.scale * (np.cos(angle) * septal + np.sin(angle) * side)
            plaques.append(Plaque(center, rng.uniform(1.5, 4, 3), eye, float(rng.uniform(300, 900))))
    if rng.random() < 0.35 * old:
        names.append("aortic valve calcification")
        for _ in range(rng.integers(1, 5)):
            center = heart.aorta[0] + rng.normal(0, 5, 3)
            plaques.append(Plaque(center, rng.uniform(1, 3, 3), eye, float(rng.uniform(300, 900))))
    return plaques, names


def paint_leads(canvas: Canvas, heart: Heart, rng: np.random.Generator) -> None:
    """A pacemaker lead from the left subclavian vein to the right ventricle."""
    tip = heart.chambers["rv"].center + heart.frame[0] * 30 * heart.scale
    way = np.array(
        [[-60, 40, 70], [0, 22, 48], [26, 8, 20], heart.center + np.array([38 * heart.scale, -2, 5]), tip]
    )
    points = spline(way, 60)
    parcels = tube_parcels(points[:-1], points[1:], np.full(59, 1.1), 0.8)
    canvas.splat(*parcels, 3000)
