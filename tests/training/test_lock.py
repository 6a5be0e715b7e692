"""One run at a time in a workdir; a dead one is followed at once where that can be known."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from medclip_jax.training import lock
from medclip_jax.training.lock import WorkdirInUse, WorkdirLock


@pytest.fixture
def quick(monkeypatch):
    """Signs of life follow each other a hundred times faster."""
    for name in ("BEAT_SECONDS", "STALE_SECONDS", "WATCH_SECONDS"):
        monkeypatch.setattr(lock, name, getattr(lock, name) / 100)


def leave(folder, number=1, changed=None, **content):
    """A lock file as another process would have written it."""
    file = folder / f"lock-{number}.json"
    file.write_text(json.dumps({**lock.describe_process(), **content}))
    if changed is not None:
        os.utime(file, (changed, changed))
    return file


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_second_is_refused_and_told_who_is_the_first(tmp_path):
    with WorkdirLock(tmp_path):
        before = names(tmp_path)
        with pytest.raises(
            WorkdirInUse, match=rf"process {os.getpid()}, whose last sign of life came 0 s ago"
        ):
            WorkdirLock(tmp_path).__enter__()
        assert names(tmp_path) == before == ["lock-1.json"]
    with WorkdirLock(tmp_path):
        assert names(tmp_path) == ["lock-2.json"]


def test_processes_of_one_run_share_it(tmp_path):
    with WorkdirLock(tmp_path), WorkdirLock(tmp_path, holding=False) as other:
        other.check()
    assert lock.is_locked(tmp_path)


def test_of_many_that_start_at_once_one_wins(tmp_path):
    leave(tmp_path, pid=ended())  # to be taken over by all of them
    won, refused, ready = [], [], threading.Barrier(16)

    def start():
        own = WorkdirLock(tmp_path)
        ready.wait()
        try:
            own.__enter__()
            won.append(own)
        except WorkdirInUse:
            refused.append(own)

    threads = [threading.Thread(target=start) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, 15)
    won[0].__exit__(None, None, None)
    assert names(tmp_path) == ["lock-2.json"]


def ended():
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_killed_one_of_this_machine_is_followed_at_once(tmp_path):
    leave(tmp_path, pid=ended())
    with WorkdirLock(tmp_path) as own:
        own.check()
        assert names(tmp_path) == ["lock-2.json"]


def test_one_that_nobody_has_waited_for_is_dead_and_a_number_may_be_given_again(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    process.stdout.read()
    while lock._started(process.pid) is not None:  # until it is a zombie
        time.sleep(0.01)
    leave(tmp_path, pid=process.pid)
    with WorkdirLock(tmp_path):
        pass
    process.wait()
    leave(tmp_path, number=9, process="1")  # this process's number, and another beginning
    with WorkdirLock(tmp_path):
        assert names(tmp_path) == ["lock-10.json"]


def test_one_of_another_machine_that_shows_life_keeps_it(tmp_path, quick, caplog):
    file = leave(tmp_path, host="node7", machine="other", pid=123)
    threading.Timer(0.2, os.utime, (file,)).start()
    with pytest.raises(WorkdirInUse, match="a run on node7, process 123, whose last sign of life"):
        WorkdirLock(tmp_path).__enter__()
    assert "waiting up to 1 s" in caplog.text
    assert names(tmp_path) == ["lock-1.json"]


@pytest.mark.parametrize("old", [False, True])
def test_one_of_another_machine_that_is_silent_is_followed(tmp_path, quick, old):
    # Also one whose clock goes ahead, and a file that a kill cut off.
    leave(tmp_path, host="node7", machine="other", changed=time.time() + (-1000 if old else 1000))
    with WorkdirLock(tmp_path):
        assert names(tmp_path) == ["lock-2.json"]
    (tmp_path / "lock-3.json").write_text('{"ho')
    with WorkdirLock(tmp_path):
        assert names(tmp_path) == ["lock-4.json"]


def test_a_job_that_slurm_starts_again_follows_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    leave(tmp_path, host="node7", machine="other")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with WorkdirLock(tmp_path):
        assert names(tmp_path) == ["lock-2.json"]


def test_one_that_was_taken_over_notices(tmp_path, quick):
    with WorkdirLock(tmp_path) as own:
        (tmp_path / "lock-1.json").rename(tmp_path / "lock-2.json")
        own._thread.join()
        with pytest.raises(WorkdirInUse, match="another run took over"):
            own.check()
    assert (tmp_path / "lock-2.json").stat().st_mtime > 0  # what is another's stays


def test_a_late_decision_does_not_win_against_those_who_came_since(tmp_path):
    own = WorkdirLock(tmp_path)
    leave(tmp_path)
    holder = lock._find(tmp_path)
    leave(tmp_path, number=3).rename(tmp_path / "lock-3.json")
    (tmp_path / "lock-1.json").unlink()
    (tmp_path / "candidate").write_text("{}")
    assert not own._create(holder, tmp_path / "candidate", "{}")
    assert names(tmp_path) == ["candidate", "lock-3.json"]


def test_without_links_one_wins_too(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    with WorkdirLock(tmp_path), pytest.raises(WorkdirInUse):
        WorkdirLock(tmp_path).__enter__()
