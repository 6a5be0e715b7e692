"""Several processes on loopback do what one does; what `start` reads from its environment."""

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import together
from ml_collections import ConfigDict
from test_loop import metrics

from medclip_jax.training import cluster, distributed
from medclip_jax.training.checkpoints import latest_step
from medclip_jax.training.lock import describe_process

SECONDS = 900
"""A machine that is busy with other work may take that long; no figure depends on it."""


def settings(coordinator="", process_count=0, process_index=-1):
    return ConfigDict(
        {"coordinator": coordinator, "process_count": process_count, "process_index": process_index}
    )


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_all(scenario, folder, *, count, devices, script="together.py"):
    """Start `count` processes; returns them with the files that hold what they print."""
    folder.mkdir(exist_ok=True)
    port, environment = free_port(), {**os.environ, "PYTHONWARNINGS": "ignore"}
    here = Path(__file__).with_name(script)
    started = []
    for index in range(count):
        output = folder / f"output-{index}"
        arguments = [scenario, folder, index, count, port, devices]
        with output.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, str(here), *map(str, arguments)], env=environment, stdout=file, stderr=file
            )
        started.append((process, output))
    return started


def end_all(started):
    """Exit statuses and outputs, once all have ended by themselves."""
    end = time.monotonic() + SECONDS
    try:
        for process, _ in started:
            process.wait(max(1.0, end - time.monotonic()))
    finally:
        for process, _ in started:
            process.kill()
    return [process.returncode for process, _ in started], [output.read_text() for _, output in started]


def assert_same_numbers(several, one):
    several, one = metrics(several), metrics(one)
    assert [line["step"] for line in several] == [line["step"] for line in one]
    for a, b in zip(several, one, strict=True):
        assert a.keys() == b.keys()
        # Which samples and tokens a step saw: exactly the same.
        assert (a["terms/sample_sum"], a["terms/token_sum"]) == (b["terms/sample_sum"], b["terms/token_sum"])
        # Sums over the batch in another order, over six updates of Adam.
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-5, err_msg=str(a["step"]))


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Six steps on one device of one process."""
    workdir = tmp_path_factory.mktemp("one")
    together.run(workdir, together.config(mesh__data=1))
    return workdir


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes with two devices each did."""
    folder = tmp_path_factory.mktemp("two")
    together.run(folder / "moved", together.config(mesh__data=1, steps=3))
    statuses, outputs = end_all(start_all("two", folder, count=2, devices=2))
    assert "all stopped" in outputs[0], outputs[0]
    return folder, statuses, outputs


@pytest.mark.slow
def test_two_processes_resume_where_one_stopped_and_back(one, two, tmp_path):
    moved = two[0] / "moved"
    assert_same_numbers(moved, one)
    shutil.copytree(one, tmp_path / "stayed")
    for workdir in (moved, tmp_path / "stayed"):
        together.run(workdir, together.config(mesh__data=1, steps=8))
    assert [line["step"] for line in metrics(moved)] == list(range(1, 9))
    assert_same_numbers(moved, tmp_path / "stayed")


@pytest.mark.slow
def test_a_nan_names_the_samples_of_all_processes(two, tmp_path):
    def said(message):
        lines = message.splitlines()
        samples = lines[-2].removesuffix("; not finite after encode: 5").split(": ")[1]
        return lines[0], sorted(samples.split(", "))

    expected = said(together.poisoned(tmp_path, mesh__data=1))
    assert len(expected[1]) == 8
    for index in range(2):
        message, _ = pickle.loads((two[0] / f"seen-{index}").read_bytes())
        assert said(message) == expected


@pytest.mark.slow
def test_a_split_embedded_by_two_processes_is_that_of_one(two):
    expected = together.embedded()
    for index in range(2):
        _, found = pickle.loads((two[0] / f"seen-{index}").read_bytes())
        for name in ("volumes", "texts"):
            # The same sums, compiled for another number of rows.
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found["studies"], expected["studies"])
        np.testing.assert_array_equal(found["labels"]["a"], expected["labels"]["a"])
        assert found["report"] == expected["report"]


@pytest.mark.slow
def test_all_stop_at_the_same_step_where_one_is_told_to(two):
    folder, _, outputs = two
    step = latest_step(folder / "stopped")
    assert 0 < step < 1000
    assert [line["step"] for line in metrics(folder / "stopped")] == list(range(1, step + 1))
    assert [f"saved at step {step} of 1000" in output for output in outputs] == [True, False]
    assert all("all stopped" in output for output in outputs)


