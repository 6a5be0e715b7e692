"""The published ASAP checkpoint as one of our own models.

Its code (github.com/ToniChopp/ASAP) holds volumes as (right, anterior, superior), this library as (superior,
anterior, right): patch kernels and predicted patches are turned here. Positions are fixed sines and cosines,
here as there, but of a token's features the first third tells where it is to the right there, how high up
here. A transformer computes the same when all that reads and all that writes the features of its tokens has
them in another order, so both transformers of the volume get them in ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from medclip_jax import objectives
from medclip_jax.export.release import Release
from medclip_jax.hub import locate
from medclip_jax.models.bert import BertConfig
from medclip_jax.models.positions import sincos_3d
from medclip_jax.objectives.base import DataSpec
from medclip_jax.parameters import flatten, merge, split, unflatten
from medclip_jax.reports.findings import CT_RATE_FINDINGS
from medclip_jax.weights.names import from_torch
from medclip_jax.weights.text import assign
from medclip_jax.weights.vision import convert
from medclip_jax.weights.vision_checkpoint import read_checkpoint
from medclip_jax.weights.vision_layouts import Encoder, recognize

SPACING = (3.0, 1.5, 1.5)
"""Mm per voxel along depth, height, width to which the published code resamples scans."""

HEAD_FEATURES = {"vision": 64, "decoder": 48, "text_decoder": 128}
"""Features of an attention head: of 768, the published code makes 12, 16 and 6 heads."""

PRIOR_SCALE = 0.2
"""Of what sentences are aligned with, as one more token of the volume; a constant of the published code."""

_TEXT = "bert_encoder."
_VISION = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.")
_WORDS = "bert_decoder.cls.predictions."
_FUSION = "bert_decoder.bert.fusion_layer."

_MODULES = {
    "decoder/embed": "decoder_embed",
    "decoder/norm": "decoder_norm",
    "decoder/predict": "decoder_pred_layer",
    "organ_head/first": "decoder_injection_pred_layer_0",
    "organ_head/norm": "decoder_injection_pred_norm",
    "organ_head/second": "decoder_injection_pred_layer_1",
    "budget/score": "regression_head",
    "text_decoder/to_volume": "bert_mlp",
    "text_decoder/fusion/overall": f"{_FUSION}gap_mlp",
    "text_decoder/fusion/cross_attention/output": f"{_FUSION}out_layer.dense",
    "text_decoder/fusion/cross_norm": f"{_FUSION}out_layer.LayerNorm",
    "text_decoder/transform": f"{_WORDS}transform.dense",
    "text_decoder/norm": f"{_WORDS}transform.LayerNorm",
    "text_decoder/words": f"{_WORDS}decoder",
} | {
    f"text_decoder/fusion/cross_attention/to_{part}": f"{_FUSION}cross_self_attention.{part}"
    for part in ("query", "key", "value")
}
"""Modules with a weight and a bias: our path to the published name."""

_HEADS = {
    "patch_head": "finding_align_img_mlp",
    "sentence_head": "align_text_mlp",
    "report_head": "bert_feature_proj",
}
_HEAD = {"first": "dense_to_hidden", "norm": "LayerNorm", "second": "dense_to_output"}
_BERT_BLOCK = {
    "attention/output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp_in": "intermediate.dense",
    "mlp_out": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
_TIMM_BLOCK = {
    "attention_norm": "norm1",
    "attention/qkv": "attn.qkv",
    "attention/output": "attn.proj",
    "mlp_norm": "norm2",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}
_READERS = ("organ_head/first", "/predict", "/attention/qkv", "/mlp_in")
"""Modules of a transformer that read the features of its tokens; the others write them."""


def import_release(checkpoint: str | Path, text_encoder: str | Path, out: str | Path) -> Release:
    """Write a published checkpoint as a folder of `medclip export`.

    Args:
        checkpoint: the .pth of its pretraining, or the state dict as safetensors.
        text_encoder: folder of the BERT it was trained with (CXR-BERT): its config.json and tokenizer; or
            its hub id.
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
    model = Model(release.objective, release.spec, tokenizer, config, crop="center", progress=False)
    write_folder(model, out, card=_card(release.spec))
    return release


