import json

import pytest

from medclip_jax.cli import status as command
from medclip_jax.cli.main import main
from medclip_jax.training.goodput import BUCKETS, HEARTBEAT
from medclip_jax.training.status import read_status

NOW = 1_000_000.0
COUNTERS = {**dict.fromkeys(BUCKETS, 0.0), "start": 10.0, "input": 5.0, "step": 75.0, "evaluation": 8.0,
            "lost": 2.0, "starts": 2.0}  # fmt: skip


def make_run(folder, *, beat=None, steps=40):
    """A workdir after 20 steps of 4 s."""
    folder.mkdir()
    lines = [
        {"step": step, "loss": 3.0 - step / 10, "volumes_per_second": 2.0, "seconds_per_step": 4.0,
         "input_wait": 0.05} for step in range(1, 21)
    ]  # fmt: skip
    lines.insert(10, {"step": 10, "zero_shot/auroc_mean": 0.75, "evaluation_seconds": 4.0})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 21, "lo')
    (folder / "config.json").write_text(json.dumps({"steps": steps}))
    checkpoint = folder / "checkpoints" / "20"
    checkpoint.mkdir(parents=True)
    (checkpoint / "data").write_bytes(b"0" * 2_500_000)
    (folder / "checkpoints" / "damaged-15").mkdir()
    (folder / "checkpoints" / "25.orbax-checkpoint-tmp").mkdir()
    if beat is not None:
        default = {"state": "running", "time": NOW, "step": 20, "steps": steps, "step_time": NOW - 3,
                   "counters": COUNTERS, "host": "h", "pid": 1}  # fmt: skip
        (folder / HEARTBEAT).write_text(json.dumps(default | beat))
    return folder


@pytest.mark.parametrize(
    ("beat", "later", "state"),
    [
        ({}, 5, "running"),
        ({"step_time": 0}, 5, "starting"),
        ({}, 120, "killed"),
        ({"state": "stopped"}, 120, "stopped"),
        ({"state": "finished"}, 120, "finished"),
        (None, 5, "unknown"),
    ],
)
def test_the_state_follows_from_the_heartbeat(tmp_path, beat, later, state):
    found = read_status(make_run(tmp_path / "run", beat=beat), now=NOW + later)
    assert found.state == state
    assert (found.step, found.steps) == (20, 40)
    assert (found.remaining is not None) == (state in ("running", "starting"))


def test_everything_is_found(tmp_path):
    found = read_status(make_run(tmp_path / "run", beat={}), now=NOW + 5)
    assert (found.silent, found.stalled, found.starts) == (5, 8, 2)
    assert found.goodput == pytest.approx(0.75)
    # 20 steps of 4 s, and 8 s of evaluation for each 80 s of training.
    assert found.remaining == pytest.approx(20 * 4.0 * 1.1)
    assert [(one.step, one.size) for one in found.checkpoints] == [(20, 2_500_000)]
    assert found.damaged == ("damaged-15",)
    assert found.evaluation["zero_shot/auroc_mean"] == 0.75
    assert found.latest["loss"] == pytest.approx(1.0)


def test_one_run_in_full_and_as_a_page(tmp_path, capsys):
    run = make_run(tmp_path / "run", beat={"state": "stopped"})
    assert main(["status", str(run), "--html", str(tmp_path / "page.html")]) == 0
    shown = capsys.readouterr().out
    for part in (
        "stopped",
        "step 20 of 40 (50%)",
        "2 volumes/s",
        "started 2 times",
        "goodput 75.0%",
        "damaged-15: damaged, set aside",
        "2.5 MB",
        "evaluation at step 10",
        "auroc_mean",
    ):
        assert part in shown
    page = (tmp_path / "page.html").read_text()
    for part in ("<img src=", "stopped", "20 / 40", "training that a kill undid", "2.5 MB"):
        assert part in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_several_runs_are_a_line_each(tmp_path, capsys):
    runs = [make_run(tmp_path / name, beat={"state": "finished"}) for name in ("a", "b")]
    assert main(["status", *map(str, runs), str(tmp_path / "nothing")]) == 1
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) == 3
    assert lines[1].split()[1:] == ["finished", "20/40", "-", "2", "75%", "1", "2"]
    assert "no run in" in captured.err
    assert main(["status", str(tmp_path / "nothing")]) == 2


def test_a_curve_that_was_never_logged_names_those_that_were(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    assert main(["status", str(run), "--curves", "lss"]) == 2
    assert "logged no 'lss', but evaluation_seconds, input_wait, loss" in capsys.readouterr().err


def test_a_chart_falls_where_the_numbers_fall():
    rows = command.chart("loss", [(step, 10.0 - step) for step in range(11)], width=8, height=3)
    assert rows[0].strip() == "loss"
    drawn = [row.split("|")[1] for row in rows[1:-1]]
    assert [row.strip("⠀") != "" for row in drawn] == [True] * 3
    begins = [next(place for place, dots in enumerate(row) if dots != "⠀") for row in drawn]
    assert begins == sorted(begins)
    assert begins[0] == 0
    assert drawn[-1][-1] != "⠀"
    assert rows[1].startswith("10")
    assert rows[-1].split() == ["0", "10"]
    flat = command.chart("flat", [(0, 1.0), (5, 1.0)], width=8, height=3)
    assert flat[2].split("|")[1].strip("⠀")
