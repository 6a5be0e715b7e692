"""Few-shot prototypes against a plain loop in float64, on planted features."""

import zlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn import metrics as reference

from medclip_jax.evaluation.embeddings import EmbeddedSplit
from medclip_jax.evaluation.few_shot import draw_examples, evaluate_few_shot, prototype_distances
from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.evaluation.settings import check_evaluators, check_shards
from medclip_jax.reports.definitions import BUILT_IN

CLASSES = ("hypertrophic_cardiomyopathy", "ischemic_cardiomyopathy", "cardiac_amyloidosis")
SIZES = {"train": 120, "test": 90}


def made_splits(signal=1.0, width=8):
    """Features show which of three diagnoses a study has; a fourth part of the studies has none or two."""
    splits = {}
    for index, (name, n) in enumerate(SIZES.items()):
        generator = np.random.default_rng(index)
        drawn = np.arange(n) % 4
        volumes = generator.normal(size=(n, width)) + 3.0
        volumes[np.arange(n), drawn] += signal * 4
        volumes /= np.linalg.norm(volumes, axis=1, keepdims=True)
        labels = {name: np.where(drawn == place, 1, -1).astype(np.int8) for place, name in enumerate(CLASSES)}
        both = np.flatnonzero(drawn == 3)[::2]
        labels[CLASSES[0]][both] = labels[CLASSES[1]][both] = 1
        labels["pericardial_effusion"] = np.where(np.arange(n) % 7 == 0, 0, generator.choice([-1, 1], n))
        splits[name] = EmbeddedSplit(
            name=name,
            volumes=volumes.astype(np.float32),
            pooled=generator.normal(size=(n, 5)).astype(np.float32),
            studies=np.arange(n),
            patients=1000 * index + np.arange(n) // 2,
            labels={key: column.astype(np.int8) for key, column in labels.items()},
        )
    return splits


def few_shot(splits, **settings):
    settings = {"repeats": 20, "classes": CLASSES, "shots": (1, 4)} | settings
    return evaluate_few_shot(splits["test"], None, load_split=splits.get, **settings)


def by_hand(support, examples, queries):
    """Distances of one draw, a volume and a class at a time."""
    drawn = support[examples]
    center = drawn.reshape(-1, drawn.shape[-1]).mean(axis=0)
    means = []
    for rows in drawn:
        moved = rows - center
        means.append((moved / np.linalg.norm(moved, axis=1, keepdims=True)).mean(axis=0))
    found = np.empty((len(queries), len(means)))
    for row, query in enumerate(queries):
        moved = query - center
        moved = moved / np.linalg.norm(moved)
        for column, mean in enumerate(means):
            found[row, column] = (np.abs(moved - mean) ** 3).sum() ** (1 / 3)
    return found


def test_equals_a_plain_loop():
    splits = made_splits()
    support, queries = (splits[name].volumes.astype(np.float64) for name in ("train", "test"))
    examples = draw_examples(np.arange(120) % 3, 3, 4, 5, seed=[1])
    found = prototype_distances(splits["train"].volumes, examples, splits["test"].volumes)
    expected = np.stack([by_hand(support, rows, queries) for rows in examples])
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_scores_follow_from_the_distances():
    splits = made_splits(signal=0.4)
    result = few_shot(splits)
    test, train = (
        np.stack([splits[name].labels[one] == 1 for one in CLASSES], axis=1) for name in ("test", "train")
    )
    single = test.sum(axis=1) == 1
    truth = test.argmax(axis=1)[single]
    assert result.group.scored == tuple(np.bincount(truth))
    assert result.group.learned == tuple(np.bincount(train.argmax(axis=1)[train.sum(axis=1) == 1]))
    # The draw of a task depends on its seed and name alone: any that fits the labels gives accuracies alike.
    learned = np.where(train.sum(axis=1) == 1, train.argmax(axis=1), -1)
    accuracies = []
    for seed in range(100):
        rows = draw_examples(learned, 3, 4, 1, seed=[seed])[0]
        distances = by_hand(splits["train"].volumes, rows, splits["test"].volumes[single])
        accuracies.append((distances.argmin(axis=1) == truth).mean())
    found = few_shot(splits, repeats=100).metrics()
    error = 4 * np.std(accuracies) * np.sqrt(2 / 100)
    assert found["4_shot/accuracy/classes"] == pytest.approx(np.mean(accuracies), abs=error)
    assert found["4_shot/accuracy_sd/classes"] == pytest.approx(np.std(accuracies), rel=0.3)


def test_more_examples_tell_more_and_noise_tells_nothing():
    flat = few_shot(made_splits(), shots=(1, 8, 32)).metrics()
    accuracy = [flat[f"{shots}_shot/accuracy/classes"] for shots in (1, 8, 32)]
    assert accuracy[0] < accuracy[1] <= accuracy[2] + 0.01
    assert accuracy[2] > 0.9
    assert flat["1_shot/accuracy_sd/classes"] > flat["32_shot/accuracy_sd/classes"]
    recall = [flat[f"32_shot/recall/{name}"] for name in CLASSES]
    assert np.mean(recall) == pytest.approx(flat["32_shot/balanced_accuracy/classes"], abs=1e-12)
    noise = few_shot(made_splits(), shots=(32,), features="pooled").metrics()
    assert 0.2 < noise["32_shot/accuracy/classes"] < 0.47
    assert 0.4 < noise["32_shot/auroc/pericardial_effusion"] < 0.6


