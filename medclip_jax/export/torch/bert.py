"""BERT's encoder and its pooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medclip_jax.export.torch.blocks import Block


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
