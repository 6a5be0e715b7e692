"""What protocols add to zero-shot, against NumPy: wordings, ensembles, label sets, volumes, thresholds."""

import numpy as np
import pytest
from sklearn import metrics as reference

from medclip_jax.evaluation import metrics
from medclip_jax.evaluation.label_mapping import any_present, map_labels
from medclip_jax.evaluation.presets import find_protocols, label_sets, name_tables
from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.evaluation.zero_shot import evaluate_zero_shot
from medclip_jax.reports.definitions import Findings
from medclip_jax.reports.finding import Finding
from medclip_jax.reports.prompts import PUBLISHED, describe_prompts, prompts_of
from tests.evaluation.test_evaluators import encode_texts, made_split


def labels_of(*names, n=60, seed=0):
    generator = np.random.default_rng(seed)
    return {name: generator.choice([-1, 0, 1], n).astype(np.int8) for name in names}


def unit(vector):
    return vector / np.linalg.norm(vector)


def settings_of(name):
    (protocol,) = find_protocols(name)
    (settings,) = protocol.evaluators.values()
    return dict(settings)


class TestWordings:
    def test_as_published(self):
        """Written out as the public code has them."""
        title = "Arterial wall calcification"
        assert prompts_of("arterial_wall_calcification", "ct_clip", called=title) == (
            ("Arterial wall calcification is present.",),
            ("Arterial wall calcification is not present.",),
        )
        called = name_tables()["fvlm"]["lung_nodule"]
        assert prompts_of("lung_nodule", "fvlm", called=called) == (("Nodule.",), ("Not Nodule.",))
        assert prompts_of("emphysema", "hlip", called="Emphysema") == (
            ("The volume shows: Emphysema.",),
            ("The volume shows: Not emphysema.",),
        )
        positive, negative = prompts_of("arterial_wall_calcification", "mean7", called=title)
        assert (len(positive), len(negative)) == (7, 7)
        assert positive[2] == "There is Arterial wall calcification."
        assert negative[:2] == (
            "No Arterial wall calcification.",
            "Findings are not compatible with Arterial wall calcification.",
        )
        assert prompts_of("cardiomegaly", "class_name", called="Cardiomegaly") == (("Cardiomegaly",), ())

    def test_a_phrase_gets_its_capital_where_a_sentence_begins(self):
        positive, negative = prompts_of("arterial_wall_calcification", "mean7")
        assert positive[0] == "Arterial wall calcification."
        assert positive[2] == "There is arterial wall calcification."
        assert negative[0] == "No arterial wall calcification."

    def test_described(self):
        words = describe_prompts((), "mean7")
        assert words.count(" / ") == len(PUBLISHED["mean7"])
        assert '"X is seen." / "X is not seen."' in words
        assert describe_prompts((), "class_name", positive=True) == '"X"'


