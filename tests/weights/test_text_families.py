"""Folders as the published text encoders come: same states as transformers' BertModel on the same weights."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

from medclip_jax.reports.tokenizer import load_tokenizer
from medclip_jax.weights.text import load_bert
from tests.weights.tiny_bert import IDS, SIZES

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "pleural", "effusion", "Effusion", "##s", "."]


def fill(**sizes):
    """A BertModel with all of its weights random, LayerNorms and biases too."""
    torch.manual_seed(0)
    model = BertModel(BertConfig(**{**SIZES, **sizes})).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.normal_(1.0 if name.endswith("LayerNorm.weight") else 0.0, 0.2)
    return model


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def language_model_head(width=24, vocabulary=60, *, old=False):
    scale, shift = ("gamma", "beta") if old else ("weight", "bias")
    return {
        "cls.predictions.bias": random(vocabulary),
        "cls.predictions.transform.dense.weight": random(width, width),
        "cls.predictions.transform.dense.bias": random(width),
        f"cls.predictions.transform.LayerNorm.{scale}": random(width),
        f"cls.predictions.transform.LayerNorm.{shift}": random(width),
        "cls.predictions.decoder.weight": random(vocabulary, width),
    }


def prefixed(model):
    return {f"bert.{name}": tensor for name, tensor in model.state_dict().items()}


def write(folder, model, tensors, config=None, *, file="model.safetensors"):
    settings = {**SIZES, "model_type": "bert", "architectures": ["BertModel"], **(config or {})}
    (folder / "config.json").write_text(json.dumps(settings))
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    if file.endswith(".bin"):
        torch.save(tensors, folder / file)
    else:
        save_file(tensors, folder / file)
    return folder


def assert_same(folder, model):
    with torch.no_grad():
        expected = model(torch.tensor(IDS)).last_hidden_state.numpy()
    assert np.abs(np.asarray(load_bert(folder)(jnp.asarray(IDS))) - expected).max() <= 1e-5


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_pubmedbert(tmp_path, file):
    """A masked language model: prefix, head, pooler, position_ids of transformers before 4.31."""
    model = fill()
    tensors = prefixed(model) | language_model_head()
    tensors["bert.embeddings.position_ids"] = torch.arange(20)[None]
    tensors["cls.predictions.decoder.bias"] = random(60)
    write(tmp_path, model, tensors, {"architectures": ["BertForMaskedLM"]}, file=file)
    assert_same(tmp_path, model)


def test_cxr_bert(tmp_path):
    """Its own model type, a projection head beside the language model's, and its own tokenizer class."""
    model = fill()
    tensors = prefixed(model) | language_model_head()
    tensors |= {
        "bert.embeddings.position_ids": torch.arange(20)[None],
        "cls.predictions.decoder.bias": random(60),
        "cls_projection_head.dense_to_hidden.weight": random(16, 24),
        "cls_projection_head.dense_to_hidden.bias": random(16),
        "cls_projection_head.LayerNorm.weight": random(16),
        "cls_projection_head.LayerNorm.bias": random(16),
        "cls_projection_head.dense_to_output.weight": random(16, 16),
        "cls_projection_head.dense_to_output.bias": random(16),
    }
    settings = {
        "model_type": "cxr-bert",
        "architectures": ["CXRBertModel"],
        "projection_size": 16,
        "auto_map": {"AutoConfig": "configuration_cxrbert.CXRBertConfig", "AutoModel": "x.CXRBertModel"},
    }
    write(tmp_path, model, tensors, settings, file="pytorch_model.bin")
    assert_same(tmp_path, model)
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "do_lower_case": True,
                "tokenizer_class": "CXRBertTokenizer",
                "auto_map": {"AutoTokenizer": ["configuration_cxrbert.CXRBertTokenizer", None]},
                "model_max_length": 512,
            }
        )
    )
    tokenizer = load_tokenizer(tmp_path)
    found = tokenizer(["No pleural Effusions."], 9)
    np.testing.assert_array_equal(found, [[2, 5, 6, 7, 9, 10, 3, 0, 0]])


def test_bio_clinicalbert(tmp_path):
    """Converted from TensorFlow long ago: gamma and beta, both heads of BERT's pretraining; cased."""
    model = fill()
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for name, t in prefixed(model).items()
    }
    assert sum("gamma" in name for name in tensors) == 5
    tensors |= language_model_head(old=True)
    tensors |= {"cls.seq_relationship.weight": random(2, 24), "cls.seq_relationship.bias": random(2)}
    write(tmp_path, model, tensors, file="pytorch_model.bin")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["architectures"], config["model_type"]  # as BERT's own config.json of 2018
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same(tmp_path, model)
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    assert load_tokenizer(tmp_path)(["no Effusion"], 5).tolist() == [[2, 5, 8, 3, 0]]


def test_medcpt(tmp_path):
    """A bare BertModel: no prefix, with pooler and position_ids."""
    model = fill()
    tensors = dict(model.state_dict()) | {"embeddings.position_ids": torch.arange(20)[None]}
    assert "pooler.dense.weight" in tensors
    write(tmp_path, model, tensors, file="pytorch_model.bin")
    assert_same(tmp_path, model)


def test_minilm(tmp_path):
    """A sentence-transformers folder: the encoder at its root, pooling and order in files of their own."""
    model = fill(hidden_size=48, num_attention_heads=12)
    tensors = dict(model.state_dict()) | {"embeddings.position_ids": torch.arange(20)[None]}
    sizes = {"hidden_size": 48, "num_attention_heads": 12}
    write(tmp_path, model, tensors, sizes)
    (tmp_path / "modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}])
    )
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    assert_same(tmp_path, model)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_checkpoint_in_parts(tmp_path, kind):
    model = fill()
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 3
    if kind == "bin":
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        places = {n: p.replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
                  for n, p in index["weight_map"].items()}  # fmt: skip
        for part in set(places.values()):
            held = {name: model.state_dict()[name] for name in places if places[name] == part}
            torch.save(held, tmp_path / part)
        for file in tmp_path.glob("model*"):
            file.unlink()
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    assert_same(tmp_path, model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_16_bit_weights_become_float32(tmp_path, dtype, file):
    model = fill()
    half = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    write(tmp_path, model, half, file=file)
    model.load_state_dict({name: tensor.float() for name, tensor in half.items()})
    assert_same(tmp_path, model)
    assert load_bert(tmp_path).words.embedding.dtype == jnp.float32


def test_the_config_of_another_kind_of_model_is_refused(tmp_path):
    for settings, message in (
        ({"model_type": "roberta"}, "model_type 'roberta': only BERT encoders"),
        ({"position_embedding_type": "relative_key"}, "only 'absolute' fits"),
        ({"is_decoder": True}, "a decoder"),
        ({"hidden_act": "silu"}, "activation='silu' is unknown"),
    ):
        write(tmp_path, None, {}, settings)
        with pytest.raises(ValueError, match=message):
            load_bert(tmp_path)
