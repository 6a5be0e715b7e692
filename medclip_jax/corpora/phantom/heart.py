"""Heart with chambers and pericardium, great vessels, coronary arteries and what lies in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from medclip_jax.corpora.phantom.canvas import Canvas, ellipsoid_distance, smooth_union, spline, tube_parcels
from medclip_jax.corpora.phantom.lungs import Chest
from medclip_jax.corpora.phantom.organs import ORGANS
from medclip_jax.corpora.phantom.patient import Condition, Patient
from medclip_jax.corpora.phantom.wall import rib_cage_profile, spine_y

NATURAL_WIDTH = 114.4
"""Transverse width (mm) of the heart at scale 1."""


@dataclass
class Cloud:
    """Coordinates to evaluate a distance at: a `Box` without a window."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray


@dataclass(frozen=True)
class Shape:
    """An ellipsoid: center, radii and unit axes as rows."""

    center: Float[np.ndarray, 3]
    radii: Float[np.ndarray, 3]
    axes: Float[np.ndarray, "3 3"]

    def distance(self, where) -> np.ndarray:
        """Signed distance at the coordinates of a `Box` or `Cloud`."""
        return ellipsoid_distance(where, self.center, self.radii, self.axes)


@dataclass
class Heart:
    """The heart's surfaces and the coronary centerlines.

    Attributes:
        center, scale: of the heart.
        chambers: the four chambers' outer shapes by name.
        arteries: coronary name to its (N, 3) centerline.
        radii: coronary name to its (N,) lumen radius, before any stenosis.
        aorta: (N, 3) centerline and `aorta_radii`.
        fat: thickness of the epicardial fat, mm.
    """

    center: np.ndarray
    scale: float
    frame: np.ndarray
    chambers: dict[str, Shape]
    fat: float
    arteries: dict[str, np.ndarray]
    radii: dict[str, np.ndarray]
    aorta: np.ndarray
    aorta_radii: np.ndarray

    def hull(self, where) -> np.ndarray:
        """Signed distance to the heart's muscle and blood, without fat."""
        return _join({name: shape.distance(where) for name, shape in self.chambers.items()})


def _join(distances: dict[str, np.ndarray]) -> np.ndarray:
    """Signed distance to the four chambers together, with rounded grooves between them."""
    ventricles = smooth_union(distances["lv"], distances["rv"], 10)
    return smooth_union(ventricles, smooth_union(distances["la"], distances["ra"], 10), 8)


def build_heart(patient: Patient, condition: Condition, rng: np.random.Generator) -> Heart:
    """Place the heart so that its width gives the wanted cardiothoracic ratio."""
    scale = condition.cardiothoracic_ratio * 2 * (patient.half_width - 2) / NATURAL_WIDTH
    center = np.array(
        [
            -10 - 0.10 * patient.half_width * scale + patient.heart_shift,
            patient.center_y + 0.16 * patient.half_depth,
            min(-62.0, patient.dome_right + 38.0) - 8 * (scale - 1),
        ]
    )
    tilt, swing = rng.uniform(-0.15, 0.15, 2)
    long = np.array([-0.66 + swing, 0.52 + swing, -0.54 + tilt])
    long /= np.linalg.norm(long)
    septal = np.array([0.62, 0.72, 0.0])
    septal -= long * (septal @ long)
    septal /= np.linalg.norm(septal)
    frame = np.stack([long, septal, np.cross(long, septal)])
    body = np.eye(3)
    depth = min(1.0, patient.half_depth / (88 * scale))

    def shape(offset, radii, axes=body):
        offset = np.asarray(offset) * [1, depth, 1]
        return Shape(center + offset * scale, np.asarray(radii) * scale * rng.uniform(0.95, 1.05, 3), axes)

    chambers = {
        "lv": shape(long * 14 - septal * 13, [46, 30, 34], frame),
        "rv": shape(long * 8 + septal * 15 + [6, 0, -6], [44, 24, 40], frame),
        "la": shape([4, -27, 14], [30, 24, 27]),
        "ra": shape([38, -6, 0], [23, 28, 34]),
    }
    radius = patient.aorta_radius
    spine = {z: float(spine_y(patient, z)) for z in (-10, -70, -140, -200)}
    root = center + np.array([2, 2, 14]) * scale
    arch = max(28.0, root[2] + 60)
    aorta = np.array(
        [
            root,
            [14, root[1] + 6, 0.5 * root[2]],
            [17, 14, 0.35 * arch],
            [8, 2, arch - 2],
            [-10, -18, arch],
            [-25, spine[-10] + 14, arch - 14],
            [-28, spine[-10] + 8, -10],
            [-26, spine[-70] + 10, -70],
            [-17, spine[-140] + 19, -140],
            [-9, spine[-200] + 24, -200],
        ]
    )
    aorta[2:8, :2] += rng.normal(0, 2.5, (6, 2))
    aorta = spline(aorta, 34)
    radii = radius * np.interp(np.arange(34), [0, 3, 12, 18, 33], [1.12, 1.2, 1.12, 0.92, 0.8])
    heart = Heart(center, scale, frame, chambers, float(rng.uniform(3, 9)), {}, {}, aorta, radii)
    _route_coronaries(heart, rng)
    return heart


