import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import resumable
from flax import nnx
from toy import SPEC, Toy, Words, make_config, make_data, make_layout, make_records

from medclip_jax.evaluation import run as evaluation_run
from medclip_jax.evaluation.embeddings import embed_split
from medclip_jax.parameters import flatten, merge, split
from medclip_jax.pipeline import train_batches
from medclip_jax.training.checkpoints import latest_step, restore_weights
from medclip_jax.training.lock import WorkdirInUse, WorkdirLock
from medclip_jax.training.loop import Data, train
from medclip_jax.training.nonfinite import NonFiniteError
from medclip_jax.training.status import read_status

HERE = Path(__file__).parent


def metrics(workdir, exact=True):
    """Logged lines by step, without what depends on the clock."""
    clock = {"volumes_per_second", "seconds_per_step", "input_wait", "goodput", "evaluation_seconds"}
    lines = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in clock} for line in lines]


def assert_equal_runs(a, b):
    assert metrics(a) == metrics(b)
    for ema in (False, True):
        one, two = (flatten(restore_weights(workdir, ema=ema)) for workdir in (a, b))
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], two[name], err_msg=name)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run of `resumable`, uninterrupted."""
    workdir = tmp_path_factory.mktemp("straight")
    resumable.run(workdir)
    return workdir


def start(workdir, step, how):
    return subprocess.run(
        [sys.executable, str(HERE / "resumable.py"), str(workdir), str(step), how],
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_killed_run_resumes_to_the_bit(straight, tmp_path):
    killed = start(tmp_path, 15, "SIGKILL")
    assert killed.returncode == -9
    assert latest_step(tmp_path) in (6, 12)
    resumable.run(tmp_path)
    assert [line["step"] for line in metrics(straight)] == list(range(1, 21))
    assert_equal_runs(straight, tmp_path)


def test_sigterm_saves_and_ends_well(straight, tmp_path):
    stopped = start(tmp_path, 9, "SIGTERM")
    assert stopped.returncode == 0, stopped.stderr
    assert 0 < latest_step(tmp_path) < 20
    assert f"saved at step {latest_step(tmp_path)} of 20" in stopped.stdout + stopped.stderr
    resumable.run(tmp_path)
    assert_equal_runs(straight, tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short finished run with its returned metrics."""
    workdir = tmp_path_factory.mktemp("finished")
    last = train(make_config(steps=40), workdir, data=make_data(), objective_class=Toy)
    return workdir, last


def test_trains_and_the_loss_falls(finished):
    workdir, last = finished
    lines = metrics(workdir)
    assert [line["step"] for line in lines] == list(range(1, 41))
    assert last["loss"] < 0.6 * lines[0]["loss"]
    assert {"learning_rate", "gradient_norm", "update_norm", "parameter_norm", "goodput"} <= last.keys()
    assert json.loads((workdir / "config.json").read_text())["steps"] == 40


def test_a_finished_run_is_left_alone(finished):
    workdir, last = finished
    before = metrics(workdir)
    again = train(make_config(steps=40), workdir, data=make_data(), objective_class=Toy)
    assert again == last
    assert metrics(workdir) == before


def test_another_config_is_refused_and_the_keys_are_named(finished):
    workdir, _ = finished
    other = make_config(steps=50, optimizer__learning_rate=0.5, objective__width=4)
    with pytest.raises(ValueError, match=r"config\.objective\.width: 8 there, 4 now") as error:
        train(other, workdir, data=make_data(), objective_class=Toy)
    assert "config.optimizer.learning_rate: 0.01 there, 0.5 now" in str(error.value)
    assert "config.steps" not in str(error.value)


def test_a_refused_start_leaves_a_finished_run_finished(finished):
    workdir, _ = finished
    config, beat = (workdir / "config.json").read_text(), (workdir / "heartbeat.json").read_text()
    for changes in ({"objective__width": 4}, {"batch_size": 12}):
        with pytest.raises(ValueError, match=r"width|batch_size"):
            train(make_config(steps=50, **changes), workdir, data=make_data(), objective_class=Toy)
    assert (workdir / "config.json").read_text() == config
    assert json.loads((workdir / "heartbeat.json").read_text()) == json.loads(beat)
    assert read_status(workdir).state == "finished"


