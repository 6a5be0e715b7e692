"""All bootstrap draws at once against one at a time."""

import numpy as np
import pytest

from medclip_jax.evaluation import bootstrap, metrics


@pytest.mark.parametrize("name", ["auroc", "average_precision"])
def test_equals_the_interval_that_resamples_rows(name):
    """Ties, patients with several rows, and draws of one class alone."""
    generator = np.random.default_rng(0)
    patients = generator.integers(0, 14, 40) * 7 - 3
    labels = np.isin(patients, np.unique(patients)[:3])
    scores = np.round(generator.normal(size=40) + labels, 1)
    weights = bootstrap.draw_patients(patients, 300, seed=5)
    values = getattr(bootstrap, name)(labels, scores, weights)
    expected = metrics.bootstrap_interval(
        getattr(metrics, name), labels, scores, draws=300, seed=5, groups=patients
    )
    assert 0 < expected.defined < 300
    assert metrics.percentile_interval(values) == pytest.approx(expected, abs=1e-12)


def test_parts_give_the_same(monkeypatch):
    generator = np.random.default_rng(1)
    labels, scores = generator.random(30) > 0.5, generator.normal(size=30)
    weights = bootstrap.draw_patients(np.arange(30), 50, seed=0)
    at_once = bootstrap.auroc(labels, scores, weights)
    monkeypatch.setattr(bootstrap, "_AT_ONCE", 100)
    np.testing.assert_array_equal(bootstrap.auroc(labels, scores, weights), at_once)


def test_rows_of_a_patient_are_drawn_together():
    patients = np.array([9, 2, 9, 5, 2, 9])
    weights = bootstrap.draw_patients(patients, 20, seed=3)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, [0, 1, 3]].sum(axis=1), 3)
    assert len(np.unique(weights, axis=0)) > 5
