"""medclip compare, on files that an evaluation wrote."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medclip_jax.cli.main import main
from medclip_jax.evaluation.presets import find_protocols
from medclip_jax.evaluation.probe import evaluate_probe
from medclip_jax.evaluation.result_file import write_results
from medclip_jax.evaluation.run import Evaluation
from medclip_jax.evaluation.scored import Scored, ValueTask
from medclip_jax.evaluation.zero_shot import evaluate_zero_shot
from tests.evaluation.test_evaluators import encode_texts, made_split, unit
from tests.evaluation.test_probe import made_splits as splits_to_probe


def written(path, *, noise=0.0, kept=slice(None), template="there_is", name="zero_shot", **changes):
    """The file of a model whose embeddings have that much noise, on some of 60 volumes."""
    data = made_split(ids=tuple(f"{i:032x}" for i in range(60)), **changes)
    rows = np.arange(60)[kept]
    vectors = data.volumes + noise * np.random.default_rng(1).normal(size=data.volumes.shape)
    data = made_split(volumes=unit(vectors), ids=data.ids, **changes).take(rows)
    result = evaluate_zero_shot(data, encode_texts, template=template, draws=20)
    return write_results(path, Evaluation("test", len(rows), {name: result}, {}, data, 1.0), {name: {}})


def metrics_of(path):
    return json.loads(Path(path).read_text())["metrics"]


@pytest.fixture
def files(tmp_path):
    return str(written(tmp_path / "a.json")), str(written(tmp_path / "b.json", noise=0.4))


def test_the_file_holds_what_a_comparison_needs(files):
    content = json.loads(Path(files[0]).read_text())
    data = made_split()
    scores = content["scores"]["zero_shot"]
    assert scores["ids"] == [f"{i:032x}" for i in range(60)]
    assert [int(patient, 16) for patient in scores["patients"]] == data.patients.tolist()
    found = scores["findings"]["cardiomegaly"]
    known = [i for i, label in enumerate(found["labels"]) if label is not None]
    assert known == np.flatnonzero(data.labels["cardiomegaly"]).tolist()
    value = roc_auc_score([found["labels"][i] for i in known], [found["scores"][i] for i in known])
    assert value == pytest.approx(content["metrics"]["zero_shot/auroc/cardiomegaly"], abs=1e-12)
    low, high = content["intervals"]["zero_shot/auroc_mean"]
    assert low < content["metrics"]["zero_shot/auroc_mean"] < high
    assert content["metrics"]["zero_shot/auroc/atherosclerosis"] is None


def test_published_values_are_written_apart(tmp_path):
    chosen = find_protocols("ct_rate/mean7")
    path = write_results(tmp_path / "x" / "y.json", Evaluation("test", 0, {}, {}, None, 1.0), {}, chosen)
    content = json.loads(path.read_text())
    assert content["published"]["ct_rate/mean7"][0]["value"] == "83.8 %"
    assert content["metrics"] == {}
    assert "scores" not in content


def test_compare(files, tmp_path, capsys):
    out = tmp_path / "out" / "difference.json"
    options = ["--draws", "200", "--permutations", "99", "--metric", "auroc,f1", "--json", str(out)]
    assert main(["compare", *files, *options]) == 0
    printed = capsys.readouterr().out
    assert "60 volumes of 20 patients" in printed
    assert "not compared: auroc is undefined for a system: atherosclerosis" in printed
    assert "differs" not in printed
    assert "2 pairs cannot reach p 0.05" in printed
    assert "too few exchanges" not in printed
    numbers = json.loads(out.read_text())["differences"]
    metrics = [metrics_of(file) for file in files]
    for metric, name in (("auroc", "cardiomegaly"), ("f1", "pericardial_effusion")):
        found = numbers[f"zero_shot: {metric}"]["b"][name]
        assert [found["reference"], found["value"]] == pytest.approx(
            [one[f"zero_shot/{metric}/{name}"] for one in metrics], abs=1e-12
        )
        assert found["low"] <= found["difference"] <= found["high"]
        assert 0 < found["p"] <= found["p_holm"] <= 1
    assert 0 < numbers["zero_shot: auroc"]["b"]["cardiomegaly"]["p_patients"] <= 1
    assert "p_patients" not in numbers["zero_shot: f1"]["b"]["cardiomegaly"]
    assert numbers["zero_shot: auroc"]["b"]["atherosclerosis"]["p"] is None
    mean = numbers["zero_shot: auroc"]["b"]["mean"]
    assert (mean["pairs_tasks"], mean["p_tasks"]) == (2, 0.5)


def test_systems_of_several_runs_against_a_reference(tmp_path, capsys):
    """Three systems, two of them with three runs; all numbers are means over runs."""
    noises = {"good": (0.0, 0.05, 0.1), "poor": (0.8, 0.9, 1.0)}
    files = {
        name: [str(written(tmp_path / f"{name}{i}.json", noise=x)) for i, x in enumerate(levels)]
        for name, levels in noises.items()
    }
    single = str(written(tmp_path / "single.json", noise=0.4))
    out, page, picture = (tmp_path / name for name in ("d.json", "d.html", "d.svg"))
    groups = [text for name, paths in files.items() for text in ("--group", f"{name}={','.join(paths)}")]
    options = ["--draws", "50", "--permutations", "49", "--json", str(out), "--page", str(page)]
    options += ["--picture", str(picture), "--reference", "poor"]
    assert main(["compare", single, *groups, *options]) == 0
    printed = capsys.readouterr().out
    assert "Over tasks, against poor" in printed
    assert "p cannot fall below 0.02, 0.08 after correction for 4 tests" in printed
    assert "3 pairs cannot reach p 0.05, whatever the values: the lowest two-sided p is 0.25" in printed
    found = json.loads(out.read_text())["differences"]["zero_shot: auroc"]
    assert list(found) == ["single", "good"]
    for name, one in found["good"].items():
        if one["value"] is None:
            continue
        runs = [np.mean([one["value_runs"], one["reference_runs"]], axis=1)]
        assert runs[0] == pytest.approx([one["value"], one["reference"]], abs=1e-12)
        if name != "mean":
            key = f"zero_shot/auroc/{name}"
            values = [metrics_of(path)[key] for path in files["good"] + files["poor"]]
            assert one["value_runs"] + one["reference_runs"] == pytest.approx(values, abs=1e-12)
    assert (found["good"]["mean"]["pairs_runs"], found["good"]["mean"]["p_runs"]) == (3, 0.25)
    assert "p_runs" not in found["single"]["mean"]
    # Four tests of tasks that are shown, corrected together.
    tested = [found[system][name] for system in found for name in ("cardiomegaly", "pericardial_effusion")]
    lowest = min(tested, key=lambda one: one["p"])
    assert lowest["p_holm"] == pytest.approx(min(1, 4 * lowest["p"]), abs=1e-12)
    assert "data:image/svg+xml" in page.read_text()
    assert picture.read_text().count("<svg") == 1


def test_other_volumes_and_other_settings_are_told(tmp_path, capsys):
    one = written(tmp_path / "a.json", kept=slice(50))
    two = written(tmp_path / "b.json", kept=slice(5, 60), template="is_present", name="other")
    options = ["--draws", "20", "--permutations", "9"]
    assert main(["compare", str(one), str(two), *options]) == 2
    assert "share no evaluator" in capsys.readouterr().err
    assert main(["compare", str(one), str(two), "--evaluator", "zero_shot", "other", *options]) == 0
    printed = capsys.readouterr().out
    assert "45 volumes of 16 patients" in printed
    assert "left out: 5 volumes of" in printed
    assert "which not all files have" in printed
    assert (
        'prompts differs: "There is X." / "There is no X." | "X is present" / "X is not present"' in printed
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "nothing", "no file of `medclip evaluate --json`"),
        (lambda text: "[]", "no file of `medclip evaluate --json`"),
        (lambda text: text.split(',\n "scores"')[0] + "}", "holds no scores of volumes"),
        (lambda text: text.replace('"0000', '"1111'), "share no volume"),
        (lambda text: re.sub(r'("labels": \[(?:null, )*)1', r"\g<1>0", text), "disagree on labels"),
        (lambda text: text.replace('"zero_shot": {"ids"', '"x": {"ids"'), "has no scores of 'zero_shot'"),
    ],
)
def test_files_that_do_not_go_together(files, tmp_path, capsys, change, message):
    text = Path(files[1]).read_text()
    changed = tmp_path / "c.json"
    changed.write_text(change(text))
    assert changed.read_text() != text
    assert main(["compare", files[0], str(changed), "--evaluator", "zero_shot"]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_mistakes(files, capsys):
    assert main(["compare", *files, "--metric", "auc"]) == 2
    assert "--metric auc: use some of auroc" in capsys.readouterr().err
    assert main(["compare", files[0], "no.json"]) == 2
    assert "no.json" in capsys.readouterr().err
    for arguments, message in (
        ([files[0]], "two systems are compared, or more"),
        ([*files, "--group", "c"], "write NAME=a.json,b.json"),
        ([files[0], "--group", f"b={files[1]},{files[1]}"], "names a file twice"),
        ([files[0], "--group", f"a={files[1]}"], "two systems are called a"),
        ([*files, "--reference", "c"], "--reference c: the systems are a, b"),
        ([*files, "--evaluator", "x", "y", "z"], "one for each of the 2 systems: not 3"),
    ):
        assert main(["compare", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_one_file_under_two_names_of_evaluators(files, tmp_path, capsys):
    text = Path(files[0]).read_text()
    scores = json.loads(text)["scores"]["zero_shot"]
    content = {**json.loads(text), "scores": {"one": scores, "two": scores}}
    both = tmp_path / "both.json"
    both.write_text(json.dumps(content))
    options = ["--evaluator", "one", "two", "--draws", "20", "--permutations", "9"]
    assert main(["compare", str(both), str(both), *options]) == 0
    assert "one | two: auroc" in capsys.readouterr().out


def test_probes_are_compared_by_share_and_classes_by_accuracy(tmp_path, capsys):
    """Parts of evaluators, with draws of labels as repetitions; values beside findings."""
    paths = []
    for name, signal in (("weak", 0.3), ("strong", 2.0)):
        splits = {
            key: replace(split, ids=tuple(f"{key}{i}" for i in range(len(split.studies))))
            for key, split in splits_to_probe(signal=signal).items()
        }
        probe = evaluate_probe(
            splits["test"], None, load_split=splits.get, shares=(0.1, 1.0), penalties=(1.0,), draws=0
        )
        right = np.random.default_rng(int(10 * signal)).random(120) < signal / 3
        classes = ValueTask(np.arange(120), right[None].astype(float), "accuracy")
        values = Scored(splits["test"].ids, splits["test"].patients, {"classes": classes})
        other = SimpleNamespace(metrics=dict, conditions={}, scored=lambda values=values: {"": values})
        results = {"probe": probe, "other": other}
        evaluation = Evaluation("test", 120, results, {}, splits["test"], 1.0)
        paths.append(str(write_results(tmp_path / f"{name}.json", evaluation, {})))
    out = tmp_path / "d.json"
    options = ["--draws", "20", "--permutations", "9", "--json", str(out)]
    assert main(["compare", *paths, *options]) == 0
    found = json.loads(out.read_text())["differences"]
    assert list(found) == ["probe/10%: auroc", "probe/100%: auroc", "other: accuracy"]
    for share in ("10%", "100%"):
        numbers = metrics_of(paths[1])
        one = found[f"probe/{share}: auroc"]["strong"]["planted"]
        assert one["value"] == pytest.approx(numbers[f"probe/{share}/auroc/planted"], abs=1e-12)
        assert one["difference"] > 0.1
    assert found["other: accuracy"]["strong"]["classes"]["pairs_patients"] > 20
    assert main(["compare", *paths, *options, "--evaluator", "probe/10%", "--metric", "f1"]) == 0
    assert "probe/10%: f1" in capsys.readouterr().out
