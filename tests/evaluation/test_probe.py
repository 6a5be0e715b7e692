"""The linear probe on planted features, against a regression by SciPy."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import optimize
from sklearn import metrics as reference

from medclip_jax.evaluation.embeddings import EmbeddedSplit
from medclip_jax.evaluation.grades import grade_metrics, grade_of
from medclip_jax.evaluation.probe import evaluate_probe
from medclip_jax.evaluation.probe_draws import cut_into_folds, draw_labels
from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.evaluation.settings import check_evaluators, check_shards
from medclip_jax.reports.definitions import BUILT_IN

SIZES = {"train": 200, "validation": 60, "test": 120}
WIDTH = 6


def made_splits(signal=1.5, **columns):
    """`planted` shows in feature 0, `absent_there` in none; two volumes to a patient."""
    splits = {}
    for index, (name, n) in enumerate(SIZES.items()):
        generator = np.random.default_rng(index)
        planted = np.repeat(generator.choice([-1, 1], n // 2, p=[0.7, 0.3]), 2).astype(np.int8)
        pooled = generator.normal(size=(n, WIDTH))
        pooled[:, 0] += signal * planted
        labels = {"planted": planted, "absent_there": generator.choice([-1, 1], n).astype(np.int8)}
        labels |= {column: make(n) for column, make in columns.items()}
        splits[name] = EmbeddedSplit(
            name=name,
            volumes=np.ones((n, 1), np.float32),
            pooled=(40 * pooled - 7).astype(np.float32),
            studies=np.arange(n),
            patients=1000 * index + np.arange(n) // 2,
            labels=labels,
        )
    return splits


def probe(splits, **settings):
    settings = {"draws": 50, "shares": (0.1, 1.0), "penalties": (1.0, 0.01)} | settings
    return evaluate_probe(splits["test"], None, load_split=splits.get, **settings)


def test_equals_a_regression_by_scipy():
    """Standardized by the training features, the penalty by the validation's log loss: step by step."""
    splits = made_splits(signal=0.5)
    penalties = (10.0, 0.1, 0.001)
    mean, spread = splits["train"].pooled.mean(axis=0), splits["train"].pooled.std(axis=0)
    inputs = {name: (split.pooled.astype(float) - mean) / spread for name, split in splits.items()}
    truth = {name: split.labels["planted"] for name, split in splits.items()}

    def mean_loss(parameters, name):
        return np.logaddexp(0, -truth[name] * (inputs[name] @ parameters[:-1] + parameters[-1])).mean()

    fitted = [
        optimize.minimize(
            lambda p, penalty=penalty: mean_loss(p, "train") + penalty / 2 * p[:-1] @ p[:-1],
            np.zeros(WIDTH + 1),
            tol=1e-12,
        ).x
        for penalty in penalties
    ]
    best = int(np.argmin([mean_loss(parameters, "validation") for parameters in fitted]))
    scores = inputs["test"] @ fitted[best][:-1]
    result = probe(splits, penalties=penalties, shares=(1.0,))
    found = result.trained[1.0]["planted"]
    assert found.penalties == (penalties[best],)
    assert found.auroc == pytest.approx([reference.roc_auc_score(truth["test"], scores)], abs=1e-9)
    expected = reference.average_precision_score(truth["test"] == 1, scores)
    assert found.average_precision == pytest.approx([expected], abs=1e-9)


def test_planted_features_are_found_and_others_are_not():
    flat = probe(made_splits()).metrics()
    assert flat["100%/auroc/planted"] > 0.95
    assert 0.35 < flat["100%/auroc/absent_there"] < 0.65
    assert flat["100%/auroc_mean"] == pytest.approx(
        (flat["100%/auroc/planted"] + flat["100%/auroc/absent_there"]) / 2
    )
    assert flat["100%/labels/planted"] == SIZES["train"]
    assert np.isnan(flat["100%/auroc_sd/planted"])  # all labels are drawn in one way
    assert flat["10%/auroc_sd/planted"] > 0
    assert 0 < flat["10%/labels_present/planted"] < flat["10%/labels/planted"] < 30
    assert flat["present/planted"] + flat["absent/planted"] == SIZES["test"]