def test_a_second_start_is_refused_and_writes_nothing(tmp_path):
    with WorkdirLock(tmp_path), pytest.raises(WorkdirInUse, match="give another --workdir"):
        train(make_config(), tmp_path, data=make_data(), objective_class=Toy)
    assert [path.name for path in tmp_path.iterdir()] == ["lock-1.json"]


def test_other_data_is_refused(finished):
    workdir, _ = finished
    with pytest.raises(ValueError, match="24 training samples there, 10 now"):
        train(make_config(steps=50), workdir, data=make_data(10), objective_class=Toy)


def test_a_second_stage_starts_from_the_first(finished, tmp_path):
    workdir, _ = finished
    config = make_config(steps=1, optimizer__learning_rate=0.0, optimizer__weight_decay=0.0)
    config.initial_weights.update({"workdir": str(workdir), "include": (r"^vision/",)})
    train(config, tmp_path, data=make_data(), objective_class=Toy)
    first, second = flatten(restore_weights(workdir)), flatten(restore_weights(tmp_path))
    for name in first:
        assert (
            np.array_equal(first[name], second[name]) == name.startswith("vision/") or not first[name].any()
        )


def test_names_can_be_mapped_between_stages(finished, tmp_path):
    workdir, _ = finished
    config = make_config(steps=1, optimizer__learning_rate=0.0)
    config.initial_weights.update(
        {"workdir": str(workdir), "include": (r"^vision/out/",), "rename": ((r"^vision/", "text/"),)}
    )
    train(config, tmp_path, data=make_data(), objective_class=Toy)
    first, second = flatten(restore_weights(workdir)), flatten(restore_weights(tmp_path))
    np.testing.assert_array_equal(first["vision/out/kernel"], second["text/out/kernel"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"include": (r"^visoin/",)}, r"'\^visoin/' matches no parameter"),
        ({"rename": ((r"^vision/", "image/"),)}, r"'image/.*' \(nearest here: "),
        (
            {"include": (r"^vision/hidden/bias",), "rename": ((r"vision/hidden/bias", "text/out/kernel"),)},
            "has shape",
        ),
    ],
)
def test_weights_that_do_not_fit_say_why(finished, tmp_path, changes, message):
    config = make_config()
    config.initial_weights.update({"workdir": str(finished[0]), **changes})
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path, data=make_data(), objective_class=Toy)


def test_a_nan_names_its_origin_and_samples_and_keeps_the_last_good_checkpoint(tmp_path):
    # A sample that this order shows at step 4 for the first time.
    config = make_config(steps=12, batch_size=2, mesh__data=2, checkpoint__every_steps=2)
    batches = train_batches(make_records(24), make_layout(config), seed=0, batch_size=2)
    order = [next(batches)["sample"].tolist() for _ in range(4)]
    batches.close()
    config.objective.poison = order[3][0]
    with pytest.raises(NonFiniteError) as error:
        train(config, tmp_path, data=make_data(), objective_class=Toy)
    message = str(error.value)
    assert "step 4 is not finite. First in the loss (nan) through terms/contrast" in message
    assert "gradients of" in message
    assert "logit_scale" in message
    assert f"record indices): {order[3][0]}, {order[3][1]}; not finite after encode: {order[3][0]}" in message
    assert latest_step(tmp_path) == 2
    assert all(np.isfinite(leaf).all() for leaf in flatten(restore_weights(tmp_path)).values())
    assert metrics(tmp_path)[-1]["loss"] is None


