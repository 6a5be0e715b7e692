"""Every config that is shipped: started, stopped, and started again by the same words."""

import json
import signal

import pytest

from medclip_jax import pipeline
from medclip_jax.cli.main import main
from medclip_jax.sweeps.units import expand, write
from medclip_jax.training.config import load_config, shipped_configs, to_json
from medclip_jax.training.status import read_status
from medclip_jax.training.workdir import Workdir
from tests.tiny_run import FINDINGS, make_shards

FOLDER = shipped_configs()
NAMES = sorted(
    str(path.relative_to(FOLDER.parent))
    for path in FOLDER.rglob("*.py")
    if "def get_config" in path.read_text() and path.parent.name != "evaluation"
)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_run_wrote_is_what_the_same_words_say(name, tmp_path):
    """As `medclip train` and `medclip sweep` compare them, and with what an earlier version wrote."""
    shards = "data.shards=shards"
    workdir = Workdir(tmp_path / "run")
    workdir.write_config(load_config(name, [shards]))
    workdir.check_config(load_config(name, [shards]), resuming=True)
    earlier = json.loads(workdir.config_file.read_text())
    for section, key in (("text", "some_statements"), ("text", "impression")):
        if not earlier["data"][section][key]:
            del earlier["data"][section][key]
    if not earlier["optimizer"]["warmup_fraction"]:
        del earlier["optimizer"]["warmup_fraction"]
    workdir.config_file.write_text(json.dumps(earlier))
    workdir.check_config(load_config(name, [shards]), resuming=True)

    out = tmp_path / "sweep"
    for _ in range(2):
        units = expand(name, out, ["seed=0,1"], settings=[shards])
        write(units, out)
        for unit in units:
            (unit.folder / "checkpoints" / "1").mkdir(parents=True, exist_ok=True)
    with pytest.raises(ValueError, match=r"config\.optimizer\.weight_decay"):
        write(expand(name, out, ["seed=0"], settings=[shards, "optimizer.weight_decay=0.3"]), out)


def test_a_section_that_a_file_replaces_is_whole_again(tmp_path):
    """Fields that it leaves out have their defaults, weights of texts 0; unknown ones are refused."""
    file = tmp_path / "run.py"
    text = (
        "from medclip_jax.objectives import mae\n"
        "from medclip_jax.training.config import base_config\n"
        "def get_config():\n"
        "    config = base_config()\n"
        "    config.objective = mae.default_config()\n"
        "    config.data.text = {'statements': 2.0}\n"
        "    config.ema = {}\n"
        "    config.objective.decoder = {'depth': 2}\n"
        "    return config\n"
    )
    file.write_text(text)
    config = load_config(file)
    assert {name: weight for name, weight in config.data.text.items() if weight} == {"statements": 2.0}
    assert len(config.data.text) == 5
    assert to_json(config.ema) == {"decay": 0.0}
    assert to_json(config.objective.decoder) == {"width": 384, "depth": 2, "heads": 6}
    for wrong, message in (
        ("{'reprot': 1.0}", r"no config\.data\.text\.reprot. Did you mean config\.data\.text\.report"),
        ("{'report': 'a lot'}", r"config\.data\.text\.report is a float"),
        ("{'report': -1.0}", r"config\.data\.text\.report=-1\.0: it must be a number of 0 or more"),
    ):
        file.write_text(text.replace("{'statements': 2.0}", wrong))
        with pytest.raises(ValueError, match=message):
            load_config(file)
    file.write_text(text.replace("config.ema = {}", "config.ema = 3"))
    with pytest.raises(ValueError, match=r"run\.py:7: config\.ema is a section"):
        load_config(file)


def small(name):
    """Words that make a config train on tiny shards in seconds."""
    config = load_config(name)
    words = {
        "data.prepare.shape": (),  # any shards will do
        "steps": 3,
        "epochs": 0,
        "batch_size": 8,
        "checkpoint.every_steps": 1,
        "optimizer.warmup_steps": 0,
        "evaluation.evaluators": {},
        "log.every_steps": 1,
        "log.tensorboard": False,
        "data.text_length": 24,
        "objective.vision.width": 24,
        "objective.vision.depth": 1,
        "objective.vision.heads": 2,
        "objective.vision.patch": (4, 8, 8),
        "objective.vision.dtype": "float32",
    }
    if "text" in config.objective:
        words |= {"objective.text.width": 24, "objective.text.depth": 1, "objective.text.heads": 2}
    if "embedding_width" in config.objective:
        words["objective.embedding_width"] = 16
    if "findings" in config.objective:
        words["objective.findings"] = FINDINGS
    return [f"--config.{name}={value}" for name, value in words.items()]


@pytest.fixture
def quiet_signals():
    """`medclip train` listens for SIGTERM from then on."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("name", ["configs/cardiac_clip/contrastive.py"])
def test_a_run_that_is_killed_resumes_by_the_same_words(name, tmp_path, monkeypatch, quiet_signals):
    make_shards(tmp_path / "shards")
    command = ["train", "--config", name, "--workdir", str(tmp_path / "run"), *small(name)]
    command.append(f"--config.data.shards={tmp_path / 'shards'}")
    batches = pipeline.train_batches

    def struck(*arguments, **options):
        for number, batch in enumerate(batches(*arguments, **options)):
            if number == 2:
                raise SystemError("killed")
            yield batch

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "train_batches", struck)
        with pytest.raises(SystemError, match="killed"):
            main(command)
    assert main([*command, "--config.optimizer.weight_decay=0.3"]) == 2
    assert main(command) == 0
    status = read_status(tmp_path / "run")
    assert (status.state, status.step, status.steps) == ("finished", 3, 3)
    assert [record["step"] for record in status.records] == [1, 2, 3]
    # Refused for another config, the run is still what it was.
    assert main([*command, "--config.optimizer.weight_decay=0.3"]) == 2
    assert read_status(tmp_path / "run").state == "finished"
    # Once more, with nothing left to do.
    assert main(command) == 0
    assert read_status(tmp_path / "run").state == "finished"
