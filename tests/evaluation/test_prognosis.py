"""The prognosis evaluator on planted hazards, and on what users' tables have wrong."""

from dataclasses import replace

import numpy as np
import pytest

from medclip_jax.corpora.phantom import outcome
from medclip_jax.evaluation import survival_metrics as metrics
from medclip_jax.evaluation.embeddings import EmbeddedSplit
from medclip_jax.evaluation.prognosis import evaluate_prognosis
from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.evaluation.settings import check_evaluators

SIZES = {"train": 300, "validation": 120, "test": 160}
NAN = float("nan")


def made_splits(signal=1.0, width=6):
    """A feature and the age raise the hazard; a tenth part of the outcomes is unknown."""
    splits = {}
    for index, (name, n) in enumerate(SIZES.items()):
        draw = np.random.default_rng(index)
        pooled = draw.normal(size=(n, width))
        age = draw.normal(60, 10, size=n)
        hazard = signal * pooled[:, 0] + 0.05 * (age - 60)
        death, lost = draw.exponential(9 * np.exp(-hazard)), draw.uniform(3, 30, size=n)
        time, event = np.minimum(death, lost), (death <= lost).astype(float)
        time[:: 2 * 10] = NAN
        event[10 :: 2 * 10] = NAN
        age[::7] = NAN
        splits[name] = EmbeddedSplit(
            name=name,
            volumes=np.ones((n, 3), np.float32) / np.sqrt(3),
            pooled=pooled.astype(np.float32),
            studies=np.arange(n),
            patients=1000 * index + np.arange(n) // 2,
            ids=tuple(f"{name}{row}" for row in range(n)),
            measurements={
                key: column.astype(np.float32)
                for key, column in {
                    "survival_months": time, "event": event, "age": age, "log_hazard": hazard
                }.items()
            },
        )  # fmt: skip
    return splits


def prognosis(splits, **settings):
    return evaluate_prognosis(splits["test"], None, load_split=splits.get, **{"draws": 30} | settings)


def changed(splits, name, **columns):
    """A copy in which one split has other measurements."""
    return splits | {name: replace(splits[name], measurements=splits[name].measurements | columns)}


@pytest.mark.parametrize("head", ["cox", "discrete"])
def test_finds_the_hazard_and_scores_follow_from_the_risks(head):
    splits = made_splits()
    result = prognosis(splits, head=head, clinical=" age", risks=("log_hazard",))
    flat = result.metrics()
    time, event = (splits["test"].measurements[key] for key in ("survival_months", "event"))
    known = ~(np.isnan(time) | np.isnan(event))
    assert (flat["rows"], flat["unknown"]) == (known.sum(), 16)
    assert flat["events"] == event[known].sum()
    time, event = time[known].astype(np.float64), event[known] == 1
    for name, one in result.scores.items():
        front = "" if name == "model" else f"{name}/"
        assert flat[f"{front}harrell_c"] == metrics.harrell_c(time, event, one.risk)[0]
        assert flat[f"{front}uno_c"] == pytest.approx(metrics.uno_c(time, event, one.risk, 12)[0], abs=1e-12)
        assert flat[f"{front}harrell_c_low"] < flat[f"{front}harrell_c"] < flat[f"{front}harrell_c_high"]
    # What is known of the hazard is the most that can be found; age alone is less.
    assert flat["clinical/harrell_c"] < flat["harrell_c"] <= flat["log_hazard/harrell_c"] + 0.01
    assert flat["harrell_c"] > 0.68
    assert flat["gain/harrell_c"] == pytest.approx(flat["harrell_c"] - flat["clinical/harrell_c"])
    assert flat["gain/harrell_c_low"] > 0
    for horizon in (1, 6, 12):
        # Better than to give everybody the same probability.
        assert flat[f"brier/{horizon}"] < flat[f"brier_of_all_alike/{horizon}"] + 0.005
        assert flat[f"predicted/{horizon}"] == pytest.approx(flat[f"observed/{horizon}"], abs=0.1)
    assert flat["log_rank_p"] < 1e-3
    one = result.scored()[""]
    task = one.tasks["event"]
    assert (len(one.ids), len(one.patients)) == (160, 160)
    np.testing.assert_array_equal(task.rows, np.flatnonzero(known))
    assert metrics.harrell_c(task.times, task.events, task.scores[0])[0] == flat["harrell_c"]
    assert (
        result.scored()["clinical"].tasks["event"].scores[0].tolist()
        == result.scores["clinical"].risk.tolist()
    )
    assert result.horizons[12.0].events + result.horizons[12.0].without + result.horizons[
        12.0
    ].censored == sum(known)


def test_of_cox_every_horizon_has_the_same_ranking():
    splits = made_splits()
    result = prognosis(splits, draws=0)
    risk = result.scores["model"].risk
    for horizon in (1.0, 6.0, 12.0):
        expected = metrics.auc_at(result.time, result.event, risk, horizon)[0]
        assert result.metrics()[f"auc/{horizon:g}"] == expected
    assert not result.all_intervals()


def test_noise_is_chance():
    flat = prognosis(made_splits(signal=0.0), draws=100).metrics()
    assert flat["harrell_c_low"] < 0.5 < flat["harrell_c_high"]


