"""The published CMR-CLIP checkpoint as one of our own models.

Names are those of its code (github.com/Makiya11/CMRCLIP): `video_model`, `text_model`, `vid_proj` and
`txt_proj`. The position of its class token is added to that token; everything else has its own place here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from medclip_jax import objectives
from medclip_jax.export.release import Release
from medclip_jax.hub import locate
from medclip_jax.models.bert import BertConfig
from medclip_jax.objectives.base import DataSpec
from medclip_jax.parameters import flatten, merge, split, unflatten
from medclip_jax.reports.findings import CARDIAC_MR_DIAGNOSES, CARDIAC_MR_FINDINGS
from medclip_jax.shards.series import SeriesSettings
from medclip_jax.weights.names import from_torch
from medclip_jax.weights.text import assign
from medclip_jax.weights.vision_checkpoint import read_checkpoint

SERIES = ("cine_lax", "cine_sa", "lge_sa", "lge_lax", "lge_2ch", "lge_3ch")
"""Series of a study, in the order of its frames."""

CHANNELS = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))
"""Mean and standard deviation of each color, of gray frames in [0, 1]."""

HEAD_FEATURES = 64
"""Features of an attention head, as the published code has it for its width."""

_VIDEO, _TEXT = "video_model.", "text_model."
_PROJECTIONS = {"vision_projection": "vid_proj.1", "text_projection": "txt_proj.1"}
_BLOCK = {
    "attention_norm": "norm1",
    "attention.qkv": "attn.qkv",
    "attention.output": "attn.proj",
    "time_norm": "norm3",
    "time_attention.qkv": "timeattn.qkv",
    "time_attention.output": "timeattn.proj",
    "mlp_norm": "norm2",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}
_TABLES = ("cls_token", "pos_embed", "temporal_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")


def import_release(checkpoint: str | Path, text_encoder: str | Path, out: str | Path) -> Release:
    """Write a published checkpoint as a folder of `medclip export`.

    Args:
        checkpoint: its pytorch_model.bin, a checkpoint of its training, or the state dict as safetensors.
        text_encoder: folder of the BERT it was trained with (Bio_ClinicalBERT): its config.json and
            tokenizer; or its hub id.
        out: folder to write.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the checkpoint cannot be read safely, is another model's, or does not fit `text_encoder`;
            `out` is in use.
    """
    from medclip_jax.export.folder import check_out, write_folder
    from medclip_jax.inference.model import Model
    from medclip_jax.reports.tokenizer import load_tokenizer

    check_out(Path(out))
    folder = locate(text_encoder, weights=False)
    tokenizer = load_tokenizer(folder)
    release = convert_release(read_checkpoint(checkpoint), BertConfig.from_hf(folder), tokenizer)
    config = release.config.to_dict()
    model = Model(
        release.objective,
        release.spec,
        tokenizer,
        config,
        modality="MR",
        series=_series(release.spec),
        progress=False,
    )
    write_folder(model, out, card=_card(release.spec, config))
    return release


def convert_release(state_dict: Mapping[str, np.ndarray], text_config: BertConfig, tokenizer: Any) -> Release:
    """Build our model from the names and arrays of a published checkpoint.

    Args:
        state_dict: with or without "module." before every name.
        text_config: sizes of its text encoder.
        tokenizer: of its text encoder.

    Raises:
        ValueError: a part is missing, or does not fit `text_config`; the message says what to change.
    """
    if all(name.startswith("module.") for name in state_dict):
        state_dict = {name.removeprefix("module."): array for name, array in state_dict.items()}
    video = _within(state_dict, _VIDEO)
    _check_parts(state_dict, video)
    patch, grid = _grid(video)
    config = _config(state_dict, video, patch, text_config)
    spec = DataSpec(
        shape=(),
        spacing=(),
        findings=(*CARDIAC_MR_FINDINGS, *CARDIAC_MR_DIAGNOSES),
        vocabulary_size=tokenizer.vocabulary_size,
        mask_token=tokenizer.mask,
        pad_token=tokenizer.pad,
        views=SERIES,
        frame_shape=tuple(count * step for count, step in zip(grid, patch, strict=True)),
    )
    # Shapes only: every parameter comes from the checkpoint.
    objective = nnx.eval_shape(lambda: objectives.create(config.objective, spec, rngs=nnx.Rngs(0)))
    assign(objective.text.encoder, _within(state_dict, _TEXT))
    graphdef, params, variables = split(objective)
    flat = flatten(params)
    shapes = {name: leaf.shape for name, leaf in flat.items() if not name.startswith("text/")}
    renamed, taken = _rename(state_dict, video, config.objective.vision.depth)
    flat |= from_torch(renamed, shapes, source="the checkpoint's weights, under our names,")
    left_out = [
        name
        for name in state_dict
        if name not in taken and (not name.startswith(_TEXT) or name.startswith(f"{_TEXT}pooler."))
    ]
    return Release(merge(graphdef, unflatten(flat), variables), config, spec, left_out)


def _within(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): x for name, x in arrays.items() if name.startswith(prefix)}


def _check_parts(state_dict: Mapping[str, np.ndarray], video: Mapping[str, np.ndarray]) -> None:
    needed = [f"{_VIDEO}{name}" for name in (*_TABLES, "blocks.0.timeattn.qkv.weight", "norm.weight")]
    needed += [f"{_TEXT}embeddings.word_embeddings.weight"]
    needed += [f"{name}.{kind}" for name in _PROJECTIONS.values() for kind in ("weight", "bias")]
    missing = [name for name in needed if name not in state_dict]
    if missing:
        raise ValueError(
            f"this is no whole CMR-CLIP checkpoint: it lacks {', '.join(missing)}. Give its "
            "pytorch_model.bin, or a checkpoint that its training wrote; weights of a 2D ViT alone are for "
            "config.objective.vision.weights"
        )
    kernel = video["patch_embed.proj.weight"]
    if kernel.ndim != 4 or kernel.shape[1] != len(CHANNELS):
        raise ValueError(
            f"the patch kernel has shape {kernel.shape}, which is not of frames in three colors: the "
            "checkpoint is not CMR-CLIP's"
        )


def _grid(video: Mapping[str, np.ndarray]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Pixels of a patch, and patches of a frame, along height and width."""
    rows = video["pos_embed"].shape[-2] - 1
    side = math.isqrt(rows)
    if side * side != rows:
        raise ValueError(
            f"the checkpoint has positions of {rows} patches, which are no square: it is of another version "
            "of the code, which cannot be imported"
        )
    return video["patch_embed.proj.weight"].shape[2:], (side, side)


