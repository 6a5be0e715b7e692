"""Pooled memory: given again when nobody sees it any more, and never before."""

import subprocess
import sys
import threading

import numpy as np

from medclip_jax.shards import buffers

SHAPE = (64, 64, 65)  # of its own size, so that no other test's buffers are met


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_comes_back_once_the_last_view_is_gone():
    array = buffers.borrow(SHAPE, np.int16)
    assert array.shape == SHAPE
    assert array.dtype == np.int16
    place, view = address(array), array[3:, ::2]
    del array
    assert address(buffers.borrow(SHAPE, np.int16)) != place
    view[:] = 7
    del view
    again = {address(x) for x in [buffers.borrow(SHAPE, np.int16) for _ in range(3)]}
    assert place in again


def test_only_some_are_kept():
    many = [buffers.borrow((300_001,), np.uint8) for _ in range(40)]
    del many
    assert len(buffers._free[300_001]) == buffers._KEPT


def test_small_arrays_are_left_to_malloc():
    assert buffers.borrow((10,), np.float32).base is None


def test_threads_never_share():
    wrong = []

    def work(number):
        for turn in range(300):
            array = buffers.borrow((70_000,), np.int32)
            array[:] = number * 1000 + turn
            if not (array == number * 1000 + turn).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_end_of_the_interpreter_is_silent():
    """Its last step sets a module's names to None while arrays may still live."""
    program = (
        "import numpy as np\n"
        "from medclip_jax.shards import buffers\n"
        "array = buffers.borrow((1 << 20,), np.uint8)\n"
        "vars(buffers).update(dict.fromkeys(vars(buffers)))\n"
        "del array\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