def test_twice_the_same_and_the_scored_split_teaches_nothing():
    splits = made_splits()
    one, two = prognosis(splits).metrics(), prognosis(splits).metrics()
    assert one == two
    fewer = splits | {"test": splits["test"].take(np.arange(100))}
    whole, part = prognosis(splits, draws=0), prognosis(fewer, draws=0)
    shared = len(part.time)
    np.testing.assert_allclose(part.scores["model"].risk, whole.scores["model"].risk[:shared])
    np.testing.assert_array_equal(part.group, whole.group[:shared])


def test_tables_say_how_the_numbers_came_about():
    text = str(prognosis(made_splits(), clinical=("age",), risks=("log_hazard",)))
    for part in (
        "144 volumes of 80 patients",
        "16 of 'test'",
        "model - clinical",
        "AUC at 12 months",
        "low ",
        "log-rank",
        "unknown values take the training mean",
        "30 draws",
    ):
        assert part in text, part


def test_few_events_are_not_shown():
    splits = made_splits()
    event = splits["test"].measurements["event"].copy()
    known = np.flatnonzero(~np.isnan(splits["test"].measurements["survival_months"]) & (event == 1))
    event[event == 1] = 0
    event[known[:5]] = 1
    result = prognosis(changed(splits, "test", event=event))
    assert result.metrics()["events"] == 5
    assert np.isfinite(result.metrics()["harrell_c"])
    assert result.table().rows[0][1:] == ("too few",) * 5


def test_what_cannot_be_evaluated():
    splits = made_splits()
    nobody = {name: np.zeros(n, np.float32) for name, n in SIZES.items()}
    for name in SIZES:
        with pytest.raises(NotEvaluable, match=rf"0 events among the \d+ volumes of split '{name}'"):
            prognosis(changed(splits, name, event=nobody[name]))
    with pytest.raises(NotEvaluable, match="no measurement 'tte'"):
        prognosis(splits, time="tte")
    unknown = np.full(SIZES["test"], NAN, np.float32)
    with pytest.raises(NotEvaluable, match="0 events among the 0 volumes"):
        prognosis(changed(splits, "test", survival_months=unknown))
    with pytest.raises(NotEvaluable, match="'age' is unknown for"):
        prognosis(splits, risks=("age",))
    with pytest.raises(NotEvaluable, match="'age' is unknown in all of the training split"):
        prognosis(changed(splits, "train", age=np.full(SIZES["train"], NAN)), clinical=("age",))


def test_wrong_values_and_settings():
    splits = made_splits()
    with pytest.raises(ValueError, match="'event' is neither 1 nor 0 in 152 rows"):
        prognosis(changed(splits, "test", event=np.full(160, 2, np.float32)))
    with pytest.raises(ValueError, match="'survival_months' is below 0"):
        prognosis(changed(splits, "train", survival_months=np.full(300, -1, np.float32)))
    for horizons in ((6, 1), (1, 1), ()):
        with pytest.raises(ValueError, match="must increase"):
            prognosis(splits, horizons=horizons)
    with pytest.raises(ValueError, match="splits of their own"):
        prognosis(splits, train="test")
    with pytest.raises(ValueError, match="patients"):
        prognosis(
            splits | {"train": replace(splits["train"], patients=splits["test"].patients[:1].repeat(300))}
        )
    for settings in (
        {"head": "weibull"},
        {"horizons": (0, 1)},
        {"horizons": ()},
        {"groups": 0},
        {"features": "raw"},
        {"draws": -1},
        {"clinical": 3},
    ):
        with pytest.raises(ValueError, match=rf"prognosis\.{next(iter(settings))}"):
            check_evaluators({"prognosis": settings})


def test_a_tower_that_says_nothing():
    splits = made_splits()
    flat = {name: replace(split, pooled=np.ones_like(split.pooled)) for name, split in splits.items()}
    for head in ("cox", "discrete"):
        assert prognosis(flat, head=head, draws=0).metrics()["harrell_c"] == 0.5


def test_the_known_hazard_of_phantoms_is_the_bound():
    """Outcomes of phantoms, and features that show the findings in noise: between age alone and the truth."""
    splits = {}
    for index, (name, n) in enumerate(SIZES.items()):
        draw = np.random.default_rng(10 + index)
        age, present = draw.uniform(30, 90, n), draw.random((n, len(outcome.LOG_HAZARD_RATIOS))) < 0.3
        labels = [dict(zip(outcome.LOG_HAZARD_RATIOS, row.astype(int), strict=True)) for row in present]
        drawn = np.array([outcome.draw_survival(*one, draw) for one in zip(age, labels, strict=True)])
        hazard = [outcome.log_hazard(*one) for one in zip(age, labels, strict=True)]
        columns = {"survival_months": drawn[:, 0], "event": drawn[:, 1], "age": age, "log_hazard": hazard}
        splits[name] = EmbeddedSplit(
            name=name,
            volumes=np.ones((n, 1), np.float32),
            pooled=(present + draw.normal(0, 0.3, present.shape)).astype(np.float32),
            studies=np.arange(n),
            patients=1000 * index + np.arange(n),
            measurements={key: np.asarray(column, np.float32) for key, column in columns.items()},
        )
    flat = prognosis(splits, clinical=("age",), risks=("log_hazard",)).metrics()
    assert 0.5 < flat["clinical/harrell_c"] < flat["log_hazard/harrell_c"]
    assert 0.6 < flat["harrell_c"] < flat["log_hazard/harrell_c"] < 0.85
    assert flat["gain/harrell_c"] == pytest.approx(flat["harrell_c"] - flat["clinical/harrell_c"])
