"""One run on many processes: starting them together, agreeing, and ending together.

Importing this touches no device; `start` must come before anything that does.
"""

from __future__ import annotations

import atexit
import importlib.util
import itertools
import json
import logging
import os
import re
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax

from medclip_jax.training.cluster import Cluster, detect
from medclip_jax.training.lock import describe_process, is_dead

START_SECONDS = 300.0
"""How long a process waits at the start for all others."""

HEARTBEAT_SECONDS = 60
"""A process that was not heard of for so long is taken for dead, and all others end."""

BARRIER_SECONDS = 300.0
"""How long a process waits for all others at a point of agreement."""

GONE_SECONDS = 20.0
"""How long the others wait for a new first process where the one that was there is dead."""

FIRST_PROCESS = "process-0.json"
"""In the workdir, until the first process can be reached: which process that is."""

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


def start(
    config: Any,
    *,
    workdir: str | Path | None = None,
    timeout: float = START_SECONDS,
    heartbeat: int = HEARTBEAT_SECONDS,
) -> Processes:
    """Join the other processes of this run. One plain process starts nothing.

    Args:
        config: `config.distributed`.
        workdir: of the run. There the first process tells the others of its machine, until it can be
            reached, that it lives.
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
    sign = Path(workdir) / FIRST_PROCESS if workdir is not None and cluster.coordinator else None
    if cluster.coordinator:
        if sign is not None and cluster.index == 0:
            with suppress(OSError):  # the workdir itself is looked at later, where it counts
                sign.parent.mkdir(parents=True, exist_ok=True)
                sign.write_text(json.dumps(describe_process()))
        _check_coordinator(cluster, timeout, sign)
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
        if sign is not None and cluster.index == 0:
            with suppress(OSError):
                sign.unlink()
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


def _check_coordinator(cluster: Cluster, timeout: float, sign: Path | None = None) -> None:
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
    gone = None
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
        first = _read_sign(sign)
        if not first or not is_dead(first):
            gone = None
        elif gone is None:
            gone = time.monotonic()  # or a sign left by an earlier start, which a new one will replace
        elif time.monotonic() - gone > GONE_SECONDS:
            raise ValueError(
                f"process 0 of {cluster.count} (process {first['pid']} of this machine) ended before it "
                f"listened at {cluster.coordinator}: look at its log"
            )
        time.sleep(0.5)


def _read_sign(sign: Path | None) -> dict[str, Any]:
    """What the first process told of itself, {} where it did not."""
    try:
        content = json.loads(sign.read_text()) if sign is not None else {}
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


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


def fail(error: BaseException) -> NoReturn:
    """End this process because of an error, and tell all others to end.

    Without this they would wait in their next collective operation until the heart-beat fails. All end with
    the same status, the one that `medclip` gives to such an error of a single process.

    Args:
        error: what went wrong here.
    """
    state = _state()
    lost = _is_lost_contact(error)
    own = _Failure(
        state.process_id,
        2 if isinstance(error, ValueError | OSError) and not lost else 1,
        str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}",
    )
    if lost:
        # An effect: whoever has the cause may tell it first.
        time.sleep(_LINGER_SECONDS)
        own = own._replace(
            reason="lost contact to another process, which was probably killed; its own log, or that of its "
            f"machine, says why ({own.reason.splitlines()[0][:200]})"
        )
    elif not isinstance(error, ValueError | OSError):
        traceback.print_exception(error)
    told = _failure()
    if told is None:
        with suppress(RuntimeError):  # another one was first
            state.client.key_value_set(_FAILURE, f"{own.index} {own.status} {own.reason}")
        told = _failure()
    if state.process_id == 0:
        # The others hear of it from here.
        time.sleep(_LINGER_SECONDS + 2.0)
    if lost and told is not None and told.index != own.index:
        own = _consequence(told)
    _end(own.reason, own.status)


class _Failure(NamedTuple):
    """Which process failed, its exit status, and why."""

    index: int
    status: int
    reason: str


def _failure() -> _Failure | None:
    """Who failed first, None as long as nobody did."""
    try:
        index, status, reason = _state().client.key_value_try_get(_FAILURE).split(" ", 2)
    except RuntimeError:
        return None
    return _Failure(int(index), int(status), reason)


def _consequence(failure: _Failure) -> _Failure:
    reason = f"process {failure.index} failed, so this one ends too. There: {failure.reason}"
    return failure._replace(reason=reason)


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
            if told and told.index != index and not closing.wait(_LINGER_SECONDS):
                _end(_consequence(told).reason, told.status)

    thread = threading.Thread(target=watch, name="failures", daemon=True)
    thread.start()

    def close() -> None:
        closing.set()
        thread.join()

    # Registered after JAX's own, so it runs before: the client must outlive the thread.
    atexit.register(close)


def _end(message: str, status: int = 1) -> NoReturn:
    """Print, and leave without JAX's shutdown, which would wait for processes that do not come."""
    state = _state()
    who = f" (process {state.process_id} of {state.num_processes})" if state.client else ""
    sys.stdout.flush()
    print(f"medclip train{who}: {message}", file=sys.stderr, flush=True)
    logging.shutdown()
    os._exit(status)
