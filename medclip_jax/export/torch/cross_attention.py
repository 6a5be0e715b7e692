"""Attention of some tokens to others."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class CrossAttention(nn.Module):
    """Attention of tokens (B, T, W) to a context (B, S, seen); what is found is mapped later, by `output`."""

    def __init__(self, width: int, heads: int, seen: int | None = None):
        super().__init__()
        self.heads = heads
        self.to_query, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.to_key, self.to_value = (nn.Linear(seen or width, width) for _ in range(2))

    def forward(self, tokens: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """To (B, T, W); `mask` (B, 1, 1, S) is added to the scores."""
        parts = self.to_query(tokens), self.to_key(context), self.to_value(context)
        parts = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        return F.scaled_dot_product_attention(*parts, attn_mask=mask).transpose(1, 2).flatten(2)
