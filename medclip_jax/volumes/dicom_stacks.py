"""Which slices of a series lie on one grid: told apart by their geometry, in mm, and by what headers say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

import numpy as np
from jaxtyping import Float

from medclip_jax.volumes.dicom_headers import ACQUISITIONS, RECONSTRUCTIONS, TELLING_TYPES, TIMES, Slice
from medclip_jax.volumes.volume import VolumeRejected

DRIFT_MM = 0.5
"""How far a corner of a slice may lie from where the stack's common orientation and spacing put it."""

SAME_POSITION_MM = 0.01
"""Slices closer than this lie at one position."""


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices of one series that may form a volume.

    Attributes:
        slices: along the normal.
        phase: element of the header in which the stack differs from others that show the same region at
            another time, "" where there is none.
        deviating: slices of the series that lie in line with the stack and differ in size, orientation or
            pixel spacing.
    """

    slices: tuple[Slice, ...]
    phase: str = ""
    deviating: tuple[Slice, ...] = ()

    @property
    def along(self) -> Float[np.ndarray, " N"]:
        """Positions along the normal, mm."""
        return _along(self.slices)

    @property
    def extent(self) -> float:
        """From the first to the last slice, mm."""
        return float(np.ptp(self.along))

    @property
    def gap(self) -> float:
        """The usual distance between neighbors, mm."""
        positions = np.unique(np.round(self.along / SAME_POSITION_MM)) * SAME_POSITION_MM
        return float(np.median(np.diff(positions))) if len(positions) > 1 else 0.0

    @property
    def is_axial(self) -> bool:
        """Whether slices lie across the body, gantry tilt included."""
        return abs(self.slices[0].normal[2]) > 0.7

    def mark(self, name: str) -> str:
        """Value of an element of the header; of the first slice, where they differ."""
        return self.slices[0].marks.get(name, "")


def cut_into_stacks(slices: Iterable[Slice]) -> list[Stack]:
    """Cut the slices of one series into stacks, the largest first.

    Slices go together whose corners lie within `DRIFT_MM` of each other's frame: decimals in which headers
    jitter do not count. Then come the elements that tell reconstructions, passes and times apart. One of
    them cuts only where its values alternate along the normal: where each value holds a block of its own,
    as the table positions of a sequential scan do, the blocks are one stack.
    """
    grids = group_by_grid(sorted(slices, key=lambda item: (str(item.path), item.frame or 0)))
    stacks = []
    for grid in grids:
        if have_lost_positions(grid):
            stacks.append(Stack(tuple(grid)))
            continue
        for part in cut_by_marks(sort_along(grid), RECONSTRUCTIONS):
            stacks += _cut_by_phases(part)
    stacks.sort(key=lambda stack: -len(stack.slices))
    return [replace(stack, deviating=_deviating(stack, grids)) for stack in stacks]


def check_positions(stack: Stack) -> None:
    """Refuse slices that all carry one position.

    Raises:
        VolumeRejected: "no-positions", or "single-slice" where there really is only one place.
    """
    if not _have_one_position(stack.slices):
        return
    if have_lost_positions(stack.slices):
        also = ""
        if len(_locations(stack.slices)) > 1:
            also = " SliceLocation differs, but no header says which way it counts, so it cannot stand in."
        raise VolumeRejected(
            "no-positions",
            f"All {len(stack.slices)} slices carry the same ImagePositionPatient: it was overwritten, as "
            f"some de-identification does.{also} Export the series again with its positions.",
        )
    raise VolumeRejected(
        "single-slice", "All slices lie at one position: give the folder with the whole series."
    )


def check_space(stack: Stack) -> None:
    """Refuse slices whose positions are told in several frames of reference.

    A frame of its own for each slice is what some de-identification writes, and tells nothing.

    Raises:
        VolumeRejected: "several-frames-of-reference".
    """
    spaces = {item.space for item in stack.slices if item.space}
    if 1 < len(spaces) <= len(stack.slices) / 2:
        raise VolumeRejected(
            "several-frames-of-reference",
            f"The slices of one series lie in {len(spaces)} frames of reference (FrameOfReferenceUID), and "
            "no header says how these lie to each other: give the slices of each a series of their own.",
        )


def have_lost_positions(slices: Sequence[Slice]) -> bool:
    """Whether several slices carry one position that cannot be theirs."""
    if len(slices) < 2 or not _have_one_position(slices):
        return False
    return len(_locations(slices)) > 1 or not slices[0].position.any()


def _have_one_position(slices: Sequence[Slice]) -> bool:
    positions = np.stack([item.position for item in slices])
    return bool(np.ptp(positions, axis=0).max() < SAME_POSITION_MM)


def _locations(slices: Sequence[Slice]) -> set[float]:
    return {item.location for item in slices if item.location is not None}


def _along(slices: Sequence[Slice]) -> Float[np.ndarray, " N"]:
    return np.stack([item.position for item in slices]) @ slices[0].normal


def sort_along(slices: Sequence[Slice]) -> list[Slice]:
    """In the order of their positions along the normal."""
    order = np.argsort(_along(slices), kind="stable")
    return [slices[place] for place in order]


def group_by_grid(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Slices of one size, orientation and pixel spacing, each group's first member being its measure."""
    groups: list[list[Slice]] = []
    for item in slices:
        # The latest group first: neighbors mostly belong together.
        group = next((found for found in reversed(groups) if _fits(item, found[0])), None)
        if group is None:
            groups.append(group := [])
        group.append(item)
    return groups


