"""What the headers of an archive said, kept in a private file, so that a second look reads only what changed.

The file is as private as the archive: it holds paths, UIDs and the elements that its user asked for (ids of
patients and examinations, from which keyed hashes are made later). It holds no name, no date of birth and no
voxel.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from medclip_jax.volumes.dicom_choice import Facts
from medclip_jax.volumes.dicom_headers import MARKS, DicomFile, Slice
from medclip_jax.volumes.dicom_survey import FolderHeaders, FolderSurvey, FoundSeries

_VERSION = 2
"""Of what is read of a header and of how series are judged; another one makes files void."""

_SECONDS = 60.0
"""At least so long between two writings of the file: a kill costs no more work than that."""

_PER_FILE = ("refusal", "patient", "study", "uid", "series_number", "kind", "look", "modality")
_PER_SLICE = ("rows", "columns", "pixel_spacing", "shape", "slope", "intercept", "units", "padding")


class FileState(NamedTuple):
    """By what a file is known to be the same as before: its size, and when it was written (ns)."""

    size: int
    changed: int


def file_states(place: str, names: Iterable[str]) -> dict[str, FileState | None]:
    """States of files of a folder; None of one that cannot be looked at.

    Args:
        place: the folder.
        names: of the files.
    """
    states: dict[str, FileState | None] = {}
    for name in names:
        try:
            found = os.stat(os.path.join(place, name))
            states[name] = FileState(found.st_size, found.st_mtime_ns)
        except OSError:
            states[name] = None
    return states


class Known(NamedTuple):
    """What the cache holds of a folder.

    Attributes:
        keywords: further elements that were read.
        states: of its files, by name.
        survey: which series they are.
        headers: of the files, from `encode_headers`.
    """

    keywords: tuple[str, ...]
    states: dict[str, FileState]
    survey: FolderSurvey
    headers: str


class HeaderCache:
    """Headers and surveys of folders in a private file, one folder a line. A context: leaving it writes.

    Args:
        path: of the file; None keeps them in memory alone. Damaged lines count as not there. Several machines
            may share a file: it is replaced as a whole, and the last one wins.
    """

    def __init__(self, path: Path | None):
        self._path = path
        self._known: dict[str, Known] = {}
        self._is_changed = False
        self._written = time.monotonic()
        if path is None or not path.is_file():
            return
        with open(path, encoding="ascii", errors="replace") as lines:
            for line in lines:
                with contextlib.suppress(Exception):
                    self._read(json.loads(line))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.write()

    def get(self, place: str) -> Known | None:
        """What is known of a folder, whether or not it has changed since."""
        return self._known.get(place)

    def put(self, place: str, known: Known) -> None:
        """Keep what is known of a folder."""
        self._known[place] = known
        self._is_changed = True
        if time.monotonic() - self._written > _SECONDS:
            self.write()

    def forget(self, places: Iterable[str]) -> None:
        """Drop folders that are no more."""
        for place in places:
            self._is_changed |= self._known.pop(place, None) is not None

    @property
    def places(self) -> tuple[str, ...]:
        """Folders that are known."""
        return tuple(self._known)

    def write(self) -> None:
        """Write the file, where something has changed; readable by its owner alone."""
        self._written = time.monotonic()
        if self._path is None or not self._is_changed:
            return
        own = f"{self._path.name}.{socket.gethostname()}-{os.getpid()}.partial"
        partial = self._path.with_name(own)
        try:
            with open(partial, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.writelines(_line(place, known) for place, known in self._known.items())
            os.replace(partial, self._path)
        finally:
            partial.unlink(missing_ok=True)
        self._is_changed = False

    def _read(self, written: Mapping[str, Any]) -> None:
        if written["version"] != _VERSION:
            return
        names = written["names"]
        states = {name: FileState(*state) for name, state in zip(names, written["states"], strict=True)}
        survey = _survey(written["place"], names, written["survey"])
        self._known[survey.place] = Known(tuple(written["keywords"]), states, survey, written["headers"])


def _line(place: str, known: Known) -> str:
    names = list(known.states)
    written = {
        "version": _VERSION,
        "place": place,
        "keywords": known.keywords,
        "names": names,
        "states": list(known.states.values()),
        "survey": _plain_survey(known.survey, {name: n for n, name in enumerate(names)}),
        "headers": known.headers,
    }
    return json.dumps(written, separators=(",", ":")) + "\n"


def _plain_survey(survey: FolderSurvey, numbers: Mapping[str, int]) -> dict[str, object]:
    """A survey in JSON's terms, with numbers for names."""
    series = []
    for found in survey.series:
        positions = base64.b64encode(found.positions.astype("<f4").tobytes()).decode()
        item = asdict(replace(found, positions=np.zeros((0, 3), np.float32), facts=None))
        del item["places"]
        item |= {"names": [numbers[name] for name in found.names[0]], "positions": positions}
        series.append(item | {"facts": None if found.facts is None else list(found.facts)})
    return {
        "series": series,
        "others": dict(survey.others),
        "foreign": dict(survey.foreign),
        "unknown": survey.unknown,
        "copies": survey.copies,
    }


