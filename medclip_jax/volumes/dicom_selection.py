"""Which series of each examination are taken, by a rule that the user sets, and why others are not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from medclip_jax.volumes.dicom_choice import RULES, kernel_fits, prefer
from medclip_jax.volumes.dicom_survey import FoundSeries

ALL = "all"
"""The rule that takes every series that the filters let through."""

ORIENTATIONS = ("any", "axial")


@dataclass(frozen=True)
class SeriesChoice:
    """Which series of an examination are wanted. Projections and renderings never are.

    Attributes:
        rule: one of `dicom_choice.RULES` takes one series, "all" every one that is left.
        kernel: "soft", "medium", "sharp", or a ConvolutionKernel by name or pattern; None for any.
        modality: of the series.
        min_slices: series with fewer are left out.
        orientation: "axial" leaves out reformatted and acquired coronal, sagittal and other planes.
        original: leaves out what was reformatted or computed from other series.
    """

    rule: str = "best"
    kernel: str | None = None
    modality: str = "CT"
    min_slices: int = 1
    orientation: str = "any"
    original: bool = False

    def __post_init__(self):
        if self.rule not in (*RULES, ALL):
            raise ValueError(f"rule must be one of {', '.join((*RULES, ALL))}, got {self.rule!r}")
        if self.orientation not in ORIENTATIONS:
            raise ValueError(
                f"orientation must be one of {', '.join(ORIENTATIONS)}, got {self.orientation!r}"
            )
        if self.min_slices < 1:
            raise ValueError(f"min_slices must be 1 or more, got {self.min_slices}")


@dataclass(frozen=True)
class LeftOut:
    """A series that is not taken.

    Attributes:
        series: that it is.
        code: stable name of the reason: of a series that cannot become a volume, that of
            `docs/reference/volumes.md`; else of what was asked for.
        message: the reason in words, with what to do.
        is_failure: whether the series is wanted, and something is wrong with it.
    """

    series: FoundSeries
    code: str
    message: str
    is_failure: bool = False


def select_series(
    series: Sequence[FoundSeries], choice: SeriesChoice
) -> tuple[list[FoundSeries], list[LeftOut]]:
    """Choose among the series of each examination of each patient.

    Args:
        series: of a tree.
        choice: what is wanted.

    Returns:
        Those that are taken, and those that are not, each with its reason, both in the order given.
    """
    reasons = {id(item): _refuse(item, choice) for item in series}
    for members in by_study(series):
        left = [item for item in members if reasons[id(item)] is None]
        if choice.rule == ALL or len(left) < 2:
            continue
        chosen = left[prefer([item.facts for item in left], choice.rule)]
        text = (
            f"Another series of the examination was taken, by the rule '{choice.rule}': --series-rule all "
            "takes every one, --kernel those of one kernel."
        )
        for item in left:
            if item is not chosen:
                reasons[id(item)] = LeftOut(item, "not-chosen", text)
    taken = [item for item in series if reasons[id(item)] is None]
    return taken, [reason for item in series if (reason := reasons[id(item)]) is not None]


def by_study(series: Sequence[FoundSeries]) -> list[list[FoundSeries]]:
    """Series of one examination of one patient together, in the order of the first of each."""
    studies: dict[tuple[str, str], list[FoundSeries]] = defaultdict(list)
    for item in series:
        studies[item.patient, item.study or item.key].append(item)
    return list(studies.values())


def take_one_of_each_study(
    series: Sequence[FoundSeries], *, kernel: str | None = None, rule: str = "best", modality: str = "CT"
) -> tuple[list[FoundSeries], list[FoundSeries]]:
    """Choose one series of each examination of each patient, as `volumes.read_volume` would in one folder.

    Args:
        series: of a tree.
        kernel: as for `volumes.read_volume`.
        rule: one of `volumes.RULES`.
        modality: preferred.

    Returns:
        Those that are taken, and those that are not. Where no series of an examination can be used, all are
        taken, for each has its own reason.
    """
    dropped: set[int] = set()
    for members in by_study(series):
        usable = [item for item in members if item.facts is not None]
        usable = [item for item in usable if item.modality == modality] or usable
        if kernel is not None:
            usable = [item for item in usable if _has_kernel(item, kernel)]
        if usable:
            chosen = usable[prefer([item.facts for item in usable], rule)]
            dropped.update(id(item) for item in members if item is not chosen)
    taken = [item for item in series if id(item) not in dropped]
    return taken, [item for item in series if id(item) in dropped]


def _refuse(item: FoundSeries, choice: SeriesChoice) -> LeftOut | None:
    """Why a series does not come into question, None where it does."""
    facts = item.facts
    if facts is None and (item.modality == choice.modality or item.code == "mixed-modality"):
        return LeftOut(item, item.code, item.message, is_failure=True)
    if item.modality != choice.modality:
        return LeftOut(item, "wrong-modality", f"It is no {choice.modality}: see --modality.")
    if facts.is_projection and facts.is_derived:
        return LeftOut(
            item, "projection", "A projection or rendering (MIP, VRT) shows no slices of the body."
        )
    if choice.kernel is not None and not _has_kernel(item, choice.kernel):
        return LeftOut(item, "other-kernel", "It was reconstructed with another kernel: see --kernel.")
    if facts.slices < choice.min_slices:
        text = f"It has fewer than {choice.min_slices} slices: see --min-slices."
        return LeftOut(item, "too-few-slices", text)
    if choice.orientation == "axial" and not facts.is_axial:
        return LeftOut(item, "not-axial", "Its slices do not lie across the body: see --orientation.")
    if choice.original and facts.is_derived:
        text = "It was reformatted or computed from other series: leave --only-original out to take it."
        return LeftOut(item, "derived", text)
    return None


def _has_kernel(item: FoundSeries, kernel: str) -> bool:
    return any(kernel_fits(name, kernel) for name in item.kernels)
