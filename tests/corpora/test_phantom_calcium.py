"""The Agatston score against values worked out by hand, and plaques against their volume."""

import numpy as np
import pytest

from medclip_jax.corpora.phantom import agatston_score, cac_grade
from medclip_jax.corpora.phantom.calcium import Plaque, standard_score
from medclip_jax.corpora.phantom.canvas import Canvas
from medclip_jax.corpora.phantom.lesions import paint_plaques


def test_score_by_hand():
    hu = np.full((3, 10, 10), 40.0)
    hu[0, 1:3, 1:3] = 250  # 4 pixels of 0.25 mm² = 1 mm², factor 2
    hu[0, 6, 6:9] = 500  # 0.75 mm²: too small
    hu[1, 2:6, 2:6] = 150
    hu[1, 3, 3] = 399  # 16 pixels = 4 mm², factor 3 by the peak
    hu[2, 4:8, 4:8] = 129  # below the threshold
    assert agatston_score(hu, (3.0, 0.5, 0.5)) == pytest.approx(1 * 2 + 4 * 3)
    assert agatston_score(hu, (1.5, 0.5, 0.5)) == pytest.approx((1 * 2 + 4 * 3) / 2)


@pytest.mark.parametrize(
    ("peak", "factor"), [(130, 1), (199, 1), (200, 2), (299, 2), (300, 3), (399, 3), (400, 4), (1200, 4)]
)
def test_density_factor(peak, factor):
    hu = np.zeros((1, 4, 4))
    hu[0, 1:3, 1:3] = peak
    assert agatston_score(hu, (3.0, 1.0, 1.0)) == pytest.approx(4 * factor)


def test_mask_limits_the_search():
    hu = np.full((1, 8, 8), 500.0)
    mask = np.zeros(hu.shape, bool)
    mask[0, :2, :2] = True
    assert agatston_score(hu, (3.0, 1.0, 1.0), mask) == pytest.approx(16)


def test_lesions_that_touch_at_a_corner_are_two():
    hu = np.zeros((1, 6, 6))
    hu[0, 1, 1], hu[0, 2, 2] = 150, 450
    assert agatston_score(hu, (3.0, 1.0, 1.0)) == pytest.approx(1 * 1 + 1 * 4)


def test_grades():
    scores = (0, 0.5, 10, 10.1, 100, 101, 400, 401)
    assert [cac_grade(score) for score in scores] == [0, 1, 1, 2, 2, 3, 3, 4]


def _plaque(radius, hu, center=(0.0, 0.0, 1.5)):
    return Plaque(np.array(center), np.full(3, float(radius)), np.eye(3), float(hu))


def test_standard_score_grows_with_size_and_adds_over_distant_plaques():
    scores = [standard_score([_plaque(radius, 600)]) for radius in (1.0, 1.5, 2.5, 4.0)]
    assert scores == sorted(scores)
    # Central slice of a sphere of 4 mm radius: pi 4² = 50 mm² at factor 4, with parts of the neighbors.
    assert 150 < scores[-1] < 650
    far = [_plaque(2.5, 600), _plaque(2.5, 600, (40.0, 0, 1.5))]
    assert standard_score(far) == pytest.approx(2 * scores[2], rel=0.25)


def test_faint_plaque_scores_nothing():
    assert standard_score([_plaque(2.0, 120)]) == 0


@pytest.mark.parametrize("spacing", [(1.0, 0.7, 0.7), (3.0, 3.0, 3.0), (5.0, 3.5, 3.5)])
def test_partial_volume_keeps_the_excess_density(spacing):
    """Whatever the grid, the HU above the background times volume is the plaque's."""
    shape = tuple(int(60 / s) for s in spacing)
    canvas = Canvas(shape, spacing, (0.0, 0.0, 0.0), 4.0)
    canvas.hu[:] = 40
    paint_plaques(canvas, [_plaque(2.0, 640, (1.3, -0.4, 0.9))])
    excess = float((canvas.hu - 40).sum() * np.prod(spacing))
    assert excess == pytest.approx(600 * 4 / 3 * np.pi * 2.0**3, rel=0.03)
    assert canvas.hu.max() <= 641
