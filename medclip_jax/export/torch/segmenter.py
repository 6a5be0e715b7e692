"""Segmentation: a volume tower of crops, and a decoder from it to the class of each voxel."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from medclip_jax.export.torch.decoders import UNet, Unetr
from medclip_jax.export.torch.loading import MedclipConfig
from medclip_jax.export.torch.model import Embedding, VolumeModel, normalized
from medclip_jax.export.torch.vision import VisionTower


class SegmenterModel(VolumeModel):
    """A volume tower of crops with the decoder of UNETR or of a U-Net.

    Attributes:
        classes: names of the classes 1, 2, ...; 0 is the background.
        crop: (d, h, w) of the crops that it looks at.
    """

    def __init__(self, config: MedclipConfig):
        super().__init__(config)
        encoder, channels = self.vision.encoder, len(self.vision.windows)
        self.classes = list(config.data["label_classes"])
        classes, features = 1 + len(self.classes), config.objective["feature_size"]
        if encoder.part == "transformer":
            patch = [step * cell for step, cell in zip(encoder.patch, self.vision.cell, strict=True)]
            self.decoder = Unetr(encoder, patch, channels, classes, features)
        else:
            self.decoder = UNet(encoder, channels, classes, features)
        self.post_init()

    def add_tower(self, config: MedclipConfig) -> None:
        """Add the volume tower, of crops."""
        self.crop = tuple(config.objective["crops"]["shape"] or config.data["shape"])
        self.vision = VisionTower(config.objective["vision"], self.crop, self.vision_encoder)

    def logits(self, crops: Tensor) -> Tensor:
        """Of crops (B, d, h, w) of prepared HU, with gradients: (B, d, h, w, 1 + classes)."""
        seen = self.vision.to_voxels(crops)
        voxels = seen if set(self.vision.cell) == {1} else self.vision.windowed(crops)
        return self.decoder(self.vision.encoder, seen, voxels)

    @torch.no_grad()
    def segment(self, volumes, *, overlap: float = 0.75) -> Tensor:
        """Class of each voxel, uint8 (B, D, H, W): 0 the background, n the n-th of `classes`.

        A window slides over the volume; logits are averaged, the middle of a window counts most.

        Args:
            volumes: see the class.
            overlap: share of a window that its neighbor covers too, 0 or more and below 1.
        """
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap={overlap!r}: it is the share of a window, 0 or more and below 1")
        volumes = self.prepared(volumes)
        axes = []
        for size, part in zip(volumes.shape[1:], self.crop, strict=True):
            step = max(1, int(part * (1 - overlap)))
            axes.append([min(n * step, size - part) for n in range(math.ceil((size - part) / step) + 1)])
        weights = window_weights(self.crop).to(volumes.device)[..., None]
        found = torch.zeros(*volumes.shape, 1 + len(self.classes), device=volumes.device)
        for box in self.boxes(axes):
            found[box] += self.logits(volumes[box]) * weights
        return found.argmax(dim=-1).to(torch.uint8)

    def see(self, volumes: Tensor) -> Embedding:
        """Prepared HU (B, D, H, W) to points: the mean over crops that together cover the volume."""
        axes = []
        for size, part in zip(volumes.shape[1:], self.crop, strict=True):
            starts = torch.linspace(0, size - part, -(-size // part), dtype=torch.float64)
            axes.append(starts.round().int().tolist())
        pooled = [self.vision(volumes[box]).float() for box in self.boxes(axes)]
        return normalized(Embedding(torch.stack(pooled).mean(dim=0)))

    def patch_tokens(self, volumes) -> Tensor:
        """Tokens (B, N, width) of the volume tower, of crops (B, d, h, w) of prepared HU."""
        return self.vision.encode(volumes).sequence

    def boxes(self, axes: list[list[int]]) -> list[tuple[slice, ...]]:
        """Index of the crops of a batch of volumes that begin at these voxels."""
        return [
            (slice(None), *(slice(low, low + part) for low, part in zip(start, self.crop, strict=True)))
            for start in itertools.product(*axes)
        ]


def window_weights(window: tuple[int, int, int]) -> Tensor:
    """How much a window counts for each of its voxels (d, h, w): a Gaussian, at least 0.001."""
    depth, height, width = (
        torch.exp(-0.5 * ((torch.arange(n, dtype=torch.float64) - (n - 1) / 2) / (0.125 * n)) ** 2)
        for n in window
    )
    return (depth[:, None, None] * height[:, None] * width).clamp(min=1e-3).float()