class TestEnsembles:
    def test_seven_pairs_as_vectors(self):
        """Each side's vectors averaged and brought to length 1, then the softmax of the pair, scale 1."""
        data = made_split(labels=labels_of("cardiomegaly"))
        settings = settings_of("ct_rate/mean7") | {"volumes": "all", "draws": 0, "threshold": "argmax"}
        found = evaluate_zero_shot(data, encode_texts, **settings).findings["cardiomegaly"]
        sides = []
        for side in (0, 1):
            texts = [pair[side].format("Cardiomegaly") for pair in PUBLISHED["mean7"]]
            sides.append(unit(encode_texts(texts).astype(np.float64).mean(axis=0)))
        logits = np.exp(data.volumes.astype(np.float64) @ np.stack(sides).T)
        known = data.labels["cardiomegaly"] != 0
        expected = (logits[:, 0] / logits.sum(axis=1))[known]
        np.testing.assert_allclose(found.scores, expected, atol=1e-7)
        label = data.labels["cardiomegaly"][known] == 1
        assert found.values["auroc"] == pytest.approx(reference.roc_auc_score(label, found.scores), abs=1e-9)

    @pytest.mark.parametrize("score", ["difference", "probability"])
    def test_as_scores(self, score):
        own = Findings(
            [
                Finding(
                    "big_heart", "big heart", patterns=("x",), positive=("a", "b", "c"), negative=("d", "e")
                )
            ]
        )
        data = made_split(labels=labels_of("big_heart"), definitions=own)
        result = evaluate_zero_shot(data, encode_texts, ensemble="scores", score=score, scale=3.0, draws=0)
        cosines = data.volumes.astype(np.float64) @ encode_texts(["a", "b", "c", "d", "e"]).T.astype(float)
        expected = 3 * (cosines[:, :3].mean(axis=1) - cosines[:, 3:].mean(axis=1))
        if score == "probability":
            expected = 1 / (1 + np.exp(-expected))
        known = data.labels["big_heart"] != 0
        np.testing.assert_allclose(result.findings["big_heart"].scores, expected[known], atol=1e-9)
        assert "several prompts: mean of scores" in result.conditions["score"]
        vectors = evaluate_zero_shot(data, encode_texts, ensemble="vectors", score=score, draws=0)
        assert not np.allclose(vectors.findings["big_heart"].scores, expected[known])

    def test_positive_prompts_as_vectors(self):
        data = made_split(labels=labels_of("aortic_dilation"))
        options = {"score": "positive_only", "template": "cmr_clip", "draws": 0}
        found = evaluate_zero_shot(data, encode_texts, ensemble="vectors", **options).findings[
            "aortic_dilation"
        ]
        side = unit(encode_texts(found.prompts.positive).astype(np.float64).mean(axis=0))
        known = data.labels["aortic_dilation"] != 0
        np.testing.assert_allclose(found.scores, (data.volumes @ side)[known], atol=1e-6)


class TestLabelSets:
    def test_any_of_several_columns(self):
        columns = [np.array(column, np.int8) for column in ([1, -1, -1, 0, -1], [-1, -1, 0, 1, 1])]
        assert any_present(columns).tolist() == [1, -1, 0, 1, 1]

    def test_rad_chest_standard(self):
        columns = labels_of("cardiomegaly", n=20)
        table = label_sets()["rad_chest_standard"]
        # Columns of RadChestCT are no findings of the library: they come with definitions of their own.
        names = ("calcification", "nodule", "nodulegr1cm", "scarring")
        own = Findings(Finding(name, name, patterns=(name,)) for name in names)
        columns |= labels_of(*names, n=20, seed=1)
        mapped = map_labels(table, columns, own)
        assert list(mapped.columns) == [
            "arterial_wall_calcification",
            "cardiomegaly",
            "lung_nodule",
            "pulmonary_fibrotic_sequela",
        ]
        np.testing.assert_array_equal(mapped.columns["arterial_wall_calcification"], columns["calcification"])
        np.testing.assert_array_equal(
            mapped.columns["lung_nodule"], any_present([columns["nodule"], columns["nodulegr1cm"]])
        )
        assert mapped.scored_by["arterial_wall_calcification"] == (
            "arterial_wall_calcification",
            "coronary_calcification",
        )
        assert "medical_material" in mapped.missing
        assert "4 of 16 findings (NOT THE COMPLETE SET" in mapped.words

    def test_the_column_of_its_own_name_where_others_lack(self):
        columns = labels_of("medical_material", n=5)
        mapped = map_labels(label_sets()["rad_chest_standard"], columns)
        np.testing.assert_array_equal(mapped.columns["medical_material"], columns["medical_material"])
        # That column holds the standard mapping: of the other one it says nothing.
        assert "medical_material" in map_labels(label_sets()["rad_chest_rate"], columns).missing

    def test_the_greater_score_counts(self):
        data = made_split(labels=labels_of("arterial_wall_calcification"))
        result = evaluate_zero_shot(data, encode_texts, label_set="rad_chest_standard", draws=0)
        cosines = []
        for name in ("arterial_wall_calcification", "coronary_calcification"):
            pair = encode_texts([side[0] for side in prompts_of(name)]).astype(np.float64)
            cosines.append(data.volumes.astype(np.float64) @ (pair[0] - pair[1]))
        known = data.labels["arterial_wall_calcification"] != 0
        found = result.findings["arterial_wall_calcification"]
        np.testing.assert_allclose(found.scores, np.max(cosines, axis=0)[known], atol=1e-6)
        assert len(found.prompts.positive) == 2
        assert "rad_chest_standard, 1 of 16 findings" in result.conditions["labels"]

    def test_nothing_of_the_set_is_there(self):
        with pytest.raises(NotEvaluable, match="no column of label set 'cmr_7'"):
            evaluate_zero_shot(made_split(), encode_texts, label_set="cmr_7")


