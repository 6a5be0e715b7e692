"""The demo's stages follow each other, and none begins on what a stopped one left."""

import pytest

from medclip_jax.cli import demo
from medclip_jax.cli.main import main


@pytest.mark.parametrize("finished", [[False], [True, False]])
def test_a_stage_that_was_told_to_stop_ends_the_demo(finished, tmp_path, monkeypatch):
    trained = []

    def train(stage, *_):
        trained.append(stage)
        return finished[len(trained) - 1]

    def unreached(*_):
        raise AssertionError("evaluated what was not trained to its end")

    monkeypatch.setattr(demo, "_make_shards", lambda *_: tmp_path / "shards")
    monkeypatch.setattr(demo, "_train", train)
    monkeypatch.setattr(demo, "_evaluate", unreached)
    assert main(["demo", "--out", str(tmp_path / "out")]) == 0
    assert trained == ["mae", "contrastive"][: len(finished)]


@pytest.mark.parametrize("state", ["stopped", "finished"])
def test_whether_a_stage_finished_stands_in_its_workdir(state, tmp_path, monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setattr("medclip_jax.training.loop.train", lambda *_: {})
    monkeypatch.setattr("medclip_jax.training.status.read_status", lambda _: SimpleNamespace(state=state))
    assert demo._train("mae", tmp_path, tmp_path / "shards", demo.SHORT) == (state == "finished")
