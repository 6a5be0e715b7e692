"""The MLP probe on planted features."""

import numpy as np
import pytest
from sklearn import metrics as reference
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from medclip_jax.evaluation.embeddings import EmbeddedSplit
from medclip_jax.evaluation.mlp import Recipe, classify
from medclip_jax.evaluation.mlp_probe import evaluate_mlp_probe
from medclip_jax.evaluation.settings import check_evaluators
from tests.evaluation.test_few_shot import CLASSES, made_splits

QUICK = {"epochs": 30, "learning_rate": 3e-3, "hidden": 16, "draws": 50}


def probe(splits, **settings):
    settings = {"classes": CLASSES, "findings": CLASSES} | QUICK | settings
    return evaluate_mlp_probe(splits["test"], None, load_split=splits.get, **settings)


def test_planted_classes_are_found_and_noise_is_not():
    result = probe(made_splits())
    flat = result.metrics()
    assert flat["accuracy/classes"] > 0.9
    assert flat["accuracy_low/classes"] <= flat["accuracy/classes"] <= flat["accuracy_high/classes"]
    assert all(flat[f"auroc/{name}"] > 0.85 for name in CLASSES)
    assert flat["scored/classes"] == sum(result.group.scored)
    noise = probe(made_splits(), features="pooled").metrics()
    assert 0.15 < noise["accuracy/classes"] < 0.5
    assert 0.35 < noise["auroc_mean"] < 0.65


def test_values_follow_from_the_probabilities():
    result = probe(made_splits(signal=0.4))
    group = result.group
    np.testing.assert_allclose(group.probabilities.sum(axis=1), 1, atol=1e-5)
    called = group.probabilities.argmax(axis=1)
    recall = reference.recall_score(group.truth, called, average=None)
    assert group.values["accuracy"] == pytest.approx(reference.accuracy_score(group.truth, called), abs=1e-12)
    assert group.values["balanced_accuracy"] == pytest.approx(recall.mean(), abs=1e-12)
    for place, name in enumerate(CLASSES):
        assert group.values[f"recall/{name}"] == pytest.approx(recall[place], abs=1e-12)
        rest = reference.accuracy_score(group.truth == place, called == place)
        assert group.values[f"one_versus_rest/{name}"] == pytest.approx(rest, abs=1e-12)
    single = result.findings[CLASSES[0]]
    area = reference.roc_auc_score(single.truth == 1, single.probabilities[:, 1])
    assert single.values["auroc"] == pytest.approx(area, abs=1e-9)


def test_intervals_are_over_patients():
    result = probe(made_splits(signal=0.4), draws=300)
    low, high, defined = result.group.intervals["accuracy"]
    right = result.group.probabilities.argmax(axis=1) == result.group.truth
    # Two studies of a patient each: an interval that is about as wide as that of as many independent ones.
    error = 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / len(right))
    assert 0.5 * error < (high - low) / 2 < 1.8 * error
    assert defined == 300
    assert probe(made_splits(), draws=0).group.intervals == {}


def test_twice_gives_the_same_and_another_seed_another_classifier():
    splits = made_splits(signal=0.4)
    one, two, other = (probe(splits, seed=seed).group.probabilities for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - other).max() > 1e-3


def test_equals_a_network_written_out():
    """Forward by hand through the weights that the same training leaves."""
    generator = np.random.default_rng(0)
    inputs, queries = generator.normal(size=(40, 5)), generator.normal(size=(9, 5))
    known = generator.integers(0, 3, 40)
    found = classify(inputs, known, queries, Recipe(hidden=8, epochs=3, learning_rate=1e-2), seed=3)
    model = MLPClassifier(
        (8, 8),
        learning_rate_init=1e-2,
        max_iter=3,
        batch_size=16,
        alpha=0,
        n_iter_no_change=9,
        random_state=3,
    )
    with pytest.warns(ConvergenceWarning):
        model.fit(inputs, known)
    hidden = queries
    for weight, bias in zip(model.coefs_[:2], model.intercepts_[:2], strict=True):
        hidden = np.maximum(hidden @ weight + bias, 0)
    logits = hidden @ model.coefs_[2] + model.intercepts_[2]
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    # Rows whose class is unknown change nothing.
    more = np.concatenate([inputs, 100 + generator.normal(size=(50, 5))])
    padded = np.concatenate([known, np.full(50, -1)])
    again = classify(more, padded, queries, Recipe(hidden=8, epochs=3, learning_rate=1e-2), seed=3)
    np.testing.assert_array_equal(again, found)


def test_all_epochs_run_however_the_loss_goes():
    inputs, classes = np.zeros((40, 3)), np.arange(40) % 2
    few, many = (classify(inputs, classes, inputs[:1], Recipe(4, n, 1e-2), seed=0) for n in (20, 60))
    assert not np.array_equal(few, many)


def test_holdout_and_words():
    splits = made_splits()
    result = evaluate_mlp_probe(splits["test"], None, classes=CLASSES, holdout=0.4, **QUICK)
    assert "36 volumes of 18 patients" in result.conditions["n"]
    text = str(result)
    for part in ("one against the rest", "chance: the most frequent one", "Adam 0.003", "AUROC"):
        assert part in text


def test_constant_features_tell_nothing_apart():
    splits = made_splits()
    constant = {
        name: EmbeddedSplit(**{**vars(split), "pooled": np.full_like(split.pooled, 3.3)})
        for name, split in splits.items()
    }
    flat = probe(constant, features="pooled").metrics()
    assert flat["auroc_mean"] == pytest.approx(0.5, abs=1e-9)


def test_wrong_settings_are_named():
    for settings, fault in (
        ({"epochs": 0}, "1 or more"),
        ({"hidden": 1.5}, "whole number"),
        ({"learning_rate": "high"}, "number"),
    ):
        with pytest.raises(ValueError, match=fault):
            check_evaluators({"mlp_probe": settings})
