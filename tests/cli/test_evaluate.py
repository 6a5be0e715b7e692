"""medclip evaluate, on a tiny trained model."""

import json
import re
import shutil

import pytest

from medclip_jax.cli.main import main


def test_equals_the_evaluation_in_the_training_loop(tiny_run, tmp_path):
    lines = [json.loads(line) for line in (tiny_run / "workdir/metrics.jsonl").read_text().splitlines()]
    logged = {name: value for line in lines for name, value in line.items() if name.startswith("zero_shot/")}
    numbers = tmp_path / "numbers.json"
    assert main(["evaluate", "--workdir", str(tiny_run / "workdir"), "--json", str(numbers)]) == 0
    found = json.loads(numbers.read_text())["metrics"]
    assert found.keys() == logged.keys()
    assert found == pytest.approx(logged, abs=1e-9)


def test_tables_json_and_page(tiny_run, tmp_path, capsys):
    page, numbers = tmp_path / "page.html", tmp_path / "out" / "numbers.json"
    arguments = ["evaluate", "--workdir", str(tiny_run / "workdir"), "--set", "zero_shot.draws=20"]
    arguments += ["--evaluators", "zero_shot,retrieval,ordinal", "--set", "ordinal.draws=0"]
    arguments += ["--set", "zero_shot.threshold=train"]
    assert main([*arguments, "--page", str(page), "--json", str(numbers)]) == 0
    printed = capsys.readouterr().out
    for part in ("Zero-shot classification", "Retrieval", "Keyword to image", "Ordered grades"):
        assert part in printed
    assert "12 volumes" in printed
    assert "volume mean, text cls" in printed
    found = json.loads(numbers.read_text())
    assert found["volumes"] == 12
    assert found["metrics"]["retrieval/image_to_text/R@50"] is None
    assert 0 <= found["metrics"]["zero_shot/auroc_mean"] <= 1
    assert found["conditions"]["zero_shot"]["threshold"] == "best f1 on split 'train'"
    assert "data:image/png;base64" in page.read_text()


