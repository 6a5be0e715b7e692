"""Scores by group, against scikit-learn on the rows of a group."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medclip_jax.evaluation.bootstrap import draw_patients
from medclip_jax.evaluation.embeddings import EmbeddedSplit
from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.evaluation.run import Evaluation
from medclip_jax.evaluation.scored import FindingTask, Scored, SurvivalTask, ValueTask
from medclip_jax.evaluation.settings import USUAL, check_evaluators
from medclip_jax.evaluation.subgroups import cut_into_bands, evaluate_subgroups
from medclip_jax.pages.evaluation import write_evaluation_page

N = 120


def made(n=N):
    """Three scanners, the last too small; scores tell the finding on the first alone. Patients have two."""
    generator = np.random.default_rng(0)
    scanner = np.array(["a"] * 60 + ["b"] * 50 + ["c"] * 6 + [""] * 4)
    labels = generator.random(n) < 0.5
    scores = np.where(scanner == "a", labels * 2.0, 0.0) + generator.normal(size=n)
    data = EmbeddedSplit(
        name="test",
        volumes=np.ones((n, 2), np.float32),
        studies=np.arange(n),
        patients=np.arange(n) // 2,
        measurements={"age": np.where(np.arange(n) % 10 == 0, np.nan, np.arange(n) % 90).astype(np.float32)},
        groups={"scanner": scanner, "sex": np.array(["f", "m"])[np.arange(n) % 2], "nothing": np.full(n, "")},
        ids=tuple(f"id{i}" for i in range(n)),
    )
    return data, labels, scores


def result_of(data, tasks, rows=None):
    rows = np.arange(len(data.ids)) if rows is None else rows
    scored = Scored([data.ids[row] for row in rows], data.patients[rows], tasks)
    return SimpleNamespace(scored=lambda: {"": scored}, metrics=dict, conditions={})


def subgroups(data, results, **settings):
    return evaluate_subgroups(data, None, results=results, **{"draws": 20} | settings)


def test_values_are_those_of_the_rows_of_a_group():
    """Of volumes in another order, some of which are left out."""
    data, labels, scores = made()
    rows = np.random.default_rng(1).permutation(N)[:110]
    known = np.arange(0, 110, 1)[rows % 7 != 3]
    task = FindingTask(known, labels[rows][known], scores[rows][known][None])
    result = subgroups(data, {"zero_shot": result_of(data, {"x": task}, rows)}, groups=("scanner",))
    (division,) = result.divisions
    chosen = rows[known]
    weights = draw_patients(data.patients[rows], 20, 0)[:, known]
    for group in ("a", "b"):
        inside = data.groups["scanner"][chosen] == group
        rest = ~inside & (data.groups["scanner"][chosen] != "")
        found = division.groups[group]["x"]
        assert found.volumes == inside.sum()
        assert found.patients == len(np.unique(data.patients[chosen][inside]))
        assert found.counts == (labels[chosen][inside].sum(), (~labels[chosen][inside]).sum())
        areas = [roc_auc_score(labels[chosen][side], scores[chosen][side]) for side in (inside, rest)]
        assert found.value == pytest.approx(areas[0], abs=1e-12)
        assert found.difference == pytest.approx(areas[0] - areas[1], abs=1e-12)
        drawn = []
        for weight in weights:
            sides = [
                roc_auc_score(labels[chosen][side], scores[chosen][side], sample_weight=weight[side])
                for side in (inside, rest)
            ]
            drawn.append((sides[0], sides[0] - sides[1]))
        expected = np.quantile(drawn, [0.025, 0.975], axis=0)
        assert found.interval[:2] == pytest.approx(expected[:, 0], abs=1e-9)
        assert found.difference_interval[:2] == pytest.approx(expected[:, 1], abs=1e-9)
    assert division.groups["a"]["x"].difference_interval.low > 0.1


def test_few_volumes_are_not_shown_and_unknown_ones_are_counted():
    data, labels, scores = made()
    task = FindingTask(np.arange(N), labels, scores[None])
    result = subgroups(data, {"zero_shot": result_of(data, {"x": task})})
    assert [one.column for one in result.divisions] == ["scanner", "sex"]  # nothing is known of the third
    small = result.divisions[0].groups["c"]["x"]
    assert (small.volumes, small.is_enough) == (6, False)
    assert np.isnan(small.difference)
    assert "" not in result.divisions[0].groups
    text = str(result)
    row = next(line for line in text.splitlines() if line.startswith("x") and "  c  " in line)
    assert row.count("too few") == 2
    assert "scanner: a 60, b 50, c 6, unknown and left out 4" in text
    # No task has enough in every scanner; of the sexes the mean is that of the only task.
    assert result.divisions[0].in_mean == ()
    assert np.isnan(result.divisions[0].widest)
    sex = result.divisions[1]
    assert sex.in_mean == ("x",)
    assert sex.groups["f"]["mean"].value == sex.groups["f"]["x"].value
    assert sex.groups["f"]["mean"].difference == pytest.approx(-sex.groups["m"]["mean"].difference)
    assert sex.widest == pytest.approx(abs(sex.groups["f"]["x"].value - sex.groups["m"]["x"].value))
    flat = result.metrics()
    assert flat["zero_shot/scanner/c/volumes/x"] == 6
    assert flat["zero_shot/sex/f/auroc/x"] == sex.groups["f"]["x"].value
    assert flat["zero_shot/sex/f/auroc_low/x"] <= flat["zero_shot/sex/f/auroc/x"]
    assert flat["zero_shot/sex/auroc_widest"] == sex.widest
    assert flat["zero_shot/sex/f/auroc_difference_mean"] == sex.groups["f"]["mean"].difference


def test_the_mean_is_over_the_same_tasks_in_all_groups():
    data, labels, scores = made()
    rare = np.zeros(N, bool)
    rare[:60:3] = True  # 10 of each sex, and none on scanner b
    tasks = {
        "x": FindingTask(np.arange(N), labels, scores[None]),
        "y": FindingTask(np.arange(N), ~labels, scores[None]),
        "rare": FindingTask(np.arange(60), rare[:60], scores[None, :60]),
    }
    data.groups["scanner"][110:116] = ""
    result = subgroups(data, {"zero_shot": result_of(data, tasks)})
    scanner, sex = result.divisions
    assert scanner.in_mean == ("x", "y")
    assert sex.in_mean == ("x", "y", "rare")
    for group, tasks in scanner.groups.items():
        values = [tasks[name].value for name in ("x", "y")]
        assert tasks["mean"].value == pytest.approx(np.mean(values), abs=1e-12), group
        assert tasks["mean"].difference == pytest.approx(
            np.mean([tasks[name].difference for name in ("x", "y")]), abs=1e-12
        )
    assert np.isnan(scanner.groups["b"]["rare"].value)


def test_values_survival_and_repetitions():
    data, labels, scores = made()
    rows = np.arange(N)
    times = np.random.default_rng(2).exponential(size=N)
    tasks = {
        "dice": ValueTask(rows, np.stack([scores, scores + 1]), "dice"),
        "event": SurvivalTask(rows, times, labels, -times[None]),
    }
    result = subgroups(data, {"other": result_of(data, tasks)}, groups=("sex",), draws=0)
    dice, event = result.divisions
    assert (dice.metric, event.metric) == ("dice", "concordance")
    female = data.groups["sex"] == "f"
    assert dice.groups["f"]["dice"].value == pytest.approx(scores[female].mean() + 0.5, abs=1e-12)
    assert event.groups["m"]["event"].value == 1.0
    assert event.groups["m"]["event"].counts == (labels[~female].sum(), (~labels[~female]).sum())
    assert np.isnan(event.groups["m"]["event"].interval.low)


def test_bands():
    measured = np.array([-1, 0, 49.9, 50, 65, 119, 120, 121, np.nan])
    found = cut_into_bands(measured, (0, 50, 65, 120))
    assert found.tolist() == [
        "", "0 to 50", "0 to 50", "50 to 65", "65 to 120", "65 to 120", "65 to 120", "", "",
    ]  # fmt: skip
    for edges in ((0,), (0, 0), (5, 1)):
        with pytest.raises(ValueError, match="each above the one before"):
            cut_into_bands(measured, edges)
    data, labels, scores = made()
    results = {"zero_shot": result_of(data, {"x": FindingTask(np.arange(N), labels, scores[None])})}
    result = subgroups(data, results, bands={"age": (0, 5, 45, 100)})
    (division,) = result.divisions
    assert division.column == "age"
    assert list(division.groups) == ["0 to 5", "5 to 45", "45 to 100"]
    ages = data.measurements["age"]
    assert division.groups["5 to 45"]["x"].volumes == ((ages >= 5) & (ages < 45)).sum()
    both = subgroups(data, results, groups=("sex",), bands={"age": (0, 45, 100)})
    assert [one.column for one in both.divisions] == ["sex", "age"]


def test_parts_of_evaluators_are_chosen():
    data, labels, scores = made()
    task = {"x": FindingTask(np.arange(N), labels, scores[None], 0.5)}
    parts = SimpleNamespace(
        scored=lambda: {key: Scored(data.ids, data.patients, task) for key in ("10%", "100%")}
    )
    results = {"probe": parts, "zero_shot": result_of(data, task), "spectrum": object()}
    for of, expected in (
        ((), ["probe/10%", "probe/100%", "zero_shot"]),
        (("probe",), ["probe/10%", "probe/100%"]),
        (("probe/100%",), ["probe/100%"]),
    ):
        found = subgroups(data, results, of=of, groups=("sex",), metric="f1", draws=0)
        assert [one.evaluator for one in found.divisions] == expected
        assert {one.metric for one in found.divisions} == {"f1"}
    with pytest.raises(ValueError, match="no scores of pro; there are those of probe/10%"):
        subgroups(data, results, of=("pro",))


def test_what_is_missing_is_told():
    data, labels, scores = made()
    results = {"zero_shot": result_of(data, {"x": FindingTask(np.arange(N), labels, scores[None])})}
    for nothing in ({}, None, {"spectrum": object()}):
        with pytest.raises(NotEvaluable, match="name some beside, such as zero_shot"):
            subgroups(data, nothing)
    data.groups.clear()
    with pytest.raises(NotEvaluable, match="columns such as group:scanner"):
        subgroups(data, results)
    with pytest.raises(ValueError, match="no groups race; the shards have none"):
        subgroups(data, results, groups=("race",))
    with pytest.raises(ValueError, match="no measurement 'years' to cut into bands; the shards have age"):
        subgroups(data, results, bands={"years": (0, 1)})
    assert "subgroups" not in USUAL
    check_evaluators({"subgroups": {"bands": {"age": (0, 50)}, "groups": ("sex",), "metric": "f1"}})
    for bands in ((0, 50), {"age": (50,)}, {"age": (50, 0)}, {"age": 3}):
        with pytest.raises(ValueError, match="lists of rising numbers"):
            check_evaluators({"subgroups": {"bands": bands}})
    with pytest.raises(ValueError, match="must be one of auroc"):
        check_evaluators({"subgroups": {"metric": "auc"}})


def test_on_the_page(tmp_path):
    data, labels, scores = made()
    data.groups["scanner"][110:116] = ""
    results = {"zero_shot": result_of(data, {"x": FindingTask(np.arange(N), labels, scores[None])})}
    found = subgroups(data, results)
    page = write_evaluation_page(
        tmp_path / "page.html", Evaluation("test", N, {"subgroups": found}, {}, data, 1.0)
    ).read_text()
    assert "best less worst scanner" in page
    assert "Subgroups by sex" in page
    assert page.count("<img") == 1