def convert_release(state_dict: Mapping[str, np.ndarray], text_config: BertConfig, tokenizer: Any) -> Release:
    """Build our model from the names and arrays of a published checkpoint.

    Args:
        state_dict: its `model`.
        text_config: sizes of its text encoder.
        tokenizer: of its text encoder.

    Raises:
        ValueError: a part is missing, or does not fit `text_config`; the message says what to change.
    """
    renamed = _rename(state_dict)
    encoder, side = _turned_encoder(state_dict)
    config = _config(encoder, renamed, text_config)
    patch = config.objective.vision.patch
    organs = len(renamed["organ_head/second/bias"])
    spec = DataSpec(
        shape=tuple(side * step for step in patch),
        spacing=SPACING,
        findings=CT_RATE_FINDINGS,
        # Its masks were made by a tool, and which class is which is not published.
        organs=("background", *(f"class_{index}" for index in range(1, organs))),
        vocabulary_size=tokenizer.vocabulary_size,
        mask_token=tokenizer.mask,
        pad_token=tokenizer.pad,
    )
    # Shapes only: every parameter comes from the checkpoint.
    objective = nnx.eval_shape(lambda: objectives.create(config.objective, spec, rngs=nnx.Rngs(0)))
    assign(objective.text.encoder, _within(state_dict, _TEXT))
    graphdef, params, variables = split(objective)
    flat = flatten(params)
    tower = _within(flat, "vision/")
    vision = convert(encoder, config.objective.vision, (side,) * 3, tower)
    flat |= {f"vision/{name}": value for name, value in vision.params.items()}
    own = ("vision/", "text/", "prior/")
    shapes = {name: leaf.shape for name, leaf in flat.items() if not name.startswith(own)}
    arrays = _turned_rest(renamed, state_dict, patch, side)
    torch_names = {name.replace("/", "."): array for name, array in arrays.items()}
    flat |= from_torch(torch_names, shapes, source="the checkpoint's weights, under our names,")
    flat["prior/scale"] = np.float32(PRIOR_SCALE)
    return Release(merge(graphdef, unflatten(flat), variables), config, spec, _unused(state_dict))


def _within(arrays: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): x for name, x in arrays.items() if name.startswith(prefix)}


def _modules(state_dict: Mapping[str, np.ndarray]) -> dict[str, tuple[str, ...]]:
    """Our paths of modules to the published names; of several, which are one here."""

    def depth(prefix: str) -> int:
        return len({name[len(prefix) :].split(".")[0] for name in state_dict if name.startswith(prefix)})

    found = {ours: (theirs,) for ours, theirs in _MODULES.items()}
    for ours, theirs in _HEADS.items():
        found |= {f"{ours}/{inner}": (f"{theirs}.{name}",) for inner, name in _HEAD.items()}
    layers = "bert_decoder.bert.encoder.layer."
    berts = {f"text_decoder/blocks/{index}": f"{layers}{index}." for index in range(depth(layers))}
    for ours, theirs in {"text_decoder/fusion": _FUSION, **berts}.items():
        found |= {f"{ours}/{inner}": (f"{theirs}{name}",) for inner, name in _BERT_BLOCK.items()}
        parts = (f"{theirs}attention.self.{part}" for part in ("query", "key", "value"))
        found[f"{ours}/attention/qkv"] = tuple(parts)
    for index in range(depth("decoder_blocks.")):
        found |= {
            f"decoder/blocks/{index}/{inner}": (f"decoder_blocks.{index}.{name}",)
            for inner, name in _TIMM_BLOCK.items()
        }
    return found


