"""Projections on frozen encoders: losses against NumPy, and what they learn of planted features."""

from dataclasses import replace

import jax
import numpy as np
import optax
import pytest
from scipy.special import logsumexp, softmax
from sklearn import metrics as reference

from medclip_jax.evaluation.adapters import (
    Adapters,
    Schedule,
    pair_loss,
    project,
    train,
    vocabulary_loss,
)
from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.evaluation.run import Evaluation
from medclip_jax.evaluation.settings import check_evaluators
from medclip_jax.evaluation.vocabulary import evaluate_vocabulary
from medclip_jax.pages.evaluation import write_evaluation_page
from tests.evaluation.test_few_shot import CLASSES, made_splits

FAST = {"epochs": 3, "retrieval_epochs": 2, "draws": 20, "learning_rate": 3e-3}


def encode_texts(texts):
    """A vector for each text that depends on its letters alone."""
    drawn = [np.random.default_rng(list(text.encode())).normal(size=6) for text in texts]
    return np.array([one / np.linalg.norm(one) for one in drawn], np.float32)


def splits_with_reports(signal=1.0):
    splits = made_splits(signal)
    for name, split in splits.items():
        reports = [f"{name} report {row // 2}" for row in range(len(split.patients))]
        splits[name] = replace(split, texts={"report": reports})
    return splits


def vocabulary(splits, **settings):
    settings = FAST | {"features": "embedding", "findings": CLASSES} | settings
    return evaluate_vocabulary(splits["test"], encode_texts, load_split=splits.get, **settings)


def made_batch(seed=0, rows=5):
    generator = np.random.default_rng(seed)
    adapters = Adapters(
        (generator.normal(size=(4, 3)), generator.normal(size=3)),
        (generator.normal(size=(6, 3)), generator.normal(size=3)),
    )
    volumes, prompts = generator.normal(size=(rows, 4)), generator.normal(size=(2, 2, 6))
    labels = generator.integers(-1, 2, (rows, 2)).astype(np.int8)
    texts = generator.normal(size=(rows, 6))
    return adapters, volumes, prompts, labels, texts


def unit(vectors, projection):
    found = vectors @ projection[0] + projection[1]
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


def vocabulary_loss_by_hand(adapters, volumes, prompts, labels):
    errors = []
    for row, volume in enumerate(volumes):
        for place, pair in enumerate(prompts):
            if labels[row, place]:
                cosines = unit(pair, adapters.text) @ unit(volume, adapters.volume)
                truth = [0.0, 1.0] if labels[row, place] == 1 else [1.0, 0.0]
                errors.append(((softmax(cosines) - truth) ** 2).sum() / 2)
    return np.mean(errors) if errors else 0.0


def pair_loss_by_hand(adapters, volumes, texts):
    scores = unit(volumes, adapters.volume) @ unit(texts, adapters.text).T
    found = np.diag(scores)
    return (logsumexp(scores, axis=1) + logsumexp(scores, axis=0) - 2 * found).mean() / 2


def test_losses_are_those_by_hand():
    adapters, volumes, prompts, labels, texts = made_batch()
    assert (labels == 0).any()
    found = vocabulary_loss(adapters, volumes, prompts, labels)
    assert found == pytest.approx(vocabulary_loss_by_hand(adapters, volumes, prompts, labels), abs=1e-6)
    assert vocabulary_loss(adapters, volumes, prompts, 0 * labels) == 0
    everyone = np.ones(5, np.int8)
    found = pair_loss(adapters, volumes, texts, everyone)
    assert found == pytest.approx(pair_loss_by_hand(adapters, volumes, texts), abs=1e-6)
    # Rows that fill up a batch change neither.
    filled = pair_loss(adapters, volumes, texts, np.array([1, 1, 1, 0, 0], np.int8))
    assert filled == pytest.approx(pair_loss_by_hand(adapters, volumes[:3], texts[:3]), abs=1e-6)
    assert pair_loss(adapters, volumes, texts, 0 * everyone) == 0


def test_gradients_are_those_of_differences():
    adapters, volumes, prompts, labels, texts = made_batch(1)
    there = np.array([1, 1, 1, 1, 0], np.int8)
    for loss, by_hand in (
        (
            lambda one: vocabulary_loss(one, volumes, prompts, labels),
            lambda one: vocabulary_loss_by_hand(one, volumes, prompts, labels),
        ),
        (
            lambda one: pair_loss(one, volumes, texts, there),
            lambda one: pair_loss_by_hand(one, volumes[:4], texts[:4]),
        ),
    ):
        slopes = jax.tree.leaves(jax.grad(loss)(jax.tree.map(np.float32, adapters)))
        leaves, tree = jax.tree.flatten(adapters)
        for place, leaf in enumerate(leaves):
            step = np.zeros_like(leaf)
            step.flat[1] = 1e-5
            ends = [
                by_hand(tree.unflatten([x + sign * step if i == place else x for i, x in enumerate(leaves)]))
                for sign in (1, -1)
            ]
            assert np.asarray(slopes[place]).flat[1] == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=2e-4)


