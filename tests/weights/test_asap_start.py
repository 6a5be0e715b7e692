"""An ASAP run from what its paper starts from: an ImageNet MAE and CXR-BERT, by their published names."""

import json

import numpy as np
import torch
import transformers
from flax import nnx

from medclip_jax import objectives
from medclip_jax.objectives import asap
from medclip_jax.objectives.base import DataSpec
from medclip_jax.parameters import flatten, split, unflatten
from medclip_jax.weights.pretrained import load_pretrained

WIDTH = 192
"""For which published transformers have 3 heads."""


def image_net_mae():
    """Names and shapes of `mae_pretrain_vit_base.pth`, smaller, with the decoder of the full checkpoint."""
    shapes = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 197, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, 16, 16),
        "patch_embed.proj.bias": (WIDTH,),
        "mask_token": (1, 1, 64),
        "decoder_embed.weight": (64, WIDTH),
        "decoder_blocks.0.norm1.weight": (64,),
    }
    for name in ("norm", "blocks.0.norm1", "blocks.0.norm2"):
        shapes |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
    for name, out, into in (
        ("attn.qkv", 3 * WIDTH, WIDTH),
        ("attn.proj", WIDTH, WIDTH),
        ("mlp.fc1", 4 * WIDTH, WIDTH),
        ("mlp.fc2", WIDTH, 4 * WIDTH),
    ):
        shapes |= {f"blocks.0.{name}.weight": (out, into), f"blocks.0.{name}.bias": (out,)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def cxr_bert(folder):
    """A folder as CXR-BERT's: a masked language model with one more head."""
    sizes = transformers.BertConfig(
        vocab_size=60,
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=96,
        max_position_embeddings=40,
    )
    model = transformers.BertForMaskedLM(sizes)
    held = model.state_dict() | {"cls_projection_head.dense_to_hidden.weight": torch.randn(16, 48)}
    folder.mkdir()
    torch.save(held, folder / "pytorch_model.bin")
    settings = sizes.to_dict() | {"model_type": "cxr-bert", "projection_size": 16}
    (folder / "config.json").write_text(json.dumps(settings, default=str))
    return model.bert


def test_both_encoders_are_taken_and_the_decoders_are_not(tmp_path):
    torch.manual_seed(0)
    mae = image_net_mae()
    torch.save({"model": mae}, tmp_path / "mae_pretrain_vit_base.pth")
    bert = cxr_bert(tmp_path / "CXR-BERT")
    config = asap.default_config()
    assert config.vision.patch == (8, 16, 16)
    config.vision.update(width=WIDTH, depth=1, heads=3, weights=str(tmp_path / "mae_pretrain_vit_base.pth"))
    config.decoder.update(width=24, depth=2, heads=2)
    config.text_decoder.update(depth=1, heads=3)
    config.text.folder = str(tmp_path / "CXR-BERT")
    config.selection.candidates = (1, 2, 3)
    spec = DataSpec((16, 32, 48), (3.0, 1.5, 1.5), organs=("heart", "aorta"), vocabulary_size=50)
    shapes = nnx.eval_shape(lambda: objectives.create(config, spec, rngs=nnx.Rngs(0)))
    drawn = {name: np.full(leaf.shape, 7, leaf.dtype) for name, leaf in flatten(split(shapes)[1]).items()}
    found = flatten(load_pretrained(config, unflatten(drawn), spec))

    volume = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    kernel = found["vision/transformer/embed/projection/kernel"]
    response = np.broadcast_to(volume, (8, 16, 16)).reshape(-1) @ kernel
    gray = torch.tensor(volume).expand(1, 3, 16, 16)
    expected = torch.nn.functional.conv2d(gray, mae["patch_embed.proj.weight"])[0, :, 0, 0]
    np.testing.assert_allclose(response, expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(
        found["vision/transformer/blocks/0/mlp_out/kernel"], mae["blocks.0.mlp.fc2.weight"].T
    )
    np.testing.assert_array_equal(
        found["text/encoder/words/embedding"], bert.embeddings.word_embeddings.weight.detach()
    )
    still = {name for name, value in found.items() if (np.asarray(value) == 7).all()}
    own = ("vision/", "text/")
    assert still == {name for name in found if not name.startswith(own)}
    assert {"decoder/embed/kernel", "patch_head/first/kernel", "text_decoder/words/kernel"} <= still