@pytest.mark.slow
def test_an_error_of_one_process_ends_all_with_its_reason_and_status(two):
    _, statuses, outputs = two
    assert statuses == [2, 2]
    assert "(process 1 of 2): shard 7 cannot be read" in outputs[1]
    assert "process 1 failed, so this one ends too. There: shard 7 cannot be read" in outputs[0]


@pytest.mark.slow
def test_four_processes_train_as_one_and_end_when_one_is_killed(one, tmp_path):
    statuses, outputs = end_all(start_all("four", tmp_path, count=4, devices=1))
    assert_same_numbers(tmp_path / "whole", one)
    assert all("whole" in output for output in outputs)
    assert statuses[2] == -9
    for index in (0, 1, 3):
        assert statuses[index] not in (0, None)
        assert any(
            text in outputs[index]
            for text in (
                "lost contact to another process",
                "failed, so this one ends too",
                "another task died",
            )
        ), outputs[index]


def test_one_plain_process_starts_nothing():
    assert distributed.start(settings()) == (0, 1)
    assert distributed.start(settings("nowhere:1", 1, 0)) == (0, 1)
    assert distributed.processes() == (0, 1)
    assert [distributed.agree(flag) for flag in (True, False)] == [True, False]
    distributed.barrier("nothing")


@pytest.mark.parametrize(
    ("explicit", "environment", "expected"),
    [
        (("node1:1234", 4, 2), {}, ("config.distributed", "node1:1234", 4, 2, None)),
        (("[::1]:1234", 2, 0), {"SLURM_STEP_ID": "0"}, ("config.distributed", "[::1]:1234", 2, 0, None)),
        (("", 0, -1), {}, None),
        # Kubernetes: the manifest names coordinator and count, the indexed job the index.
        (
            ("", 0, -1),
            {
                "JAX_COORDINATOR_ADDRESS": "run-0-0.run:1234",
                "JAX_NUM_PROCESSES": "8",
                "JOB_COMPLETION_INDEX": "7",
            },
            ("config.distributed", "run-0-0.run:1234", 8, 7, None),
        ),
        (
            ("", 0, -1),
            {
                "JAX_COORDINATOR_ADDRESS": "a:1",
                "JAX_NUM_PROCESSES": "8",
                "JAX_PROCESS_ID": "3",
                "JOB_COMPLETION_INDEX": "7",
            },
            ("config.distributed", "a:1", 8, 3, None),
        ),
        # An indexed job whose parts have nothing to do with each other, such as a sweep.
        (("", 0, -1), {"JOB_COMPLETION_INDEX": "7"}, None),
        (("", 0, -1), {"JAX_NUM_PROCESSES": "1"}, None),
    ],
)
def test_explicit_settings_and_kubernetes(explicit, environment, expected):
    assert cluster.detect(settings(*explicit), environment) == expected


@pytest.mark.parametrize(
    ("explicit", "message"),
    [
        (
            ("node1:1234", 4, 4),
            r"process_index=4 is out of range: with process_count=4, the indices are 0 to 3",
        ),
        (
            ("node1:1234", 0, 1),
            r"config\.distributed\.process_count \(or JAX_NUM_PROCESSES\) must be set too",
        ),
        (("", 2, 1), r"config\.distributed\.coordinator \(or JAX_COORDINATOR_ADDRESS\) must be set too"),
        (("node1:1234", 2, -1), r"config\.distributed\.process_index"),
        (("node1", 2, 1), r"coordinator='node1' must be host:port of process 0"),
        (("http://node1:12", 2, 1), r"must be host:port"),
    ],
)
def test_settings_that_cannot_work_say_what_to_set(explicit, message):
    with pytest.raises(ValueError, match=message):
        cluster.detect(settings(*explicit), {})


SLURM = {
    "SLURM_JOB_ID": "4242",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "16",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NODELIST": "gpu[007-008]",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
    "SLURM_NODEID": "1",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
}


