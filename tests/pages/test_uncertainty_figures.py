"""Pictures of the uncertainty evaluator: they show the numbers, and the page holds them."""

import numpy as np
import pytest

from medclip_jax.evaluation.degradation import Degradation
from medclip_jax.evaluation.run import Evaluation
from medclip_jax.evaluation.uncertainty import Answers, Inclusion, UncertaintyResult
from medclip_jax.evaluation.uncertainty_metrics import calibration, risk_coverage
from medclip_jax.pages import uncertainty_figures
from medclip_jax.pages.evaluation import write_evaluation_page


def made_answers(n=200):
    generator = np.random.default_rng(0)
    p = generator.random(n)
    labels = (generator.random(n) < p).astype(float)
    wrong = ((p >= 0.5) != labels).astype(float)
    orders = {name: risk_coverage(wrong, generator.random(n)) for name in ("variance", "margin")}
    return Answers(labels, p, orders, calibration(labels, p), {})


def made_result(**changes):
    generator = np.random.default_rng(1)
    levels = np.array([0.0, 25.0, 100.0])
    uncertainty = generator.random((90, 3)) + levels
    scores = generator.normal(1, 2, (30, 2))
    present = generator.random((30, 2)) > 0.2
    fields = {
        "degradations": {
            "noise": Degradation(levels, uncertainty, 0.75, 1.0, {}),
            "vague": Degradation(np.array([0.0, 1.0]), uncertainty[:, :2], float("nan"), float("nan"), {}),
        },
        "answers": made_answers(),
        "inclusion": Inclusion(("lung", "heart"), scores, present, scores > 0, 0.5, None),
        "missing": {},
        "conditions": {"n": "90 <b>"},
    }
    return UncertaintyResult(**{**fields, **changes})


def test_median_and_quartiles_at_every_level():
    result = made_result()
    figure = uncertainty_figures.degradation(result)
    noise, vague = figure.axes[:2]
    found = result.degradations["noise"]
    median = noise.lines[-1]
    np.testing.assert_array_equal(median.get_xdata(), found.levels)
    np.testing.assert_allclose(median.get_ydata(), np.median(found.uncertainty, axis=0))
    band = noise.collections[0].get_paths()[0].vertices
    low, high = np.quantile(found.uncertainty, [0.25, 0.75], axis=0)
    assert {low[0], high[2]} <= set(band[:, 1])
    assert len(noise.lines) - 1 == 45  # every second of 90 samples
    assert "Spearman 0.75 (within 1.00)" in noise.get_title()
    assert noise.get_xlabel() == "level, HU"
    assert "n/a" in vague.get_title()
    assert vague.get_xlabel() == "level, share of the sentences about findings"


def test_flat_and_single_samples_are_drawn():
    flat = Degradation(np.array([0.0, 1.0]), np.zeros((1, 2)), float("nan"), float("nan"), {})
    figure = uncertainty_figures.degradation(made_result(degradations={"cropped": flat}))
    assert figure.axes[0].get_yscale() == "linear"


def test_selective_curves():
    answers = made_answers()
    panel = uncertainty_figures.selective(answers).axes[0]
    curves = {line.get_label().split(":")[0]: line for line in panel.lines}
    assert set(curves) == {"random", "by variance", "by margin", "oracle"}
    np.testing.assert_array_equal(curves["by variance"].get_ydata(), answers.orders["variance"].risk)
    assert np.mean(curves["oracle"].get_ydata()) == pytest.approx(answers.orders["margin"].oracle)
    assert curves["random"].get_ydata()[0] == pytest.approx(curves["oracle"].get_ydata()[-1])


def test_reliability_leaves_empty_bins_out():
    labels, p = np.array([1.0, 0.0, 1.0]), np.array([0.95, 0.91, 0.2])
    answers = Answers(labels, p, {"margin": risk_coverage(labels, p)}, calibration(labels, p), {})
    panel, below = uncertainty_figures.reliability(answers).axes
    np.testing.assert_allclose(panel.lines[1].get_xdata(), [0.2, 0.93])
    np.testing.assert_allclose(panel.lines[1].get_ydata(), [1.0, 0.5])
    assert [bar.get_height() for bar in below.patches] == [0, 0, 1, 0, 0, 0, 0, 0, 0, 2]


@pytest.mark.parametrize("scores", [None, np.zeros((3, 1)), np.full((3, 1), 5.0), np.full((3, 1), -2e5)])
def test_histogram_is_cut_at_zero(scores):
    found = made_result().inclusion
    if scores is not None:
        found = Inclusion(("lung",), scores, np.ones((3, 1), bool), scores > 0, 0.0, None)
    panel = uncertainty_figures.inclusion(found).axes[0]
    shown = found.scores[found.present]
    for bar in panel.patches:
        assert not bar.get_x() < -1e-9 < 1e-9 < bar.get_x() + bar.get_width()
    assert sum(bar.get_height() for bar in panel.patches) == len(shown)
    labels = [text.get_text() for text in panel.get_legend().get_texts()]
    assert labels == [f"inside: {(shown > 0).sum()}", f"not inside: {(shown <= 0).sum()}"]


def test_page(tmp_path):
    evaluation = Evaluation("test", 90, {"uncertainty": made_result()}, {}, None, 1.0)
    text = write_evaluation_page(tmp_path / "page.html", evaluation).read_text()
    assert text.count("data:image/png") == 4
    assert "Spearman, uncertainty and noise" in text
    assert "90 &lt;b&gt;" in text
    parts = {"degradations": {}, "answers": None}
    bare = Evaluation("test", 90, {"uncertainty": made_result(**parts)}, {}, None, 1.0)
    assert write_evaluation_page(tmp_path / "bare.html", bare).read_text().count("data:image/png") == 1
