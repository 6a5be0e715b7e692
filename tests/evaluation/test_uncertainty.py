"""The uncertainty evaluator on objectives whose variance is known."""

import numpy as np
import pytest
from scipy import stats

from medclip_jax.evaluation import run
from medclip_jax.evaluation.embeddings import embed_split
from medclip_jax.evaluation.metrics import bootstrap_interval
from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.evaluation.settings import default_evaluators
from medclip_jax.evaluation.uncertainty import evaluate_uncertainty
from medclip_jax.evaluation.uncertainty_metrics import calibration, risk_coverage
from medclip_jax.evaluation.zero_shot import pair_scores
from medclip_jax.objectives.base import Embedding
from medclip_jax.reports.prompts import pair
from tests.evaluation.gaussian_toy import FINDINGS, ToyGaussian, toy_embedder, toy_records

ORGANS = ("lung", "heart")
NOISE_ALONE = {"lost_slices": (), "cropped": (), "truncated": (), "vague": ()}


class ToyPoints(ToyGaussian):
    """The same without variances."""

    embeds_organs = False

    def embed_volumes(self, inputs):
        return Embedding(super().embed_volumes(inputs).mean)

    def embed_texts(self, tokens):
        return Embedding(super().embed_texts(tokens).mean)


def opener(rows, organs=ORGANS):
    def open_records(fields):
        return [{name: row[name] for name in fields if name in row} for row in rows], organs

    return open_records


def embedded(objective=None, rows=None):
    embedder = toy_embedder(objective)
    return embed_split("test", toy_records() if rows is None else rows, embedder, findings=FINDINGS), embedder


def evaluated(objective=None, rows=None, organs=ORGANS, **settings):
    rows = toy_records() if rows is None else rows
    data, embedder = embedded(objective, rows)
    given = {"embedder": embedder, "open_records": opener(rows, organs), "draws": 20}
    return evaluate_uncertainty(data, embedder.texts, **{**given, **settings})


@pytest.fixture(scope="module")
def result():
    return evaluated()


