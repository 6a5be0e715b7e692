"""Studies of several series, for models that read frames: where they lie, and how a model takes them.

Needs no JAX: worker processes run this.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medclip_jax.corpora.study import Series
from medclip_jax.corpora.tables import open_table, plain_name
from medclip_jax.fields import Layout
from medclip_jax.inference.scans import Entry
from medclip_jax.shards.frames import prepare_frames
from medclip_jax.shards.series import SeriesSettings
from medclip_jax.volumes.formats import SUFFIXES
from medclip_jax.volumes.volume import VolumeRejected

SERIES_TABLE = "series.csv"
"""A table in a study's folder that says which file or folder is which series, where their names do not."""

_SUFFIXES = (*SUFFIXES, ".npy")
_TABLES = (".csv", ".tsv")

Study = Any
"""What stands for a study: the path of its folder (see `series_in`), or a mapping of series to paths."""


@dataclass(frozen=True)
class PreparedStudy:
    """A study as the model takes it.

    Attributes:
        inputs: the batch fields that the model embeds, without the batch axis.
        notes: short codes, as in the manifest of `medclip prepare`.
    """

    inputs: Mapping[str, np.ndarray]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class StudyPreparation:
    """The steps of `medclip prepare` for a study of series of frames, and the model's choice of frames.

    Attributes:
        series: what became of each series in the training.
        layout: of batches of the fields that the model embeds.
        inputs: names of these fields.
    """

    series: tuple[SeriesSettings, ...]
    layout: Layout
    inputs: tuple[str, ...]

    @property
    def wanted(self) -> tuple[SeriesSettings, ...]:
        """The series that the model looks at."""
        return tuple(series for series in self.series if series.name in self.layout.reads)

    def __call__(self, study: Study) -> PreparedStudy:
        """Prepare one study.

        Args:
            study: see `Study`.

        Raises:
            VolumeRejected: it cannot be used; the message says what to do, and names a folder first.
            ValueError: the folder holds several files for one series, or its table names none.
            TypeError: nothing that stands for a study.
        """
        if isinstance(study, Mapping):
            return self.read(tuple(Series(Path(path), str(name), "MR") for name, path in study.items()))
        if not isinstance(study, str | os.PathLike):
            raise TypeError(
                "a study is the path of its folder, or a mapping of series to paths, such as "
                f"{{{self.wanted[0].name!r}: 'a.nii.gz'}}, not {type(study).__name__}"
            )
        try:
            return self.read(series_in(Path(study), self._names()))
        except VolumeRejected as error:
            raise VolumeRejected(error.code, f"{os.fspath(study)}: {error}") from error.__cause__

    def read(
        self,
        study: Sequence[Series],
        center: Sequence[float] | None = None,
        *,
        series: str | None = None,
        kernel: str | None = None,
        rule: str = "best",
    ) -> PreparedStudy:
        """Prepare the series of a study that the model looks at.

        Args:
            study: where they lie.
            center: of scans; pictures are cut around their middle.
            series: of scans, and so are the others: every series is named in the study.
            kernel: likewise.
            rule: likewise.

        Raises:
            VolumeRejected: whatever is wrong with it; the message does not name a path.
            ValueError: a center was given.
        """
        if center is not None or series is not None or kernel is not None:
            raise ValueError("center, series and kernel are of scans: a study names its series")
        there = {one.name: one for one in study}
        record: dict[str, np.ndarray] = {}
        notes: list[str] = []
        for settings in self.wanted:
            if settings.name not in there:
                notes.append(f"series-missing:{settings.name}")
                continue
            prepared = self._prepared(there[settings.name], settings)
            record |= prepared.arrays
            notes += prepared.notes
        if not record:
            raise VolumeRejected(
                "missing-series",
                f"The study has none of the series that the model looks at ({', '.join(self._names())}): "
                f"name its files or folders so, or say which is which in {SERIES_TABLE}.",
            )
        # A batch also has the study's hash and place, which no vector depends on.
        sample = self.layout.sample(record | {"study": 0}, 0)
        return PreparedStudy({name: sample[name] for name in self.inputs}, tuple(notes))

    def _prepared(self, series: Series, settings: SeriesSettings):
        try:
            return prepare_frames(series, settings)
        except VolumeRejected:
            raise
        except MemoryError:
            raise VolumeRejected(
                "out-of-memory", "The study does not fit into memory: embed with fewer --workers."
            ) from None
        except Exception as error:
            # Any study must end as a vector or as a reason, whatever its reader stumbles over.
            raise VolumeRejected(
                "unreadable",
                f"Series '{settings.name}': reading failed with {type(error).__name__}: see whether a viewer "
                "opens it, and report this.",
            ) from error

    def _names(self) -> tuple[str, ...]:
        return tuple(series.name for series in self.wanted)


