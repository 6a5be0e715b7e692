"""A medclip model in PyTorch: CT volumes and reports in, vectors of one joint space out.

This file is all the code of an exported model and needs nothing but torch. Two ways to load a folder:

    from transformers import AutoModel
    model = AutoModel.from_pretrained(DIR, trust_remote_code=True)      # also a hub id

    import sys; sys.path.insert(0, DIR)                                 # without transformers
    from modeling_medclip import MedclipModel
    model = MedclipModel.from_pretrained(DIR)

and then:

    volume = model.prepare(voxels, affine)              # HU and the affine as nibabel gives them
    model.embed_volumes(volume[None]).mean              # (1, E), L2-normalised
    model.embed_texts(["There is cardiomegaly."]).mean  # (1, E)
    model.zero_shot(volume)                             # {finding: probability}

`model.prepare(image)` and `model.zero_shot(image)` take images of nibabel and SimpleITK, too.

Volumes have axes (D, H, W) = (superior, anterior, right), indices growing that way. `embed_volumes`,
`embed_texts`, `zero_shot` and `reconstruct` keep no gradients; `forward`, `patch_tokens` and the towers do.
"""

from __future__ import annotations

import json
import math
import re
import string
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

try:
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.utils import cached_file

    TRANSFORMERS = True
except ImportError:  # torch alone is enough
    TRANSFORMERS = False

    class PretrainedConfig:
        """The entries of config.json as attributes."""

        def __init__(self, **entries):
            self.__dict__.update(entries)

    class PreTrainedModel(nn.Module):
        """What `MedclipModel` needs of the class of this name in transformers."""

        def __init__(self, config: PretrainedConfig):
            super().__init__()
            self.config = config

        def post_init(self) -> None:
            """Transformers sets initial weights here; ours all come from the file."""


AIR_HU = -1024
"""Fills what lies outside the scan."""
PADDING_BELOW_HU = -1400
"""Lower values mark voxels outside the scanner's field of view."""
IDEOGRAPHS = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip
"""Code points that BERT's tokenizer takes for words of their own."""
TOKENIZER_FILES = "vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
HUB_OPTIONS = "cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token"
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
}


class MedclipConfig(PretrainedConfig):
    """config.json: `objective`, `data`, `crop`, `modality`, `text_length`, `prompts`."""

    model_type = "medclip"


class Embedding(NamedTuple):
    """Points of the joint space, L2-normalised (B, E); `log_variance` (B, E) where the model has one."""

    mean: Tensor
    log_variance: Tensor | None = None


class MedclipOutput(NamedTuple):
    """What `MedclipModel.forward` returns; None for what was not asked for."""

    volumes: Embedding | None
    texts: Embedding | None
    logits: Tensor | None
    """(volumes, texts): `similarity` times the learned scale, plus the learned bias where there is one."""


class Reconstruction(NamedTuple):
    """(B, D, H, W, C) each, windows in [-1, 1]: as it was, hidden patches NaN, hidden patches predicted."""

    original: Tensor
    visible: Tensor
    completed: Tensor


