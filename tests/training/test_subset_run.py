"""Runs on a share of the patients without a fold: killed and resumed, and scored on the fold."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from killed_subset import run

import medclip_jax
from medclip_jax.cli.main import main
from medclip_jax.parameters import flatten
from medclip_jax.reports.definitions import Findings
from medclip_jax.reports.finding import Finding
from medclip_jax.shards.label_tables import LabelTable, write_label_table
from medclip_jax.shards.read import open_shards, open_split
from medclip_jax.shards.subset import Subset
from medclip_jax.training.checkpoints import latest_step, restore_weights
from tests.tiny_run import make_shards

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("subset")
    make_shards(folder / "shards")
    run(folder / "shards", folder / "straight")
    return folder


def numbers(workdir):
    clock = ("volumes_per_second", "seconds", "input_wait", "goodput")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not any(word in k for word in clock)} for line in lines]


def test_a_killed_run_on_some_rows_resumes_to_the_bit(straight):
    shards, killed = straight / "shards", straight / "killed"
    script = str(Path(__file__).with_name("killed_subset.py"))
    ended = subprocess.run([sys.executable, script, shards, killed], capture_output=True, check=False)
    assert ended.returncode == -9
    assert latest_step(killed) == 2
    run(shards, killed)
    assert numbers(killed) == numbers(straight / "straight")
    one, two = (flatten(restore_weights(w, ema=False)) for w in (killed, straight / "straight"))
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_another_fold_is_another_run(straight):
    config = json.loads((straight / "straight/config.json").read_text())
    assert config["data"]["subset"] == {"share": 0.7, "folds": 4, "fold": 1, "seed": 3, "by": "cardiomegaly"}
    subset = Subset.of(config["data"])
    info = open_shards(straight / "shards", subset=subset)
    held = open_split(info, "fold", fields=["id"])
    assert len(held) == 4
    assert 8 <= len(open_split(info, "train", fields=["id"])) <= 9


def test_evaluate_scores_the_fold_and_learns_from_the_rest(straight, tmp_path, capsys):
    words = ["evaluate", "--workdir", str(straight / "straight"), "--evaluators", "few_shot,spectrum"]
    assert main([*words, "--fold", "--json", str(tmp_path / "a.json")]) == 0
    assert "without fold 1 of 4 of 'train', seed 3, stratified by cardiomegaly" in capsys.readouterr().out
    written = json.loads((tmp_path / "a.json").read_text())
    assert (written["split"], written["volumes"], written["subset"]["fold"]) == ("fold", 4, 1)
    assert "learned from" in written["conditions"]["few_shot"]["n"]
    assert main([*words, "--subset", "share=0.5", "--json", str(tmp_path / "b.json")]) == 0
    written = json.loads((tmp_path / "b.json").read_text())
    assert (written["split"], written["volumes"], written["subset"]["share"]) == ("test", 12, 0.5)
    assert main([*words, "--fold", "--split", "test"]) == 2
    assert main([*words, "--subset", "shares=1"]) == 2
    assert (
        "write NAME=VALUE,... with a NAME of split, share, folds, fold, seed, by" in capsys.readouterr().err
    )
    assert main([*words, "--subset", "none", "--fold"]) == 2
    assert "no split 'fold' without folds" in capsys.readouterr().err


def labeled(shards, folder):
    """A table of one finding of its own for every record."""
    table = LabelTable(
        "mine",
        "volume",
        findings=("gout",),
        groups=("site",),
        rows={
            one["id"]: ((1 if place % 2 else -1,), (), ("AB"[place % 2],))
            for split in ("train", "test")
            for place, one in enumerate(open_split(shards, split, fields=["id"]))
        },
        definitions=Findings([Finding("gout", "gout")]),
    )
    write_label_table(folder, table)


def test_labels_that_came_later(straight, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(straight / "shards", shards)
    labeled(shards, shards)
    words = ["evaluate", "--workdir", str(straight / "straight"), "--shards", str(shards)]
    words += ["--evaluators", "few_shot", "--set", "few_shot.findings=('gout',)", "--tables", "mine"]
    cache = ["--cache", str(tmp_path / "cache")]
    assert main([*words, *cache, "--json", str(tmp_path / "a.json")]) == 0
    written = json.loads((tmp_path / "a.json").read_text())
    assert "few_shot/1_shot/auroc/gout" in written["metrics"]
    # The features are of the volumes, whatever is said of them.
    labeled(shards, shards)
    (shards / "tables/mine.json").write_text((shards / "tables/mine.json").read_text().replace('"A"', '"C"'))
    files = sorted((tmp_path / "cache").iterdir())
    assert main([*words, *cache]) == 0
    assert sorted((tmp_path / "cache").iterdir()) == files
    assert main([*words[:-1], "none"]) == 2


def test_a_run_on_labels_that_came_later_needs_its_workdir_alone(straight, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(straight / "shards", shards)
    labeled(shards, shards)
    run(shards, tmp_path / "run", tables=("mine",), steps=1)
    kept = json.loads((tmp_path / "run/tables/mine.json").read_text())
    assert (kept["findings"], kept["groups"], kept["rows"]) == (["gout"], ["site"], {})
    shutil.move(shards, tmp_path / "elsewhere")
    assert "gout" in medclip_jax.load(tmp_path / "run").spec.findings
    shutil.move(tmp_path / "elsewhere", shards)
    path = shards / "tables/mine.json"
    path.write_text(path.read_text().replace("[[1]", "[[0]"))
    with pytest.raises(ValueError, match="begun on other data"):
        run(shards, tmp_path / "run", tables=("mine",), steps=2)
