"""The recipe of configs/strong: adapters beside a frozen encoder, and prompts, survive a kill to the bit."""

import json

import numpy as np
import pytest

from medclip_jax import pipeline
from medclip_jax.cli.main import main
from medclip_jax.parameters import flatten
from medclip_jax.training.checkpoints import latest_step, restore_weights
from tests.tiny_run import make_shards
from tests.training.test_shipped_configs import quiet_signals, small

NAME = "configs/strong/pretrain.py"


def lines(workdir):
    kept = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    names = ("step", "loss", "terms/prompts", "terms/prompt_accuracy", "gradient_norm")
    return [{name: line[name] for name in names if name in line} for line in kept]


@pytest.mark.slow
@pytest.mark.usefixtures(quiet_signals.__name__)
def test_adapters_and_prompts_resume_to_the_bit(tmp_path, monkeypatch):
    make_shards(tmp_path / "shards")
    command = ["train", "--config", NAME, f"--config.data.shards={tmp_path / 'shards'}", *small(NAME)]
    command += [
        "--config.data.prepare.spacing=()",
        "--config.batch_size=16",
        "--config.microbatches=2",
        "--config.steps=4",
        "--config.checkpoint.every_steps=1",
    ]
    assert main([*command, "--workdir", str(tmp_path / "straight")]) == 0
    batches = pipeline.train_batches

    def struck(*arguments, **options):
        for number, batch in enumerate(batches(*arguments, **options)):
            if number == 3:
                raise SystemError("killed")
            yield batch

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "train_batches", struck)
        with pytest.raises(SystemError, match="killed"):
            main([*command, "--workdir", str(tmp_path / "killed")])
    assert 0 < latest_step(tmp_path / "killed") < 4
    assert main([*command, "--workdir", str(tmp_path / "killed")]) == 0
    assert lines(tmp_path / "straight") == lines(tmp_path / "killed")
    assert "terms/prompts" in lines(tmp_path / "killed")[-1]
    for ema in (False, True):
        one, two = (flatten(restore_weights(tmp_path / run, ema=ema)) for run in ("straight", "killed"))
        assert one.keys() == two.keys()
        assert any("_adapter/" in name for name in one)
        for name in one:
            np.testing.assert_array_equal(one[name], two[name], err_msg=name)
