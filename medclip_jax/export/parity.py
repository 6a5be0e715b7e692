"""Whether an exported folder gives the vectors of the model that it was written from."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medclip_jax.export import onnx, stablehlo
from medclip_jax.export.folder import MODELING
from medclip_jax.export.inputs import input_shapes, made_up_inputs
from medclip_jax.objectives.base import Embedding, Objective
from medclip_jax.parameters import combine, flatten, split
from medclip_jax.weights.exported import Exported, read_folder

TOLERANCE = 1e-5
"""Largest difference of a number in a vector of length 1, in float32; of a log-variance as a share of it."""

SENTENCES = ("There is cardiomegaly.", "No pericardial effusion; lungs are clear.")


def largest_difference(folder: str | os.PathLike, objective: Objective) -> dict[str, float]:
    """Read a folder back and compare it with the model in memory.

    Args:
        folder: written from it.
        objective: with its weights.

    Returns:
        "PyTorch" and, where there are such files, "ONNX" and "StableHLO" to the largest difference from JAX
        over the vectors of one made-up volume or study and two sentences and, where the model has some, their
        log-variances, float32 throughout. Without what is not installed; without StableHLO where a model
        was trained in another type, in which its programs compute, or JAX has no CPU to run them.

    Raises:
        ValueError: a parameter or a running statistic does not come back as it went.
    """
    exported = read_folder(folder, dtype="float32")
    written = flatten(combine(*split(objective)[1:]))
    found = flatten(combine(exported.params, exported.variables))
    changed = [name for name in written if not np.array_equal(np.asarray(written[name]), found.get(name))]
    if changed or len(written) != len(found):
        raise ValueError(
            f"{changed or 'parameters'} did not come back from {folder} as written: a damaged disk?"
        )
    runnable = _runnable(Path(folder), exported)
    if not runnable:
        return {}
    ours = exported.objective()
    made_up = made_up_inputs(input_shapes(ours, exported.spec, exported.data), exported.spec)
    samples = {"volumes": tuple(made_up.values())}
    functions = {"volumes": stablehlo.of_volumes(ours)}
    if ours.has_text:
        samples["texts"] = (_tokens(folder, exported.config["text_length"]),)
        functions["texts"] = ours.embed_texts
    differences = {name: [] for name in runnable}
    for kind, function in functions.items():
        with stablehlo.portable(), jax.default_matmul_precision("highest"):
            expected = tuple(jax.jit(function)(*samples[kind]))
        for name, embed in runnable.items():
            differences[name].append(_difference(expected, embed(kind, samples[kind])))
    return {name: float(np.max(found)) for name, found in differences.items()}  # NaN, if there is one


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


def _runnable(folder: Path, exported: Exported) -> dict[str, Callable[[str, tuple], tuple]]:
    """What can be run of the folder: name to a function of "volumes" or "texts" and the arrays of them."""
    functions = {}
    if importlib.util.find_spec("torch"):
        model = load_torch(folder)
        functions["PyTorch"] = lambda kind, samples: (
            # Sentences as they are: its tokenizer is part of what is compared.
            model.embed_volumes(model.packed(*samples))
            if kind == "volumes"
            else model.embed_texts(list(SENTENCES))
        )
    if (folder / onnx.VOLUMES).is_file() and importlib.util.find_spec("onnxruntime"):
        files = {"volumes": onnx.VOLUMES, "texts": onnx.TEXTS}
        functions["ONNX"] = lambda kind, samples: _run_onnx(folder / files[kind], samples)
    sections = [part for part in exported.config["objective"].values() if isinstance(part, dict)]
    comparable = all(part.get("dtype", "float32") == "float32" for part in sections) and _has_cpu()
    if (folder / stablehlo.VOLUMES).is_file() and importlib.util.find_spec("flatbuffers") and comparable:
        programs = {"volumes": stablehlo.VOLUMES, "texts": stablehlo.TEXTS}
        functions["StableHLO"] = lambda kind, samples: _run_stablehlo(folder / programs[kind], samples)
    return functions


def _has_cpu() -> bool:
    """Whether JAX may compute on the CPU; JAX_PLATFORMS=cuda leaves it out."""
    try:
        return bool(jax.devices("cpu"))
    except RuntimeError:
        return False


def _difference(expected: tuple, given: tuple) -> float:
    """Largest one over means and, where there are some, log-variances, of whichever library."""
    found = []
    for one, other in zip(expected, given, strict=True):
        if one is not None or other is not None:
            one, other = np.asarray(one), np.asarray(other)
            # Numbers of a mean are below 1; log-variances start at -10: float32 keeps digits, not places.
            found.append((np.abs(one - other) / np.maximum(np.abs(one), 1.0)).max())
    return float(np.max(found))


def _tokens(folder: str | os.PathLike, length: int) -> np.ndarray:
    from medclip_jax.reports.tokenizer import load_tokenizer

    return load_tokenizer(folder)(list(SENTENCES), length)


def _run_onnx(file: Path, samples: tuple[np.ndarray, ...]) -> Embedding:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    given = {}
    for taken, array in zip(session.get_inputs(), samples, strict=True):
        given[taken.name] = array.astype(np.int64) if taken.type == "tensor(int64)" else array
    return Embedding(*session.run(None, given))


def _run_stablehlo(file: Path, samples: tuple[np.ndarray, ...]) -> Embedding:
    from jax import export

    program = export.deserialize(bytearray(file.read_bytes()))
    # Programs leave it to the platform with how many digits it multiplies: the CPU takes all.
    with jax.default_device(jax.devices("cpu")[0]):
        found = program.call(*samples)
    return Embedding(*found) if isinstance(found, tuple) else Embedding(found)
