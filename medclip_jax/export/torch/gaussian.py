"""Volumes and texts as Gaussians of one space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medclip_jax.export.torch.loading import MedclipConfig
from medclip_jax.export.torch.model import Embedding, normalized
from medclip_jax.export.torch.text_model import TextModel

HEADS = 8
"""Of the attention to a volume's tokens, where the volume tower has none of its own."""


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


class GaussianModel(TextModel):
    """Two towers with Gaussian heads, scale and bias of the logits."""

    gaussian = True

    def __init__(self, config: MedclipConfig):
        super().__init__(config)
        objective, vision, text = config.objective, self.vision, self.text
        width, bias = objective["embedding_width"], objective["centered"]
        heads = objective["vision"].get("heads", HEADS)
        self.volume_head = GaussianHead(vision.width, vision.encoder.width, width, heads, bias)
        self.text_head = GaussianHead(text.width, text.width, width, objective["text"]["heads"], bias)
        self.add_scale(bias=True)
        self.post_init()

    def see(self, volumes: Tensor) -> Embedding:
        """Prepared HU (B, D, H, W) to Gaussians."""
        encoded = self.vision.encode(volumes)
        return normalized(self.volume_head(self.vision.encoder.pool(encoded), encoded.tokens))

    def read(self, tokens: Tensor) -> Embedding:
        """Ids (B, L) to Gaussians."""
        states, real = self.text.states(tokens)
        return normalized(self.text_head(self.text.pool(states, real, tokens), states, real))
