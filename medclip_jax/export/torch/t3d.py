"""Volumes, reports, and crops of volumes that have read the report."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medclip_jax.export.torch.blocks import SelfAttention
from medclip_jax.export.torch.contrastive import ContrastiveModel
from medclip_jax.export.torch.cross_attention import CrossAttention
from medclip_jax.export.torch.loading import MedclipConfig


class CrossBlock(nn.Module):
    """Attention among tokens, attention to a context, MLP; a LayerNorm before each."""

    def __init__(self, width: int, heads: int, seen: int, hidden: int):
        super().__init__()
        norms = (nn.LayerNorm(width, eps=1e-6) for _ in range(3))
        self.attention_norm, self.cross_norm, self.mlp_norm = norms
        self.attention = SelfAttention(width, heads)
        self.cross_attention = CrossAttention(width, heads, seen)
        self.mlp_in, self.mlp_out = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, tokens: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """(B, T, W) and (B, S, seen) to (B, T, W); `mask` (B, 1, 1, S) is added to the scores."""
        tokens = tokens + self.attention(self.attention_norm(tokens))
        found = self.cross_attention(self.cross_norm(tokens), context, mask)
        tokens = tokens + self.cross_attention.output(found)
        return tokens + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(tokens))))


class T3dModel(ContrastiveModel):
    """Two towers with their projections, and the blocks in which crops read reports."""

    def __init__(self, config: MedclipConfig):
        super().__init__(config)
        objective, views = config.objective, config.objective["views"]
        width = self.vision.encoder.width
        self.view_blocks = self.view_projection = None
        if objective["weights"]["views"]:
            hidden = round(width * views["mlp_ratio"])
            blocks = (
                CrossBlock(width, views["heads"], self.text.width, hidden) for _ in range(views["depth"])
            )
            self.view_blocks = nn.ModuleList(blocks) if views["read_report"] else None
            outputs = views["batch_size"] or objective["embedding_width"]
            self.view_projection = nn.ModuleDict({"linear": nn.Linear(width, outputs, bias=False)})
        self.post_init()

    def scale(self) -> Tensor:
        """The fixed multiplier of cosines."""
        return torch.tensor(1.0 / self.config.objective["temperature"])

    def view_vectors(self, crops: Tensor, tokens: Tensor) -> Tensor:
        """Vectors (B, E) of crops, prepared HU (B, d, h, w) of any size, that read reports, ids (B, L).

        Not normalized. With gradients.
        """
        if self.view_projection is None:
            raise ValueError("this model was trained without views: it has no vectors of crops")
        seen = self.vision.encode(crops).tokens
        if self.view_blocks is not None:
            states, real = self.text.states(tokens)
            mask = torch.zeros_like(states[..., 0]).masked_fill(~real, torch.finfo(states.dtype).min)
            for block in self.view_blocks:
                seen = block(seen, states, mask[:, None, None, :])
        return self.view_projection["linear"](seen.mean(dim=1))
