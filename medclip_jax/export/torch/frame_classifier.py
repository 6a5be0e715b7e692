"""Classifiers of studies: what a head tells of the frame tower's features."""

from __future__ import annotations

from torch import Tensor

from medclip_jax.export.torch.classifier import ClassifierModel
from medclip_jax.export.torch.spacetime import Frames
from medclip_jax.export.torch.studies import ReadsStudies


class FrameClassifierModel(ReadsStudies, ClassifierModel):
    """A frame tower with a head; see `ReadsStudies` and `ClassifierModel`."""

    def head_width(self) -> int:
        """Features that the head reads."""
        return self.vision.width

    def features(self, volumes: Frames) -> Tensor:
        """What the head reads of prepared studies."""
        return self.vision(volumes).float()