def _rename(
    state_dict: Mapping[str, np.ndarray], video: Mapping[str, np.ndarray], depth: int
) -> tuple[dict[str, np.ndarray], set[str]]:
    """All but the text encoder under our names in PyTorch, and the published names of it."""
    modules = {"vision.video.norm": f"{_VIDEO}norm"}
    for index in range(depth):
        modules |= {
            f"vision.video.blocks.{index}.{ours}": f"{_VIDEO}blocks.{index}.{theirs}"
            for ours, theirs in _BLOCK.items()
        }
    modules |= {f"{ours}.linear": theirs for ours, theirs in _PROJECTIONS.items()}
    names = {f"{o}.{kind}": f"{t}.{kind}" for o, t in modules.items() for kind in ("weight", "bias")}
    missing = [theirs for theirs in names.values() if theirs not in state_dict]
    if missing:
        raise ValueError(f"the checkpoint lacks {', '.join(missing[:6])}: a part of it is missing or damaged")
    kernel, rows = video["patch_embed.proj.weight"], video["pos_embed"][0]
    renamed = {ours: state_dict[theirs] for ours, theirs in names.items()} | {
        # A patch's pixels run along height and width, the color fastest.
        "vision.video.embed.projection.weight": kernel.transpose(0, 2, 3, 1).reshape(len(kernel), -1),
        "vision.video.embed.projection.bias": video["patch_embed.proj.bias"],
        "vision.video.class_token": video["cls_token"] + rows[:1],
        "vision.video.positions": rows[1:],
        "vision.video.temporal_positions": video["temporal_embed"][0],
    }
    return renamed, {*names.values(), *(f"{_VIDEO}{name}" for name in _TABLES)}


def _config(
    state_dict: Mapping[str, np.ndarray],
    video: Mapping[str, np.ndarray],
    patch: tuple[int, int],
    text: BertConfig,
) -> Any:
    """The config of a run that would build this model."""
    from medclip_jax.objectives import cmr_clip
    from medclip_jax.training.config import base_config

    config = base_config()
    width, frames = video["cls_token"].shape[-1], video["temporal_embed"].shape[1]
    config.data.update(text_length=min(512, text.max_positions), frames=frames)
    config.objective = objective = cmr_clip.default_config()
    objective.vision.update(
        patch=tuple(patch),
        width=width,
        depth=len({name.split(".")[1] for name in video if name.startswith("blocks.")}),
        heads=max(1, width // HEAD_FEATURES),
        mlp_ratio=len(video["blocks.0.mlp.fc1.bias"]) / width,
        frames=frames,
        views=0,
        time_init="released",
        channels=CHANNELS,
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
        dtype="float32",
    )
    objective.embedding_width = len(state_dict[f"{_PROJECTIONS['vision_projection']}.bias"])
    return config


def _series(spec: DataSpec) -> tuple[SeriesSettings, ...]:
    """How studies are prepared: complete pictures resized, of cines the middle slice, as its code does.

    How its intensities came to 8 bits is not published: they are taken between two percentiles.
    """
    return tuple(
        SeriesSettings(
            name,
            (None, *spec.frame_shape),
            (None, None, None),
            "MR",
            (1.0, 99.0),
            required=False,
            frames="middle" if name.startswith("cine") else "all",
        )
        for name in spec.views
    )


def _card(spec: DataSpec, config: Mapping[str, Any]) -> str:
    height, width = spec.frame_shape
    return f"""\
---
library_name: transformers
pipeline_tag: zero-shot-image-classification
tags: [medclip, medical-imaging, cardiac-mr]
---

# CMR-CLIP, imported

The published weights of CMR-CLIP ("CMR-CLIP: Contrastive Language Image Pretraining for a Cardiac Magnetic
Resonance Image Embedding with Zero-shot Capabilities"), brought into the form of medclip_jax by `medclip
import`. License and terms of use are those of https://github.com/Makiya11/CMRCLIP; cite the paper.

```python
model = AutoModel.from_pretrained("THIS_FOLDER", trust_remote_code=True)
study = {{"cine_sa": nibabel.load("cine_sa.nii.gz"), "lge_sa": nibabel.load("lge_sa.nii.gz")}}
model.embed_volumes(study).mean
model.embed_texts(["Left ventricle with systolic dysfunction"]).mean
```

{config["data"]["frames"]} frames of {height} x {width} pixels, one of each equal interval, of the series
{", ".join(spec.views)}, in this order. It was trained on studies with all of them: the middle slice of
each cine series with 30 phases, 10 to 15 slices of late enhancement along the short axis, and each of the
other three pictures of late enhancement as often as those.

Research use only: not a medical device. No evaluation was made at import.
"""
