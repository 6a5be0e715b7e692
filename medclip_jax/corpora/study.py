"""What a corpus yields: one record for each volume, before anything is decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Study:
    """One volume with everything the archive says about it. Raw ids: `shards` hashes them.

    Attributes:
        volume: NIfTI, NRRD, MHA file, or a folder with a DICOM series.
        series: which DICOM series of the folder is meant: SeriesInstanceUID or SeriesNumber; "" leaves the
            choice to `volumes.read_volume`.
        volume_id: unique name of this reconstruction in the archive.
        study_id: groups reconstructions of one patient that share one report. Need not differ between
            patients.
        patient_id: groups studies of one person; splits never cut through it.
        report: the whole report text, or "" when only sections are given.
        sections: lower-case section name ("findings", "impression", ...) to its text.
        labels: finding name (see `medclip_jax.reports.findings`) to 1 present, -1 absent, 0 unknown.
            Only ground truth given by the archive; what the report says is extracted at prepare time.
        measurements: name to number, e.g. {"agatston_score": 312.0, "cac_grade": 3}.
        organs: organ name (TotalSegmentator's) to the NIfTI of its mask; or {"*": path} for one
            multilabel NIfTI, whose class map stands in `organ_classes`.
        organ_classes: label value to organ name for a multilabel mask.
        sentences: anatomy path as the archive writes it ("lung/left lung/left lung lower lobe") to the
            text about it; {} where the archive has none.
        split: "train", "validation" or "test" when the archive fixes it, else None.
        rescale: (slope, intercept) when the file holds raw values and a table holds the rescale.
        modality: "CT" or "MR", as the corpus knows it.
        spacing: mm along depth, height, width when a table holds it, for files whose header does not.
        row: of the table, from 1; None where there is none, and then the place among the studies counts.
        notes: codes of what the corpus found, for the manifest.
    """

    volume: Path
    volume_id: str
    study_id: str
    patient_id: str
    report: str = ""
    sections: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)
    measurements: Mapping[str, float] = field(default_factory=dict)
    organs: Mapping[str, Path] = field(default_factory=dict)
    organ_classes: Mapping[int, str] = field(default_factory=dict)
    sentences: Mapping[str, str] = field(default_factory=dict, repr=False)
    split: str | None = None
    rescale: tuple[float, float] | None = None
    modality: str = "CT"
    spacing: tuple[float, float, float] | None = field(default=None, repr=False)
    series: str = field(default="", repr=False)
    row: int | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()