# --- blocks ---------------------------------------------------------------------------------------------


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection: (B, T, W) to (B, T, W)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` (B, 1, 1, T) is added to the scores: 0, or a large negative number on padding."""
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.output(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """``x + f(norm(x))`` for attention, then for the MLP; with `post_norm` (BERT) ``norm(x + f(x))``."""

    def __init__(self, width: int, heads: int, hidden: int, epsilon=1e-6, activation="gelu", post_norm=False):
        super().__init__()
        self.post_norm, self.activation = post_norm, ACTIVATIONS[activation]
        self.attention_norm = nn.LayerNorm(width, eps=epsilon)
        self.attention = SelfAttention(width, heads)
        self.mlp_norm = nn.LayerNorm(width, eps=epsilon)
        self.mlp_in = nn.Linear(width, hidden)
        self.mlp_out = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, W) to (B, T, W)."""
        if self.post_norm:
            tokens = self.attention_norm(tokens + self.attention(tokens, mask))
            return self.mlp_norm(tokens + self.mlp_out(self.activation(self.mlp_in(tokens))))
        tokens = tokens + self.attention(self.attention_norm(tokens), mask)
        return tokens + self.mlp_out(self.activation(self.mlp_in(self.mlp_norm(tokens))))


def sincos_3d(grid: Sequence[int], width: int) -> Tensor:
    """Fixed positions (d * h * w, width): for each axis width // 6 sines, then cosines; zeros at the end."""
    count = width // 6
    omega = 10_000.0 ** (-torch.arange(count, dtype=torch.float64) / count)
    parts = []
    for axis, size in enumerate(grid):
        angle = torch.arange(size, dtype=torch.float64)[:, None] * omega
        table = torch.cat([angle.sin(), angle.cos()], dim=1).float()
        shape = [size if other == axis else 1 for other in range(3)]
        parts.append(table.view(*shape, 2 * count).expand(*grid, 2 * count))
    return F.pad(torch.cat(parts, dim=-1).flatten(0, 2), (0, width - 6 * count))


def patchify(volume: Tensor, patch: Sequence[int]) -> Tensor:
    """(B, D, H, W, C) to (B, N, voxels * C): patches, and the voxels in them, in order; channels fastest."""
    for axis, step in zip((1, 3, 5), patch, strict=True):
        volume = volume.unflatten(axis, (-1, step))
    return volume.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4).flatten(1, 3)


def unpatchify(patches: Tensor, grid: Sequence[int], patch: Sequence[int]) -> Tensor:
    """Undo `patchify`."""
    cut = patches.reshape(len(patches), *grid, *patch, -1).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return cut.flatten(5, 6).flatten(3, 4).flatten(1, 2)


def blobs(volume: Tensor) -> Tensor:
    """How far every second voxel of HU (B, D, H, W) stands out on all sides, as the library's `blobs`.

    The mean of 3 x 3 x 3 voxels less the highest such mean at 14 points around it; (B, d, h, w).
    """
    tissue = volume.float().round().clamp(-1000, 100)[:, None]
    means = F.avg_pool3d(F.pad(tissue, (1,) * 6, mode="replicate"), 3, stride=1)
    wide = F.pad(means, (3,) * 6, mode="replicate")[:, 0]
    steps = [(z, y, x) for z in (-1, 0, 1) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    highest = None
    for step in steps:
        axes = sum(map(abs, step))
        if axes in (1, 3):
            far = 3 if axes == 1 else 2  # voxels, along each axis
            depth, height, width = (
                slice(3 + far * way, 3 + far * way + size, 2)
                for way, size in zip(step, volume.shape[1:], strict=True)
            )
            around = wide[:, depth, height, width]
            highest = around if highest is None else torch.maximum(highest, around)
    return means[:, 0, ::2, ::2, ::2] - highest


# --- towers ---------------------------------------------------------------------------------------------


class VisionTransformer(nn.Module):
    """Patches, positions, a class token, pre-norm blocks, a final LayerNorm.

    Args:
        config: `objective["vision"]` of config.json.
        shape: (D, H, W) of what it sees: voxels, or cells of them.
    """

    def __init__(self, config: dict, shape: Sequence[int]):
        super().__init__()
        width, epsilon = config["width"], config["layer_norm_epsilon"]
        self.width, self.pooling, self.peaks = width, config["pooling"], config["peaks"]
        self.extremes = config.get("extremes", False)  # folders of earlier versions do not say
        self.patch, self.channels = tuple(config["patch"]), len(config["windows"])
        self.grid = tuple(size // step for size, step in zip(shape, self.patch, strict=True))
        count, voxels = math.prod(self.grid), math.prod(self.patch) * self.channels
        projection = nn.Linear(voxels + self.channels * self.peaks, width)
        self.embed = nn.ModuleDict({"projection": projection})
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        learned = config["position"] == "learned"
        self.positions = nn.Parameter(torch.zeros(count, width)) if learned else None
        self.pre_norm = nn.LayerNorm(width, eps=epsilon) if config["pre_norm"] else None
        block = width, config["heads"], round(width * config["mlp_ratio"]), epsilon, config["activation"]
        self.blocks = nn.ModuleList(Block(*block) for _ in range(config["depth"]))
        self.norm = nn.LayerNorm(width, eps=epsilon)
        self.skip_norm = nn.LayerNorm(width, eps=epsilon) if config["skip"] else None
        self.pooled_width = width
        if self.pooling == "grid":
            features, places = config["grid_features"], count + self.extremes
            self.pooled_width = places * features
            self.grid_pool = nn.Linear(width, features)
            self.grid_scale = nn.Parameter(torch.ones(places, features))
            self.grid_shift = nn.Parameter(torch.zeros(places, features))
        if self.extremes:
            self.extreme_scale = nn.Parameter(torch.ones(count, 2 * self.channels))
            self.extreme_shift = nn.Parameter(torch.zeros(count, 2 * self.channels))
            self.extreme_embed = nn.Linear(4 * self.channels, width)

    def forward(self, voxels: Tensor, keep: Tensor | None = None) -> Tensor:
        """Intensities (B, D, H, W, C) to tokens (B, 1 + N, width), the class token first.

        `keep` (B, K): indices of the patches to see, by default all N.
        """
        tokens = patchify(voxels, self.patch)
        if keep is not None:
            tokens = tokens.take_along_dim(keep[..., None], dim=1)
        channels = tokens.unflatten(2, (-1, self.channels))
        if self.peaks:  # each channel's maximum over the patch, with the weight of all its voxels
            tokens = torch.cat([tokens, channels.amax(dim=2) * channels.shape[2] ** 0.5], dim=-1)
        tokens = self.embed["projection"](tokens)
        table = sincos_3d(self.grid, self.width).to(tokens) if self.positions is None else self.positions
        tokens = tokens + (table if keep is None else table[keep])
        first = self.class_token.expand(tokens.shape[0], -1, -1)
        if self.extremes:  # how unusual the most unusual patch is, each at its place
            scale, shift = (x if keep is None else x[keep] for x in (self.extreme_scale, self.extreme_shift))
            unusual = torch.cat([channels.mean(dim=2), channels.amax(dim=2)], dim=-1) * scale + shift
            unusual = torch.cat([unusual.amax(dim=1), unusual.amin(dim=1)], dim=-1)
            first = first + self.extreme_embed(unusual)[:, None]
        tokens = torch.cat([first, tokens], dim=1)
        tokens = embedded = tokens if self.pre_norm is None else self.pre_norm(tokens)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        return tokens if self.skip_norm is None else tokens + self.skip_norm(embedded)

    def pool(self, tokens: Tensor) -> Tensor:
        """(B, 1 + N, width) to one vector a volume, (B, pooled_width)."""
        if self.pooling == "cls":
            return tokens[:, 0]
        if self.pooling == "mean":
            return tokens[:, 1:].mean(dim=1)
        places = tokens if self.extremes else tokens[:, 1:]
        return (self.grid_pool(places) * self.grid_scale + self.grid_shift).flatten(1)


class VisionTower(nn.Module):
    """HU to one vector: windows, then the transformer.

    Args:
        config: `objective["vision"]` of config.json.
        shape: (D, H, W) of a prepared volume.
    """

    def __init__(self, config: dict, shape: Sequence[int]):
        super().__init__()
        self.windows, self.standardize, self.cell = config["windows"], config["standardize"], config["cell"]
        self.projections = config["projections"] or ["mean"] * len(self.windows)
        cells = [size // step for size, step in zip(shape, self.cell, strict=True)]
        self.transformer = VisionTransformer(config, cells)
        self.width = self.transformer.pooled_width

    def to_voxels(self, volume: Tensor) -> Tensor:
        """HU (B, D, H, W) to (B, d, h, w, C): one value a cell, one channel a window, low -1 and high +1."""
        reduce = {"mean": torch.mean, "max": torch.amax, "min": torch.amin, "blob": torch.amax}
        channels = []
        for (low, high), projection in zip(self.windows, self.projections, strict=True):
            cut, stride = (blobs(volume), 2) if projection == "blob" else (volume.float(), 1)
            for axis, step in zip((1, 3, 5), self.cell, strict=True):
                cut = cut.unflatten(axis, (-1, step // stride))
            seen = reduce[projection](cut, dim=(2, 4, 6)).clamp(low, high)
            channels.append((seen - low) * (2.0 / (high - low)) - 1.0)
        for index, (mean, deviation) in enumerate(self.standardize):
            channels[index] = (channels[index] - mean) / deviation
        return torch.stack(channels, dim=-1).to(self.transformer.class_token.dtype)

    def to_windows(self, voxels: Tensor) -> Tensor:
        """Undo the standardization of `to_voxels`: each window within [-1, 1] again."""
        for index, (mean, deviation) in enumerate(self.standardize):
            voxels[..., index] = voxels[..., index] * deviation + mean
        return voxels

    def forward(self, volume: Tensor) -> Tensor:
        """Prepared HU (B, D, H, W) to (B, `width`)."""
        return self.transformer.pool(self.transformer(self.to_voxels(volume)))


class Bert(nn.Module):
    """BERT's encoder. Args: `objective["text"]` and `data` of config.json."""

    def __init__(self, config: dict, data: dict):
        super().__init__()
        width, epsilon = config["width"], config["layer_norm_epsilon"]
        self.words = nn.Embedding(config["vocabulary"] or data["vocabulary_size"], width)
        self.positions = nn.Embedding(config["max_positions"], width)
        self.types = nn.Embedding(config["type_vocabulary"], width)
        self.norm = nn.LayerNorm(width, eps=epsilon)
        block = (
            width,
            config["heads"],
            round(width * config["mlp_ratio"]),
            epsilon,
            config["activation"],
            True,
        )
        self.blocks = nn.ModuleList(Block(*block) for _ in range(config["depth"]))

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        """Ids (B, L), and (B, L) True where they are no padding, to states (B, L, width)."""
        places = self.positions.weight[: tokens.shape[1]] + self.types.weight[0]
        states = self.norm(self.words(tokens) + places)
        mask = torch.zeros_like(states[..., 0]).masked_fill(~real, torch.finfo(states.dtype).min)
        for block in self.blocks:
            states = block(states, mask[:, None, None, :])
        return states


class TextTower(nn.Module):
    """Token ids to one vector a text. Args: `objective["text"]` and `data` of config.json."""

    def __init__(self, config: dict, data: dict):
        super().__init__()
        self.encoder = Bert(config, data)
        self.pooling, self.pad, self.width = config["pooling"], data["pad_token"], config["width"]

    def forward(self, tokens: Tensor) -> Tensor:
        """Ids (B, L) to (B, `width`)."""
        return self.pool(*self.states(tokens), tokens)

    def states(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (B, L) to states (B, L, `width`), and (B, L) False on padding."""
        real = tokens != self.pad
        return self.encoder(tokens, real), real

    def pool(self, states: Tensor, real: Tensor, tokens: Tensor) -> Tensor:
        """States (B, L, `width`) to one vector a text, (B, `width`)."""
        if self.pooling == "cls":
            return states[:, 0]
        if (
            self.pooling == "highest_id"
        ):  # CLIP finds its end-of-text token so; Cardiac-CLIP did it on BERT ids
            return states.take_along_dim(tokens.argmax(dim=1)[:, None, None], dim=1)[:, 0]
        share = real / real.sum(dim=1, keepdim=True).clamp(min=1)
        return (share[..., None] * states.float()).sum(dim=1).to(states.dtype)


class GaussianHead(nn.Module):
    """Pooled vectors to means, and tokens, by what a learned query finds among them, to log-variances.

    Args:
        pooled: features of a pooled vector.
        width: features of a token.
        out: dimensions of the joint space.
        heads: of the query's attention.
        bias: of the means' linear map.
    """

    def __init__(self, pooled: int, width: int, out: int, heads: int, bias: bool):
        super().__init__()
        self.heads = heads
        self.mean = nn.ModuleDict({"linear": nn.Linear(pooled, out, bias=bias)})
        maps = {name: nn.Linear(width, width) for name in ("to_query", "to_key", "to_value", "output")}
        self.variance = nn.ModuleDict({**maps, "log_variance": nn.Linear(width, out)})
        self.variance.query = nn.Parameter(torch.zeros(width))

    def forward(self, pooled: Tensor, tokens: Tensor, inside: Tensor | None = None) -> Embedding:
        """(B, F) and (B, N, W) to (B, E) each; `inside` (B, N): where the query may look, by default all."""
        found, linear = self.variance, self.mean["linear"]
        if inside is not None:  # nowhere is everywhere, as nothing else is finite
            inside = (inside | ~inside.any(dim=1, keepdim=True))[:, None, None, :]
        # Not len(tokens): an exporter would take it for a constant.
        query = found["to_query"](found.query).expand(tokens.shape[0], 1, -1)
        parts = query, found["to_key"](tokens), found["to_value"](tokens)
        parts = [part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts]
        mixed = F.scaled_dot_product_attention(*parts, attn_mask=inside)[:, :, 0].flatten(1)
        return Embedding(linear(pooled), found["log_variance"](found["output"](mixed)).float())


class MaskedDecoder(nn.Module):
    """Predicts every patch from the visible ones.

    Args:
        config: `objective["decoder"]` of config.json.
        encoder: whose tokens it gets.
        numbers: to predict for each patch.
    """

    def __init__(self, config: dict, encoder: VisionTransformer, numbers: int):
        super().__init__()
        width, heads = config["width"], config["heads"]
        self.grid, self.width = encoder.grid, width
        self.embed = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, heads, 4 * width) for _ in range(config["depth"]))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = nn.Linear(width, numbers)

    def forward(self, tokens: Tensor, keep: Tensor) -> Tensor:
        """Tokens (B, 1 + K, W) of the patches `keep` (B, K) to all patches (B, N, voxels * C)."""
        tokens = self.embed(tokens)
        places = keep[..., None].expand(-1, -1, self.width)
        placed = self.mask_token.expand(len(tokens), math.prod(self.grid), -1)
        placed = placed.scatter(1, places, tokens[:, 1:]) + sincos_3d(self.grid, self.width).to(tokens)
        tokens = torch.cat([tokens[:, :1], placed], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.predict(self.norm(tokens)[:, 1:])


# --- the model ------------------------------------------------------------------------------------------


OBJECTIVES = "clip", "cardiac_clip", "hipro_ct", "mae"


class MedclipModel(PreTrainedModel):
    """Towers, and the preparation their input needs, of one of `OBJECTIVES`.

    Wherever a method takes `volumes`: prepared (B, D, H, W) or (D, H, W) HU, or one scan as an image of
    nibabel or SimpleITK or as a tuple of the arguments of `prepare`, or a list of any of these. `texts`:
    strings, or their ids (B, L).
    """

    config_class = MedclipConfig
    main_input_name = "volumes"

    def __init__(self, config: MedclipConfig):
        super().__init__(config)
        objective, data = config.objective, config.data
        if objective["name"] not in OBJECTIVES:
            raise ValueError(
                f"objective {objective['name']!r} is newer than this file: export the model again"
            )
        check_config(objective, data)
        self.tokenizer, self.tokenizer_files = None, {}
        self.vision = VisionTower(objective["vision"], data["shape"])
        if objective["name"] == "mae":
            vit, windows = self.vision.transformer, objective.get("paint_windows", ())
            self.painted_patch = tuple(
                a * b for a, b in zip(vit.patch, self.vision.cell if windows else (1, 1, 1), strict=True)
            )
            numbers = math.prod(self.painted_patch) * len(windows or self.vision.windows)
            self.decoder = MaskedDecoder(objective["decoder"], vit, numbers)
        else:
            self.text = TextTower(objective["text"], data)
            self._add_heads(objective)
        self.post_init()

    def _add_heads(self, objective: dict) -> None:
        """What follows the two towers: Gaussian heads or projections, and the scale of the logits."""
        width, vision, text = objective["embedding_width"], self.vision, self.text
        if objective["name"] == "hipro_ct":
            seen, bias = vision.transformer.width, objective["centered"]
            self.volume_head = GaussianHead(vision.width, seen, width, objective["vision"]["heads"], bias)
            self.text_head = GaussianHead(text.width, text.width, width, objective["text"]["heads"], bias)
        else:
            bias = objective["centered"] or objective["projection_bias"]
            for name, tower in (("vision", vision), ("text", text)):
                linear = nn.Linear(tower.width, width, bias=bias)
                setattr(self, f"{name}_projection", nn.ModuleDict({"linear": linear}))
        biased = objective["name"] == "hipro_ct" or objective.get("loss") == "sigmoid"
        names = ("log_scale", "bias") if biased else ("log_scale",)
        self.logit_scale = nn.ParameterDict({name: torch.zeros(()) for name in names})

    @classmethod
    def from_pretrained(cls, folder, *args, **options) -> MedclipModel:
        """Load a folder; with transformers installed also a hub id, and any option of transformers.

        Raises:
            FileNotFoundError: no config.json there.
            ValueError: weights are missing or left over.
        """
        if TRANSFORMERS:
            if not Path(folder).is_dir() and Path(folder).parent.is_dir() and str(Path(folder).parent) != ".":
                raise FileNotFoundError(f"no folder {folder}: a mistyped path is not asked for on the hub")
            with_info = options.pop("output_loading_info", False)
            model, info = super().from_pretrained(folder, *args, output_loading_info=True, **options)
            missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
            hub = {name: value for name, value in options.items() if name in HUB_OPTIONS}
            hub["_raise_exceptions_for_missing_entries"] = False
            files = {name: cached_file(folder, name, **hub) for name in TOKENIZER_FILES}
        else:
            folder = Path(folder)
            if not (folder / "config.json").is_file():
                raise FileNotFoundError(
                    f"no config.json in {folder}: give an exported folder; hub ids need transformers"
                )
            config = MedclipConfig(**read_json(folder / "config.json"))
            with torch.device("meta"):  # every weight comes from the file
                model = cls(config).eval()
            missing, unexpected = model.load_state_dict(read_weights(folder), strict=False, assign=True)
            files = {name: folder / name for name in TOKENIZER_FILES if (folder / name).is_file()}
        if missing or unexpected:
            raise ValueError(f"config.json and weights differ: missing {missing}, unexpected {unexpected}")
        texts = {name: Path(file).read_text(encoding="utf-8") for name, file in files.items() if file}
        model.tokenizer_files = texts
        model.tokenizer = read_tokenizer(texts, model.config.text_length, model.config.data["pad_token"])
        return (model, info) if TRANSFORMERS and with_info else model

    def save_pretrained(self, folder, *args, **options) -> None:
        """Write a folder that loads in the same ways (needs transformers)."""
        super().save_pretrained(folder, *args, **options)
        for name, content in self.tokenizer_files.items():
            (Path(folder) / name).write_text(content, encoding="utf-8")

    def prepare(self, voxels, affine=None, *, spacing=None, center=None) -> Tensor:
        """Bring a scan to the grid the model was trained on, as `medclip prepare` does.

        Args:
            voxels: an image of nibabel or SimpleITK; or (I, J, K) HU, array or tensor, with `affine` or
                `spacing`; with `spacing` in the order (superior, anterior, right).
            affine: (4, 4) from array index to RAS mm, as nibabel gives it.
            spacing: mm along the three axes, instead of `affine`.
            center: RAS mm of the crop's middle, by default the scan's; with `spacing`, mm to the right of,
                in front of and above the first voxel.

        Returns:
            (D, H, W) int16 HU, on the CPU.

        Raises:
            ValueError: the values are no HU, or the geometry is none; the message says what to do.
            TypeError: neither an image nor an array.
        """
        data, modality = self.config.data, self.config.modality
        if is_image(voxels):
            if affine is not None or spacing is not None:
                raise ValueError("an image has its own affine: leave affine and spacing out")
            voxels, affine = array_and_affine(voxels)
        if (affine is None) == (spacing is None):
            raise ValueError("give the affine (array index to RAS mm) or the spacing (mm), one of the two")
        if spacing is not None:
            depth, height, width = spacing
            affine = [[0, 0, width, 0], [0, height, 0, 0], [depth, 0, 0, 0], [0, 0, 0, 1]]
        if center is None and self.config.crop != "center":
            wanted = f"crops around {self.config.crop!r}: give center=(x, y, z), in RAS mm, of that organ"
            warnings.warn(f"the model was trained on {wanted}", stacklevel=2)
        affine = torch.as_tensor(affine, dtype=torch.float64).cpu()
        if affine.shape != (4, 4):
            raise ValueError(f"the affine is (4, 4), array index to RAS mm, not {tuple(affine.shape)}")
        voxels, affine = to_canonical(to_hu(voxels, modality), affine)
        if modality == "CT":
            check_hu(voxels)
        fill = AIR_HU if modality == "CT" else int(voxels.min())
        return crop_and_resample(voxels, affine, data["shape"], data["spacing"], center, fill)

    def _prepared(self, volumes) -> Tensor:
        """(B, D, H, W) on the model's device, from what the public methods take."""
        if isinstance(volumes, tuple):
            volumes = self.prepare(*volumes)
        elif is_image(volumes):
            volumes = self.prepare(volumes)
        elif isinstance(volumes, list):
            if not volumes:
                raise ValueError("no volumes were given")
            volumes = torch.cat([self._prepared(volume) for volume in volumes])
        elif not hasattr(volumes, "shape"):
            raise TypeError(
                f"give arrays, images, (array, affine), or a list, not {type(volumes).__name__}: "
                "read a file with nibabel or SimpleITK"
            )
        volumes = torch.as_tensor(volumes, device=self.vision.transformer.class_token.device)
        shape = list(self.config.data["shape"])
        if volumes.ndim not in (3, 4) or list(volumes.shape[-3:]) != shape:
            found = list(volumes.shape)
            raise ValueError(
                f"volumes of {found}, the model takes {shape}: `prepare` them, or give affines too"
            )
        return volumes[None] if volumes.ndim == 3 else volumes

    def tokenize(self, texts: str | Sequence[str]) -> Tensor:
        """Ids (B, text_length) of texts, cut and padded."""
        if self.tokenizer is None:
            raise ValueError(
                "no tokenizer: the model has no text tower, or its folder no vocab.txt (a tokenizer.json "
                "alone needs the tokenizers package); give ids"
            )
        return self.tokenizer([texts] if isinstance(texts, str) else list(texts))

    def scale(self) -> Tensor:
        """The learned multiplier of cosines, within 1 and 100."""
        return self.logit_scale["log_scale"].clamp(0.0, math.log(100.0)).exp()

    def patch_tokens(self, volumes) -> Tensor:
        """Tokens (B, 1 + N, width) after the last LayerNorm: the class token, then patches, width fastest."""
        return self.vision.transformer(self.vision.to_voxels(self._prepared(volumes)))

    def forward(self, volumes=None, texts=None) -> MedclipOutput:
        """Embed volumes, texts, or both and compare them. With gradients."""
        seen = None if volumes is None else self._see(self._prepared(volumes))
        read = None
        if texts is not None:
            tokens = texts if isinstance(texts, Tensor) else self.tokenize(texts)
            read = self._read(tokens.to(self.text.encoder.words.weight.device))
        logits = None
        if seen is not None and read is not None:
            logits = self.scale() * similarity(seen, read)
            logits = logits + self.logit_scale["bias"] if "bias" in self.logit_scale else logits
        return MedclipOutput(seen, read, logits)

    def _see(self, volumes: Tensor) -> Embedding:
        tokens = self.vision.transformer(self.vision.to_voxels(volumes))
        pooled = self.vision.transformer.pool(tokens)
        if hasattr(self, "volume_head"):
            return normalized(self.volume_head(pooled, tokens[:, 1:]))
        return normalized(
            Embedding(self.vision_projection["linear"](pooled) if hasattr(self, "text") else pooled)
        )

    def _read(self, tokens: Tensor) -> Embedding:
        states, real = self.text.states(tokens)
        pooled = self.text.pool(states, real, tokens)
        if hasattr(self, "text_head"):
            return normalized(self.text_head(pooled, states, real))
        return normalized(Embedding(self.text_projection["linear"](pooled)))

    @torch.no_grad()
    def embed_volumes(self, volumes) -> Embedding:
        """Vectors of volumes, mean (B, E); log_variance (B, E) where the model has one."""
        if volumes is None:
            raise TypeError("no volumes were given")
        volumes = self._prepared(volumes)
        if self.config.modality == "CT" and volumes.amin() >= 0:
            raise ValueError("no voxel is below 0: volumes are HU, without any scaling of your own")
        return self(volumes=volumes).volumes

    @torch.no_grad()
    def embed_texts(self, texts) -> Embedding:
        """Vectors of texts, mean (B, E); log_variance (B, E) where the model has one."""
        if not isinstance(texts, Tensor):
            texts = [texts] if isinstance(texts, str) else list(texts or ())
            if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
                raise ValueError("give one text or a list of texts, none of them empty")
        return self(texts=texts).texts

    @torch.no_grad()
    def zero_shot(self, volumes, findings=None) -> dict[str, float] | Tensor:
        """Probability of findings: the softmax over "There is X." and "There is no X.", or a finding's own.

        Args:
            volumes: see the class.
            findings: names in config.prompts, in any case and with spaces, by default all; or
                {name: (positive, negative)}, each a sentence or a list of several, which are averaged.

        Returns:
            {finding: probability} of a single volume; of several, (B, F) float64 on the CPU.
        """
        known = self.config.prompts
        if not isinstance(findings, dict):
            names = [findings] if isinstance(findings, str) else list(known if findings is None else findings)
            plain = {name: re.sub(r"[\W_]+", "_", str(name).strip().lower()) for name in names}
            if not names or not known.keys() >= set(plain.values()):
                raise KeyError(f"give names among {[*known]}, or {{name: (positive, negative)}}; not {names}")
            findings = {name: known[plain[name]] for name in names}
        sides = [[x] if isinstance(x, str) else list(x) for pair in findings.values() for x in pair]
        texts = averaged(self.embed_texts([text for side in sides for text in side]), list(map(len, sides)))
        alike = similarity(*map(doubled, (self.embed_volumes(volumes), texts)))
        positive, negative = alike.unflatten(1, (-1, 2)).unbind(2)
        scores = torch.sigmoid(self.scale().item() * (positive - negative))
        single = isinstance(volumes, tuple) or is_image(volumes) or getattr(volumes, "ndim", 0) == 3
        return dict(zip(findings, scores[0].tolist(), strict=True)) if single else scores

    @torch.no_grad()
    def reconstruct(self, volumes, keep: Tensor | int) -> Reconstruction:
        """Hide patches and predict them; masked autoencoders only.

        Args:
            volumes: see the class.
            keep: indices (B, K) of the patches that stay visible, or how many, drawn at random.
        """
        vit, volumes = self.vision.transformer, self._prepared(volumes)
        voxels, windows = self.vision.to_voxels(volumes), self.config.objective.get("paint_windows", ())
        shown = [(volumes.clamp(low, high) - low) * (2.0 / (high - low)) - 1.0 for low, high in windows]
        target = patchify(torch.stack(shown, dim=-1) if windows else voxels, self.painted_patch)
        if not isinstance(keep, Tensor):
            keep = torch.rand(target.shape[:2]).argsort(dim=1)[:, :keep]
        keep = keep.to(voxels.device)
        painted = self.decoder(vit(voxels, keep), keep)
        if self.config.objective["normalize_patches"]:  # predicted up to mean and scale: put those back
            variance, mean = torch.var_mean(target, dim=-1, keepdim=True, correction=0)
            painted = painted * (variance + 1e-6).sqrt() + mean
        hidden = torch.ones_like(target).scatter(1, keep[..., None].expand(-1, -1, target.shape[2]), 0) > 0
        kinds = target, target.masked_fill(hidden, math.nan), torch.where(hidden, painted, target)
        grids = (unpatchify(patches, vit.grid, self.painted_patch) for patches in kinds)
        return Reconstruction(*(grid if windows else self.vision.to_windows(grid) for grid in grids))


def normalized(embedding: Embedding) -> Embedding:
    """Means of length 1, in float32."""
    return embedding._replace(mean=F.normalize(embedding.mean.float(), dim=-1, eps=1e-6))


def doubled(embedding: Embedding) -> Embedding:
    """In float64 on the CPU."""
    return Embedding(*(None if part is None else part.cpu().double() for part in embedding))


def averaged(texts: Embedding, counts: list[int]) -> Embedding:
    """One embedding for each group of texts: their mean, of length 1, with the mean of the variances."""
    if max(counts) == 1:
        return texts
    means = [group.mean(dim=0) if len(group) > 1 else group[0] for group in texts.mean.split(counts)]
    mean = torch.stack([nn.functional.normalize(one, dim=0) for one in means])
    if texts.log_variance is None:
        return Embedding(mean)
    groups = texts.log_variance.split(counts)
    return Embedding(mean, torch.stack([group.exp().mean(dim=0).log() for group in groups]))


def similarity(volumes: Embedding, texts: Embedding) -> Tensor:
    """(volumes, texts): cosines; of Gaussians less half of both traces, 1 - CSD / 2."""
    alike = volumes.mean @ texts.mean.T
    if volumes.log_variance is None:
        return alike
    seen, read = (embedding.log_variance.exp().sum(dim=-1) for embedding in (volumes, texts))
    return alike - 0.5 * (seen[:, None] + read[None, :])


# --- from scans as they come to the model's grid --------------------------------------------------------


def to_hu(voxels, modality: str) -> Tensor:
    """(I, J, K) of any real type to int16: padding below -1400 HU made air, MR in fractions scaled up."""
    if hasattr(voxels, "astype"):  # NumPy's: native byte order, no negative strides
        voxels = voxels.astype(voxels.dtype.newbyteorder("="))
    if not hasattr(voxels, "shape"):
        raise TypeError(f"voxels are an array or an image, not {type(voxels).__name__}")
    voxels = torch.as_tensor(voxels).cpu()
    if voxels.dtype == torch.bool or voxels.is_complex():
        raise TypeError(f"voxels are real numbers, not {voxels.dtype}")
    if voxels.ndim != 3:
        raise ValueError(f"a scan has three axes, not {voxels.ndim}")
    if voxels.dtype != torch.int16:
        fractions = voxels.is_floating_point()
        voxels = voxels if fractions else voxels.to(torch.int32)
        low, high = (float(end) for end in voxels.aminmax())
        if modality == "MR" and fractions and (high > 32767 or low < -32768 or high - low < 256):
            factor = 4095.0 / max(abs(low), abs(high), 1e-30)
            voxels, high = voxels * factor, high * factor
        if not (math.isfinite(low) and high <= 32767):
            raise ValueError(
                f"values from {low:g} to {high:g}: write air (-1024) into NaN, check the rescale"
            )
        voxels = voxels.clamp(min=-32768).round().to(torch.int16)
    return voxels.masked_fill(voxels < PADDING_BELOW_HU, AIR_HU) if modality == "CT" else voxels


def check_hu(voxels: Tensor) -> None:
    """Refuse what is no CT in HU: nothing below 0, next to no range, or another offset.

    Raises:
        ValueError: with what to do.
    """
    step = max(1, round((voxels.numel() / 1e6) ** (1 / 3)))
    values = voxels[::step, ::step, ::step].flatten().float()
    low, high = values.aminmax()
    if high - low < 200:
        raise ValueError(
            f"values from {low:g} to {high:g} are no HU: undo your scaling, or give the scan itself"
        )
    if voxels.min() >= 0:
        raise ValueError("no voxel is below 0 HU: apply the scan's rescale slope and intercept")
    if not is_ct(values):
        for offset in (1024, 1000, -1024, -1000):
            if is_ct(values - offset):
                raise ValueError(f"values are about {offset} off: HU + ({offset}) is no HU, take it away")


def is_ct(values: Tensor) -> bool:
    """Whether values (N,) look like HU: air near -1000, and most of what is no air like soft tissue."""
    first = values.kthvalue(max(1, round(0.01 * len(values)))).values
    body = values[values > -500]
    soft = (body.abs() <= 150).sum()
    return bool(-1100 <= first <= -850 and soft >= 0.03 * len(values) and soft >= 0.4 * len(body))


def is_image(scan) -> bool:
    """Whether it is an image of nibabel or SimpleITK."""
    return hasattr(scan, "GetDirection") or (hasattr(scan, "dataobj") and hasattr(scan, "affine"))


def array_and_affine(image) -> tuple:
    """Voxels (I, J, K) of an image of nibabel or SimpleITK, and the (4, 4) affine from index to RAS mm."""
    if hasattr(image, "dataobj"):
        voxels = image.get_fdata(dtype="float32")
        while voxels.ndim > 3 and voxels.shape[-1] == 1:
            voxels = voxels[..., 0]
        return voxels, image.affine
    import SimpleITK

    if image.GetDimension() != 3:
        raise ValueError(f"a scan has three axes, not {image.GetDimension()}")
    voxels = SimpleITK.GetArrayFromImage(image).transpose()
    to_ras = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)
    affine = torch.eye(4, dtype=torch.float64)
    direction = torch.tensor(image.GetDirection(), dtype=torch.float64).view(3, 3)
    affine[:3, :3] = to_ras[:, None] * direction * torch.tensor(image.GetSpacing(), dtype=torch.float64)
    affine[:3, 3] = to_ras * torch.tensor(image.GetOrigin(), dtype=torch.float64)
    return voxels, affine


def to_canonical(voxels: Tensor, affine: Tensor) -> tuple[Tensor, Tensor]:
    """Order and flip axes to point most nearly to superior, anterior, right; nothing is interpolated.

    Returns:
        (D, H, W), and the (3, 4) affine from its index (d, h, w, 1) to RAS mm.
    """
    linear, origin = affine[:3, :3], affine[:3, 3]
    directions = linear / linear.norm(dim=0)
    cosines = directions.T @ directions - torch.eye(3, dtype=torch.float64)
    if not cosines.abs().max() < 3.5e-3:  # 0.2 degrees; NaN too
        raise ValueError("the affine's axes are not at right angles: resample the scan to a rectangular grid")
    orders = permutations(range(3))
    order = max(orders, key=lambda axes: sum(abs(directions[2 - k, axis]) for k, axis in enumerate(axes)))
    voxels, linear = voxels.permute(order), linear[:, list(order)]
    flips = [k for k in range(3) if linear[2 - k, k] < 0]
    for k in flips:
        origin = origin + linear[:, k] * (voxels.shape[k] - 1)
        linear[:, k] *= -1
    return voxels.flip(flips), torch.cat([linear, origin[:, None]], dim=1)


def crop_and_resample(voxels: Tensor, affine: Tensor, shape, spacing, center, fill: int) -> Tensor:
    """Resample to `spacing`, then cut or pad to `shape` around a point; only the voxels needed are touched.

    Args:
        voxels: (D, H, W) int16, canonical.
        affine: (3, 4) from (d, h, w, 1) to RAS mm.
        shape: wanted (D, H, W).
        spacing: wanted mm along depth, height, width.
        center: RAS mm; None for the middle.
        fill: value outside the scan.
    """
    linear, origin = affine[:, :3], affine[:, 3]
    scales = [new / old for new, old in zip(spacing, linear.norm(dim=0).tolist(), strict=True)]
    middle = (torch.tensor(voxels.shape, dtype=torch.float64) - 1) / 2
    if center is not None:
        middle = torch.linalg.solve(linear, torch.as_tensor(center, dtype=torch.float64) - origin)
    boxes, places, weights = [], [], []
    for point, old, size, scale in zip(middle.tolist(), voxels.shape, shape, scales, strict=True):
        reach = (size / 2 + 2) * scale + 2
        low, high = max(math.floor(point - reach), 0), min(math.ceil(point + reach) + 1, old)
        if low >= high:
            raise ValueError("the center lies outside the scan: give it in RAS mm")
        new = math.floor((high - low) / scale + 0.5 - 1e-6)
        while low > 0 and high < old and (new - size) % 2:  # else the crop lies half a voxel off
            low, high = low - 1, high + 1
            new = math.floor((high - low) / scale + 0.5 - 1e-6)
        new = max(new, 1)
        # The resampled box has the middle of the old one.
        point = (point - (low + high - 1) / 2) / scale + (new - 1) / 2
        start = math.floor(point - (size - 1) / 2 + 0.5 + 1e-6)
        first = max(0, start)
        last = max(first, min(new, start + size))
        boxes.append(slice(low, high))
        places.append(slice(first - start, last - start))
        weights.append(axis_weights(high - low, new, scale)[first:last])
    result = torch.full(tuple(shape), fill, dtype=torch.int16)
    box, (depth, height, width) = voxels[tuple(boxes)], weights
    for index, row in enumerate(depth, places[0].start):
        used = row.nonzero()
        near = slice(int(used[0]), int(used[-1]) + 1)
        plane = (row[near] @ box[near].float().flatten(1)).view(box.shape[1:])
        result[index, places[1], places[2]] = (height @ plane @ width.T).round().to(torch.int16)
    return result


def axis_weights(old: int, new: int, scale: float) -> Tensor:
    """Resampling matrix (new, old) of one axis: linear interpolation, averaged over a box if coarser."""
    position = (old - 1) / 2 + (torch.arange(new, dtype=torch.float64) - (new - 1) / 2) * scale
    width = math.sqrt(max(scale * scale - 1.0, 0.0))
    margin = math.ceil(width / 2 + scale) + 1
    places = torch.arange(-margin, old + margin)
    distance = position[:, None] - places

    def integral(x: Tensor) -> Tensor:
        """Of the hat function max(0, 1 - |t|), up to x."""
        x = x.clamp(-1.0, 1.0)
        return 0.5 + x - 0.5 * x * x.abs()

    weight = (1.0 - distance.abs()).clamp(min=0.0)
    if width > 1e-6:
        weight = (integral(distance + width / 2) - integral(distance - width / 2)) / width
    # Beyond the border the edge voxel repeats.
    matrix = torch.zeros(new, old, dtype=torch.float64).index_add(1, places.clamp(0, old - 1), weight)
    return (matrix / matrix.sum(dim=1, keepdim=True)).float()


# --- texts and files ------------------------------------------------------------------------------------


class WordPiece:
    """BERT's tokenizer of one text: clean, split at spaces and punctuation, cut into known pieces."""

    def __init__(self, vocabulary: dict[str, int], lowercase: bool, strip_accents: bool):
        self.vocabulary, self.lowercase, self.strip_accents = vocabulary, lowercase, strip_accents
        self.special = re.compile(r"(\[(?:PAD|UNK|CLS|SEP|MASK)\])")

    def __call__(self, text: str) -> list[int]:
        """Ids from [CLS] to [SEP], nothing cut."""
        ids = [self.vocabulary["[CLS]"]]
        for part in self.special.split(text):
            for word in [part] if self.special.fullmatch(part) else self._words(part):
                ids += self._pieces(word)
        return [*ids, self.vocabulary["[SEP]"]]

    def _words(self, text: str) -> list[str]:
        kinds = {letter: unicodedata.category(letter) for letter in set(text)}
        letters = []
        for letter in text:
            if letter in "\t\n\r" or kinds[letter][0] == "Z":
                letters.append(" ")
            elif kinds[letter] not in ("Cc", "Cf", "Co", "Cs") and letter != "\ufffd":
                ideograph = any(first <= ord(letter) <= last for first, last in IDEOGRAPHS)
                letters.append(f" {letter} " if ideograph else letter)
        text = "".join(letters)
        if self.strip_accents:
            text = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
        if self.lowercase:  # letter by letter, as none depends on its neighbors
            text = "".join(c.lower() for c in text)
        return "".join(
            f" {c} " if c in string.punctuation or unicodedata.category(c)[0] == "P" else c for c in text
        ).split()

    def _pieces(self, word: str) -> list[int]:
        ids, start = [], 0
        while start < len(word) <= 100:
            ends = range(len(word), start, -1)
            pieces = ("##" * (start > 0) + word[start:end] for end in ends)
            piece = next((piece for piece in pieces if piece in self.vocabulary), None)
            if piece is None:
                return [self.vocabulary["[UNK]"]]
            ids.append(self.vocabulary[piece])
            start += len(piece) - 2 * (start > 0)
        return ids or [self.vocabulary["[UNK]"]]


def read_tokenizer(files: dict[str, str], length: int, pad: int) -> Callable[[Sequence[str]], Tensor] | None:
    """A function from texts to ids (B, length); None where nothing here can read the files.

    Args:
        files: names of tokenizer files to what is in them.
        length: tokens of a text, special ones included.
        pad: id that fills up.
    """
    if "vocab.txt" in files:
        pieces = files["vocab.txt"].removesuffix("\n").split("\n")
        settings = json.loads(files.get("tokenizer_config.json", "{}"))
        lowercase = settings.get("do_lower_case", True)
        normalizer = json.loads(files.get("tokenizer.json", "{}")).get("normalizer", settings)
        strip_accents = normalizer.get("strip_accents")
        strip_accents = lowercase if strip_accents is None else strip_accents
        encode = WordPiece({piece: index for index, piece in enumerate(pieces)}, lowercase, strip_accents)
    elif "tokenizer.json" in files:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            return None
        backend = Tokenizer.from_str(files["tokenizer.json"])
        backend.no_padding()
        backend.no_truncation()

        def encode(text: str) -> list[int]:
            return backend.encode(text).ids
    else:
        return None

    def tokenize(texts: Sequence[str]) -> Tensor:
        rows = torch.full((len(texts), length), pad)
        for row, ids in zip(rows, map(encode, texts), strict=True):
            ids = ids if len(ids) <= length else ids[: length - 1] + ids[-1:]
            row[: len(ids)] = torch.tensor(ids)
        return rows

    return tokenize


def check_config(objective: dict, data: dict) -> None:
    """Refuse sizes that no model has, before anything of theirs is allocated."""
    sizes = {"data.shape": data["shape"]}
    for name in ("vision", "text", "decoder"):
        tower = objective.get(name) or {}
        sizes |= {
            f"{name}.{key}": tower[key]
            for key in ("width", "heads", "depth", "patch", "cell")
            if key in tower
        }
    for name, size in sizes.items():
        least = 0 if name.endswith("depth") else 1
        for value in size if isinstance(size, list | tuple) else [size]:
            if type(value) is not int or not least <= value < 2**24:
                raise ValueError(f"config.json is damaged: {name} is {size}")
    for name in ("vision", "text", "decoder"):
        if sizes.get(f"{name}.width", 0) % sizes.get(f"{name}.heads", 1):
            raise ValueError(f"config.json is damaged: {name}.heads does not divide {name}.width")


def read_json(file: Path) -> dict:
    """The object in a JSON file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({type(error).__name__}): copy it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} is damaged (no JSON object): copy it again")
    return content


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Tensors of model.safetensors, else of pytorch_model.bin; nothing but tensors is ever unpickled."""
    file = folder / "model.safetensors"
    if not file.is_file():
        return torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    types = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    tensors = {}
    try:
        entries = json.loads(data[8:start])
        entries.pop("__metadata__", None)
        for name, entry in entries.items():
            first, last = (start + offset for offset in entry["data_offsets"])
            flat = torch.frombuffer(bytearray(data[first:last]), dtype=types[entry["dtype"]])
            tensors[name] = flat.view(entry["shape"])
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({type(error).__name__}): copy it again") from error
    return tensors
