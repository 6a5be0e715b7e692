"""The demo's stages follow each other, and none begins on what a stopped one left."""

import pytest

from medclip_jax.cli import demo_chest, demo_heart, demo_stages
from medclip_jax.cli.main import main


@pytest.mark.parametrize("finished", [[False], [True, False]])
def test_a_stage_that_was_told_to_stop_ends_the_demo(finished, tmp_path, monkeypatch):
    trained = []

    def train(stage, *_):
        trained.append(stage)
        return finished[len(trained) - 1]

    def unreached(*_):
        raise AssertionError("evaluated what was not trained to its end")

    monkeypatch.setattr(demo_chest, "make_shards", lambda *_: tmp_path / "shards")
    monkeypatch.setattr(demo_chest, "_train", train)
    monkeypatch.setattr(demo_chest, "_evaluate", unreached)
    assert main(["demo", "--out", str(tmp_path / "out")]) == 0
    assert trained == ["mae", "contrastive"][: len(finished)]


@pytest.mark.parametrize("state", ["stopped", "finished"])
def test_whether_a_stage_finished_stands_in_its_workdir(state, tmp_path, monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setattr("medclip_jax.training.loop.train", lambda *_: {})
    monkeypatch.setattr("medclip_jax.training.status.read_status", lambda _: SimpleNamespace(state=state))
    overrides = [f"--config.data.shards={tmp_path}"]
    assert demo_stages.train_config("demo/mae.py", tmp_path, overrides) == (state == "finished")


def test_the_heart_demo_stops_where_a_stage_was_told_to_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_heart, "make_shards", lambda *_: tmp_path / "shards")
    monkeypatch.setattr(demo_heart, "train_config", lambda *_: False)
    out = tmp_path / "out"
    assert main(["demo", "--system", "cmr_clip", "--out", str(out)]) == 0
    assert [path.name for path in out.iterdir()] == ["seconds.json"]


def test_a_chest_scan_does_not_go_with_hearts(capsys):
    assert main(["demo", "--system", "cmr_clip", "--scan", "chest.nii.gz"]) != 0
    assert "--scan shows a chest CT" in capsys.readouterr().err
