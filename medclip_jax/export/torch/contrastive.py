"""Volumes and texts as points of one space."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medclip_jax.export.torch.loading import MedclipConfig
from medclip_jax.export.torch.model import Embedding, normalized
from medclip_jax.export.torch.text_model import TextModel


class ContrastiveModel(TextModel):
    """Two towers, two linear projections and, where it is learned, one scale of the logits."""

    def __init__(self, config: MedclipConfig):
        super().__init__(config)
        objective = config.objective
        bias = objective["centered"] or objective["projection_bias"]
        for name, tower in (("vision", self.vision), ("text", self.text)):
            linear = nn.Linear(tower.width, objective["embedding_width"], bias=bias)
            self.add_module(f"{name}_projection", nn.ModuleDict({"linear": linear}))
        if "logit_scale" in objective:
            self.add_scale(bias=objective.get("loss") == "sigmoid")
        if objective.get("prompts", {}).get("weight"):  # learned beside it, and of use in training alone
            self.prompt_scale = nn.ParameterDict({"log_scale": torch.zeros(())})
        self.post_init()

    def see(self, volumes: Tensor) -> Embedding:
        """Prepared HU (B, D, H, W) to points."""
        return normalized(Embedding(self.vision_projection["linear"](self.vision(volumes))))

    def read(self, tokens: Tensor) -> Embedding:
        """Ids (B, L) to points."""
        return normalized(Embedding(self.text_projection["linear"](self.text(tokens))))
