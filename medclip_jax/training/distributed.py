"""One run on many processes: starting them together, agreeing, and ending together.

Importing this touches no device; `start` must come before anything that does.
"""

from __future__ import annotations

import atexit
import importlib.util
import itertools
import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

START_SECONDS = 300.0
"""How long a process waits at the start for all others."""

HEARTBEAT_SECONDS = 60
"""A process that was not heard of for so long is taken for dead, and all others end."""

BARRIER_SECONDS = 300.0
"""How long a process waits for all others at a point of agreement."""

_LINGER_SECONDS = 3.0
"""What a process has to end on its own terms (the same error, say) before another's failure ends it."""

_FAILURE = "medclip/failure"
_sequence = itertools.count()


class Processes(NamedTuple):
    """The processes of a run.

    Attributes:
        index: of this one, from 0.
        count: of all.
    """

    index: int
    count: int

    @property
    def first(self) -> bool:
        """Whether this is the one that writes logs."""
        return self.index == 0


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


def start(config: Any, *, timeout: float = START_SECONDS, heartbeat: int = HEARTBEAT_SECONDS) -> Processes:
    """Join the other processes of this run. One plain process starts nothing.

    Args:
        config: `config.distributed`.
        timeout: seconds to wait for the coordinator and for all processes.
        heartbeat: seconds without a sign of life after which a process counts as dead.

    Raises:
        ValueError: settings that cannot work, or a coordinator that is not there.
        RuntimeError: a device was used before.
    """
    # Where JAX finds no chips it says so in this variable when it is imported.
    tpu = importlib.util.find_spec("libtpu") is not None and "TPU_SKIP_MDS_QUERY" not in os.environ
    tpu = tpu and jax.config.jax_platforms != "cpu"
    cluster = detect(config, os.environ, tpu=tpu)
    if cluster is None:
        return Processes(0, 1)
    if cluster.coordinator:
        _check_coordinator(cluster, timeout)
        logging.info(
            "process %d of %d (%s), coordinator %s",
            *(cluster.index, cluster.count, cluster.where, cluster.coordinator),
        )
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Its handler would swallow SIGTERM; see `training.preemption`.
    jax.config.update("jax_enable_preemption_service", False)
    arrived = threading.Event()
    threading.Thread(target=_expect, args=(arrived, cluster, timeout), daemon=True).start()
    options = {
        # JAX aborts with a stack trace where its own time is over: `_expect` comes first, with a message.
        "initialization_timeout": int(timeout) + 60,
        "heartbeat_timeout_seconds": heartbeat,
        "shutdown_timeout_seconds": int(BARRIER_SECONDS),
    }
    try:
        if cluster.coordinator:
            jax.distributed.initialize(
                cluster.coordinator,
                cluster.count,
                cluster.index,
                local_device_ids=cluster.devices,
                cluster_detection_method="deactivate",
                **options,
            )
        else:
            jax.distributed.initialize(**options)
    finally:
        arrived.set()
    _watch_for_failures()
    return processes()


def processes() -> Processes:
    """The processes that were started together; touches no device."""
    state = _state()
    return Processes(state.process_id, state.num_processes) if state.client else Processes(0, 1)


def _state() -> Any:
    # Public JAX tells index and count only at the price of touching the devices.
    from jax._src import distributed

    return distributed.global_state


def _check_coordinator(cluster: Cluster, timeout: float) -> None:
    """See that process 0 can listen, and that the others reach it: JAX itself would abort with a trace."""
    host, port = cluster.coordinator.rsplit(":", 1)
    if cluster.index == 0:
        with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("", int(port)))
            except (OSError, OverflowError) as error:
                raise ValueError(
                    f"process 0 cannot listen on port {port} of coordinator {cluster.coordinator}: {error}. "
                    "End what uses it, or give every process another port"
                ) from None
        return
    end = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() > end:
                raise ValueError(
                    f"process {cluster.index} of {cluster.count} cannot reach the coordinator "
                    f"{cluster.coordinator} ({cluster.where}) within {timeout:.0f} s: {error}. Check that "
                    "process 0 runs and logs no error, that all processes were given the same address, that "
                    "this host can resolve it, and that no firewall closes the port"
                ) from None
        time.sleep(0.5)