def cardiothoracic_ratio(heart: Heart, patient: Patient) -> float:
    """Greatest transverse width of the heart over that of the rib cage's inside at its lower half.

    Measured on the surfaces, 0.5 mm fine, not on voxels: it must be the same in every reconstruction.
    """
    reach = 100 * heart.scale
    x = np.arange(-reach, reach, 3.0)
    side = np.arange(-reach, reach, 6.0)
    where = Cloud(
        (heart.center[0] + x)[None, None, :].astype(np.float32),
        (heart.center[1] + side)[None, :, None].astype(np.float32),
        (heart.center[2] + side)[:, None, None].astype(np.float32),
    )
    nearest = heart.hull(where).min((0, 1))
    inside = np.flatnonzero(nearest < 0)
    first, last = inside[0], inside[-1]
    left = np.interp(0, [nearest[first], nearest[first - 1]], [x[first], x[first - 1]])
    right = np.interp(0, [nearest[last], nearest[last + 1]], [x[last], x[last + 1]])
    chest = patient.half_width * float(rib_cage_profile(heart.center[2] - 35 * heart.scale, patient))
    wall = chest - heart.fat - 3
    ends = np.clip(heart.center[0] + np.array([left, right]), -wall, wall)
    return float((ends[1] - ends[0]) / (2 * chest))


def _on_surface(heart: Heart, directions: np.ndarray, lift: float) -> np.ndarray:
    """Points where rays from the heart's center leave its surface, lifted by `lift` mm."""
    rays = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    reach = np.full(len(rays), 60.0 * heart.scale)
    for _ in range(8):
        p = heart.center + rays * reach[:, None]
        distance = heart.hull(Cloud(*(p[:, k][None, :, None].astype(np.float32) for k in range(3))))
        reach -= 0.8 * (distance.ravel() - lift)
    return heart.center + rays * reach[:, None]


def _route_coronaries(heart: Heart, rng: np.random.Generator) -> None:
    """LAD in the anterior groove, LCX and RCA in the atrioventricular grooves."""
    ways = {
        "lad": [
            [-0.5, 0.05, 0.85],
            [-0.62, 0.3, 0.7],
            [-0.78, 0.5, 0.35],
            [-0.75, 0.6, -0.05],
            [-0.68, 0.55, -0.5],
        ],
        "lcx": [[-0.5, 0, 0.85], [-0.85, -0.05, 0.5], [-0.95, -0.3, 0.1], [-0.75, -0.5, -0.45]],
        "rca": [
            [0.35, 0.45, 0.95],
            [0.65, 0.72, 0.45],
            [0.85, 0.55, -0.1],
            [0.75, 0.25, -0.6],
            [0.2, -0.15, -1.0],
        ],
    }
    width = rng.uniform(0.9, 1.15)
    paths = [spline(np.array(way) + rng.normal(0, 0.03, (len(way), 3)), 20) for way in ways.values()]
    found = np.split(_on_surface(heart, np.concatenate(paths), 3.0), len(ways))
    for name, points in zip(ways, found, strict=True):
        heart.arteries[name] = spline(points, 40)
        heart.radii[name] = width * np.linspace(2.2, 1.2, 40)


