"""Pictures of the probes: they show the numbers, and the page holds them."""

import numpy as np
import pytest

from medclip_jax.evaluation.few_shot import evaluate_few_shot
from medclip_jax.evaluation.mlp_probe import evaluate_mlp_probe
from medclip_jax.evaluation.probe_result import FindingProbe, ProbeResult
from medclip_jax.evaluation.run import Evaluation
from medclip_jax.pages import probe_figures
from medclip_jax.pages.evaluation import write_evaluation_page
from tests.evaluation.test_few_shot import CLASSES, made_splits


def made_probe(value, draws=40):
    generator = np.random.default_rng(int(100 * value))
    values = value + np.array([-0.02, 0.0, 0.02])
    return FindingProbe(
        12,
        4,
        (1.0, 1.0, 0.1),
        np.arange(2),
        np.array([True, False]),
        np.zeros((3, 2)),
        values,
        values - 0.1,
        value + generator.normal(0, 0.03, draws),
        np.zeros(draws),
    )


def made_result(**changes):
    fields = {
        "counts": {"cardiomegaly": (20, 30), "emphysema": (3, 47), "pleural_effusion": (25, 25)},
        "trained": {
            share: {name: made_probe(start + i / 10) for i, name in enumerate(("cardiomegaly", "emphysema"))}
            for share, start in ((0.1, 0.6), (1.0, 0.8))
        },
        "random": {},
        "too_few": {"pleural_effusion": "1 patients with it and 99 without in training"},
        "conditions": {"n": "50 <b>"},
    }
    return ProbeResult(**{**fields, **changes})


def test_a_panel_for_the_mean_and_for_each_finding_that_is_shown():
    figure = probe_figures.label_shares(made_result(random=made_result().trained))
    panels = [panel for panel in figure.axes if panel.axison]
    assert [panel.get_title() for panel in panels] == ["mean", "cardiomegaly"]
    random, trained, _ = panels[1].lines
    np.testing.assert_allclose(trained.get_ydata(), [0.6, 0.8])
    np.testing.assert_allclose(trained.get_xdata(), [0.1, 1.0])
    assert len(panels[1].collections) == 2  # a band for each model
    assert random.get_linestyle() == "--"


def test_without_intervals_there_is_no_band():
    bare = {share: {"cardiomegaly": made_probe(0.7, draws=0)} for share in (0.1, 1.0)}
    figure = probe_figures.label_shares(made_result(trained=bare))
    assert not figure.axes[0].collections


def test_on_the_page(tmp_path):
    result = made_result()
    text = write_evaluation_page(
        tmp_path / "page.html", Evaluation("test", 50, {"probe": result}, {}, None, 1.0)
    ).read_text()
    for part in (
        "0.800",
        "too few",
        "not probed",
        "mean AUROC of the linear probe, 100% of labels",
        "50 &lt;b",
    ):
        assert part in text
    few = made_result(counts={"emphysema": (3, 47)}, too_few={})
    assert few.mean(1.0) is None
    text = write_evaluation_page(
        tmp_path / "few.html", Evaluation("test", 50, {"probe": few}, {}, None, 1.0)
    ).read_text()
    assert "data:image/png" not in text


def test_the_mean_over_findings_has_a_deviation_over_draws():
    result = made_result(counts={"cardiomegaly": (20, 30), "emphysema": (13, 37)}, too_few={})
    mean = result.mean(0.1)
    assert mean.value == pytest.approx(0.65)
    assert mean.deviation == pytest.approx(0.02)
    assert str(mean).startswith("0.650 ± 0.020 [")


def test_few_shot_and_mlp_probe_on_the_page(tmp_path):
    splits = made_splits()
    given = {"classes": CLASSES, "findings": CLASSES, "load_split": splits.get}
    few = evaluate_few_shot(splits["test"], None, shots=(1, 4), repeats=5, **given)
    small = evaluate_mlp_probe(splits["test"], None, epochs=2, hidden=4, draws=10, **given)
    figure = probe_figures.shots(few)
    lines = figure.axes[0].get_lines()
    np.testing.assert_allclose(lines[0].get_ydata(), [few.group.accuracy[n].mean() for n in (1, 4)])
    means = [np.mean([task.auroc[n].mean() for task in few.findings.values()]) for n in (1, 4)]
    np.testing.assert_allclose(lines[1].get_ydata(), means)
    evaluation = Evaluation("test", 90, {"few_shot": few, "mlp_probe": small}, {}, None, 1.0)
    text = write_evaluation_page(tmp_path / "page.html", evaluation).read_text()
    for part in ("Few-shot", "MLP probe", "1 shot", "one against the rest", "accuracy of the classes"):
        assert part in text
