import io

import pytest

from medclip_jax import progress
from medclip_jax.progress import is_interactive, track, track_each


@pytest.fixture
def clock(monkeypatch):
    """A log file, and a clock that continues only when it is told to."""

    class Time:
        now = 100.0

        def monotonic(self):
            return self.now

    made = Time()
    monkeypatch.setattr(progress, "time", made)
    return made


def test_a_log_file_gets_a_line_now_and_then(clock, capsys):
    with track(total=100, unit="step", label="train", initial=10) as shown:
        for step in range(90):
            clock.now += 1
            shown.note(f"loss={step}")
            shown.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "train: 40 of 100 steps, 0:30 gone, 1:00 left, 1 steps/s, loss=29",
        "train: 70 of 100 steps, 1:00 gone, 0:30 left, 1 steps/s, loss=59",
        "train: 100 of 100 steps, 1:30 gone, 1 steps/s, loss=89",
    ]


def test_short_work_has_one_line_and_none_where_nothing_is_shown_or_done(clock, capsys):
    assert list(track_each(iter("abc"), total=3, unit="volume")) == list("abc")
    assert capsys.readouterr().err.startswith("3 of 3 volumes, 0:00 gone")
    for options in ({"show": False}, {"initial": 5}):
        with track(total=5, unit="step", **options) as shown:
            shown.update(0 if "initial" in options else 5)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert is_interactive(terminal)
    with track(total=4, unit="step", label="train") as shown:
        shown.note("loss=0.5")
        shown.update(4)
        assert shown.n == 4
    assert "\r" in terminal.getvalue()
    assert "4/4" in terminal.getvalue()
    assert "loss=0.5" in terminal.getvalue()


def test_an_output_that_nobody_reads_stops_no_work(monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Gone())
    with track(total=1, unit="step") as shown:
        shown.update()


def test_short_work_shows_nothing(capsys):
    assert list(track_each(range(3), total=3, unit="finding", delay=60.0)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    list(track_each(range(3), total=3, unit="finding"))
    assert "3 of 3 findings" in capsys.readouterr().err