def test_intervals_cover_the_truth():
    """The AUROC of two normal distributions that are 2 apart is 0.921."""
    splits = made_splits(signal=1.0)
    wide, narrow = (probe(splits, shares=(1.0,), draws=400, seed=seed).metrics() for seed in (0, 1))
    assert wide["100%/auroc_low/planted"] < 0.921 < wide["100%/auroc_high/planted"]
    assert wide["100%/auroc_low/planted"] < wide["100%/auroc/planted"] < wide["100%/auroc_high/planted"]
    assert wide["100%/auroc_low/planted"] != narrow["100%/auroc_low/planted"]
    assert wide["100%/auroc/planted"] == narrow["100%/auroc/planted"]
    assert np.isnan(probe(splits, draws=0).metrics()["10%/auroc_low/planted"])


def test_twice_gives_the_same_and_another_seed_other_labels():
    splits = made_splits(signal=0.3)
    one, two = (probe(splits).metrics() for _ in range(2))
    assert one == pytest.approx(two, nan_ok=True, abs=0)
    other = probe(splits, seed=10).metrics()
    assert other["10%/auroc/planted"] != one["10%/auroc/planted"]


class TestDraw:
    column = np.repeat(np.array([1] * 20 + [-1] * 80 + [0] * 10, np.int8), 2)
    patients = np.repeat(np.arange(110) * 3, 2)

    def test_is_stratified_by_patient(self):
        rows = draw_labels(self.column, self.patients, 0.2, [0, 1])
        assert (self.column[rows] == 1).sum() == 2 * 4
        assert (self.column[rows] == -1).sum() == 2 * 16
        assert len(np.unique(self.patients[rows])) == 20
        np.testing.assert_array_equal(rows, draw_labels(self.column, self.patients, 0.2, [0, 1]))
        assert set(rows) != set(draw_labels(self.column, self.patients, 0.2, [1, 1]))

    def test_a_smaller_share_is_part_of_a_larger_one(self):
        small, large, everything = (draw_labels(self.column, self.patients, s, [4]) for s in (0.05, 0.3, 1.0))
        assert set(small) < set(large) < set(everything)
        np.testing.assert_array_equal(everything, np.flatnonzero(self.column))

    def test_takes_two_patients_of_each_class_at_least(self):
        rows = draw_labels(self.column, self.patients, 0.001, [0])
        present, absent = (self.patients[rows[self.column[rows] == status]] for status in (1, -1))
        assert len(np.unique(present)) == len(np.unique(absent)) == 2

    def test_a_patient_with_and_without_has_it(self):
        column = np.array([1, -1, 1, -1, -1, -1, -1], np.int8)
        patients = np.array([0, 0, 1, 2, 3, 4, 4])
        rows = draw_labels(column, patients, 0.5, [0])
        assert {0, 1} <= set(patients[rows])
        assert 0 in rows
        assert 1 in rows


def rare(n):
    return np.where(np.arange(n) < 2, 1, -1).astype(np.int8)


def unknown(n):
    return np.zeros(n, np.int8)


def test_too_few_is_no_number():
    """One patient in training, or nothing known at all; the others are probed all the same."""
    result = probe(made_splits(rare=rare, unknown=unknown))
    flat = result.metrics()
    for name in ("rare", "unknown"):
        assert np.isnan(flat[f"100%/auroc/{name}"])
    assert flat["100%/auroc_mean"] > 0.6
    table = {row[0]: row[1:] for row in result.table().rows}
    assert table["rare"] == ("2", "118", "too few", "too few")
    text = str(result)
    assert "rare: 1 patients with it and 99 without in training" in text
    assert "unknown: 0 patients" in text
    assert "10% of the labels" in text
    with pytest.raises(NotEvaluable, match="too few labels for every finding: rare"):
        probe(made_splits(rare=rare), findings="rare")


def test_unknown_labels_are_left_out():
    """With the sign of unknown rows turned, nothing would be found if they counted."""
    splits = made_splits()
    for split in splits.values():
        column = split.labels["planted"]
        split.pooled[::4, 0] *= -1
        column[::4] = 0
    flat = probe(splits, findings="planted").metrics()
    assert flat["100%/auroc/planted"] > 0.95
    assert flat["100%/labels/planted"] == SIZES["train"] * 3 // 4


def test_what_the_reports_say():
    splits = made_splits()
    with pytest.raises(NotEvaluable, match='labels="labels"'):
        probe(splits, labels="findings")


def test_constant_features_tell_nothing_apart():
    splits = made_splits()
    for split in splits.values():
        split.pooled[:] = np.float32(0.1) * np.arange(WIDTH)
    flat = probe(splits).metrics()
    assert flat["100%/auroc/planted"] == flat["10%/auroc/absent_there"] == 0.5
    some = made_splits()
    expected = probe(some).metrics()
    for split in some.values():
        object.__setattr__(split, "pooled", np.column_stack([split.pooled, np.full(len(split.pooled), 3e4)]))
    assert probe(some).metrics() == pytest.approx(expected, nan_ok=True)


