"""From where a run starts, and that it says so."""

import json
import logging

import numpy as np
import pytest
import together
from test_loop import metrics
from toy import Toy, make_config, make_data, make_layout, make_records

from medclip_jax.parameters import flatten
from medclip_jax.pipeline import train_batches
from medclip_jax.training import loop
from medclip_jax.training.checkpoints import latest_step, restore_weights
from medclip_jax.training.logs import Logs
from medclip_jax.training.loop import train
from medclip_jax.training.workdir import Workdir


def start(workdir, steps, *, resume="", weights="", **changes):
    config = make_config(steps=steps, mesh__data=1, optimizer__schedule="constant", **changes)
    config.checkpoint.every_steps = 2
    config.checkpoint.resume, config.initial_weights.workdir = str(resume), str(weights)
    return train(config, workdir, data=make_data(), objective_class=Toy)


def same_parameters(one, two):
    one, two = flatten(restore_weights(one)), flatten(restore_weights(two))
    return all(np.array_equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of four steps, with checkpoints at 2 and 4, and one of six."""
    folder = tmp_path_factory.mktemp("runs")
    start(folder / "four", 4)
    start(folder / "six", 6)
    return folder


def test_own_checkpoint_then_explicit_one_then_weights_then_scratch(runs, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    where = {"resume": runs / "four", "weights": runs / "six"}
    files = sorted(path.name for path in (runs / "four").rglob("*"))

    start(tmp_path / "scratch", 1)
    assert "starting from scratch, config.seed 0" in caplog.text
    start(tmp_path / "weights", 1, weights=where["weights"], optimizer__learning_rate=1e-30)
    assert f"starting from config.initial_weights, {runs / 'six'}" in caplog.text
    assert metrics(tmp_path / "weights")[0]["loss"] < metrics(tmp_path / "scratch")[0]["loss"]

    start(tmp_path / "resumed", 6, **where)
    assert f"resuming from config.checkpoint.resume, {runs / 'four'}" in caplog.text
    # To the bit what a run becomes that was never moved, its optimizer and samples included.
    assert same_parameters(tmp_path / "resumed", runs / "six")
    assert metrics(tmp_path / "resumed") == metrics(runs / "six")[4:]

    caplog.clear()
    start(tmp_path / "resumed", 7, **where)
    assert f"resuming from this workdir's own checkpoint, {tmp_path / 'resumed'}" in caplog.text
    assert [line["step"] for line in metrics(tmp_path / "resumed")] == [5, 6, 7]
    # The other run is only read.
    assert sorted(path.name for path in (runs / "four").rglob("*")) == files


def test_one_checkpoint_of_a_run_can_be_named(runs, tmp_path):
    start(tmp_path, 3, resume=runs / "four" / "checkpoints" / "2")
    assert [line["step"] for line in metrics(tmp_path)] == [3]
    assert metrics(tmp_path)[0]["loss"] == metrics(runs / "six")[2]["loss"]


def test_what_cannot_be_resumed_says_why(runs, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="give the --workdir of a run, or one of its checkpoints/STEP"
    ):
        start(tmp_path / "a", 6, resume=tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        start(tmp_path / "b", 6, resume=tmp_path / "empty")
    with pytest.raises(ValueError, match=r"config\.optimizer\.learning_rate: 0\.01 there, 0\.5 now"):
        start(tmp_path / "c", 6, resume=runs / "four", optimizer__learning_rate=0.5)
    assert all(latest_step(tmp_path / name) is None for name in "abc")


def test_calibration_sees_what_is_encoded_at_once(tmp_path):
    def first_bias(workdir, microbatches):
        config = together.config(mesh__data=1, microbatches=microbatches, steps=1, optimizer__learning_rate=0)
        together.run(workdir, config)
        return flatten(restore_weights(workdir))["vision/hidden/bias"]

    config = together.config()
    for microbatches in (1, 2):
        size = 8 // microbatches
        batches = train_batches(make_records(24), make_layout(config), seed=0, batch_size=size)
        batch = next(batches)
        batches.close()
        volumes = batch["volume"].astype(np.float32) / 1000
        expected = -volumes.mean() - 0.1 * batch["sample"].std()
        found = first_bias(tmp_path / str(microbatches), microbatches)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_runs_of_other_seeds_are_one_program_and_draw_anew(tmp_path, monkeypatch):
    compiled = loop._Run._compile
    programs = []

    def noted(run, *arguments):
        programs.append(run.model.step.lower(*arguments).as_text())
        return compiled(run, *arguments)

    monkeypatch.setattr(loop._Run, "_compile", noted)
    # Steps of no size from the same weights: what differs are samples and noise.
    start(tmp_path / "weights", 1)
    for seed in (0, 1):
        start(
            tmp_path / str(seed), 1, seed=seed, weights=tmp_path / "weights", optimizer__learning_rate=1e-30
        )
    assert programs[1] == programs[2]
    assert metrics(tmp_path / "0")[0]["loss"] != metrics(tmp_path / "1")[0]["loss"]


def test_only_the_first_process_writes(tmp_path, capsys):
    config = make_config(log__progress=True, log__tensorboard=True)
    workdir = Workdir(tmp_path)
    logs = Logs(workdir, config, start=0, steps=3, writing=False)
    logs.write(1, {"loss": 1.0})
    logs.advance(loss="1")
    logs.say("something")
    logs.close()
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr() == ("", "")
    logs = Logs(workdir, config, start=0, steps=3)
    logs.write(1, {"loss": 1.0})
    logs.close()
    assert json.loads(workdir.metrics_file.read_text()) == {"step": 1, "loss": 1.0}


def test_metrics_of_a_step_are_found_and_later_ones_forgotten(tmp_path):
    workdir = Workdir(tmp_path)
    assert workdir.metrics_at(3) == {}
    lines = [{"step": 2, "loss": 3.0}, {"step": 3, "loss": 2.0}, {"step": 3, "auroc": None}, {"step": 4}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    workdir.metrics_file.write_text(text + '{"step": 5, "lo')
    found = workdir.metrics_at(3)
    assert (found.keys(), found["loss"]) == ({"loss", "auroc"}, 2.0)
    assert np.isnan(found["auroc"])
    workdir.forget_metrics_after(3)
    assert [json.loads(line) for line in workdir.metrics_file.read_text().splitlines()] == lines[:3]
