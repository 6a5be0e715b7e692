"""The label map of one study, on the grid of its prepared volume."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int64, Integer, UInt8

from medclip_jax.corpora.study import OUTSIDE_LABEL, LabelMap, Study
from medclip_jax.shards.organs import Mask, same_grid
from medclip_jax.shards.settings import PrepareSettings
from medclip_jax.volumes import Volume, VolumeRejected, read_labels, resample_labels

_MOST_VALUES = 1 << 16
"""Label values from here on are a scan's or a mistake."""

_COVERED = 0.99
"""A map that covers so much of the scan counts as complete: grids differ by a part of a voxel."""

Labels = tuple[Integer[np.ndarray, "I J K"], Float[np.ndarray, "4 4"]]


def prepare_label_map(
    study: Study,
    settings: PrepareSettings,
    scan: Volume,
    prepared: Volume,
    masks: Mapping[str, Mask] | None = None,
) -> tuple[UInt8[np.ndarray, "D H W"] | None, list[str]]:
    """Class of each voxel of a prepared volume, by nearest neighbor in world coordinates.

    Value n + 1 stands for `settings.label_classes[n]`, 0 for the background, `OUTSIDE_LABEL` for voxels that
    are not in the scan, that nobody has labeled, or that the archive's map does not reach.

    Args:
        study: with a label map or organ masks.
        settings: resolved; `label_maps` says which of the two.
        scan: as read.
        prepared: cropped and resampled.
        masks: of organs, that were read already.

    Returns:
        The map, None where the study has none; and notes.

    Raises:
        VolumeRejected: a file cannot be read, is no label map, or holds values that the class map does not
            name. The code begins with "label-map-".
    """
    if settings.label_maps == "organs":
        found, notes = _of_organs(study, settings.label_classes, scan, prepared, masks or {})
    elif study.label_map is None or not study.label_map.path.exists():
        found, notes = None, []
    else:
        found, notes = _of_file(study.label_map, settings.label_classes, scan, prepared)
    if found is None:
        return None, ["label-map-missing"]
    found[~_reach(scan.voxels.shape, scan.affine, prepared)] = OUTSIDE_LABEL
    if "label-map-empty" not in notes and not ((found > 0) & (found < OUTSIDE_LABEL)).any():
        notes.append("label-map-outside-crop")
    return found, notes


def _of_file(
    given: LabelMap, classes: tuple[str, ...], scan: Volume, prepared: Volume
) -> tuple[UInt8[np.ndarray, "D H W"], list[str]]:
    labels, affine = _read(given)
    counts = _count_values(labels)
    named = {0: 0, **{value: classes.index(name) + 1 for value, name in given.classes.items()}}
    named |= dict.fromkeys(given.ignored, OUTSIDE_LABEL)
    if unknown := [int(value) for value in np.flatnonzero(counts) if value not in named]:
        raise _unknown_values(unknown, named)
    found = _rename(resample_labels(labels, affine, prepared), named, len(counts))
    reached = _reach(labels.shape, affine, prepared)
    inside = _reach(scan.voxels.shape, scan.affine, prepared)
    covered = reached[inside].mean() if inside.any() else 1.0
    found[~reached] = OUTSIDE_LABEL
    notes = []
    if not any(value < len(counts) and counts[value] for value in given.classes):
        notes.append("label-map-empty")
    if not same_grid(labels, affine, scan):
        notes.append("label-map-resampled")
    if not covered:
        notes.append("label-map-beside-scan")
    elif covered < _COVERED:
        notes.append(f"label-map-partial:{100 * covered:.0f}%")
    return found, notes


