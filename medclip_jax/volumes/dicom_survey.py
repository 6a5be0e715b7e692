"""Which DICOM series lie in a tree of folders, by headers alone: one series is one scan, however spread."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from medclip_jax.volumes.dicom import check_stack
from medclip_jax.volumes.dicom_choice import Facts, Series, Wanted, choose, group_series, state_facts
from medclip_jax.volumes.dicom_files import silenced
from medclip_jax.volumes.dicom_headers import MODALITIES, DicomFile, read_file
from medclip_jax.volumes.dicom_stacks import SAME_POSITION_MM
from medclip_jax.volumes.volume import VolumeRejected

FEW_FILES = 2000
"""So many headers are read by one process before others would have started."""

_FEW = 2
"""Files of a series that may be pages of text, and no scan with something wrong."""

_THREADS = 4
"""Headers on their way from a disk of the network at one time. Of a local disk the reader is never idle."""


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
        unopened: those of them that cannot be opened, which may pass.
        copies: files that repeat another one of the folder (SOPInstanceUID, number and position are equal).
        foreign: "no DICOM" or "DICOMDIR", to the number of files.
    """

    place: str
    series: tuple[FoundSeries, ...] = ()
    others: Counter[str] = field(default_factory=Counter)
    unknown: tuple[str, ...] = ()
    unopened: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    foreign: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class FolderHeaders:
    """What the headers of a folder's files say.

    Attributes:
        place: the folder.
        files: name to header; None for what is not DICOM.
        unopened: names of files that cannot be opened.
    """

    place: str
    files: Mapping[str, DicomFile | None]
    unopened: tuple[str, ...] = ()


def read_folder(place: str, names: Sequence[str], also: Sequence[str] = ()) -> FolderHeaders:
    """Read the headers of the files that lie directly in a folder.

    Args:
        place: the folder.
        names: of files in it, of any kind.
        also: keywords of further elements wanted in `DicomFile.values`.
    """

    def read(name: str) -> DicomFile | OSError | None:
        try:
            return read_file(Path(place, name), also)
        except OSError as error:
            return error

    with silenced():
        if len(names) < _THREADS:
            found = {name: read(name) for name in names}
        else:
            with ThreadPoolExecutor(_THREADS) as threads:
                found = dict(zip(names, threads.map(read, names), strict=True))
    unopened = tuple(name for name, file in found.items() if isinstance(file, OSError))
    return FolderHeaders(
        place, {name: file for name, file in found.items() if not isinstance(file, OSError)}, unopened
    )


def survey_folder(task: tuple[str, Sequence[str]], also: Sequence[str] = ()) -> FolderSurvey:
    """Read the headers of a folder, and say which series it holds.

    Args:
        task: the folder, and the names of files in it, of any kind.
        also: keywords of further elements wanted in `FoundSeries.values`.
    """
    return survey_headers(read_folder(*task, also))


def survey_headers(headers: FolderHeaders) -> FolderSurvey:
    """Say which series a folder holds.

    Args:
        headers: of its files.
    """
    dicom = [file for file in headers.files.values() if file is not None]
    lost = [file for file in dicom if file.refusal == "damaged-dicom" and not file.uid]
    known, copies = drop_copies([file for file in dicom if file not in lost])
    others: Counter[str] = Counter()
    scans = []
    for series in group_series(known):
        if _is_scan(series):
            scans.append(series)
            others.update(map(_kind, series.others))
        else:
            others.update(map(_kind, (*series.files, *series.refused, *series.others)))
    scans = _with_lone_slices_joined(scans)
    with silenced():
        series = tuple(_found(item, len(scans) == 1) for item in scans)
    foreign = Counter(
        "DICOMDIR" if name.upper() == "DICOMDIR" else "no DICOM"
        for name, file in headers.files.items()
        if file is None
    )
    return FolderSurvey(
        headers.place,
        series,
        others,
        unknown=(*headers.unopened, *(file.path.name for file in lost)),
        unopened=headers.unopened,
        copies=tuple(file.path.name for file in copies),
        foreign=foreign,
    )


def drop_copies(files: Sequence[DicomFile]) -> tuple[list[DicomFile], list[DicomFile]]:
    """Divide files into those that count, and those that repeat another one.

    A copy has patient, series, SOPInstanceUID, InstanceNumber and position of another file; so has a damaged
    file beside a whole one of the same SOPInstanceUID. Where most files of a series share one
    SOPInstanceUID, as some de-identification writes it, it tells nothing.
    """
    by_series: dict[tuple[str, str], list[DicomFile]] = defaultdict(list)
    for file in files:
        by_series[file.patient, file.uid].append(file)
    copies: set[int] = set()
    for members in by_series.values():
        whole = [file for file in members if not file.refusal]
        places = {_place_of(file) for file in whole}
        if 2 * len({file.instance for file in whole}) <= len(places):
            continue
        seen: set[tuple] = set()
        for file in whole:
            mark = (file.instance, *_place_of(file))
            if file.instance and mark in seen:
                copies.add(id(file))
            seen.add(mark)
        instances = {file.instance for file in whole} - {""}
        copies.update(id(file) for file in members if file.refusal and file.instance in instances)
    return [file for file in files if id(file) not in copies], [file for file in files if id(file) in copies]


