"""The corpora by name: what `medclip prepare --corpus NAME` reads, one adapter a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from medclip_jax.corpora.tables import TableError

if TYPE_CHECKING:
    from medclip_jax.corpora.folder import StudyTable
    from medclip_jax.reports.definitions import Findings


@dataclass(frozen=True)
class Place:
    """Where a corpus lies on this machine, and how to read it.

    Attributes:
        definitions: the findings that labels can be of.
        table: CSV or TSV, for corpora that are a table.
        root: folder; of a table, that its paths start from (None: the table's own).
        encoding: of the table.
        sentences: CSV of sentences by region, for corpora of organs.
    """

    definitions: Findings
    table: Path | None = None
    root: Path | None = None
    encoding: str | None = None
    sentences: Path | None = None


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
        generate: writes a set of its studies to a folder and returns the table; None where they are given.
    """

    about: str
    reader: Callable[[Place], StudyTable]
    options: tuple[str, ...]
    findings: str = "cardiac"
    has_frames: bool = False
    has_reports: bool = True
    knows_spacing: bool = True
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
    for option in ("table", "root", "encoding", "sentences"):
        if option not in corpus.options and getattr(place, option) is not None:
            takes = ", ".join(f"--{taken}" for taken in corpus.options)
            raise TableError(f"--corpus {name} has no --{option}: it takes {takes}")
    return corpus.reader(place)


def _folder(place: Place) -> StudyTable:
    from medclip_jax.corpora.folder import folder
    from medclip_jax.corpora.roots import check_root

    table = folder(
        place.table,
        root=place.root,
        reports_elsewhere=place.sentences is not None,
        encoding=place.encoding,
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

    table = cmr(place.table, root=place.root, encoding=place.encoding, definitions=place.definitions)
    check_root(table.studies, place.root or place.table.parent, given=place.root is not None)
    return table


def _cmr_clip(place: Place) -> StudyTable:
    from medclip_jax.corpora.cmr_clip import cmr_clip

    return cmr_clip(place.root)


def _acdc(place: Place) -> StudyTable:
    from medclip_jax.corpora.acdc import acdc

    return acdc(place.root)


def _write_phantoms(folder: Path, count: int, *, seed: int, workers: int) -> Path:
    from medclip_jax.corpora import phantom

    return phantom.write(folder, count, seed=seed, workers=workers)


def _write_cines(folder: Path, count: int, *, seed: int, workers: int) -> Path:
    from medclip_jax.corpora import cine

    return cine.write(folder, count, seed=seed, workers=workers)


CORPORA: dict[str, Corpus] = {
    "folder": Corpus(
        "a table with a row for each volume", _folder, ("table", "root", "encoding", "sentences")
    ),
    "cmr": Corpus(
        "a table with a row for each MR series",
        _cmr,
        ("table", "root", "encoding"),
        findings="cardiac_mr",
        has_frames=True,
    ),
    "cmr_clip": Corpus(
        "arrays and captions as CMR-CLIP's public code writes them",
        _cmr_clip,
        ("root",),
        findings="cardiac_mr",
        has_frames=True,
        knows_spacing=False,
    ),
    "acdc": Corpus(
        "ACDC's folders: cines without reports",
        _acdc,
        ("root",),
        findings="cardiac_mr",
        has_frames=True,
        has_reports=False,
    ),
    "phantom": Corpus("generated CT", _folder, ("table",), findings="phantom", generate=_write_phantoms),
    "cine": Corpus(
        "generated cardiac MR",
        _cmr,
        ("table",),
        findings="cardiac_mr",
        has_frames=True,
        generate=_write_cines,
    ),
}
"""Name to corpus. A new one: an adapter that yields a `StudyTable`, a function above, and an entry here."""