def test_single_findings_against_scikit_learn():
    splits = made_splits(signal=0.5)
    name = CLASSES[2]
    result = few_shot(splits, repeats=1, shots=(2,), findings=(name,))
    column = splits["test"].labels[name]
    task = result.findings[name]
    assert (task.classes, task.scored) == (("absent", "present"), ((column == -1).sum(), (column == 1).sum()))
    rows = draw_examples(
        (splits["train"].labels[name] == 1).astype(int), 2, 2, 1, seed=[0, zlib.crc32(name.encode())]
    )
    distances = by_hand(splits["train"].volumes.astype(float), rows[0], splits["test"].volumes.astype(float))
    score = distances[:, 0] / distances.sum(axis=1)
    flat = result.metrics()
    assert flat[f"2_shot/auroc/{name}"] == pytest.approx(
        reference.roc_auc_score(column == 1, score), abs=1e-6
    )
    called = distances.argmin(axis=1)
    assert flat[f"2_shot/accuracy/{name}"] == pytest.approx((called == (column == 1)).mean(), abs=1e-9)
    assert flat[f"2_shot/balanced_accuracy/{name}"] == pytest.approx(
        reference.balanced_accuracy_score(column == 1, called), abs=1e-9
    )
    assert np.isnan(flat[f"2_shot/accuracy_sd/{name}"])


def test_a_collapsed_model_scores_as_chance():
    splits = made_splits()
    one = splits["train"].volumes[:1]
    same = {name: replace(split, volumes=one.repeat(len(split.volumes), 0)) for name, split in splits.items()}
    found = few_shot(same).metrics()
    assert found["4_shot/accuracy/classes"] == pytest.approx(1 / 3, abs=1e-9)
    assert found["4_shot/auroc/pericardial_effusion"] == pytest.approx(0.5, abs=1e-9)


def test_twice_gives_the_same_and_fewer_examples_are_part_of_more():
    one, two = (few_shot(made_splits(0.4)).metrics() for _ in range(2))
    assert one == two
    assert few_shot(made_splits(0.4), seed=1).metrics() != one
    alone = few_shot(made_splits(0.4), shots=(4,)).metrics()
    assert alone["4_shot/accuracy/classes"] == one["4_shot/accuracy/classes"]


def test_holdout_cuts_by_patient():
    splits = made_splits()
    result = evaluate_few_shot(splits["test"], None, classes=CLASSES, holdout=0.4, shots=(1,), repeats=5)
    assert "36 volumes of 18 patients" in result.conditions["n"]
    assert "learned from the 54 of the other patients" in result.conditions["n"]


def test_what_cannot_be_scored_is_named():
    splits = made_splits()
    splits["train"].labels["pericardial_effusion"][:] = -1
    result = few_shot(splits)
    assert result.lacking == {"pericardial_effusion": "no volume to learn from is present"}
    assert "not scored: pericardial_effusion" in str(result)
    with pytest.raises(NotEvaluable, match="no finding has labels enough"):
        few_shot(splits, classes=(), findings=("pericardial_effusion",))


def test_wrong_settings_are_named():
    splits = made_splits()
    with pytest.raises(ValueError, match="two or more that exclude one another"):
        few_shot(splits, classes=CLASSES[:1])
    with pytest.raises(ValueError, match="split by patient"):
        evaluate_few_shot(splits["test"], None, load_split=lambda _: splits["test"])
    for settings, fault in (
        ({"features": "both"}, "embedding, pooled"),
        ({"shots": (0,)}, "number above 0"),
        ({"shots": ()}, "list"),
        ({"holdout": 1.0}, "below 1"),
        ({"repeats": 0}, "1 or more"),
    ):
        with pytest.raises(ValueError, match=fault):
            check_evaluators({"few_shot": settings})


def test_tables_print_their_conditions():
    text = str(few_shot(made_splits()))
    for part in ("1 shot", "4 shots", "chance", "L3 norm", "20 draws", "hypertrophic_cardiomyopathy", " ± "):
        assert part in text


def test_shards_without_a_training_split_are_cut_in_two():
    info = SimpleNamespace(folder="acdc", splits={"test": 30}, findings=CLASSES, definitions=BUILT_IN)
    for kind in ("few_shot", "mlp_probe"):
        with pytest.raises(ValueError, match=rf"{kind}.train: no split .train."):
            check_shards({kind: {}}, info, "test")
        check_shards({kind: {"holdout": 0.3, "classes": CLASSES}}, info, "test")
        with pytest.raises(ValueError, match=f"{kind}.classes: no column for emphysema"):
            check_shards({kind: {"holdout": 0.3, "classes": ("emphysema",)}}, info, "test")
