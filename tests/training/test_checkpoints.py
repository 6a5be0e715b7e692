import errno
import logging
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medclip_jax.training import mesh as meshes
from medclip_jax.training.checkpoints import (
    CheckpointError,
    Checkpoints,
    latest_step,
    read_run,
    restore_params,
)
from medclip_jax.training.config import base_config
from medclip_jax.training.state import flatten


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
    assert read_run(saved)["step"] == latest_step(saved) == 3


def test_parameters_alone_can_be_read(saved):
    whole = flatten(restore_params(saved))
    assert set(whole) == {"vision/kernel", "text/bias"}
    assert whole["vision/kernel"][0, 0] == 3
    averaged = flatten(restore_params(saved, include=(r"^vision/",), ema=True))
    assert set(averaged) == {"vision/kernel"}
    assert (averaged["vision/kernel"] == -1).all()
    assert flatten(restore_params(saved, step=2))["vision/kernel"][0, 0] == 2
    with pytest.raises(ValueError, match="'visoin' matches no parameter"):
        restore_params(saved, include=("visoin",))


def test_no_checkpoint_says_so(tmp_path):
    assert latest_step(tmp_path) is None
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        restore_params(tmp_path)


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
    assert flatten(restore_params(copy))["vision/kernel"][0, 0] == 2
    with caplog.at_level(logging.ERROR), Checkpoints(copy) as checkpoints:
        state, _ = checkpoints.restore(make_state(0))
        assert int(state["step"]) == 2
        assert "RESUMING FROM STEP 2 INSTEAD OF 3" in caplog.text
        # The damaged one is out of the way of step 3, when it comes again.
        checkpoints.save(make_state(3), {})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3]
    assert flatten(restore_params(copy))["vision/kernel"][0, 0] == 3


def test_nothing_readable_is_an_error(copy):
    for step in ("2", "3"):
        damage(copy / "checkpoints" / step, "truncated")
    with (
        Checkpoints(copy) as checkpoints,
        pytest.raises(CheckpointError, match="copy one back from a backup"),
    ):
        checkpoints.restore(make_state(0))
    with pytest.raises(CheckpointError, match="copy one back from a backup"):
        restore_params(copy)


def test_a_full_disk_says_so_and_leaves_the_last_good_one(copy, monkeypatch):
    with Checkpoints(copy) as checkpoints:

        def full(*_, **__):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(checkpoints._manager, "save", full)
        with pytest.raises(CheckpointError, match="no space left"):
            checkpoints.save(make_state(4), {})
    assert flatten(restore_params(copy))["vision/kernel"][0, 0] == 3


def test_leftovers_of_a_kill_are_no_checkpoint(copy):
    (copy / "checkpoints" / "9.orbax-checkpoint-tmp").mkdir()
    assert latest_step(copy) == 3
    with Checkpoints(copy) as checkpoints:
        assert checkpoints.steps() == [2, 3]
