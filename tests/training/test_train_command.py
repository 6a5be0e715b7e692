import argparse
import subprocess
import sys

import pytest

from medclip_jax.cli import train as command
from medclip_jax.training import loop
from medclip_jax.training.nonfinite import NonFiniteError

FILE = """
from medclip_jax.training.config import base_config

def get_config():
    config = base_config()
    config.objective = {"name": "mae"}
    return config
"""


@pytest.fixture
def arguments(tmp_path):
    (tmp_path / "run.py").write_text(FILE)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser.add_subparsers(dest="command").add_parser("train"))

    def parse(*extra):
        files = ["--config", str(tmp_path / "run.py"), "--workdir", str(tmp_path / "run")]
        return parser.parse_args(["train", "--config.steps=3", *files, *extra])

    return parse


def test_overrides_reach_the_run_from_any_place(arguments, monkeypatch, capsys):
    seen = {}

    def train(config, workdir):
        seen.update(config=config, workdir=workdir)
        return {"loss": 0.25}

    monkeypatch.setattr(loop, "train", train)
    assert command.run(arguments("--config.optimizer.learning_rate=3e-4")) == 0
    assert (seen["config"].steps, seen["config"].optimizer.learning_rate) == (3, 3e-4)
    assert seen["workdir"].endswith("run")
    assert "0.25" in capsys.readouterr().out


def test_a_typo_ends_before_anything_starts(arguments):
    with pytest.raises(ValueError, match=r"Did you mean config\.optimizer\.learning_rate\?"):
        command.run(arguments("--config.optimizer.lerning_rate=3e-4"))
    with pytest.raises(SystemExit):
        arguments("--unknown=1")


def test_a_run_that_fails_returns_one_with_its_message(arguments, monkeypatch, capsys):
    def train(config, workdir):
        raise NonFiniteError("step 4 is not finite")

    monkeypatch.setattr(loop, "train", train)
    assert command.run(arguments()) == 1
    assert "step 4 is not finite" in capsys.readouterr().err


def test_sigterm_outside_of_training_ends_with_zero(tmp_path):
    """Struck just after training returned: nothing is left to save, and the exit is clean."""
    file = tmp_path / "config.py"
    file.write_text(FILE)
    program = (
        "import os, signal, sys, time\n"
        "from medclip_jax.cli.main import main\n"
        "from medclip_jax.training import loop\n"
        "loop.train = lambda config, workdir: {}\n"
        f"main(['train', '--config', {str(file)!r}, '--workdir', {str(tmp_path / 'run')!r}])\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "time.sleep(60)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], timeout=120)
    assert ended.returncode == 0
