"""Fields of pictures: volumes, their label maps, and frames of several series."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from medclip_jax.corpora.study import OUTSIDE_LABEL
from medclip_jax.draws import Draw, choose_frames
from medclip_jax.fields.base import Field

if TYPE_CHECKING:
    from medclip_jax.objectives.base import DataSpec


class Volume(Field):
    """The prepared volume, HU."""

    reads = ("volume",)
    dtype = np.int16
    remedy = "train an objective that reads what they hold"

    def shape(self, spec: DataSpec, config: Any) -> tuple[int, ...]:
        """(D, H, W)."""
        return tuple(spec.shape)

    def make(self, draw: Draw) -> np.ndarray:
        """As it was prepared."""
        return draw.record["volume"]


class Frames(Field):
    """Frames of a study, one series after the other, as prepared: 0 to `volumes.modality.WINDOW_TOP`.

    Of more frames than `config.data.frames`, one of each equal interval is shown: drawn in training, the
    middle one in evaluation. Of fewer, all, and zeros after them.
    """

    dtype = np.int16

    def arrays(self, spec: DataSpec, config: Any) -> tuple[str, ...]:
        """The series that are shown."""
        return chosen_views(spec, config)

    def shape(self, spec: DataSpec, config: Any) -> tuple[int, ...]:
        """(T, H, W)."""
        return (config.frames, *spec.frame_shape)

    def lacks(self, spec: DataSpec, config: Any) -> str:
        """No series of frames, or none of those that `config.data.views` names."""
        if not spec.views:
            return "the shards hold no series of frames: prepare with --corpus cmr"
        unknown = [name for name in config.views if name not in spec.views]
        if unknown:
            return (
                f"config.data.views names {', '.join(unknown)}; the shards hold {', '.join(spec.views)}: "
                "take of those, or () for all"
            )
        return "" if config.frames > 0 else "config.data.frames is 0: set how many a model sees, such as 64"

    def make(self, draw: Draw) -> np.ndarray:
        """Those that are shown, padded."""
        frames = np.zeros(self.shape(draw.layout.spec, draw.layout.config), np.int16)
        start = 0
        for name, places in shown_frames(draw):
            frames[start : start + len(places)] = draw.record[name][places]
            start += len(places)
        return frames


class FrameView(Frames):
    """Series that each frame is of, by its place in `DataSpec.views`; -1 where there is no frame."""

    dtype = np.int32

    def shape(self, spec: DataSpec, config: Any) -> tuple[int, ...]:
        """(T,)."""
        return (config.frames,)

    def make(self, draw: Draw) -> np.ndarray:
        """Of those that are shown."""
        order = draw.layout.spec.views
        views = [order.index(name) for name, places in shown_frames(draw) for _ in places]
        return np.array(views + [-1] * (draw.layout.config.frames - len(views)))


class FrameValid(FrameView):
    """1 where there is a frame, 0 where there is padding."""

    dtype = np.int8

    def make(self, draw: Draw) -> np.ndarray:
        """Of those that are shown."""
        shown = sum(len(places) for _, places in shown_frames(draw))
        return np.arange(draw.layout.config.frames) < shown


def chosen_views(spec: DataSpec, config: Any) -> tuple[str, ...]:
    """The series of frames that `config.data.views` names, in the data's order; () names all."""
    return tuple(name for name in spec.views if not config.views or name in config.views)


def shown_frames(draw: Draw) -> list[tuple[str, np.ndarray]]:
    """Which frames of a study are shown: name of a series to places in it, rising, for each that has some.

    Args:
        draw: of the sample; its fields all get the same answer.
    """
    names, count = chosen_views(draw.layout.spec, draw.layout.config), draw.layout.config.frames
    # A study may lack a series that is not required.
    lengths = [len(draw.record.get(name, ())) for name in names]
    chosen = draw.once("frames", lambda rng: choose_frames(lengths, count, rng if draw.training else None))
    return [(name, places) for name, places in zip(names, chosen, strict=True) if len(places)]


class LabelMap(Field):
    """Class of each voxel of the volume: 0 background, n the n-th of `DataSpec.label_classes`.

    255 stands for voxels that count for nothing: outside of the scan, or not labeled. Of a record without a
    map, all of them are.
    """

    reads = ("label_map",)
    dtype = np.uint8

    def shape(self, spec: DataSpec, config: Any) -> tuple[int, ...]:
        """(D, H, W)."""
        return tuple(spec.shape)

    def lacks(self, spec: DataSpec, config: Any) -> str:
        """No label maps were prepared."""
        if spec.label_classes:
            return ""
        return (
            "the shards hold no label maps: prepare a corpus that has them, or make them of organ masks with "
            "--label-maps organs"
        )

    def make(self, draw: Draw) -> np.ndarray:
        """As it was prepared."""
        found = draw.record.get("label_map")
        return np.full(draw.layout.spec.shape, OUTSIDE_LABEL, np.uint8) if found is None else found
