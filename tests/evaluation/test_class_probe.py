"""The linear probe of several classes against scikit-learn, step by step."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize
from sklearn import metrics as reference
from sklearn.linear_model import LogisticRegression

from medclip_jax.evaluation.class_probe import evaluate_class_probe
from medclip_jax.evaluation.knn import evaluate_knn
from medclip_jax.evaluation.logistic import fit_softmax
from medclip_jax.evaluation.probe_draws import cut_into_folds
from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.evaluation.run import Evaluation
from medclip_jax.pages.evaluation import write_evaluation_page
from tests.evaluation.test_probe import made_splits

PENALTIES = (1.0, 0.1, 0.01)


def staged(signal=1.0):
    """Three stages that features 1 and 2 show; some unknown, and one in the test that training lacks."""
    splits = {}
    for name, split in made_splits(signal=0.0).items():
        generator = np.random.default_rng(len(name))
        stage = generator.choice([0.0, 1.0, 2.5], len(split.patients))
        pooled = split.pooled + signal * 40 * np.stack(
            [np.zeros_like(stage), stage == 1, stage == 2.5, *[0 * stage] * 3], 1
        )
        stage[::9] = np.nan
        if name == "test":
            stage[5] = 7
        splits[name] = replace(split, pooled=pooled, measurements={"stage": stage})
    return splits


def probe(splits, **settings):
    settings = {"measurement": "stage", "penalties": PENALTIES, "draws": 0} | settings
    return evaluate_class_probe(splits["test"], None, load_split=splits.get, **settings)


def test_regressions_minimize_what_they_say():
    generator = np.random.default_rng(0)
    inputs, classes = generator.normal(size=(60, 3)), np.arange(60) % 4
    inputs[:, 0] += classes
    (found,) = fit_softmax(inputs, classes, [2.5])

    def loss(parameters):
        table = parameters.reshape(4, 4)
        logits = inputs @ table[:, :3].T + table[:, 3]
        log = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return -log[np.arange(60), classes].sum() + 2.5 / 2 * (table[:, :3] ** 2).sum()

    table = optimize.minimize(loss, np.zeros(16), tol=1e-10).x.reshape(4, 4)
    logits = inputs @ table[:, :3].T + table[:, 3]
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.exp(found(inputs)), expected, atol=2e-4)
    (two,) = fit_softmax(inputs, classes % 2, [1.0])
    model = LogisticRegression(C=1.0).fit(inputs, classes % 2)
    np.testing.assert_allclose(np.exp(two(inputs)), model.predict_proba(inputs), atol=2e-4)


def test_equals_scikit_learn():
    splits = staged(signal=0.5)
    train = splits["train"].pooled.astype(float)
    scaled = {name: (one.pooled - train.mean(axis=0)) / train.std(axis=0) for name, one in splits.items()}
    codes = {
        name: np.select([one.measurements["stage"] == value for value in (0, 1, 2.5)], [0, 1, 2], -1)
        for name, one in splits.items()
    }
    known = {name: code >= 0 for name, code in codes.items()}
    fitted = [
        LogisticRegression(C=1 / (p * known["train"].sum()), max_iter=2000, tol=1e-8).fit(
            scaled["train"][known["train"]], codes["train"][known["train"]]
        )
        for p in PENALTIES
    ]
    judged = known["validation"]
    losses = [
        reference.log_loss(codes["validation"][judged], one.predict_proba(scaled["validation"][judged]))
        for one in fitted
    ]
    best = int(np.argmin(losses))
    told = fitted[best].predict_proba(scaled["test"])[known["test"]]
    truth = codes["test"][known["test"]]
    result = probe(splits)
    np.testing.assert_allclose(result.group.probabilities, told, atol=1e-4)
    np.testing.assert_array_equal(result.group.truth, truth)
    assert result.conditions["penalty"].endswith(f": {PENALTIES[best]:g}")
    flat = result.metrics()
    assert flat["accuracy/classes"] == pytest.approx((told.argmax(axis=1) == truth).mean(), abs=1e-12)
    for place, name in enumerate(("stage 0", "stage 1", "stage 2.5")):
        area = reference.roc_auc_score(truth == place, result.group.probabilities[:, place])
        assert flat[f"one_versus_rest_auroc/{name}"] == pytest.approx(area, abs=1e-12)
    sums_to_one = result.group.probabilities / result.group.probabilities.sum(axis=1, keepdims=True)
    everything = reference.roc_auc_score(truth, sums_to_one, multi_class="ovr")
    assert flat["one_versus_rest_auroc/classes"] == pytest.approx(everything, abs=1e-9)


def test_folds_are_scored_by_what_did_not_learn_from_them():
    split = staged()["train"]
    result = evaluate_class_probe(split, None, measurement="stage", folds=4, penalties=(0.1,), draws=20)
    stage = split.measurements["stage"]
    codes = np.select([stage == value for value in (0, 1, 2.5)], [0, 1, 2], -1)
    cut = cut_into_folds(split.patients, codes, 4, 0)[2]
    rows = {"train": cut.learned, "validation": cut.chosen, "test": cut.scored}
    alone = probe({name: replace(split.take(own), name=name) for name, own in rows.items()}, penalties=(0.1,))
    places = np.isin(result.group.rows, cut.scored)
    np.testing.assert_allclose(result.group.probabilities[places], alone.group.probabilities, atol=1e-6)
    assert len(result.group.rows) == (codes >= 0).sum()
    assert result.metrics()["accuracy_low/classes"] < result.metrics()["accuracy/classes"]
    assert "4 folds by patient" in result.conditions["n"]


def test_planted_stages_are_found_and_constant_features_tell_nothing(tmp_path):
    result = probe(staged(signal=3.0), draws=20)
    assert result.metrics()["accuracy/classes"] > 0.85
    evaluation = Evaluation("test", 1, {"class_probe": result}, {}, None, 1.0)
    page = write_evaluation_page(tmp_path / "p.html", evaluation)
    assert "Linear probe of classes" in page.read_text()
    flat = {name: replace(one, pooled=np.ones_like(one.pooled)) for name, one in staged().items()}
    assert probe(flat).metrics()["one_versus_rest_auroc/classes"] == pytest.approx(0.5)


def test_what_cannot_be_told_is_said():
    splits = staged()
    with pytest.raises(NotEvaluable, match="no classes to tell apart"):
        probe(splits, measurement="")
    with pytest.raises(NotEvaluable, match="no measurement 'grade' in split 'train'; it has: stage"):
        probe(splits, measurement="grade")
    with pytest.raises(ValueError, match="give one of them"):
        probe(splits, classes=("planted", "absent_there"))
    many = {
        name: replace(one, measurements={"stage": 1.0 * np.arange(len(one.patients))})
        for name, one in splits.items()
    }
    with pytest.raises(NotEvaluable, match="has 200 values"):
        probe(many)
    splits["test"].measurements["stage"][:] = 0
    with pytest.raises(NotEvaluable, match="no volume to score is stage 1"):
        probe(splits)


def test_values_of_a_measurement_are_classes_to_neighbors_too():
    splits = staged(signal=3.0)
    result = evaluate_knn(splits["test"], None, load_split=splits.get, measurement="stage", ks=(5,), draws=0)
    assert result.findings == []
    assert result.task("classes")[5].classes == ("stage 0", "stage 1", "stage 2.5")
    assert result.metrics()["5_nearest/accuracy/classes"] > 0.5
