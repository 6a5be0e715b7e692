"""One model twice: the JAX objective with every parameter drawn at random, and its torch twin."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from medclip_jax import objectives
from medclip_jax.export.folder import folder_config, torch_code, write_folder
from medclip_jax.export.inputs import input_shapes
from medclip_jax.inference.model import Model
from medclip_jax.objectives import (
    asap,
    cardiac_clip,
    clip,
    cmr_clip,
    hipro_ct,
    mae,
    segment,
    supervised,
    supervised_frames,
    t3d,
)
from medclip_jax.objectives.base import DataSpec, Objective
from medclip_jax.objectives.towers import vision_defaults
from medclip_jax.parameters import combine, flatten, merge, split, unflatten
from medclip_jax.reports.findings import FINDINGS
from medclip_jax.reports.prompts import pair
from medclip_jax.reports.tokenizer import train_wordpiece
from medclip_jax.weights.names import to_torch

torch.set_num_threads(1)  # arrays of a few numbers: threads would only wait for each other

DEFAULTS = {
    "mae": mae.default_config,
    "clip": clip.default_config,
    "cardiac_clip": cardiac_clip.default_config,
    "hipro_ct": hipro_ct.default_config,
    "asap": asap.default_config,
    "t3d": t3d.default_config,
    "cmr_clip": cmr_clip.default_config,
    "supervised": supervised.default_config,
    "supervised_frames": supervised_frames.default_config,
    "segment": segment.default_config,
}
NAMES = cardiac_clip.FINDINGS
TEXT = [text for name in NAMES for text in pair(name)]
SHAPE = (6, 20, 12)
"""No axis like another, none a power of 2."""


def spec_of(shape=SHAPE, vocabulary_size=50) -> DataSpec:
    return DataSpec(
        shape=shape,
        spacing=(4.0, 3.0, 2.5),
        findings=NAMES,
        organs=("heart", "aorta"),
        vocabulary_size=vocabulary_size,
        mask_token=4,
        measurements=("grade", "months", "event"),
    )


def frame_spec(vocabulary_size=50) -> DataSpec:
    """Of studies of three series of frames."""
    views = ("cine_lax", "cine_sa", "lge_sa")
    return replace(
        spec_of(vocabulary_size=vocabulary_size), shape=(), spacing=(), views=views, frame_shape=(15, 12)
    )


def small(name: str, vision=None, text=None, **entries):
    """A default config shrunk to a few numbers, then changed."""
    config = DEFAULTS[name]()
    if name == "t3d":
        config.vision.update(depth=18, width=4, dtype="float32")
        config.views.update(count=2, shape=(4, 9, 11), heads=4)
    elif name in ("cmr_clip", "supervised_frames"):
        config.vision.update(patch=(5, 3), width=24, depth=2, heads=3, frames=9, views=4, dtype="float32")
    elif (vision or {}).get("kind") == "resnet":
        with config.unlocked():
            config.vision = vision_defaults("resnet") | {"depth": 18, "width": 4, "dtype": "float32"}
    else:
        config.vision.update(patch=(3, 5, 4), width=24, depth=2, heads=3, dtype="float32")
    config.vision.update(vision or {})
    if "text" in config:
        config.text.update(width=24, depth=2, heads=4, max_positions=40, dtype="float32")
        config.text.update(text or {})
    if "embedding_width" in config:
        config.embedding_width = 10
    if "selection" in config:
        config.selection.candidates, config.most_sentences = (1, 3, 5), 4
        config.text_decoder.update(depth=2, heads=3)
    if "decoder" in config:
        config.decoder.update(width=18, depth=2, heads=3)
    config.update(entries)
    return config


def make_objective(config, spec: DataSpec, seed: int = 0) -> Objective:
    """The objective with every parameter drawn by NumPy: biases, norms, positions and scales too."""
    fresh = nnx.eval_shape(lambda: objectives.create(config, spec, rngs=nnx.Rngs(0)))
    graph, params, variables = split(fresh)
    random = np.random.default_rng(seed)
    drawn = {}
    for path, leaf in flatten(params).items():
        kind, noise = path.rsplit("/", 1)[-1], random.normal(0, 1, leaf.shape)
        if kind == "kernel":
            drawn[path] = noise / np.prod(leaf.shape[:-1]) ** 0.5
        else:
            center = {"scale": 1.0, "grid_scale": 1.0, "log_scale": 2.7}.get(kind, 0.0)
            drawn[path] = center + 0.2 * noise
        drawn[path] = jnp.asarray(drawn[path], jnp.float32)
    # Running statistics as of a trained network: means off 0, variances off 1.
    statistics = {
        path: jnp.asarray(
            random.uniform(0.5, 2, leaf.shape) if path.endswith("var") else random.normal(0, 0.3, leaf.shape),
            jnp.float32,
        )
        for path, leaf in flatten(variables).items()
    }
    return merge(graph, unflatten(drawn), unflatten(statistics))


def make_model(config, spec: DataSpec, tokenizer=None, seed: int = 0) -> Model:
    whole = {"objective": config.to_dict(), "data": {"text_length": 32, "frames": 7, "views": ()}}
    modality = "MR" if spec.frame_shape else "CT"
    objective = make_objective(config, spec, seed)
    return Model(objective, spec, tokenizer, whole, modality=modality, progress=False)


def shapes_of(model: Model) -> dict[str, jax.ShapeDtypeStruct]:
    return input_shapes(model.objective, model.spec, model.config["data"])


def made(tokenizer, name="clip", **changes) -> Model:
    """A model with a tokenizer."""
    spec = spec_of(vocabulary_size=tokenizer.vocabulary_size)
    return make_model(small(name, **changes), spec, tokenizer)


def params_of(objective: Objective) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in flatten(split(objective)[1]).items()}


def assert_same_params(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def state_dict(objective: Objective) -> dict[str, torch.Tensor]:
    arrays = to_torch(jax.device_get(flatten(combine(*split(objective)[1:]))))
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def code_of(model: Model) -> ModuleType:
    """The file that would travel with the exported model, imported."""
    module = ModuleType("exported_modeling_medclip")
    sys.modules[module.__name__] = module
    exec(compile(torch_code(model), f"<{module.__name__}>", "exec"), vars(module))
    return module


def twin_of(model: Model) -> Any:
    """The torch model with the same weights, strictly loaded."""
    code = code_of(model)
    twin = code.MedclipModel(code.MedclipConfig(**folder_config(model))).eval()
    twin.load_state_dict(state_dict(model.objective), strict=True)
    return twin


def twins(name: str, spec: DataSpec | None = None, **changes) -> tuple[Objective, Any]:
    model = make_model(small(name, **changes), spec or spec_of())
    return model.objective, twin_of(model)


def export(folder: Path, formats=("safetensors",)) -> Model:
    """Write an exported folder of a contrastive model with a tokenizer of its own."""
    (folder / "made").mkdir(parents=True)
    texts = [text for name in FINDINGS for text in pair(name)] * 3
    tokenizer = train_wordpiece(texts, folder / "made", 200)
    spec = spec_of(vocabulary_size=tokenizer.vocabulary_size)
    model = make_model(small("cardiac_clip"), spec, tokenizer)
    write_folder(model, folder / "export", formats=formats)
    return model


def compiled(objective: Objective, function: Callable, *arguments):
    """`function(objective, *arguments)` as one program: compiled once and kept in the cache on disk."""
    graph, state = nnx.split(objective)
    run = jax.jit(lambda state, *arrays: function(nnx.merge(graph, state), *arrays))
    return run(state, *map(jnp.asarray, arguments))


def made_volumes(count: int, shape=SHAPE, seed: int = 0) -> np.ndarray:
    """Air, soft tissue and a little bone in disorder: values that pass for HU."""
    random = np.random.default_rng(seed)
    kind = random.random((count, *shape))
    values = np.where(kind < 0.5, random.normal(-950, 25, kind.shape), random.normal(40, 60, kind.shape))
    return np.where(kind > 0.97, random.uniform(300, 1500, kind.shape), values).astype(np.int16)


def made_tokens(count: int, length: int, vocabulary: int = 50, seed: int = 0) -> np.ndarray:
    """Ids with padding (0) of different lengths, as a tokenizer writes it, and gaps inside."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, vocabulary, (count, length))
    for row, filled in enumerate(random.integers(2, length + 1, count)):
        tokens[row, filled:] = 0
    return tokens


def assert_same(torch_values: torch.Tensor, jax_values, tolerance: float = 1e-5) -> None:
    """Largest difference at most `tolerance`, and a cosine of at least 0.99999 in every row."""
    first = torch_values.detach().numpy().astype(np.float64)
    second = np.asarray(jax_values).astype(np.float64)
    assert first.shape == second.shape
    np.testing.assert_allclose(first, second, rtol=0, atol=tolerance)
    first, second = first.reshape(len(first), -1), second.reshape(len(second), -1)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    assert ((first * second).sum(axis=1) >= 0.99999 * lengths).all()
