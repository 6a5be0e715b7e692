"""BERT weights from and to Hugging Face folders, down to a real text encoder."""

import json
import pickle

import huggingface_hub
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import save_file
from transformers import AutoTokenizer, BertForMaskedLM, BertModel
from transformers import BertConfig as TorchConfig

from medclip_jax.interop import text_weights
from medclip_jax.models.bert import Bert, BertConfig

SIZES = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
}
IDS = np.random.default_rng(0).integers(1, 60, size=(2, 9))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return BertModel(TorchConfig(**SIZES), add_pooling_layer=False).eval()


@pytest.fixture
def folder(tmp_path, model):
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict()))
    return tmp_path


def states(model):
    with torch.no_grad():
        return model(torch.tensor(IDS)).last_hidden_state.numpy()


def assert_same(bert, model):
    assert np.abs(np.asarray(bert(jnp.asarray(IDS))) - states(model)).max() <= 1e-5


def load(folder):
    return text_weights.load_bert(folder, rngs=nnx.Rngs(0))


def test_folder_saved_by_transformers(tmp_path, model):
    model.save_pretrained(tmp_path)
    assert_same(load(tmp_path), model)


def test_bin_file_with_prefix_old_names_and_heads(folder, model):
    """What the older releases look like: `bert.`, gamma/beta, position_ids, a language-model head."""
    old = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for name, t in model.state_dict().items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(20)[None]
    old["bert.pooler.dense.weight"] = torch.zeros(24, 24)
    old["cls.predictions.bias"] = torch.zeros(60)
    torch.save(old, folder / "pytorch_model.bin")
    assert_same(load(folder), model)


def test_safetensors_come_first(folder, model):
    torch.save({"wrong": torch.zeros(1)}, folder / "pytorch_model.bin")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    assert_same(load(folder), model)


def test_half_precision_folder_becomes_float32(folder, model):
    half = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(half, folder / "model.safetensors")
    for name, array in text_weights.to_hf(load(folder)).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, half[name].float().numpy())


def test_masked_language_model_folder(tmp_path):
    torch.manual_seed(1)
    whole = BertForMaskedLM(TorchConfig(**SIZES)).eval()
    whole.save_pretrained(tmp_path)
    assert_same(load(tmp_path), whole.bert)


def test_round_trip_is_the_identity(model):
    given = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    bert = Bert(BertConfig(60, 24, 2, 4, 40, 20), rngs=nnx.Rngs(0))
    text_weights.assign(bert, given)
    back = text_weights.to_hf(bert)
    assert back.keys() == {name for name in given if not name.endswith("position_ids")}
    for name, array in back.items():
        np.testing.assert_array_equal(array, given[name])
    twin = BertModel(TorchConfig(**SIZES), add_pooling_layer=False)
    twin.load_state_dict({name: torch.tensor(array) for name, array in back.items()}, strict=True)


def test_missing_and_unexpected_weights_are_named(model):
    given = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    given["encoder.layer.0.output.dense.wait"] = given.pop("encoder.layer.0.output.dense.weight")
    bert = Bert(BertConfig(60, 24, 2, 4, 40, 20), rngs=nnx.Rngs(0))
    with pytest.raises(
        ValueError, match=r"missing \['encoder.layer.0.output.dense.weight'\], unexpected"
    ) as error:
        text_weights.assign(bert, given)
    assert "encoder.layer.0.output.dense.wait" in str(error.value)


def test_too_few_blocks_in_the_config(model):
    given = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    bert = Bert(BertConfig(60, 24, 1, 4, 40, 20), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="num_hidden_layers"):
        text_weights.assign(bert, given)


@pytest.mark.parametrize(
    ("name", "shape", "setting"),
    [
        ("embeddings.word_embeddings.weight", (61, 24), "vocab_size"),
        ("embeddings.position_embeddings.weight", (30, 24), "max_position_embeddings"),
        ("embeddings.token_type_embeddings.weight", (1, 24), "type_vocab_size"),
        ("encoder.layer.1.intermediate.dense.bias", (44,), "intermediate_size"),
        ("encoder.layer.0.attention.self.key.weight", (24, 28), "hidden_size"),
        ("encoder.layer.1.output.dense.weight", (24, 44), "hidden_size, intermediate_size"),
    ],
)
def test_a_wrong_shape_names_the_setting(model, name, shape, setting):
    given = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    bert = Bert(BertConfig(60, 24, 2, 4, 40, 20), rngs=nnx.Rngs(0))
    before = text_weights.to_hf(bert)
    with pytest.raises(ValueError, match=f"{name} has shape .*check .*{setting}"):
        text_weights.assign(bert, given | {name: np.zeros(shape, np.float32)})
    for key, array in text_weights.to_hf(bert).items():
        np.testing.assert_array_equal(array, before[key])  # nothing was written


def test_shapes_can_be_had_without_a_device(tmp_path, model):
    """What checking a config does: build everything, draw and compute nothing."""
    model.save_pretrained(tmp_path)
    abstract = nnx.eval_shape(lambda: load(tmp_path))
    assert abstract.words.embedding.shape == (60, 24)


def test_hub_id_falls_back_to_the_old_file(monkeypatch, folder, model):
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    asked = []

    def download(name, file):
        asked.append((name, file))
        if not (folder / file).exists():
            raise EntryNotFoundError(file)
        return str(folder / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert_same(load("some/model"), model)
    assert [file for _, file in asked] == ["config.json", "model.safetensors", "pytorch_model.bin"]


def test_neither_folder_nor_hub(monkeypatch, tmp_path):
    def download(name, file):
        raise ConnectionError

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(FileNotFoundError, match="the hub did not give it"):
        load("some/model")
    with pytest.raises(FileNotFoundError, match="is no folder: give one"):
        load(tmp_path / "absent")


class Evil:
    def __reduce__(self):
        return print, ("ran",)


def test_a_pickle_is_not_run(folder, capsys):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"embeddings": Evil()}, protocol=2))
    with pytest.raises(ValueError, match="cannot be read safely"):
        load(folder)
    assert "ran" not in capsys.readouterr().out


def test_a_truncated_file_says_so(folder, model):
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="is damaged"):
        load(folder)


def test_no_weights(folder):
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor"):
        load(folder)


def test_real_text_encoder(real_data):
    """all-MiniLM-L6-v2: same states as PyTorch on real sentences of odd lengths, with padding."""
    path = real_data / "minilm"
    theirs = BertModel.from_pretrained(path, add_pooling_layer=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    batch = tokenizer(
        [
            "There is a small pericardial effusion.",
            "No.",
            "Severe coronary artery calcification is seen in the left anterior descending artery; heart size"
            " is normal, the aorta is not dilated.",
        ],
        padding=True,
        return_tensors="np",
    )
    mask = batch["attention_mask"].astype(bool)
    with torch.no_grad():
        expected = theirs(
            torch.tensor(batch["input_ids"]), attention_mask=torch.tensor(batch["attention_mask"])
        ).last_hidden_state.numpy()
    ours = load(path)
    got = np.asarray(nnx.jit(ours)(jnp.asarray(batch["input_ids"])))
    assert np.abs(got - expected)[mask].max() <= 1e-5
    back = text_weights.to_hf(ours)
    for name, tensor in theirs.state_dict().items():
        if not name.endswith("position_ids"):
            np.testing.assert_array_equal(back[name], tensor.numpy())
