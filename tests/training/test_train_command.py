import argparse

import pytest

from medclip_jax.cli import train as command
from medclip_jax.training import loop
from medclip_jax.training.nonfinite import NonFiniteError

FILE = """
from medclip_jax.training.config import base_config

def get_config():
    return base_config()
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