class TestThresholds:
    @pytest.mark.parametrize("criterion", ["youden", "closest"])
    def test_on_the_scored_split_itself(self, criterion):
        data = made_split("validation")
        options = {"score": "probability", "criterion": criterion, "draws": 0}
        result = evaluate_zero_shot(data, encode_texts, threshold="test", **options)
        found = result.findings["cardiomegaly"]
        expected = metrics.best_threshold(found.labels, found.scores, criterion=criterion)
        assert found.threshold == expected
        if criterion == "youden":
            false, true, _ = reference.roc_curve(found.labels, found.scores)
            assert 2 * found.values["balanced_accuracy"] - 1 == pytest.approx(max(true - false), abs=1e-9)
        for text in (result.conditions["threshold"], str(result.calls_table())):
            assert "CHOSEN ON THE SCORED SPLIT 'validation' ITSELF" in text
        assert "flattered" in result.calls_table().title
        assert "flattered" not in evaluate_zero_shot(data, encode_texts, draws=0).calls_table().title

    def test_a_tie_of_the_pair(self):
        """Equal prompts score 0 exactly."""
        own = Findings([Finding("odd", "odd", patterns=("x",), positive=("a",), negative=("a",))])
        data = made_split(labels=labels_of("odd"), definitions=own)
        for ties, sensitivity in (("present", 1), ("absent", 0)):
            result = evaluate_zero_shot(data, encode_texts, ties=ties, draws=0)
            assert result.findings["odd"].values["sensitivity"] == sensitivity
            assert ("a tie is absent" in result.conditions["threshold"]) == (ties == "absent")


