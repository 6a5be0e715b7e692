"""What a corpus yields: one record of the set each, before anything is decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

VOLUME = "volume"
"""Name of the series of a study that has one, and of the array of a record that it becomes."""

OUTSIDE_LABEL = 255
"""In a label map, the value of voxels that count for nothing: outside of the scan, or not labeled."""


@dataclass(frozen=True)
class Series:
    """One scan on the disk: a CT volume, or a series of an MR study.

    Attributes:
        path: NIfTI, NRRD, MHA file, or a folder with a DICOM series; of frames also an .npy of (rows,
            columns, slices, phases); of CT, with `axes` and `spacing`, an .npz or .npy; ``Path()`` where a
            table names none.
        name: which of a study's series it is, and the name of the array that it becomes; see
            `shards.settings.PrepareSettings.series`.
        modality: "CT" or "MR", as the corpus knows it.
        rescale: (slope, intercept) when the file holds raw values and a table holds the rescale.
        spacing: mm along depth, height, width when a table holds it, for files whose header does not.
        axes: where the axes of the file's array point when a table says it, such as "LPS", for files that do
            not; bare arrays (.npz, .npy of CT) need it. "" where nothing is known.
        raw: the archive is known to hold raw values, so that `rescale` is applied without a look at them.
        channel: which volume of a 4D NIfTI of several sequences, from 0; None where the file holds one.
        uid: which DICOM series of the folder is meant: SeriesInstanceUID or SeriesNumber; "" leaves the
            choice to `volumes.read_volume`.
        files: the files of a DICOM series, where they are known: they are read in place of all that lies in
            the folder `path`, and may lie in several folders.
    """

    path: Path
    name: str = VOLUME
    modality: str = "CT"
    rescale: tuple[float, float] | None = None
    spacing: tuple[float, float, float] | None = None
    uid: str = ""
    # Not in the repr, which fingerprints of finished sets go over: `shards.plan` adds what is said.
    axes: str = field(default="", repr=False)
    raw: bool = field(default=False, repr=False)
    channel: int | None = field(default=None, repr=False)
    files: tuple[Path, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class LabelMap:
    """A file that names the class of each voxel of a scan.

    Attributes:
        path: NIfTI, NRRD or MHA; on the scan's grid or another one.
        classes: value in the file to name, without the background, which is 0.
        ignored: values of voxels that nobody has labeled (nnU-Net's "ignore").
        regions: name to the names of the classes that together make it, where the archive defines such.
    """

    path: Path
    classes: Mapping[int, str]
    ignored: tuple[int, ...] = ()
    regions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """What becomes one record: its series, and what the archive says of them. Raw ids: `shards` hashes them.

    Two CT reconstructions of one examination are two of these, which share `study_id` and report. The series
    of an MR examination that a model reads together are one.

    Attributes:
        series: at least one, each with a name of its own.
        record_id: unique name in the archive.
        study_id: groups records of one patient that share one report. Need not differ between patients.
        patient_id: groups studies of one person; splits never cut through it.
        report: the complete report text, or "" when only sections are given.
        sections: lower-case section name ("findings", "impression", ...) to its text.
        labels: finding name (see `medclip_jax.reports.findings`) to 1 present, -1 absent, 0 unknown.
            Only ground truth given by the archive; what the report says is extracted at prepare time.
        measurements: name to number, e.g. {"agatston_score": 312.0, "cac_grade": 3}.
        organs: organ name (TotalSegmentator's) to the NIfTI of its mask; or {"*": path} for one
            multilabel NIfTI, whose class map stands in `organ_classes`.
        organ_classes: label value to organ name for a multilabel mask.
        label_map: the class of each voxel, None where the archive has none.
        groups: name to which group the study belongs to, e.g. {"scanner": "A", "sex": "F"}; names that say
            nothing of it are absent.
        sentences: anatomy path as the archive writes it ("lung/left lung/left lung lower lobe") to the
            text about it; {} where the archive has none.
        split: "train", "validation" or "test" when the archive fixes it, else None.
        row: of the table, from 1; None where there is none, and then the place among the studies counts.
        notes: codes of what the corpus found, for the manifest; those that begin with "organs-" count where
            masks are used, "label-map-" where label maps are prepared.
        rejection: (code, message) where the corpus itself can tell that the study must not enter training.
    """

    series: tuple[Series, ...]
    record_id: str
    study_id: str
    patient_id: str
    report: str = ""
    sections: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)
    measurements: Mapping[str, float] = field(default_factory=dict)
    organs: Mapping[str, Path] = field(default_factory=dict)
    organ_classes: Mapping[int, str] = field(default_factory=dict)
    sentences: Mapping[str, str] = field(default_factory=dict)
    split: str | None = None
    row: int | None = None
    notes: tuple[str, ...] = ()
    rejection: tuple[str, str] | None = None
    label_map: LabelMap | None = None
    groups: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Where its first series lies; ``Path()`` where a table names no scan."""
        return self.series[0].path

    @property
    def has_scan(self) -> bool:
        """Whether the table names a file for every series."""
        return all(series.path != Path() for series in self.series)
