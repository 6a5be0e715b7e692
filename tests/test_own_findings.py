"""A finding of one's own: from its file through prepare, workdir and exported folder to scores."""

import csv
import json
import shutil

import nibabel
import numpy as np
import pytest

import medclip_jax
from medclip_jax.cli.main import main
from medclip_jax.evaluation.similarity import averaged, means
from medclip_jax.evaluation.zero_shot import pair_scores
from medclip_jax.export.folder import write_folder
from medclip_jax.export.parity import load_torch
from medclip_jax.reports.names import UnknownFinding
from medclip_jax.shards.read import open_shards, open_split
from medclip_jax.shards.record import ShardError
from tests.tiny_run import SHAPE, made_volume

NAME = "acute_coronary_syndrome"
FILE = f"""\
[{NAME}]
column = "ACS"
words = ["acute coronary syndrome"]
positive = ["There is an acute coronary syndrome.", "Acute coronary syndrome is present."]
negative = ["There is no acute coronary syndrome."]

[low_ffr]
phrase = "an FFR of 0.80 or less"
"""
SMALL = [
    *("--shape", "8", "8", "8", "--spacing", "12", "12", "12", "--workers", "1"),
    *("--vocabulary-size", "300", "--vocabulary-patients", "1"),
]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    root = tmp_path_factory.mktemp("scans")
    (root / "findings.toml").write_text(FILE)
    random = np.random.default_rng(0)
    with open(root / "studies.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["volume", "patient", "report", "ACS", "label:low_ffr", "measurement:ffr", "split"])
        for index in range(4):
            voxels = np.full((20, 20, 16), -1000.0)
            voxels[4:16, 4:16] = 40
            voxels += random.normal(0, 10, voxels.shape)
            scan = nibabel.Nifti1Image(voxels.astype(np.int16), np.diag([5.0, 5.0, 6.0, 1.0]))
            nibabel.save(scan, root / f"{index}.nii.gz")
            report = f"Cardiomegaly. {'An' if index % 2 else 'No'} acute coronary syndrome."
            split = "train" if index < 3 else "test"
            writer.writerow([f"{index}.nii.gz", f"p{index}", report, index % 2, 1, 0.7, split])
    return root / "studies.csv"


def prepared(table, out, *more, findings="cardiomegaly,{}"):
    findings = findings.format(table.with_name("findings.toml"))
    return main(["prepare", "--table", str(table), "--out", str(out), "--findings", findings, *SMALL, *more])


def test_prepare(table, tmp_path, capsys):
    assert prepared(table, tmp_path / "shards") == 0
    info = open_shards(tmp_path / "shards")
    assert info.findings == ("cardiomegaly", NAME, "low_ffr")
    assert info.definitions[NAME].positive[1] == "Acute coronary syndrome is present."
    assert info.measurements == ("ffr",)
    records = list(open_split(info, "train"))
    assert {tuple(record["findings"]) for record in records} == {(1, 1, 0), (1, -1, 0)}
    assert {tuple(record["labels"]) for record in records} == {(0, 1, 1), (0, -1, 1)}
    assert {record["statements"] for record in records} == {
        "There is cardiomegaly. There is acute coronary syndrome.",
        "There is cardiomegaly. There is no acute coronary syndrome.",
    }
    # The prompts' words are in the vocabulary that was learned.
    vocabulary = (info.tokenizer / "vocab.txt").read_text().split()
    assert {"present", "syndrome"} <= set(vocabulary)
    # Again is nothing to do; with another definition it is another set.
    assert prepared(table, tmp_path / "shards") == 0
    other = tmp_path / "other.toml"
    other.write_text(FILE.replace("words = [", 'words = ["NSTEMI", '))
    assert prepared(table, tmp_path / "shards", findings=f"cardiomegaly,{other}") == 2
    assert "made from other studies, settings or another key" in capsys.readouterr().err


def test_in_parts(table, tmp_path, capsys):
    assert prepared(table, tmp_path / "one") == 0
    assert prepared(table, tmp_path / "two", "--part", "1/2", "--key", str(tmp_path / "one.key")) == 0
    other = tmp_path / "other.toml"
    other.write_text(FILE.replace("words = [", 'words = ["NSTEMI", '))
    more = ("--part", "2/2", "--key", str(tmp_path / "one.key"))
    assert prepared(table, tmp_path / "two", *more, findings=f"cardiomegaly,{other}") == 2
    assert "the findings files define other findings" in capsys.readouterr().err
    assert prepared(table, tmp_path / "two", *more) == 0
    assert open_shards(tmp_path / "two").fingerprint == open_shards(tmp_path / "one").fingerprint
    assert open_shards(tmp_path / "two").definitions == open_shards(tmp_path / "one").definitions


def test_an_undefined_label_is_refused_with_what_to_write(table, tmp_path, capsys):
    assert prepared(table, tmp_path / "shards", findings="cardiomegaly") == 2
    assert '    [low_ffr]\n    phrase = "low ffr"\n    words = ["low ffr"]' in capsys.readouterr().err


def test_a_damaged_definition(table, tmp_path):
    assert prepared(table, tmp_path / "shards") == 0
    path = tmp_path / "shards" / "prepare.json"
    written = json.loads(path.read_text())
    written["settings"]["definitions"][0]["patterns"] = ["("]
    path.write_text(json.dumps(written))
    with pytest.raises(ShardError, match=r"prepare\.json is damaged .*no regular expression"):
        open_shards(tmp_path / "shards")


@pytest.fixture(scope="module")
def run(tiny_run, table, tmp_path_factory):
    """A run, and its set, as if that had been prepared with the file."""
    from medclip_jax.reports.findings_file import read_findings

    folder = tmp_path_factory.mktemp("run")
    for name in ("workdir", "shards"):
        path = shutil.copytree(tiny_run / name, folder / name) / "prepare.json"
        written = json.loads(path.read_text())
        written["settings"]["definitions"] = read_findings(table.with_name("findings.toml")).to_json()
        written["findings"] = ["cardiomegaly", NAME, "coronary_calcification"]
        path.write_text(json.dumps(written))
    return folder


def test_model_and_exported_folder(run, tmp_path):
    model = medclip_jax.load(run / "workdir", batch_size=1, progress=False)
    volume = made_volume(np.random.default_rng(3))
    assert volume.shape == SHAPE
    names = ["Acute coronary syndrome", "low_ffr", "cardiomegaly"]
    found = model.zero_shot(volume, names)
    # Two prompts of presence: their vectors are averaged.
    own = model.definitions[NAME]
    positive = averaged(model.embed_texts(own.positive))
    negative = model.embed_texts(own.negative)[0]
    (expected,) = pair_scores(
        model.embed_volumes(volume), positive, negative, score="probability", scale=model.logit_scale
    )
    assert found["Acute coronary syndrome"] == expected
    assert np.linalg.norm(means(positive)) == pytest.approx(1, abs=1e-6)
    pairs = [(own.positive, own.negative), (list(own.positive), own.negative[0])]
    assert [model.zero_shot(volume, [pair])[own.positive[0]] for pair in pairs] == [expected] * 2
    with pytest.raises(UnknownFinding, match="nstemi"):
        model.zero_shot(volume, ["nstemi"])

    write_folder(model, tmp_path / "exported")
    again = medclip_jax.load(tmp_path / "exported", batch_size=1, progress=False)
    assert again.zero_shot(volume, names) == pytest.approx(found, abs=1e-6)
    assert again.definitions[NAME].positive == own.positive
    assert not again.definitions[NAME].is_read  # how reports state it is not passed on
    twin = load_torch(tmp_path / "exported")
    torch_found = twin.zero_shot(volume, [NAME, "cardiomegaly"])
    assert torch_found[NAME] == pytest.approx(expected, abs=1e-5)
    assert torch_found["cardiomegaly"] == pytest.approx(found["cardiomegaly"], abs=1e-5)


def test_load_with_a_file(tiny_run, table):
    file = table.with_name("findings.toml")
    model = medclip_jax.load(tiny_run / "workdir", findings=file, progress=False)
    assert 0 < model.zero_shot(made_volume(np.random.default_rng(3)), [NAME])[NAME] < 1


def test_commands(run, table, scan, tmp_path, capsys):
    file, workdir = table.with_name("findings.toml"), str(run / "workdir")
    assert main(["embed", workdir, str(scan), "--findings", f"{file},cardiomegaly"]) == 0
    printed = capsys.readouterr().out
    assert NAME in printed
    assert "low_ffr" in printed
    evaluate = ["evaluate", "--workdir", workdir, "--shards", str(run / "shards"), "--evaluators"]
    evaluate += ["zero_shot,retrieval", "--set", "zero_shot.draws=0"]
    assert main([*evaluate, "--json", str(tmp_path / "one.json")]) == 0
    own = (
        f'{NAME}: "There is an acute coronary syndrome." and 1 more / "There is no acute coronary syndrome."'
    )
    assert own in capsys.readouterr().out
    other = tmp_path / "other.toml"
    other.write_text(f"[{NAME}]\n")
    assert main([*evaluate, "--json", str(tmp_path / "two.json"), "--findings", str(other)]) == 0
    assert own not in capsys.readouterr().out
    one, two = (json.loads((tmp_path / name).read_text())["metrics"] for name in ("one.json", "two.json"))
    changed = {key for key in one if one[key] != two[key] and "auroc/" in key}
    assert changed == {f"zero_shot/auroc/{NAME}"}
