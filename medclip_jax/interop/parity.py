"""Whether an exported folder gives the vectors of the model that it was written from."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int16

from medclip_jax.interop import onnx
from medclip_jax.interop.folder import MODELING, read_folder
from medclip_jax.interop.stablehlo import portable
from medclip_jax.objectives.base import Objective
from medclip_jax.training.state import flatten, split

TOLERANCE = 1e-5
"""Largest difference of a number in a vector of length 1, in float32; of a log-variance as a share of it."""

SENTENCES = ("There is cardiomegaly.", "No pericardial effusion; lungs are clear.")


def largest_difference(folder: str | os.PathLike, objective: Objective) -> dict[str, float]:
    """Read a folder back and compare it with the model in memory.

    Args:
        folder: written from it.
        objective: with its weights.

    Returns:
        "PyTorch" and, where there are ONNX files, "ONNX" to the largest difference from JAX over the vectors
        of one made-up volume and two sentences, float32 throughout; for PyTorch also over their
        log-variances, where the model has some. Without what is not installed.

    Raises:
        ValueError: a parameter does not come back as it went.
    """
    exported = read_folder(folder)
    written, found = flatten(split(objective)[1]), flatten(exported.params)
    changed = [name for name in written if not np.array_equal(np.asarray(written[name]), found.get(name))]
    if changed or len(written) != len(found):
        raise ValueError(
            f"{changed or 'parameters'} did not come back from {folder} as written: a damaged disk?"
        )
    if importlib.util.find_spec("torch") is None:
        return {}
    model = load_torch(folder)
    volume = made_up_volume(exported.spec.shape)[None]
    ours = exported.objective(dtype="float32")
    with portable(), jax.default_matmul_precision("highest"):
        expected = _named("volumes", jax.jit(lambda v: tuple(ours.embed_volumes(v)))(volume))
        if hasattr(ours, "text"):
            tokens = _tokens(folder, exported.config["text_length"])
            expected |= _named("texts", jax.jit(lambda t: tuple(ours.embed_texts(t)))(tokens))
    vectors = {"PyTorch": _named("volumes", model.embed_volumes(volume))}
    if "texts" in expected:
        vectors["PyTorch"] |= _named("texts", model.embed_texts(list(SENTENCES)))
    if (Path(folder) / onnx.VOLUMES).is_file() and importlib.util.find_spec("onnxruntime"):
        vectors["ONNX"] = {"volumes": _run_onnx(folder, onnx.VOLUMES, volume)}
        if "texts" in expected:
            vectors["ONNX"]["texts"] = _run_onnx(folder, onnx.TEXTS, tokens.astype(np.int64))
    return {
        name: max(_difference(expected[kind], given[kind]) for kind in given)
        for name, given in vectors.items()
    }


def load_torch(folder: str | os.PathLike) -> Any:
    """The `MedclipModel` of an exported folder, in evaluation mode, from the code that lies in it.

    Args:
        folder: written by `medclip export`.
    """
    spec = importlib.util.spec_from_file_location("exported_modeling_medclip", Path(folder) / MODELING)
    module = importlib.util.module_from_spec(spec)
    # The folder is to be handed on as it is: without bytecode, which holds paths of this machine.
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module.MedclipModel.from_pretrained(str(folder)).eval()


def made_up_volume(shape: tuple[int, int, int], seed: int = 0) -> Int16[np.ndarray, "D H W"]:
    """Blocks of tissue and air with noise, in HU.

    Args:
        shape: (D, H, W).
        seed: of the noise.
    """
    generator = np.random.default_rng(seed)
    coarse = generator.uniform(-1000, 600, [-(-size // 8) for size in shape])
    blocks = coarse.repeat(8, 0).repeat(8, 1).repeat(8, 2)[: shape[0], : shape[1], : shape[2]]
    return np.round(blocks + generator.normal(0, 30, shape)).astype(np.int16)


def _named(kind: str, embedding: Any) -> dict[str, np.ndarray]:
    """Mean and, where there is one, log-variance, of either library."""
    mean, log_variance = (None if part is None else np.asarray(part) for part in embedding)
    return {kind: mean} if log_variance is None else {kind: mean, f"log_variance of {kind}": log_variance}


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    # Numbers of a mean are below 1; log-variances start at -10, and float32 keeps digits, not places.
    return float((np.abs(one - other) / np.maximum(np.abs(one), 1.0)).max())


def _tokens(folder: str | os.PathLike, length: int) -> np.ndarray:
    from medclip_jax.reports.tokenizer import load_tokenizer

    return load_tokenizer(folder)(list(SENTENCES), length)


def _run_onnx(folder: str | os.PathLike, file: str, samples: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(Path(folder) / file), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: samples})[0]