def test_training_is_adamw_over_every_row_once_an_epoch():
    """Two epochs of four rows in batches of three, one step after the other."""
    _, volumes, _, _, texts = made_batch(2, rows=4)
    there = np.ones(4, np.int8)
    data = {"volumes": volumes.astype(np.float32), "texts": texts.astype(np.float32), "there": there}

    def loss(adapters, rows):
        return pair_loss(adapters, rows["volumes"], rows["texts"], rows["there"])

    schedule = Schedule(2, 3, 1e-2, 1e-1, seed=4)
    found = train(loss, data, (4, 6), schedule)
    start = train(loss, data, (4, 6), schedule._replace(epochs=0))
    optimizer, slope_of = optax.adamw(1e-2, weight_decay=1e-1), jax.jit(jax.grad(loss))
    adapters, state = start, optimizer.init(start)
    generator = np.random.default_rng(4)
    for _ in range(2):
        order = generator.permutation(4)
        for rows in (order[:3], order[3:]):
            slope = slope_of(adapters, {name: values[rows] for name, values in data.items()})
            updates, state = optimizer.update(slope, state, adapters)
            adapters = optax.apply_updates(adapters, updates)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(adapters), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
    assert project(volumes, adapters.volume).shape == (4, 768)


def test_planted_findings_are_told_and_noise_is_not(tmp_path):
    splits = splits_with_reports()
    result = vocabulary(splits, epochs=15)
    flat = result.metrics()
    assert all(flat[f"auroc/{name}"] > 0.85 for name in CLASSES)
    assert flat[f"auroc_low/{CLASSES[0]}"] <= flat[f"auroc/{CLASSES[0]}"] <= flat[f"auroc_high/{CLASSES[0]}"]
    task = result.findings[CLASSES[1]]
    area = reference.roc_auc_score(splits["test"].labels[CLASSES[1]] == 1, task.probabilities[:, 1])
    assert flat[f"auroc/{CLASSES[1]}"] == pytest.approx(area, abs=1e-12)
    np.testing.assert_allclose(task.probabilities.sum(axis=1), 1, atol=1e-12)
    assert 0 <= flat["image_to_text/R@50"] <= 1
    assert flat["text_to_image/median_rank"] >= 1
    text = write_evaluation_page(
        tmp_path / "page.html", Evaluation("test", 90, {"vocabulary": result}, {}, None, 1.0)
    ).read_text()
    assert "Vocabulary: retrieval" in text
    noise = vocabulary(splits, features="pooled", retrieval_epochs=0).metrics()
    assert 0.3 < noise["auroc_mean"] < 0.7
    assert "image_to_text/R@50" not in noise


def test_volumes_that_show_their_report_are_found():
    splits = splits_with_reports()
    for name, split in splits.items():
        splits[name] = replace(split, volumes=encode_texts(split.texts["report"]))
    found, chance = (
        vocabulary(splits, epochs=1, retrieval_epochs=epochs, seed=3).metrics()["image_to_text/R@5"]
        for epochs in (60, 1)
    )
    assert found > chance
    assert found > 0.5


def test_twice_gives_the_same_and_another_seed_other_projections():
    splits = splits_with_reports()
    one, two = (vocabulary(splits, retrieval_epochs=0).findings[CLASSES[0]].probabilities for _ in range(2))
    np.testing.assert_array_equal(one, two)
    other = vocabulary(splits, retrieval_epochs=0, seed=1).findings[CLASSES[0]].probabilities
    assert np.abs(one - other).max() > 1e-4


def test_what_cannot_be_learned_is_said():
    splits = splits_with_reports()
    silent = {
        name: replace(split, texts={"report": [""] * len(split.patients)}) for name, split in splits.items()
    }
    result = vocabulary(silent)
    assert result.retrieval is None
    assert "have a text in 'report'" in str(result)
    with pytest.raises(ValueError, match="text='title': use one of report"):
        vocabulary(splits, text="title")
    with pytest.raises(ValueError, match="split by patient"):
        evaluate_vocabulary(splits["test"], encode_texts, load_split=lambda _: splits["test"])
    for split in splits.values():
        for column in split.labels.values():
            column[:] = 0
    with pytest.raises(NotEvaluable, match="no known labels"):
        vocabulary(splits)
    with pytest.raises(ValueError, match="1 or more"):
        check_evaluators({"vocabulary": {"retrieval_batch": 0}})
