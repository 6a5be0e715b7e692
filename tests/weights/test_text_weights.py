"""BERT weights from and to Hugging Face folders, down to a real text encoder."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import AutoTokenizer, BertModel
from transformers import BertConfig as TorchConfig

from medclip_jax.models.bert import Bert, BertConfig
from medclip_jax.weights import text as text_weights
from tests.weights.tiny_bert import IDS, SIZES

OURS = {"vocabulary_size": 60, "width": 24, "depth": 2, "heads": 4, "mlp_width": 40, "max_positions": 20}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return BertModel(TorchConfig(**SIZES), add_pooling_layer=False).eval()


def states(model):
    with torch.no_grad():
        return model(torch.tensor(IDS)).last_hidden_state.numpy()


def assert_same(bert, model):
    assert np.abs(np.asarray(bert(jnp.asarray(IDS))) - states(model)).max() <= 1e-5


def load(folder):
    return text_weights.load_bert(folder)


def test_folder_saved_by_transformers(tmp_path, model):
    model.save_pretrained(tmp_path)
    assert_same(load(tmp_path), model)


def test_round_trip_is_the_identity(model):
    given = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    ours = bert()
    text_weights.assign(ours, given)
    back = text_weights.to_hf(ours)
    assert back.keys() == {name for name in given if not name.endswith("position_ids")}
    for name, array in back.items():
        np.testing.assert_array_equal(array, given[name])
    twin = BertModel(TorchConfig(**SIZES), add_pooling_layer=False)
    twin.load_state_dict({name: torch.tensor(array) for name, array in back.items()}, strict=True)


def bert(**sizes):
    return Bert(BertConfig(**{**OURS, **sizes}), rngs=nnx.Rngs(0))


def state(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def test_missing_and_unexpected_weights_are_named_with_the_nearest(model):
    given = state(model)
    given["encoder.layer.0.output.dense.wait"] = given.pop("encoder.layer.0.output.dense.weight")
    given["adapter.scale"] = given.pop("embeddings.LayerNorm.bias")
    with pytest.raises(ValueError, match="does not fit this BERT encoder") as error:
        text_weights.assign(bert(), given)
    assert str(error.value).endswith(
        "Missing: embeddings.LayerNorm.bias, "
        "encoder.layer.0.output.dense.weight (like encoder.layer.0.output.dense.wait?). "
        "Unexpected: encoder.layer.0.output.dense.wait (like encoder.layer.0.output.dense.weight?), "
        "adapter.scale"
    )


@pytest.mark.parametrize("depth", [1, 3])
def test_another_number_of_blocks_in_the_config(model, depth):
    expected = (
        rf"config.json says {depth} blocks \(num_hidden_layers\), the checkpoint holds 2\. .*and 10 more"
    )
    with pytest.raises(ValueError, match=expected):
        text_weights.assign(bert(depth=depth), state(model))


@pytest.mark.parametrize(
    ("sizes", "settings"),
    [
        ({"vocabulary_size": 61}, "vocab_size to 60"),
        ({"max_positions": 30}, "max_position_embeddings to 20"),
        ({"type_vocabulary": 1}, "type_vocab_size to 2"),
        ({"mlp_width": 44}, "intermediate_size to 40"),
        ({"width": 28, "mlp_width": 44}, "hidden_size to 24, intermediate_size to 40"),
    ],
)
def test_other_shapes_name_the_settings(model, sizes, settings):
    ours = bert(**sizes)
    before = text_weights.to_hf(ours)
    with pytest.raises(
        ValueError, match=f"other shapes than config.json says.*Set {settings} in config.json"
    ):
        text_weights.assign(ours, state(model))
    for key, array in text_weights.to_hf(ours).items():
        np.testing.assert_array_equal(array, before[key])  # nothing was written


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