def _fits(item: Slice, measure: Slice) -> bool:
    if item.shape != measure.shape or item.modality != measure.modality or item.units != measure.units:
        return False
    width = _edges(item)[0] - _edges(measure)[0]
    height = _edges(item)[1] - _edges(measure)[1]
    drift = max(np.linalg.norm(edge) for edge in (width, height, width + height))
    return bool(drift <= DRIFT_MM)


def _edges(item: Slice) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]:
    """From the first pixel to the last of its row, and of its column, mm."""
    rows, columns = item.shape
    return (
        item.rows * item.pixel_spacing[1] * (columns - 1),
        item.columns * item.pixel_spacing[0] * (rows - 1),
    )


def cut_by_marks(slices: list[Slice], names: Sequence[str], *, alternating: bool = True) -> list[list[Slice]]:
    """Cut by the values of elements of the header.

    Args:
        slices: along the normal, see `sort_along`.
        names: of the elements.
        alternating: also where the values alternate along the normal, not only where they share positions.
    """
    parts = [slices]
    for name in names:
        parts = [piece for part in parts for piece in _cut(part, name, alternating=alternating)]
    return parts


def _cut(slices: list[Slice], name: str, *, alternating: bool) -> list[list[Slice]]:
    """By the values of an element, where they alternate, or only where they share positions."""
    values = [item.marks.get(name, "") for item in slices]
    if len({value for value in values if value}) < 2:
        return [slices]
    along = _along(slices)
    shared = bool((np.diff(along) < SAME_POSITION_MM).any())
    if name == "ImageType" and not shared:
        values = [_telling(value) for value in values]
    groups = defaultdict(list)
    for item, value in zip(slices, values, strict=True):
        groups[value].append(item)
    if not shared:
        runs = 1 + sum(before != after for before, after in pairwise(values))
        if not alternating or runs == len(groups):
            return [slices]
    elif not any(_is_shared(one, other) for one, other in combinations(groups.values(), 2)):
        return [slices]
    return list(groups.values())


def _telling(image_type: str) -> str:
    """The parts of an ImageType that name another picture of the same place; makers add what they like."""
    return "\\".join(sorted(TELLING_TYPES.intersection(image_type.split("\\"))))


def _is_shared(one: Sequence[Slice], other: Sequence[Slice]) -> bool:
    """Whether two groups show some place twice."""
    a, b = np.sort(_along(one)), _along(other)
    place = np.clip(np.searchsorted(a, b), 1, len(a) - 1) if len(a) > 1 else np.zeros(len(b), int)
    nearest = np.minimum(np.abs(a[place] - b), np.abs(a[place - 1] - b))
    return bool((nearest < SAME_POSITION_MM).any())


def _cut_by_phases(slices: list[Slice]) -> list[Stack]:
    """By passes over the body and by time. What is left of one phase is marked as one of several."""
    for name in (*ACQUISITIONS, *TIMES):
        # MR acquires odd and even slices of one stack in turn; a CT's passes are pictures of their own.
        alternating = name in ACQUISITIONS and slices[0].modality == "CT"
        parts = _cut(slices, name, alternating=alternating)
        if len(parts) == 1:
            continue
        stacks = [Stack(tuple(part)) for part in parts]
        longest = max(stack.extent for stack in stacks)
        several = sum(stack.extent >= longest / 2 for stack in stacks) > 1
        return [replace(stack, phase=name if several else "") for stack in stacks]
    return [Stack(tuple(slices))]


def _deviating(stack: Stack, grids: Sequence[Sequence[Slice]]) -> tuple[Slice, ...]:
    """Slices that continue or fill a stack by their position, and do not fit it by their frame."""
    if len(stack.slices) < 2:
        return ()
    first = stack.slices[0]
    along, gap = stack.along, stack.gap
    middle = _center(first)
    found = []
    for grid in grids:
        if any(item is first for item in grid) or abs(grid[0].normal @ first.normal) < 0.99:
            continue
        offsets = np.stack([_center(item) - middle for item in grid])
        places = along[0] + offsets @ first.normal
        sideways = np.linalg.norm(offsets - (offsets @ first.normal)[:, None] * first.normal, axis=1)
        beyond = np.maximum(np.maximum(along[0] - places, places - along[-1]), 0)
        if beyond.min() > 1.5 * gap:
            continue  # another part of the body
        free = np.abs(along[:, None] - places).min(axis=0) > 0.7 * gap
        fills = free & (sideways < 100)
        found += [item for item, is_filling in zip(grid, fills, strict=True) if is_filling]
    return tuple(found)


def _center(item: Slice) -> Float[np.ndarray, " 3"]:
    width, height = _edges(item)
    return item.position + (width + height) / 2
