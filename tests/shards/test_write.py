"""Writing is all or nothing."""

import errno

import numpy as np
import pytest

from medclip_jax.shards import write
from medclip_jax.shards.read import open_shards
from medclip_jax.shards.record import Schema, encode
from medclip_jax.shards.write import write_shard, write_shards, write_text


def test_a_full_disk_is_an_os_error(tmp_path, monkeypatch):
    # /dev/full refuses every byte.
    monkeypatch.setattr(write, "_partial", lambda path: path.with_name("shard.partial"))
    (tmp_path / "shard.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as error:
        write_shard(tmp_path / "shard", [b"x" * 1_000_000] * 3)
    assert error.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_an_error_while_records_are_made_leaves_nothing(tmp_path):
    def records():
        yield b"one"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "shard", records())
    assert list(tmp_path.iterdir()) == []


def test_text_replaces_whole_files(tmp_path):
    write_text(tmp_path / "a", "old")
    write_text(tmp_path / "a", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "new"


def test_encode_checks_shapes():
    schema = Schema(shape=(2, 3, 4), spacing=(1.0, 1.0, 1.0), findings=("cardiomegaly",))
    fields = dict(id="a", study=1, patient=1, report="", findings_text="", impression="", statements="")
    arrays = dict(
        volume=np.zeros((2, 3, 4), np.int16),
        findings=np.zeros(1, np.int8),
        labels=np.zeros(1, np.int8),
        measurements=np.zeros(0, np.float32),
    )
    encode({**fields, **arrays}, schema)
    with pytest.raises(ValueError, match=r"volume is int16 \(2, 3, 5\)"):
        encode({**fields, **arrays, "volume": np.zeros((2, 3, 5), np.int16)}, schema)
    with pytest.raises(ValueError, match="findings is float32"):
        encode({**fields, **arrays, "findings": np.zeros(1, np.float32)}, schema)


def test_an_empty_split_is_left_out(tmp_path):
    schema = Schema(shape=(1, 1, 1), spacing=(1.0, 1.0, 1.0))
    empty = np.zeros(0, np.int8)
    record = dict.fromkeys(("id", "report", "findings_text", "impression", "statements"), "")
    record |= {"study": 1, "patient": 1, "volume": np.zeros((1, 1, 1), np.int16)}
    record |= {"findings": empty, "labels": empty, "measurements": empty.astype(np.float32)}
    write_shards(tmp_path, schema, {"train": [record], "test": []})
    assert open_shards(tmp_path).splits == {"train": 1}