def test_a_feature_that_is_not_finite_is_an_error():
    splits = made_splits()
    splits["validation"].pooled[7, 2] = np.inf
    with pytest.raises(ValueError, match="'validation' are not finite, the first that of volume 7"):
        probe(splits)


def test_splits_that_share_patients_are_refused():
    splits = made_splits()
    splits["train"].patients[:4] = splits["test"].patients[:4]
    with pytest.raises(ValueError, match=r"2 patients of split 'test' are in 'train'.*split by patient"):
        probe(splits)
    with pytest.raises(ValueError, match="on splits of their own"):
        probe(made_splits(), train="test")


def test_random_weights_under_the_same_protocol():
    """Random features from the same splits: the gain is the difference of the means."""
    splits, blind = made_splits(), made_splits(signal=0.0)
    calls = []

    def load_random(name, beginning):
        calls.append((name, beginning))
        return blind[name]

    result = probe(splits, baseline="random", load_random=load_random)
    assert calls == [("train", "train"), ("validation", "train"), ("test", "train")]
    flat = result.metrics()
    assert flat["random/100%/auroc/planted"] < 0.7
    gain = result.gain(1.0)
    assert gain.value == pytest.approx(flat["100%/auroc_mean"] - flat["random/100%/auroc_mean"])
    assert gain.interval.low < gain.value < gain.interval.high
    rows = {row[0]: row[3:] for row in result.table().rows}
    assert rows["gain over random init"][1].startswith(f"{gain.value:.3f} [")
    assert rows["mean, random init"][1] == str(result.mean(1.0, random=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shares": ()}, "shares=.*a list, such as"),
        ({"shares": (0.1, 10)}, "an entry=10: it must be a number above 0 and up to 1"),
        ({"penalties": (0.0,)}, "an entry=0.0: it must be a number above 0"),
        ({"seeds": 0}, "1 or more"),
        ({"baseline": "rnadom"}, "Did you mean random"),
    ],
)
def test_wrong_settings_are_found_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        check_evaluators({"probe": settings})


def grades_of(split):
    """Grades 0 to 2 of half of the volumes, which feature 1 shows."""
    shown = (split.pooled[:, 1] + 7) / 40
    grades = np.digitize(shown, [-0.5, 0.5]).astype(np.float32)
    return np.where(np.arange(len(grades)) % 2, grades, np.nan)


def with_grades(splits):
    return {name: replace(split, measurements={"stage": grades_of(split)}) for name, split in splits.items()}


def test_grades_are_told_by_their_thresholds():
    splits = with_grades(made_splits())
    result = probe(splits, measurement="stage", thresholds=(1, 2), shares=(1.0,), draws=200)
    flat = result.metrics()
    assert list(result.counts) == ["stage>=1", "stage>=2"]
    truth = splits["test"].measurements["stage"]
    assert flat["present/stage>=2"] == (truth == 2).sum()
    known = np.flatnonzero(~np.isnan(truth))
    one, two = (result.trained[1.0][f"stage>={cut}"] for cut in (1, 2))
    np.testing.assert_array_equal(one.rows, known)
    assert flat["100%/auroc/stage>=2"] == pytest.approx(
        reference.roc_auc_score(truth[known] == 2, two.scores[0]), abs=1e-12
    )
    told = np.where(one.scores[0] < 0, 0, np.where(two.scores[0] < 0, 1, 2))
    kappa = reference.cohen_kappa_score(truth[known], told, weights="quadratic")
    assert flat["100%/grade_kappa"] == pytest.approx(kappa, abs=1e-12)
    assert flat["100%/grade_accuracy"] == pytest.approx((told == truth[known]).mean(), abs=1e-12)
    assert flat["100%/grade_error"] == pytest.approx(np.abs(told - truth[known]).mean(), abs=1e-12)
    assert flat["100%/grade_kappa_low"] < kappa < flat["100%/grade_kappa_high"]
    assert kappa > 0.7
    assert "kappa, quadratic weights" in str(result)
    both = probe(splits, measurement="stage", thresholds=(1, 2), findings="planted", shares=(1.0,))
    assert list(both.counts) == ["planted", "stage>=1", "stage>=2"]
    for settings, fault in (
        ({"measurement": "grade"}, "they hold: stage"),
        ({"measurement": "stage", "thresholds": (2, 1)}, "lowest first"),
        ({"measurement": "stage", "thresholds": (1, 9)}, ""),
    ):
        if fault:
            with pytest.raises(ValueError, match=fault):
                probe(splits, **settings)
        else:
            assert probe(splits, **settings).too_few.keys() == {"stage>=9"}


