"""Masked autoencoders: vectors of volumes, and hidden patches predicted."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from medclip_jax.export.torch.blocks import Block, patchify, sincos_3d, unpatchify
from medclip_jax.export.torch.loading import MedclipConfig
from medclip_jax.export.torch.model import Embedding, VolumeModel, normalized


class Reconstruction(NamedTuple):
    """(B, D, H, W, C) each, windows in [-1, 1]: as it was, hidden patches NaN, hidden patches predicted."""

    original: Tensor
    visible: Tensor
    completed: Tensor


class MaskedDecoder(nn.Module):
    """Predicts every patch from the visible ones.

    Args:
        config: `objective["decoder"]` of config.json.
        encoder: whose tokens it gets.
        numbers: to predict for each patch.
        from_mean: what is predicted is added to a mean patch of each place.
    """

    def __init__(self, config: dict, encoder: nn.Module, numbers: int, from_mean: bool = False):
        super().__init__()
        width, heads = config["width"], config["heads"]
        self.grid, self.width = encoder.grid, width
        self.embed = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, heads, 4 * width) for _ in range(config["depth"]))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = nn.Linear(width, numbers)
        places = math.prod(self.grid)
        self.mean_bias = nn.Parameter(torch.zeros(places, numbers)) if from_mean else None

    def forward(self, tokens: Tensor, keep: Tensor) -> Tensor:
        """Class token and tokens (B, 1 + K, W) of the patches `keep` (B, K) to all (B, N, numbers)."""
        predicted = self.predict(self.norm(self.states(tokens, keep, len(self.blocks)))[:, 1:])
        return predicted if self.mean_bias is None else predicted + self.mean_bias

    def states(self, tokens: Tensor, keep: Tensor, count: int) -> Tensor:
        """What the same are after `count` blocks: (B, 1 + N, width), the class token's state first."""
        tokens = self.embed(tokens)
        places = keep[..., None].expand(-1, -1, self.width)
        placed = self.mask_token.expand(len(tokens), math.prod(self.grid), -1)
        placed = placed.scatter(1, places, tokens[:, 1:]) + sincos_3d(self.grid, self.width).to(tokens)
        tokens = torch.cat([tokens[:, :1], placed], dim=1)
        for block in self.blocks[:count]:
            tokens = block(tokens)
        return tokens


class MaskedModel(VolumeModel):
    """A volume tower, and the decoder that it was trained with."""

    def __init__(self, config: MedclipConfig):
        super().__init__(config)
        encoder, windows = self.vision.encoder, config.objective.get("decoder_windows", ())
        cell = self.vision.cell if windows else (1, 1, 1)
        self.decoded_patch = tuple(a * b for a, b in zip(encoder.patch, cell, strict=True))
        numbers = math.prod(self.decoded_patch) * len(windows or self.vision.windows)
        from_mean = config.objective.get("decoder_from_mean", False)
        self.decoder = MaskedDecoder(config.objective["decoder"], encoder, numbers, from_mean)
        self.post_init()

    def see(self, volumes: Tensor) -> Embedding:
        """Prepared HU (B, D, H, W) to points."""
        return normalized(Embedding(self.vision(volumes)))

    @torch.no_grad()
    def reconstruct(self, volumes, keep: Tensor | int) -> Reconstruction:
        """Hide patches and predict them.

        Args:
            volumes: see the class.
            keep: indices (B, K) of the patches that stay visible, or how many, drawn at random.
        """
        encoder, volumes = self.vision.encoder, self.prepared(volumes)
        voxels, windows = self.vision.to_voxels(volumes), self.config.objective.get("decoder_windows", ())
        shown = [(volumes.clamp(low, high) - low) * (2.0 / (high - low)) - 1.0 for low, high in windows]
        target = patchify(torch.stack(shown, dim=-1) if windows else voxels, self.decoded_patch)
        if not isinstance(keep, Tensor):
            keep = torch.rand(target.shape[:2]).argsort(dim=1)[:, :keep]
        keep = keep.to(voxels.device)
        decoded = self.decoder(encoder.encode(voxels, keep).sequence, keep)
        if self.config.objective["normalize_patches"]:  # predicted up to mean and scale: put those back
            variance, mean = torch.var_mean(target, dim=-1, keepdim=True, correction=0)
            decoded = decoded * (variance + 1e-6).sqrt() + mean
        hidden = torch.ones_like(target).scatter(1, keep[..., None].expand(-1, -1, target.shape[2]), 0) > 0
        kinds = target, target.masked_fill(hidden, math.nan), torch.where(hidden, decoded, target)
        grids = (unpatchify(patches, encoder.grid, self.decoded_patch) for patches in kinds)
        return Reconstruction(*(grid if windows else self.vision.to_windows(grid) for grid in grids))
