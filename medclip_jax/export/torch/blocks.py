"""Transformer blocks, positions and patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
}


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
