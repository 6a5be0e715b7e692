"""Nearest neighbors against scikit-learn and against all orders of what is tied."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from sklearn import metrics as reference
from sklearn.neighbors import KNeighborsClassifier

from medclip_jax.evaluation.knn import evaluate_knn, nearness, neighbor_shares
from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.evaluation.settings import check_evaluators
from medclip_jax.evaluation.tasks import class_of_each
from medclip_jax.pages import probe_figures
from tests.evaluation.test_few_shot import CLASSES, made_splits

FINDING = "pericardial_effusion"


def knn(splits, **settings):
    settings = {"classes": CLASSES, "features": "embedding", "ks": (1, 5, 20), "draws": 0} | settings
    return evaluate_knn(splits["test"], None, load_split=splits.get, **settings)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("features", ["embedding", "pooled"])
def test_equals_scikit_learn(distance, features):
    splits = made_splits(signal=0.4)
    # Far from the origin, where products of large numbers hide small distances.
    splits = {name: replace(split, pooled=split.pooled + 300) for name, split in splits.items()}
    result = knn(splits, distance=distance, features=features)
    learned, scored = (splits[name] for name in ("train", "test"))
    inputs, queries = (
        (split.volumes if features == "embedding" else split.pooled).astype(np.float64)
        for split in (learned, scored)
    )
    for name in ("classes", FINDING):
        known, truth = (
            class_of_each(split.labels, CLASSES)
            if name == "classes"
            else np.where(split.labels[FINDING] == 0, -1, split.labels[FINDING] == 1)
            for split in (learned, scored)
        )
        for k in (1, 5, 20):
            model = KNeighborsClassifier(k, metric=distance, algorithm="brute")
            shares = model.fit(inputs[known >= 0], known[known >= 0]).predict_proba(queries)[truth >= 0]
            found = result.task(name)[k]
            np.testing.assert_allclose(found.probabilities, shares, atol=1e-12)
            np.testing.assert_array_equal(found.truth, truth[truth >= 0])
    flat = result.metrics()
    area = reference.roc_auc_score(found.truth, found.probabilities[:, 1])
    assert flat[f"20_nearest/auroc/{FINDING}"] == pytest.approx(area, abs=1e-12)
    precision = reference.average_precision_score(found.truth, found.probabilities[:, 1])
    assert flat[f"20_nearest/average_precision/{FINDING}"] == pytest.approx(precision, abs=1e-12)


def test_ties_of_distance_are_the_mean_over_all_orders():
    near = np.array([[3, 1, 1, 1, 0], [2, 2, 2, 2, 2], [5, 4, 3, 3, 1]], float)
    classes = np.array([0, 1, 2, 2, 0])
    found = neighbor_shares(near, classes, 3, (1, 2, 3, 5, 6))
    for k in (1, 2, 3, 5):
        for row, scores in enumerate(near):
            counted = []
            for order in permutations(range(5)):
                nearest = sorted(order, key=lambda place: -scores[place])[:k]  # stable: in this order
                counted.append(np.bincount(classes[nearest], minlength=3) / k)
            np.testing.assert_allclose(found[k][row], np.mean(counted, axis=0), atol=1e-12)
    assert np.isnan(found[6]).all()


def test_equal_shares_count_as_their_expectation():
    splits = made_splits()
    train, test = splits["train"], splits["test"]
    # Two neighbors for everyone, one of each of the first two classes; all of the third class are far away.
    labels = {name: np.full(len(train.patients), -1, np.int8) for name in CLASSES}
    for row, name in enumerate((*CLASSES, CLASSES[2])):
        labels[name][row] = 1
    volumes = np.tile(-test.volumes.mean(axis=0), (len(train.patients), 1)).astype(np.float32)
    volumes[:2] = test.volumes.mean(axis=0)
    splits["train"] = replace(train, volumes=volumes, labels=train.labels | labels)
    flat = knn(splits, ks=(2, 4, 5)).metrics()
    assert flat["2_nearest/recall/hypertrophic_cardiomyopathy"] == pytest.approx(0.5, abs=1e-12)
    assert flat["2_nearest/recall/ischemic_cardiomyopathy"] == pytest.approx(0.5, abs=1e-12)
    assert flat["2_nearest/recall/cardiac_amyloidosis"] == 0
    assert flat["2_nearest/one_versus_rest/cardiac_amyloidosis"] < 1
    assert flat["4_nearest/recall/cardiac_amyloidosis"] == 1
    # Four volumes have one of the classes: a fifth neighbor there is none.
    assert np.isnan(flat["5_nearest/accuracy/classes"])
    assert np.isnan(flat["5_nearest/recall/" + CLASSES[0]])


def test_a_collapsed_model_scores_as_chance():
    splits = made_splits()
    one = splits["train"].volumes[:1]
    for distance in ("cosine", "euclidean"):
        same = {
            name: replace(split, volumes=one.repeat(len(split.volumes), 0)) for name, split in splits.items()
        }
        flat = knn(same, distance=distance).metrics()
        assert flat[f"5_nearest/auroc/{FINDING}"] == 0.5


def test_planted_classes_are_found_and_noise_is_not():
    flat = knn(made_splits(), draws=50).metrics()
    assert flat["5_nearest/accuracy/classes"] > 0.9
    low, high = (flat[f"5_nearest/accuracy_{end}/classes"] for end in ("low", "high"))
    assert low <= flat["5_nearest/accuracy/classes"] <= high
    noise = knn(made_splits(), features="pooled").metrics()
    assert 0.15 < noise["20_nearest/accuracy/classes"] < 0.5


def test_distances_of_many_volumes_come_in_parts():
    generator = np.random.default_rng(0)
    queries, support = generator.normal(size=(600, 4)), generator.normal(size=(30, 4))
    rows, near = zip(*nearness(queries, support, "euclidean"), strict=True)
    assert [len(part) for part in near] == [256, 256, 88]
    assert [one.start for one in rows] == [0, 256, 512]
    distances = ((queries[:, None] - support) ** 2).sum(axis=-1)
    np.testing.assert_array_equal(
        np.argsort(-np.concatenate(near), axis=1, kind="stable"), np.argsort(distances, axis=1, kind="stable")
    )


def test_wrong_settings_are_named():
    splits = made_splits()
    with pytest.raises(ValueError, match="split by patient"):
        evaluate_knn(splits["test"], None, load_split=lambda _: splits["test"])
    splits["train"].labels[FINDING][:] = 0
    with pytest.raises(NotEvaluable, match="no finding has labels enough"):
        knn(splits, classes=(), findings=(FINDING,))
    splits["test"].pooled[3] = np.nan
    with pytest.raises(ValueError, match="the first that of volume 3"):
        knn(splits, features="pooled")
    for settings, fault in (({"distance": "l1"}, "cosine, euclidean"), ({"ks": (0,)}, "above 0")):
        with pytest.raises(ValueError, match=fault):
            check_evaluators({"knn": settings})


def test_tables_and_figure():
    result = knn(made_splits(), draws=20)
    text = str(result)
    for part in ("1 nearest", "20 nearest", "chance: the most frequent one", "cosine distance", "AUROC", "["):
        assert part in text
    figure = probe_figures.neighbors(result)
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    expected = [one.values["accuracy"] for one in result.task("classes").values()]
    np.testing.assert_allclose(lines["accuracy of the classes"], expected)
    assert list(lines) == ["accuracy of the classes", "mean AUROC of the findings"]
