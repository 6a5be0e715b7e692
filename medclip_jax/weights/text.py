"""BERT weights between Hugging Face folders and `medclip_jax.models.bert.Bert`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from medclip_jax.hub import locate
from medclip_jax.models.bert import Bert, BertConfig
from medclip_jax.weights.files import listed, read_weights

SETTINGS = {
    "embeddings.word_embeddings.weight": ("vocab_size", "hidden_size"),
    "embeddings.position_embeddings.weight": ("max_position_embeddings", "hidden_size"),
    "embeddings.token_type_embeddings.weight": ("type_vocab_size", "hidden_size"),
    "intermediate.dense.weight": ("intermediate_size", "hidden_size"),
    "intermediate.dense.bias": ("intermediate_size",),
    "output.dense.weight": ("hidden_size", "intermediate_size"),
}
"""End of a weight's name to the entries of config.json that fix its axes; else each is hidden_size."""

HEADS = ("pooler.", "cls.", "cls_projection_head.", "classifier.", "qa_outputs.")
"""What checkpoints hold beside the encoder: pooler, heads of pretraining (CXR-BERT: one more), of tasks."""


def load_bert(folder: str | Path, *, dtype=jnp.float32, **options) -> Bert:
    """Build the text tower of a Hugging Face folder with its weights.

    Args:
        folder: holds `config.json` and one of `hub.WEIGHT_FILES`; or a hub id ("owner/name"), which is
            downloaded once into the hub's own cache.
        dtype: compute type; the parameters are float32.
        **options: `remat` and `scan` of `Bert`.

    Returns:
        The encoder; pooler and language-model heads of the file are left out.

    Raises:
        FileNotFoundError: no config or no weights in the folder; or see `hub.locate`.
        ValueError: names or shapes do not fit, the message lists them; or the file cannot be read safely.
    """
    folder = locate(folder)
    config = BertConfig.from_hf(folder)
    # Shapes only: drawing numbers that are overwritten at once takes seconds.
    bert = nnx.eval_shape(lambda: Bert(config, dtype=dtype, rngs=nnx.Rngs(0), **options))
    assign(bert, read_weights(folder))
    return bert


def assign(bert: Bert, state_dict: Mapping[str, np.ndarray]) -> None:
    """Overwrite the parameters of `bert` in place with weights under transformers' names.

    Understood: the prefix `bert.`, the old `gamma`/`beta` of LayerNorm, the buffers `position_ids` and
    `token_type_ids`. Left out: `HEADS`, and with the prefix whatever stands outside it.

    Args:
        bert: the encoder.
        state_dict: name to array, PyTorch layout (out, in).

    Raises:
        ValueError: missing, unexpected or ill-shaped weights, by name; nothing was overwritten.
    """
    given = _canonical(state_dict)
    expected = {weight.name: weight for weight in _weights(bert)}
    _check_names(given.keys(), expected.keys(), bert.config.depth)
    _check_shapes(given, expected)
    wholes = {}
    for name, weight in expected.items():
        parameter = weight.parameter
        _, whole = wholes.setdefault(id(parameter), (parameter, np.empty(parameter.shape, np.float32)))
        whole[..., weight.part] = given[name].T if weight.transposed else given[name]
    for parameter, whole in wholes.values():
        parameter.set_value(jnp.asarray(whole))


def _check_names(given: Collection[str], expected: Collection[str], depth: int) -> None:
    missing = [name for name in expected if name not in given]
    unexpected = [name for name in given if name not in expected]
    if not (missing or unexpected):
        return
    found = 1 + max(
        (int(n) for name in given for n in re.findall(r"^encoder\.layer\.(\d+)\.", name)), default=-1
    )
    blocks = f"config.json says {depth} blocks (num_hidden_layers), the checkpoint holds {found}. "
    raise ValueError(
        f"the checkpoint does not fit this BERT encoder. {blocks if found != depth else ''}"
        f"Missing: {listed(missing, unexpected)}. Unexpected: {listed(unexpected, missing)}"
    )


def _check_shapes(given: Mapping[str, np.ndarray], expected: Mapping[str, _Weight]) -> None:
    wrong = [name for name, weight in expected.items() if given[name].shape != weight.shape]
    if not wrong:
        return
    changes: dict[str, int] = {}
    for name in wrong:
        here, there = expected[name].shape, given[name].shape
        end = next((end for end in SETTINGS if name.endswith(end) and ".attention." not in name), "")
        for setting, size, other in zip(
            SETTINGS.get(end, ("hidden_size",) * len(here)), here, there, strict=False
        ):
            if size != other:
                changes.setdefault(setting, other)
    name = wrong[0]
    remedy = ", ".join(f"{setting} to {size}" for setting, size in changes.items())
    raise ValueError(
        f"{len(wrong)} weights have other shapes than config.json says, such as {name}: "
        f"{given[name].shape} in the checkpoint, {expected[name].shape} by the config. "
        + (f"Set {remedy} in config.json" if remedy else "They belong to another kind of model")
    )


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
        if name.startswith(HEADS) or name in ("embeddings.position_ids", "embeddings.token_type_ids"):
            continue
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        given[name] = np.asarray(array, np.float32)
    return given
