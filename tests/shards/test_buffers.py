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


def lay_out(count, samples):
    """Samples of a volume and a number, as a thread of the pipeline reads them."""
    found = []
    for n in range(samples):
        with buffers.rows(count):
            volume = buffers.borrow(SHAPE, np.int16)
        volume[:] = n
        found.append({"volume": volume, "number": np.array(n)})
    return found


def test_rows_of_a_batch_lie_where_they_belong():
    samples = lay_out(3, 3)
    places = [address(sample["volume"]) for sample in samples]
    batch = buffers.stack_samples(samples)
    assert batch["volume"].shape == (3, *SHAPE)
    assert [address(row) for row in batch["volume"]] == places
    np.testing.assert_array_equal(batch["volume"][:, 0, 0, 0], [0, 1, 2])
    np.testing.assert_array_equal(batch["number"], [0, 1, 2])
    # The next batch has memory of its own, and the first one's comes back when it is gone.
    other = buffers.stack_samples(lay_out(3, 3))
    assert not np.shares_memory(other["volume"], batch["volume"])
    del samples, batch
    again = buffers.stack_samples(lay_out(3, 3))
    assert address(again["volume"]) == places[0]


def test_rows_in_another_order_are_copied():
    samples = lay_out(3, 3)
    mixed = [samples[2], samples[0], samples[1]]
    np.testing.assert_array_equal(buffers.stack_samples(mixed)["volume"][:, 0, 0, 0], [2, 0, 1])


def test_a_sample_that_changed_its_volume_counts():
    samples = lay_out(3, 3)
    samples[1]["volume"] = samples[1]["volume"][:, ::-1]
    samples[2]["volume"] = np.full(SHAPE, 9, np.int16)
    batch = buffers.stack_samples(samples)
    np.testing.assert_array_equal(batch["volume"][:, 0, 0, 0], [0, 1, 9])
    assert batch["volume"].dtype == np.int16


def test_after_a_record_that_could_not_be_read_batches_are_right():
    lay_out(3, 2)  # and then an error: nobody stacks them
    for _ in range(2):
        samples = lay_out(3, 3)
        batch = buffers.stack_samples(samples)
        np.testing.assert_array_equal(batch["volume"][:, 0, 0, 0], [0, 1, 2])
    assert np.shares_memory(batch["volume"], samples[0]["volume"])  # the copy was the first one's alone


def test_a_batch_of_one_is_its_sample():
    samples = lay_out(1, 1)
    assert np.shares_memory(buffers.stack_samples(samples)["volume"], samples[0]["volume"])


def test_outside_of_rows_arrays_are_apart():
    lay_out(3, 1)
    first, second = (buffers.borrow(SHAPE, np.int16) for _ in range(2))
    first[:], second[:] = 1, 2
    assert (first == 1).all()


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
