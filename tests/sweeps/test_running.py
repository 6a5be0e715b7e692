import fcntl
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from medclip_jax.sweeps import local
from medclip_jax.sweeps.progress import log_tail, progress
from medclip_jax.sweeps.units import expand, write

FILE = """
from medclip_jax.training.config import base_config

def get_config():
    config = base_config()
    config.objective = {"name": "mae"}
    config.data.shards = "shards"
    config.steps = 3
    return config
"""
FAKE = (sys.executable, str(Path(__file__).with_name("fake_medclip.py")))


@pytest.fixture
def units(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "MEDCLIP", FAKE)
    monkeypatch.setattr(local, "POLL_SECONDS", 0.01)
    (tmp_path / "run.py").write_text(FILE)

    def make(*seeds):
        found = expand(tmp_path / "run.py", tmp_path / "out", [], seeds=seeds)
        write(found, tmp_path / "out")
        return found

    return make


def starts(unit):
    return int((unit.folder / "started").read_text())


def test_failures_are_told_with_their_log_and_tried_again_while_finished_units_rest(units):
    found, said = units(0, 13, 1), []
    left = local.run_local(found, jobs=2, say=said.append)
    assert [unit.name for unit in left] == ["seed=13"]
    assert any("seed=13 failed with exit code 1" in line for line in said)
    told = local.failures(left)
    assert "something is wrong with 13" in told
    assert str(found[1].folder / "log.txt") in told
    assert "seed=0" not in told
    said.clear()
    assert local.run_local(found, say=said.append) == []
    assert [starts(unit) for unit in found] == [1, 2, 1]
    assert "2 of 3 units are finished" in said[0]
    assert any("tried again" in line for line in said)
    assert local.failures(found) == ""


def test_the_log_keeps_all_starts_and_shows_bars_once(units):
    found = units(13)
    local.run_local(found, say=lambda _: None)
    assert log_tail(found[0].folder, 2) == "90%\nmedclip train: something is wrong with 13"
    local.run_local(found, say=lambda _: None)
    assert (found[0].folder / "log.txt").read_text().count("devices") == 2


def test_a_unit_in_use_is_left_to_its_process(units):
    found, said = units(0, 1), []
    with (found[0].folder / "log.txt").open("ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        left = local.run_local(found, say=said.append)
    assert [unit.name for unit in left] == ["seed=0"]
    assert any("seed=0 is being trained by another process" in line for line in said)


def test_jobs_share_the_gpus(units, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7,8")
    found = units(0, 1)
    local.run_local(found, jobs=2, say=lambda _: None)
    seen = {(unit.folder / "log.txt").read_text().splitlines()[0] for unit in found}
    assert seen == {"devices 4,5", "devices 6,7"}
    with pytest.raises(ValueError, match="--jobs"):
        local.run_local(found, jobs=0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_asked_to_stop_it_asks_the_runs_and_waits(units, number):
    found, said = units(99, 0), []

    def ask():
        for _ in range(1200):
            if (found[0].folder / "ready").exists():
                break
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    threading.Thread(target=ask).start()
    with pytest.raises(KeyboardInterrupt):
        local.run_local(found, say=said.append)
    assert signal.getsignal(number) is before
    assert progress(found[0].folder, found[0].config)[:2] == ("stopped", 1)
    assert (found[0].folder / "exit_code").read_text() == "0\n"
    assert not (found[1].folder / "started").exists()
    assert "stopping: 1 under way" in said[0]


class TestProgress:
    def folder(self, tmp_path, records, checkpoint=None, code=None):
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records) + '{"step": 9')
        if checkpoint:
            os.makedirs(tmp_path / "checkpoints" / str(checkpoint))
        if code is not None:
            (tmp_path / "exit_code").write_text(f"{code}\n")
        return tmp_path

    def config(self, units, **evaluators):
        config = units(0)[0].config
        config.evaluation.evaluators = evaluators
        return config

    def test_not_finished_before_the_last_checkpoint(self, units, tmp_path):
        (tmp_path / "a").mkdir()
        folder = self.folder(tmp_path / "a", [{"step": 3}], 2)
        assert progress(folder, self.config(units)) == ("stopped", 3, 3)
        (folder / "checkpoints" / "3").mkdir()
        assert progress(folder, self.config(units)).state == "finished"

    def test_not_finished_before_the_last_evaluation(self, units, tmp_path):
        (tmp_path / "a").mkdir()
        folder = self.folder(tmp_path / "a", [{"step": 2, "evaluation_seconds": 1}, {"step": 3}], 3, code=1)
        assert progress(folder, self.config(units, zero_shot={})).state == "failed"
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('\n{"step": 3, "evaluation_seconds": 1}\n')
        assert progress(folder, self.config(units, zero_shot={})).state == "finished"

    def test_waiting_and_longer(self, units, tmp_path):
        config = self.config(units)
        (tmp_path / "a").mkdir()
        assert progress(tmp_path / "a", config) == ("waiting", 0, 3)
        folder = self.folder(tmp_path / "a", [{"step": 3}], 3)
        config.steps = 6
        assert progress(folder, config) == ("stopped", 3, 6)
        config.steps, config.epochs = 0, 1.0
        assert progress(folder, config) == ("stopped", 3, 0)  # these shards are nowhere
        beat = {"state": "finished", "time": 1.0, "step_time": 1.0, "step": 3, "steps": 3, "counters": {}}
        (folder / "heartbeat.json").write_text(json.dumps(beat))
        assert progress(folder, config) == ("finished", 3, 3)
