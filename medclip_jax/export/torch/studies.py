"""Models that read studies, as frames of several series."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from medclip_jax.export.torch.frames import prepared_pictures
from medclip_jax.export.torch.loading import MedclipConfig
from medclip_jax.export.torch.prepare import array_and_affine, is_image
from medclip_jax.export.torch.spacetime import Frames, FrameTower


class ReadsStudies:
    """The frame tower of a model, and the preparation that its input needs; to be inherited first.

    Wherever a method takes `volumes`: one study, a mapping of series' names to series; a list of studies; or
    `Frames`. A series is an image of nibabel or SimpleITK, or a tuple (voxels, affine), of axes i, j, slice
    and phase; or prepared pictures (N, H, W), all phases of the first slice, then those of the second, and
    so on. Series that the model was not trained on are left out; any of the others may be missing.
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

    def prepare(self, study: Mapping) -> Frames:
        """The frames that the model sees of a study: one of each equal interval of all its pictures.

        Args:
            study: name of a series to the series, see the class.

        Returns:
            A batch of one, without padding.

        Raises:
            ValueError: no series that the model knows, or pictures of another size.
        """
        views = self.config.data["views"]
        shown = [name for name in views if not self.config.views or name in self.config.views]
        known = [name for name in shown if name in study]
        if not known:
            raise ValueError(f"series {', '.join(study)}: the model knows {', '.join(shown)}")
        pictures = [self.pictures(name, study[name]) for name in known]
        view = [views.index(name) for name, one in zip(known, pictures, strict=True) for _ in one]
        total, count = len(view), min(len(view), self.config.frames)
        edges = [place * total // count for place in range(count + 1)]
        chosen = [(first + last - 1) // 2 for first, last in pairwise(edges)]
        frames, view = torch.cat(pictures)[chosen], torch.tensor(view)[chosen]
        return Frames(frames[None], view[None], torch.ones(1, count, dtype=torch.bool))

    def pictures(self, name: str, series) -> Tensor:
        """One series of a study as prepared pictures (N, H, W) int16.

        Args:
            name: of the series.
            series: see the class.

        Raises:
            ValueError: pictures of another size, or a series that cannot be prepared.
        """
        if is_image(series):
            series = array_and_affine(series)
        if isinstance(series, tuple):
            settings = [one for one in getattr(self.config, "series", []) if one["name"] == name]
            if not settings:
                raise ValueError(f"config.json does not say how {name} is prepared: give prepared pictures")
            return prepared_pictures(*series, settings[0])
        pictures, size = torch.as_tensor(series), list(self.config.data["frame_shape"])
        if pictures.ndim != 3 or list(pictures.shape[1:]) != size or not len(pictures):
            raise ValueError(
                f"{name} is {list(pictures.shape)}: give prepared pictures (N, {size[0]}, {size[1]}), or "
                "an image or (voxels, affine) to be prepared"
            )
        return pictures.cpu().to(torch.int16)

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