def _of_organs(
    study: Study, classes: tuple[str, ...], scan: Volume, prepared: Volume, masks: Mapping[str, Mask]
) -> tuple[UInt8[np.ndarray, "D H W"] | None, list[str]]:
    """Masks become one map. What they do not reach is background: a mask may be cropped to its organ."""
    if "*" in study.organs:
        labels, affine = _read(LabelMap(study.organs["*"], {}))
        named = {
            value: classes.index(name) + 1 for value, name in study.organ_classes.items() if name in classes
        }
        counts = _count_values(labels)
        shown = any(counts[value] for value in named if value < len(counts))
        notes = [] if same_grid(labels, affine, scan) else ["label-map-resampled"]
        found = _rename(resample_labels(labels, affine, prepared), named, len(counts))
        return found, notes if shown else [*notes, "label-map-empty"]
    return _of_masks(study, classes, scan, prepared, masks)


def _of_masks(
    study: Study, classes: tuple[str, ...], scan: Volume, prepared: Volume, masks: Mapping[str, Mask]
) -> tuple[UInt8[np.ndarray, "D H W"] | None, list[str]]:
    """A file for each organ. Where masks overlap, the organ of the smaller volume is on top."""
    layers: list[tuple[float, int, UInt8[np.ndarray, " bytes"]]] = []
    resampled, there = False, False
    for place, name in enumerate(classes, 1):
        if name not in study.organs or not study.organs[name].exists():
            continue
        there = True
        mask, affine = masks[name] if name in masks else _read(LabelMap(study.organs[name], {}))
        resampled |= not same_grid(mask, affine, scan)
        size = np.count_nonzero(mask) * abs(np.linalg.det(affine[:3, :3]))
        if size:  # packed, because there may be more than a hundred
            layers.append((size, place, np.packbits(resample_labels(mask != 0, affine, prepared) != 0)))
    if not there:
        return None, []
    found = np.zeros(prepared.voxels.shape, np.uint8)
    overlaps = False
    for _, place, packed in sorted(layers, key=lambda layer: (-layer[0], layer[1])):
        mask = np.unpackbits(packed, count=found.size).reshape(found.shape).astype(bool)
        overlaps |= bool(found[mask].any())
        found[mask] = place
    codes = {
        "label-map-empty": not layers,
        "label-map-resampled": resampled,
        "label-map-overlaps": overlaps,
    }
    return found, [code for code, holds in codes.items() if holds]


def _read(given: LabelMap) -> Labels:
    try:
        return read_labels(given.path)
    except VolumeRejected as rejection:
        raise VolumeRejected(f"label-map-{rejection.code}", f"The label map: {rejection}") from None


def _count_values(labels: Integer[np.ndarray, "I J K"]) -> Int64[np.ndarray, " values"]:
    """Voxels of each value from 0 to the largest.

    Raises:
        VolumeRejected: values too large for labels.
    """
    top = int(labels.max())
    if top >= _MOST_VALUES:
        raise VolumeRejected(
            "label-map-not-labels", f"The label map holds {top}: is this a scan and no label map?"
        )
    counts = np.zeros(top + 1, np.int64)
    for plane in labels:  # bincount makes 64-bit integers of what it is given
        counts += np.bincount(plane.ravel(), minlength=top + 1)
    return counts


def _rename(
    values: Integer[np.ndarray, "D H W"], named: Mapping[int, int], size: int
) -> UInt8[np.ndarray, "D H W"]:
    """Values of a file to classes of the set; those without a name become background."""
    table = np.zeros(size, np.uint8)
    for value, place in named.items():
        if value < size:
            table[value] = place
    return table[values]


def _reach(
    shape: tuple[int, ...], affine: Float[np.ndarray, "4 4"], prepared: Volume
) -> Bool[np.ndarray, "D H W"]:
    """Which prepared voxels have their middle inside an array of that place."""
    everywhere = np.broadcast_to(np.uint8(1), shape)
    return resample_labels(everywhere, affine, prepared) != 0


def _unknown_values(unknown: list[int], named: Mapping[int, int]) -> VolumeRejected:
    shown = ", ".join(map(str, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
    known = ", ".join(map(str, sorted(named)[:20]))
    return VolumeRejected(
        "label-map-unknown-values",
        f"The label map holds {shown}, which its class map does not name (it names {known}): add them to the "
        "class map, or correct the map.",
    )