def test_override_without_value(tiny_run, capsys):
    assert main(["evaluate", "--workdir", str(tiny_run / "workdir"), "--set", "draws"]) == 2
    assert "EVALUATOR.SETTING=VALUE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "tset"], "no split 'tset' in .* Did you mean 'test'"),
        (["--split", "test[:50%]+valdation"], "no split 'valdation'"),
        (["--evaluators", "zero_shto"], "no evaluator 'zero_shto' .*Did you mean zero_shot"),
        (["--set", "zero_shot.drawz=1"], "Did you mean zero_shot.draws"),
        (["--set", "zero_shot.draws=few"], "a whole number, 0 or more"),
        (["--set", "zero_shot.draws=-1"], "a whole number, 0 or more"),
        (["--set", "zero_shot.labels=label"], "Did you mean labels"),
        (["--set", "zero_shot.threshold=tran"], "zero_shot.threshold: no split 'tran'"),
        (["--split", "train", "--set", "zero_shot.threshold=train"], "is the split being scored"),
        (["--protocol", "ct_rate/maen7"], "no protocol 'ct_rate/maen7'. Did you mean ct_rate/mean7"),
        (["--protocol", "mean7"], "Did you mean ct_rate/mean7"),
        (["--protocol", "ct_rate/mean7", "--set", "mean7.draws=0"], "with one of ct_rate/mean7 as EVALUATOR"),
        (["--protocol", "ct_rate/mean7", "--set", "zero_shot.names=ct_rat"], "Did you mean ct_rate"),
        (["--set", "zero_shot.label_set=ct_rate_17"], "Did you mean ct_rate_1"),
        (["--set", "zero_shot.findings=('cardiomegali',)"], "no column for cardiomegali"),
        (["--evaluators", "retrieval", "--set", "retrieval.ks=5"], "a list, such as"),
        (["--evaluators", "retrieval", "--set", "retrieval.text=impresion"], "Did you mean impression"),
        (["--evaluators", "ordinal", "--set", "ordinal.finding=calcium"], "unknown finding 'calcium'"),
        (["--evaluators", "probe"], "probe.validation: no split 'validation'"),
        (["--evaluators", "probe", "--set", "probe.train=test"], "probe.train='test' is the split being"),
        (["--evaluators", "probe", "--set", "probe.shares=(0.1,2)"], "above 0 and up to 1"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--step", "99"], "no checkpoint of step 99 in .*: there is 2"),
    ],
)
def test_a_mistake_is_found_before_a_model_is_built(tiny_run, capsys, monkeypatch, arguments, message):
    from medclip_jax import objectives

    monkeypatch.setattr(objectives, "create", lambda *_, **__: pytest.fail("a model was built"))
    assert main(["evaluate", "--workdir", str(tiny_run / "workdir"), *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.fixture(scope="module")
def coarser(tmp_path_factory):
    """Shards of the shape of the tiny run's and of another spacing."""
    from medclip_jax.shards.record import Schema
    from medclip_jax.shards.write import write_shards
    from tests.tiny_run import FINDINGS, SHAPE, made_records

    folder = tmp_path_factory.mktemp("coarser") / "shards"
    schema = Schema(SHAPE, (10.0, 6.0, 6.0), FINDINGS, (), ("cac_grade",))
    write_shards(folder, schema, {"test": list(made_records(6, 3))})
    return folder


def test_another_grid_than_the_training_is_refused(tiny_run, coarser, capsys):
    arguments = ["evaluate", "--workdir", str(tiny_run / "workdir"), "--shards", str(coarser)]
    arguments += ["--evaluators", "retrieval"]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "spacing 10 x 6 x 6 mm instead of 8 x 6 x 6 mm" in message
    assert "--shape 8 16 16 --spacing 8 6 6, or score" in message
    assert main([*arguments, "--other-grid"]) == 0


def test_a_run_whose_shards_were_prepared_anew(tiny_run, coarser, tmp_path, capsys):
    workdir = shutil.copytree(tiny_run / "workdir", tmp_path / "workdir")
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["shards"] = str(coarser)
    (workdir / "config.json").write_text(json.dumps(config))
    assert main(["evaluate", "--workdir", str(workdir)]) == 2
    assert "not of the kind that the model was trained on" in capsys.readouterr().err


def test_a_mistyped_workdir(tiny_run, capsys):
    assert main(["evaluate", "--workdir", str(tiny_run / "workdr")]) == 2
    assert f"did you mean {tiny_run / 'workdir'}?" in capsys.readouterr().err


def test_an_exported_model_is_scored_on_its_own_grid(tiny_run, coarser, tmp_path, capsys):
    import medclip_jax
    from medclip_jax.export.folder import write_folder

    out = write_folder(medclip_jax.load(tiny_run / "workdir", progress=False), tmp_path / "out")
    arguments = [
        "evaluate",
        "--workdir",
        str(out),
        "--evaluators",
        "retrieval",
        "--set",
        "retrieval.subset=0",
    ]
    assert main([*arguments, "--shards", str(tiny_run / "shards")]) == 0
    assert main([*arguments, "--shards", str(coarser)]) == 2
    assert "spacing 10 x 6 x 6 mm instead of" in capsys.readouterr().err


@pytest.fixture(scope="module")
def masked(tiny_run, tmp_path_factory):
    """The workdir of a masked autoencoder after a step; of 16 training volumes it has seen."""
    from medclip_jax.objectives import mae
    from medclip_jax.training.config import base_config
    from medclip_jax.training.loop import train

    config = base_config()
    config.objective = mae.default_config()
    config.objective.vision.update(
        patch=(4, 8, 8), width=24, depth=1, heads=2, pooling="grid", dtype="float32"
    )
    config.objective.decoder.update(width=16, depth=1, heads=2)
    config.data.shards = str(tiny_run / "shards")
    config.batch_size, config.steps, config.evaluation.split = 8, 1, "test"
    config.seed = 1  # other weights than those it is compared with
    config.log.progress = config.log.tensorboard = False
    # In the loop, on splits of its own, and without one that is not there.
    config.evaluation.evaluators = {"probe": PROBE, "other": {"kind": "probe"}}
    workdir = tmp_path_factory.mktemp("masked") / "workdir"
    train(config, workdir)
    return workdir


PROBE = {"train": "train[:10]", "validation": "train[10:]", "shares": (0.5, 1.0), "draws": 20, "seeds": 2}


def test_a_probe_of_a_masked_autoencoder(masked, tmp_path, capsys):
    page, numbers = tmp_path / "page.html", tmp_path / "numbers.json"
    arguments = ["evaluate", "--workdir", str(masked), "--evaluators", "probe", "--set"]
    arguments += ["probe.baseline=random", "--page", str(page), "--json", str(numbers)]
    assert main(arguments) == 0
    found = json.loads(numbers.read_text())
    lines = [json.loads(line) for line in (masked / "metrics.jsonl").read_text().splitlines()]
    logged = {name: value for line in lines for name, value in line.items() if name.startswith("probe/")}
    assert not any(name.startswith("other/") for line in lines for name in line)
    metrics = found["metrics"]
    assert metrics | logged == pytest.approx(metrics, abs=1e-6)
    known = [metrics[f"probe/{share}/auroc_mean"] for share in ("50%", "100%", "50%", "100%")]
    assert all(0 <= value <= 1 for value in known)
    assert metrics["probe/random/100%/auroc_mean"] != metrics["probe/100%/auroc_mean"]
    assert "2 draws" in found["conditions"]["probe"]["shares"]
    printed = capsys.readouterr().out
    assert "Linear probe: AUROC" in printed
    assert "mean, random init" in printed
    assert "Linear probe" in page.read_text()
