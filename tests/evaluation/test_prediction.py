"""Scores of what a model predicts, against scikit-learn."""

import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, roc_auc_score

from medclip_jax.evaluation.embeddings import EmbeddedSplit
from medclip_jax.evaluation.prediction import evaluate_prediction
from medclip_jax.evaluation.results import NotEvaluable

NAMES = ("a", "b", "c")


def split_of(truth, told, name="test", patients=None):
    count = len(truth)
    patients = np.arange(count) if patients is None else patients
    return EmbeddedSplit(
        name=name,
        volumes=np.ones((count, 2), np.float32),
        studies=np.arange(count),
        patients=np.asarray(patients, np.int64),
        ids=tuple(f"{name}-{row}" for row in range(count)),
        predicted=dict(zip(NAMES, np.asarray(told, np.float32).T, strict=True)),
        truths=dict(zip(NAMES, np.asarray(truth, np.int8).T, strict=True)),
    )


def made(seed=0, count=60):
    draw = np.random.default_rng(seed)
    truth = draw.integers(-1, 2, (count, 3))
    return truth, np.round(1 / (1 + np.exp(-truth - draw.normal(size=truth.shape))), 1)  # with ties


def classes(seed=0, count=60):
    draw = np.random.default_rng(seed)
    own = draw.integers(0, 3, count)
    logits = draw.normal(size=(count, 3)) + 1.2 * np.eye(3)[own]
    return own, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_numbers_equal_scikit_learns_on_what_is_known():
    truth, told = made()
    result = evaluate_prediction(split_of(truth, told), None, draws=0)
    found = result.metrics()
    for place, name in enumerate(NAMES):
        known = truth[:, place] != 0
        labels, scores = truth[known, place] > 0, told[known, place]
        assert found[f"auroc/{name}"] == pytest.approx(roc_auc_score(labels, scores))
        assert found[f"average_precision/{name}"] == pytest.approx(average_precision_score(labels, scores))
        assert found[f"f1/{name}"] == pytest.approx(f1_score(labels, scores >= 0.5))
        assert found[f"present/{name}"] == labels.sum()
    assert found["auroc_mean"] == pytest.approx(np.mean([found[f"auroc/{name}"] for name in NAMES]))
    assert "accuracy_of_classes" not in found
    assert str(result).startswith("Predictions\n")
    assert result.conditions["threshold"] == "probability of 1/2"


def test_what_is_undefined_is_nan_and_what_is_unknown_is_left_out():
    truth, told = made()
    truth[:, 0], truth[:, 1] = 1, 0
    result = evaluate_prediction(split_of(truth, told), None, draws=20)
    assert np.isnan(result.metrics()["auroc/a"])
    assert set(result.findings) == {"a", "c"}
    assert result.metrics()["auroc_mean"] == result.metrics()["auroc/c"]
    truth[:] = 0
    with pytest.raises(NotEvaluable, match=r"no truth of what the model predicts \(a, b, c\)"):
        evaluate_prediction(split_of(truth, told), None)
    truth, told = made()
    told[3, 2] = np.nan
    truth[3, 2] = 1
    with pytest.raises(ValueError, match="NaN"):
        evaluate_prediction(split_of(truth, told), None, draws=0)


def test_thresholds_come_from_the_split_that_is_named_and_from_no_other():
    truth, told = made()
    other = split_of(*made(1), name="validation")
    scored = split_of(truth, told)
    result = evaluate_prediction(
        scored, None, threshold="validation", draws=0, load_split={"validation": other}.get
    )
    for name in NAMES:
        labels, scores = other.truths[name], other.predicted[name]
        best = max(f1_score(labels[labels != 0] > 0, scores[labels != 0] >= cut) for cut in np.unique(scores))
        chosen = f1_score(labels[labels != 0] > 0, scores[labels != 0] >= result.findings[name].threshold)
        assert chosen == pytest.approx(best)
    assert "'validation'" in result.conditions["threshold"]
    with pytest.raises(ValueError, match="is the split being scored"):
        evaluate_prediction(
            split_of(truth, told, name="validation"), None, threshold="validation", load_split=lambda _: other
        )


