"""What all commands share: the version, and an output that nobody reads to its end."""

import math
import os
import sys

import pytest

from medclip_jax.cli.main import main
from medclip_jax.cli.metric_lines import metric_lines


def test_the_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert not ended.value.code
    assert capsys.readouterr().out.startswith("medclip 0.")


@pytest.mark.parametrize("words", [["status"], ["check", "--help"], ["--help"]])
def test_a_reader_that_has_enough_ends_the_command_quietly(monkeypatch, capsys, tiny_run, words):
    workdir = [str(tiny_run / "workdir")] if words == ["status"] else []
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stream)  # as `| head` leaves it
        assert main([*words, *workdir]) == 141
    assert capsys.readouterr().err == ""


def test_undefined_metrics_are_counted_and_not_listed():
    metrics = {"loss": 0.25, "auroc/a": math.nan, "auroc/b": math.nan, "auroc/c": math.nan}
    lines = metric_lines(metrics)
    assert lines[0].split() == ["loss", "0.25"]
    assert lines[1].startswith("3 undefined, ")
    assert lines[1].endswith(": auroc/a, auroc/b, ...")
    assert metric_lines({}) == []


def test_a_pipe_to_somebody_else_is_an_error(monkeypatch, capsys):
    from medclip_jax.cli import status

    def run(args):
        raise BrokenPipeError("a worker is gone")

    monkeypatch.setattr(status, "run", run)
    assert main(["status", "nowhere"]) == 2
    assert "a worker is gone" in capsys.readouterr().err