def paint_heart(
    canvas: Canvas,
    patient: Patient,
    condition: Condition,
    chest: Chest,
    heart: Heart,
    rng: np.random.Generator,
) -> None:
    """Pericardium with effusion, epicardial fat, chambers."""
    thickness = condition.pericardial_mm
    reach = 95 * heart.scale + thickness
    box = canvas.box(heart.center - reach, heart.center + reach)
    if box is None:
        return
    limit = chest.cavity[box.window] + 3
    distances = {name: shape.distance(box) for name, shape in heart.chambers.items()}
    hull = _join(distances) + 0.8 * chest.noise[box.window]
    hull = np.maximum(hull, limit + heart.fat + min(thickness, 8))
    sac = hull - heart.fat
    if thickness:
        low = np.clip(
            0.75 - (box.z - heart.center[2]) / (90 * heart.scale) - 0.3 * (box.y - heart.center[1]) / 60,
            0.45,
            1.0,
        )
        canvas.paint(box, np.maximum(sac - thickness * low - 1.2, limit), 30 + condition.tissue_gain)
        fluid = canvas.cover(sac - thickness * low)
        canvas.blend(box, fluid, rng.uniform(0, 22), ORGANS["pericardial_effusion"])
    else:
        canvas.paint(box, sac - 1.0, 25 + condition.tissue_gain)
    canvas.paint(box, sac, patient.fat_hu)
    part = canvas.organs[box.window]
    part[sac < 0] = 0
    muscle = condition.myocardium
    canvas.paint(box, hull, muscle, ORGANS["heart"])
    wall = {"lv": 9.5 * rng.uniform(0.8, 1.3), "rv": 3.2, "la": 2.2, "ra": 2.2}
    for name in ("rv", "ra", "la", "lv"):
        blood = condition.blood_left if name in ("lv", "la") else condition.blood_right
        distance = distances[name]
        if name != "lv":
            distance = np.maximum(distance, -distances["lv"] - 1.0)
        if name == "ra":
            distance = np.maximum(distance, -distances["la"] + 1.5)
        inner = np.maximum(distance + wall[name], hull + wall[name])
        canvas.paint(box, inner, blood)
    appendage = heart.center + np.array([-34.0, 6, 26]) * heart.scale
    canvas.ellipsoid(
        appendage,
        np.array([13.0, 10, 9]) * heart.scale,
        condition.blood_left,
        ORGANS["atrial_appendage_left"],
    )


