import json
import sys
from pathlib import Path

import pytest

from medclip_jax.cli.main import main
from medclip_jax.planning import ahead
from medclip_jax.shards.settings import PrepareSettings
from tests.tiny_run import make_shards

CONFIG = """
from medclip_jax.objectives import mae
from medclip_jax.training.config import base_config

def get_config():
    config = base_config()
    config.objective = mae.default_config()
    config.data.prepare.update(shape=(16, 32, 32), spacing=(2.0, 1.5, 1.5))
    config.objective.vision.update(patch=(8, 8, 8), width=64, depth=2, heads=2)
    config.objective.decoder.update(width=32, depth=1, heads=2)
    config.batch_size = 64
    config.epochs = 2.0
    return config
"""


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "tiny.py"
    file.write_text(CONFIG)
    return str(file)


def test_a_config_that_fits(config, tmp_path, capsys):
    out = tmp_path / "figures.json"
    assert (
        main(["check", "--config", config, "--chip", "v5e-64", "--samples", "640", "--json", str(out)]) == 0
    )
    text = capsys.readouterr().out
    assert "VERDICT  fits" in text
    assert "BATCH, by config.data.prepare" in text
    found = json.loads(out.read_text())
    assert found["batch"]["volume"] == [[64, 16, 32, 32], "int16"]
    assert found["mesh"] == {"data": 64, "fsdp": 1}
    assert found["steps"] == 20
    assert found["memory"]["total"] == pytest.approx(
        sum(size for name, size in found["memory"].items() if name != "total")
    )
    assert found["terms"] == ["reconstruction"]


def test_one_that_does_not_says_what_to_change(config, tmp_path, capsys):
    out = tmp_path / "figures.json"
    huge = ["--shape", "256,256,256", "--config.batch_size=256", "--config.objective.vision.width=768"]
    assert main(["check", "--config", config, "--json", str(out), *huge]) == 1
    text = capsys.readouterr().out
    assert "DOES NOT FIT" in text
    assert "--config.microbatches=" in text
    found = json.loads(out.read_text())
    assert any(remedy["fits"] for remedy in found["remedies"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mesh", "model=8"], "--mesh data=4,fsdp=2"),
        (["--chip", "h1000"], "Did you mean h100"),
        (["--config.objective.vision.widht=3"], "Did you mean config.objective.vision.width"),
        (["--devices", "3"], "multiple of 3"),
        (["--shape", "16,32"], "three numbers"),
        (["--tpu", "v5e"], "v5e:8x8"),
    ],
)
def test_a_wrong_config_is_one_line(config, capsys, arguments, message):
    assert main(["check", "--config", config, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_without_a_shape_volumes_are_those_that_prepare_makes_by_itself(tmp_path, capsys):
    file = tmp_path / "bare.py"
    file.write_text(CONFIG.replace("shape=(16, 32, 32), ", ""))
    out = tmp_path / "figures.json"
    assert main(["check", "--config", str(file), "--config.batch_size=1", "--json", str(out)]) == 0
    assert "by the defaults of medclip prepare" in capsys.readouterr().out
    assert json.loads(out.read_text())["batch"]["volume"] == [[1, *PrepareSettings().shape], "int16"]


def test_shards_that_are_not_what_the_config_expects_are_refused(config, tmp_path, capsys):
    make_shards(tmp_path / "shards")
    shards = f"--config.data.shards={tmp_path / 'shards'}"
    small = ["--config.objective.vision.patch=(4,8,8)", "--config.batch_size=2"]
    shape = "--config.data.prepare.shape=(128,144,144)"
    assert main(["check", "--config", config, shards, shape, *small]) == 2
    assert "prepare with --shape 128 144 144, or use them" in capsys.readouterr().err
    nothing = ["--config.data.prepare.shape=()", "--config.data.prepare.spacing=()"]
    assert main(["check", "--config", config, shards, *nothing, *small]) == 0


def test_show_config_tells_each_value_and_where_it_is_from(config, tmp_path, capsys):
    for command in (["check"], ["train"]):
        assert main([*command, "--config", config, "--show-config", "--config.steps=4"]) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        found = {line[0]: (line[2], line[-1]) for line in lines}
        assert found["config.steps"] == ("4", "override")
        assert found["config.epochs"] == ("2.0", f"{config}:12")
        assert found["config.optimizer.epsilon"] == ("1e-08", "default")
        assert found["config.objective.vision.width"] == ("64", f"{config}:9")
    assert list(tmp_path.iterdir()) == [Path(config)]
    assert main(["train", "--config", config]) == 2
    assert "--workdir" in capsys.readouterr().err


def test_a_missing_tpu_compiler_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(ValueError, match="medclip_jax\\[tpu\\]"):
        ahead._devices("v5e:2x2", 0)


ORGANS = CONFIG.replace("spacing=(", "organ_cell=4, organs=('heart', 'aorta'), spacing=(")


def test_organs_are_those_that_the_config_expects(tmp_path, capsys):
    file, out = tmp_path / "organs.py", tmp_path / "figures.json"
    text = ORGANS.replace("mae", "hipro_ct").replace(
        "config.objective.decoder.update(width=32, depth=1, heads=2)", ""
    )
    text = text.replace("batch_size = 64", "batch_size = 4\n    config.data.organ_text_length = 7")
    file.write_text(text)
    small = ["--config.objective.text={'width': 32, 'depth': 1, 'heads': 2}", "--json", str(out)]
    assert main(["check", "--config", str(file), *small]) == 0
    batch = json.loads(out.read_text())["batch"]
    assert batch["organs"] == [[4, 2, 4, 8, 8], "uint8"]
    assert batch["organ_tokens"] == [[4, 7], "int32"]
    assert batch["organ"] == [[4], "int32"]
    file.write_text(text.replace("organs=('heart', 'aorta'), ", ""))
    assert main(["check", "--config", str(file), *small]) == 2
    assert "hold no organs" in capsys.readouterr().err


def test_a_shipped_config_is_found_from_anywhere(tmp_path, monkeypatch, capsys):
    """With what it expects of its shards, as `medclip train` finds it."""
    monkeypatch.chdir(tmp_path)
    small = ["objective.vision.depth=1", "objective.decoder.depth=1", "batch_size=1"]
    words = [f"--config.{text}" for text in small]
    assert main(["check", "--config", "configs/cardiac_clip/mae.py", *words]) == 0
    assert "by config.data.prepare" in capsys.readouterr().out
