"""A medclip model in PyTorch: CT volumes and reports in, vectors of one joint space out.

This one file is all the code of an exported model; it needs torch and nothing else. Two ways to load a folder:

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

Volumes have axes (D, H, W) = (superior, anterior, right), indices growing that way. `embed_volumes`,
`embed_texts`, `zero_shot` and `reconstruct` keep no gradients; `forward`, `patch_tokens` and the towers do.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
import warnings
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
    """(volumes, texts): cosines times the learned scale, plus the learned bias where there is one."""


class Reconstruction(NamedTuple):
    """(B, D, H, W, C) each, windows in [-1, 1]: as it was, hidden patches NaN, hidden patches predicted."""

    original: Tensor
    visible: Tensor
    completed: Tensor


# --- blocks ---------------------------------------------------------------------------------------------


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection, (B, T, W) to (B, T, W)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` (B, 1, 1, T) is added to the scores: 0, or a large negative number on padding."""
        batch, count, width = tokens.shape
        query, key, value = self.qkv(tokens).view(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.output(mixed.transpose(1, 2).reshape(batch, count, width))


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``; with `post_norm`, BERT's ``norm(x + f(x))``."""

    def __init__(
        self, width: int, heads: int, hidden: int, epsilon: float = 1e-6, activation: str = "gelu",
        post_norm: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.post_norm = post_norm
        self.activation = ACTIVATIONS[activation]
        self.attention_norm = nn.LayerNorm(width, eps=epsilon)
        self.attention = SelfAttention(width, heads)
        self.mlp_norm = nn.LayerNorm(width, eps=epsilon)
        self.mlp_in = nn.Linear(width, hidden)
        self.mlp_out = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, W) to (B, T, W)."""
        if self.post_norm:
            tokens = self.attention_norm(tokens + self.attention(tokens, mask))
            return self.mlp_norm(tokens + self._mlp(tokens))
        tokens = tokens + self.attention(self.attention_norm(tokens), mask)
        return tokens + self._mlp(self.mlp_norm(tokens))

    def _mlp(self, tokens: Tensor) -> Tensor:
        return self.mlp_out(self.activation(self.mlp_in(tokens)))


def sincos_3d(grid: tuple[int, int, int], width: int) -> Tensor:
    """Fixed positions (d * h * w, width): for each axis width // 6 sines, as many cosines; the rest zeros."""
    count = width // 6
    omega = 10_000.0 ** (-torch.arange(count, dtype=torch.float64, device="cpu") / count)
    parts = []
    for axis, size in enumerate(grid):
        angle = torch.arange(size, dtype=torch.float64, device="cpu")[:, None] * omega
        shape = [size if other == axis else 1 for other in range(3)]
        table = torch.cat([angle.sin(), angle.cos()], dim=1).float()
        parts.append(table.view(*shape, 2 * count).expand(*grid, 2 * count))
    return F.pad(torch.cat(parts, dim=-1).flatten(0, 2), (0, width - 6 * count))


def patchify(volume: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """(B, D, H, W, C) to (B, N, voxels * C); patches and their voxels run width fastest, then channels."""
    batch, *shape, channels = volume.shape
    d, h, w = (size // step for size, step in zip(shape, patch))
    cut = volume.reshape(batch, d, patch[0], h, patch[1], w, patch[2], channels)
    return cut.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(batch, d * h * w, -1)


def unpatchify(patches: Tensor, grid: tuple[int, int, int], patch: tuple[int, int, int]) -> Tensor:
    """Undo `patchify`."""
    cut = patches.reshape(len(patches), *grid, *patch, -1).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return cut.reshape(len(patches), *(size * step for size, step in zip(grid, patch)), -1)


def normalize(vectors: Tensor) -> Tensor:
    """L2-normalise the last axis in float32; a zero vector stays zero."""
    return F.normalize(vectors.float(), dim=-1, eps=1e-6)


# --- towers ---------------------------------------------------------------------------------------------


class PatchEmbedding(nn.Module):
    """A linear map of each patch's voxels; with `peaks`, of each channel's maximum in the patch too."""

    def __init__(self, patch: tuple[int, int, int], channels: int, width: int, peaks: bool):
        super().__init__()
        self.patch, self.channels, self.peaks = patch, channels, peaks
        self.projection = nn.Linear(math.prod(patch) * channels + channels * peaks, width)

    def forward(self, volume: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, D, H, W, C), and optionally indices (B, K) of the patches to see, to (B, N or K, width)."""
        patches = patchify(volume, self.patch)
        if keep is not None:
            patches = patches.take_along_dim(keep[..., None], dim=1)
        if self.peaks:
            channels = patches.unflatten(2, (-1, self.channels))
            patches = torch.cat([patches, channels.amax(dim=2) * channels.shape[2] ** 0.5], dim=-1)
        return self.projection(patches)


class VisionTransformer(nn.Module):
    """Patches, positions, a class token, pre-norm blocks, a final LayerNorm.

    Args:
        config: `objective["vision"]` of config.json.
        shape: (D, H, W) of what it sees (cells, where the tower makes cells of voxels).
    """

    def __init__(self, config: dict, shape: tuple[int, int, int]):
        super().__init__()
        width, epsilon = config["width"], config.get("layer_norm_epsilon", 1e-6)
        patch = tuple(config["patch"])
        self.grid = tuple(size // step for size, step in zip(shape, patch))
        self.width, self.pooling, self.patch = width, config["pooling"], patch
        self.channels = len(config["windows"])
        count = math.prod(self.grid)
        self.embed = PatchEmbedding(patch, len(config["windows"]), width, config["peaks"])
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        learned = config["position"] == "learned"
        self.positions = nn.Parameter(torch.zeros(count, width)) if learned else None
        self.pre_norm = nn.LayerNorm(width, eps=epsilon) if config.get("pre_norm") else None
        hidden = round(width * config["mlp_ratio"])
        block = (width, config["heads"], hidden, epsilon, config.get("activation", "gelu"))
        self.blocks = nn.ModuleList(Block(*block) for _ in range(config["depth"]))
        self.norm = nn.LayerNorm(width, eps=epsilon)
        self.skip_norm = nn.LayerNorm(width, eps=epsilon) if config["skip"] else None
        self.pooled_width = width
        if self.pooling == "grid":
            features = config["grid_features"]
            self.pooled_width = count * features
            self.grid_pool = nn.Linear(width, features)
            self.grid_scale = nn.Parameter(torch.ones(count, features))
            self.grid_shift = nn.Parameter(torch.zeros(count, features))

    def forward(self, voxels: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, D, H, W, C) intensities to tokens (B, 1 + N, width), the class token first.

        `keep` (B, K) are the patches to see, of N; all when None.
        """
        tokens = self.embed(voxels, keep)
        table = sincos_3d(self.grid, self.width) if self.positions is None else self.positions
        table = table.to(tokens)
        tokens = tokens + (table if keep is None else table[keep])
        tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
        if self.pre_norm is not None:
            tokens = self.pre_norm(tokens)
        embedded = tokens
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
        return (self.grid_pool(tokens[:, 1:]) * self.grid_scale + self.grid_shift).flatten(1)


class VisionTower(nn.Module):
    """Windowing and the transformer: HU (B, D, H, W) to (B, `width`).

    Args:
        config: `objective["vision"]` of config.json.
        shape: (D, H, W) voxels of a prepared volume.
    """

    def __init__(self, config: dict, shape: tuple[int, int, int]):
        super().__init__()
        self.windows = [tuple(window) for window in config["windows"]]
        self.standardize = [tuple(pair) for pair in config["standardize"]]
        self.cell = tuple(config["cell"])
        self.projections = list(config["projections"]) or ["mean"] * len(self.windows)
        cells = tuple(size // step for size, step in zip(shape, self.cell))
        self.transformer = VisionTransformer(config, cells)
        self.width = self.transformer.pooled_width

    def to_voxels(self, volume: Tensor) -> Tensor:
        """HU to one channel a window, low at -1 and high at +1: (B, D, H, W, C), fewer voxels with cells."""
        d, h, w = self.cell
        cut = volume.float().unflatten(3, (-1, w)).unflatten(2, (-1, h)).unflatten(1, (-1, d))
        reduce = {"mean": torch.mean, "max": torch.amax, "min": torch.amin}
        channels = []
        for (low, high), projection in zip(self.windows, self.projections):
            seen = reduce[projection](cut, dim=(2, 4, 6))
            channels.append((seen.clamp(low, high) - low) * (2.0 / (high - low)) - 1.0)
        for index, (mean, deviation) in enumerate(self.standardize):
            channels[index] = (channels[index] - mean) / deviation
        return torch.stack(channels, dim=-1).to(self.transformer.class_token.dtype)

    def to_windows(self, voxels: Tensor) -> Tensor:
        """Undo the standardisation of `to_voxels`."""
        if not self.standardize:
            return voxels
        mean, deviation = torch.tensor(self.standardize, device=voxels.device).T
        return voxels * deviation + mean

    def forward(self, volume: Tensor) -> Tensor:
        """(B, D, H, W) HU, prepared, to (B, width)."""
        return self.transformer.pool(self.transformer(self.to_voxels(volume)))


class Bert(nn.Module):
    """BERT without pooler. Args: `objective["text"]` and `data` of config.json."""

    def __init__(self, config: dict, data: dict):
        super().__init__()
        width, epsilon = config["width"], config.get("layer_norm_epsilon", 1e-12)
        self.words = nn.Embedding(config.get("vocabulary") or data["vocabulary_size"], width)
        self.positions = nn.Embedding(config["max_positions"], width)
        self.types = nn.Embedding(config.get("type_vocabulary", 2), width)
        self.norm = nn.LayerNorm(width, eps=epsilon)
        hidden = int(width * config["mlp_ratio"])
        block = (width, config["heads"], hidden, epsilon, config.get("activation", "gelu"), True)
        self.blocks = nn.ModuleList(Block(*block) for _ in range(config["depth"]))

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        """Ids (B, L), and True where they are no padding, to states (B, L, width)."""
        length = tokens.shape[1]
        if length > self.positions.num_embeddings:
            raise ValueError(
                f"{length} tokens, but this text tower knows {self.positions.num_embeddings} positions"
            )
        states = self.words(tokens) + (self.positions.weight[:length] + self.types.weight[0])
        states = self.norm(states)
        mask = torch.zeros(real.shape, dtype=states.dtype, device=states.device)
        mask = mask.masked_fill(~real, torch.finfo(states.dtype).min)[:, None, None, :]
        for block in self.blocks:
            states = block(states, mask)
        return states


class TextTower(nn.Module):
    """Token ids (B, L) to one vector a text (B, `width`)."""

    def __init__(self, config: dict, data: dict):
        super().__init__()
        self.encoder = Bert(config, data)
        self.pooling, self.pad, self.width = config["pooling"], data["pad_token"], config["width"]

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L) ids to (B, width)."""
        real = tokens != self.pad
        states = self.encoder(tokens, real)
        if self.pooling == "cls":
            return states[:, 0]
        if self.pooling == "highest_id":  # CLIP's end-of-text trick, as Cardiac-CLIP applied it to BERT ids
            return states[torch.arange(len(tokens), device=tokens.device), tokens.argmax(dim=1)]
        share = real.float() / real.sum(dim=1, keepdim=True).clamp(min=1)
        return torch.einsum("bl,blw->bw", share, states.float()).to(states.dtype)


class MaskedDecoder(nn.Module):
    """Predicts the voxels of every patch from the visible tokens."""

    def __init__(self, config: dict, encoder: VisionTransformer):
        super().__init__()
        width, voxels = config["width"], math.prod(encoder.patch) * encoder.channels
        self.grid, self.width = encoder.grid, width
        self.embed = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, config["heads"], 4 * width) for _ in range(config["depth"]))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = nn.Linear(width, voxels)

    def forward(self, tokens: Tensor, keep: Tensor) -> Tensor:
        """Tokens (B, 1 + K, W) of the visible patches `keep` (B, K) to voxels of all patches (B, N, P)."""
        tokens = self.embed(tokens)
        placed = self.mask_token.expand(len(tokens), math.prod(self.grid), -1)
        placed = placed.scatter(1, keep[..., None].expand(-1, -1, self.width), tokens[:, 1:])
        placed = placed + sincos_3d(self.grid, self.width).to(tokens)
        tokens = torch.cat([tokens[:, :1], placed], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.predict(self.norm(tokens)[:, 1:])


# --- the model ------------------------------------------------------------------------------------------


class MedclipModel(PreTrainedModel):
    """The towers of one objective ("clip", "cardiac_clip" or "mae") and the preparation its scans need."""

    config_class = MedclipConfig
    main_input_name = "volumes"

    def __init__(self, config: MedclipConfig):
        super().__init__(config)
        objective, data = config.objective, config.data
        if objective["name"] not in ("clip", "cardiac_clip", "mae"):
            raise ValueError(
                f"this file knows no objective {objective['name']!r}: use the one exported with it"
            )
        self.tokenizer = None
        self.vision = VisionTower(objective["vision"], data["shape"])
        if objective["name"] == "mae":
            self.decoder = MaskedDecoder(objective["decoder"], self.vision.transformer)
        else:
            self.text = TextTower(objective["text"], data)
            bias = bool(objective["centered"] or objective.get("projection_bias"))
            for tower in ("vision", "text"):
                linear = nn.Linear(getattr(self, tower).width, objective["embedding_width"], bias=bias)
                setattr(self, f"{tower}_projection", nn.ModuleDict({"linear": linear}))
            names = ("log_scale", "bias") if objective.get("loss") == "sigmoid" else ("log_scale",)
            self.logit_scale = nn.ParameterDict({name: torch.zeros(()) for name in names})
        self.post_init()

    @classmethod
    def from_pretrained(cls, folder, *args, **options):
        """Load an exported folder; a hub id where transformers is installed, which also takes all options.

        Raises:
            ValueError: weights are missing or left over.
            FileNotFoundError: no such folder.
        """
        if TRANSFORMERS:
            with_info = options.pop("output_loading_info", False)
            model, info = super().from_pretrained(folder, *args, output_loading_info=True, **options)
            wrong = {kind: sorted(info[kind]) for kind in ("missing_keys", "unexpected_keys") if info[kind]}
            if wrong:
                raise ValueError(f"the weights in {folder} do not fit its config.json: {wrong}")
            hub = (
                "cache_dir",
                "force_download",
                "local_files_only",
                "proxies",
                "revision",
                "subfolder",
                "token",
            )
            hub = {name: options[name] for name in hub if name in options}
            hub["_raise_exceptions_for_missing_entries"] = False
            model._read_tokenizer(lambda name: cached_file(folder, name, **hub))
            return (model, info) if with_info else model
        folder = Path(folder)
        if args or options or not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"{folder} is no folder with a config.json: download the model into one, or install transformers "
                "to load hub ids and to give options"
            )
        config = MedclipConfig(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
        with torch.device("meta"):  # the weights come from the file
            model = cls(config)
        model.load_state_dict(read_weights(folder), strict=True, assign=True)
        model._read_tokenizer(lambda name: folder / name if (folder / name).is_file() else None)
        return model.eval()

    def _read_tokenizer(self, find) -> None:
        if hasattr(self, "text"):
            self.tokenizer = read_tokenizer(find, self.config.text_length, self.config.data["pad_token"])

    def prepare(self, voxels, affine=None, *, spacing=None, center=None) -> Tensor:
        """Bring a scan to the grid the model was trained on, as `medclip prepare` does.

        Args:
            voxels: (I, J, K) HU, array or tensor; with `spacing` in the order (superior, anterior, right).
            affine: (4, 4) array index to RAS mm, as nibabel gives it. From SimpleITK: docs/export.md.
            spacing: mm along the three axes, instead of `affine`.
            center: RAS mm (right, anterior, superior) of the crop's middle, with `spacing` counted from the
                first voxel; None for the scan's middle.

        Returns:
            (D, H, W) int16 HU, on the CPU.
        """
        if (affine is None) == (spacing is None):
            raise ValueError("give either the affine (array index to RAS mm) or the spacing in mm")
        if spacing is not None:
            depth, height, width = spacing
            affine = [[0, 0, width, 0], [0, height, 0, 0], [depth, 0, 0, 0], [0, 0, 0, 1]]
        if center is None and self.config.crop != "center":
            warnings.warn(
                f"the model was trained on crops around {self.config.crop!r}: give center=(x, y, z), in RAS mm,"
                " of that organ",
                stacklevel=2,
            )
        voxels, is_ct = to_hu(voxels, self.config.modality), self.config.modality == "CT"
        voxels, affine = to_canonical(voxels, torch.as_tensor(affine, dtype=torch.float64))
        fill = AIR_HU if is_ct else int(voxels.min())
        return crop_and_resample(
            voxels, affine, self.config.data["shape"], self.config.data["spacing"], center, fill
        )

    def _prepared(self, volumes) -> Tensor:
        """A batch on the model's device from what the public methods take."""
        if isinstance(volumes, tuple):
            volumes = [volumes]
        if isinstance(volumes, list):
            volumes = torch.stack(
                [self.prepare(*v) if isinstance(v, tuple) else torch.as_tensor(v) for v in volumes]
            )
        volumes = torch.as_tensor(volumes)
        volumes = volumes[None] if volumes.ndim == 3 else volumes
        if volumes.ndim != 4 or list(volumes.shape[1:]) != list(self.config.data["shape"]):
            raise ValueError(
                f"volumes are {tuple(volumes.shape)}, the model takes (B, *{tuple(self.config.data['shape'])}): "
                "use `prepare`, or give a list of (voxels, affine)"
            )
        return volumes.to(self.vision.transformer.class_token.device)

    def tokenize(self, texts: list[str]) -> Tensor:
        """Texts to ids (B, text_length), cut and padded."""
        if self.tokenizer is None:
            raise ValueError(
                "no tokenizer: the model has no text tower, or its folder holds neither vocab.txt nor a "
                "tokenizer.json (which needs the tokenizers package); give token ids"
            )
        return self.tokenizer([texts] if isinstance(texts, str) else texts)

    def scale(self) -> Tensor:
        """The learned multiplier of cosines, within 1 and 100."""
        return self.logit_scale["log_scale"].clamp(0.0, math.log(100.0)).exp()

    def patch_tokens(self, volumes) -> Tensor:
        """Tokens (B, 1 + N, width) after the last LayerNorm: class token, then patches (D, H, W order)."""
        return self.vision.transformer(self.vision.to_voxels(self._prepared(volumes)))

    def forward(self, volumes=None, texts=None) -> MedclipOutput:
        """Embed volumes, texts or both.

        Args:
            volumes: prepared (B, D, H, W) or (D, H, W); or (voxels, affine), or a list of such pairs.
            texts: list of strings, or their ids (B, L).
        """
        seen = read = logits = None
        if volumes is not None:
            seen = self.vision(self._prepared(volumes))
            seen = normalize(self.vision_projection["linear"](seen) if hasattr(self, "text") else seen)
        if texts is not None:
            tokens = texts if isinstance(texts, Tensor) else self.tokenize(texts)
            read = self.text(tokens.to(self.text.encoder.words.weight.device))
            read = normalize(self.text_projection["linear"](read))
        if volumes is not None and texts is not None:
            logits = self.scale() * seen @ read.T
            if "bias" in self.logit_scale:
                logits = logits + self.logit_scale["bias"]
        return MedclipOutput(
            None if seen is None else Embedding(seen), None if read is None else Embedding(read), logits
        )

    @torch.no_grad()
    def embed_volumes(self, volumes) -> Embedding:
        """Vectors (B, E) of volumes, see `forward`."""
        return self(volumes=volumes).volumes

    @torch.no_grad()
    def embed_texts(self, texts) -> Embedding:
        """Vectors (B, E) of texts, or of their ids (B, L)."""
        return self(texts=texts).texts

    @torch.no_grad()
    def zero_shot(self, volumes, findings=None):
        """Probability of each finding: softmax over "There is X." and "There is no X.", scale learned.

        Args:
            volumes: see `forward`.
            findings: names in config.prompts, or {name: (positive, negative)}; all of config.prompts when None.

        Returns:
            {finding: probability} of one volume or pair; of several, a (B, F) float64 tensor.
        """
        known = self.config.prompts
        prompts = (
            findings if isinstance(findings, dict) else {name: known[name] for name in findings or known}
        )
        texts = [text for pair in prompts.values() for text in pair]
        single = isinstance(volumes, tuple) or getattr(volumes, "ndim", 0) == 3
        seen = self.embed_volumes(volumes).mean.cpu().double()
        read = self.embed_texts(texts).mean.cpu().double().unflatten(0, (-1, 2))
        scores = torch.sigmoid(self.scale().cpu().double() * seen @ (read[:, 0] - read[:, 1]).T)
        return dict(zip(prompts, scores[0].tolist())) if single else scores

    @torch.no_grad()
    def reconstruct(self, volumes, keep) -> Reconstruction:
        """Hide all patches but some and paint them again; masked autoencoders only.

        Args:
            volumes: see `forward`.
            keep: indices (B, K) of the visible patches; or how many to draw at random.
        """
        voxels = self.vision.to_voxels(self._prepared(volumes))
        transformer = self.vision.transformer
        target = patchify(voxels, transformer.patch)
        if not isinstance(keep, Tensor):
            keep = torch.rand(target.shape[:2], device=voxels.device).argsort(dim=1)[:, :keep]
        keep = keep.to(voxels.device)
        painted = self.decoder(transformer(voxels, keep), keep)
        if self.config.objective["normalize_patches"]:
            deviation = (target.var(dim=-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
            painted = painted * deviation + target.mean(dim=-1, keepdim=True)
        hidden = torch.ones(target.shape[:2], dtype=torch.bool, device=voxels.device).scatter(1, keep, False)
        hidden = hidden[..., None]
        kinds = target, target.masked_fill(hidden, math.nan), torch.where(hidden, painted, target)
        grids = (unpatchify(patches, transformer.grid, transformer.patch) for patches in kinds)
        return Reconstruction(*(self.vision.to_windows(voxels) for voxels in grids))


# --- from scans as they come to the model's grid --------------------------------------------------------


def to_hu(voxels, modality: str) -> Tensor:
    """Any real voxels to int16; padding below -1400 HU becomes air. MR in fractions is scaled up."""
    if hasattr(voxels, "astype"):  # NumPy: native byte order, no negative strides
        voxels = voxels.astype(voxels.dtype.newbyteorder("="))
    voxels = torch.as_tensor(voxels).cpu()
    if voxels.ndim != 3:
        raise ValueError(f"a scan has three axes, this one {voxels.ndim}")
    if voxels.dtype != torch.int16:
        voxels = voxels if voxels.is_floating_point() else voxels.to(torch.int32)
        low, high = (float(end) for end in voxels.aminmax())
        if (
            modality == "MR"
            and voxels.is_floating_point()
            and (high > 32767 or low < -32768 or high - low < 256)
        ):
            factor = 4095.0 / max(abs(low), abs(high), 1e-30)
            voxels, high = voxels * factor, high * factor
        if not (math.isfinite(low) and high <= 32767):
            raise ValueError(
                f"values reach {low:g} to {high:g}: write -1024 (air) into NaN, and check the rescale"
            )
        voxels = voxels.clamp(min=-32768).round().to(torch.int16)
    return voxels.masked_fill(voxels < PADDING_BELOW_HU, AIR_HU) if modality == "CT" else voxels


def to_canonical(voxels: Tensor, affine: Tensor) -> tuple[Tensor, Tensor]:
    """Reorder and flip axes to point most nearly to superior, anterior, right; nothing is interpolated.

    Returns the voxels (D, H, W) and the affine from their index (d, h, w, 1) to RAS mm.
    """
    linear, origin = affine[:3, :3], affine[:3, 3]
    directions = linear / linear.norm(dim=0)
    angles = directions.T @ directions  # cosines
    if not affine.isfinite().all() or (angles - torch.eye(3)).abs().max() > 3.5e-3:  # 0.2 degrees
        raise ValueError("the affine's axes are not at right angles: resample the scan to a rectangular grid")
    order = max(permutations(range(3)), key=lambda p: sum(abs(directions[2 - k, p[k]]) for k in range(3)))
    flips = [k for k in range(3) if directions[2 - k, order[k]] < 0]
    voxels, linear = voxels.permute(order), linear[:, list(order)].clone()
    for k in flips:
        origin = origin + linear[:, k] * (voxels.shape[k] - 1)
        linear[:, k] *= -1
    return voxels.flip(flips), torch.cat([linear, origin[:, None]], dim=1)


def axis_weights(old: int, new: int, scale: float) -> Tensor:
    """Resampling matrix (new, old) of one axis: linear interpolation, averaged over a box where it coarsens."""
    position = (old - 1) / 2 + (torch.arange(new, dtype=torch.float64) - (new - 1) / 2) * scale
    width = math.sqrt(max(scale * scale - 1.0, 0.0))
    reach = math.ceil(width / 2) + 1
    base = position.floor().long()
    matrix = torch.zeros(new, old, dtype=torch.float64)

    def integral(x: Tensor) -> Tensor:
        """Of the hat function max(0, 1 - |t|), from -infinity to x."""
        x = x.clamp(-1.0, 1.0)
        return 0.5 + x - 0.5 * x * x.abs()

    for offset in range(-reach, reach + 2):
        distance = position - (base + offset)
        if width > 1e-6:
            weight = (integral(distance + width / 2) - integral(distance - width / 2)) / width
        else:
            weight = (1.0 - distance.abs()).clamp(min=0.0)
        place = (base + offset).clamp(0, old - 1)
        matrix.index_put_((torch.arange(new), place), weight, accumulate=True)
    return (matrix / matrix.sum(dim=1, keepdim=True)).float()


def crop_and_resample(voxels: Tensor, affine: Tensor, shape, spacing, center, fill: int) -> Tensor:
    """Resample to `spacing`, cut or pad to `shape` around a point, working only on the voxels needed.

    Args:
        voxels: canonical (D, H, W) int16.
        affine: (3 or 4, 4) from (d, h, w, 1) to RAS mm.
        shape: wanted (D, H, W).
        spacing: wanted mm along depth, height, width.
        center: RAS mm; None for the middle.
        fill: value outside the scan.
    """
    linear, origin = affine[:3, :3], affine[:3, 3]
    half = torch.tensor([(n - 1) / 2 for n in voxels.shape], dtype=torch.float64)
    center = linear @ half + origin if center is None else torch.as_tensor(center, dtype=torch.float64)
    ratio = [new / old for new, old in zip(spacing, linear.norm(dim=0).tolist())]
    boxes, weights = [], []
    for middle, n, size, scale in zip(
        torch.linalg.solve(linear, center - origin).tolist(), voxels.shape, shape, ratio
    ):
        reach = (size / 2 + 2) * scale + 2
        low, high = max(math.floor(middle - reach), 0), min(math.ceil(middle + reach) + 1, n)
        if low >= high:
            raise ValueError("the center lies outside the scan: give it in RAS mm")

        def length() -> int:
            """Voxels after resampling the box."""
            return math.floor((high - low) / scale + 0.5 - 1e-6)

        while low > 0 and high < n and (length() - size) % 2:  # else half a voxel off the center
            low, high = low - 1, high + 1
        boxes.append(slice(low, high))
        weights.append(axis_weights(high - low, max(1, length()), scale))
    # The resampled box shares the middle of the old one.
    box_middle = torch.tensor([(box.start + box.stop - 1) / 2 for box in boxes], dtype=torch.float64)
    new = linear * torch.tensor(ratio, dtype=torch.float64)
    offset = torch.linalg.solve(new, center - (origin + linear @ box_middle)).tolist()
    result = torch.full(tuple(shape), fill, dtype=torch.int16)
    target = []
    for axis, (matrix, size) in enumerate(zip(weights, shape)):
        start = math.floor((len(matrix) - size) / 2 + offset[axis] + 0.5 + 1e-6)
        first, last = max(0, start), max(0, min(len(matrix), start + size))
        target.append(slice(first - start, max(first, last) - start))
        weights[axis] = matrix[first:last]
    box, (depth, height, width) = voxels[tuple(boxes)], weights
    for place, row in zip(range(target[0].start, target[0].stop), depth):
        used = row.nonzero()[:, 0]
        near = slice(int(used[0]), int(used[-1]) + 1)
        plane = (row[near] @ box[near].float().flatten(1)).view(box.shape[1:])
        result[place, target[1], target[2]] = (height @ plane @ width.T).round().to(torch.int16)
    return result


# --- texts and files ------------------------------------------------------------------------------------


class WordPiece:
    """BERT's tokenizer: clean, split at spaces and punctuation, then the longest known pieces.

    Args:
        vocabulary: piece to id.
        lowercase: fold case.
        strip_accents: as uncased BERT does.
    """

    def __init__(self, vocabulary: dict[str, int], lowercase: bool, strip_accents: bool):
        self.vocabulary, self.lowercase, self.strip_accents = vocabulary, lowercase, strip_accents
        self.special = re.compile(r"(\[(?:PAD|UNK|CLS|SEP|MASK)\])")

    def __call__(self, text: str) -> list[int]:
        """Ids with [CLS] and [SEP], nothing cut."""
        ids = [self.vocabulary["[CLS]"]]
        for part in self.special.split(text):
            words = [part] if self.special.fullmatch(part) else self._words(part)
            ids += [piece for word in words for piece in self._pieces(word)]
        return [*ids, self.vocabulary["[SEP]"]]

    def _words(self, text: str) -> list[str]:
        letters = []
        for letter in text:
            kind = unicodedata.category(letter)[0]
            if letter in "\t\n\r" or kind == "Z":
                letters.append(" ")
            elif kind != "C" and letter != "\ufffd":
                letters.append(f" {letter} " if is_chinese(letter) else letter)
        text = "".join(letters)
        if self.strip_accents:
            text = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
        if self.lowercase:
            text = "".join(letter.lower() for letter in text)  # one by one: the final sigma is no exception
        return "".join(f" {c} " if is_punctuation(c) else c for c in text).split()

    def _pieces(self, word: str) -> list[int]:
        ids, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(len(word), start, -1):
                if prefix + word[start:end] in self.vocabulary:
                    break
            else:
                return [self.vocabulary["[UNK]"]]
            ids.append(self.vocabulary[prefix + word[start:end]])
            start = end
        return ids if len(word) <= 100 else [self.vocabulary["[UNK]"]]


def is_punctuation(letter: str) -> bool:
    """What BERT splits off: Unicode's punctuation, and every printable of ASCII that is no letter or digit."""
    return unicodedata.category(letter)[0] == "P" or ("!" <= letter <= "~" and not letter.isalnum())


def is_chinese(letter: str) -> bool:
    """Ideographs, each a word of its own."""
    blocks = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
              (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))  # fmt: skip
    return any(first <= ord(letter) <= last for first, last in blocks)


def read_tokenizer(find, length: int, pad: int):
    """A function from texts to ids (B, length), or None where the folder has no tokenizer.

    Args:
        find: file name to path or None.
        length: tokens of a text, special ones included.
        pad: id of padding.
    """

    def entries(name: str) -> dict:
        return json.loads(Path(find(name)).read_text(encoding="utf-8")) if find(name) else {}

    if find("vocab.txt"):
        lines = Path(find("vocab.txt")).read_text(encoding="utf-8").split("\n")
        normalizer = entries("tokenizer.json").get("normalizer") or {}
        lowercase = normalizer.get("lowercase", entries("tokenizer_config.json").get("do_lower_case", True))
        strip = normalizer.get("strip_accents")
        vocabulary = {token: index for index, token in enumerate(lines)}
        encode = WordPiece(vocabulary, lowercase, lowercase if strip is None else strip)
    else:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            return None
        if not find("tokenizer.json"):
            return None
        backend = Tokenizer.from_file(str(find("tokenizer.json")))
        backend.no_padding()
        backend.no_truncation()

        def encode(text: str) -> list[int]:
            return backend.encode(text).ids

    def tokenize(texts: list[str]) -> Tensor:
        ids = torch.full((len(texts), length), pad)
        for row, text in enumerate(texts):
            found = encode(text)
            found = found if len(found) <= length else found[: length - 1] + found[-1:]
            ids[row, : len(found)] = torch.tensor(found)
        return ids

    return tokenize


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Tensors of model.safetensors, or of pytorch_model.bin; never unpickles anything but tensors."""
    file = folder / "model.safetensors"
    if not file.is_file():
        return torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    types = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            part = bytearray(data[start + first : start + last])
            tensors[name] = torch.frombuffer(part, dtype=types[entry["dtype"]]).view(entry["shape"])
    return tensors
