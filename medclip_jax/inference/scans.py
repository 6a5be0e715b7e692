"""Which scans are meant: files, DICOM folders, folders to search, patterns, lists."""

from __future__ import annotations

import csv
import glob
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medclip_jax.corpora.folder import COLUMNS

IMAGE_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
"""What a search takes for a scan, besides folders that hold DICOM files."""

_CENTER = ("center_x", "center_y", "center_z")


@dataclass(frozen=True)
class Entry:
    """A scan to embed.

    Attributes:
        scan: its path as it was given or found; what the results call it.
        path: where it lies.
        id: carried over from a list.
        center: RAS mm of the crop's middle, from a list.
    """

    scan: str
    path: Path
    id: str | None = None
    center: tuple[float, float, float] | None = None


def find_scans(
    arguments: Sequence[str] = (),
    *,
    list_file: str | os.PathLike | None = None,
    root: str | os.PathLike | None = None,
) -> list[Entry]:
    """Scans that arguments and a list name, each once, in the order given.

    Args:
        arguments: files; DICOM folders; folders that are searched for both; patterns such as
            ``"scans/**/*.nii.gz"``. What is found in a folder or by a pattern comes in the order of its
            name. A folder that holds DICOM files is one scan, with all DICOM files below it.
        list_file: a text file with one path a line, or a CSV or TSV table with a column `volume`, and
            optionally `id` and `center_x`, `center_y`, `center_z` (RAS mm).
        root: folder that relative paths of the list start from; default: the list's own.

    Raises:
        FileNotFoundError: a pattern or a searched folder yields nothing, or there is no such list.
        ValueError: a list that cannot be understood; a searched folder that holds DICOM files beside
            folders of series.
    """
    entries = [Entry(name, Path(name)) for argument in arguments for name in _expand(argument)]
    if list_file is not None:
        entries += _read_list(Path(list_file), root)
    return list(dict.fromkeys(entries))


def _expand(argument: str) -> list[str]:
    path = Path(argument)
    if path.is_dir():
        found = list(_search(argument))
        if not found:
            raise FileNotFoundError(
                f"{argument} holds no scan: no {', '.join(IMAGE_SUFFIXES)} and no DICOM files in it or "
                "in the folders below"
            )
        return found
    if path.exists() or not glob.has_magic(argument):
        # A file that is not there is a scan that cannot be read: it is listed with the others.
        return [argument]
    matches = sorted(glob.glob(argument, recursive=True))
    if not matches:
        raise FileNotFoundError(f"no file matches {argument}")
    return [name for match in matches for name in _expand(match)]


def _search(folder: str) -> Iterator[str]:
    """Image files, and folders that hold DICOM files, in a folder and below, by name.

    A folder that holds DICOM files is one scan with all that lies below it, as for `volumes.read_volume`.

    Raises:
        ValueError: that would make one scan of the whole folder, and there are series below.
    """
    seen, series = set(), []
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link back to where we have been
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        visible = sorted(name for name in files if not name.startswith("."))
        images = [name for name in visible if name.lower().endswith(IMAGE_SUFFIXES)]
        yield from (os.path.join(place, name) for name in images)
        if not any(_is_dicom(Path(place, name)) for name in visible if name not in images):
            continue
        if not any(place.startswith(os.path.join(other, "")) for other in series):
            series.append(place)
            yield place
        elif series[0] == folder:
            raise ValueError(
                f"{folder} holds DICOM files itself and in {place}: give the folders of the series one by "
                "one, or move the files out that lie above them"
            )


def _is_dicom(file: Path) -> bool:
    """Whether a file carries the DICM marker; DICOMDIR, an index without images, does not count."""
    if file.name.upper() == "DICOMDIR":
        return False
    try:
        with open(file, "rb") as opened:
            return opened.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _read_list(path: Path, root: str | os.PathLike | None) -> Iterator[Entry]:
    if not path.is_file():
        raise FileNotFoundError(f"no list {path}: --list is a text file with one path a line, or a CSV table")
    start = Path(root) if root is not None else path.parent
    if not start.is_dir():
        raise FileNotFoundError(f"no folder {start}: --root is where the relative paths of the list start")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8: save it again as UTF-8 text") from None
    if path.suffix.lower() not in (".csv", ".tsv"):
        names = [line.strip() for line in text.splitlines()]
        yield from (Entry(name, start / name) for name in names if name and not name.startswith("#"))
        return
    csv.field_size_limit(1 << 30)  # tables of studies hold reports, too
    first = text.partition("\n")[0]
    table = csv.DictReader(io.StringIO(text, newline=""), delimiter=max("\t,;", key=first.count))
    columns = {(name or "").strip().lower(): name for name in table.fieldnames or ()}
    volume = next((columns[name] for name in COLUMNS["volume"] if name in columns), None)
    if volume is None:
        raise ValueError(
            f"{path} lacks the column volume; it has {', '.join(columns) or 'nothing'}. Without a header, "
            "name the file .txt: one path a line"
        )
    missing = [name for name in _CENTER if name not in columns]
    if 0 < len(missing) < 3:
        raise ValueError(f"{path} lacks {' and '.join(missing)}: a center takes three columns, RAS mm")
    for row, cells in enumerate(table, start=1):
        name = (cells[volume] or "").strip()
        if not name:
            raise ValueError(f"row {row} of {path} names no volume: fill the cell, or take the row out")
        identity = (cells.get(columns.get("id", ""), None) or "").strip() or None
        center = None if missing else _center(cells, columns, f"row {row} of {path}")
        yield Entry(name, start / name, identity, center)


def _center(
    cells: Mapping[str, str | None], columns: Mapping[str, str], where: str
) -> tuple[float, float, float] | None:
    texts = [(cells[columns[name]] or "").strip() for name in _CENTER]
    if not any(texts):
        return None
    try:
        x, y, z = (float(text) for text in texts)
    except ValueError:
        x = y = z = math.nan
    if not all(map(math.isfinite, (x, y, z))):
        raise ValueError(f"{where}: center_x, center_y and center_z must be three numbers, or all empty")
    return x, y, z
