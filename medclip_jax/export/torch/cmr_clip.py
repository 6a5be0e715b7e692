"""Studies, as frames of several series, and impressions as points of one space."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from medclip_jax.export.torch.contrastive import ContrastiveModel
from medclip_jax.export.torch.loading import MedclipConfig
from medclip_jax.export.torch.model import Embedding, normalized
from medclip_jax.export.torch.spacetime import Frames, FrameTower


class CmrClipModel(ContrastiveModel):
    """A frame tower and a text tower, each with a projection: ReLU, then linear.

    Wherever a method takes `volumes`: one study as a mapping of series to prepared pictures (N, H, W), all
    phases of the first slice, then those of the second, and so on; a list of such studies; or `Frames`.
    Series that the model was not trained on are left out; any of the others may be missing.
    """

    def add_tower(self, config: MedclipConfig) -> None:
        """Add the frame tower, `vision`."""
        self.vision = FrameTower(config.objective["vision"], config.data["frame_shape"])

    @staticmethod
    def packed(frames, view, frame_valid) -> Frames:
        """What methods take as `volumes`, from the library's fields of a batch."""
        return Frames(*map(torch.as_tensor, (frames, view, frame_valid)))

    @staticmethod
    def is_single(volumes) -> bool:
        """Whether `volumes` are one study."""
        return isinstance(volumes, Mapping)

    def scale(self) -> Tensor:
        """The fixed multiplier of cosines."""
        return torch.tensor(1.0 / self.config.objective["temperature"])

    def see(self, volumes: Frames) -> Embedding:
        """Prepared studies to points."""
        return normalized(Embedding(self.vision_projection["linear"](F.relu(self.vision(volumes)))))

    def read(self, tokens: Tensor) -> Embedding:
        """Ids (B, L) to points."""
        return normalized(Embedding(self.text_projection["linear"](F.relu(self.text(tokens)))))

    def prepare(self, series: Mapping[str, Tensor]) -> Frames:
        """The frames that the model sees of a study: one of each equal interval of all its pictures.

        Args:
            series: name to prepared pictures (N, H, W), intensities of 0 to 4095 between two percentiles of
                their series, resampled and cut to `config.data["frame_shape"]`.

        Returns:
            A batch of one, without padding.

        Raises:
            ValueError: no series that the model knows, or pictures of another size.
        """
        height, width = self.config.data["frame_shape"]
        views = self.config.data["views"]
        shown = [name for name in views if not self.config.views or name in self.config.views]
        known = [name for name in shown if name in series]
        if not known:
            raise ValueError(f"series {', '.join(series)}: the model knows {', '.join(shown)}")
        pictures, view = [], []
        for name in known:
            one = torch.as_tensor(series[name])
            if one.ndim != 3 or tuple(one.shape[1:]) != (height, width) or not len(one):
                raise ValueError(
                    f"{name} is {tuple(one.shape)}: give pictures (N, {height}, {width}), resampled and cut "
                    "as `medclip prepare` does"
                )
            pictures.append(one)
            view += [views.index(name)] * len(one)
        total = len(view)
        count = min(total, self.config.frames)
        edges = [place * total // count for place in range(count + 1)]
        chosen = [(first + last - 1) // 2 for first, last in pairwise(edges)]
        frames = torch.cat([one.to(torch.int16) for one in pictures])[chosen]
        view = torch.tensor(view)[chosen]
        return Frames(frames[None], view[None], torch.ones(1, count, dtype=torch.bool))

    def prepared(self, volumes) -> Frames:
        """A batch on the model's device, from what the public methods take."""
        if isinstance(volumes, Mapping):
            volumes = self.prepare(volumes)
        elif isinstance(volumes, list):
            if not volumes:
                raise ValueError("no studies were given")
            volumes = together([self.prepare(one) for one in volumes])
        elif not isinstance(volumes, Frames):
            raise TypeError(f"give studies as mappings of series to pictures, not {type(volumes).__name__}")
        device = next(self.parameters()).device
        return Frames(*(torch.as_tensor(part, device=device) for part in volumes))


def together(studies: list[Frames]) -> Frames:
    """Several batches as one, padded to the longest."""
    longest = max(one.valid.shape[1] for one in studies)
    padded = []
    for one in studies:
        lack = longest - one.valid.shape[1]
        frames = F.pad(one.frames, (0, 0, 0, 0, 0, lack))
        padded.append((frames, F.pad(one.view, (0, lack), value=-1), F.pad(one.valid, (0, lack))))
    return Frames(*(torch.cat(parts) for parts in zip(*padded, strict=True)))