@pytest.mark.parametrize("missing", [False, True])
def test_classes_that_exclude_one_another_have_an_accuracy(missing):
    own, told = classes()
    if missing:  # a class that the split does not have
        kept = own != 2
        own, told = own[kept], told[kept]
    truth = np.where(np.eye(3)[own] > 0, 1, -1)
    truth[5] = 0
    model = SimpleNamespace(exclusive=True, outcome=())
    result = evaluate_prediction(split_of(truth, told), None, draws=0, embedder=model)
    known = np.arange(len(own)) != 5
    called = told.argmax(axis=1)[known]
    assert result.classes["accuracy"] == pytest.approx((called == own[known]).mean())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the class without volumes
        expected = balanced_accuracy_score(own[known], called)
    assert result.classes["balanced_accuracy"] == pytest.approx(expected)
    assert "most probable class" in str(result)


def test_intervals_draw_patients():
    own, told = classes(count=30)
    truth = np.where(np.eye(3)[own] > 0, 1, -1)
    model = SimpleNamespace(exclusive=True, outcome=())
    once = evaluate_prediction(split_of(truth, told), None, draws=200, embedder=model)
    twice = split_of(
        np.repeat(truth, 4, axis=0), np.repeat(told, 4, axis=0), patients=np.repeat(np.arange(30), 4)
    )
    again = evaluate_prediction(twice, None, draws=200, embedder=model)
    for key, interval in once.all_intervals().items():
        assert again.all_intervals()[key] == pytest.approx(interval), key
    assert (
        once.class_intervals["accuracy"].low
        < once.classes["accuracy"]
        < once.class_intervals["accuracy"].high
    )


def timed(count=40, seed=0):
    """A split with outcomes that the last answer tells of, and a model that says so."""
    draw = np.random.default_rng(seed)
    truth, told = made(seed, count)
    months = np.round(draw.exponential(10, count), 0)  # with ties
    event = (draw.random(count) < 0.6).astype(np.float32)
    months[4], event[7] = np.nan, np.nan
    told[:, 2] = np.round(1 / (1 + np.nan_to_num(months)) + draw.normal(0, 0.2, count), 1)
    split = replace(split_of(truth, told), measurements={"months": months, "event": event})
    return split, SimpleNamespace(exclusive=False, outcome=("months", "event"))


def test_the_concordance_of_a_risk_is_that_of_lifelines():
    lifelines = pytest.importorskip("lifelines.utils")
    split, model = timed()
    result = evaluate_prediction(split, None, draws=50, embedder=model)
    months, event = split.measurements["months"], split.measurements["event"]
    known = ~np.isnan(months) & ~np.isnan(event)
    risk = split.predicted["c"][known]
    expected = lifelines.concordance_index(months[known], -risk, event[known])
    found = result.metrics()
    assert found["concordance"] == pytest.approx(expected)
    assert found["events"] == event[known].sum()
    assert found["events"] + found["censored"] == 38
    assert result.concordance_interval.low < expected < result.concordance_interval.high
    assert result.all_intervals()["concordance"] == result.concordance_interval
    task = result.scored()[""].tasks["time to the event"]
    np.testing.assert_array_equal(task.rows, np.flatnonzero(known))
    assert "Time to the event" in str(result)


def test_a_risk_alone_is_scored_without_answers():
    split, model = timed()
    alone = replace(split, truths={})
    result = evaluate_prediction(alone, None, draws=0, embedder=model)
    assert set(result.metrics()) == {"concordance", "events", "censored"}
    assert list(result.scored()[""].tasks) == ["time to the event"]
    nothing = replace(alone, measurements={"months": split.measurements["months"]})
    with pytest.raises(NotEvaluable, match="no truth of what the model predicts"):
        evaluate_prediction(nothing, None, draws=0, embedder=model)
