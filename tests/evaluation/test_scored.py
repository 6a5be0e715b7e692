"""Scores of every volume: what results give, and that files keep them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics as reference

from medclip_jax.evaluation.few_shot import evaluate_few_shot
from medclip_jax.evaluation.mlp_probe import evaluate_mlp_probe
from medclip_jax.evaluation.probe import evaluate_probe
from medclip_jax.evaluation.scored import (
    FindingTask,
    Scored,
    SurvivalTask,
    ValueTask,
    from_json,
    named,
    to_json,
)
from medclip_jax.evaluation.zero_shot import evaluate_zero_shot
from tests.evaluation.test_evaluators import encode_texts, made_split
from tests.evaluation.test_few_shot import CLASSES
from tests.evaluation.test_few_shot import made_splits as splits_with_classes
from tests.evaluation.test_probe import made_splits as splits_to_probe


def with_ids(splits):
    return {
        name: replace(split, ids=tuple(f"{name}{i}" for i in range(len(split.studies))))
        for name, split in splits.items()
    }


def made_scored():
    return Scored(
        ("a", "b", "c", "d"),
        np.array([3, -5, -5, 2**62]),
        {
            "x": FindingTask(np.array([0, 2, 3]), np.array([True, False, True]), np.eye(2, 3), 0.25),
            "y": FindingTask(np.array([1]), np.array([False]), np.array([[0.5]])),
            "dice": ValueTask(np.array([1, 3]), np.array([[0.25, 1.0]]), "dice"),
            "event": SurvivalTask(
                np.array([0, 1]), np.array([3.5, 1.0]), np.array([True, False]), np.array([[2.0, -1.0]])
            ),
        },
    )


def assert_equal(one, two):
    assert (tuple(one.ids), list(one.tasks)) == (tuple(two.ids), list(two.tasks))
    np.testing.assert_array_equal(one.patients, two.patients)
    for name, task in one.tasks.items():
        other = two.tasks[name]
        assert type(task) is type(other)
        for key, value in vars(task).items():
            np.testing.assert_array_equal(value, getattr(other, key))


def test_a_file_gives_back_what_was_written():
    scored = made_scored()
    assert_equal(scored, from_json(json.loads(json.dumps(to_json(scored)))))


def test_the_form_of_earlier_files():
    """One repetition is a flat column; files without values and survival are read."""
    content = to_json(made_scored())
    assert content["findings"]["y"] == {
        "threshold": None,
        "labels": [None, 0, None, None],
        "scores": [None, 0.5, None, None],
    }
    assert content["patients"][1] == "fffffffffffffffb"
    del content["values"], content["survival"]
    assert list(from_json(content).tasks) == ["x", "y"]
    with pytest.raises(ValueError, match="for 4 volumes"):
        from_json({**content, "findings": {"y": {"threshold": None, "labels": [1], "scores": [2.0]}}})


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"\(repetitions, volumes\) for 2 volumes"):
        Scored((), np.zeros(2), {"x": ValueTask(np.arange(2), np.zeros(2), "dice")})
    with pytest.raises(ValueError, match="one repetition at least"):
        Scored((), np.zeros(2), {"x": ValueTask(np.arange(2), np.zeros((0, 2)), "dice")})


def test_names_of_parts():
    class Result:
        def scored(self):
            return {"": made_scored(), "10%": made_scored(), "empty": replace(made_scored(), tasks={})}

    assert list(named({"probe": Result(), "other": object()})) == ["probe", "probe/10%"]
    assert named({"zero_shot": evaluate_zero_shot(made_split(), encode_texts, draws=0)}) == {}  # without ids


def test_zero_shot():
    data = made_split(ids=tuple(map(str, range(60))))
    result = evaluate_zero_shot(data, encode_texts, draws=0)
    task = result.scored()[""].tasks["cardiomegaly"]
    np.testing.assert_array_equal(task.rows, np.flatnonzero(data.labels["cardiomegaly"]))
    np.testing.assert_array_equal(task.labels, data.labels["cardiomegaly"][task.rows] == 1)
    expected = result.metrics()
    area = reference.roc_auc_score(task.labels, task.scores[0])
    assert area == pytest.approx(expected["auroc/cardiomegaly"], abs=1e-12)
    f1 = reference.f1_score(task.labels, task.scores[0] >= task.threshold)
    assert f1 == pytest.approx(expected["f1/cardiomegaly"], abs=1e-12)


def test_probe():
    splits = with_ids(splits_to_probe(signal=0.5))
    splits["test"].labels["planted"][7] = 0
    result = evaluate_probe(
        splits["test"], None, load_split=splits.get, shares=(0.1, 1.0), penalties=(1.0,), draws=0
    )
    parts, flat = named({"probe": result}), result.metrics()
    assert list(parts) == ["probe/10%", "probe/100%"]
    for share, draws in (("10%", 3), ("100%", 1)):
        task = parts[f"probe/{share}"].tasks["planted"]
        assert task.scores.shape == (draws, 119)
        assert 7 not in task.rows
        areas = [reference.roc_auc_score(task.labels, run) for run in task.scores]
        assert np.mean(areas) == pytest.approx(flat[f"{share}/auroc/planted"], abs=1e-12)
    assert parts["probe/10%"].ids == splits["test"].ids


@pytest.mark.parametrize("holdout", [0.0, 0.5])
def test_mlp_probe_and_few_shot(holdout):
    splits = with_ids(splits_with_classes(signal=0.3))
    given = {"classes": CLASSES, "load_split": splits.get, "holdout": holdout}
    quick = {"epochs": 5, "learning_rate": 3e-3, "hidden": 8, "draws": 0}
    result = evaluate_mlp_probe(splits["test"], None, **given, **quick)
    scored, flat = result.scored()[""], result.metrics()
    where = {name: row for row, name in enumerate(splits["test"].ids)}
    for name, task in scored.tasks.items():
        if name == "classes":
            assert task.metric == "accuracy"
            assert task.scores.mean() == pytest.approx(flat["accuracy/classes"], abs=1e-12)
            continue
        area = reference.roc_auc_score(task.labels, task.scores[0])
        assert area == pytest.approx(flat[f"auroc/{name}"], abs=1e-9)
        called = (task.scores[0] >= task.threshold) == task.labels
        assert called.mean() == pytest.approx(flat[f"accuracy/{name}"], abs=1e-12)
        rows = [where[scored.ids[row]] for row in task.rows]
        np.testing.assert_array_equal(splits["test"].labels[name][rows] == 1, task.labels)
    few = evaluate_few_shot(splits["test"], None, **given, repeats=5, shots=(1, 2))
    parts, flat = few.scored(), few.metrics()
    for part, scored in parts.items():
        for name, task in scored.tasks.items():
            assert task.scores.mean() == pytest.approx(flat[f"{part}/accuracy/{name}"], abs=1e-12)
            assert len(task.rows) == task.scores.shape[1] <= len(scored.ids)
