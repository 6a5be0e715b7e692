"""The published Cardiac-CLIP checkpoint as one of our own models.

What its code (github.com/Sliver-g/Cardiac-CLIP) does and ours does not is folded into weights and config:
another orientation of the array, intensities in [0, 1], the class token's own position.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from flax import nnx

from medclip_jax import objectives
from medclip_jax.export.release import Release
from medclip_jax.hub import locate
from medclip_jax.models.bert import BertConfig
from medclip_jax.objectives.base import DataSpec
from medclip_jax.parameters import flatten, merge, split, unflatten
from medclip_jax.weights.text import assign
from medclip_jax.weights.vision import convert
from medclip_jax.weights.vision_checkpoint import read_checkpoint
from medclip_jax.weights.vision_layouts import Encoder, recognize

if TYPE_CHECKING:
    from medclip_jax.reports.tokenizer import Tokenizer

_LOG = logging.getLogger(__name__)

HEAD_FEATURES = 64
"""Features of an attention head, as the published code has it for every width."""

_VISION, _TEXT = "vision_encoder.visual.", "language_encoder."
_PROJECTIONS = {
    "vision_projection": "multi_modal_vision_proj",
    "text_projection": "multi_modal_language_proj",
}
_LOGIT_SCALE = "vision_encoder.logit_scale"
_AXES = ("SI", "AP", "RL")
"""Directions of each axis, ours first."""


@dataclass(frozen=True)
class Choices:
    """What the checkpoint does not tell.

    Attributes:
        window: (low, high) HU that its code saw as 0 and 1. It scaled every scan by its own minimum and
            maximum; a fixed window is what those come to on ordinary scans (docs/how-to/weights.md).
        orientation: directions in which the axes of its arrays grow: one of S or I, A or P, R or L.
        shape: (D, H, W) voxels.
        spacing: mm per voxel along depth, height, width; not published.
        crop: what its volumes are centered on.
        text_length: tokens of a text, special ones included.
        lower_case: whether texts become lower case. The published code keeps the case, although
            PubMedBERT's vocabulary has none: words with a capital letter become [UNK].
    """

    window: tuple[float, float] = (-1024.0, 1500.0)
    orientation: str = "SPL"
    shape: tuple[int, int, int] = (128, 144, 144)
    spacing: tuple[float, float, float] = (1.0, 1.25, 1.25)
    crop: str = "heart"
    text_length: int = 192
    lower_case: bool = False

    def __post_init__(self):
        fits = len(self.orientation) == 3 and all(
            letter in axis for letter, axis in zip(self.orientation, _AXES, strict=True)
        )
        if not fits:
            raise ValueError(
                f"orientation {self.orientation!r} is unknown: write where depth, height and width grow to, "
                "e.g. 'SPL' (superior, posterior, left); each is one of S or I, A or P, R or L"
            )
        if not self.window[0] < self.window[1]:
            raise ValueError(f"window {self.window} is empty: give the lower HU first")

    @property
    def flipped(self) -> tuple[int, ...]:
        """Axes (0 depth, 1 height, 2 width) along which its arrays run against ours."""
        return tuple(i for i, letter in enumerate(self.orientation) if letter != _AXES[i][0])


def import_release(
    checkpoint: str | Path, text_encoder: str | Path, out: str | Path, *, choices: Choices | None = None
) -> Release:
    """Write a published checkpoint as a folder of `medclip export`.

    Args:
        checkpoint: the Lightning checkpoint, or its state dict as safetensors.
        text_encoder: folder of the BERT it was trained with (PubMedBERT): its config.json and tokenizer;
            or its hub id.
        out: folder to write.
        choices: what the checkpoint does not tell.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the checkpoint cannot be read safely, is another model's, or does not fit `text_encoder`
            or `choices`; `out` is in use.
    """
    from medclip_jax.export.folder import check_out, write_folder
    from medclip_jax.inference.model import Model

    choices = choices or Choices()
    check_out(Path(out))
    folder = locate(text_encoder, weights=False)
    tokenizer = load_cased_tokenizer(folder, lower_case=choices.lower_case)
    state_dict = read_checkpoint(checkpoint)
    release = convert_release(state_dict, BertConfig.from_hf(folder), tokenizer, choices)
    model = Model(
        release.objective,
        release.spec,
        tokenizer,
        release.config.to_dict(),
        crop=choices.crop,
        progress=False,
    )
    write_folder(model, out, card=_card(choices))
    return release


def convert_release(
    state_dict: Mapping[str, np.ndarray],
    text_config: BertConfig,
    tokenizer: Tokenizer,
    choices: Choices | None = None,
) -> Release:
    """Build our model from the names and arrays of a published checkpoint.

    Args:
        state_dict: its `state_dict`.
        text_config: sizes of its text encoder.
        tokenizer: of its text encoder.
        choices: what the checkpoint does not tell.

    Raises:
        ValueError: a part is missing, or does not fit `text_config` or `choices`; the message says what to
            change.
    """
    choices = choices or Choices()
    _check_parts(state_dict)
    encoder = _reoriented(recognize({n: x for n, x in state_dict.items() if n.startswith(_VISION)}), choices)
    config = _config(encoder, state_dict, text_config, choices)
    spec = DataSpec(
        shape=choices.shape,
        spacing=choices.spacing,
        findings=tuple(config.objective.findings),
        vocabulary_size=tokenizer.vocabulary_size,
        mask_token=tokenizer.mask,
        pad_token=tokenizer.pad,
    )
    # Shapes only: every parameter comes from the checkpoint.
    objective = nnx.eval_shape(lambda: objectives.create(config.objective, spec, rngs=nnx.Rngs(0)))
    text = {name.removeprefix(_TEXT): x for name, x in state_dict.items() if name.startswith(_TEXT)}
    assign(objective.text.encoder, text)
    graphdef, params, variables = split(objective)
    flat = flatten(params)
    tower = {name.removeprefix("vision/"): x for name, x in flat.items() if name.startswith("vision/")}
    grid = objective.vision.grid
    vision = convert(encoder, config.objective.vision, grid, tower)
    flat |= {f"vision/{name}": value for name, value in vision.params.items()}
    for ours, theirs in _PROJECTIONS.items():
        flat[f"{ours}/linear/kernel"] = np.ascontiguousarray(state_dict[f"{theirs}.weight"].T)
        flat[f"{ours}/linear/bias"] = state_dict[f"{theirs}.bias"]
    scale = np.asarray(state_dict[_LOGIT_SCALE], np.float32).reshape(())
    if not 0.0 <= scale <= math.log(100.0):
        _LOG.warning("the logit scale exp(%.3f) lies outside [1, 100] and is clipped to it in use", scale)
    flat["logit_scale/log_scale"] = scale
    return Release(
        merge(graphdef, unflatten(flat), variables), config, spec, [*_unused(state_dict), *vision.left_out]
    )


def load_cased_tokenizer(folder: str | Path, *, lower_case: bool) -> Tokenizer:
    """Read a BERT tokenizer, with case folded or kept whatever its folder says.

    Args:
        folder: local Hugging Face folder.
        lower_case: whether texts become lower case.

    Raises:
        FileNotFoundError: no tokenizer there.
        ValueError: it is not BERT's.
    """
    from medclip_jax.reports.tokenizer import load_tokenizer

    with tempfile.TemporaryDirectory() as copy:
        load_tokenizer(folder).save(copy)
        file = Path(copy) / "tokenizer.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        normalizer = content.get("normalizer") or {}
        if normalizer.get("type") != "BertNormalizer":
            raise ValueError(
                f"{folder} holds no tokenizer of BERT (its normalizer is {normalizer.get('type')}): give the "
                "folder of the text encoder that the checkpoint was trained with, PubMedBERT"
            )
        normalizer["lowercase"] = lower_case
        file.write_text(json.dumps(content), encoding="utf-8")
        return load_tokenizer(copy)


def _check_parts(state_dict: Mapping[str, np.ndarray]) -> None:
    needed = [f"{_VISION}conv1.weight", f"{_VISION}positional_embedding", _LOGIT_SCALE]
    needed += [f"{_TEXT}embeddings.word_embeddings.weight"]
    needed += [f"{name}.{kind}" for name in _PROJECTIONS.values() for kind in ("weight", "bias")]
    missing = [name for name in needed if name not in state_dict]
    if missing:
        raise ValueError(
            f"this is no whole Cardiac-CLIP checkpoint: it lacks {', '.join(missing)}. Give the one of the "
            "contrastive stage (cardiac_clip.ckpt), not that of masked pretraining or of a classifier"
        )


def _reoriented(encoder: Encoder, choices: Choices) -> Encoder:
    """The encoder for our array order and for intensities in [-1, 1].

    A kernel k on x in [0, 1] answers as k / 2 on v = 2 x - 1, plus sum(k) / 2.
    """
    weights = dict(encoder.weights)
    kernel = weights["embed/projection/weight"]
    if kernel.ndim != 5 or kernel.shape[1] != 1:
        raise ValueError(
            f"the patch kernel has shape {kernel.shape}, which is not of a 3D network with one channel: the "
            "checkpoint is not Cardiac-CLIP's"
        )
    patch = kernel.shape[2:]
    grid = tuple(size // step for size, step in zip(choices.shape, patch, strict=True))
    rows = weights["positions"]
    if len(rows) != math.prod(grid) + 1:
        raise ValueError(
            f"the checkpoint has {len(rows) - 1} positions, and a shape of {choices.shape} makes "
            f"{math.prod(grid)} patches of {patch}: give the shape that it was trained with (--shape)"
        )
    table = np.flip(rows[1:].reshape(*grid, -1), choices.flipped).reshape(-1, rows.shape[1])
    weights["positions"] = np.concatenate([rows[:1], table])
    weights["embed/projection/weight"] = np.flip(kernel, [axis + 2 for axis in choices.flipped]) / 2
    bias = weights.get("embed/projection/bias", 0.0)
    weights["embed/projection/bias"] = bias + kernel.sum(axis=(1, 2, 3, 4), dtype=np.float64) / 2
    return replace(encoder, weights=weights)


def _config(
    encoder: Encoder, state_dict: Mapping[str, np.ndarray], text: BertConfig, choices: Choices
) -> Any:
    """The config of a run that would build this model."""
    from medclip_jax.objectives import cardiac_clip
    from medclip_jax.training.config import base_config

    config = base_config()
    config.data.text_length = choices.text_length
    config.objective = objective = cardiac_clip.default_config()
    width, _, *patch = encoder.weights["embed/projection/weight"].shape
    objective.vision.update(
        patch=tuple(patch),
        width=width,
        depth=encoder.depth,
        heads=max(1, width // HEAD_FEATURES),
        mlp_ratio=encoder.weights["blocks/0/mlp_in/weight"].shape[0] / width,
        pooling="cls",
        position="learned",
        pre_norm=True,
        activation="quick_gelu",
        layer_norm_epsilon=1e-5,
        windows=(tuple(float(edge) for edge in choices.window),),
        dtype="float32",
    )
    objective.text.update(
        vocabulary=text.vocabulary_size,
        type_vocabulary=text.type_vocabulary,
        width=text.width,
        depth=text.depth,
        heads=text.heads,
        mlp_ratio=text.mlp_width / text.width,
        max_positions=text.max_positions,
        layer_norm_epsilon=text.layer_norm_epsilon,
        activation=text.activation,
        pooling="highest_id",
        dtype="float32",
    )
    objective.embedding_width = state_dict[f"{_PROJECTIONS['vision_projection']}.weight"].shape[0]
    objective.projection_bias = True
    return config


def _unused(state_dict: Mapping[str, np.ndarray]) -> list[str]:
    """Names that belong to none of the parts that are taken."""
    taken = (_VISION, _TEXT, *(f"{name}." for name in _PROJECTIONS.values()), _LOGIT_SCALE)
    unused = (f"{_TEXT}pooler.",)
    return [name for name in state_dict if not name.startswith(taken) or name.startswith(unused)]


def _card(choices: Choices) -> str:
    low, high = choices.window
    return f"""\
