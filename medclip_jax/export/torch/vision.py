"""HU to voxels as a network sees them, to tokens, to one vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Encoded(NamedTuple):
    """Tokens (B, N, W), one a place of the grid, width fastest; `summary` (B, W): a class token's state."""

    tokens: Tensor
    summary: Tensor | None = None

    @property
    def sequence(self) -> Tensor:
        """(B, 1 + N, W), the summary first; (B, N, W) where there is none."""
        return self.tokens if self.summary is None else torch.cat([self.summary[:, None], self.tokens], dim=1)


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


class VisionTower(nn.Module):
    """HU to one vector: windows, then an encoder.

    Args:
        config: `objective["vision"]` of config.json.
        shape: (D, H, W) of a prepared volume.
        encoder: class with `part`, the name of its weights within the tower; built from `config` and the
            shape in cells. It has `encode`, `pool`, `grid`, `width` and `pooled_width`.
    """

    def __init__(self, config: dict, shape: Sequence[int], encoder: type[nn.Module]):
        super().__init__()
        self.windows, self.standardize, self.cell = config["windows"], config["standardize"], config["cell"]
        self.projections = config["projections"] or ["mean"] * len(self.windows)
        cells = [size // step for size, step in zip(shape, self.cell, strict=True)]
        self.part = encoder.part
        self.add_module(self.part, encoder(config, cells))
        self.width = self.encoder.pooled_width

    @property
    def encoder(self) -> nn.Module:
        """From voxels to tokens."""
        return getattr(self, self.part)

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
        return torch.stack(channels, dim=-1).to(next(self.parameters()).dtype)

    def windowed(self, volume: Tensor) -> Tensor:
        """HU (B, D, H, W) to (B, D, H, W, C): every voxel, one channel a window, not standardized."""
        channels = [
            (volume.float().clamp(low, high) - low) * (2.0 / (high - low)) - 1.0 for low, high in self.windows
        ]
        return torch.stack(channels, dim=-1).to(next(self.parameters()).dtype)

    def to_windows(self, voxels: Tensor) -> Tensor:
        """Undo the standardization of `to_voxels`: each window within [-1, 1] again."""
        for index, (mean, deviation) in enumerate(self.standardize):
            voxels[..., index] = voxels[..., index] * deviation + mean
        return voxels

    def forward(self, volume: Tensor) -> Tensor:
        """Prepared HU (B, D, H, W) to (B, `width`)."""
        return self.encoder.pool(self.encode(volume))

    def encode(self, volume: Tensor) -> Encoded:
        """Prepared HU (B, D, H, W) to tokens."""
        return self.encoder.encode(self.to_voxels(volume))