def _expect(arrived: threading.Event, cluster: Cluster, timeout: float) -> None:
    """End this process with a message where not all others come in time."""
    expected = f"all {cluster.count}" if cluster.count else "all"
    if arrived.wait(min(30.0, timeout)):
        return
    logging.warning("waiting for %s processes to arrive at %s", expected, cluster.coordinator or "process 0")
    if arrived.wait(timeout - min(30.0, timeout)):
        return
    _end(
        f"not {expected} processes arrived within {timeout:.0f} s (this is {cluster.index}). Start as many "
        "as the count says, each with an index of its own from 0, and look at the logs of the missing ones"
    )


def barrier(name: str, *, timeout: float = BARRIER_SECONDS) -> None:
    """Wait until all processes are here. Every process calls this in the same order.

    Args:
        name: for the message.
        timeout: seconds.

    Raises:
        RuntimeError: not all came in time; the message names the missing where JAX knows them.
    """
    client = _state().client
    if client is None or _state().num_processes == 1:
        return
    try:
        client.wait_at_barrier(f"medclip/{name}/{next(_sequence)}", int(1000 * timeout))
    except RuntimeError as error:
        raise RuntimeError(
            f"not all {_state().num_processes} processes came to {name!r} within {timeout:.0f} s: look at "
            f"the logs of those that are missing ({error})"
        ) from None


def agree(flag: bool, *, timeout: float = BARRIER_SECONDS) -> bool:
    """Whether any process says so. Every process calls this in the same order, and all get the same answer.

    It waits for the slowest process, so it belongs into starts and ends, not into every step (see
    `Preemption.agreed`).

    Args:
        flag: what this process says.
        timeout: seconds.

    Raises:
        RuntimeError: as `barrier`.
    """
    client = _state().client
    if client is None or _state().num_processes == 1:
        return flag
    key = f"medclip/agree/{next(_sequence)}"
    if flag:
        client.key_value_set(f"{key}/{_state().process_id}", "1")
    barrier("agree", timeout=timeout)
    return bool(client.key_value_dir_get(key))


def fail(error: BaseException) -> None:
    """End this process because of an error, and tell all others to end. Does not return.

    Without this they would wait in their next collective operation until the heart-beat fails.

    Args:
        error: what went wrong here.
    """
    state = _state()
    own = str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"
    if _is_lost_contact(error):
        # An effect: whoever has the cause may tell it first.
        time.sleep(_LINGER_SECONDS)
        own = (
            "lost contact to another process, which was probably killed; its own log, or that of its "
            f"machine, says why ({own.splitlines()[0][:200]})"
        )
    told = _failure()
    if told is None:
        try:
            state.client.key_value_set(_FAILURE, f"{state.process_id} {own}")
        except RuntimeError:  # another one was first
            told = _failure()
    if told is not None and told[0] != state.process_id and _is_lost_contact(error):
        own = _also(*told)
    if state.process_id == 0:
        # The others hear of it from here.
        time.sleep(_LINGER_SECONDS + 2.0)
    _end(own)


def _failure() -> tuple[int, str] | None:
    """Which process failed first, and why."""
    try:
        index, reason = _state().client.key_value_try_get(_FAILURE).split(" ", 1)
    except RuntimeError:  # none
        return None
    return int(index), reason


def _also(index: int, reason: str) -> str:
    return f"process {index} failed, so this one ends too. There: {reason}"


def _is_lost_contact(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, RuntimeError | ValueError) and bool(
        re.search(r"Gloo|NCCL|UNAVAILABLE|DEADLINE_EXCEEDED|[Cc]onnection (reset|closed|refused)", text)
    )


def _watch_for_failures() -> None:
    """End this process soon after another one failed."""
    index, closing = _state().process_id, threading.Event()

    def watch() -> None:
        while not closing.wait(1.0):
            told = _failure()
            if told and told[0] != index and not closing.wait(_LINGER_SECONDS):
                _end(_also(*told))

    thread = threading.Thread(target=watch, name="failures", daemon=True)
    thread.start()

    def close() -> None:
        closing.set()
        thread.join()

    # Registered after JAX's own, so it runs before: the client must outlive the thread.
    atexit.register(close)


def _end(message: str) -> None:
    """Print, and leave without JAX's shutdown, which would wait for processes that do not come."""
    state = _state()
    who = f" (process {state.process_id} of {state.num_processes})" if state.client else ""
    sys.stdout.flush()
    print(f"medclip train{who}: {message}", file=sys.stderr, flush=True)
    logging.shutdown()
    os._exit(1)
