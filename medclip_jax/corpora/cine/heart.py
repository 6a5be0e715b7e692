"""The beating heart: two ventricles in one set of coordinates, and what is known of their volumes.

Coordinates in mm: x from the septum to the lateral wall, y from the anterior to the inferior wall, z from
the apex (0) to the base. A level is u = z / length, so that it moves with the heart as it shortens. All
surfaces are squared distances from the long axis: areas, and therefore volumes, are linear in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

SEPTUM = np.pi
"""Angle of the middle of the septum: the right ventricle lies on the left of a short-axis picture."""

WIDEST = 0.62
"""Level, from the cavity's apex, at which the left ventricle is widest."""

ANGLES = (np.arange(48) + 0.5) * (2 * np.pi / 48)
LEVELS = (np.arange(30) + 0.5) / 30
_U = LEVELS[:, None]


@dataclass(frozen=True)
class Beat:
    """The time course of contraction, as shares of the cycle from the R wave on.

    Attributes:
        systole: length of systole.
        filling: length of early filling.
        plateau: contraction that is left in diastasis, before the atria contract.
        start: where in the cycle the first frame is.
        seconds: length of the cycle.
    """

    systole: float = 0.35
    filling: float = 0.22
    plateau: float = 0.25
    start: float = 0.0
    seconds: float = 0.9

    def contraction(self, phase: np.ndarray) -> np.ndarray:
        """0 at end diastole to 1 at end systole.

        Args:
            phase: share of the cycle since the R wave.
        """
        phase = np.asarray(phase) % 1.0
        kick = 0.86
        rise = np.sin(0.5 * np.pi * np.clip(phase / self.systole, 0, 1)) ** 2
        early = np.cos(0.5 * np.pi * np.clip((phase - self.systole) / self.filling, 0, 1)) ** 2
        late = np.cos(0.5 * np.pi * np.clip((phase - kick) / (1 - kick), 0, 1)) ** 2
        return np.where(phase < self.systole, rise, early * (1 - self.plateau) + self.plateau * late)

    @cached_property
    def mean(self) -> float:
        """Mean contraction over the cycle."""
        return float(self.contraction(np.arange(256) / 256).mean())

    def frames(self, count: int) -> np.ndarray:
        """Contraction at `count` evenly spaced frames, (count,)."""
        return self.contraction(self.start + np.arange(count) / count)


@dataclass(frozen=True)
class Segment:
    """A part of the left ventricle's wall with soft borders.

    Attributes:
        angle: of its middle.
        half_width: angle from the middle to where it is half gone.
        low, high: levels between which it lies.
    """

    angle: float
    half_width: float
    low: float = -1.0
    high: float = 2.0

    def inside(self, theta: np.ndarray, u: np.ndarray) -> np.ndarray:
        """1 inside to 0 outside, at angles and levels that broadcast."""
        away = np.abs((theta - self.angle + np.pi) % (2 * np.pi) - np.pi)
        ring = np.clip((self.half_width - away) / 0.35 + 0.5, 0, 1)
        return ring * np.clip((u - self.low) / 0.12 + 0.5, 0, 1) * np.clip((self.high - u) / 0.12 + 0.5, 0, 1)