---
library_name: transformers
pipeline_tag: zero-shot-image-classification
tags: [medclip, medical-imaging, cardiac-ct]
---

# Cardiac-CLIP, imported

The published weights of Cardiac-CLIP (Hu et al., "Cardiac-CLIP: A Vision-Language Foundation Model for 3D
Cardiac CT Images"), brought into the form of medclip_jax by `medclip import`. License and terms of use are
those of https://github.com/Sliver-g/Cardiac-CLIP; cite the paper.

```python
import medclip_jax

model = medclip_jax.load("THIS_FOLDER")
heart = (x, y, z)  # RAS mm
model.zero_shot("scan.nii.gz", ["cardiomegaly", "pericardial_effusion"], center=heart)
```

What the checkpoint does not tell, and was chosen at import:

| | |
|---|---|
| window | {low:g} to {high:g} HU; the published code scales each scan by its own extremes |
| orientation of its arrays | {choices.orientation} |
| volume | {_by(choices.shape)} voxels of {_by(choices.spacing)} mm, centered on: {choices.crop} |
| text | {choices.text_length} tokens, {"in lower case" if choices.lower_case else "case kept"} |

Research use only: not a medical device. No evaluation was made at import.
"""


def _by(sizes: Sequence[float]) -> str:
    return " x ".join(f"{size:g}" for size in sizes)
