"""Figures of the prognosis evaluator, and its section of the page."""

import json

import numpy as np
import pytest

from medclip_jax.evaluation import survival_metrics as metrics
from medclip_jax.evaluation.result_file import write_results
from medclip_jax.evaluation.run import Evaluation
from medclip_jax.pages import survival_figures
from medclip_jax.pages.evaluation import write_evaluation_page
from tests.evaluation.test_prognosis import made_splits, prognosis


@pytest.fixture(scope="module")
def result():
    return prognosis(made_splits(), clinical=("age",), risks=("log_hazard",), draws=10)


def test_curves_and_numbers_at_risk(result):
    panel, below = survival_figures.survival_curves(result).axes
    assert [text.get_text() for text in panel.get_legend().get_texts()] == [
        "low risk",
        "middle risk",
        "high risk",
    ]
    steps = [
        line for line in panel.get_lines() if len(line.get_xdata()) and line.get_drawstyle() == "steps-post"
    ]
    for place, line in enumerate(steps):
        own = result.group == place
        curve = metrics.kaplan_meier(result.time[own], result.event[own])
        np.testing.assert_allclose(line.get_ydata()[1:], curve.survival)
    numbers = [text for text in below.texts if text.get_position()[0] == 0]
    assert [int(text.get_text()) for text in numbers] == np.bincount(result.group, minlength=3).tolist()
    # The lowest risk stands on the first line.
    assert numbers[0].get_position()[1] > numbers[2].get_position()[1]


def test_an_empty_group_and_one_horizon_are_drawn():
    result = prognosis(made_splits(), groups=60, horizons=(6.0,), draws=0)
    assert len(np.unique(result.group)) < 60
    survival_figures.survival_curves(result).canvas.draw()
    survival_figures.auc_over_time(result).canvas.draw()
    (panel,) = survival_figures.calibration(result).axes
    np.testing.assert_allclose(panel.get_lines()[1].get_ydata(), result.horizons[6.0].calibration.frequency)


def test_page_and_json(result, tmp_path):
    evaluation = Evaluation("test", 144, {"prognosis": result}, {}, None, 1.0)
    text = write_evaluation_page(tmp_path / "page.html", evaluation).read_text()
    for part in ("Prognosis", "Kaplan-Meier", "calibration error", "model - clinical", "AUC at 12 months"):
        assert part in text
    written = json.loads(write_results(tmp_path / "numbers.json", evaluation, {"prognosis": {}}).read_text())
    assert written["metrics"]["prognosis/harrell_c"] == result.metrics()["harrell_c"]
    low, high = written["intervals"]["prognosis/auc/12"]
    assert low < written["metrics"]["prognosis/auc/12"] < high
    assert "time 'survival_months'" in written["conditions"]["prognosis"]["outcome"]
