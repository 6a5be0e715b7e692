"""Which DICOM series lie in a tree of folders, by headers alone: one series is one scan, however spread."""

from __future__ import annotations

import base64
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from medclip_jax.volumes.dicom import check_stack
from medclip_jax.volumes.dicom_choice import (
    Facts,
    Series,
    Wanted,
    choose,
    group_series,
    kernel_fits,
    prefer,
    state_facts,
)
from medclip_jax.volumes.dicom_files import silenced
from medclip_jax.volumes.dicom_headers import MODALITIES, DicomFile, read_file
from medclip_jax.volumes.dicom_stacks import SAME_POSITION_MM
from medclip_jax.volumes.volume import VolumeRejected

FEW_FILES = 2000
"""So many headers are read by one process before others would have started."""

_FEW = 2
"""Files of a series that may be pages of text, and no scan with something wrong."""


@dataclass(frozen=True, eq=False)
class FoundSeries:
    """A series, as far as it lies in one folder, or all of it.

    Attributes:
        key: a short name of its own that says nothing about the patient, see `Series.key`.
        patient, study: digests of the ids, "" without one.
        uid: SeriesInstanceUID.
        modality: as the header has it.
        places: folders that hold it.
        names: its files by folder.
        is_alone: whether its folder holds no other series.
        positions: of its slices, LPS mm; none where they cannot be used.
        facts: what decides between series; None where it cannot become a volume.
        code, message: why it cannot, "" where it can, as far as headers tell.
        kernels: of its stacks.
        geometry: rows, columns, row_mm, column_mm, thickness_mm of its slices.
        values: further elements that were requested, of the first file.
    """

    key: str
    patient: str
    study: str
    uid: str
    modality: str
    places: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    is_alone: bool
    positions: Float32[np.ndarray, "N 3"]
    facts: Facts | None = None
    code: str = ""
    message: str = ""
    kernels: tuple[str, ...] = ()
    geometry: Mapping[str, float] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The one below which all its files lie."""
        return os.path.commonpath(self.places) if len(self.places) > 1 else self.places[0]

    @property
    def paths(self) -> list[Path]:
        """Of all its files."""
        return [
            Path(place, name) for place, names in zip(self.places, self.names, strict=True) for name in names
        ]


@dataclass(frozen=True)
class FolderSurvey:
    """What a folder holds, without those below.

    Attributes:
        place: the folder.
        series: that are scans, or should be.
        others: what is no volume: "localizer" or a modality, to the number of files.
        unknown: files that cannot be opened, or are damaged so that their series is not known.
    """

    place: str
    series: tuple[FoundSeries, ...] = ()
    others: Counter[str] = field(default_factory=Counter)
    unknown: tuple[str, ...] = ()


def survey_folder(task: tuple[str, Sequence[str]], also: Sequence[str] = ()) -> FolderSurvey:
    """Read the headers of the files that lie directly in a folder.

    Args:
        task: the folder, and the names of files in it, of any kind.
        also: keywords of further elements wanted in `FoundSeries.values`.
    """
    place, names = task
    found: list[DicomFile] = []
    unknown: list[str] = []
    with silenced():
        for name in names:
            try:
                file = read_file(Path(place, name), also)
            except OSError:
                unknown.append(name)
                continue
            if file is None:
                continue
            if file.refusal == "damaged-dicom" and not file.uid:
                unknown.append(name)
            else:
                found.append(file)
    others: Counter[str] = Counter()
    scans = []
    for series in group_series(found):
        if _is_scan(series):
            scans.append(series)
            others.update(map(_kind, series.others))
        else:
            others.update(map(_kind, (*series.files, *series.refused, *series.others)))
    scans = _with_lone_slices_joined(scans)
    series = tuple(_found(place, item, len(scans) == 1) for item in scans)
    return FolderSurvey(place, series, others, tuple(unknown))


def join_folders(surveys: Iterable[FolderSurvey]) -> list[FoundSeries]:
    """Series of a tree, in the order of the folders where they begin.

    Files of one series in several folders are one scan, unless two folders hold the same positions: those are
    copies, or series that were given one UID, and each stays a scan of its own.
    """
    joined: list[FoundSeries] = []
    by_key: dict[str, list[int]] = defaultdict(list)
    for survey in surveys:
        for part in survey.series:
            fits = next((i for i in by_key[part.key] if not _overlap(joined[i], part)), None)
            if fits is None:
                by_key[part.key].append(len(joined))
                joined.append(part)
            else:
                joined[fits] = _join(joined[fits], part)
    return joined


def _is_scan(series: Series) -> bool:
    if series.files:
        return True
    pages = all("SECONDARY" in file.look[3] for file in series.refused)
    return bool(series.refused) and not (pages and len(series.refused) <= _FEW)


def _kind(file: DicomFile) -> str:
    if file.refusal == "localizer":
        return "localizer"
    return file.modality if file.modality in MODALITIES else "another kind"


def _with_lone_slices_joined(scans: list[Series]) -> list[Series]:
    """Slices that carry a series UID each are no scans each: together they get the one true reason."""
    lone = [series for series in scans if len(series.slices) == 1 and series.files[0].slices[0].frame is None]
    if len(lone) <= _FEW:
        return scans
    by_patient = defaultdict(list)
    for series in lone:
        by_patient[series.first.patient].append(series)
    rest = [series for series in scans if series not in lone]
    for members in by_patient.values():
        if len(members) <= _FEW:
            rest += members
        else:
            rest.append(Series(tuple(file for series in members for file in series.files)))
    return rest


def _found(place: str, series: Series, is_alone: bool) -> FoundSeries:
    files = (*series.files, *series.refused)
    first = series.first
    return FoundSeries(
        key=series.key,
        patient=first.patient,
        study=first.study,
        uid=first.uid,
        modality=first.modality,
        places=(place,),
        names=(tuple(file.path.name for file in files),),
        is_alone=is_alone,
        positions=np.array([item.position for item in series.slices], np.float32).reshape(-1, 3),
        values=first.values,
        **_judge(files),
    )


def _judge(files: Sequence[DicomFile]) -> dict[str, object]:
    """Whether files of one series can become a volume, and what decides between it and others."""
    slices = [item for file in files for item in file.slices]
    kernels = tuple(sorted({item.marks["ConvolutionKernel"] for item in slices} - {""}))
    try:
        stack, _ = choose(files, Wanted(modality=files[0].modality))
        check_stack(stack)
    except VolumeRejected as rejection:
        return {"facts": None, "code": rejection.code, "message": str(rejection), "kernels": kernels}
    item = stack.slices[0]
    geometry = {
        "rows": item.shape[0],
        "columns": item.shape[1],
        "row_mm": item.pixel_spacing[0],
        "column_mm": item.pixel_spacing[1],
    }
    if item.thickness is not None:
        geometry["thickness_mm"] = item.thickness
    facts = state_facts(stack, files[0])
    return {"facts": facts, "code": "", "message": "", "kernels": kernels, "geometry": geometry}


def _overlap(one: FoundSeries, other: FoundSeries) -> bool:
    """Whether some position stands in both."""
    if not len(one.positions) or not len(other.positions):
        return True
    distances = np.abs(one.positions[:, None] - other.positions[None]).max(axis=-1)
    return bool((distances < SAME_POSITION_MM).any())


def _join(one: FoundSeries, other: FoundSeries) -> FoundSeries:
    whole = replace(
        one,
        places=(*one.places, *other.places),
        names=(*one.names, *other.names),
        is_alone=one.is_alone and other.is_alone,
        positions=np.concatenate([one.positions, other.positions]),
    )
    with silenced():
        files = [read_file(path) for path in whole.paths]
        return replace(whole, **_judge([file for file in files if file is not None]))


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
    studies: dict[tuple[str, str], list[FoundSeries]] = defaultdict(list)
    for item in series:
        studies[item.patient, item.study or item.key].append(item)
    dropped: set[int] = set()
    for members in studies.values():
        usable = [item for item in members if item.facts is not None]
        usable = [item for item in usable if item.modality == modality] or usable
        if kernel is not None:
            usable = [item for item in usable if any(kernel_fits(name, kernel) for name in item.kernels)]
        if usable:
            chosen = usable[prefer([item.facts for item in usable], rule)]
            dropped.update(id(item) for item in members if item is not chosen)
    taken = [item for item in series if id(item) not in dropped]
    return taken, [item for item in series if id(item) in dropped]


def to_json(survey: FolderSurvey) -> dict[str, object]:
    """A survey as JSON, for a cache. It holds ids of patients: as private as the scans."""
    written = asdict(replace(survey, others=Counter()))
    written["others"] = dict(survey.others)
    for item, found in zip(written["series"], survey.series, strict=True):
        item["positions"] = base64.b64encode(found.positions.astype("<f4").tobytes()).decode()
        item["facts"] = None if found.facts is None else list(found.facts)
    return written


def from_json(written: Mapping[str, Any]) -> FolderSurvey:
    """A survey from `to_json`.

    Raises:
        Exception: of many types, where it is none.
    """
    series = []
    for item in written["series"]:
        positions = np.frombuffer(base64.b64decode(item["positions"]), "<f4").reshape(-1, 3)
        series.append(
            FoundSeries(
                **{
                    **item,
                    "places": tuple(item["places"]),
                    "names": tuple(map(tuple, item["names"])),
                    "kernels": tuple(item["kernels"]),
                    "positions": positions,
                    "facts": None if item["facts"] is None else Facts(*item["facts"]),
                }
            )
        )
    others, unknown = Counter(written["others"]), tuple(written["unknown"])
    return FolderSurvey(str(written["place"]), tuple(series), others, unknown)