def paint_great_vessels(
    canvas: Canvas, patient: Patient, condition: Condition, heart: Heart, rng: np.random.Generator
) -> dict[str, float]:
    """Aorta, pulmonary trunk and arteries, veins, esophagus. Returns the measured widths in mm."""
    left, right = condition.blood_left, condition.blood_right
    wall = (1.5, 45 + condition.tissue_gain)
    c, s = heart.center, heart.scale
    venous = 0.5 * (left + right) if condition.contrast else right
    cava = spline(np.array([[26, 8, 70], [27, 4, 10], [c[0] + 38 * s, c[1] - 6, c[2] + 24 * s]]), 8)
    canvas.tube(cava, 9.0, right, ORGANS["superior_vena_cava"])
    inferior = np.array(
        [c + np.array([40 * s, -8, -22 * s]), [28, c[1] - 22, c[2] - 60 * s], [24, c[1] - 35, -220.0]]
    )
    canvas.tube(inferior, 11.0, 0.6 * venous + 15, ORGANS["inferior_vena_cava"])
    for sign in (1, -1):
        for rise, out in ((-6, -22), (10, 16)):
            start = c + np.array([4 + sign * 20, -29, 14 + 0.5 * rise]) * s
            end = np.array([sign * 44, -18 + 0.3 * out, c[2] + 30 + out])
            vein = spline(np.array([start, 0.5 * (start + end) - np.array([0, 5, 0]), end]), 5)
            canvas.tube(vein, np.linspace(6.5, 3.5, 5), left, ORGANS["pulmonary_vein"])
    for sign, length in ((1, 12), (-1, 30)):  # brachiocephalic veins
        way = np.array(
            [
                [26, 10, 22],
                [26 - (1 - sign) * 14, 24, 38 + 0.2 * length],
                [sign * 30, 16, 66],
                [sign * 48, 8, 100],
            ]
        )
        canvas.tube(spline(way, 7), 6.0, right)
    heights = np.array([120.0, 60, 0, -60, -120, -200])
    gullet = np.stack(
        [[-2, -5, -6, -6, -12, -24], spine_y(patient, heights) + np.array([21, 22, 23, 24, 34, 50]), heights],
        axis=1,
    )
    if rng.random() < 0.2:
        canvas.tube(
            spline(gullet, 14), 2.2, -900, ORGANS["esophagus"], wall=(3.5, 35 + condition.tissue_gain)
        )
    else:
        canvas.tube(spline(gullet, 14), rng.uniform(5.5, 8), 32 + condition.tissue_gain, ORGANS["esophagus"])
    canvas.tube(heart.aorta, heart.aorta_radii, left, ORGANS["aorta"], wall=wall)
    top = heart.aorta[np.argmax(heart.aorta[:, 2])]
    for x, y in ((14.0, 0.0), (-4.0, -10.0), (-18.0, -20.0)):
        branch = spline(
            np.array([[x, top[1] + 8 + y, top[2] - 2], [1.3 * x, y, top[2] + 30], [1.7 * x, y - 4, 140]]), 6
        )
        canvas.tube(branch, 4.5, left)
    radius = condition.trunk_radius
    trunk = spline(
        np.array([c + np.array([-12, 30, 16]) * s, [-17, c[1] + 16, 0.55 * c[2] + 14], [-18, 4, -14]]), 8
    )
    artery_left = spline(np.array([[-18, 4, -14], [-30, -8, -8], [-44, -22, -14], [-52, -28, -30]]), 7)
    artery_right = spline(np.array([[-18, 4, -14], [0, -3, -20], [22, -6, -22], [42, -14, -26]]), 8)
    branch = radius * 0.78
    canvas.tube(artery_left, branch * np.linspace(1, 0.7, 7), right, ORGANS["pulmonary_artery"])
    canvas.tube(artery_right, branch * np.linspace(1, 0.7, 8), right, ORGANS["pulmonary_artery"])
    canvas.tube(trunk, radius, right, ORGANS["pulmonary_artery"], wall=(1.0, 40))
    ascending = float(2 * np.interp(6, np.arange(34), heart.aorta_radii))
    return {"pulmonary_artery_diameter_mm": 2 * radius, "ascending_aorta_diameter_mm": ascending}


def paint_coronaries(
    canvas: Canvas, patient: Patient, condition: Condition, heart: Heart, narrowing: dict
) -> None:
    """Coronary lumen, wall, fat around it; `narrowing` maps artery to its (N,) share of diameter lost."""
    for points in heart.arteries.values():
        found = canvas.tube_distance(points[::3], np.full(len(points[::3]), 5.0))
        if found is not None:
            box, distance = found
            open_tissue = ~np.isin(canvas.organs[box.window], (ORGANS["aorta"], ORGANS["pulmonary_artery"]))
            canvas.blend(box, canvas.cover(distance) * open_tissue, patient.fat_hu)
            part = canvas.organs[box.window]
            part[(distance < 0) & (part == ORGANS["heart"])] = 0
    for name, points in heart.arteries.items():
        lost = narrowing.get(name, np.zeros(len(points)))
        outer = heart.radii[name] + 0.7 + 1.2 * (lost > 0.3)
        lumen = heart.radii[name] * (1 - lost)
        for radii, hu in ((outer, 40 + condition.tissue_gain), (lumen, condition.blood_left)):
            parcels = tube_parcels(
                points[:-1], points[1:], 0.5 * (radii[:-1] + radii[1:]), min(1.0, 0.4 * canvas.softness)
            )
            found = canvas.splat(*parcels, hu)
            if found is not None:
                box, fraction = found
                part = canvas.organs[box.window]
                part[(fraction > 0.25) & (part != ORGANS["aorta"])] = ORGANS["coronary_arteries"]