@dataclass(frozen=True)
class Heart:
    """Shape and motion. Sizes are those at the cycle's mean contraction, so that they say nothing of motion.

    Attributes:
        beat: the time course.
        radius: of the left cavity where it is widest, mm.
        length: from the epicardial apex to the base, mm.
        wall: thickness of the left wall away from `thick`, mm.
        extra: mm that the wall is thicker in `thick`.
        thick: where.
        ripple: amplitudes and angles of the cavity's harmonics 2, 3 (its shape), 9 and 13 (trabeculae).
        left_fraction, right_fraction: ejection fractions.
        shortening: of the length between the ends of the cycle.
        still: the part of the left wall that hardly moves, or None.
        right_volume: of the right cavity, ml.
        right_span: half of the angle that the right ventricle takes.
        right_skew: how much more of it lies at the inferior end.
        right_wall: its thickness, mm.
    """

    beat: Beat
    radius: float
    length: float
    wall: float
    extra: float
    thick: Segment
    ripple: tuple[tuple[float, float], ...]
    left_fraction: float
    right_fraction: float
    shortening: float
    still: Segment | None
    right_volume: float
    right_span: float
    right_skew: float
    right_wall: float

    # Motion.

    def stretch(self, s: np.ndarray) -> np.ndarray:
        """Length relative to the mean at contraction `s`."""
        return 1 + self.shortening * (self.beat.mean - s)

    def _gain(self, fraction: float) -> float:
        """Change of the area, relative to its mean, from end diastole to end systole."""
        ratio = (1 - fraction) * float(self.stretch(0.0) / self.stretch(1.0))
        mean = self.beat.mean
        return (1 - ratio) / (1 - mean + ratio * mean)

    @cached_property
    def right_gain(self) -> float:
        """Of the right ventricle, which moves alike everywhere."""
        return self._gain(self.right_fraction)

    @cached_property
    def _left_gain(self) -> float:
        """Of the parts that move, so that the full ventricle reaches its ejection fraction."""
        weights = self.cavity_profile(ANGLES, _U)
        moving = 1 - self._stillness(ANGLES, _U)
        return self._gain(self.left_fraction) * float(weights.sum() / (weights * moving).sum())

    def _stillness(self, theta: np.ndarray, u: np.ndarray) -> np.ndarray:
        if self.still is None:
            return np.zeros(np.broadcast_shapes(np.shape(theta), np.shape(u)), np.float32)
        return 0.95 * self.still.inside(theta, u)

    def left_gain(self, theta: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Relative change of the squared radius from end diastole to end systole, place by place."""
        return self._left_gain * (1 - self._stillness(theta, u))

    # Shape.

    @cached_property
    def tip(self) -> float:
        """Level of the cavity's apex: the apical wall is a little thinner than the others."""
        return 0.8 * self.wall / self.length

    def bullet(self, u: np.ndarray) -> np.ndarray:
        """Squared radius of the cavity relative to the widest level; negative beyond its apex."""
        return 1 - ((u - self.tip) / ((1 - self.tip) * WIDEST) - 1) ** 2

    def roundness(self, theta: np.ndarray) -> np.ndarray:
        """Squared radius of the cavity relative to a circle, but for its trabeculae; 1 on average."""
        return 1 + self._waves(theta, (2, 3), self.ripple[:2])

    def trabeculae(self, theta: np.ndarray) -> np.ndarray:
        """What trabeculae add to `roundness`; 0 on average. They are part of the wall."""
        return self._waves(theta, (9, 13), self.ripple[2:])

    @staticmethod
    def _waves(theta, orders, ripple):
        return sum(size * np.cos(n * theta + angle) for n, (size, angle) in zip(orders, ripple, strict=True))

    def cavity_profile(self, theta: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Squared radius of the left cavity at mean contraction, mm²; 0 beyond its apex."""
        outline = self.roundness(theta) + self.trabeculae(theta)
        return self.radius**2 * np.maximum(self.bullet(u), 0) * outline

    def thickness_profile(self, theta: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Thickness of the left wall at mean contraction, mm: a fifth less at the apex."""
        inside = self.extra * self.thick.inside(theta, u)
        return (self.wall + inside) * (0.8 + 0.2 * np.clip(u / 0.5, 0, 1))

    def cap(self, u: np.ndarray) -> np.ndarray:
        """0 at the outer apex to 1 from the cavity's apex on, and negative outside the heart."""
        share = np.minimum(u / self.tip, 1)
        return share * (2 - share)

    def wall_profile(self, theta: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Squared outer less squared inner radius of the left wall at mean contraction, mm²."""
        thickness = self.thickness_profile(theta, u)
        widest = self.radius**2 * np.maximum(self.bullet(u), 0)
        outer = (2 * np.sqrt(widest * self.roundness(theta)) + thickness) * thickness * self.cap(u)
        return outer - widest * self.trabeculae(theta)

    def crescent(self, theta: np.ndarray) -> np.ndarray:
        """How far the right ventricle reaches out at an angle, 0 where it is not."""
        away = ((theta - SEPTUM + np.pi) % (2 * np.pi) - np.pi) / self.right_span
        root = np.sqrt(np.maximum(1 - away**2, 0))
        return root * np.sqrt(root) * (1 - self.right_skew * away)

    @staticmethod
    def right_level(u: np.ndarray) -> np.ndarray:
        """How far the right ventricle reaches out at a level, 0 at its apex."""
        return np.maximum(1 - ((u - 0.82) / 0.72) ** 2, 0)

    @cached_property
    def right_profile(self) -> float:
        """Squared outer radius of the right cavity less that of the left wall at the widest place, mm²."""
        area = 0.5 * self.crescent(ANGLES).mean() * 2 * np.pi
        return float(self.right_volume * 1000 / (area * self.right_level(LEVELS).mean() * self.length))

    def outer(self, theta: np.ndarray, u: np.ndarray, s: float) -> np.ndarray:
        """Squared distance of the right cavity's outline, or the left wall's where it is not, at `s`, mm²."""
        left = self.beat.mean - s
        cavity = self.cavity_profile(theta, u) * (1 + self.left_gain(theta, u) * left)
        right = self.right_profile * self.right_level(u) * self.crescent(theta) * (1 + self.right_gain * left)
        return cavity + self.wall_profile(theta, u) / float(self.stretch(s)) + right

    # What is known.

    def left_volume(self, s: float) -> float:
        """Volume of the left cavity at contraction `s`, ml, papillary muscles included."""
        area = self.cavity_profile(ANGLES, _U) * (1 + self.left_gain(ANGLES, _U) * (self.beat.mean - s))
        return float(np.pi * area.mean() * self.length * self.stretch(s)) / 1000

    def right_volume_at(self, s: float) -> float:
        """Volume of the right cavity at contraction `s`, ml."""
        return float(self.right_volume * (1 + self.right_gain * (self.beat.mean - s)) * self.stretch(s))

    def muscle_volume(self) -> float:
        """Volume of the left wall, ml; the same at all times."""
        return float(np.pi * self.wall_profile(ANGLES, _U).mean() * self.length) / 1000

    def diameter(self, s: float) -> float:
        """Of the circle as large as the left cavity where that is widest, mm."""
        level = self.tip + (1 - self.tip) * WIDEST
        area = self.cavity_profile(ANGLES, level) * (1 + self.left_gain(ANGLES, level) * (self.beat.mean - s))
        return 2 * float(np.sqrt(area.mean()))

    def thickness(self, s: float) -> float:
        """Greatest thickness of the left wall above the apex, mm: the mean over 30 degrees."""
        levels = _U[(LEVELS > 0.2) & (LEVELS < 0.9)]
        inner = self.cavity_profile(ANGLES, levels) * (
            1 + self.left_gain(ANGLES, levels) * (self.beat.mean - s)
        )
        outer = inner + self.wall_profile(ANGLES, levels) / self.stretch(s)
        wall = np.sqrt(outer) - np.sqrt(inner)
        return float(np.mean([np.roll(wall, turn, axis=1) for turn in range(-2, 2)], axis=0).max())
