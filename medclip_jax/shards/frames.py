"""One series of frames of a study becomes arrays of a record: by prepare, and where a model is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from medclip_jax.corpora.study import Series
from medclip_jax.shards.series import SeriesSettings
from medclip_jax.volumes.frames import Frames, fit_frames, read_frames
from medclip_jax.volumes.volume import VolumeRejected

_MOVING = "cine"
"""How the names of series begin that should show motion."""


@dataclass(frozen=True)
class PreparedFrames:
    """A series of frames as a record holds it.

    Attributes:
        arrays: by name, see `SeriesSettings.frames`.
        notes: codes of what was corrected or is doubtful, each ending in the series' name.
        provenance: how it was read, see `volumes.Volume`.
    """

    arrays: Mapping[str, np.ndarray]
    notes: tuple[str, ...]
    provenance: Mapping[str, object]


def prepare_frames(
    series: Series, settings: SeriesSettings, observe: Callable[[str, Frames], None] | None = None
) -> PreparedFrames:
    """Read one series, keep the slices that are wanted, and bring its pictures to their size.

    Args:
        series: where it lies.
        settings: what becomes of it.
        observe: is given the series' name and its frames as they were read.

    Raises:
        VolumeRejected: it cannot be used; the message begins with its name.
    """
    try:
        frames = read_frames(
            series.path,
            modality=series.modality,
            spacing=series.spacing,
            series=series.uid or None,
            percentiles=settings.percentiles,
        )
    except VolumeRejected as rejection:
        raise VolumeRejected(rejection.code, f"Series '{settings.name}': {rejection}") from None
    if observe is not None:
        observe(settings.name, frames)
    kept = frames.middle() if settings.frames == "middle" else frames
    fitted, notes = fit_frames(kept, settings.shape[1:], settings.spacing[1:])
    slices, phases, *size = fitted.voxels.shape
    arrays = {
        settings.name: fitted.voxels.reshape(slices * phases, *size),
        settings.frames_array: np.array([slices, phases], np.int32),
        settings.spacing_array: np.array(fitted.spacing, np.float32),
    }
    if settings.name.startswith(_MOVING) and phases == 1:
        notes = [*notes, "one-phase"]
    named = tuple(f"{note}:{settings.name}" for note in (*frames.notes, *notes))
    return PreparedFrames(arrays, named, frames.provenance)
