"""What writes metrics down can fail or block, and the run continues."""

import json
import os
import struct
import threading
from functools import partial

import pytest
from test_loop import metrics
from toy import Toy, make_config, make_data

from medclip_jax.training import log_writers, logs
from medclip_jax.training.log_writers import Background, Lines, TensorBoard
from medclip_jax.training.loop import train
from medclip_jax.training.workdir import Workdir

FULL = "/dev/full"


def scalars(folder):
    """What TensorBoard shows: (step, name) to number, and the steps from which on earlier ones are hidden."""
    from tensorboardX.proto.event_pb2 import Event

    found, begins = {}, []
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        while content:
            (size,) = struct.unpack("Q", content[:8])
            event = Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]
            if event.HasField("session_log"):
                begins.append(event.step)
            for value in event.summary.value:
                found[event.step, value.tag] = value.simple_value
    return found, begins


class Broken:
    """A writer that raises, as on a full disk."""

    def __init__(self, *_, **__):
        pass

    def write(self, step, numbers):
        raise OSError(28, os.strerror(28))

    def flush(self):
        raise OSError(28, os.strerror(28))

    close = flush


class Stuck(Broken):
    """A writer that never comes back, as on a file system that hangs."""

    def write(self, step, numbers):
        threading.Event().wait()


@pytest.mark.parametrize("writer", [Broken, Stuck])
def test_a_run_ends_well_whatever_tensorboard_does(tmp_path, monkeypatch, capsys, writer):
    monkeypatch.setattr(logs, "TensorBoard", writer)
    monkeypatch.setattr(log_writers, "CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(log_writers, "WAITING_RECORDS", 2)
    config = make_config(steps=12, log__tensorboard=True)
    train(config, tmp_path, data=make_data(), objective_class=Toy)
    assert [line["step"] for line in metrics(tmp_path)] == list(range(1, 13))
    said = capsys.readouterr().out
    if writer is Broken:
        assert said.count("TensorBoard stopped (OSError: [Errno 28] No space left on device)") == 1
    else:
        assert said.count("TensorBoard does not keep up") == 1
        assert "TensorBoard did not finish" in said


def test_lines_wait_until_the_disk_takes_them(tmp_path):
    if not os.path.exists(FULL):
        pytest.skip(f"no {FULL} here")
    said = []
    (tmp_path / "link").symlink_to(FULL)
    lines = Lines(tmp_path / "link", said.append)
    lines.write(1, {"loss": 1.0})
    lines.write(2, {"loss": float("nan")})
    assert len(said) == 1
    assert "No space left" in said[0]
    (tmp_path / "link").unlink()
    lines.write(3, {"loss": 3.0})
    lines.close()
    written = [json.loads(line) for line in (tmp_path / "link").read_text().splitlines()]
    assert written == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": None}, {"step": 3, "loss": 3.0}]
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(FULL)
    lines.write(4, {"loss": 4.0})
    lines.close()
    assert "lacks its last 1 lines" in said[-1]


def test_a_line_that_the_disk_cut_off_is_taken_back(tmp_path):
    class HalfFull:
        def __init__(self, file):
            self.file, self.room = file, 5

        def fileno(self):
            return self.file.fileno()

        def write(self, data):
            if not self.room:
                raise OSError(28, os.strerror(28))
            written, self.room = self.file.write(data[: self.room]), 0
            return written

    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n')
    with path.open("ab", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        Lines._append(HalfFull(file), b'{"step": 2}\n')
    assert path.read_bytes() == b'{"step": 1}\n'


def test_tensorboard_shows_the_numbers_and_hides_those_of_steps_done_again(tmp_path):
    said = []
    for start, step in ((0, 1), (7, 8)):
        writer = Background(
            "TensorBoard", partial(TensorBoard, tmp_path / str(start), start=start), said.append
        )
        writer.write(step, {"loss": 0.5, "terms/a": 2.0})
        writer.close()
        found, begins = scalars(tmp_path / str(start))
        assert found == {(step, "loss"): 0.5, (step, "terms/a"): 2.0}
        assert begins == [start + 1]
    assert not said


def test_a_terminal_that_is_gone_stops_nothing(tmp_path, monkeypatch):
    opened = logs.Logs(Workdir(tmp_path), make_config(log__progress=True), start=0, steps=3)

    def gone(*_, **__):
        raise BrokenPipeError

    for name in ("update", "say", "close"):
        monkeypatch.setattr(opened._bar, name, gone)
    opened.advance(loss="1")
    opened.say("something")
    opened.write(1, {"loss": 1.0})
    opened.close()
    assert len(metrics(tmp_path)) == 1
