"""Studies, as frames of several series, and impressions as points of one space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from medclip_jax.export.torch.contrastive import ContrastiveModel
from medclip_jax.export.torch.model import Embedding, normalized
from medclip_jax.export.torch.spacetime import Frames
from medclip_jax.export.torch.studies import ReadsStudies


class CmrClipModel(ReadsStudies, ContrastiveModel):
    """A frame tower and a text tower, each with a projection: ReLU, then linear; see `ReadsStudies`."""

    def scale(self) -> Tensor:
        """The fixed multiplier of cosines."""
        return torch.tensor(1.0 / self.config.objective["temperature"])

    def see(self, volumes: Frames) -> Embedding:
        """Prepared studies to points."""
        return normalized(Embedding(self.vision_projection["linear"](F.relu(self.vision(volumes)))))

    def read(self, tokens: Tensor) -> Embedding:
        """Ids (B, L) to points."""
        return normalized(Embedding(self.text_projection["linear"](F.relu(self.text(tokens)))))