def test_draws_of_grades_are_those_of_repeated_patients():
    generator = np.random.default_rng(0)
    truth, told = generator.integers(0, 4, 60), generator.integers(0, 4, 60)
    weights = generator.integers(0, 4, (5, 60))
    found = grade_metrics(truth, told, 4, weights)
    for draw, counts in enumerate(weights):
        rows = np.repeat(np.arange(60), counts)
        expected = reference.cohen_kappa_score(truth[rows], told[rows], weights="quadratic")
        assert found["grade_kappa"][1][draw] == pytest.approx(expected, abs=1e-12)
        assert found["grade_accuracy"][1][draw] == pytest.approx((truth == told)[rows].mean(), abs=1e-12)
    same = np.full(9, 2)
    assert np.isnan(grade_metrics(same, same, 4, np.ones((3, 9), int))["grade_kappa"][0])
    # What the second threshold says does not count where the first is not reached.
    np.testing.assert_array_equal(grade_of([[1, -1, 0, -2], [2, 3, -1, -1]]), [2, 0, 1, 0])


def test_folds_score_every_patient_by_regressions_that_did_not_see_it():
    split = made_splits(signal=0.5)["train"]
    result = evaluate_probe(split, None, folds=5, shares=(1.0,), penalties=(1.0, 0.01), draws=50)
    found = result.trained[1.0]["planted"]
    cuts = cut_into_folds(split.patients, split.labels["planted"], 5, 0)
    np.testing.assert_array_equal(np.sort(np.concatenate([cut.scored for cut in cuts])), np.arange(200))
    np.testing.assert_array_equal(found.rows, np.arange(200))
    for place, cut in enumerate(cuts):
        owners = [set(split.patients[rows]) for rows in (cut.learned, cut.chosen, cut.scored)]
        assert sum(map(len, owners)) == len(set.union(*owners)) == 100
        assert len(cut.learned) == 120
        # The same part by itself, as three splits.
        rows = {"train": cut.learned, "validation": cut.chosen, "test": cut.scored}
        parts = {name: replace(split.take(own), name=name) for name, own in rows.items()}
        alone = probe(parts, shares=(1.0,), findings="planted").trained[1.0]["planted"]
        np.testing.assert_allclose(found.scores[0, cut.scored], alone.scores[0], atol=1e-9)
        assert found.auroc[place] == pytest.approx(alone.auroc[0], abs=1e-9)
    flat = result.metrics()
    assert flat["100%/auroc/planted"] == pytest.approx(found.auroc.mean())
    assert flat["100%/auroc_sd/planted"] == pytest.approx(found.auroc.std(ddof=1))
    assert flat["100%/auroc_low/planted"] < flat["100%/auroc/planted"] < flat["100%/auroc_high/planted"]
    assert "standard deviation over the folds" in str(result)
    assert "5 folds by patient" in result.conditions["n"]
    with pytest.raises(ValueError, match="give 3 or more"):
        evaluate_probe(split, None, folds=2)
    rare = replace(split, labels={"rare": np.where(np.arange(200) < 4, 1, -1).astype(np.int8)})
    with pytest.raises(NotEvaluable, match=r"rare: .*fold"):
        evaluate_probe(rare, None, folds=3)


def test_folds_and_random_weights_and_other_features():
    split, blind = made_splits()["train"], made_splits(signal=0.0)["train"]
    split = replace(split, asap=split.pooled[:, :2])
    settings = {"folds": 3, "shares": (1.0,), "penalties": (0.1,), "draws": 20, "baseline": "random"}
    result = evaluate_probe(split, None, load_random=lambda name, begun: blind, **settings)
    assert result.gain(1.0).value > 0.1
    two = evaluate_probe(split, None, features="asap", **{**settings, "baseline": "none"})
    assert "2 numbers, mean patch token" in two.conditions["features"]
    assert two.metrics()["100%/auroc/planted"] > 0.9
    with pytest.raises(NotEvaluable, match="without features='asap'"):
        evaluate_probe(blind, None, features="asap", folds=3)


def test_folds_need_no_other_split():
    info = SimpleNamespace(
        folder="acdc", splits={"test": 30}, findings=("cardiomegaly",), definitions=BUILT_IN
    )
    with pytest.raises(ValueError, match=r"probe.train: no split .train."):
        check_shards({"probe": {}}, info, "test")
    check_shards({"probe": {"folds": 5}}, info, "test")