class TestVolumes:
    def manifest(self, data, **changes):
        lines = {}
        for place, name in enumerate(data.ids):
            lines[name] = {"row": 100 - place, "notes": [], "provenance": {"spacing": [1.0, 0.7, 0.7]}}
            lines[name] |= {key: value[place] for key, value in changes.items()}
        return lambda: lines

    def made(self, **changes):
        return made_split(n=6, ids=tuple("abcdef"), studies=np.array([0, 0, 1, 1, 1, 2]), **changes)

    def used(self, data, how, **changes):
        options = {"volumes": how, "open_manifest": self.manifest(data, **changes), "draws": 0}
        result = evaluate_zero_shot(data, encode_texts, findings=("cardiomegaly",), **options)
        assert f"{len(data.ids) - len(result.ids)} others left out" in result.conditions["n"]
        return "".join(result.ids)

    def full(self, **changes):
        ones = {"cardiomegaly": np.array([1, -1, 1, -1, 1, -1], np.int8)}
        texts = {"findings_text": ["x", "x", "y", "y", "y", "z"], "report": [""] * 6}
        return self.made(labels=ones, **{"texts": texts, **changes})

    def test_first_per_report_is_first_in_the_corpus(self):
        # Rows of the corpus run against the order in the shards here.
        assert self.used(self.full(), "first_per_report") == "bef"

    def test_finest_voxels_then_distinct_texts(self):
        spacing = [{"spacing": [1.0, step, step]} for step in (0.6, 0.9, 0.9, 0.5, 0.5, 0.8)]
        assert self.used(self.full(), "colipri", provenance=spacing) == "aef"
        texts = {"findings_text": ["x", "x", "y", "y", "y", "x"], "report": [""] * 6}
        # Of studies with one text the first of the corpus stays, which is the last of the shards.
        assert self.used(self.full(texts=texts), "colipri", provenance=spacing) == "ef"

    def test_studies_without_chest(self):
        notes = [[], ["no-chest"], [], [], [], []]
        assert self.used(self.full(), "no_head", notes=notes) == "cdef"

    def test_what_the_shards_do_not_say_is_refused(self):
        data = self.full()
        with pytest.raises(NotEvaluable, match="CT-RATE's no_chest"):
            self.used(data, "no_head")
        with pytest.raises(NotEvaluable, match="spacing of each scan"):
            self.used(data, "colipri", provenance=[{}] * 6)
        with pytest.raises(NotEvaluable, match="no findings_text"):
            self.used(self.full(texts={"report": [""] * 6}), "colipri")
        with pytest.raises(NotEvaluable, match=r"manifest\.jsonl"):
            evaluate_zero_shot(data, encode_texts, volumes="first_per_report")
        lines = self.manifest(data)()
        lines.pop("a")
        with pytest.raises(NotEvaluable, match="1 of 6 volumes are not in it"):
            evaluate_zero_shot(data, encode_texts, volumes="no_head", open_manifest=lambda: lines)

    def test_thresholds_come_from_the_same_choice(self):
        data = self.full()
        other = made_split("train", n=6, ids=tuple("uvwxyz"), studies=np.arange(6) // 2, labels=data.labels)
        lines = self.manifest(data)() | self.manifest(other)()
        result = evaluate_zero_shot(
            data,
            encode_texts,
            findings=("cardiomegaly",),
            volumes="first_per_report",
            threshold="train",
            load_split={"train": other}.get,
            open_manifest=lambda: lines,
            draws=0,
        )
        kept = other.take(np.array([1, 3, 5]))
        positive, negative = encode_texts([side[0] for side in prompts_of("cardiomegaly")])
        scores = kept.volumes.astype(np.float64) @ (positive.astype(np.float64) - negative)
        labels = kept.labels["cardiomegaly"]
        expected = metrics.best_threshold(labels == 1, scores)
        assert result.findings["cardiomegaly"].threshold == pytest.approx(expected, abs=1e-9, nan_ok=True)


class TestBalanced:
    def test_as_many_absent_as_present(self):
        labels = {"cardiomegaly": np.where(np.arange(60) % 6 == 0, 1, -1).astype(np.int8)}
        labels["cardiomegaly"][1] = 0
        data = made_split(labels=labels)
        options = {"sample": "balanced", "seed": 42, "draws": 0}
        found = evaluate_zero_shot(data, encode_texts, **options).findings["cardiomegaly"]
        assert (found.present, found.absent, found.unknown, found.unused) == (10, 10, 1, 39)
        assert (labels["cardiomegaly"][found.rows] == np.where(found.labels == 1, 1, -1)).all()
        again = evaluate_zero_shot(data, encode_texts, **options).findings["cardiomegaly"]
        np.testing.assert_array_equal(found.rows, again.rows)
        other = evaluate_zero_shot(data, encode_texts, **options | {"seed": 43}).findings["cardiomegaly"]
        assert not np.array_equal(found.rows, other.rows)


def test_intervals_of_means_are_those_of_the_repeated_patients():
    data = made_split()
    result = evaluate_zero_shot(data, encode_texts, draws=40, seed=3)
    generator = np.random.default_rng(3)
    patients = np.unique(data.patients)
    drawn = {"auroc": [], "weighted_f1": []}
    names = ["cardiomegaly", "pericardial_effusion"]
    scores = {}
    for name in names:
        pair = encode_texts([side[0] for side in prompts_of(name)]).astype(np.float64)
        scores[name] = data.volumes.astype(np.float64) @ (pair[0] - pair[1])
    for _ in range(40):
        chosen = patients[generator.integers(len(patients), size=len(patients))]
        rows = np.concatenate([np.flatnonzero(data.patients == one) for one in chosen])
        values = {key: [] for key in drawn}
        for name in names:
            known = rows[data.labels[name][rows] != 0]
            label = data.labels[name][known] == 1
            values["auroc"].append(reference.roc_auc_score(label, scores[name][known]))
            calls = scores[name][known] >= 0
            values["weighted_f1"].append(reference.f1_score(label, calls, average="weighted"))
        for key, of_findings in values.items():
            drawn[key].append(np.mean(of_findings))
    for key, values in drawn.items():
        expected = np.quantile(values, [0.025, 0.975])
        assert result.mean_intervals[key][:2] == pytest.approx(expected, abs=1e-7)
