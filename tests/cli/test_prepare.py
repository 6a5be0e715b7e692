"""The commands as a user runs them."""

import csv
import json
import re
import shutil
import subprocess
import sys

import nibabel
import numpy as np
import pytest

from medclip_jax.cli.main import COMMANDS, main
from medclip_jax.shards.read import open_shards, open_split

SMALL = [
    "--shape",
    "8",
    "8",
    "8",
    "--spacing",
    "12",
    "12",
    "12",
    "--workers",
    "1",
    "--vocabulary-size",
    "200",
]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    root = tmp_path_factory.mktemp("scans")
    random = np.random.default_rng(0)
    with open(root / "studies.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["volume", "patient", "report", "organs", "organ_classes"])
        for index in range(6):
            voxels = np.full((20, 20, 16), -1000.0)
            voxels[4:16, 4:16] = 40
            voxels += random.normal(0, 10, voxels.shape)
            mask = np.zeros(voxels.shape, np.uint8)
            mask[6:12, 6:12, 4:10] = 1
            affine = np.diag([5.0, 5.0, 6.0, 1.0])
            nibabel.save(nibabel.Nifti1Image(voxels.astype(np.int16), affine), root / f"{index}.nii.gz")
            nibabel.save(nibabel.Nifti1Image(mask, affine), root / f"mask{index}.nii.gz")
            report = f"Case {index}. There is cardiomegaly. No pericardial effusion."
            writer.writerow([f"{index}.nii.gz", f"p{index}", report, f"mask{index}.nii.gz", '{"1": "heart"}'])
    return root / "studies.csv"


def test_prepare_then_inspect(table, tmp_path, capsys):
    out = tmp_path / "shards"
    arguments = ["prepare", "--table", str(table), "--out", str(out), *SMALL, "--organ-cell", "4"]
    assert main(arguments) == 0
    printed = "".join(capsys.readouterr())
    assert "6 studies: " in printed
    assert "0 rejected-with-reason" in printed
    assert f"{tmp_path}/shards.key" in printed
    assert (tmp_path / "shards.key").stat().st_mode & 0o777 == 0o600
    info = open_shards(out)
    assert info.organs == ("heart",)
    assert info.tokenizer == out / "tokenizer"
    assert open_split(out, "train")[0]["volume"].shape == (8, 8, 8)

    assert main(arguments) == 0
    assert "already prepared" in "".join(capsys.readouterr())

    sheet = tmp_path / "sheet.html"
    assert main(["inspect", str(out), "--out", str(sheet), "--count", "4"]) == 0
    printed = capsys.readouterr().out
    assert "6 records verified" in printed
    assert "percentile" in printed
    page = sheet.read_text()
    assert page.count("class='study'") == 4
    assert page.count("data:image/png;base64,") == 12
    assert page.count("<path d='M") >= 4
    assert "There is cardiomegaly. No pericardial effusion." in page
    assert "Every record agrees with its checksum" in page
    assert "http" not in page.replace("http-equiv", "")

    assert main(["inspect", str(out), "--out", str(sheet), "--count", "4", "--patch", "4", "4", "8"]) == 0
    assert sheet.read_text().count("data:image/png;base64,") == 24
    printed = capsys.readouterr().out
    assert re.search(r"organ +shown +described +both +said to be normal\nheart +6 +6 +6 +0\n", printed)
    assert main(["inspect", str(out), "--out", str(sheet), "--patch", "6", "4", "8"]) == 2
    assert "organ cells of 4 voxels do not divide the patch (6, 4, 8)" in capsys.readouterr().err


def test_region_sentences(table, tmp_path, capsys):
    (tmp_path / "said.csv").write_text(
        "VOLUMENAME,anatomy,Sentence\n"
        "0.nii.gz,heart/heart,It is tiny.\n0.nii.gz,heart/heart,It is tiny.\n9.nii.gz,heart,Nobody's.\n"
    )
    arguments = ["prepare", "--table", str(table), "--sentences", str(tmp_path / "said.csv"), *SMALL]
    assert main([*arguments, "--out", str(tmp_path / "a"), "--organ-cell", "4"]) == 0
    printed = capsys.readouterr().err
    assert "region sentences for 1 of 6 volumes; 1 rows of 1 volumes that are not among" in printed
    texts = []
    info = open_shards(tmp_path / "a")
    for split in info.splits:
        source = open_split(info, split)
        texts += [source[index]["organ_sentences"]["heart"]["text"] for index in range(len(source))]
    report = "There is cardiomegaly. No pericardial effusion."
    assert sorted(texts) == ["It is tiny.", *[report] * 5]
    assert main([*arguments, "--out", str(tmp_path / "b")]) == 0
    assert "without --organ-cell no organ maps are prepared" in capsys.readouterr().err
    assert main([*arguments[:4], str(table), *SMALL, "--out", str(tmp_path / "c")]) == 2
    assert "lacks the column volumename" in capsys.readouterr().err


def test_inspect_names_what_is_damaged(table, tmp_path, capsys):
    out = tmp_path / "shards"
    assert main(["prepare", "--table", str(table), "--out", str(out), *SMALL]) == 0
    first, *_, last = sorted(out.glob("*.array_record-*"))
    first.write_bytes(first.read_bytes()[:-100])
    manifest = out / "manifest.jsonl"
    lines = manifest.read_text().splitlines()
    changed = [
        line.replace('"checksum": "', '"checksum": "0') if last.name in line else line for line in lines
    ]
    manifest.write_text("\n".join(changed) + "\n")
    capsys.readouterr()
    assert main(["inspect", str(out)]) == 1
    printed = capsys.readouterr().out
    assert f"DAMAGED: {first.name} has" in printed
    assert f"DAMAGED: {last.name}, record 0: its checksum" in printed
    assert "problems" in (tmp_path / "shards.html").read_text()


def test_files_beside_the_shards_are_looked_at_too(table, tmp_path, capsys):
    command = ["prepare", "--table", str(table), *SMALL, "--out"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    for name, content in (
        ("dataset_info.json", "{}"),
        ("features.json", "[" * 5000),
        ("tokenizer/tokenizer.json", "{}"),
        ("prepare.json", "[" * 5000),
        ("manifest.jsonl", '{"class": ' * 5000),
    ):
        out = tmp_path / name.replace("/", "-")
        shutil.copytree(tmp_path / "whole", out)
        shutil.copy(tmp_path / "whole.key", f"{out}.key")
        (out / name).write_text(content)
        capsys.readouterr()
        early = name in ("prepare.json", "manifest.jsonl")  # without them there is nothing to look at
        assert main(["inspect", str(out), "--count", "1"]) == (2 if early else 1)
        said = capsys.readouterr()
        assert name.split("/")[0] in (said.err if early else said.out.split("DAMAGED: ")[1])
        assert main([*command, str(out)]) == 2
        assert name.split("/")[0] in capsys.readouterr().err


def test_inspect_tells_of_studies_that_several_patients_share(table, tmp_path, capsys):
    """Sets of an early version."""
    out = tmp_path / "shards"
    assert main(["prepare", "--table", str(table), "--out", str(out), *SMALL, "--tokenizer", "none"]) == 0
    manifest = out / "manifest.jsonl"
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert main(["inspect", str(out), "--count", "1"]) == 0
    assert "belong to several patients" not in capsys.readouterr().out
    lines[1]["study"] = lines[0]["study"]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["inspect", str(out), "--count", "1"]) == 0
    assert "1 studies belong to several patients" in capsys.readouterr().out


def test_limit_crop_and_findings(table, tmp_path):
    out = tmp_path / "shards"
    arguments = ["--limit", "3", "--crop", "heart", "--findings", "cardiomegaly", "--tokenizer", "none"]
    assert main(["prepare", "--table", str(table), "--out", str(out), *SMALL, *arguments]) == 0
    info = open_shards(out)
    assert sum(info.splits.values()) == 3
    assert info.findings == ("cardiomegaly",)
    assert info.organs == ()
    assert info.tokenizer is None


def test_a_tokenizer_folder_is_copied(table, tmp_path):
    assert main(["prepare", "--table", str(table), "--out", str(tmp_path / "one"), *SMALL]) == 0
    (tmp_path / "one" / "tokenizer" / "patients.csv").write_text("MRN4711")
    arguments = ["--tokenizer", str(tmp_path / "one" / "tokenizer")]
    assert main(["prepare", "--table", str(table), "--out", str(tmp_path / "two"), *SMALL, *arguments]) == 0
    assert not (tmp_path / "two" / "tokenizer" / "patients.csv").exists()
    ours, theirs = (
        (tmp_path / name / "tokenizer" / "tokenizer.json").read_bytes() for name in ("one", "two")
    )
    assert ours == theirs


def test_phantoms(tmp_path):
    from medclip_jax.corpora.phantom import FINDINGS

    out = tmp_path / "shards"
    arguments = ["prepare", "--corpus", "phantom", "--count", "2", "--out", str(out), *SMALL]
    for part in ("1/2", "2/2"):  # the second finds the phantoms of the first
        assert main([*arguments, "--part", part]) == 0
    info = open_shards(out)
    assert sum(info.splits.values()) == 2
    assert info.findings == FINDINGS
    assert len(info.findings) == 11
    assert {"agatston_score", "cardiothoracic_ratio", "lung_nodule_mm"} <= set(info.measurements)
    for split in info.splits:
        for sample in open_split(out, split, fields=["labels", "measurements"]):
            assert set(sample["labels"].tolist()) <= {-1, 0, 1}
            assert sample["labels"].any()
            assert np.isfinite(sample["measurements"][info.measurements.index("cardiothoracic_ratio")])
    assert (tmp_path / "shards.phantoms" / "studies.csv").exists()
    assert not (tmp_path / "shards.key").exists()


def test_beating_hearts(tmp_path):
    from medclip_jax.corpora.cine import DIAGNOSES
    from medclip_jax.corpora.cine import FINDINGS as SEEN

    out = tmp_path / "shards"
    arguments = ["prepare", "--corpus", "cine", "--count", "2", "--workers", "1", "--tokenizer", "none"]
    grid = ["--frame-shape", "32", "32", "--frame-spacing", "6", "6"]
    assert main([*arguments, "--out", str(out), *grid]) == 0
    info = open_shards(out)
    assert set(info.findings) == {*SEEN, *DIAGNOSES}
    assert {"lv_ejection_fraction", "scar_percent"} <= set(info.measurements)
    for split in info.splits:
        for sample in open_split(out, split):
            assert sample["cine_sa"].shape == (3 * 16, 32, 32)
            assert sample["cine_sa_frames"].tolist() == [3, 16]
            assert sample["lge_sa_frames"].tolist() == [3, 1]
            assert sample["impression"]
            assert set(sample["labels"].tolist()) <= {-1, 1}
    assert not (tmp_path / "shards.key").exists()


def test_generated_studies_come_from_no_table(tmp_path, capsys):
    arguments = ["prepare", "--corpus", "cine", "--table", "t.csv", "--out", str(tmp_path / "shards")]
    assert main(arguments) == 2
    assert "makes its own studies: leave --table out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "--out", "x"], "--corpus folder needs --table"),
        (["prepare", "--out", "x", "--table", "absent.csv"], "no table 'absent.csv'"),
        (["prepare", "--out", "x", "--table", "{table}", "--organ-cell", "7", *SMALL], "do not divide"),
        (["prepare", "--out", "x", "--table", "{table}", "--key", "{table}", *SMALL], "not a key file"),
        (["prepare", "--out", "x", "--table", "{table}", "--key", "x/key", *SMALL], "must lie outside"),
        (
            ["prepare", "--out", "x", "--table", "{table}", "--tokenizer", "none", "--limit", "0"],
            "no studies",
        ),
        (["prepare", "--out", "x", "--table", "{table}", "--tokenizer", "absent", *SMALL], "absent"),
        (["inspect", "absent"], "no folder 'absent'"),
        (["inspect", "."], "not a prepared folder"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(table, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main([argument.replace("{table}", str(table)) for argument in arguments]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("medclip ")]
    assert len(error) == 1
    assert message in error[0]


@pytest.mark.parametrize("arguments", [["--help"], ["prepare", "--help"], ["inspect", "--help"]])
def test_help_teaches(capsys, arguments):
    with pytest.raises(SystemExit, match="0"):
        main(arguments)
    text = capsys.readouterr().out
    assert "example" in text
    assert "medclip inspect shards" in text
    assert len(arguments) == 2 or all(f"  {name} " in text for name in COMMANDS)


def test_a_set_in_a_store(table, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDCLIP_SHARDS_CACHE", str(tmp_path / "cache"))
    url = f"file://{tmp_path}/bucket/set"
    arguments = ["prepare", "--table", str(table), "--out", url, *SMALL]
    assert main(arguments) == 0
    assert "is complete" in capsys.readouterr().err
    # What is private stays here, beside the folder that the set was made in.
    assert (tmp_path / "set.staging.key").exists()
    assert not [path for path in (tmp_path / "bucket").rglob("*") if "key" in path.name]
    assert main(["inspect", url]) == 0
    assert "6 records verified" in capsys.readouterr().out
    assert (tmp_path / "set.html").exists()
    assert main([*arguments, "--part", "1/2"]) == 2
    assert "--staging" in capsys.readouterr().err
    assert main([*arguments, "--upload", url]) == 2
    assert main(["prepare", "--merge", "set.staging", "--upload", f"file://{tmp_path}/second/set"]) == 0
    assert open_shards(f"file://{tmp_path}/second/set").fingerprint == open_shards(url).fingerprint


def test_help_imports_nothing_heavy():
    code = (
        "import sys, medclip_jax.cli.main as m\ntry: m.main(['prepare', '-h'])\nfinally: print(*sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 0
    assert not {"jax", "numpy", "tensorflow_datasets", "nibabel"} & set(out.stdout.splitlines()[-1].split())