@pytest.mark.parametrize(
    ("changes", "devices"),
    [
        ({}, (3,)),
        ({"SLURM_STEP_TASKS_PER_NODE": "8,4", "SLURM_LOCALID": "1"}, (2, 3)),
        # SLURM gave each task its own.
        ({"CUDA_VISIBLE_DEVICES": "0"}, None),
        ({"SLURM_GPUS_PER_TASK": "2", "CUDA_VISIBLE_DEVICES": "0,1"}, None),
        # One task a node: all GPUs are its own.
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x16)"}, None),
    ],
)
def test_slurm(changes, devices):
    found = cluster.detect(settings(), SLURM | changes)
    host, port = found.coordinator.split(":")
    assert (found.where, host, found.count, found.index) == ("SLURM", "gpu007", 16, 11)
    assert found.devices == devices
    assert 61440 <= int(port) < 65536
    assert cluster.detect(settings(), SLURM | {"SLURM_STEP_ID": "1"}).coordinator != found.coordinator


def test_slurm_without_several_tasks_or_without_srun(caplog):
    assert cluster.detect(settings(), SLURM | {"SLURM_STEP_NUM_TASKS": "1"}) is None
    assert cluster.detect(settings(process_count=1), SLURM) is None
    assert not caplog.records
    batch = {name: SLURM[name] for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID")}
    assert cluster.detect(settings(), batch) is None
    assert "srun medclip train" in caplog.text
    with pytest.raises(ValueError, match="cannot share them evenly: set --ntasks-per-node to 8 or to 1"):
        cluster.detect(settings(), SLURM | {"SLURM_STEP_TASKS_PER_NODE": "3(x2)"})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node001", "node001"),
        ("a,b", "a"),
        ("node[007-012,020],login1", "node007"),
        ("rack2-node[3,5]", "rack2-node3"),
        ("r[1-2]n[01-04]-ib", "r1n01-ib"),
    ],
)
def test_first_host(nodes, first):
    assert cluster.first_host(nodes) == first


def test_tpu():
    found = {"TPU_WORKER_HOSTNAMES": "a,b"}
    assert cluster.detect(settings(), found, tpu=True) == ("the TPU's environment", "", 0, 0, None)
    assert cluster.detect(settings(), {}, tpu=True) is not None  # the metadata server knows
    assert cluster.detect(settings(), {"TPU_WORKER_HOSTNAMES": "a"}, tpu=True) is None
    two_slices = {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}
    assert cluster.detect(settings(), two_slices, tpu=True) is not None
    assert cluster.detect(settings(), found, tpu=False) is None


def test_a_coordinator_that_is_not_there_and_a_port_in_use():
    with pytest.raises(ValueError, match=r"process 1 of 2 cannot reach the coordinator 127\.0\.0\.1:"):
        distributed.start(settings(f"127.0.0.1:{free_port()}", 2, 1), timeout=0.1)
    with socket.socket(socket.AF_INET6) as listener:
        listener.bind(("::", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ValueError, match=f"process 0 cannot listen on port {port}"):
            distributed.start(settings(f"127.0.0.1:{port}", 2, 0), timeout=0.1)


def test_a_first_process_that_died_before_it_listened_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "GONE_SECONDS", 0.0)
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    told = {**describe_process(), "pid": process.pid}
    (tmp_path / distributed.FIRST_PROCESS).write_text(json.dumps(told))
    where = settings(f"127.0.0.1:{free_port()}", 2, 1)
    with pytest.raises(
        ValueError, match=rf"process {process.pid} of this machine\) ended before it listened"
    ):
        distributed.start(where, workdir=tmp_path, timeout=SECONDS)
    # One that lives, or of another machine, may still come.
    for other in (describe_process(), {**told, "host": "node7"}):
        (tmp_path / distributed.FIRST_PROCESS).write_text(json.dumps(other))
        with pytest.raises(ValueError, match="cannot reach the coordinator"):
            distributed.start(where, workdir=tmp_path, timeout=1.2)


def test_missing_processes_are_told():
    code = """
from ml_collections import ConfigDict
from medclip_jax.training import cluster, distributed
import sys
distributed.start(
    ConfigDict({"coordinator": "127.0.0.1:" + sys.argv[1], "process_count": 2, "process_index": 0}), timeout=2
)
"""
    ended = subprocess.run(
        [sys.executable, "-c", code, str(free_port())],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert ended.returncode == 1
    assert "not all 2 processes arrived within 2 s (this is 0). Start as many" in ended.stderr
