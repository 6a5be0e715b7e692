"""The corpora by name: what `medclip prepare --corpus NAME` reads, one adapter a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medclip_jax.corpora.tables import TableError

if TYPE_CHECKING:
    from medclip_jax.corpora.folder import StudyTable
    from medclip_jax.reports.definitions import Findings


@dataclass(frozen=True)
class Place:
    """Where a corpus lies on this machine, and how to read it.

    Attributes:
        definitions: the findings that labels can be of.
        table: CSV, TSV or .xlsx, for corpora that are a table.
        root: folder; of a table, that its paths start from (None: the table's own).
        encoding: of the table.
        sentences: CSV of sentences by region, for corpora of organs.
        sheet: of a table that is a spreadsheet; None: its first.
        ct_rate_version: of CT-RATE's files: "v1", "v2" or "auto".
        hu_window: HU that 0 and 1 stand for in arrays of that range.
        channel: name or number of the one sequence that is read, for corpora of several.
        masks: folder of organ masks by the names of volumes, for any corpus of volumes.
        header_cache: private file of what DICOM headers said, for corpora that are a tree; None keeps none.
        choice: arguments of `volumes.dicom_selection.SeriesChoice`, for these corpora.
        workers: processes that read headers.
    """

    definitions: Findings
    table: Path | None = None
    root: Path | None = None
    encoding: str | None = None
    sentences: Path | None = None
    sheet: str | None = None
    ct_rate_version: str | None = None
    hu_window: tuple[float, float] | None = None
    channel: str | None = None
    masks: Path | None = None
    header_cache: Path | None = None
    choice: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 1


@dataclass(frozen=True)
class Corpus:
    """What the rest of the library needs to know of a corpus before it is read.

    Attributes:
        about: a few words for the command line.
        reader: reads it.
        options: names of `Place` that it takes; the first is needed.
        findings: group of findings that its reports and labels are read for, see `reports.findings_file`.
        has_frames: whether its studies are of series of frames, and not of one volume.
        has_reports: whether it has reports at all.
        knows_spacing: whether it says how many mm a pixel is.
        fractions: share of patients in train, validation, test, of those that the archive puts into none.
        chooses_series: whether it chooses among the DICOM series of a tree, see `Place.choice`.
        generate: writes a set of its studies to a folder and returns the table; None where they are given.
    """

    about: str
    reader: Callable[[Place], StudyTable]
    options: tuple[str, ...]
    findings: str = "cardiac"
    has_frames: bool = False
    has_reports: bool = True
    knows_spacing: bool = True
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    chooses_series: bool = False
    generate: Callable[..., Path] | None = None


def read_corpus(name: str, place: Place) -> StudyTable:
    """The studies of a corpus.

    Args:
        name: one of `CORPORA`.
        place: where it lies.

    Raises:
        TableError: an option is missing or not one of this corpus, or what it names cannot be understood.
    """
    corpus = CORPORA[name]
    needed = corpus.options[0]
    if getattr(place, needed) is None:
        page = "cardiac-mr" if corpus.has_frames else "data"
        what = {"table": f"a CSV, see docs/how-to/{page}.md", "root": "the folder that it lies in"}[needed]
        raise TableError(f"--corpus {name} needs --{needed}: {what}")
    for option in (one.name for one in fields(place) if one.default is None):
        if option not in (*corpus.options, "masks") and getattr(place, option) is not None:
            takes = ", ".join(map(_flag, corpus.options))
            raise TableError(f"--corpus {name} has no {_flag(option)}: it takes {takes}")
    if place.masks is None:
        return corpus.reader(place)
    if corpus.has_frames:
        raise TableError(f"--masks is of volumes, and --corpus {name} has frames: leave it out")
    from medclip_jax.corpora.mask_folder import join_masks

    return join_masks(corpus.reader(place), place.masks)


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")


def _folder(place: Place) -> StudyTable:
    from medclip_jax.corpora.folder import folder
    from medclip_jax.corpora.roots import check_root

    table = folder(
        place.table,
        root=place.root,
        reports_elsewhere=place.sentences is not None,
        encoding=place.encoding,
        sheet=place.sheet,
        definitions=place.definitions,
    )
    check_root(table.studies, place.root or place.table.parent, given=place.root is not None)
    if place.sentences is None:
        return table
    from medclip_jax.corpora.sentences import join_sentences, read_sentences

    joined = join_sentences(table, read_sentences(place.sentences, encoding=place.encoding))
    return replace(table, studies=tuple(joined.studies), remarks=(*table.remarks, joined.text()))


def _cmr(place: Place) -> StudyTable:
    from medclip_jax.corpora.cmr import cmr
    from medclip_jax.corpora.roots import check_root

    table = cmr(
        place.table,
        root=place.root,
        encoding=place.encoding,
        sheet=place.sheet,
        definitions=place.definitions,
    )
    check_root(table.studies, place.root or place.table.parent, given=place.root is not None)
    return table


def _ct_rate(place: Place) -> StudyTable:
    from medclip_jax.corpora.ct_rate import ct_rate

    return ct_rate(place.root, version=place.ct_rate_version or "auto")


def _cardiac_clip(place: Place) -> StudyTable:
    from medclip_jax.corpora.cardiac_clip import WINDOW_HU, cardiac_clip

    return cardiac_clip(place.root, hu_window=place.hu_window or WINDOW_HU)


def _dicom(place: Place) -> StudyTable:
    from medclip_jax.corpora.dicom_tree import dicom_tree

    return dicom_tree(place.root, definitions=place.definitions, **_of_tree(place))


def _nlst(place: Place) -> StudyTable:
    from medclip_jax.corpora.nlst import nlst

    return nlst(place.root, **_of_tree(place))


def _of_tree(place: Place) -> dict[str, Any]:
    """What readers of trees of DICOM files are told alike."""
    from medclip_jax.volumes.dicom_selection import SeriesChoice

    return {
        "table": place.table,
        "choice": SeriesChoice(**place.choice),
        "encoding": place.encoding,
        "sheet": place.sheet,
        "cache": place.header_cache,
        "workers": place.workers,
    }


def _at_root(name: str) -> Callable[[Place], StudyTable]:
    """Reader of a corpus that is a folder: the function of the module of the same name, given the root."""

    def read(place: Place) -> StudyTable:
        return getattr(import_module(f"medclip_jax.corpora.{name}"), name)(place.root)

    return read


def _of_channels(name: str) -> Callable[[Place], StudyTable]:
    """Reader of a corpus that is a folder of volumes with several channels; as `_at_root`."""

    def read(place: Place) -> StudyTable:
        module = import_module(f"medclip_jax.corpora.{name}")
        return getattr(module, name)(place.root, channel=place.channel)

    return read


def _write_phantoms(folder: Path, count: int, *, seed: int, workers: int, label_maps: bool = False) -> Path:
    from medclip_jax.corpora import phantom

    return phantom.write(folder, count, seed=seed, workers=workers, label_maps=label_maps)


def _write_cines(folder: Path, count: int, *, seed: int, workers: int) -> Path:
    from medclip_jax.corpora import cine

    return cine.write(folder, count, seed=seed, workers=workers)


CORPORA: dict[str, Corpus] = {
    "folder": Corpus(
        "a table with a row for each volume", _folder, ("table", "root", "encoding", "sentences", "sheet")
    ),
    "cmr": Corpus(
        "a table with a row for each MR series",
        _cmr,
        ("table", "root", "encoding", "sheet"),
        findings="cardiac_mr",
        has_frames=True,
    ),
    "dicom": Corpus(
        "a tree of DICOM files, with or without a table of reports",
        _dicom,
        ("root", "table", "encoding", "sheet", "header_cache"),
        chooses_series=True,
    ),
    "ct_rate": Corpus(
        "CT-RATE: chest CT with reports, eighteen labels and metadata",
        _ct_rate,
        ("root", "ct_rate_version"),
        findings="ct_rate",
        fractions=(0.95, 0.05, 0.0),
    ),
    "rad_genome": Corpus(
        "RadGenome-ChestCT: CT-RATE's scans with masks and sentences by region",
        _at_root("rad_genome"),
        ("root",),
        findings="ct_rate",
        fractions=(0.95, 0.05, 0.0),
    ),
    "rad_chest_ct": Corpus(
        "RAD-ChestCT: chest CT with labels, without reports",
        _at_root("rad_chest_ct"),
        ("root",),
        findings="rad_chest_ct",
        has_reports=False,
    ),
    "merlin": Corpus(
        "Merlin: abdominal CT with reports and thirty findings",
        _at_root("merlin"),
        ("root",),
        findings="merlin",
    ),
    "inspect": Corpus(
        "INSPECT: CT pulmonary angiograms with impressions, embolism, outcomes",
        _at_root("inspect_ctpa"),
        ("root",),
        findings="inspect",
    ),
    "bimcv_r": Corpus(
        "BIMCV-R: chest CT with translated reports, split by patient",
        _at_root("bimcv_r"),
        ("root",),
        findings="ct_rate",
    ),
    "nlst": Corpus(
        "NLST: chest CT as DICOM files, and its table of participants",
        _nlst,
        ("root", "table", "encoding", "sheet", "header_cache"),
        has_reports=False,
        chooses_series=True,
    ),
    "cardiac_clip": Corpus(
        "the JSON and arrays of Cardiac-CLIP's public code",
        _cardiac_clip,
        ("root", "hu_window"),
    ),
    "nnunet": Corpus(
        "a data set of nnU-Net: images and label maps, without reports",
        _of_channels("nnunet"),
        ("root", "channel"),
        has_reports=False,
    ),
    "decathlon": Corpus(
        "a task of the Medical Segmentation Decathlon: images and label maps, without reports",
        _of_channels("decathlon"),
        ("root", "channel"),
        has_reports=False,
    ),
    "cmr_clip": Corpus(
        "arrays and captions as CMR-CLIP's public code writes them",
        _at_root("cmr_clip"),
        ("root",),
        findings="cardiac_mr",
        has_frames=True,
        knows_spacing=False,
    ),
    "acdc": Corpus(
        "ACDC: cardiac cines without reports",
        _at_root("acdc"),
        ("root",),
        findings="cardiac_mr",
        has_frames=True,
        has_reports=False,
    ),
    "phantom": Corpus(
        "generated chest CT with reports and organ masks",
        _folder,
        ("table",),
        findings="phantom",
        generate=_write_phantoms,
    ),
    "cine": Corpus(
        "generated cardiac MR with reports",
        _cmr,
        ("table",),
        findings="cardiac_mr",
        has_frames=True,
        generate=_write_cines,
    ),
}
"""Name to corpus. A new one: an adapter that yields a `StudyTable`, a function above, and an entry here."""
