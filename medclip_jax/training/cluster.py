"""Which processes belong to a run, as flags and the environment tell it. Nothing here is started."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any, NamedTuple


class Cluster(NamedTuple):
    """What `jax.distributed.initialize` has to be told.

    Attributes:
        where: what said so, for messages.
        coordinator: "host:port" of process 0, "" = JAX finds out (TPU).
        count: of processes, 0 = JAX finds out.
        index: of this process.
        devices: of this host that belong to this process, None = all.
    """

    where: str
    coordinator: str = ""
    count: int = 0
    index: int = 0
    devices: tuple[int, ...] | None = None


def detect(config: Any, environment: Mapping[str, str], *, tpu: bool = False) -> Cluster | None:
    """Find the processes of this run: explicit settings, else JAX_* variables, else SLURM, else a TPU.

    Args:
        config: `config.distributed`.
        environment: variables of this process.
        tpu: whether this machine has TPU chips.

    Returns:
        None for one plain process.

    Raises:
        ValueError: an incomplete or contradictory setting.
    """
    if config.process_count == 1:
        return None
    named = "JAX_NUM_PROCESSES" in environment
    if config.process_count or config.coordinator or config.process_index >= 0 or named:
        return _explicit(config, environment)
    if "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment:
        return _slurm(environment)
    if int(environment.get("SLURM_NTASKS", 1)) > 1:
        logging.warning(
            "this SLURM job has %s tasks, but this process was not started by srun, so it trains alone: "
            "start it as `srun medclip train ...`",
            environment["SLURM_NTASKS"],
        )
        return None
    if not tpu:
        return None
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    alone = hosts is not None and "," not in hosts and int(environment.get("MEGASCALE_NUM_SLICES", 1)) < 2
    return None if alone else Cluster("the TPU's environment")


def _explicit(config: Any, environment: Mapping[str, str]) -> Cluster | None:
    """From `config.distributed`, and from JAX_* variables and Kubernetes' index for what it leaves out."""
    coordinator = config.coordinator or environment.get("JAX_COORDINATOR_ADDRESS", "")
    count = config.process_count or int(environment.get("JAX_NUM_PROCESSES", 0))
    index = config.process_index
    if index < 0:
        index = int(environment.get("JAX_PROCESS_ID", environment.get("JOB_COMPLETION_INDEX", -1)))
    if count == 1 and not config.coordinator:
        return None
    missing = [
        f"config.distributed.{name} (or {variable})"
        for name, variable, absent in (
            ("coordinator", "JAX_COORDINATOR_ADDRESS", not coordinator),
            ("process_count", "JAX_NUM_PROCESSES", count < 1),
            ("process_index", "JAX_PROCESS_ID", index < 0),
        )
        if absent
    ]
    if missing:
        raise ValueError(
            f"to start several processes, {' and '.join(missing)} must be set too: every process is given "
            "the same coordinator, host:port of process 0, the same count, and an index of its own from 0"
        )
    if index >= count:
        raise ValueError(
            f"config.distributed.process_index={index} is out of range: with process_count={count}, the "
            f"indices are 0 to {count - 1}"
        )
    if not re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\s]+):\d+", coordinator):
        raise ValueError(
            f"config.distributed.coordinator={coordinator!r} must be host:port of process 0, such as "
            "node001:12345; the port must be free there and open to the others"
        )
    return Cluster("config.distributed", coordinator, count, index) if count > 1 else None


def _slurm(environment: Mapping[str, str]) -> Cluster | None:
    """From the variables that srun gives each task."""
    count = int(environment.get("SLURM_STEP_NUM_TASKS") or environment["SLURM_NTASKS"])
    if count < 2:
        return None
    nodes = environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]
    # A port of its own for each step, so that two runs on one node do not meet.
    job, step = int(environment.get("SLURM_JOB_ID", 0)), environment["SLURM_STEP_ID"]
    port = 61440 + (31 * job + (int(step) if step.isdigit() else 0)) % 4096
    return Cluster(
        "SLURM",
        environment.get("JAX_COORDINATOR_ADDRESS")
        or f"{first_host(nodes)}:{environment.get('JAX_COORDINATOR_PORT', port)}",
        count,
        int(environment["SLURM_PROCID"]),
        _slurm_devices(environment),
    )


def first_host(nodes: str) -> str:
    """First host of a SLURM node list such as "node[007-012,020],login1"."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first.group() if first else nodes)


def _slurm_devices(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    """Which of the GPUs that a task sees are its own, None = all.

    A task that shares its node sees all the node's GPUs, unless SLURM gave each task its own.
    """
    # "8(x2),4": eight tasks on each of two nodes, then four.
    per_node = [
        int(tasks)
        for tasks, times in re.findall(
            r"(\d+)(?:\(x(\d+)\))?",
            environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE", "1"),
        )
        for _ in range(int(times or 1))
    ]
    node = int(environment.get("SLURM_NODEID", 0))
    tasks = per_node[node] if node < len(per_node) else per_node[-1]
    visible = [gpu for gpu in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    bound = any(name in environment for name in ("SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK"))
    if tasks == 1 or bound or len(visible) <= 1:
        return None
    if len(visible) % tasks:
        raise ValueError(
            f"{tasks} tasks of this node see {len(visible)} GPUs and cannot share them evenly: set "
            f"--ntasks-per-node to {len(visible)} or to 1, or give each task its own with --gpus-per-task"
        )
    share, local = len(visible) // tasks, int(environment["SLURM_LOCALID"])
    return tuple(range(local * share, (local + 1) * share))
