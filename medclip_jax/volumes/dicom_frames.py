"""DICOM series of slices with several phases: which picture shows which slice at which time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Real

from medclip_jax.volumes.dicom import decode, read_headers, rescaled, rescales_of
from medclip_jax.volumes.dicom_choice import (
    Series,
    Wanted,
    check_owners,
    explain_nothing,
    group_series,
    name_series,
    refusal_of,
)
from medclip_jax.volumes.dicom_files import name_syntax, silenced
from medclip_jax.volumes.dicom_headers import MODALITIES, RECONSTRUCTIONS, DicomFile, Slice
from medclip_jax.volumes.dicom_stacks import cut_by_marks, group_by_grid, have_lost_positions, sort_along
from medclip_jax.volumes.formats import explain_folder
from medclip_jax.volumes.scan import Scan
from medclip_jax.volumes.volume import VolumeRejected

TIMES = (
    "TriggerTime",
    "NominalCardiacTriggerDelayTime",
    "NominalPercentageOfCardiacPhase",
    "TemporalPositionIndex",
    "TemporalPositionIdentifier",
)
"""Elements that put the phases of a slice in order; the first that tells all of them apart does."""

_SAME_PLACE_MM = 0.1
_MOST_LEFT_OUT = 0.25
"""Share of the slices that may lack phases, and of the pictures that may lie on another grid."""


def read_dicom_frames(source: Path, wanted: Wanted) -> Scan:
    """Read the pictures of one series, of every slice all phases in order.

    Where no series is named, several of one grid are one stack: many scanners make a series of every slice.

    Args:
        source: a folder, searched with all that lies below, or one file.
        wanted: which series, where there are several.

    Returns:
        Voxels (column, row, slice, phase).

    Raises:
        VolumeRejected: see the table of codes in `docs/reference/volumes.md`.
        OSError: the folder cannot be opened.
    """
    with silenced():
        files = read_headers(source, wanted)
        if not files:
            raise explain_folder(source)
        pictures, notes = _choose(files, wanted)
        return _assemble(pictures, notes)


def _choose(files: Sequence[DicomFile], wanted: Wanted) -> tuple[list[Slice], list[str]]:
    """Headers of the pictures that are meant, all of one grid."""
    named = name_series(group_series(files), wanted)
    usable = [series for series in named if series.files]
    if not usable:
        raise explain_nothing([file for series in named for file in (*series.refused, *series.others)])
    same = [series for series in usable if series.first.modality == wanted.modality] or usable
    check_owners(same, files)
    if refused := [file for series in same for file in series.refused]:
        raise refusal_of(refused, sum(len(series.members) for series in same))
    found = [item for series in same for item in series.slices]
    if have_lost_positions(found):
        raise VolumeRejected(
            "no-positions",
            f"All {len(found)} pictures carry the same ImagePositionPatient: it was overwritten, as some "
            "de-identification does. Export the series again with its positions.",
        )
    grids = sorted(group_by_grid(found), key=len, reverse=True)
    kept, others = grids[0], len(found) - len(grids[0])
    if others > _MOST_LEFT_OUT * len(found):
        raise VolumeRejected("deviating-slices", _several_grids(same, others, len(found)))
    notes = [f"frames-left-out:{others}"] if others else []
    kinds = cut_by_marks(sort_along(kept), RECONSTRUCTIONS, alternating=False)
    if len(kinds) > 1:
        name = next(mark for mark in RECONSTRUCTIONS if len({kind[0].marks[mark] for kind in kinds}) > 1)
        raise VolumeRejected(
            "several-reconstructions",
            f"Every slice is shown in {len(kinds)} kinds of pictures ({name} differs: magnitude and phase, "
            "echoes or inversion times): give the kind that is wanted a folder of its own.",
        )
    return kept, notes


def _several_grids(series: Sequence[Series], others: int, total: int) -> str:
    what = f"{others} of {total} pictures differ from the others in size, orientation or pixel spacing"
    if len(series) > 1:
        return f"{what}, in {len(series)} series: name the one that is meant in the column `series_uid`."
    return f"{what}: export the series again on one grid, or give every plane a series of its own."


def _assemble(items: Sequence[Slice], notes: list[str]) -> Scan:
    first = items[0]
    normal = np.median([item.normal for item in items], axis=0)
    pictures = _decode_all(items)
    along = np.array([item.position @ normal for item in items])
    order = np.argsort(along, kind="stable")
    cuts = [n for n in range(1, len(order)) if along[order[n]] - along[order[n - 1]] > _SAME_PLACE_MM]
    places = [list(map(int, place)) for place in np.split(order, cuts)]
    places, more = _in_time(places, items, pictures)
    notes = [*notes, *more]
    places, more = _complete(places)
    notes += more
    positions = np.array([along[place[0]] for place in places])
    gap = float(np.median(np.diff(positions))) if len(places) > 1 else first.thickness or 1.0
    if len(places) > 2 and np.abs(np.diff(positions) - gap).max() > 0.1 * gap:
        notes.append("uneven-slices")
    row_spacing, column_spacing = np.median([item.pixel_spacing for item in items], axis=0)
    affine = np.eye(4)
    affine[:3, 0] = np.median([item.rows for item in items], axis=0) * column_spacing
    affine[:3, 1] = np.median([item.columns for item in items], axis=0) * row_spacing
    affine[:3, 2] = normal / np.linalg.norm(normal) * gap
    affine[:3, 3] = items[places[0][0]].position
    voxels = np.stack([np.stack([pictures[n] for n in place]) for place in places])
    provenance = {
        "format": "dicom",
        "transfer_syntax": name_syntax(first.transfer_syntax),
        "slice_thickness": first.thickness,
    }
    modality = first.modality if first.modality in ("", *MODALITIES) else "another modality"
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    return Scan(
        voxels.transpose(3, 2, 0, 1), to_ras @ affine, True, modality or None, provenance, tuple(notes)
    )


def _decode_all(items: Sequence[Slice]) -> list[Real[np.ndarray, "H W"]]:
    """The picture of every header."""
    decoded: dict[Path, np.ndarray] = {}
    pictures = []
    for item, rescale in zip(items, rescales_of(items), strict=True):
        if item.path not in decoded:
            decoded.clear()  # frames of one file follow each other
            decoded[item.path] = decode(item)
        pictures.append(rescaled(decoded[item.path], item, *rescale))
    return pictures


def _in_time(
    places: list[list[int]], items: Sequence[Slice], pictures: Sequence[Real[np.ndarray, "H W"]]
) -> tuple[list[list[int]], list[str]]:
    """Put the pictures of every slice in the order of time, and drop copies; notes say what was done."""
    if all(len(place) == 1 for place in places):
        return places, []
    times, notes = _times(places, items)
    sorted_places, copies = [], 0
    for place in places:
        ordered = sorted(place, key=lambda n: times[n])
        kept = ordered[:1]
        for before, after in pairwise(ordered):
            if times[after] > times[before]:
                kept.append(after)
                continue
            if not np.array_equal(pictures[before], pictures[after]):
                raise VolumeRejected(
                    "same-place-and-time",
                    "Different pictures show one slice at one time (a repeated or a second series): give "
                    "each series a folder of its own, or name the one that is meant in the column "
                    "`series_uid`.",
                )
            copies += 1
        sorted_places.append(kept)
    return sorted_places, [*notes, *([f"duplicate-slices:{copies}"] if copies else [])]


def _times(places: Sequence[Sequence[int]], items: Sequence[Slice]) -> tuple[list, list[str]]:
    """What the pictures are ordered by, and a note where that is no time."""
    moving = [place for place in places if len(place) > 1]
    several = []
    for name in TIMES:
        found = [item.marks.get(name, "") for item in items]
        try:
            values = [float(text) if text else None for text in found]
        except ValueError:
            continue
        if any(values[n] is None for place in moving for n in place):
            continue
        if all(len({values[n] for n in place}) == len(place) for place in moving):
            return values, []
        if any(len({values[n] for n in place}) > 1 for place in moving):
            several.append(values)
    if several:
        return several[0], []
    numbers = [(item.number, item.frame or 0) for item in items]
    if any(numbers[n][0] is None for place in moving for n in place):
        raise VolumeRejected(
            "phases-without-order",
            "The pictures of a slice have neither trigger times nor instance numbers, so nobody knows their "
            "order: export the series again.",
        )
    return numbers, ["trigger-times-missing"]


def _complete(places: list[list[int]]) -> tuple[list[list[int]], list[str]]:
    """The slices that have as many phases as most have; a note counts the others.

    Raises:
        VolumeRejected: too many have another number.
    """
    counts = Counter(len(place) for place in places)
    usual = max(counts, key=lambda count: (counts[count], count))
    kept = [place for place in places if len(place) == usual]
    lost = len(places) - len(kept)
    if lost > _MOST_LEFT_OUT * len(places):
        told = ", ".join(f"{number} with {count}" for count, number in sorted(counts.items()))
        raise VolumeRejected(
            "uneven-phases",
            f"Slices have different numbers of phases ({told}): copy the whole series again, or give each "
            "series a folder of its own.",
        )
    return kept, [f"slices-with-other-phases:{lost}"] if lost else []
