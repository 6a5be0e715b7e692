"""3D vision transformer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medclip_jax.export.torch.blocks import Block, patchify, sincos_3d
from medclip_jax.export.torch.vision import Encoded


class VisionTransformer(nn.Module):
    """Patches, positions, a class token, pre-norm blocks, a final LayerNorm.

    Args:
        config: `objective["vision"]` of config.json.
        shape: (D, H, W) of what it sees: voxels, or cells of them.
    """

    part = "transformer"

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
        self.pooled_width = 2 * width if self.pooling == "cls_mean" else width
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

    def encode(self, voxels: Tensor, keep: Tensor | None = None) -> Encoded:
        """Intensities (B, D, H, W, C) to tokens (B, N, width) and the class token's state.

        `keep` (B, K): indices of the patches to see, by default all N.
        """
        tokens = self.finish(*self.run_blocks(voxels, keep))
        return Encoded(tokens[:, 1:], tokens[:, 0])

    def finish(self, tokens: Tensor, embedded: Tensor) -> Tensor:
        """The final norm of what leaves the last block; `embedded` is what entered the first."""
        tokens = self.norm(tokens)
        return tokens if self.skip_norm is None else tokens + self.skip_norm(embedded)

    def tapped_tokens(self, voxels: Tensor, after: Sequence[int]) -> list[Tensor]:
        """Patch tokens (B, N, width) after so many blocks each and, last, those that `encode` returns."""
        tokens = embedded = self.first_tokens(voxels)
        found = {0: tokens}
        for index, block in enumerate(self.blocks, start=1):
            found[index] = tokens = block(tokens)
        return [*(found[index][:, 1:] for index in after), self.finish(tokens, embedded)[:, 1:]]

    def last_states(self, voxels: Tensor) -> Tensor:
        """Intensities to patch tokens (B, N, width) as the last block leaves them, before the final norm."""
        return self.run_blocks(voxels)[0][:, 1:]

    def run_blocks(self, voxels: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What leaves the last block and what entered the first, (B, 1 + N, width), the class token first."""
        tokens = embedded = self.first_tokens(voxels, keep)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens, embedded

    def first_tokens(self, voxels: Tensor, keep: Tensor | None = None) -> Tensor:
        """What enters the first block, (B, 1 + N, width)."""
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
        return tokens if self.pre_norm is None else self.pre_norm(tokens)

    def pool(self, encoded: Encoded) -> Tensor:
        """One vector a volume, (B, pooled_width)."""
        if self.pooling == "cls":
            return encoded.summary
        if self.pooling == "mean":
            return encoded.tokens.mean(dim=1)
        if self.pooling == "cls_mean":
            return torch.cat([encoded.summary, encoded.tokens.mean(dim=1)], dim=-1)
        places = encoded.sequence if self.extremes else encoded.tokens
        return (self.grid_pool(places) * self.grid_scale + self.grid_shift).flatten(1)