def _survey(place: str, names: Sequence[str], written: Mapping[str, Any]) -> FolderSurvey:
    series = []
    for item in written["series"]:
        positions = np.frombuffer(base64.b64decode(item["positions"]), "<f4").reshape(-1, 3)
        own = {
            "places": (place,),
            "names": (tuple(names[n] for n in item["names"]),),
            "kernels": tuple(item["kernels"]),
            "positions": positions,
            "facts": None if item["facts"] is None else Facts(*item["facts"]),
        }
        series.append(FoundSeries(**(item | own)))
    return FolderSurvey(
        place,
        tuple(series),
        Counter(written["others"]),
        unknown=tuple(written["unknown"]),
        copies=tuple(written["copies"]),
        foreign=Counter(written["foreign"]),
    )


def encode_headers(files: Mapping[str, DicomFile | None]) -> str:
    """Headers of files as text: what many share is written once.

    Args:
        files: of one folder.
    """
    kinds: dict[str, int] = {}

    def number(what: Mapping[str, object]) -> int:
        return kinds.setdefault(json.dumps(what), len(kinds))

    rows: dict[str, list[object] | None] = {}
    for name, file in files.items():
        if file is None:
            rows[name] = None
            continue
        shared = {one: getattr(file, one) for one in (*_PER_FILE, "transfer_syntax", "values")}
        slices = []
        for item in file.slices:
            same = {one: _plain(getattr(item, one)) for one in (*_PER_SLICE, "thickness", "space")}
            same["marks"] = {mark: value for mark, value in item.marks.items() if value}
            own = (item.frame, item.number, item.location, *item.position.tolist())
            slices.append([number(same), *own])
        rows[name] = [number(shared), file.instance, slices]
    text = json.dumps({"kinds": list(map(json.loads, kinds)), "files": rows}, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode(), 6)).decode()


def decode_headers(place: str, text: str) -> FolderHeaders:
    """Headers from `encode_headers`.

    Args:
        place: the folder that the files lie in.
        text: encoded.
    """
    if not text:
        return FolderHeaders(place, {})
    written = json.loads(zlib.decompress(base64.b64decode(text)))
    kinds = [_restored(kind) for kind in written["kinds"]]
    files: dict[str, DicomFile | None] = {}
    for name, row in written["files"].items():
        if row is None:
            files[name] = None
            continue
        shared, instance, slices = row
        common, path = kinds[shared], Path(place, name)
        found = tuple(
            Slice(
                path=path,
                transfer_syntax=common["transfer_syntax"],
                modality=common["modality"],
                frame=frame,
                number=count,
                location=location,
                position=np.array(position),
                **kinds[same],
            )
            for same, frame, count, location, *position in slices
        )
        files[name] = DicomFile(path, slices=found, instance=instance, **common)
    return FolderHeaders(place, files)


def _plain(value: object) -> object:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _restored(kind: dict[str, Any]) -> dict[str, Any]:
    """What files or slices share, in the types that it had."""
    if "look" in kind:
        *look, image_type = kind["look"]
        return kind | {"look": (*look, tuple(image_type))}
    pairs = {name: tuple(kind[name]) for name in ("pixel_spacing", "shape")}
    directions = {name: np.array(kind[name]) for name in ("rows", "columns")}
    marks = {name: kind["marks"].get(name, "") for name in MARKS}
    padding = None if kind["padding"] is None else tuple(kind["padding"])
    return kind | pairs | directions | {"padding": padding, "marks": marks}