def _place_of(file: DicomFile) -> tuple:
    first = file.slices[0]
    return first.number, len(file.slices), *np.round(first.position, 2).tolist()


Headers = Callable[[FoundSeries], Iterable[DicomFile | None]]
"""Gives the headers of a series' files."""


def _read_again(series: FoundSeries) -> Iterable[DicomFile | None]:
    with silenced():
        return [read_file(path) for path in series.paths]


@dataclass(frozen=True)
class Joined:
    """The series of a tree.

    Attributes:
        series: in the order of the folders where they begin.
        copies: files that repeat one of another folder.
    """

    series: list[FoundSeries]
    copies: list[Path] = field(default_factory=list)


def join_folders(surveys: Iterable[FolderSurvey], headers: Headers = _read_again) -> Joined:
    """Put the series of a tree together.

    Files of one series in several folders are one scan, and copies of a file count once. Where two folders
    hold different files at the same positions, these are series that were given one UID, and each stays a
    scan of its own; so do files without a SeriesInstanceUID, which nothing joins.

    Args:
        surveys: of all folders.
        headers: what the files of a series say; default: they are read again.
    """
    parts: dict[str, list[tuple[int, FoundSeries]]] = defaultdict(list)
    place = 0
    for survey in surveys:
        for part in survey.series:
            parts[part.key if part.uid else f"{part.key} {place}"].append((place, part))
            place += 1
    joined: list[tuple[int, FoundSeries]] = []
    copies: list[Path] = []
    for members in parts.values():
        if len(members) == 1:
            joined += members
        else:
            joined += _join(members, headers, copies)
    return Joined([series for _, series in sorted(joined, key=lambda pair: pair[0])], copies)


def _join(
    parts: Sequence[tuple[int, FoundSeries]], headers: Headers, copies: list[Path]
) -> list[tuple[int, FoundSeries]]:
    """One series of its parts, or several where they overlap; copies are added to the list."""
    files = [[file for file in headers(part) if file is not None] for _, part in parts]
    _, repeated = drop_copies([file for members in files for file in members])
    copies += [file.path for file in repeated]
    dropped = set(map(id, repeated))
    scans: list[tuple[int, list[DicomFile], list[FoundSeries], np.ndarray]] = []
    for (place, part), members in zip(parts, files, strict=True):
        kept = [file for file in members if id(file) not in dropped]
        if not kept:
            continue
        positions = _positions(kept)
        fits = next((n for n, scan in enumerate(scans) if not _overlap(scan[3], positions)), None)
        if fits is None:
            scans.append((place, kept, [part], positions))
        else:
            first, held, owners, before = scans[fits]
            scans[fits] = (first, held + kept, [*owners, part], np.concatenate([before, positions]))
    whole = {place: len(members) for (place, _), members in zip(parts, files, strict=True)}
    return [
        (place, owners[0] if len(owners) == 1 and len(held) == whole[place] else _gathered(held, owners))
        for place, held, owners, _ in scans
    ]


def _gathered(files: Sequence[DicomFile], parts: Sequence[FoundSeries]) -> FoundSeries:
    places: dict[str, list[str]] = defaultdict(list)
    for file in files:
        places[str(file.path.parent)].append(file.path.name)
    with silenced():
        judged = _judge(files)
    return replace(
        parts[0],
        places=tuple(places),
        names=tuple(map(tuple, places.values())),
        is_alone=all(part.is_alone for part in parts),
        positions=_positions(files),
        **judged,
    )


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


def _found(series: Series, is_alone: bool) -> FoundSeries:
    files = (*series.files, *series.refused)
    first = series.first
    return FoundSeries(
        key=series.key,
        patient=first.patient,
        study=first.study,
        uid=first.uid,
        modality=first.modality,
        places=(str(first.path.parent),),
        names=(tuple(file.path.name for file in files),),
        is_alone=is_alone,
        positions=_positions(files),
        values=first.values,
        **_judge(files),
    )


def _positions(files: Sequence[DicomFile]) -> Float32[np.ndarray, "N 3"]:
    return np.array([item.position for file in files for item in file.slices], np.float32).reshape(-1, 3)


def _judge(files: Sequence[DicomFile]) -> dict[str, object]:
    """Whether files of one series can become a volume, and what decides between it and others."""
    slices = [item for file in files for item in file.slices]
    kernels = tuple(sorted({item.marks["ConvolutionKernel"] for item in slices} - {""}))
    try:
        _check_modality(files)
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


def _check_modality(files: Sequence[DicomFile]) -> None:
    kinds = sorted({file.modality for file in files if file.slices})
    if len(kinds) > 1:
        told = " and ".join(kind if kind in MODALITIES else "others" for kind in kinds)
        raise VolumeRejected(
            "mixed-modality",
            f"One SeriesInstanceUID holds slices of {told}: give the slices of each a series of their own.",
        )


def _overlap(one: Float32[np.ndarray, "N 3"], other: Float32[np.ndarray, "M 3"]) -> bool:
    """Whether some position stands in both."""
    if not len(one) or not len(other):
        return True
    distances = np.abs(one[:, None] - other[None]).max(axis=-1)
    return bool((distances < SAME_POSITION_MM).any())