def _rename(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All but the two encoders under our paths, "/weight" or "/bias" behind them, in PyTorch's layout."""
    modules = _modules(state_dict)
    needed = [f"{name}.{kind}" for names in modules.values() for name in names for kind in ("weight", "bias")]
    needed += ["mask_token", "decoder_pos_embed", "pos_embed", "cls_token", "patch_embed.proj.weight"]
    needed += [f"{_TEXT}bert.embeddings.word_embeddings.weight"]
    if missing := [name for name in needed if name not in state_dict]:
        more = f" and {len(missing) - 6} more" if len(missing) > 6 else ""
        raise ValueError(
            f"this is no whole ASAP checkpoint: it lacks {', '.join(missing[:6])}{more}. Give the one that "
            "its pretraining wrote, not that of a task, nor the one it began with (MAE and CXR-BERT)"
        )
    arrays = {
        f"{ours}/{kind}": np.concatenate([state_dict[f"{name}.{kind}"] for name in names])
        for ours, names in modules.items()
        for kind in ("weight", "bias")
    }
    return arrays | {"decoder/mask_token": np.asarray(state_dict["mask_token"])}


def _turned_encoder(state_dict: Mapping[str, np.ndarray]) -> tuple[Encoder, int]:
    """The volume encoder for our order of axes, and the patches along each of them."""
    encoder = recognize({name: x for name, x in state_dict.items() if name.startswith(_VISION)})
    weights = dict(encoder.weights)
    rows = weights.pop("positions").shape[-2] - 1
    side = round(rows ** (1 / 3))
    if side**3 != rows or weights["embed/projection/weight"].ndim != 5:
        raise ValueError(
            f"the checkpoint has {rows} positions, which are no cube of patches of a volume: it is not ASAP's"
        )
    order = _features(state_dict, "pos_embed", side)
    weights["embed/projection/weight"] = weights["embed/projection/weight"].transpose(0, 1, 4, 3, 2)
    return Encoder(encoder.layout, _reordered(weights, order), encoder.left_out), side


def _turned_rest(
    renamed: Mapping[str, np.ndarray], state_dict: Mapping[str, np.ndarray], patch: tuple, side: int
) -> dict[str, np.ndarray]:
    """All that `_rename` gives, with features and patches in our order."""
    turned = dict(renamed)
    seen, order = (_features(state_dict, name, side) for name in ("pos_embed", "decoder_pos_embed"))
    for module in ("decoder/embed", "patch_head/first", "text_decoder/to_volume"):
        turned[f"{module}/weight"] = turned[f"{module}/weight"][:, seen]
    inside = {name: x for name, x in turned.items() if name.startswith(("decoder/", "organ_head/first/"))}
    turned |= _reordered(inside, order)
    for kind in ("weight", "bias"):
        rows = turned[f"decoder/predict/{kind}"]
        voxels = rows.reshape(*patch[::-1], *rows.shape[1:])
        turned[f"decoder/predict/{kind}"] = voxels.swapaxes(0, 2).reshape(rows.shape)
    return turned


def _features(state_dict: Mapping[str, np.ndarray], name: str, side: int) -> np.ndarray:
    """For each feature of a token here, which one it is there.

    Raises:
        ValueError: the checkpoint's table of positions is not that of the published code.
    """
    table = np.asarray(state_dict[name])
    table = table.reshape(-1, table.shape[-1])
    width = table.shape[1]
    expected = np.concatenate([np.zeros((1, width), np.float32), sincos_3d((side,) * 3, width)])
    if width % 6 or table.shape != expected.shape or not np.allclose(table, expected, atol=1e-3):
        raise ValueError(
            f"the positions {name} are not the sines and cosines of the published code: the checkpoint is of "
            "a changed version, which cannot be imported"
        )
    return np.arange(width).reshape(3, -1)[::-1].reshape(-1)


def _reordered(weights: Mapping[str, np.ndarray], order: np.ndarray) -> dict[str, np.ndarray]:
    """A transformer whose tokens have their features in another order."""
    found = {}
    for name, array in weights.items():
        module, _, kind = name.rpartition("/")
        if name.endswith("_token"):
            found[name] = array[..., order]
        elif not module.endswith(_READERS):
            found[name] = array[order]
        else:
            found[name] = array[:, order] if kind == "weight" else array
    return found


def _config(encoder: Encoder, renamed: Mapping[str, np.ndarray], text: BertConfig) -> Any:
    """The config of a run that would build this model."""
    from medclip_jax.objectives import asap
    from medclip_jax.training.config import base_config

    config = base_config()
    config.data.text_length = min(512, text.max_positions)
    config.objective = objective = asap.default_config()
    width, _, *patch = encoder.weights["embed/projection/weight"].shape
    if text.width != width:
        raise ValueError(
            f"the text encoder is {text.width} wide, the checkpoint {width}: give the folder of the one that "
            "it was trained with, CXR-BERT"
        )
    blocks = {name.split("/")[2] for name in renamed if name.startswith("decoder/blocks/")}
    layers = {name.split("/")[2] for name in renamed if name.startswith("text_decoder/blocks/")}
    decoder_width = len(renamed["decoder/embed/bias"])
    objective.vision.update(
        patch=tuple(patch),
        width=width,
        depth=encoder.depth,
        heads=width // HEAD_FEATURES["vision"],
        mlp_ratio=encoder.weights["blocks/0/mlp_in/weight"].shape[0] / width,
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
    objective.decoder.update(
        width=decoder_width, depth=len(blocks), heads=decoder_width // HEAD_FEATURES["decoder"]
    )
    objective.text_decoder.update(
        depth=len(layers),
        heads=width // HEAD_FEATURES["text_decoder"],
        mlp_ratio=len(renamed["text_decoder/fusion/mlp_in/bias"]) / width,
    )
    objective.anatomy.organ_reduction = "mean"
    objective.selection.learned = False
    objective.update(denominator="all", padded="negatives")
    return config


def _unused(state_dict: Mapping[str, np.ndarray]) -> list[str]:
    """Names that belong to none of the parts that are taken."""
    modules = {name for names in _modules(state_dict).values() for name in names}
    encoders = (*_VISION, f"{_TEXT}bert.embeddings.", f"{_TEXT}bert.encoder.")
    others = ("mask_token", "decoder_pos_embed")
    return [
        name
        for name in state_dict
        if name.rpartition(".")[0] not in modules and not name.startswith(encoders) and name not in others
    ]


def _card(spec: DataSpec) -> str:
    shape, spacing = (" x ".join(f"{size:g}" for size in sizes) for sizes in (spec.shape, spec.spacing))
    return f"""\
---
library_name: transformers
pipeline_tag: zero-shot-image-classification
tags: [medclip, medical-imaging, chest-ct]
---

# ASAP, imported

The published weights of ASAP ("ASAP: Advancing medical volumetric representation learning with anatomy-aware
semantically-adaptive pre-training"), brought into the form of medclip_jax by `medclip import`. License and
terms of use are those of https://github.com/ToniChopp/ASAP; cite the paper.

```python
import medclip_jax

model = medclip_jax.load("THIS_FOLDER")
model.embed_volumes("scan.nii.gz")
```

In PyTorch, which also tells patches, sentences and organs:

```python
model = AutoModel.from_pretrained("THIS_FOLDER", trust_remote_code=True)
volume = model.prepare(voxels, affine)
patches = model.embed_patches(volume).unflatten(1, model.vision.encoder.grid)
found = model.select(volume, ["There is a nodule in the right upper lobe.", "No pleural effusion."])
shares = model.predict_organs(volume)  # (1, N, {len(spec.organs)})
```

Volumes: {shape} voxels of {spacing} mm, the middle of the scan. Organs: the paper names nine;
the published code counts nine classes of a mask, of which 0 is what no organ fills, and does not say which
organ the others are. So they are called background and class_1 to class_{len(spec.organs) - 1} here.

Research use only: not a medical device. No evaluation was made at import.
"""
