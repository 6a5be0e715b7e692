"""`medclip sweep` as a user runs it, with two by two real runs; and the launcher that needs no cluster."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from medclip_jax.cli.main import main
from tests.tiny_run import make_shards

FILE = """
from medclip_jax.objectives import clip
from medclip_jax.training.config import base_config

def get_config():
    config = base_config()
    config.objective = clip.default_config()
    config.objective.vision.update(patch=(4, 8, 8), width=24, depth=1, heads=2, dtype="float32")
    config.objective.vision.pooling = "mean"
    config.objective.text.update(width=24, depth=1, heads=2, max_positions=64, dtype="float32")
    config.objective.embedding_width = 16
    config.data.text_length = 24
    config.batch_size = 8
    config.steps = 2
    config.optimizer.warmup_steps = 1
    config.evaluation.split = "test"
    config.log.every_steps = 1
    config.log.tensorboard = False
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Shards and a config."""
    folder = tmp_path_factory.mktemp("sweep")
    make_shards(folder / "shards")
    (folder / "run.py").write_text(FILE)
    return folder


@pytest.fixture
def sweep(folder):
    def run(out, *arguments):
        shards = f"--config.data.shards={folder / 'shards'}"
        return main(["sweep", "--config", str(folder / "run.py"), "--workdir", str(out), shards, *arguments])

    return run


@pytest.mark.slow
def test_two_by_two_runs_and_their_results(sweep, tmp_path, capsys, monkeypatch):
    # The runs differ in numbers alone: what one has compiled serves the others.
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    out = tmp_path / "out"
    command = [
        "--set=evaluation.evaluators={'zero_shot': {'draws': 0}}",
        "--grid=optimizer.learning_rate=1e-3,1e-2",
        "--seeds=0,1",
        "--jobs=2",
    ]
    assert sweep(out, *command) == 0
    assert "4 of 4 units are finished" in capsys.readouterr().out
    assert sweep(out, *command) == 0
    assert main(["sweep", "--collect", str(out), "--metric", "zero_shot/auroc_mean"]) == 0
    printed = capsys.readouterr().out
    assert "over 2 seeds with optimizer.learning_rate=" in printed
    rows = (out / "results.csv").read_text().splitlines()
    assert rows[0] == "unit,optimizer.learning_rate,seed,state,step,zero_shot/auroc_mean"
    assert len(rows) == 5
    assert all(",finished,2," in row and 0 <= float(row.split(",")[-1]) <= 1 for row in rows[1:])
    assert (out / "results.svg").exists()
    assert main(["sweep", "--collect", str(out), "--metric", "zero_shot/auroc"]) == 2
    assert "Did you mean zero_shot/auroc_mean" in capsys.readouterr().err


def test_mistakes_end_before_anything_runs(sweep, tmp_path, capsys):
    assert sweep(tmp_path / "out", "--grid", "optimizer.lerning_rate=1,2") == 2
    assert "Did you mean config.optimizer.learning_rate?" in capsys.readouterr().err
    for grid, message in (
        ("objective.vision.patch=(4,8,8),(3,8,8)", r"patch=3x8x8: patch \(3, 8, 8\) does not divide"),
        ("data.text_length=24,65", r"text_length=65: 65 tokens, but .* 64 positions"),
        ("microbatches=2,3", r"microbatches=3: config.batch_size=8 is no multiple"),
        ("data.train_split=train,tran", r"no split 'tran'"),
        ("optimizer.warmup_steps=1,3", r"warmup_steps=3: .* is longer than the run"),
    ):
        assert sweep(tmp_path / "out", "--grid", grid, "--dry-run") == 2
        assert re.search(message, capsys.readouterr().err)
    assert sweep(tmp_path / "out", "--seeds", "a") == 2
    assert sweep(tmp_path / "out") == 2
    assert main(["sweep", "--grid", "seed=1"]) == 2
    assert main(["sweep", "--collect", str(tmp_path)]) == 2
    assert "--metric" in capsys.readouterr().err
    assert sweep(tmp_path / "out", "--grid", "seed=4,5", "--dry-run") == 0
    assert capsys.readouterr().out.split() == ["seed=4", "seed=5"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["slurm", "xpk"])
def test_emitted_scripts_name_the_units_that_are_left(sweep, tmp_path, capsys, where):
    out = tmp_path / "with space"
    # Finished long ago: not emitted.
    assert sweep(out, "--seeds=0,1,2", "--emit", where) == 0
    done = out / "seed=1"
    (done / "metrics.jsonl").write_text('{"step": 2}\n')
    (done / "checkpoints" / "2").mkdir(parents=True)
    assert sweep(out, "--seeds=0,1,2", "--emit", where) == 0
    script = out / f"sweep.{where}.sh"
    assert str(script) in capsys.readouterr().out
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    assert "seed=0" in text
    assert "seed=2" in text
    assert "seed=1" not in text


@pytest.mark.slow
def test_the_local_launcher_trains_with_two_real_processes(folder, tmp_path):
    launcher = Path(__file__).resolve().parents[2] / "launch" / "local.sh"
    command = [sys.executable, "-m", "medclip_jax.cli.main", "train", "--config", str(folder / "run.py")]
    command += ["--workdir", str(tmp_path / "run"), f"--config.data.shards={folder / 'shards'}"]
    cache = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    # On a machine that is very busy Gloo's 30 seconds to meet may pass: that is what restarts are for.
    environment = {**os.environ, **cache, "JAX_PLATFORMS": "cpu", "RESTARTS": "2"}
    done = subprocess.run(
        ["bash", str(launcher), "2", *command], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "process 0 of 2" in done.stderr
    assert "process 1 of 2" in done.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()
