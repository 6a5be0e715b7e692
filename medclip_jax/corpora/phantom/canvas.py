"""The grid a phantom is painted on, in mm, with antialiased primitives.

The array order is ``(depth, height, width)``, indices growing towards superior, anterior and right.
Anatomy is written in patient coordinates (x right, y anterior, z superior; origin at the carina); the
patient may lie turned by a few degrees, so x and y are maps over the slice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32

EXTENT = ((-330.0, 260.0), (-230.0, 230.0), (-300.0, 300.0))
"""Range of z, y, x (mm) over which random fields are defined."""

CHEST = ((-165.0, 165.0), (-125.0, 130.0), (-190.0, 125.0))
"""Range of x, y, z (mm) that holds the lungs of every patient."""


@dataclass
class Box:
    """A part of the canvas: its index window and its patient coordinates, ready to broadcast.

    Attributes:
        window: three slices into (D, H, W).
        x, y: (1, h, w) mm towards the patient's right and anterior.
        z: (d, 1, 1) mm towards superior.
    """

    window: tuple[slice, slice, slice]
    x: Float32[np.ndarray, "1 h w"]
    y: Float32[np.ndarray, "1 h w"]
    z: Float32[np.ndarray, "d 1 1"]


class Canvas:
    """Voxels in HU, their organ labels and lesion labels, painted back to front.

    Args:
        shape: (D, H, W).
        spacing: mm along D, H, W.
        center: patient coordinates (z, y, x) of the middle of the grid.
        turn: degrees by which the patient is turned about the long axis.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        spacing: tuple[float, float, float],
        center: tuple[float, float, float],
        turn: float,
    ):
        self.shape, self.spacing = shape, spacing
        self.cosine, self.sine = float(np.cos(np.radians(turn))), float(np.sin(np.radians(turn)))
        self.start = tuple(c - s * (n - 1) / 2 for c, s, n in zip(center, spacing, shape, strict=True))
        z, y, x = (
            np.float32(a + s * np.arange(n)) for a, s, n in zip(self.start, spacing, shape, strict=True)
        )
        self.z = z[:, None, None]
        self.x = (self.cosine * x[None, None, :] + self.sine * y[None, :, None]).astype(np.float32)
        self.y = (-self.sine * x[None, None, :] + self.cosine * y[None, :, None]).astype(np.float32)
        self.hu = np.full(shape, -1000, np.float32)
        self.organs = np.zeros(shape, np.uint8)
        self.lesions = np.zeros(shape, np.uint8)
        self.softness = float(np.mean(spacing))
        self.voxel_mm3 = float(np.prod(spacing))

    @property
    def whole(self) -> Box:
        """The box of the full grid."""
        return Box((slice(None),) * 3, self.x, self.y, self.z)

    def index(self, points: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
        """Patient coordinates (x, y, z) to fractional grid indices (d, h, w)."""
        x = self.cosine * points[:, 0] - self.sine * points[:, 1]
        y = self.sine * points[:, 0] + self.cosine * points[:, 1]
        places = np.stack([points[:, 2], y, x], axis=1)
        return (places - np.array(self.start)) / np.array(self.spacing)

    def box(self, low: Float[np.ndarray, 3], high: Float[np.ndarray, 3]) -> Box | None:
        """The part of the grid around the cuboid `low`..`high` (x, y, z); None if it is off the grid."""
        (x0, y0, z0), (x1, y1, z1) = (float(v) for v in low), (float(v) for v in high)
        mx, my, hx, hy = 0.5 * (x0 + x1), 0.5 * (y0 + y1), 0.5 * (x1 - x0), 0.5 * (y1 - y0)
        x, y = self.cosine * mx - self.sine * my, self.sine * mx + self.cosine * my
        wide = self.cosine * hx + abs(self.sine) * hy
        deep = abs(self.sine) * hx + self.cosine * hy
        window = []
        ends = ((z0, z1), (y - deep, y + deep), (x - wide, x + wide))
        for (a, b), start, step, count in zip(ends, self.start, self.spacing, self.shape, strict=True):
            first = max(math.floor((a - start) / step) - 1, 0)
            last = min(math.ceil((b - start) / step) + 2, count)
            if last <= first:
                return None
            window.append(slice(first, last))
        d, h, w = window
        return Box((d, h, w), self.x[:, h, w], self.y[:, h, w], self.z[d])

    def cover(self, distance: Float32[np.ndarray, "d h w"]) -> Float32[np.ndarray, "d h w"]:
        """Fraction of each voxel inside a surface, from the signed distance (mm) to it."""
        return np.clip(0.5 - distance * np.float32(1 / self.softness), 0, 1)

    def blend(
        self,
        box: Box,
        fraction: Float32[np.ndarray, "d h w"],
        hu: float | Float32[np.ndarray, ...],
        organ: int | None = None,
        where: Bool[np.ndarray, "d h w"] | None = None,
        lesion: int | None = None,
    ) -> None:
        """Fill `fraction` of each voxel with `hu`, and label those more than half filled."""
        part = self.hu[box.window]
        part += fraction * (hu - part)
        if organ is not None:
            inside = fraction > 0.5
            if where is not None:
                inside &= where
            self.organs[box.window][inside] = organ
        if lesion is not None:
            self.lesions[box.window][fraction > 0.5] = lesion

    def paint(
        self,
        box: Box,
        distance: Float32[np.ndarray, "d h w"],
        hu: float | np.ndarray,
        organ: int | None = None,
        lesion: int | None = None,
    ) -> None:
        """Fill the inside of a surface, given the signed distance to it."""
        self.blend(box, self.cover(distance), hu, organ, lesion=lesion)

    def ellipsoid(
        self,
        center: Float[np.ndarray, 3],
        radii: Float[np.ndarray, 3],
        hu: float,
        organ: int | None = None,
        axes: Float[np.ndarray, "3 3"] | None = None,
        lesion: int | None = None,
    ) -> None:
        """Fill an ellipsoid; `axes` rows are the unit directions of `radii`."""
        reach = np.max(radii) + self.softness if axes is not None else np.asarray(radii) + self.softness
        box = self.box(center - reach, center + reach)
        if box is not None:
            self.paint(box, ellipsoid_distance(box, center, radii, axes), hu, organ, lesion)

    def tube_distance(
        self, points: Float[np.ndarray, "N 3"], radii: Float[np.ndarray, N], margin: float = 4.0
    ) -> tuple[Box, Float32[np.ndarray, "d h w"]] | None:
        """Signed distance to a chain of round cones, exact within `margin` mm of its surface."""
        widest = float(np.max(radii)) + margin + self.softness
        outer = self.box(points.min(0) - widest, points.max(0) + widest)
        if outer is None:
            return None
        distance = np.full([s.stop - s.start for s in outer.window], 1e3, np.float32)
        for a, b, ra, rb in zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True):
            reach = max(ra, rb) + margin + self.softness
            box = self.box(np.minimum(a, b) - reach, np.maximum(a, b) + reach)
            if box is None:
                continue
            along = b - a
            dx, dy, dz = box.x - np.float32(a[0]), box.y - np.float32(a[1]), box.z - np.float32(a[2])
            f = along / max(float(along @ along), 1e-6)
            t = np.clip((dx * np.float32(f[0]) + dy * np.float32(f[1])) + dz * np.float32(f[2]), 0, 1)
            d = (dx - t * np.float32(along[0])) ** 2
            d += (dy - t * np.float32(along[1])) ** 2
            d += (dz - t * np.float32(along[2])) ** 2
            d = np.sqrt(d, out=d)
            d -= np.float32(ra) + t * np.float32(rb - ra)
            inner = tuple(
                slice(s.start - o.start, s.stop - o.start)
                for s, o in zip(box.window, outer.window, strict=True)
            )
            np.minimum(distance[inner], d, out=distance[inner])
        return outer, distance

    def tube(
        self,
        points: Float[np.ndarray, "N 3"],
        radii: Float[np.ndarray, N] | float,
        hu: float,
        organ: int | None = None,
        wall: tuple[float, float] | None = None,
    ) -> None:
        """Fill a tube along `points`; `wall` = (thickness mm, HU) is painted around it first."""
        radii = np.broadcast_to(radii, len(points))
        found = self.tube_distance(points, radii, 4.0 if wall is None else 4.0 + wall[0])
        if found is None:
            return
        box, distance = found
        if wall is not None:
            self.paint(box, distance - np.float32(wall[0]), wall[1], organ)
        self.paint(box, distance, hu, organ)

    def occupancy(
        self, points: Float[np.ndarray, "N 3"], *amounts: Float[np.ndarray, N]
    ) -> tuple[Box, list[Float32[np.ndarray, "d h w"]]] | None:
        """Spread parcels over the voxels around them: trilinear, so amounts are kept and edges antialiased.

        This renders what is thinner than a voxel with the right partial volume.

        Args:
            points: (x, y, z) of the parcels, mm.
            *amounts: one or more quantities of each parcel, e.g. its volume in mm³.

        Returns:
            The box around the points and each quantity per mm³ of voxel; None if no point is on the grid.
        """
        places = self.index(points)
        base = np.floor(places).astype(np.int32)
        keep = ((base >= 0) & (base < np.array(self.shape) - 1)).all(1)
        if not keep.any():
            return None
        base, places = base[keep], places[keep]
        first, last = base.min(0), base.max(0) + 2
        rest = (places - base).astype(np.float32)
        base -= first
        depth, height, width = (int(n) for n in last - first)
        flat = (base[:, 0] * height + base[:, 1]) * width + base[:, 2]
        far, near = rest.T, 1 - rest.T
        corners = [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)]
        where = np.concatenate([flat + (a * height + b) * width + c for a, b, c in corners])
        share = [
            (far if a else near)[0] * (far if b else near)[1] * (far if c else near)[2] for a, b, c in corners
        ]
        found = []
        for amount in amounts:
            amount = amount[keep].astype(np.float32) / np.float32(self.voxel_mm3)
            total = np.bincount(where, np.concatenate([s * amount for s in share]), depth * height * width)
            found.append(total.astype(np.float32).reshape(depth, height, width))
        window = tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
        d, h, w = window
        return Box(window, self.x[:, h, w], self.y[:, h, w], self.z[d]), found

    def splat(
        self, points: Float[np.ndarray, "N 3"], mm3: Float[np.ndarray, N], hu: float
    ) -> tuple[Box, Float32[np.ndarray, "d h w"]] | None:
        """Blend parcels of one density in; returns their box and the fraction of each voxel they fill."""
        found = self.occupancy(points, mm3)
        if found is None:
            return None
        box, (fraction,) = found
        np.minimum(fraction, 1, out=fraction)
        self.blend(box, fraction, np.float32(hu))
        return box, fraction

    def smooth_noise(
        self, rng: np.random.Generator, scale_mm: float, box: Box | None = None
    ) -> Float32[np.ndarray, "d h w"]:
        """A random field of about unit variance, correlated over `scale_mm`, in `box` or everywhere.

        It hangs on a lattice fixed in space, so every reconstruction of a scan sees the same field.
        """
        window = (slice(None),) * 3 if box is None else box.window
        counts = [math.ceil((high - low) / scale_mm) + 2 for low, high in EXTENT]
        field = rng.standard_normal(counts, dtype=np.float32)
        weights = []
        for n, step, start, part, count, (low, _) in zip(
            self.shape, self.spacing, self.start, window, counts, EXTENT, strict=True
        ):
            places = np.clip((start + step * np.arange(n)[part] - low) / scale_mm, 0, count - 1.001)
            base = places.astype(int)
            t = (places - base).astype(np.float32)
            t = t * t * (3 - 2 * t)
            matrix = np.zeros((len(places), count), np.float32)
            matrix[np.arange(len(places)), base] = 1 - t
            matrix[np.arange(len(places)), base + 1] = t
            weights.append(matrix[:, base[0] : base[-1] + 2])
            field = np.moveaxis(field, 0, -1)[..., base[0] : base[-1] + 2]
        depth, height, width = weights
        field = (depth @ field.reshape(len(field), -1)).reshape(len(depth), *field.shape[1:])
        return (height @ field) @ (width.T * np.float32(1.45))

    def candidates(
        self, rng: np.random.Generator, count: int
    ) -> tuple[Float[np.ndarray, "N 3"], tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Random points over the chest and the voxels they lie in; points off the grid are left out.

        Lesions are placed at the first fitting point, so that they lie in the same place in every
        reconstruction of a scan. Whether a point fits is decided by `at`, which hardly depends on the grid.
        """
        low, high = np.array(CHEST).T
        points = low + (high - low) * rng.random((count, 3))
        places = np.rint(self.index(points)).astype(int)
        keep = ((places >= 0) & (places < np.array(self.shape))).all(1)
        d, h, w = places[keep].T
        return points[keep], (d, h, w)

    def at(
        self, field: Float32[np.ndarray, "D H W"], points: Float[np.ndarray, "N 3"]
    ) -> Float32[np.ndarray, " N"]:
        """Values of a field on the grid at points between the voxels (trilinear)."""
        from scipy import ndimage  # takes a while: configs of training import this package, too

        return ndimage.map_coordinates(field, self.index(points).T, order=1, mode="nearest")


def ellipsoid_distance(
    box: Box,
    center: Float[np.ndarray, 3],
    radii: Float[np.ndarray, 3],
    axes: Float[np.ndarray, "3 3"] | None = None,
) -> Float32[np.ndarray, "d h w"]:
    """Signed distance (first order) to an ellipsoid."""
    axes = np.eye(3) if axes is None else axes
    dx, dy, dz = box.x - np.float32(center[0]), box.y - np.float32(center[1]), box.z - np.float32(center[2])

    def norm(power: int) -> np.ndarray:
        # A quadratic form, split so that only two sums run over three dimensions.
        m = ((axes.T / np.asarray(radii) ** power) @ axes).astype(np.float32)
        flat = m[0, 0] * dx * dx + m[1, 1] * dy * dy + 2 * m[0, 1] * dx * dy
        value = dz * (2 * (m[0, 2] * dx + m[1, 2] * dy))
        value += flat
        value += m[2, 2] * dz * dz
        np.maximum(value, 0, out=value)
        return np.sqrt(value, out=value)

    k0, k1 = norm(2), norm(4)
    # The small terms keep the quotient finite at the center, where it is the distance to the nearest pole.
    least = np.float32(1e-3)
    k1 += least
    distance = (k0 + least * np.float32(np.min(radii))) / k1
    k0 -= 1
    distance *= k0
    return distance


def smooth_union(a: np.ndarray, b: np.ndarray, k: float) -> np.ndarray:
    """Union of two signed distances with a fillet of about `k` mm."""
    h = np.maximum(np.float32(k) - np.abs(a - b), 0) * np.float32(1 / k)
    return np.minimum(a, b) - h * h * np.float32(k / 4)


def spline(points: Float[np.ndarray, "N 3"], count: int) -> Float[np.ndarray, "M 3"]:
    """`count` points, evenly spread along a Catmull-Rom curve through `points`."""
    points = np.asarray(points, float)
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    t = np.linspace(0, len(points) - 1, 12 * len(points))
    i = np.minimum(t.astype(int), len(points) - 2)
    f = (t - i)[:, None]
    p0, p1, p2, p3 = (padded[i + k] for k in range(4))
    curve = 0.5 * (
        2 * p1 + (p2 - p0) * f + (2 * p0 - 5 * p1 + 4 * p2 - p3) * f**2 + (3 * p1 - p0 - 3 * p2 + p3) * f**3
    )
    steps = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    even = np.linspace(0, steps[-1], count)
    return np.stack([np.interp(even, steps, curve[:, k]) for k in range(3)], axis=1)


def tube_parcels(
    starts: Float[np.ndarray, "N 3"],
    ends: Float[np.ndarray, "N 3"],
    radii: Float[np.ndarray, N],
    step: float,
) -> tuple[Float[np.ndarray, "M 3"], Float[np.ndarray, M]]:
    """Points and their volumes (mm³) that fill round tubes from `starts` to `ends`, about `step` mm apart."""
    along = ends - starts
    length = np.maximum(np.linalg.norm(along, axis=1), 1e-6)
    count = np.maximum(np.ceil(length / step).astype(int), 1)
    ring = np.clip(np.ceil((1.6 * radii / step) ** 2).astype(int), 1, 40)
    total = count * ring
    which = np.repeat(np.arange(len(starts)), total)
    number = np.arange(total.sum()) - np.repeat(np.cumsum(total) - total, total)
    t = (number // ring[which] + 0.5) / count[which]
    k = number % ring[which]
    helper = np.where(np.abs(along[:, :1]) < 0.9 * length[:, None], [[1.0, 0, 0]], [[0, 1.0, 0]])
    u = np.cross(along, helper)
    u /= np.maximum(np.linalg.norm(u, axis=1, keepdims=True), 1e-9)
    v = np.cross(along, u) / length[:, None]
    radius = np.where(ring == 1, 0, radii)[which] * np.sqrt((k + 0.5) / ring[which])
    angle = k * 2.39996323
    points = starts[which] + along[which] * t[:, None]
    points += (radius * np.cos(angle))[:, None] * u[which] + (radius * np.sin(angle))[:, None] * v[which]
    return points, (np.pi * radii**2 * length / total)[which]
