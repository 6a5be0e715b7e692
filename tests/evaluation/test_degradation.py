"""Damage: of the stated size, growing with the level, the same every time."""

import numpy as np
import pytest

from medclip_jax.evaluation import degradation
from medclip_jax.reports.findings import FINDINGS, extract

REPORT = (
    "Findings: The heart is enlarged. There is a small pericardial effusion. No pleural effusion. "
    "The patient was cooperative. Diffuse emphysema in both lungs."
)


def generator():
    return np.random.default_rng(7)


def volume(shape=(20, 10, 12)):
    return np.random.default_rng(0).integers(-900, 300, shape).astype(np.int16)


@pytest.mark.parametrize("kind", degradation.VOLUME_DAMAGE)
def test_volumes_keep_shape_and_type_and_the_original(kind):
    original, before = volume(), volume()
    damage = degradation.VOLUME_DAMAGE[kind]
    damaged = damage(original, 0.3, generator())
    assert damaged.shape == original.shape
    assert damaged.dtype == np.int16
    np.testing.assert_array_equal(original, before)
    np.testing.assert_array_equal(damaged, damage(original, 0.3, generator()))
    np.testing.assert_array_equal(damage(original, 0.0, generator()), original)


def test_noise_has_the_stated_deviation_and_one_pattern():
    flat = np.zeros((30, 30, 30), np.int16)
    weak, strong = (degradation.add_noise(flat, level, generator()) for level in (20, 200))
    assert weak.std() == pytest.approx(20, rel=0.03)
    assert strong.std() == pytest.approx(200, rel=0.03)
    assert np.corrcoef(weak.ravel(), strong.ravel())[0, 1] > 0.999
    edge = np.full((5, 5, 5), -1024, np.int16)
    assert degradation.add_noise(edge, 100, generator()).min() == -1024
    high = np.full((5, 5, 5), 32767, np.int16)
    assert degradation.add_noise(high, 100, generator()).min() > 30000


def test_lost_slices_are_air_and_stay_lost():
    original = volume()
    lost = [
        set(np.flatnonzero((degradation.lose_slices(original, level, generator()) == -1024).all(axis=(1, 2))))
        for level in (0.1, 0.25, 1.0)
    ]
    assert [len(one) for one in lost] == [2, 5, 20]
    assert lost[0] < lost[1] < lost[2]


def test_crop_keeps_the_middle():
    original = volume()
    damaged = degradation.crop(original, 0.5, generator())
    np.testing.assert_array_equal(damaged[5:15, 2:7, 3:9], original[5:15, 2:7, 3:9])
    assert (damaged != -1024).sum() == 10 * 5 * 6
    assert (degradation.crop(original, 1.0, generator()) == -1024).all()


def test_truncation_counts_words():
    assert degradation.truncate("a b c d", 0.5, generator()) == "a b"
    assert degradation.truncate("a  b c d", 0.0, generator()) == "a  b c d"
    assert degradation.truncate("a b c d", 1.0, generator()) == "a"
    assert degradation.truncate("a", 0.9, generator()) == "a"
    assert degradation.truncate("", 0.9, generator()) == ""


def test_vague_text_states_no_finding():
    stated = extract(REPORT, FINDINGS)
    assert stated["cardiomegaly"] == 1
    assert stated["pleural_effusion"] == -1
    vague = degradation.make_vague(REPORT, 1.0, generator())
    assert not any(extract(vague, FINDINGS).values())
    assert "The patient was cooperative." in vague
    half = degradation.make_vague(REPORT, 0.5, generator())
    assert 0 < sum(status != 0 for status in extract(half, FINDINGS).values()) < 4
    assert degradation.make_vague(REPORT, 0.0, generator()) == REPORT


def test_a_text_without_findings_stays():
    assert degradation.make_vague("The patient was cooperative.", 1.0, generator()) == (
        "The patient was cooperative."
    )


@pytest.mark.parametrize("levels", [(0.0, 0.5), (0.5, 0.25), (0.5, 1.5), (-0.1,)])
def test_levels_that_do_not_ascend(levels):
    with pytest.raises(ValueError, match="ascending levels above 0, shares up to 1"):
        degradation.ladder("cropped", levels)


def test_ladders_start_at_0():
    assert list(degradation.ladder("noise", (25.0, 300.0))) == [0, 25, 300]