class TestDamage:
    def test_correlations_are_those_of_the_traces(self, result):
        found = result.degradations["noise"]
        assert list(found.levels) == [0, 25, 50, 100, 200]
        assert found.uncertainty.shape == (12, 5)
        # The toy's trace is known: its width times the variance in 100 HU.
        rows = toy_records()
        expected = [6 * (np.var(row["volume"] / 100.0) + 1e-3) for row in rows]
        np.testing.assert_allclose(found.uncertainty[:, 0], expected, rtol=1e-3)
        np.testing.assert_allclose(found.uncertainty[:, 4] - expected, 6 * 4.0, rtol=0.5)
        levels = np.tile(found.levels, 12)
        pooled = stats.spearmanr(found.uncertainty.ravel(), levels).statistic
        within = np.mean([stats.spearmanr(row, found.levels).statistic for row in found.uncertainty])
        flat = result.metrics()
        assert flat["spearman/noise"] == pytest.approx(pooled, abs=1e-12)
        assert flat["spearman_within/noise"] == pytest.approx(within, abs=1e-12)
        assert within > pooled > 0.9

        def of_rows(rows, _):
            return stats.spearmanr(found.uncertainty[rows].ravel(), levels).statistic

        rows = np.arange(12)
        expected = bootstrap_interval(of_rows, rows, rows, draws=20, seed=0, groups=rows // 2)
        assert found.intervals["pooled"] == pytest.approx(expected, abs=1e-12)

    def test_texts_lose_words(self, result):
        found = result.degradations["truncated"]
        words = [len(row["report"].split()) for row in toy_records()]
        np.testing.assert_allclose(found.uncertainty[:, 0], 6 / np.array(words), rtol=1e-5)
        np.testing.assert_allclose(found.uncertainty[:, 2], 6 / np.round(np.array(words) * 0.5), rtol=1e-5)
        assert result.metrics()["spearman_within/truncated"] == pytest.approx(1.0)

    def test_texts_that_stay_as_they_are_take_no_part(self):
        rows = toy_records(6)
        for row in rows[:4]:
            row["report"] = "Nothing to say here."
        rows[4]["report"] = ""
        assert len(evaluated(rows=rows).degradations["vague"].uncertainty) == 1
        rows[5]["report"] = ""
        assert "vague" not in evaluated(rows=rows).degradations

    def test_equal_uncertainty_has_no_correlation(self):
        found = evaluated(ToyGaussian(constant=True))
        flat = found.metrics()
        for kind in ("noise", "lost_slices", "cropped", "truncated", "vague"):
            assert np.isnan(flat[f"spearman/{kind}"])
            assert np.isnan(flat[f"spearman_within/{kind}"])
        assert "n/a" in str(found)
        assert flat["risk_coverage/variance_relative"] == pytest.approx(1.0)  # all tie: a random order

    def test_levels_and_samples_are_settings(self):
        found = evaluated(
            samples=5, noise=(10.0,), lost_slices=(), cropped=(), truncated=(), vague=(), draws=0
        )
        assert list(found.degradations) == ["noise"]
        assert found.degradations["noise"].uncertainty.shape == (5, 2)
        assert found.degradations["noise"].intervals == {}
        assert found.conditions["noise"] == "0, 10 HU"
        assert "5 damaged" in found.conditions["n"]

    def test_one_sample(self):
        found = evaluated(rows=toy_records(1), noise=(50.0, 100.0))
        assert found.metrics()["spearman/noise"] == pytest.approx(1.0)
        assert "risk_coverage/variance" in found.metrics()

    def test_damage_is_the_same_every_time(self, result):
        again = evaluated().metrics()
        assert str(again) == str(result.metrics())
        other = evaluated(seed=1, draws=0).degradations["noise"].uncertainty[:, 1:]
        assert (other != result.degradations["noise"].uncertainty[:, 1:]).all()


class TestAnswers:
    def test_against_the_parts(self, result):
        data, embedder = embedded()
        wrong, doubt, truth, p = [], [], [], []
        for finding in FINDINGS:
            scores = pair_scores(
                data.volumes, *embedder.texts(pair(finding)), score="probability", scale=data.logit_scale
            )
            truth.append(data.labels[finding] == 1)
            p.append(scores)
            wrong.append((scores >= 0.5) != truth[-1])
            doubt.append(data.volumes.trace)
        wrong, doubt, truth, p = (np.concatenate(x) for x in (wrong, doubt, truth, p))
        flat = result.metrics()
        expected = risk_coverage(wrong, doubt)
        assert flat["risk_coverage/variance"] == pytest.approx(expected.area, abs=1e-12)
        assert flat["risk_coverage/variance_relative"] == pytest.approx(expected.relative, abs=1e-12)
        assert flat["risk_coverage/oracle"] == pytest.approx(expected.oracle, abs=1e-12)
        assert flat["risk_coverage/random"] == pytest.approx(wrong.mean(), abs=1e-12)
        assert flat["calibration_error"] == pytest.approx(calibration(truth, p).error, abs=1e-12)
        margin = risk_coverage(wrong, -np.abs(p - 0.5))
        assert flat["risk_coverage/margin"] == pytest.approx(margin.area, abs=1e-12)
        assert set(result.answers.intervals) >= {"risk_coverage/variance", "calibration_error"}

    def test_unknown_labels_are_left_out(self):
        rows = toy_records()
        for row in rows[::2]:
            row["labels"] = np.zeros(2, np.int8)
        assert len(evaluated(rows=rows).answers.labels) == 12
        for row in rows:
            row["labels"] = np.zeros(2, np.int8)
        found = evaluated(rows=rows)
        assert found.answers is None
        assert 'labels="findings"' in found.missing["zero-shot"]
        assert "spearman/noise" in found.metrics()

    def test_unknown_finding_lists_the_columns(self):
        with pytest.raises(ValueError, match="no column for emphysema; the shards have cardiomegaly"):
            evaluated(findings=("emphysema",))


class TestInclusion:
    def test_narrower_is_inside_and_absent_is_left_out(self, result):
        found = result.inclusion
        assert found.present.sum() == 22  # the first volume has no organ
        # Equal means and log-variances that differ by 1: each of six dimensions gives the same.
        one = 0.5 - 0.5 * np.log((1 + 2 * np.e) / (2 + np.e))
        np.testing.assert_allclose(found.scores[1:, 0], 6 * one, rtol=1e-4)
        np.testing.assert_allclose(found.scores[1:, 1], -6 * one, rtol=1e-4)
        flat = result.metrics()
        assert flat["inclusion_share/lung"] == 1
        assert flat["inclusion_share/heart"] == 0
        assert flat["inclusion_share"] == 0.5

    def test_equal_but_for_rounding_is_not_inside(self):
        found = evaluated(ToyGaussian(organs=(0.0, -1e-6)), draws=0).inclusion
        assert np.abs(found.scores).max() < 6e-6
        assert found.share == 0

    def test_shards_without_organs(self):
        found = evaluated(organs=())
        assert found.inclusion is None
        assert "hold no organs" in found.missing["inclusion"]

    def test_no_organ_in_any_volume(self):
        rows = toy_records(3)
        for row in rows:
            row["organs"][:] = 0
        assert "no organ shows" in evaluated(rows=rows).missing["inclusion"]


class TestPoints:
    def test_what_needs_no_variance_is_evaluated(self):
        found = evaluated(ToyPoints())
        assert found.degradations == {}
        assert found.inclusion is None
        flat = found.metrics()
        assert "risk_coverage/margin" in flat
        assert "risk_coverage/variance" not in flat
        assert 0 <= flat["calibration_error"] <= 1
        assert "points without variance" in found.missing["degradation"]
        assert "no degradation: the model gives points" in str(found)

    def test_nothing_at_all(self):
        rows = toy_records(4)
        for row in rows:
            row["labels"] = np.zeros(2, np.int8)
        with pytest.raises(NotEvaluable, match=r"points without variance.*no known labels"):
            evaluated(ToyPoints(), rows=rows)


def test_without_the_volumes_texts_and_answers_remain():
    data, embedder = embedded()
    found = evaluate_uncertainty(data, embedder.texts, draws=0)
    assert set(found.degradations) == {"truncated", "vague"}
    assert found.answers is not None
    assert found.inclusion is None


def test_without_texts_the_volumes_are_damaged_all_the_same():
    class Mute(ToyGaussian):
        has_text = False

    found = evaluated(Mute(), draws=0)
    assert found.degradations.keys() == {"noise", "lost_slices", "cropped"}
    assert found.answers is None
    assert found.inclusion is not None
    assert "no text tower" in found.missing["zero-shot"]
    assert "no text tower" in found.missing["damaged texts"]
    expected = evaluated(draws=0).degradations["noise"]
    np.testing.assert_array_equal(found.degradations["noise"].uncertainty, expected.uncertainty)


def test_unknown_text_field():
    with pytest.raises(ValueError, match="text='title': use one of report"):
        evaluated(text="title")


def test_the_runner_gives_embedder_and_records(monkeypatch):
    rows = toy_records()
    monkeypatch.setattr(
        run,
        "open_and_embed",
        lambda folder, split, embedder, kinds, cache: embed_split(split, rows, embedder, findings=FINDINGS),
    )
    from medclip_jax.shards import read

    class Info:
        organs = ORGANS

    monkeypatch.setattr(read, "open_shards", lambda folder: Info())
    monkeypatch.setattr(read, "open_split", lambda info, split, fields: opener(rows)(fields)[0])
    assert "embedder" not in default_evaluators()["uncertainty"]
    found = run.evaluate(toy_embedder(), {"uncertainty": {"draws": 0}}, shards="s", split="test")
    direct = evaluated(draws=0).metrics()
    assert found == pytest.approx({f"uncertainty/{key}": value for key, value in direct.items()})
