"""Late enhancement: where the wall of the left ventricle is scarred."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from medclip_jax.corpora.cine.heart import ANGLES, LEVELS, SEPTUM, Heart, Segment

TERRITORIES: Mapping[str, Segment] = {
    "lad": Segment(angle=-2.1, half_width=0.95, high=0.78),
    "rca": Segment(angle=1.95, half_width=0.75, low=0.25),
    "lcx": Segment(angle=0.25, half_width=0.8, low=0.2, high=0.95),
}
"""The parts of the wall that the coronary arteries feed."""

KINDS = ("subendocardial", "transmural", "patchy", "mid-wall", "diffuse", "subepicardial")


@dataclass(frozen=True)
class Spot:
    """A patch of scar: middle and half widths in angle, level and depth."""

    angle: float
    level: float
    depth: float
    widths: tuple[float, float, float]

    def inside(self, theta: np.ndarray, u: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """How much of the tissue is scar, as for `Scar`."""
        away = (theta - self.angle + np.pi) % (2 * np.pi) - np.pi
        a, b, c = self.widths
        distance = (away / a) ** 2 + ((u - self.level) / b) ** 2 + ((depth - self.depth) / c) ** 2
        return np.clip(1.5 - distance, 0, 1)


@dataclass(frozen=True)
class Scar:
    """Fibrosis of one kind.

    Attributes:
        kind: of `KINDS`.
        where: the part of the wall, but for patches and what is everywhere.
        territory: key of `TERRITORIES` where an artery is to blame, else "".
        inner, outer: depth between which it lies: 0 at the cavity, 1 at the outer border.
        spots: the patches.
        mottling: how much weaker the weakest places are, and an angle that moves them.
    """

    kind: str
    where: Segment | None = None
    territory: str = ""
    inner: float = -1.0
    outer: float = 2.0
    spots: tuple[Spot, ...] = ()
    mottling: tuple[float, float] = (0.0, 0.0)

    def inside(self, theta: np.ndarray, u: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """How much of the tissue is scar, 0 to 1, at places that broadcast.

        Args:
            theta: angle around the long axis.
            u: level from apex to base.
            depth: share of the wall's area from the cavity outwards.
        """
        if self.spots:
            return np.max([spot.inside(theta, u, depth) for spot in self.spots], axis=0)
        weaker, angle = self.mottling
        part = 1 - 0.5 * weaker * (1 + np.cos(3 * theta + 11 * u + angle))
        if self.where is not None:
            part = part * self.where.inside(theta, u)
        # Towards its borders an infarct is less deep, as the wave of necrosis leaves it.
        outer = self.outer * (0.4 + 0.6 * part) if self.territory else self.outer
        band = np.clip((depth - self.inner) / 0.12 + 0.5, 0, 1) * np.clip((outer - depth) / 0.12 + 0.5, 0, 1)
        return part * band

    def percent(self, heart: Heart) -> float:
        """Scar's share of the left wall's volume, %."""
        theta, u = ANGLES[None, :, None], LEVELS[:, None, None]
        depth = (np.arange(10) + 0.5) / 10
        weights = heart.wall_profile(theta, u)
        share = (self.inside(theta, u, depth) * weights).sum() / (weights.sum() * len(depth))
        return 100 * float(share)


def draw_scar(kind: str, territory: str, heart: Heart, rng: np.random.Generator) -> Scar:
    """Draw the extent of a scar.

    Args:
        kind: of `KINDS`.
        territory: key of `TERRITORIES`, which subendocardial and transmural scars follow.
        heart: patches lie where its wall is thick.
        rng: source of all numbers; the same ones are drawn for every kind.
    """
    reach, where = rng.uniform(size=2).tolist()
    turn = float(rng.normal(0, 0.15))
    spots = rng.uniform(-1, 1, (5, 6)).tolist()
    count = int(rng.integers(2, 6))
    if kind in ("subendocardial", "transmural"):
        base = TERRITORIES[territory]
        part = Segment(base.angle + turn, base.half_width * (0.8 + 0.4 * reach), base.low, base.high)
        outer = 0.35 + 0.2 * where if kind == "subendocardial" else 1.0 + 0.3 * where
        return Scar(kind, part, territory, outer=outer)
    if kind == "patchy":
        middle, half = heart.thick.angle, min(heart.thick.half_width, 1.3)
        high = min(heart.thick.high, 0.85)
        low = max(heart.thick.low, 0.2)
        patches = tuple(
            Spot(
                angle=middle + half * row[0],
                level=0.5 * (low + high) + 0.5 * (high - low) * row[1],
                depth=0.5 + 0.2 * row[2],
                widths=(0.32 + 0.1 * row[3], 0.16 + 0.05 * row[4], 0.38 + 0.1 * row[5]),
            )
            for row in spots[:count]
        )
        return Scar(kind, spots=patches)
    if kind == "mid-wall":
        part = Segment(SEPTUM + turn, 0.8 + 0.3 * reach, low=0.3 + 0.15 * where)
        return Scar(kind, part, inner=0.33, outer=0.68)
    if kind == "diffuse":
        return Scar(kind, outer=0.45 + 0.2 * reach, mottling=(0.5, 2 * np.pi * where))
    if kind == "subepicardial":
        part = Segment(0.5 + 2 * turn, 0.6 + 0.4 * reach, low=0.15, high=0.9)
        return Scar(kind, part, inner=0.55)
    raise ValueError(f"{kind!r} is no kind of scar: take one of {KINDS}")
