"""Organs of one study: masks to occupancy of cells, and what the report says of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8

from medclip_jax.corpora.study import Study
from medclip_jax.shards.plan import says_nothing
from medclip_jax.shards.record import OrganText
from medclip_jax.shards.settings import PrepareSettings, organ_names
from medclip_jax.volumes import Volume, VolumeRejected, fraction_in_cells, read_labels, resample_labels

Mask = tuple[Bool[np.ndarray, "I J K"], Float[np.ndarray, "4 4"]]
"""Where an organ is, on any grid, and the affine of that grid."""


def read_masks(study: Study, wanted: set[str]) -> dict[str, Mask]:
    """Masks of those of the wanted organs that the study has. They may overlap.

    Raises:
        VolumeRejected: a mask cannot be read, or is none; the code begins with "organs-".
    """
    if "*" in study.organs:
        labels, affine = _read(study.organs["*"], "The organ masks")
        return {
            name: (np.isin(labels, [v for v, n in study.organ_classes.items() if n == name]), affine)
            for name in sorted(wanted & organ_names(study))
        }
    read = {
        name: _read(study.organs[name], f"The mask of {name!r}")
        for name in sorted(wanted & organ_names(study))
        if Path(study.organs[name]).exists()
    }
    return {name: (labels != 0, affine) for name, (labels, affine) in read.items()}


def _read(path: Path, what: str) -> tuple[Integer[np.ndarray, "I J K"], Float[np.ndarray, "4 4"]]:
    try:
        return read_labels(path)
    except VolumeRejected as rejection:
        raise VolumeRejected(f"organs-{rejection.code}", f"{what}: {rejection}") from None


def occupancy(
    masks: dict[str, Mask], organs: tuple[str, ...], scan: Volume, prepared: Volume, cell: int
) -> tuple[UInt8[np.ndarray, "O d h w"], list[str]]:
    """Share of each cell that each organ fills, x 255; organs without a mask stay 0.

    Masks on any grid are looked up at the prepared voxels, by world coordinates.

    Args:
        masks: at least one.
        organs: names of the channels.
        scan: as read, which the masks should cover.
        prepared: cropped and resampled.
        cell: voxels per cell along each axis.

    Returns:
        The shares, and notes.
    """
    cells = np.zeros((len(organs), *(size // cell for size in prepared.voxels.shape)), np.uint8)
    for index, name in enumerate(organs):
        if name in masks:
            cells[index] = fraction_in_cells(resample_labels(*masks[name], prepared), (cell,) * 3)
    notes = []
    filled = {name: mask for name, mask in masks.items() if mask[0].any()}
    if not filled:
        notes.append("organs-empty")
    elif not cells.any():
        notes.append("organs-outside-crop")
    if any(not _meets(*mask, scan) for mask in filled.values()):
        notes.append("organs-beside-scan")
    if not all(same_grid(*mask, scan) for mask in masks.values()):
        notes.append("organs-on-another-grid")
    return cells, notes


def same_grid(mask: np.ndarray, affine: Float[np.ndarray, "4 4"], volume: Volume) -> bool:
    """Whether a mask has the voxels of a volume, and its place."""
    return mask.shape == volume.voxels.shape and np.allclose(affine, volume.affine, atol=1e-2)


def _meets(mask: Bool[np.ndarray, "I J K"], affine: Float[np.ndarray, "4 4"], volume: Volume) -> bool:
    """Whether the box around a mask that is not empty meets the volume."""
    low, high = np.empty(3), np.empty(3)
    for axis in range(3):
        inside = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        low[axis], high[axis] = inside[0] - 0.5, inside[-1] + 0.5
    corners = np.stack(np.meshgrid(*np.stack([low, high], 1), indexing="ij"), -1).reshape(-1, 3)
    world = corners @ affine[:3, :3].T + affine[:3, 3]
    index = np.linalg.solve(volume.affine[:3, :3], (world - volume.affine[:3, 3]).T).T
    size = np.array(volume.voxels.shape)
    return bool(((index.max(0) > -0.5) & (index.min(0) < size - 0.5)).all())


def organ_texts(study: Study, text: str, settings: PrepareSettings) -> dict[str, OrganText]:
    """What is said of each organ: by the archive's region sentences where it has some, else by rules.

    Args:
        study: with or without region sentences.
        text: of the report, which the rules read.
        settings: resolved.
    """
    organs = settings.schema.organs
    if not settings.schema.has_organs:
        return {}
    from medclip_jax.reports.anatomy import assign_sentences, organ_sentences, states_normal

    containing = settings.organ_text == "containing"
    paths = {path: said for path, said in study.sentences.items() if path and not says_nothing(said)}
    if paths:
        found = organ_sentences(paths, organs, containing=containing)
    else:
        found = assign_sentences(text, organs, containing=containing)
    # In the set's order, whatever that of the sentences.
    return {
        name: {"text": found[name], "normal": states_normal(found[name], settings.definitions)}
        for name in organs
        if name in found
    }
