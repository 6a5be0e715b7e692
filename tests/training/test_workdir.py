import json
import os

import pytest

from medclip_jax.training.checksums import CheckpointError
from medclip_jax.training.config import base_config, to_json
from medclip_jax.training.workdir import Workdir


@pytest.fixture
def folders(tmp_path):
    """A prepared folder, and a Hugging Face folder with more in it than is needed."""
    shards, encoder = tmp_path / "shards", tmp_path / "encoder"
    shards.mkdir()
    (shards / "prepare.json").write_text("{}")
    (shards / "medclip-train.array_record-00000-of-00001").write_bytes(b"volumes")
    encoder.mkdir()
    for name in ("config.json", "vocab.txt", "tokenizer.json", "model.safetensors", "pytorch_model.bin"):
        (encoder / name).write_text(name)
    (encoder / "onnx").mkdir()
    return shards, encoder


def found(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_using_a_model_takes_is_kept(folders, tmp_path):
    shards, encoder = folders
    workdir = Workdir(tmp_path / "run")
    workdir.keep_preparation(shards, tokenizer=encoder, text_encoder=encoder)
    assert found(workdir.path) == [
        "prepare.json",
        "text_encoder/config.json",
        "tokenizer/config.json",
        "tokenizer/tokenizer.json",
        "tokenizer/vocab.txt",
    ]
    assert not os.path.samefile(workdir.path / "prepare.json", shards / "prepare.json")


def test_without_text_only_the_settings(folders, tmp_path):
    workdir = Workdir(tmp_path / "run")
    workdir.keep_preparation(folders[0])
    assert found(workdir.path) == ["prepare.json"]


def test_copied_again_after_a_change(folders, tmp_path):
    shards, encoder = folders
    workdir = Workdir(tmp_path / "run")
    kept = workdir.path / "text_encoder/config.json"
    workdir.keep_preparation(shards, text_encoder=encoder)
    assert kept.read_text() == "config.json"
    (encoder / "config.json").write_text("changed sizes")
    (kept.parent / "config.json.partial").write_text("left by a kill")
    workdir.keep_preparation(shards, text_encoder=encoder)
    assert kept.read_text() == "changed sizes"
    assert not list(workdir.path.rglob("*.partial"))


def test_a_run_of_an_earlier_version_resumes_unless_a_new_key_is_used(tmp_path):
    config = base_config()
    earlier = to_json(config)
    del earlier["optimizer"]["accumulate"]
    workdir = Workdir(tmp_path)
    workdir.config_file.write_text(json.dumps(earlier))
    workdir.check_config(config, resuming=True)
    config.optimizer.accumulate = 2
    with pytest.raises(ValueError, match=r"config\.optimizer\.accumulate: 1 there, 2 now"):
        workdir.check_config(config, resuming=True)


@pytest.mark.parametrize("name", ["run\\1", "[old]", "run*", "run?"])
def test_a_name_in_which_no_checkpoint_can_be_written_is_refused_at_once(tmp_path, name):
    with pytest.raises(CheckpointError, match="Rename the folder, or give another --workdir"):
        Workdir(tmp_path / name / "run")
    assert not (tmp_path / name).exists()


NESTED = b"[" * 9999
JUNK = (b"", b"{", b"[]", b"null", b"3", b'"text"', b"\xff\xfe\x00", b'{"steps": 3, "objective": 4}', NESTED)


@pytest.mark.parametrize("junk", JUNK)
def test_a_damaged_config_is_replaced_by_the_one_in_the_checkpoint(tmp_path, caplog, junk):
    config = base_config()
    workdir = Workdir(tmp_path)
    workdir.config_file.write_bytes(junk)
    workdir.check_config(config, resuming=True)  # nothing says otherwise
    run = tmp_path / "checkpoints" / "7" / "run"
    run.mkdir(parents=True)
    (run / "metadata").write_text(json.dumps({"config": to_json(config), "step": 7}))
    workdir.check_config(config, resuming=True)
    assert "config.json is damaged" in caplog.text
    config.seed = 5
    with pytest.raises(ValueError, match=r"config\.seed: 0 there, 5 now"):
        workdir.check_config(config, resuming=True)


def test_junk_among_the_metrics_is_left_out(tmp_path, caplog):
    workdir = Workdir(tmp_path)
    good = b'{"step": 1, "loss": 2.5}\n'
    others = (b'{"step": "1"}', b'{"step": 1, "loss": {}}', b'{"step": 1, "lo')
    workdir.metrics_file.write_bytes(good + b"\n".join((*JUNK, *others)))
    assert workdir.metrics_at(1) == {"loss": 2.5}
    workdir.forget_metrics_after(1)
    assert workdir.metrics_file.read_bytes() == good
    assert "metrics.jsonl: 12 lines are damaged" in caplog.text
    workdir.metrics_file.unlink()
    workdir.metrics_file.mkdir()
    assert workdir.metrics_at(1) == {}
    assert "metrics.jsonl cannot be read" in caplog.text


def test_another_seed_is_another_run(tmp_path):
    """Its data would come in another order: sample n is a function of (seed, n)."""
    config = base_config()
    workdir = Workdir(tmp_path)
    workdir.write_config(config)
    config.seed = 1
    with pytest.raises(ValueError, match=r"config\.seed: 0 there, 1 now"):
        workdir.check_config(config, resuming=True)
    config.seed, config.steps = 0, 9
    workdir.check_config(config, resuming=True)
