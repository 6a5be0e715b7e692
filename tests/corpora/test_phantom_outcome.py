"""Survival of phantoms: by the hazard that is stated, and nothing of the scan changes with it."""

import csv

import numpy as np
import pytest
from scipy import stats

from medclip_jax.corpora.folder import folder as read_folder
from medclip_jax.corpora.phantom import PhantomSettings, generate, outcome, write

COARSE = PhantomSettings(in_plane_mm=(6.0, 6.0), slice_mm=(9.0,))


def test_the_hazard_is_the_sum_of_age_and_findings():
    assert outcome.log_hazard(60, {}) == 0
    labels = {"consolidation": 1, "emphysema": 1, "lung_nodule": -1, "coronary_stenosis": 1}
    # By hand: two decades at 0.4, consolidation 1.0, emphysema 0.8; stenosis is none of them.
    assert outcome.log_hazard(80, labels) == pytest.approx(2 * 0.4 + 1.0 + 0.8)
    assert outcome.log_hazard(80, labels | {"emphysema": 0}) == pytest.approx(2 * 0.4 + 1.0)


def test_deaths_follow_the_weibull_distribution(monkeypatch):
    """Without an end of observation, times have the distribution that is stated (Kolmogorov-Smirnov)."""
    monkeypatch.setattr(outcome, "FOLLOW_UP_MONTHS", (1e9, 2e9))
    labels = {"pleural_effusion": 1}
    rng = np.random.default_rng(0)
    drawn = [outcome.draw_survival(75, labels, rng) for _ in range(4000)]
    assert all(died for _, died in drawn)
    hazard = np.exp(1.5 * 0.4 + 0.8)
    expected = stats.weibull_min(1.2, scale=90.0 * hazard ** (-1 / 1.2))
    assert stats.kstest([months for months, _ in drawn], expected.cdf).pvalue > 0.01


def test_who_lives_past_the_end_of_observation_is_censored_there():
    rng = np.random.default_rng(1)
    drawn = [outcome.draw_survival(60, {}, rng) for _ in range(2000)]
    censored = np.array([months for months, died in drawn if not died])
    assert censored.min() >= 6
    assert censored.max() <= 36
    # P(death before a uniform end of observation), by the trapezoid rule.
    ends = np.linspace(6, 36, 2001)
    died = np.trapezoid(1 - np.exp(-((ends / 90.0) ** 1.2)), ends) / 30
    assert np.mean([died for _, died in drawn]) == pytest.approx(died, abs=0.03)


@pytest.mark.parametrize(
    ("age", "band"), [(30.0, "30-44"), (44.99, "30-44"), (45.0, "45-59"), (74.9, "60-74"), (90.0, "75-90")]
)
def test_age_bands(age, band):
    assert outcome.groups_of(age=age, female=True, contrast=False, sharpness=0.0)["age"] == band


def test_groups_name_what_they_are():
    assert outcome.groups_of(age=50, female=False, contrast=True, sharpness=0.6) == {
        "scanner": "sharp kernel",
        "sex": "male",
        "age": "45-59",
        "contrast": "with contrast",
    }
    other = outcome.groups_of(age=50, female=True, contrast=False, sharpness=0.59)
    assert (other["scanner"], other["sex"]) == ("smooth kernel", "female")
    assert other["contrast"] == "without contrast"


def test_reconstructions_of_a_study_share_outcome_and_patient():
    first, second = (generate(5, index, settings=COARSE) for index in (2, 3))
    assert first.study_id == second.study_id
    for name in ("age", "log_hazard", "survival_months", "event"):
        assert first.measurements[name] == second.measurements[name]
    assert first.measurements["log_hazard"] == outcome.log_hazard(first.measurements["age"], first.labels)
    for name in ("sex", "age", "contrast"):
        assert first.groups[name] == second.groups[name]
    assert (
        generate(5, 4, settings=COARSE).measurements["survival_months"]
        != first.measurements["survival_months"]
    )


def test_the_table_has_them_and_the_corpus_reads_them(tmp_path):
    table = write(tmp_path, 2, seed=6, settings=COARSE)
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for index, (row, study) in enumerate(zip(rows, read_folder(table), strict=True)):
        phantom = generate(6, index, settings=COARSE)
        assert {key[6:]: row[key] for key in row if key.startswith("group:")} == dict(phantom.groups)
        assert row["measurement:event"] in ("0", "1")
        for name in ("age", "log_hazard", "survival_months", "event"):
            assert study.measurements[name] == pytest.approx(phantom.measurements[name], rel=1e-5)
