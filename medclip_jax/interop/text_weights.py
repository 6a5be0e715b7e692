"""BERT weights between Hugging Face folders and `medclip_jax.models.bert.Bert`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from medclip_jax.interop.hub import locate
from medclip_jax.interop.weight_files import read_weights
from medclip_jax.models.bert import Bert, BertConfig

SETTINGS = {
    "attention": "hidden_size",
    "embeddings.word_embeddings": "vocab_size, hidden_size",
    "embeddings.position_embeddings": "max_position_embeddings, hidden_size",
    "embeddings.token_type_embeddings": "type_vocab_size, hidden_size",
    "intermediate": "intermediate_size, hidden_size",
    "output.dense": "hidden_size, intermediate_size",
}
"""Part of a weight's name to the entries of config.json that fix its shape; else hidden_size."""


def load_bert(folder: str | Path, *, dtype=jnp.float32, rngs: nnx.Rngs | None = None, **options) -> Bert:
    """Build the text tower of a Hugging Face folder with its weights.

    Args:
        folder: holds `config.json` and `model.safetensors`, or an old `pytorch_model.bin`; or a hub id
            ("owner/name"), which is downloaded once into the hub's own cache.
        dtype: compute type; the parameters are float32.
        rngs: taken as by every module; nothing is drawn, every parameter comes from the file.
        **options: `remat` and `scan` of `Bert`.

    Returns:
        The encoder; pooler and language-model heads of the file are left out.

    Raises:
        FileNotFoundError: no config or no weights in the folder.
        ValueError: names or shapes do not fit; the message lists them.
    """
    folder = locate(folder)
    config = BertConfig.from_hf(folder)
    # Shapes only: drawing numbers that are overwritten at once takes seconds.
    bert = nnx.eval_shape(lambda: Bert(config, dtype=dtype, rngs=nnx.Rngs(0), **options))
    assign(bert, read_weights(folder))
    return bert


def assign(bert: Bert, state_dict: Mapping[str, np.ndarray]) -> None:
    """Overwrite the parameters of `bert` in place with weights under transformers' names.

    Understood: the prefix `bert.`, the old `gamma`/`beta` of LayerNorm, the buffer `position_ids`.
    Left out: the pooler, and with the prefix whatever stands outside it (heads of pretraining).

    Args:
        bert: the encoder.
        state_dict: name to array, PyTorch layout (out, in).

    Raises:
        ValueError: missing, unexpected or ill-shaped weights, by name.
    """
    given = _canonical(state_dict)
    expected = {weight.name: weight for weight in _weights(bert)}
    missing = sorted(expected.keys() - given.keys())
    unexpected = sorted(given.keys() - expected.keys())
    if missing or unexpected:
        raise ValueError(
            f"weights do not fit this BERT of {bert.config.depth} blocks (num_hidden_layers): "
            f"missing {missing or 'none'}, unexpected {unexpected or 'none'}"
        )
    for name, weight in expected.items():
        if given[name].shape != weight.shape:
            setting = next((s for part, s in SETTINGS.items() if part in name), "hidden_size")
            raise ValueError(
                f"{name} has shape {given[name].shape}, the config says {weight.shape}:"
                f" check {setting} in config.json"
            )
    wholes = {}
    for name, weight in expected.items():
        parameter = weight.parameter
        _, whole = wholes.setdefault(id(parameter), (parameter, np.empty(parameter.shape, np.float32)))
        whole[..., weight.part] = given[name].T if weight.transposed else given[name]
    for parameter, whole in wholes.values():
        parameter.set_value(jnp.asarray(whole))


def to_hf(bert: Bert) -> dict[str, np.ndarray]:
    """Give the parameters under the names of transformers' BertModel, PyTorch layout, float32.

    Args:
        bert: the encoder.

    Returns:
        Name to array; no pooler. `BertModel(config, add_pooling_layer=False)` loads it strictly.
    """
    return {weight.name: weight.read() for weight in _weights(bert)}


class _Weight(NamedTuple):
    """One weight of the PyTorch model and where it lies here."""

    name: str
    parameter: nnx.Param
    transposed: bool = False
    part: slice = slice(None)
    """Columns of the parameter: queries, keys and values are one fused matrix here."""

    def read(self) -> np.ndarray:
        array = np.asarray(self.parameter[...], np.float32)[..., self.part]
        return np.ascontiguousarray(array.T) if self.transposed else array.copy()

    @property
    def shape(self) -> tuple[int, ...]:
        *rows, columns = self.parameter.shape
        shape = (*rows, len(range(*self.part.indices(columns))))
        return shape[::-1] if self.transposed else shape


def _linear(name: str, layer: nnx.Linear, part: slice = slice(None)) -> Iterator[_Weight]:
    yield _Weight(f"{name}.weight", layer.kernel, True, part)
    yield _Weight(f"{name}.bias", layer.bias, False, part)


def _norm(name: str, layer: nnx.LayerNorm) -> Iterator[_Weight]:
    yield _Weight(f"{name}.weight", layer.scale)
    yield _Weight(f"{name}.bias", layer.bias)


def _weights(bert: Bert) -> Iterator[_Weight]:
    yield _Weight("embeddings.word_embeddings.weight", bert.words.embedding)
    yield _Weight("embeddings.position_embeddings.weight", bert.positions.embedding)
    yield _Weight("embeddings.token_type_embeddings.weight", bert.types.embedding)
    yield from _norm("embeddings.LayerNorm", bert.norm)
    width = bert.config.width
    for index in range(bert.config.depth):
        name, block = f"encoder.layer.{index}", bert.blocks[str(index)]
        for place, part in enumerate(("query", "key", "value")):
            columns = slice(place * width, (place + 1) * width)
            yield from _linear(f"{name}.attention.self.{part}", block.attention.qkv, columns)
        yield from _linear(f"{name}.attention.output.dense", block.attention.output)
        yield from _norm(f"{name}.attention.output.LayerNorm", block.attention_norm)
        yield from _linear(f"{name}.intermediate.dense", block.mlp_in)
        yield from _linear(f"{name}.output.dense", block.mlp_out)
        yield from _norm(f"{name}.output.LayerNorm", block.mlp_norm)


def _canonical(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    prefixed = any(name.startswith("bert.") for name in state_dict)
    given = {}
    for name, array in state_dict.items():
        if prefixed:
            if not name.startswith("bert."):
                continue
            name = name.removeprefix("bert.")
        if name.startswith("pooler.") or name.endswith("position_ids"):
            continue
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        given[name] = np.asarray(array, np.float32)
    return given
