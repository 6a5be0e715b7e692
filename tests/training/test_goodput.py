import json

import pytest

from medclip_jax.training import goodput as module
from medclip_jax.training.goodput import BUCKETS, HEARTBEAT, Clock, goodput, read_heartbeat


class Time:
    """A clock that continues only when it is told to."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def time(self):
        return 1_000_000.0 + self.now

    def pass_(self, seconds):
        self.now += seconds


@pytest.fixture
def time(monkeypatch):
    made = Time()
    monkeypatch.setattr(module, "time", made)
    return made


def work(clock, time, steps, begin=0):
    """A start of 10 s, a compilation of 20, then steps of 1 s that wait 0.25 for their batch."""
    time.pass_(10)
    with clock.spend("compile"):
        time.pass_(20)
    clock.started()
    for step in range(begin + 1, begin + steps + 1):
        with clock.spend("input"):
            time.pass_(0.25)
        time.pass_(0.75)
        clock.at(step)


def test_each_moment_counts_once(time):
    clock = Clock()
    work(clock, time, 4)
    with clock.spend("evaluation"):
        time.pass_(3)
        with clock.spend("compile"):
            time.pass_(2)
        time.pass_(1)
    with clock.spend("checkpoint"):
        time.pass_(0.5)
    counters = clock.counters()
    expected = {
        "start": 10,
        "compile": 22,
        "input": 1,
        "step": 3,
        "evaluation": 4,
        "checkpoint": 0.5,
        "lost": 0,
    }
    assert {bucket: counters[bucket] for bucket in BUCKETS} == pytest.approx(expected)
    assert counters["all"] == pytest.approx(time.now)
    assert counters["starts"] == 1
    assert clock.goodput() == pytest.approx(3 / 40.5)
    with pytest.raises(KeyError, match="none of"), clock.spend("tea"):
        pass


def test_rates_leave_out_what_is_no_training(time):
    clock = Clock()
    work(clock, time, 4)
    with clock.spend("evaluation"):
        time.pass_(100)
    assert clock.rates(4, batch_size=8) == pytest.approx(
        {"volumes_per_second": 8.0, "seconds_per_step": 1.0, "input_wait": 0.25}
    )
    assert clock.rates(0, batch_size=8) == {}


def test_a_kill_loses_what_came_after_the_checkpoint_and_nothing_else(time, tmp_path):
    clock = Clock(workdir=tmp_path, steps=20)
    clock.resume({})
    work(clock, time, 6)
    saved = clock.counters()  # with checkpoint 6
    for step in range(7, 10):
        time.pass_(1)
        clock.at(step)
    clock._beat("running")
    time.pass_(2)  # after the last heartbeat: known to nobody

    again = Clock(workdir=tmp_path, steps=20)
    again.resume(saved, step=6)
    work(again, time, 4, begin=6)
    counters = again.counters()
    assert counters["lost"] == pytest.approx(3)
    assert counters["step"] == pytest.approx(0.75 * 10)
    assert counters["input"] == pytest.approx(0.25 * 10)
    assert counters["start"] == pytest.approx(20)
    assert counters["starts"] == 2

    # Killed before it saved again: all of its steps are lost, too.
    again._beat("running")
    third = Clock(workdir=tmp_path, steps=20)
    third.resume(saved, step=6)
    assert third.counters()["lost"] == pytest.approx(3 + 4)
    assert third.counters()["step"] == pytest.approx(0.75 * 6)
    assert third.counters()["starts"] == 3


def test_without_a_checkpoint_all_training_is_lost(time, tmp_path):
    clock = Clock(workdir=tmp_path, steps=20)
    work(clock, time, 5)
    clock._beat("running")
    again = Clock(workdir=tmp_path, steps=20)
    again.resume({})
    assert again.counters()["lost"] == pytest.approx(5)
    assert again.counters()["step"] == 0


def test_a_clean_stop_loses_nothing(time, tmp_path):
    with Clock(workdir=tmp_path, steps=20) as clock:
        clock.resume({})
        work(clock, time, 5)
        with clock.spend("checkpoint"):
            saved = clock.counters()
            time.pass_(1)
    assert read_heartbeat(tmp_path)["state"] == "stopped"
    again = Clock(workdir=tmp_path, steps=20)
    again.resume(saved, step=5)
    assert again.counters()["lost"] == 0
    assert again.counters()["checkpoint"] == pytest.approx(1)


def test_the_heartbeat_tells_how_it_ended(time, tmp_path):
    with Clock(workdir=tmp_path, steps=2) as clock:
        assert read_heartbeat(tmp_path)["state"] == "running"
        work(clock, time, 2)
    beat = read_heartbeat(tmp_path)
    assert (beat["state"], beat["step"], beat["steps"]) == ("finished", 2, 2)
    assert goodput(beat["counters"]) == pytest.approx(1.5 / 32)
    # Refused, for example for its config: the run is as finished as before.
    with pytest.raises(ValueError, match="boom"), Clock(workdir=tmp_path, steps=9):
        raise ValueError("boom")
    assert read_heartbeat(tmp_path) == beat
    clock = Clock(workdir=tmp_path, steps=2)
    clock.resume({}, step=1)
    with pytest.raises(ValueError, match="boom"), clock:
        raise ValueError("boom")
    assert read_heartbeat(tmp_path)["state"] == "stopped"
    with Clock(workdir=tmp_path, steps=2) as clock:
        work(clock, time, 2)
        clock.interrupted()
    assert read_heartbeat(tmp_path)["state"] == "stopped"
    assert not list(tmp_path.glob("*.partial"))


def test_a_heartbeat_that_cannot_be_read_or_written_stops_nothing(time, tmp_path, caplog):
    (tmp_path / HEARTBEAT).write_text('{"state": "run')
    assert read_heartbeat(tmp_path) is None
    for junk in ("[]", "3", "null", "{}", "[" * 9999, '{"state": "running", "time": 1, "counters": []}'):
        (tmp_path / HEARTBEAT).write_text(junk)
        assert read_heartbeat(tmp_path) is None
    assert Clock(workdir=tmp_path).counters()["starts"] == 1
    (tmp_path / HEARTBEAT).unlink()
    (tmp_path / HEARTBEAT).mkdir()
    with Clock(workdir=tmp_path):
        pass
    assert "no heartbeat" in caplog.text


def test_counters_of_an_earlier_version(time):
    saved = {"startup": 10.0, "input": 2.0, "save": 3.0, "evaluation": 5.0, "all": 100.0, "starts": 2.0}
    counters = Clock(json.loads(json.dumps(saved))).counters()
    assert (counters["start"], counters["checkpoint"], counters["step"]) == (10.0, 3.0, 80.0)
    assert counters["starts"] == 3