def series_in(folder: Path, names: Sequence[str]) -> tuple[Series, ...]:
    """The series that lie in a study's folder.

    Args:
        folder: with files or DICOM folders named as series are (`cine_sa.nii.gz`, `lge_sa/`), in any case; or
            with `series.csv`, a table of the columns series and path, and series_uid where a folder holds
            several DICOM series.
        names: of the series that count.

    Returns:
        Those that are there; () where the folder is no study.

    Raises:
        VolumeRejected: there is no such folder.
        ValueError: several files for one series, or a table that cannot be understood.
    """
    if not folder.is_dir():
        raise VolumeRejected("missing-file", "There is no such folder: check the path.")
    has_table = (folder / SERIES_TABLE).is_file()
    named = _in_table(folder / SERIES_TABLE) if has_table else _by_name(folder)
    found: dict[str, Series] = {}
    for series in named:
        if series.name not in names:
            continue
        if series.name in found:
            raise ValueError(
                f"{folder} holds {found[series.name].path.name} and {series.path.name}, and both are "
                f"{series.name}: take one out, or say in {SERIES_TABLE} which is meant"
            )
        found[series.name] = series
    return tuple(found.values())


def find_studies(
    arguments: Sequence[str] = (),
    *,
    names: Sequence[str],
    list_file: str | os.PathLike | None = None,
    root: str | os.PathLike | None = None,
) -> list[Entry]:
    """Studies that arguments and a list name, each once, in the order given.

    Args:
        arguments: folders of a study (see `series_in`), folders to search for such, patterns of them.
        names: of the series that count.
        list_file: a table with a row for each series, as `medclip prepare --corpus cmr` reads it (no reports
            are needed), or a text file with a study's folder on every line.
        root: folder that relative paths of the list start from; default: the list's own.

    Raises:
        FileNotFoundError: an argument yields no study, or there is no such list.
        ValueError: a list, or a study's folder, that cannot be understood.
    """
    entries = [entry for argument in arguments for entry in _expand(argument, names)]
    if list_file is not None:
        entries += _read_list(Path(list_file), root, names)
    return list(dict.fromkeys(entries))


def _expand(argument: str, names: Sequence[str]) -> list[Entry]:
    path = Path(argument)
    if path.is_dir():
        found = list(_below(path, names))
        if not found:
            raise FileNotFoundError(
                f"{argument} holds no study: no files or DICOM folders named {', '.join(names)} and no "
                f"{SERIES_TABLE}, in it or in the folders below"
            )
        return found
    if path.exists():
        raise ValueError(
            f"{argument} is a file, and this model reads studies of several series: give the study's folder, "
            "or a table of series with --list"
        )
    matches = sorted(glob.glob(argument, recursive=True)) if glob.has_magic(argument) else []
    folders = [match for match in matches if os.path.isdir(match)]
    if not folders:
        raise FileNotFoundError(f"no folder {argument}: give the folder of a study")
    return [entry for folder in folders for entry in _expand(folder, names)]


def _below(folder: Path, names: Sequence[str]) -> Iterator[Entry]:
    """The study in a folder, or those below it."""
    if series := series_in(folder, names):
        yield Entry(os.fspath(folder), series)
        return
    for below in sorted(path for path in folder.iterdir() if path.is_dir()):
        yield from _below(below, names)


def _read_list(path: Path, root: str | os.PathLike | None, names: Sequence[str]) -> list[Entry]:
    from medclip_jax.corpora.cmr import cmr

    if not path.is_file():
        raise FileNotFoundError(
            f"no list {path}: --list is a table of series, or a text file with one study's folder a line"
        )
    if path.suffix.lower() in _TABLES:
        studies = [study for study in cmr(path, root=root, reports_elsewhere=True) if study.has_scan]
        return [Entry("/".join(dict.fromkeys((s.patient_id, s.study_id))), s.series) for s in studies]
    start = Path(root) if root is not None else path.parent
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    folders = [line for line in lines if line and not line.startswith("#")]
    # A folder that is not there is a study that cannot be read: it is listed with the others.
    return [
        Entry(folder, series_in(start / folder, names) if (start / folder).is_dir() else ())
        for folder in folders
    ]


def _by_name(folder: Path) -> Iterator[Series]:
    """Files and folders as if each were a series that it is named after."""
    for path in sorted(folder.iterdir()):
        name = path.name.lower()
        suffix = max((end for end in _SUFFIXES if name.endswith(end)), key=len, default="")
        if suffix or path.is_dir():
            yield Series(path, plain_name(name.removesuffix(suffix)), "MR")


def _in_table(path: Path) -> Iterator[Series]:
    table = open_table(path, known=("series", "path", "series_uid"), option=None)
    places = {plain_name(name): place for place, name in enumerate(table.header)}
    if missing := [name for name in ("series", "path") if name not in places]:
        raise ValueError(
            f"{path} lacks the column {' and '.join(missing)}: it says which file or folder is which series"
        )
    for row in table.rows(lambda inside, cells: False):
        cells = {name: row.cells[place].strip() for name, place in places.items()}
        if cells["path"]:
            uid = cells.get("series_uid", "")
            yield Series(path.parent / cells["path"], plain_name(cells["series"]), "MR", uid=uid)
