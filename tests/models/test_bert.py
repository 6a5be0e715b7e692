"""The BERT encoder against transformers' PyTorch BertModel on the same random weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import BertConfig as TorchConfig
from transformers import BertModel

from medclip_jax.models.bert import Bert, BertConfig
from medclip_jax.weights.text import assign

SIZES = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
    "pad_token_id": 2,
}


def pair(tmp_path, **options):
    """A PyTorch model with every parameter moved off its initial value, and ours with its weights."""
    torch.manual_seed(0)
    config = TorchConfig(**(SIZES | options))
    theirs = BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    ours = Bert(BertConfig.from_hf(tmp_path), rngs=nnx.Rngs(0))
    assign(ours, {name: tensor.numpy() for name, tensor in theirs.state_dict().items()})
    return theirs, ours


def tokens(length, batch=3):
    ids = np.random.default_rng(length).integers(3, 60, size=(batch, length))
    ids[1, -(length // 2) :] = 2
    ids[2, 1:] = 2
    return ids


@pytest.mark.parametrize("length", [1, 7, 20])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_states_equal_pytorch(tmp_path, length, activation):
    theirs, ours = pair(tmp_path, hidden_act=activation)
    ids = tokens(length)
    real = ids != 2
    with torch.no_grad():
        expected = theirs(torch.tensor(ids), attention_mask=torch.tensor(real.astype(int))).last_hidden_state
    got = ours(jnp.asarray(ids))
    assert np.abs(np.asarray(got) - expected.numpy())[real].max() <= 1e-5


def test_gradient_equals_pytorch(tmp_path):
    theirs, ours = pair(tmp_path)
    ids = tokens(7)
    real = ids != 2
    states = theirs(torch.tensor(ids), attention_mask=torch.tensor(real.astype(int))).last_hidden_state
    (states[torch.tensor(real)] ** 3).sum().backward()
    graph, state = nnx.split(ours)

    @jax.jit
    def gradient(state):
        return jax.grad(lambda s: (jnp.where(real[..., None], nnx.merge(graph, s)(ids), 0.0) ** 3).sum())(
            state
        )

    got = nnx.to_pure_dict(gradient(state))
    words = theirs.embeddings.word_embeddings.weight.grad.numpy()
    words[2] = got["words"]["embedding"][2]  # PyTorch's embedding gives padding no gradient
    np.testing.assert_allclose(got["words"]["embedding"], words, atol=2e-3, rtol=1e-4)
    query = theirs.encoder.layer[1].attention.self.query.weight.grad.numpy()
    np.testing.assert_allclose(
        got["blocks"]["1"]["attention"]["qkv"]["kernel"][:, :24], query.T, atol=2e-3, rtol=1e-4
    )


def test_padding_changes_nothing(tmp_path):
    _, ours = pair(tmp_path)
    ids = tokens(7)[:1]
    longer = np.pad(ids, ((0, 0), (0, 5)), constant_values=2)
    np.testing.assert_allclose(ours(jnp.asarray(longer))[:, :7], ours(jnp.asarray(ids)), atol=1e-5)
    # A mask that is given wins over the padding token.
    open_mask = ours(jnp.asarray(longer), jnp.ones((1, 12), bool))
    assert float(jnp.abs(open_mask[:, :7] - ours(jnp.asarray(ids))).max()) > 1e-2


def test_remat_and_scan_change_nothing(tmp_path):
    _, ours = pair(tmp_path)
    plain = ours(jnp.asarray(tokens(7)))
    ours.remat, ours.scan = "block", True
    np.testing.assert_allclose(ours(jnp.asarray(tokens(7))), plain, atol=1e-5)


def test_pooling():
    bert = Bert(BertConfig(vocabulary_size=9, width=4, depth=0, heads=2, mlp_width=8), rngs=nnx.Rngs(0))
    states = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 4)), jnp.float32)
    mask = jnp.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
    ids = jnp.array([[2, 8, 3, 8, 1], [5, 3, 0, 0, 0], [0, 0, 0, 0, 0]])
    mean = bert.pool(states, ids, mask, "mean")
    np.testing.assert_allclose(mean[0], np.asarray(states)[0].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(mean[1], np.asarray(states)[1, :2].mean(axis=0), atol=1e-6)
    np.testing.assert_array_equal(mean[2], 0.0)
    np.testing.assert_array_equal(bert.pool(states, ids, mask, "cls"), states[:, 0])
    highest = bert.pool(states, ids, mask, "highest_id")
    np.testing.assert_array_equal(highest, np.asarray(states)[[0, 1, 2], [1, 0, 0]])
    with pytest.raises(ValueError, match="'cls', 'mean' or 'highest_id'"):
        bert.pool(states, ids, mask, "max")


def test_too_long_a_text_is_an_error():
    bert = Bert(
        BertConfig(vocabulary_size=9, width=4, depth=0, heads=2, mlp_width=8, max_positions=6),
        rngs=nnx.Rngs(0),
    )
    with pytest.raises(ValueError, match="7 tokens, but this text tower knows 6 positions"):
        bert(jnp.ones((1, 7), jnp.int32))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"model_type": "roberta"}, "model_type 'roberta'"),
        ({"position_embedding_type": "relative_key"}, "only 'absolute' fits"),
        ({"is_decoder": True}, "is_decoder: true"),
        ({"hidden_act": "swish"}, "activation='swish' is unknown"),
    ],
)
def test_configs_that_do_not_fit(tmp_path, entries, message):
    (tmp_path / "config.json").write_text(json.dumps(SIZES | entries))
    with pytest.raises(ValueError, match=message):
        BertConfig.from_hf(tmp_path)


def test_no_config(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        BertConfig.from_hf(tmp_path)
