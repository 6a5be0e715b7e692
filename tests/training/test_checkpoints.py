import errno
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medclip_jax.parameters import flatten
from medclip_jax.training import checkpoints as checkpoints_module
from medclip_jax.training import mesh as meshes
from medclip_jax.training.checkpoints import (
    CheckpointError,
    Checkpoints,
    latest_step,
    restore_from,
    restore_weights,
    saved_run,
)
from medclip_jax.training.config import base_config


def make_state(step, devices=1):
    config = base_config().mesh
    config.data = devices
    state = {
        "params": {
            "vision": {"kernel": jnp.arange(600.0).reshape(20, 30) + step},
            "text": {"bias": jnp.ones(3)},
        },
        "variables": {},
        "optimizer": ({"mu": jnp.full(4, float(step))}, ()),
        "ema": {"vision": {"kernel": jnp.full((20, 30), -1.0)}},
        "step": jnp.asarray(step, jnp.int32),
    }
    return meshes.put_state(state, meshes.make_mesh(config))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    with Checkpoints(workdir, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(make_state(step), {"config": {"a": 1}, "counters": {}})
    return workdir


@pytest.fixture
def copy(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def test_the_newest_comes_back_on_another_mesh(saved):
    target = make_state(0, devices=8)
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.steps() == [2, 3]
        state, run = checkpoints.restore(target)
    expected = make_state(3)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert state["params"]["vision"]["kernel"].sharding == target["params"]["vision"]["kernel"].sharding
    assert run["config"] == {"a": 1}
    assert saved_run(saved)["step"] == latest_step(saved) == 3


def test_parameters_alone_can_be_read(saved):
    whole = flatten(restore_weights(saved))
    assert set(whole) == {"vision/kernel", "text/bias"}
    assert whole["vision/kernel"][0, 0] == 3
    averaged = flatten(restore_weights(saved, include=(r"^vision/",), ema=True))
    assert set(averaged) == {"vision/kernel"}
    assert (averaged["vision/kernel"] == -1).all()
    assert flatten(restore_weights(saved, step=2))["vision/kernel"][0, 0] == 2
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 99 in .*: there are 2, 3"):
        restore_weights(saved, step=99)
    with pytest.raises(ValueError, match="'visoin' matches no parameter"):
        restore_weights(saved, include=("visoin",))


def test_no_checkpoint_says_so(tmp_path):
    assert latest_step(tmp_path) is None
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        restore_weights(tmp_path)


def damage(folder, how):
    """Harm the largest file of a checkpoint."""
    path = max((path for path in folder.rglob("d/*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["truncated", "flipped", "gone"])
def test_a_damaged_newest_falls_back_to_the_one_before_loudly(copy, caplog, how):
    damage(copy / "checkpoints" / "3", how)
    assert flatten(restore_weights(copy))["vision/kernel"][0, 0] == 2
    with caplog.at_level(logging.ERROR), Checkpoints(copy) as checkpoints:
        state, _ = checkpoints.restore(make_state(0))
        assert int(state["step"]) == 2
        assert "RESUMING FROM STEP 2 INSTEAD OF 3" in caplog.text
        # The damaged one is out of the way of step 3, when it comes again.
        checkpoints.save(make_state(3), {})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3]
    assert flatten(restore_weights(copy))["vision/kernel"][0, 0] == 3


def test_nothing_readable_is_an_error(copy):
    for step in ("2", "3"):
        damage(copy / "checkpoints" / step, "truncated")
    with (
        Checkpoints(copy) as checkpoints,
        pytest.raises(CheckpointError, match="copy one back from a backup"),
    ):
        checkpoints.restore(make_state(0))
    with pytest.raises(CheckpointError, match="copy one back from a backup"):
        restore_weights(copy)


def test_a_full_disk_says_so_and_leaves_the_last_good_one(copy, monkeypatch):
    with Checkpoints(copy) as checkpoints:

        def full(*_, **__):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(checkpoints._manager, "save", full)
        with pytest.raises(CheckpointError, match="no space left"):
            checkpoints.save(make_state(4), {})
    assert flatten(restore_weights(copy))["vision/kernel"][0, 0] == 3


def test_leftovers_of_a_kill_are_no_checkpoint(copy):
    (copy / "checkpoints" / "9.orbax-checkpoint-tmp").mkdir()
    assert latest_step(copy) == 3
    with Checkpoints(copy) as checkpoints:
        assert checkpoints.steps() == [2, 3]


def test_checksums_come_with_the_checkpoint_and_not_after_it(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(1), {})
        checkpoints._manager.wait_until_finished()  # a kill would now leave just this
        assert (tmp_path / "checkpoints" / "1" / "checksums.json").exists()


def test_a_newest_that_is_gone_is_told(copy, caplog):
    shutil.rmtree(copy / "checkpoints" / "3")
    with Checkpoints(copy) as checkpoints:
        state, _ = checkpoints.restore(make_state(0))
    assert int(state["step"]) == 2
    assert "CHECKPOINT 3, THE NEWEST THAT WAS WRITTEN, IS GONE" in caplog.text
    shutil.rmtree(copy / "checkpoints" / "2")
    # Not from scratch, without a word.
    with pytest.raises(CheckpointError, match=r"all checkpoints are gone .* where step 3 was saved"):
        latest_step(copy)


def test_another_run_is_read_and_left_as_it_is(copy, caplog):
    damage(copy / "checkpoints" / "3", "truncated")
    before = sorted(copy.rglob("*"))
    state, run = restore_from(copy, make_state(0))
    assert int(state["step"]) == run["step"] == 2
    assert "CHECKPOINT 3" in caplog.text
    assert int(restore_from(copy / "checkpoints" / "2", make_state(0))[0]["step"]) == 2
    assert sorted(copy.rglob("*")) == before
    with pytest.raises(CheckpointError, match="copy one back from a backup"):
        restore_from(copy / "checkpoints" / "3", make_state(0))
    for missing in (copy / "checkpoints" / "9", copy.parent / "nothing"):
        with pytest.raises(FileNotFoundError, match="no checkpoint in"):
            restore_from(missing, make_state(0))


def test_nothing_is_warned_of(saved, caplog):
    target = make_state(0, devices=8)
    caplog.clear()
    restore_weights(saved)
    restore_from(saved, target)
    with Checkpoints(saved) as checkpoints:
        checkpoints.restore(target)
    assert not caplog.text


def fail_before_commit(monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(checkpoints_module, "seal", fail)


def test_after_a_failed_first_save_the_run_begins_again(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fail_before_commit(patch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        with pytest.raises(CheckpointError, match="no space left"), Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(make_state(1), {})
    assert latest_step(tmp_path) is None
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(1), {})
    assert latest_step(tmp_path) == 1


def test_the_newest_is_known_at_once_and_not_before(copy, monkeypatch):
    newest = copy / "checkpoints" / "newest"
    with Checkpoints(copy) as checkpoints:
        checkpoints.save(make_state(4), {})
        checkpoints._manager.wait_until_finished()  # a kill would now leave just this
        assert newest.read_text() == "4"
        checkpoints.save(make_state(5), {})
    # As a kill between the two leaves it: told of, but not yet under its name.
    (copy / "checkpoints" / "5").rename(copy / "checkpoints" / "5.orbax-checkpoint-tmp")
    assert latest_step(copy) == 4
    with Checkpoints(copy):
        assert newest.read_text() == "4"
    assert latest_step(copy) == 4
    shutil.rmtree(copy / "checkpoints" / "4")
    with pytest.raises(CheckpointError, match="where step 4 was saved"):
        latest_step(copy)


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"run/metadata": 3}', "{"])
def test_without_its_checksums_a_checkpoint_is_damaged(copy, caplog, content):
    checksums = copy / "checkpoints" / "3" / "checksums.json"
    checksums.unlink()
    if content is not None:
        checksums.write_text(content)
    assert flatten(restore_weights(copy))["vision/kernel"][0, 0] == 2
    assert "checksums.json is" in caplog.text


def test_one_of_an_early_version_needs_none(copy, caplog):
    folder = copy / "checkpoints" / "3"
    (folder / "checksums.json").unlink()
    run = json.loads((folder / "run" / "metadata").read_text())
    assert run.pop("sealed")
    (folder / "run" / "metadata").write_text(json.dumps(run))
    assert flatten(restore_weights(copy))["vision/kernel"][0, 0] == 3
    assert "has no checksums: damage would not be seen" in caplog.text


def test_the_same_step_may_be_damaged_again_and_again(copy):
    for _ in range(3):
        damage(copy / "checkpoints" / "3", "truncated")
        with Checkpoints(copy) as checkpoints:
            checkpoints.restore(make_state(0))
            checkpoints.save(make_state(3), {})
    names = {path.name for path in (copy / "checkpoints").glob("damaged-*")}
    assert names == {"damaged-3", "damaged-3-2", "damaged-3-3"}


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_for_real_keeps_the_last_good_one(small_disk, caplog):
    def state(step):
        noise = jax.random.normal(jax.random.key(step), (160_000,))  # 640 kB that no compression makes less
        return {**make_state(step), "params": {"noise": noise}, "ema": {}}

    with Checkpoints(small_disk) as checkpoints:
        checkpoints.save(state(1), {})
    with (
        pytest.raises(CheckpointError, match=r"no space left .* last complete checkpoint, \[1\]"),
        Checkpoints(small_disk) as checkpoints,
    ):
        checkpoints.save(state(2), {})
    assert latest_step(small_disk) == 1
    np.testing.assert_array_equal(restore_weights(small_disk)["noise"], state(1)["params"]["noise"])
    # With space again, the half-written one is cleared away and the run continues.
    subprocess.run(["mount", "-o", "remount,size=9m", str(small_disk)], check=True)
    with Checkpoints(small_disk) as checkpoints:
        checkpoints.restore(state(0))
        checkpoints.save(state(2), {})
    assert latest_step(small_disk) == 2
    assert not list((small_disk / "checkpoints").glob("*tmp*"))


def test_a_disk_without_room_for_a_folder_leaves_no_thread_that_waits_for_it(small_disk):
    subprocess.run(["mount", "-o", "remount,nr_inodes=4", str(small_disk)], check=True)
    before = set(threading.enumerate())
    with (
        pytest.raises(CheckpointError, match=r"no space left .* \(no further files free\)"),
        Checkpoints(small_disk) as checkpoints,
    ):
        checkpoints.save(make_state(1), {})
    # Each would keep the process for five minutes.
    waiting = [
        thread for thread in set(threading.enumerate()) - before if "Signaling" in type(thread).__name__
    ]
    for thread in waiting:
        threading.Thread.join(thread, 10)
    assert not any(thread.is_alive() for thread in waiting)


def move(workdir, devices, fsdp, expected, processes=1):
    """Run `moving.py`, as one or several processes; returns what they logged."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = str(Path(__file__).with_name("moving.py"))
    arguments = [sys.executable, script, *map(str, (workdir, devices, fsdp, expected))]
    started = [
        subprocess.Popen(
            arguments + ([str(index), str(processes), str(port)] if processes > 1 else []),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(processes)
    ]
    found = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0] * processes, found
    return [error for _, error in found]


@pytest.mark.slow
def test_from_one_layout_to_any_other(tmp_path):
    move(tmp_path, devices=8, fsdp=1, expected=0)
    move(tmp_path, devices=4, fsdp=4, expected=1)
    move(tmp_path, devices=2, fsdp=2, expected=2, processes=2)
    damage(tmp_path / "checkpoints" / "3", "truncated")
    first, second = move(tmp_path, devices=1, fsdp=2, expected=2, processes=2)
    assert "CHECKPOINT 3" in first
    assert "CHECKPOINT 3" not in second  # it follows the first, which alone looked
    assert "RESUMING FROM STEP 2 INSTEAD OF 3" in second
    move(tmp_path, devices=1, fsdp=1, expected=3)
