"""Which DICOM series lie in a tree of folders, by headers alone: one series is one scan, however spread."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from medclip_jax.volumes.dicom_choice import Series, group_series
from medclip_jax.volumes.dicom_files import silenced
from medclip_jax.volumes.dicom_headers import MODALITIES, DicomFile, read_file
from medclip_jax.volumes.dicom_stacks import SAME_POSITION_MM

_FEW = 2
"""Files of a series that may be pages of text, and no scan with something wrong."""


@dataclass(frozen=True, eq=False)
class FoundSeries:
    """A series, as far as it lies in one folder, or all of it.

    Attributes:
        key: a short name of its own that says nothing about the patient, see `Series.key`.
        patient: digest of the patient's id.
        places: folders that hold it.
        names: its files by folder.
        alone: whether its folder holds no other series.
        positions: of its slices, LPS mm; none where they cannot be used.
        files: what the headers say, where that is wanted.
    """

    key: str
    patient: str
    places: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    alone: bool
    positions: Float32[np.ndarray, "N 3"]
    files: tuple[DicomFile, ...] = ()

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


def survey_folder(
    task: tuple[str, Sequence[str]], also: Sequence[str] = (), *, keep_headers: bool = True
) -> FolderSurvey:
    """Read the headers of the files that lie directly in a folder.

    Args:
        task: the folder, and the names of files in it, of any kind.
        also: keywords of further elements wanted in `DicomFile.values`.
        keep_headers: whether `FoundSeries.files` is wanted.
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
    alone = len(scans) == 1
    found_here = tuple(_found(place, series, alone, keep_headers) for series in scans)
    return FolderSurvey(place, found_here, others, tuple(unknown))


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


def _found(place: str, series: Series, alone: bool, keep_headers: bool) -> FoundSeries:
    files = (*series.files, *series.refused)
    positions = np.array([item.position for item in series.slices], np.float32).reshape(-1, 3)
    names = tuple(file.path.name for file in files)
    kept = files if keep_headers else ()
    return FoundSeries(series.key, series.first.patient, (place,), (names,), alone, positions, kept)


def _overlap(one: FoundSeries, other: FoundSeries) -> bool:
    """Whether some position stands in both."""
    if not len(one.positions) or not len(other.positions):
        return True
    distances = np.abs(one.positions[:, None] - other.positions[None]).max(axis=-1)
    return bool((distances < SAME_POSITION_MM).any())


def _join(one: FoundSeries, other: FoundSeries) -> FoundSeries:
    return replace(
        one,
        places=(*one.places, *other.places),
        names=(*one.names, *other.names),
        alone=one.alone and other.alone,
        positions=np.concatenate([one.positions, other.positions]),
        files=(*one.files, *other.files),
    )