def test_evaluators_run_in_the_loop_once_each(tmp_path, monkeypatch):
    calls = []

    def evaluate(embedder, evaluators, **options):
        volume = {"volume": np.zeros(SPEC.shape, np.int16)}
        assert embedder.volumes(2, lambda index: volume).shape == (2, 8)
        calls.append((dict(evaluators), options["split"], embedder.text_length, embedder.batch_size))
        if len(calls) == 2 and fail:
            raise RuntimeError("stopped in the evaluation")
        return {"zero_shot/auroc": 0.5 + len(calls)}

    monkeypatch.setattr(evaluation_run, "evaluate", evaluate)
    config = make_config(steps=5, mesh__data=1)
    with config.unlocked():
        config.evaluation.evaluators = {"zero_shot": {"bootstrap": 3}}
    config.evaluation.every_steps = 3
    fail = True
    with pytest.raises(RuntimeError, match="stopped in the evaluation"):
        train(config, tmp_path, data=make_data(), objective_class=Toy)
    assert latest_step(tmp_path) == 5  # saved before it was evaluated
    fail = False
    last = train(config, tmp_path, data=make_data(), objective_class=Toy)
    assert last["zero_shot/auroc"] == 3.5
    assert last["loss"] > 0
    assert [line["step"] for line in metrics(tmp_path) if "zero_shot/auroc" in line] == [3, 5]
    assert calls[0] == ({"zero_shot": config.evaluation.evaluators.zero_shot}, "validation", 6, 16)


def test_all_evaluations_of_a_run_compile_once_and_see_the_present_parameters(tmp_path, monkeypatch):
    traced, seen = [], []

    class Counted(Toy):
        def embed_volumes(self, inputs):
            traced.append("volumes")
            return super().embed_volumes(inputs)

        def embed_texts(self, tokens):
            traced.append("texts")
            return super().embed_texts(tokens)

    def evaluate(embedder, evaluators, **options):
        records = [{**record, "patient": 1} for record in make_records(6)]
        split = embed_split("validation", records, embedder)
        seen.append((split.volumes, embedder.texts(split.texts["report"])))
        return {}

    monkeypatch.setattr(evaluation_run, "evaluate", evaluate)
    config = make_config(steps=6, mesh__data=1)
    with config.unlocked():
        config.evaluation.evaluators = {"zero_shot": {}}
    config.evaluation.every_steps = 2
    train(config, tmp_path, data=make_data(), objective_class=Counted)
    assert traced == ["volumes", "texts"]
    for one, other in itertools.combinations(seen, 2):
        assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(one, other, strict=True))
    trained = Counted(config.objective, SPEC, rngs=nnx.Rngs(0))
    trained = merge(split(trained)[0], restore_weights(tmp_path))
    volumes = np.stack([record["volume"] for record in make_records(6)])
    np.testing.assert_allclose(seen[-1][0], trained.embed_volumes({"volume": volumes}).mean, atol=1e-5)


def test_what_the_data_cannot_give_is_said_before_the_model_is_built(tmp_path):
    class Organic(Toy):
        @classmethod
        def batch_fields(cls, config):
            return ("volume", "organs")

        def __init__(self, config, spec, *, rngs):
            raise AssertionError("built")

    with pytest.raises(ValueError, match="batch field 'organs': the shards hold no organs"):
        train(make_config(), tmp_path, data=make_data(), objective_class=Organic)
    assert latest_step(tmp_path) is None


def test_an_empty_set_and_a_batch_that_does_not_fit_are_errors(tmp_path):
    with pytest.raises(ValueError, match="split is empty"):
        train(make_config(), tmp_path, data=Data([], SPEC, Words()), objective_class=Toy)
    with pytest.raises(ValueError, match="cannot be split over 8 devices"):
        train(make_config(batch_size=12), tmp_path, data=make_data(), objective_class=Toy)
    with pytest.raises(ValueError, match=r"config\.data\.shards is empty"):
        train(make_config(), tmp_path, objective_class=Toy)


def test_eight_devices_resume_where_one_stopped(tmp_path):
    for steps, devices in ((4, 1), (8, 8)):
        config = make_config(steps=steps, mesh__data=devices, optimizer__schedule="constant")
        train(config, tmp_path / "moved", data=make_data(), objective_class=Toy)
    train(config, tmp_path / "stayed", data=make_data(), objective_class=Toy)
    moved, stayed = metrics(tmp_path / "moved"), metrics(tmp_path / "stayed")
    assert [line["terms/sample_sum"] for line in moved] == [line["terms/sample_sum"] for line in stayed]
    # Float32 after four updates of Adam.
    np.testing.assert_allclose([m["loss"] for m in moved], [m["loss"] for m in stayed], rtol=1e-5)
