import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from medclip_jax.training.preemption import Preemption


def ask(number):
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # the handler runs here at the latest


def test_sigterm_and_one_ctrl_c_are_requests_and_the_handlers_come_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    for number in (signal.SIGTERM, signal.SIGINT):
        with Preemption() as preemption:
            assert not preemption.agreed(1)
            assert not preemption.requested
            ask(number)
            assert preemption.requested
            assert preemption.agreed(2)
            assert preemption.agreed(3)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_second_ctrl_c_ends_at_once():
    with Preemption() as preemption:
        ask(signal.SIGINT)
        assert preemption.requested
        with pytest.raises(KeyboardInterrupt):
            ask(signal.SIGINT)


def test_noticed_while_the_main_thread_runs_no_bytecode():
    """As while XLA compiles: the handler cannot run, but the request is known before the call returns."""
    noticed = threading.Event()

    def watch(preemption):
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)
        while not preemption.requested:
            time.sleep(0.005)
        noticed.set()

    with Preemption() as preemption:
        thread = threading.Thread(target=watch, args=(preemption,))
        thread.start()
        # A list made in C: nothing of Python runs in this thread between the two calls.
        _, seen = [hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000), noticed.is_set()]
        thread.join()
    assert seen


def test_outside_of_the_main_thread_nothing_is_handled():
    found = []

    def work():
        before = signal.getsignal(signal.SIGTERM)
        with Preemption() as preemption:
            found.append((signal.getsignal(signal.SIGTERM) == before, preemption.agreed(1)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(True, False)]


@pytest.mark.parametrize(("victim", "steps"), [(1, 20_000), (-1, 60)])
def test_processes_stop_at_the_same_step_or_never(victim, steps):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).with_name("stopping.py")
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(index), "2", str(port), str(victim), str(steps)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    found = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], found
    (first, own_first), (second, own_second) = (out.split() for out, _ in found)
    if victim < 0:
        assert (first, second) == (str(steps), str(steps))
        return
    # The fast one was ahead when the slow one was asked.
    assert first == second
    assert 40 < int(first) < steps
    assert (own_first, own_second) == ("False", "True")
