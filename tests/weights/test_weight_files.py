"""Checkpoint files: which is read, what is refused, and what the messages say."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from medclip_jax.weights.files import read_weights

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)}


class Evil:
    def __reduce__(self):
        return print, ("ran",)


def test_safetensors_come_first(tmp_path):
    torch.save({"wrong": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    save_file(TENSORS, tmp_path / "model.safetensors")
    found = read_weights(tmp_path)
    np.testing.assert_array_equal(found["a"], TENSORS["a"].numpy())
    assert found["a"].dtype == np.float32
    assert np.issubdtype(found["steps"].dtype, np.integer)


def test_a_file_by_its_name(tmp_path):
    torch.save(TENSORS, tmp_path / "encoder.pth")
    np.testing.assert_array_equal(read_weights(tmp_path / "encoder.pth")["a"], TENSORS["a"].numpy())
    with pytest.raises(FileNotFoundError, match="is not there: give a checkpoint file"):
        read_weights(tmp_path / "decoder.pth")


@pytest.mark.parametrize("held", [{"a": Evil()}, {"a": torch.zeros(1), "config": Evil()}])
def test_a_pickle_of_more_than_tensors_is_refused_and_not_run(tmp_path, capsys, held):
    torch.save(held, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be read safely"):
        read_weights(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(held, protocol=2))
    with pytest.raises(ValueError, match="cannot be read safely"):
        read_weights(tmp_path)
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_training_checkpoint_holds_the_model_under_a_key(tmp_path, key):
    torch.save({"epoch": 3, key: TENSORS}, tmp_path / "last.pth")
    assert read_weights(tmp_path / "last.pth").keys() == TENSORS.keys()


@pytest.mark.parametrize("held", [{"epoch": 3, "net": TENSORS}, TENSORS["a"], [TENSORS]])
def test_what_is_no_state_dict_is_refused(tmp_path, held):
    torch.save(held, tmp_path / "last.pth")
    with pytest.raises(ValueError, match="is no state dict"):
        read_weights(tmp_path / "last.pth")


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_truncated_file_says_so(tmp_path, suffix):
    file = tmp_path / f"model.{suffix}"
    save_file(TENSORS, file) if suffix == "safetensors" else torch.save(TENSORS, file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged"):
        read_weights(file)


def test_no_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none of model\.safetensors, .*pytorch_model\.bin"):
        read_weights(tmp_path)


def test_a_part_or_a_weight_that_is_missing(tmp_path):
    save_file({"a": TENSORS["a"]}, tmp_path / "one.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"names two\.safetensors, which is not beside it"):
        read_weights(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}))
    with pytest.raises(ValueError, match="names 'b', which is in no part"):
        read_weights(tmp_path)
    index.write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        read_weights(tmp_path)
