"""BERT weights between Hugging Face folders and `medclip_jax.models.bert.Bert`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

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


def locate(name: str | Path) -> Path:
    """Turn a folder or a hub id into a local folder with config and weights.

    Args:
        name: a folder, or "owner/name" on the Hugging Face hub.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: no such folder, and no such model on the hub, or no way to reach it.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        raise FileNotFoundError(
            f"{name} is no folder: give one saved by transformers, or a hub id 'owner/name'"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        config = hf_hub_download(str(name), "config.json")
        try:
            hf_hub_download(str(name), "model.safetensors")
        except EntryNotFoundError:
            hf_hub_download(str(name), "pytorch_model.bin")
    except Exception as error:
        raise FileNotFoundError(
            f"{name} is no folder, and the hub did not give it ({type(error).__name__}): download the model"
            " where there is a network and give its folder"
        ) from error
    return Path(config).parent


def read_weights(folder: str | Path) -> dict[str, np.ndarray]:
    """Read a folder's weights as float32 arrays. Never unpickles anything but plain tensors.

    Raises:
        FileNotFoundError: neither `model.safetensors` nor `pytorch_model.bin`.
        ImportError: only a `.bin` file, and no PyTorch to read it.
        ValueError: the file is damaged, or is a pickle of more than tensors.
    """
    folder = Path(folder)
    file = folder / "model.safetensors"
    if file.exists():
        return _read_safetensors(file)
    file = folder / "pytorch_model.bin"
    if not file.exists():
        raise FileNotFoundError(
            f"{folder} holds neither model.safetensors nor pytorch_model.bin: download the whole model folder"
        )
    return _read_bin(file)


def _read_safetensors(file: Path) -> dict[str, np.ndarray]:
    # Through the Flax reader: NumPy has no bfloat16, in which some folders are saved.
    from safetensors import SafetensorError
    from safetensors.flax import load_file

    try:
        # Real numbers also where the whole model is being traced for its shapes.
        with jax.ensure_compile_time_eval():
            return {name: np.asarray(array, dtype=np.float32) for name, array in load_file(file).items()}
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}): download the model folder again") from error


def _read_bin(file: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{file} needs PyTorch to be read: install the torch-export extra, or save the model as"
            " safetensors"
        ) from error
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{file} cannot be read safely (it is damaged, or holds more than tensors): get the model as"
            " safetensors"
        ) from error
    return {name: tensor.float().numpy() for name, tensor in tensors.items()}


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
