"""Hidden words, read from the states of a text and from the tokens of its volume."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medclip_jax.export.torch.blocks import Block, SelfAttention
from medclip_jax.export.torch.cross_attention import CrossAttention


class FusionBlock(nn.Module):
    """Self-attention of the text, attention to the volume plus its overall vector, MLP."""

    def __init__(self, width: int, heads: int, hidden: int, epsilon: float, overall: bool):
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.cross_attention = CrossAttention(width, heads)
        self.overall = nn.Linear(width, width) if overall else None
        self.mlp_in, self.mlp_out = nn.Linear(width, hidden), nn.Linear(hidden, width)
        norms = (nn.LayerNorm(width, eps=epsilon) for _ in range(3))
        self.attention_norm, self.cross_norm, self.mlp_norm = norms

    def forward(self, states: Tensor, mask: Tensor, volume: Tensor, overall: Tensor) -> Tensor:
        """States (B, L, W); `mask` is added to scores; a volume's tokens (B, N, W) and vector (B, 1, W)."""
        states = self.attention_norm(states + self.attention(states, mask))
        found = self.cross_attention(states, volume)
        if self.overall is not None:
            found = found + self.overall(overall)
        states = self.cross_norm(states + self.cross_attention.output(found))
        return self.mlp_norm(states + self.mlp_out(F.gelu(self.mlp_in(states))))


class TextDecoder(nn.Module):
    """A fusion block, BERT blocks, BERT's head for masked words.

    Args:
        config: `objective` of config.json.
        width: features of a volume's tokens, and of a text's states.
    """

    def __init__(self, config: dict, width: int):
        super().__init__()
        sizes, epsilon = config["text_decoder"], config["text"]["layer_norm_epsilon"]
        heads, hidden = sizes["heads"], round(width * sizes["mlp_ratio"])
        self.to_volume = nn.Linear(width, width)
        self.fusion = FusionBlock(width, heads, hidden, epsilon, config["fusion"]["overall"])
        blocks = (Block(width, heads, hidden, epsilon, "gelu", True) for _ in range(sizes["depth"]))
        self.blocks = nn.ModuleList(blocks)
        self.transform = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=epsilon)
        self.words = nn.Linear(width, config["text"]["vocabulary"])

    def forward(self, states: Tensor, real: Tensor, tokens: Tensor, prior: Tensor | None) -> Tensor:
        """Logits (B, L, V) of words.

        Of states (B, L, W) of a text, `real` (B, L) False on padding; of tokens (B, N, W) of its volume, and
        of one more, `prior` (B, 1, W).
        """
        volume = self.to_volume(tokens)
        overall = volume.mean(dim=1, keepdim=True)
        if prior is not None:
            volume = torch.cat([prior.to(volume.dtype), volume], dim=1)
        mask = torch.zeros_like(states[..., 0]).masked_fill(~real, torch.finfo(states.dtype).min)
        states = self.fusion(states, mask[:, None, None, :], volume, overall)
        for block in self.blocks:
            states = block(states, mask[:, None, None, :])
        return self.words(self.norm(F.gelu(self.transform(states))))
