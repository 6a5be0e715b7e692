"""Classifiers on the loop: from pretrained weights, frozen, stopped and resumed, loaded and exported."""

import json

import numpy as np
import pytest

import medclip_jax
from medclip_jax import pipeline
from medclip_jax.cli.main import main
from medclip_jax.objectives import supervised
from medclip_jax.parameters import flatten
from medclip_jax.training.checkpoints import best_step, restore_weights
from medclip_jax.training.config import base_config
from medclip_jax.training.loop import train
from tests.training.test_loop import assert_equal_runs

pytestmark = pytest.mark.slow


def config_of(tiny_run, **objective):
    """A head on the tower of the tiny run's contrastive model."""
    config = base_config()
    config.objective = supervised.default_config()
    config.objective.vision.update(
        patch=(4, 8, 8), width=24, depth=2, heads=2, pooling="mean", dtype="float32"
    )
    config.objective.update(objective)
    config.data.shards = str(tiny_run / "shards")
    config.initial_weights.update(workdir=str(tiny_run / "workdir"), include=(r"^vision/",))
    config.batch_size, config.steps = 8, 8
    config.optimizer.learning_rate = 0.02
    config.optimizer.multipliers = ((r"^vision/", 0.05),)
    config.evaluation.split, config.evaluation.every_steps = "test", 2
    config.evaluation.evaluators = {"prediction": {"draws": 0}}
    config.evaluation.best.metric = "prediction/auroc_mean"
    config.log.tensorboard = config.log.progress = False
    return config


@pytest.fixture(scope="module")
def finished(tiny_run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("classifier")
    last = train(config_of(tiny_run), workdir)
    return workdir, last


def test_a_stopped_classifier_resumes_to_the_bit(tiny_run, finished, tmp_path, monkeypatch):
    batches = pipeline.train_batches

    def broken(*arguments, **options):
        for count, batch in enumerate(batches(*arguments, **options)):
            if count == 5:
                raise KeyboardInterrupt
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "train_batches", broken)
        with pytest.raises(KeyboardInterrupt):
            train(config_of(tiny_run), tmp_path)
    train(config_of(tiny_run), tmp_path)
    assert_equal_runs(finished[0], tmp_path)
    assert best_step(tmp_path) == best_step(finished[0])


def test_the_command_and_a_loaded_model_say_what_the_loop_said(tiny_run, finished, tmp_path, capsys):
    from medclip_jax.shards.read import open_split

    workdir, _ = finished
    file = tmp_path / "numbers.json"
    words = ["evaluate", "--workdir", str(workdir), "--evaluators", "prediction", "--json", str(file)]
    assert main([*words, "--set", "prediction.draws=0"]) == 0
    printed = capsys.readouterr().out
    assert "chosen by prediction/auroc_mean on 'test', the split that is scored" in printed
    numbers = json.loads(file.read_text())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    (logged,) = (line for line in lines if line["step"] == best_step(workdir) and "prediction/crg" in line)
    for name in ("prediction/auroc_mean", "prediction/auroc/cardiomegaly", "prediction/f1/cardiomegaly"):
        assert numbers["metrics"][name] == pytest.approx(logged[name], abs=1e-6), name
    model = medclip_jax.load(workdir, progress=False)
    record = open_split(tiny_run / "shards", "test")[3]
    told = model.predict(np.array(record["volume"]))
    scores = numbers["scores"]["prediction"]
    place = scores["ids"].index(record["id"].decode() if isinstance(record["id"], bytes) else record["id"])
    assert told["cardiomegaly"] == pytest.approx(
        scores["findings"]["cardiomegaly"]["scores"][place], abs=1e-5
    )


def test_a_frozen_tower_stays_as_it_was(tiny_run, tmp_path):
    config = config_of(tiny_run, features="asap")
    config.optimizer.multipliers, config.optimizer.frozen = (), (r"^vision/",)
    config.steps = 2
    train(config, tmp_path)
    before, after = (flatten(restore_weights(where)) for where in (tiny_run / "workdir", tmp_path))
    tower = [name for name in after if name.startswith("vision/")]
    assert tower
    for name in tower:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    assert np.any(after["head/out/bias"] != 0)


def test_an_exported_classifier_predicts_the_same_in_pytorch(tiny_run, finished, tmp_path):
    torch = pytest.importorskip("torch")
    from medclip_jax.export.parity import load_torch
    from medclip_jax.shards.read import open_split

    workdir, _ = finished
    assert main(["export", "--workdir", str(workdir), "--out", str(tmp_path / "model")]) == 0
    volumes = np.stack([np.array(open_split(tiny_run / "shards", "test")[i]["volume"]) for i in range(3)])
    expected = medclip_jax.load(workdir, progress=False).predict(volumes)
    again = medclip_jax.load(tmp_path / "model", progress=False).predict(volumes)
    twin = load_torch(tmp_path / "model").predict(torch.from_numpy(volumes))
    for one, two, three in zip(expected, again, twin, strict=True):
        assert one == pytest.approx(two, abs=1e-5)
        assert one == pytest.approx(three, abs=1e-5)
