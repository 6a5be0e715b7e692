"""Names of vision transformers from elsewhere, in one form: that of `models.vit.VisionTransformer`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

_BLOCK = "blocks/{}/"
# Timm's names, and those of the masked autoencoders that were released with them.
_TIMM = {
    r"cls_token": "class_token",
    r"pos_embed": "positions",
    r"patch_embed\.proj": "embed/projection",
    r"norm_pre": "pre_norm",
    r"norm": "norm",
    r"blocks\.(\d+)\.norm1": _BLOCK + "attention_norm",
    r"blocks\.(\d+)\.attn\.qkv": _BLOCK + "attention/qkv",
    r"blocks\.(\d+)\.attn\.proj": _BLOCK + "attention/output",
    r"blocks\.(\d+)\.norm2": _BLOCK + "mlp_norm",
    r"blocks\.(\d+)\.mlp\.fc1": _BLOCK + "mlp_in",
    r"blocks\.(\d+)\.mlp\.fc2": _BLOCK + "mlp_out",
}
# Hugging Face's ViT and ViTMAE; transformers 5 gave the same weights shorter names inside its modules.
_LAYER = r"(?:encoder\.layer|layers)\.(\d+)\."
_HUGGING_FACE = {
    r"embeddings\.cls_token": "class_token",
    r"embeddings\.position_embeddings": "positions",
    r"embeddings\.patch_embeddings\.projection": "embed/projection",
    r"layernorm": "norm",
    _LAYER + r"layernorm_before": _BLOCK + "attention_norm",
    _LAYER + r"attention\.(?:attention\.query|q_proj)": _BLOCK + "attention/query",
    _LAYER + r"attention\.(?:attention\.key|k_proj)": _BLOCK + "attention/key",
    _LAYER + r"attention\.(?:attention\.value|v_proj)": _BLOCK + "attention/value",
    _LAYER + r"attention\.(?:output\.dense|o_proj)": _BLOCK + "attention/output",
    _LAYER + r"layernorm_after": _BLOCK + "mlp_norm",
    _LAYER + r"(?:intermediate\.dense|mlp\.fc1)": _BLOCK + "mlp_in",
    _LAYER + r"(?:output\.dense|mlp\.fc2)": _BLOCK + "mlp_out",
}
# OpenAI's CLIP and what was built on its code.
_RESBLOCK = r"transformer\.resblocks\.(\d+)\."
_CLIP = {
    r"class_embedding": "class_token",
    r"positional_embedding": "positions",
    r"conv1": "embed/projection",
    r"ln_pre": "pre_norm",
    r"ln_post": "norm",
    _RESBLOCK + r"ln_1": _BLOCK + "attention_norm",
    _RESBLOCK + r"attn\.in_proj": _BLOCK + "attention/qkv",
    _RESBLOCK + r"attn\.out_proj": _BLOCK + "attention/output",
    _RESBLOCK + r"ln_2": _BLOCK + "mlp_norm",
    _RESBLOCK + r"mlp\.c_fc": _BLOCK + "mlp_in",
    _RESBLOCK + r"mlp\.c_proj": _BLOCK + "mlp_out",
}
# Our own, as `medclip export` writes them.
_OWN_BLOCK = r"blocks\.(\d+)\."
_OWN = {
    r"class_token": "class_token",
    r"positions": "positions",
    r"embed\.projection": "embed/projection",
    r"pre_norm": "pre_norm",
    r"norm": "norm",
    r"skip_norm": "skip_norm",
} | {
    _OWN_BLOCK + part.replace("/", r"\."): _BLOCK + part
    for part in ("attention_norm", "attention/qkv", "attention/output", "mlp_norm", "mlp_in", "mlp_out")
}


@dataclass(frozen=True)
class Layout:
    """How a code base names a vision transformer's weights.

    Attributes:
        name: for messages.
        mark: regex of one name (behind a prefix) that no other layout has.
        modules: regex of a module's or a table's name to ours; "{}" is the block's number.
        others: regex of names that stand beside the encoder and are left out.
        activation: of the MLPs, where the layout tells.
    """

    name: str
    mark: str
    modules: Mapping[str, str]
    others: str
    activation: str = "gelu"


LAYOUTS = (
    Layout(
        "timm or MAE", r"patch_embed\.proj\.weight", _TIMM, r"decoder_|mask_token|head\.|fc_norm\.|head_drop"
    ),
    Layout(
        "Hugging Face ViT",
        r"embeddings\.patch_embeddings\.projection\.weight",
        _HUGGING_FACE,
        r"decoder\.|pooler\.|classifier\.|embeddings\.mask_token",
    ),
    Layout("CLIP", r"conv1\.weight", _CLIP, r"proj$", activation="quick_gelu"),
    Layout("medclip_jax", r"embed\.projection\.weight", _OWN, r"grid_(pool|scale|shift)"),
)


@dataclass(frozen=True)
class Encoder:
    """A vision transformer's weights under our names, in PyTorch's shapes.

    Attributes:
        layout: whose names they had.
        weights: "class_token", "positions", and modules with "/weight" and "/bias" behind their names;
            queries, keys and values fused.
        left_out: names that belong to no encoder (decoders, heads).
    """

    layout: Layout
    weights: dict[str, np.ndarray]
    left_out: list[str]

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len({name.split("/")[1] for name in self.weights if name.startswith("blocks/")})


def recognize(state_dict: Mapping[str, np.ndarray]) -> Encoder:
    """Find the vision transformer in a checkpoint.

    Args:
        state_dict: name to array. What does not share the encoder's prefix ("vit.", "module.",
            "vision_encoder.visual.", ...) is left out.

    Returns:
        Its weights under our names.

    Raises:
        ValueError: no layout fits, or the encoder holds weights that this architecture has no place for.
    """
    for layout in LAYOUTS:
        marks = [
            match
            for name in state_dict
            if (match := re.fullmatch(rf"(.*\.)?{layout.mark}", name)) and "decoder" not in name
        ]
        if marks:
            return _rename(state_dict, layout, min((match[1] or "" for match in marks), key=len))
    names = ", ".join(sorted(state_dict)[:4])
    raise ValueError(
        f"no vision transformer that is known here ({', '.join(layout.name for layout in LAYOUTS)}): the "
        f"checkpoint holds {len(state_dict)} weights such as {names}. Rename them to timm's names, or check "
        "that the file is the right one"
    )


def _rename(state_dict: Mapping[str, np.ndarray], layout: Layout, prefix: str) -> Encoder:
    weights: dict[str, np.ndarray] = {}
    left_out, unknown = [], []
    for name, array in state_dict.items():
        inside = name.removeprefix(prefix)
        if not name.startswith(prefix) or re.match(layout.others, inside):
            left_out.append(name)
            continue
        ours = _ours(inside, layout.modules)
        if ours is None:
            unknown.append(name)
        else:
            weights[ours] = np.asarray(array, np.float32)
    if unknown:
        raise ValueError(
            f"{len(unknown)} weights have no place in a plain vision transformer, such as "
            f"{', '.join(sorted(unknown)[:4])}: the checkpoint is of another architecture (layer scale, "
            "register tokens, gated MLP?), which cannot start this tower"
        )
    return Encoder(layout, _fused(weights), left_out)


def _ours(name: str, modules: Mapping[str, str]) -> str | None:
    for pattern, ours in modules.items():
        match = re.fullmatch(rf"{pattern}(?:[._](weight|bias))?", name)
        if match:
            *blocks, kind = match.groups()
            return ours.format(*blocks) + (f"/{kind}" if kind else "")
    return None


def _fused(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    fused = dict(weights)
    for name in weights:
        if "/attention/query/" in name:
            parts = [name.replace("/query/", f"/{part}/") for part in ("query", "key", "value")]
            missing = [part for part in parts if part not in weights]
            if missing:
                raise ValueError(f"the checkpoint lacks {missing[0]}: a file is missing or damaged")
            fused[name.replace("/query/", "/qkv/")] = np.concatenate([fused.pop(part) for part in parts])
    return fused
