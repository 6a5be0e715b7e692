"""Classifiers: what a head tells of the volume tower's features."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medclip_jax.export.torch.loading import MedclipConfig
from medclip_jax.export.torch.model import Embedding, VolumeModel, normalized


class ClassifierHead(nn.Module):
    """Features to logits: Linear, or Linear - LayerNorm - GELU - Linear.

    Args:
        features: that come in.
        outputs: logits.
        config: `objective["head"]` of config.json.
    """

    def __init__(self, features: int, outputs: int, config: dict):
        super().__init__()
        self.layers, width = config["layers"], features
        if self.layers == "mlp":
            width = config["hidden"] or features
            self.hidden = nn.Linear(features, width)
            self.norm = nn.LayerNorm(width, eps=1e-6)
        self.out = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, features) to (B, outputs)."""
        if self.layers == "mlp":
            x = F.gelu(self.norm(self.hidden(x)))
        return self.out(x)


class OrderedCuts(nn.Module):
    """A score (B, 1) to the logits (B, count) of "grade k or more"."""

    def __init__(self, count: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(count - 1)) if count > 1 else None

    def forward(self, score: Tensor) -> Tensor:
        """``score - cut_k``, the first cut being 0 and the others behind it."""
        if self.bias is None:
            return score
        return score - F.pad(F.softplus(self.bias).cumsum(0), (1, 0))


def answers(target: dict, findings: list[str]) -> list[str]:
    """Names of what is predicted, from `objective["target"]` of config.json and the findings of its data."""
    task, edges = target["task"], target["edges"]
    if task == "hazards":
        return [f"{target['event']}_by_{horizon:g}" for horizon in target["horizons"]]
    if task == "cox":
        return [f"{target['event']}_log_hazard"]
    if not target["measurement"]:
        return list(target["findings"] or findings)
    name, reached = target["measurement"], [f"{target['measurement']}_from_{edge:g}" for edge in edges]
    if task == "ordinal":
        return reached
    between = [f"{name}_{low:g}_to_{high:g}" for low, high in itertools.pairwise(edges)]
    return [f"{name}_below_{edges[0]:g}", *between, reached[-1]]


class ClassifierModel(VolumeModel):
    """A volume tower with a head.

    Attributes:
        predicts: names of what `predict` gives.
    """

    def __init__(self, config: MedclipConfig):
        super().__init__(config)
        objective = config.objective
        self.task = objective["target"]["task"]
        self.predicts = answers(objective["target"], config.data.get("findings", []))
        scores = 1 if self.task == "ordinal" else len(self.predicts)
        self.head = ClassifierHead(self.head_width(), scores, objective["head"])
        self.cuts = OrderedCuts(len(self.predicts)) if self.task == "ordinal" else None
        self.post_init()

    def head_width(self) -> int:
        """Features that the head reads."""
        encoder = self.vision.encoder
        return encoder.width if self.config.objective["features"] == "asap" else encoder.pooled_width

    def features(self, volumes: Tensor) -> Tensor:
        """What the head reads of prepared HU (B, D, H, W)."""
        if self.config.objective["features"] != "asap":
            return self.vision(volumes).float()
        states = self.vision.encoder.last_states(self.vision.to_voxels(volumes))
        mean = states.float().mean(dim=1)
        return F.layer_norm(mean, mean.shape[1:], eps=1e-6)

    def see(self, volumes: Tensor) -> Embedding:
        """Prepared HU (B, D, H, W) to points."""
        return normalized(Embedding(self.features(volumes)))

    def logits(self, volumes: Tensor) -> Tensor:
        """Of prepared HU (B, D, H, W), with gradients: one for each of `predicts`."""
        scores = self.head(self.features(volumes).to(self.head.out.weight.dtype)).float()
        return scores if self.cuts is None else self.cuts(scores)

    @torch.no_grad()
    def predict(self, volumes) -> list[dict[str, float]]:
        """Probability of each of `predicts`, of "cox" the logarithmic hazard, for every volume.

        Args:
            volumes: see the class.
        """
        told = self.logits(self.prepared(volumes))
        if self.task == "multi_class":
            told = told.softmax(dim=1)
        elif self.task == "hazards":
            told = -torch.expm1(-F.softplus(told).cumsum(dim=1))
        elif self.task != "cox":
            told = told.sigmoid()
        return [dict(zip(self.predicts, row, strict=True)) for row in told.tolist()]
