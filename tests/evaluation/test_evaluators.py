"""Zero-shot, retrieval and ordinal on hand-made embeddings, and the runner on hand-made records."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn import metrics as reference

from medclip_jax.evaluation import metrics, ranking, run
from medclip_jax.evaluation.embeddings import EmbeddedSplit, embed_split
from medclip_jax.evaluation.ordinal import evaluate_ordinal
from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.evaluation.retrieval import evaluate_retrieval
from medclip_jax.evaluation.settings import EVALUATORS, USUAL, check_evaluators, default_evaluators
from medclip_jax.evaluation.zero_shot import evaluate_zero_shot, pair_scores
from medclip_jax.reports.prompts import pair
from tests.evaluation.point_toy import FINDINGS, Mute, Toy, embedder_of, records, unit


def encode_texts(texts):
    """A vector for each text that depends on its letters alone."""
    return unit([np.random.default_rng(list(text.encode())).normal(size=16) for text in texts])


def made_split(name="test", n=60, seed=0, **changes):
    generator = np.random.default_rng(seed)
    table = generator.choice([-1, 0, 1], (n, len(FINDINGS)), p=[0.4, 0.2, 0.4]).astype(np.int8)
    table[:, 2] = np.where(table[:, 2] == 0, 0, 1)  # one class only
    volumes = generator.normal(size=(n, 16))
    for column, finding in enumerate(FINDINGS):
        positive, negative = encode_texts(pair(finding))
        volumes += table[:, column : column + 1] * (positive - negative)
    fields = {
        "name": name,
        "volumes": unit(volumes),
        "studies": np.arange(n) // 2,
        "patients": np.arange(n) // 3,
        "labels": {finding: table[:, column] for column, finding in enumerate(FINDINGS)},
        "reported": {finding: np.zeros(n, np.int8) for finding in FINDINGS},
        "measurements": {"cac_grade": np.where(np.arange(n) % 7 == 0, np.nan, np.arange(n) % 5)},
        "texts": {"report": [f"report of study {i // 2}" for i in range(n)]},
        "pooling": "volume mean, text cls",
    }
    return EmbeddedSplit(**{**fields, **changes})


class TestZeroShot:
    def test_scores_and_metrics(self):
        data = made_split()
        result = evaluate_zero_shot(data, encode_texts, draws=30)
        for finding in FINDINGS[:2]:
            column = data.labels[finding]
            cosines = data.volumes.astype(np.float64) @ encode_texts(pair(finding)).T.astype(np.float64)
            known = column != 0
            score, label = (cosines[:, 0] - cosines[:, 1])[known], column[known] == 1
            found = result.findings[finding]
            assert found.unknown == (~known).sum()
            expected = {
                "auroc": reference.roc_auc_score(label, score),
                "average_precision": reference.average_precision_score(label, score),
                "f1": reference.f1_score(label, score >= 0),
                "accuracy": reference.accuracy_score(label, score >= 0),
                "sensitivity": reference.recall_score(label, score >= 0),
                "specificity": reference.recall_score(~label, score < 0),
                "precision": reference.precision_score(label, score >= 0),
                "balanced_accuracy": reference.balanced_accuracy_score(label, score >= 0),
                "weighted_f1": reference.f1_score(label, score >= 0, average="weighted"),
            }
            assert found.values == pytest.approx(expected, abs=1e-9)
            interval = metrics.bootstrap_interval(
                metrics.auroc, label, score, draws=30, seed=0, groups=data.patients[known]
            )
            assert found.intervals["auroc"] == pytest.approx(interval, abs=1e-9)

    def test_one_class_is_left_out_of_the_mean(self):
        result = evaluate_zero_shot(made_split(), encode_texts, draws=20)
        flat = result.metrics()
        assert np.isnan(flat["auroc/atherosclerosis"])
        both = [flat["auroc/cardiomegaly"], flat["auroc/pericardial_effusion"]]
        assert flat["auroc_mean"] == pytest.approx(np.mean(both), abs=1e-12)
        low, high, defined = result.mean_auroc_interval
        assert low < flat["auroc_mean"] < high
        assert defined == 20

    def test_probability_ranks_alike_and_cuts_alike(self):
        one = evaluate_zero_shot(made_split(), encode_texts, draws=0)
        two = evaluate_zero_shot(made_split(), encode_texts, score="probability", scale=14.0, draws=0)
        assert two.metrics() == pytest.approx(one.metrics(), abs=1e-9, nan_ok=True)
        assert two.findings["cardiomegaly"].scores.min() > 0
        assert two.findings["cardiomegaly"].threshold == 0.5

    def test_probability_is_the_softmax_over_the_pair(self):
        volume, positive, negative = unit([[1, 2, 3]]), unit([1, 0, 1]), unit([0, 1, 1])
        logits = 20 * (volume.astype(float) @ np.stack([positive, negative]).T.astype(float))[0]
        expected = np.exp(logits[0]) / np.exp(logits).sum()
        found = pair_scores(volume, positive, negative, score="probability", scale=20.0)
        assert found == pytest.approx([expected], abs=1e-7)
        assert pair_scores(volume, positive, -positive, score="probability", scale=1e5) == 1

    def test_threshold_from_another_split(self):
        data, other = made_split(), made_split("validation", seed=1)
        result = evaluate_zero_shot(
            data, encode_texts, threshold="validation", load_split={"validation": other}.get, draws=0
        )
        found = result.findings["cardiomegaly"]
        column = other.labels["cardiomegaly"]
        scores = pair_scores(other.volumes, *encode_texts(pair("cardiomegaly")))
        expected = metrics.best_threshold(column[column != 0] == 1, scores[column != 0])
        assert found.threshold == pytest.approx(expected, abs=1e-9)
        assert found.values["f1"] == metrics.f1(found.labels, found.scores >= expected)
        assert "validation" in result.conditions["threshold"]

    def test_positive_prompts_alone(self):
        data, other = made_split(), made_split("train", seed=1)
        result = evaluate_zero_shot(
            data,
            encode_texts,
            score="positive_only",
            template="cmr_clip",
            threshold="train",
            criterion="equal",
            load_split={"train": other}.get,
            draws=0,
        )
        found = result.findings["cardiomegaly"]
        prompt = encode_texts(["There is cardiomegaly."])[0].astype(np.float64)
        known = data.labels["cardiomegaly"] != 0
        np.testing.assert_allclose(found.scores, (data.volumes @ prompt)[known], atol=1e-12)
        column = other.labels["cardiomegaly"]
        called = (other.volumes @ prompt)[column != 0] >= found.threshold
        rates = called[column[column != 0] == 1].mean(), 1 - called[column[column != 0] == -1].mean()
        assert abs(rates[0] - rates[1]) <= 1 / min((column == 1).sum(), (column == -1).sum())
        actual = found.labels == 1
        assert found.values["sensitivity"] == (found.scores[actual] >= found.threshold).mean()
        assert found.values["specificity"] == (found.scores[~actual] < found.threshold).mean()
        assert result.conditions["threshold"] == "sensitivity equal to specificity on split 'train'"
        assert "no" not in result.conditions["prompts"]

    def test_several_positive_prompts_score_by_their_mean_cosine(self):
        name = "late_gadolinium_enhancement"
        data = made_split(labels={name: np.where(np.arange(60) % 2, 1, -1).astype(np.int8)})
        result = evaluate_zero_shot(data, encode_texts, score="positive_only", template="cmr_clip", draws=0)
        wording = result.findings[name].prompts
        assert (len(wording.positive), wording.negative) == (3, ())
        cosines = data.volumes.astype(np.float64) @ encode_texts(wording.positive).T.astype(np.float64)
        np.testing.assert_allclose(result.findings[name].scores, cosines.mean(axis=1), atol=1e-12)
        # Without another split there is no threshold, and nothing that needs one.
        flat = result.metrics()
        assert 0 <= flat[f"auroc/{name}"] <= 1
        assert np.isnan([flat[f"{metric}/{name}"] for metric in ("f1", "accuracy", "sensitivity")]).all()
        assert "none: set threshold" in str(result)

    def test_a_pair_needs_both_sides(self):
        with pytest.raises(ValueError, match="no negative prompt"):
            evaluate_zero_shot(made_split(), encode_texts, template="cmr_clip")
        for kind, fix in (("zero_shot", "score='positive_only'"), ("uncertainty", "use another")):
            with pytest.raises(ValueError, match=fix):
                check_evaluators({kind: {"template": "cmr_clip"}})
        check_evaluators({"retrieval": {"template": "cmr_clip"}})

    def test_threshold_from_the_scored_split_is_refused(self):
        with pytest.raises(ValueError, match="flatters"):
            evaluate_zero_shot(
                made_split("validation"), encode_texts, threshold="validation", load_split=made_split
            )

    def test_no_ground_truth_points_to_the_reports(self):
        nothing = {finding: np.zeros(60, np.int8) for finding in FINDINGS}
        with pytest.raises(NotEvaluable, match='labels="findings"'):
            evaluate_zero_shot(made_split(labels=nothing), encode_texts)

    def test_unknown_finding_lists_the_columns(self):
        with pytest.raises(ValueError, match="no column for emphysema; the shards have cardiomegaly"):
            evaluate_zero_shot(made_split(), encode_texts, findings=("emphysema",))

    def test_prints_its_conditions(self):
        text = str(evaluate_zero_shot(made_split(), encode_texts, draws=10))
        for part in (
            "60 volumes of 20 patients",
            "There is no X.",
            "volume mean",
            "argmax",
            "10 draws",
            "not shown: nowhere present, or nowhere absent: atherosclerosis",
        ):
            assert part in text
        assert "n/a" not in text

    def test_two_positives_are_too_few_to_show_and_stay_in_the_numbers(self):
        labels = {name: column.copy() for name, column in made_split().labels.items()}
        column = labels["cardiomegaly"]
        column[:] = -1
        column[:2] = 1
        result = evaluate_zero_shot(made_split(labels=labels), encode_texts, draws=10)
        table = {row[0]: row[1:] for row in result.table().rows}
        assert table["cardiomegaly"][:4] == ("2", "58", "too few", "too few")
        assert not any("too few" in cell for cell in table["pericardial_effusion"])
        flat = result.metrics()
        assert 0 <= flat["auroc/cardiomegaly"] <= 1
        assert (flat["present/cardiomegaly"], flat["absent/cardiomegaly"]) == (2, 58)
        assert result.shown_mean == flat["auroc/pericardial_effusion"]
        assert table["mean"][2] == f"{result.shown_mean:.3f}"
        assert "fewer than 10 present or absent" in str(result)

    def test_nan_embedding_is_an_error(self):
        volumes = made_split().volumes.copy()
        volumes[5, 0] = np.nan
        with pytest.raises(ValueError, match="scores hold NaN"):
            evaluate_zero_shot(made_split(volumes=volumes), encode_texts)


class TestRetrieval:
    def test_against_brute_force(self):
        data = made_split()
        result = evaluate_retrieval(data, encode_texts, ks=(1, 5, 10))
        texts = [f"report of study {i}" for i in range(30)]
        similarity = data.volumes.astype(np.float64) @ encode_texts(texts).T.astype(np.float64)
        for direction, matrix, queries, gallery in (
            (result.image_to_text, similarity, data.studies, np.arange(30)),
            (result.text_to_image, similarity.T, np.arange(30), data.studies),
        ):
            order = np.argsort(-matrix, axis=1)
            first = [np.flatnonzero(gallery[o] == q)[0] for o, q in zip(order, queries, strict=True)]
            assert direction.queries, direction.gallery == matrix.shape
            for k, value in direction.recall.items():
                assert value == pytest.approx(np.mean(np.array(first) < k), abs=1e-12)
            assert direction.median_rank == np.median(first) + 1

    def test_perfect_model(self):
        texts = [f"report of study {i // 2}" for i in range(60)]
        flat = evaluate_retrieval(made_split(volumes=encode_texts(texts)), encode_texts, ks=(1,)).metrics()
        assert flat["image_to_text/R@1"] == 1
        assert flat["text_to_image/R@1"] == 1
        assert flat["text_to_image/mean_rank"] == 1

    def test_equal_reports_of_different_studies_tie(self):
        texts = {"report": ["normal"] * 60}
        result = evaluate_retrieval(made_split(texts=texts), encode_texts, ks=(1, 3))
        assert result.image_to_text.gallery == 30
        assert result.image_to_text.recall == pytest.approx({1: 1 / 30, 3: 1 / 10}, abs=1e-12)

    def test_subsets_against_brute_force(self):
        """Draws of whole pools of pairs, one volume of each study: equal to the plain evaluation of them."""
        texts = [f"report of study {i}" for i in range(30)]
        data = made_split()
        result = evaluate_retrieval(data, encode_texts, subset=10, subset_draws=400, subset_ks=(1, 3))
        generator = np.random.default_rng(9)
        expected = []
        for _ in range(400):
            studies = generator.permutation(30)[:10]
            rows = 2 * studies + generator.integers(0, 2, 10)
            similarity = data.volumes[rows].astype(float) @ encode_texts([texts[s] for s in studies]).T
            expected.append(ranking.recall_at_k(similarity, studies, studies, (3,))[3])
        flat = result.metrics()
        # Two independent sets of 400 draws: their means differ by their standard error, times 4.
        error = 4 * np.std(expected) * np.sqrt(2 / 400)
        assert flat["subset/image_to_text/R@3"] == pytest.approx(np.mean(expected), abs=error)
        assert flat["subset/image_to_text/R@3_std"] == pytest.approx(np.std(expected), rel=0.2)
        assert result.subsets.recall["text_to_image"][1].shape == (400,)
        assert "one volume and its text of each of 10 studies, of 30" in str(result.subset_table())

    def test_subset_of_all_pairs_has_no_spread(self):
        data = made_split(studies=np.arange(60), texts={"report": [f"report {i}" for i in range(60)]})
        result = evaluate_retrieval(data, encode_texts, ks=(5,), subset=60, subset_draws=3, subset_ks=(5,))
        flat = result.metrics()
        for direction in ("image_to_text", "text_to_image"):
            assert flat[f"subset/{direction}/R@5"] == pytest.approx(flat[f"{direction}/R@5"], abs=1e-12)
            assert flat[f"subset/{direction}/R@5_std"] == pytest.approx(0, abs=1e-12)

    def test_equal_reports_tie_in_subsets(self):
        result = evaluate_retrieval(
            made_split(texts={"report": ["normal"] * 60}), encode_texts, subset=10, subset_ks=(1, 5)
        )
        for recall in result.subsets.recall.values():
            np.testing.assert_allclose(recall[1], 0.1, atol=1e-12)
            np.testing.assert_allclose(recall[5], 0.5, atol=1e-12)

    def test_too_few_studies_for_a_subset(self):
        result = evaluate_retrieval(made_split(), encode_texts)
        assert np.isnan(result.metrics()["subset/image_to_text/R@1"])
        assert "too few, set subset to at most 30" in result.subset_conditions["n"]
        without = evaluate_retrieval(made_split(), encode_texts, subset=0)
        assert without.subset_table() is None
        assert not any(key.startswith("subset/") for key in without.metrics())

    def test_volumes_without_text_are_left_out(self):
        texts = {"impression": ["", " "] + [f"impression {i}" for i in range(58)]}
        result = evaluate_retrieval(made_split(texts=texts), encode_texts, text="impression")
        assert result.image_to_text.queries == 58
        assert "2 without text left out" in result.conditions["n"]

    def test_no_text_at_all(self):
        with pytest.raises(NotEvaluable, match="impression"):
            evaluate_retrieval(made_split(), encode_texts, text="impression")

    def test_keyword_precision(self):
        data = made_split()
        result = evaluate_retrieval(data, encode_texts, keyword_ks=(5, 50))
        column = data.labels["cardiomegaly"]
        known = column != 0
        scores = data.volumes[known].astype(float) @ encode_texts(["There is cardiomegaly."])[0].astype(float)
        expected = (column[known][np.argsort(-scores)[:5]] == 1).mean()
        flat = result.metrics()
        assert flat["keyword/P@5/cardiomegaly"] == pytest.approx(expected, abs=1e-12)
        assert np.isnan(flat["keyword/P@50/cardiomegaly"])  # 47 known
        assert result.keywords["cardiomegaly"].gallery == known.sum()

    def test_no_labels_no_keywords(self):
        nothing = {finding: np.zeros(60, np.int8) for finding in FINDINGS}
        result = evaluate_retrieval(made_split(labels=nothing), encode_texts)
        assert result.keywords == {}
        assert result.keyword_table() is None


class TestOrdinal:
    def test_against_scikit_learn(self):
        data = made_split()
        prompt = ["There is coronary calcification."]
        result = evaluate_ordinal(data, encode_texts, draws=20)
        known = ~np.isnan(data.measurements["cac_grade"])
        scores = (data.volumes.astype(float) @ encode_texts(prompt)[0].astype(float))[known]
        grades = data.measurements["cac_grade"][known]
        flat = result.metrics()
        for cut in (1, 2, 3, 4):
            expected = reference.roc_auc_score(grades >= cut, scores)
            assert flat[f"cac/auroc/{cut}"] == pytest.approx(expected, abs=1e-9)
            task = result.scored()["cac"].tasks[f"grade >= {cut}"]
            np.testing.assert_array_equal(task.rows, np.flatnonzero(known))
            assert reference.roc_auc_score(task.labels, task.scores[0]) == pytest.approx(expected, abs=1e-9)
        assert result.mean_interval.low < flat["cac/auroc_mean"] < result.mean_interval.high

    def test_missing_measurement(self):
        with pytest.raises(NotEvaluable, match=r"no measurement 'cac_grade'.*they hold: none"):
            evaluate_ordinal(made_split(measurements={}), encode_texts)

    def test_unknown_everywhere(self):
        with pytest.raises(NotEvaluable, match="unknown for all"):
            evaluate_ordinal(made_split(measurements={"cac_grade": np.full(60, np.nan)}), encode_texts)


@pytest.fixture
def shards(monkeypatch):
    """The runner over hand-made records instead of a folder."""
    opened = []

    def open_and_embed(folder, split, embedder, *, kinds=(), cache=None):
        opened.append(split)
        return embed_split(split, records(), embedder, findings=FINDINGS, measurements=("cac_grade",))

    monkeypatch.setattr(run, "open_and_embed", open_and_embed)
    return opened


SETTINGS = {"shards": "folder", "split": "test"}


def all_evaluators():
    few = {"draws": 10, "pictures": 0}  # there is no folder to read pictures from
    return {
        name: {key: few.get(key, value) for key, value in settings.items()}
        for name, settings in default_evaluators().items()
        if name in USUAL  # the splits of hand-made records share patients
    }


class TestRun:
    def test_stable_keys(self, shards):
        found = run.evaluate(embedder_of(Toy()), all_evaluators(), **SETTINGS)
        assert shards == ["test"]
        for key in (
            "zero_shot/auroc_mean",
            "zero_shot/auroc/cardiomegaly",
            "zero_shot/average_precision/cardiomegaly",
            "zero_shot/f1_mean",
            "retrieval/image_to_text/R@5",
            "retrieval/text_to_image/median_rank",
            "retrieval/keyword/P@10/cardiomegaly",
            "ordinal/cac/auroc_mean",
            "ordinal/cac/auroc/4",
            "library/P@5/cardiomegaly",
        ):
            assert isinstance(found[key], float), key

    def test_splits_are_embedded_once(self, shards):
        plan = {
            "zero_shot": {"threshold": "validation", "draws": 0},
            "again": {"kind": "zero_shot", "threshold": "validation", "draws": 0},
        }
        found = run.evaluate(embedder_of(Toy()), plan, **SETTINGS)
        assert sorted(shards) == ["test", "validation"]
        assert found["again/f1_mean"] == found["zero_shot/f1_mean"]

    def test_takes_a_config_dict(self, shards):
        from ml_collections import ConfigDict

        plan = ConfigDict({"zero_shot": {"draws": 0, "findings": ("cardiomegaly",)}, "retrieval": {}})
        found = run.evaluate(embedder_of(Toy()), plan, **SETTINGS)
        assert "zero_shot/auroc/cardiomegaly" in found
        assert "zero_shot/auroc/atherosclerosis" not in found

    def test_twice_gives_the_same(self, shards):
        one, two = (run.evaluate(embedder_of(Toy()), all_evaluators(), **SETTINGS) for _ in range(2))
        assert json.dumps(one) == json.dumps(two)

    def test_an_objective_without_text_runs_what_needs_none(self, shards, monkeypatch):
        class Seeing(Toy):
            has_text = False

        def evaluate_count(data, encode_texts, *, labels: str = "labels"):
            return SimpleNamespace(metrics=lambda: {"volumes": float(len(data.volumes))})

        monkeypatch.setitem(EVALUATORS, "count", evaluate_count)
        found = run.evaluate_all(embedder_of(Seeing()), {"count": {}, "retrieval": {}}, **SETTINGS)
        assert found.metrics() == {"count/volumes": 11.0}
        assert found.skipped.keys() == {"retrieval"}
        assert "no text tower" in found.skipped["retrieval"]

    def test_evaluators_say_what_they_need(self):
        needs = {name: getattr(function, "needs", ()) for name, function in EVALUATORS.items()}
        assert needs == {
            "zero_shot": ("text",),
            "retrieval": ("text",),
            "volume_retrieval": (),
            "ordinal": ("text",),
            "uncertainty": (),
            "spectrum": ("volume tower",),
            "grounding": ("text", "patches"),
            "masked_words": ("words",),
            "organs": ("organ shares",),
            "reconstruction": ("reconstruction",),
            "views": ("views",),
            "segmentation": ("label maps",),
            "pointing": ("text",),
            "library": (),
            "prediction": ("predictions",),
            "probe": ("pooled",),
            "class_probe": ("pooled",),
            "knn": ("pooled",),
            "few_shot": ("pooled",),
            "mlp_probe": ("pooled",),
            "vocabulary": ("text", "pooled"),
            "prognosis": ("pooled",),
            "subgroups": (),
        }

    def test_what_looks_at_results_runs_after_them(self, shards, monkeypatch):
        def evaluate_looking(data, encode_texts, *, results=None):
            seen = dict.fromkeys(results, 1.0)
            return SimpleNamespace(metrics=lambda: seen)

        monkeypatch.setitem(EVALUATORS, "looking", evaluate_looking)
        plan = {"looking": {}, "zero_shot": {"draws": 0}, "ordinal": {"draws": 0}}
        evaluation = run.evaluate_all(embedder_of(Toy()), plan, **SETTINGS)
        assert evaluation.results["looking"].metrics() == {"zero_shot": 1.0, "ordinal": 1.0}

    def test_objective_without_text_is_skipped_with_its_reason(self, shards, caplog):
        with caplog.at_level(logging.WARNING):
            assert run.evaluate(embedder_of(Mute()), {"zero_shot": {}}, **SETTINGS) == {}
        assert "no text tower" in caplog.text
        assert shards == []

    def test_one_evaluator_without_data_does_not_stop_the_others(self, shards):
        plan = {"ordinal": {"measurement": "none_such"}, "retrieval": {}}
        evaluation = run.evaluate_all(embedder_of(Toy()), plan, **SETTINGS)
        assert list(evaluation.results) == ["retrieval"]
        assert "none_such" in evaluation.skipped["ordinal"]
        assert "ordinal: skipped" in str(evaluation)

    def test_unknown_evaluator(self):
        with pytest.raises(ValueError, match=r"no evaluator 'probing' for .*There are zero_shot"):
            run.evaluate(embedder_of(Toy()), {"probing": {}}, **SETTINGS)

    def test_unknown_setting(self):
        with pytest.raises(
            ValueError,
            match=r"no zero_shot.treshold. Did you mean zero_shot.threshold.*has the settings findings",
        ):
            run.evaluate(embedder_of(Toy()), {"zero_shot": {"treshold": "argmax"}}, **SETTINGS)
