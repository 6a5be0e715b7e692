"""The layout of Cardiac-CLIP's public code: one JSON of image paths, texts and seven labels, and arrays.

Reference: Hu et al., Cardiac-CLIP, https://github.com/Sliver-g/Cardiac-CLIP.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from medclip_jax.corpora.archive import check_root
from medclip_jax.corpora.cells import SPLITS, zero_meaning
from medclip_jax.corpora.folder import StudyTable
from medclip_jax.corpora.study import Series, Study
from medclip_jax.corpora.tables import TableError
from medclip_jax.reports.vocabulary import CARDIAC_FINDINGS

WINDOW_HU = (-1024.0, 1500.0)
"""What 0 and 1 of an array are taken for: the public code scales each scan by its own extremes, which are
about these on ordinary scans; `export.released_cardiac_clip` takes the same."""

AXES = "SPL"
"""Where depth, height and width of the arrays are taken to point; nobody wrote it down."""

SPACING_MM = (1.0, 1.25, 1.25)
"""What a voxel of the arrays (128, 144, 144) is taken for; nobody wrote it down."""

_NOTES = ("spacing-unknown", "orientation-assumed")
_STATEMENTS = re.compile(r"(?:\s*there (?:is|are) [^.]*\.?)+\s*", re.IGNORECASE)
_KEYS = ("img_path", "texts")


@dataclass(frozen=True)
class _Entry:
    """One entry of the JSON: several images share its texts and labels."""

    number: int
    images: tuple[str, ...]
    texts: tuple[str, ...]
    labels: tuple[int, ...]
    split: str


def cardiac_clip(root: str | os.PathLike, *, hu_window: tuple[float, float] = WINDOW_HU) -> StudyTable:
    """Read the JSON that the public code trains on.

    Args:
        root: holds the JSON, itself or one folder below; paths of arrays (.npy of depth, height, width) start
            from the root, or are absolute. Where a path of another machine ends in what lies below the root,
            that is read.
        hu_window: HU that 0 and 1 stand for in the arrays. Arrays that hold HU are left as they are.

    Returns:
        One study for each image of an entry. The images of an entry share study and report: the first of its
        texts that is more than statements ("There is X."), which `prepare` writes itself.

    Raises:
        TableError: no JSON of this kind, or several; or an entry cannot be understood.
    """
    root = check_root(root, "the JSON")
    low, high = hu_window
    if not low < high:
        raise TableError(f"--hu-window {low:g} {high:g} is empty: give the lower HU first")
    path, entries, others = _read(root)
    meaning = zero_meaning(None if label == 0 else label for entry in entries for label in entry.labels)
    zero = -1 if meaning == "absent" else 0
    resolve = _Resolver(root)
    studies = []
    for entry in entries:
        study = f"{path.name} {entry.number}"
        for place, image in enumerate(entry.images):
            series = Series(resolve(image), rescale=(high - low, low), spacing=SPACING_MM, axes=AXES)
            studies.append(
                Study(
                    series=(series,),
                    record_id=f"{study} {place}",
                    study_id=study,
                    patient_id=study,
                    report=_free_text(entry.texts),
                    labels=dict(
                        zip(CARDIAC_FINDINGS, (label or zero for label in entry.labels), strict=False)
                    ),
                    split=entry.split,
                    row=len(studies) + 1,
                    notes=_NOTES,
                )
            )
    remarks = _remarks(entries, studies, meaning, (low, high))
    if others:
        remarks.append(f"lists that name no split and are not read: {', '.join(others)}")
    return StudyTable(tuple(studies), tuple(remarks), meaning)


def _remarks(
    entries: Sequence[_Entry], studies: Sequence[Study], meaning: str | None, window: tuple[float, float]
) -> list[str]:
    counts = Counter(study.split for study in studies)
    told = ", ".join(f"{count} {split}" for split, count in counts.items())
    unread = sum(
        bool(text.strip()) and text != _free_text(entry.texts) and not _STATEMENTS.fullmatch(text)
        for entry in entries
        for text in entry.texts
    )
    remarks = [
        f"Cardiac-CLIP: {len(studies)} arrays of {len(entries)} entries ({told}); every entry counts as a "
        "patient of its own, because the JSON names none",
        f"arrays of 0 to 1 are taken for {window[0]:g} to {window[1]:g} HU (--hu-window), and must then look "
        "like a CT. Spacing and axes are not written down: they are taken for "
        f"{' x '.join(f'{step:g}' for step in SPACING_MM)} mm and slices from the feet up; --shape 128 144 "
        "144 --spacing 1 1.25 1.25 keeps arrays as they are",
    ]
    if meaning is not None:
        remarks.append(f"labels: 0 is read as {meaning}")
    if unread:
        remarks.append(f"{unread} further texts of entries that have several are not read: the first one is")
    return remarks


def _free_text(texts: Sequence[str]) -> str:
    """The first text that is more than statements; the first at all where none is."""
    said = [text.strip() for text in texts if text.strip()]
    return next((text for text in said if not _STATEMENTS.fullmatch(text)), next(iter(said), ""))


def _read(root: Path) -> tuple[Path, list[_Entry], list[str]]:
    """The JSON, its entries, and names of lists that are no split."""
    candidates = sorted(path for pattern in ("*.json", "*/*.json") for path in root.glob(pattern))
    fitting = {}
    for path in candidates:
        try:
            written = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(written, Mapping) and any(
            isinstance(entries, list)
            and entries
            and isinstance(entries[0], Mapping)
            and "img_path" in entries[0]
            for entries in written.values()
        ):
            fitting[path] = written
    if len(fitting) != 1:
        what = (
            "no JSON" if not fitting else f"several JSON files ({', '.join(path.name for path in fitting)})"
        )
        raise TableError(
            f"'{root}' holds {what} of lists train, val, test with entries {{img_path, texts, labels}}: give "
            "--root a folder that holds one"
        )
    path, written = next(iter(fitting.items()))
    entries: list[_Entry] = []
    others = []
    for name, listed in written.items():
        split = SPLITS.get(name.lower())
        if split is None or not isinstance(listed, list):
            others.append(name)
            continue
        entries += [
            _entry(path, name, split, place, one, len(entries)) for place, one in enumerate(listed, 1)
        ]
    if not entries:
        raise TableError(f"'{path}' has no list named train, val or test: name them so")
    return path, entries, others


def _entry(path: Path, name: str, split: str, place: int, written: object, before: int) -> _Entry:
    where = f"entry {place} of the list '{name}' in '{path}'"
    if not isinstance(written, Mapping) or not set(_KEYS) <= written.keys():
        raise TableError(f"{where} must hold img_path and texts")
    images, texts = ([written[key]] if isinstance(written[key], str) else written[key] for key in _KEYS)
    if not isinstance(images, list) or not images or not all(isinstance(one, str) for one in images):
        raise TableError(f"{where}: img_path must be a list of paths")
    if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
        raise TableError(f"{where}: texts must be a list of texts")
    labels = written.get("labels") or []
    fits = isinstance(labels, list) and len(labels) in (0, len(CARDIAC_FINDINGS))
    if not fits or not all(label in (-1, 0, 1) for label in labels):
        raise TableError(
            f"{where}: labels must be {len(CARDIAC_FINDINGS)} numbers of -1, 0, 1, in the order "
            f"{', '.join(CARDIAC_FINDINGS)}"
        )
    return _Entry(before + place, tuple(images), tuple(texts), tuple(map(int, labels)), split)


class _Resolver:
    """Finds arrays whose paths were written on another machine.

    Args:
        root: that paths start from.
    """

    def __init__(self, root: Path):
        self._root = root
        self._dropped: int | None = None

    def __call__(self, text: str) -> Path:
        written = PureWindowsPath(text) if "\\" in text else PurePosixPath(text)
        parts = [part for part in written.parts if part != written.anchor]
        whole = Path(text)
        if whole.is_absolute() and whole.exists():
            return whole
        # As many folders are left out as for the path before, where that one was found.
        tries = range(len(parts)) if self._dropped is None else (self._dropped, *range(len(parts)))
        for dropped in tries:
            path = self._root.joinpath(*parts[dropped:])
            if dropped < len(parts) and path.exists():
                self._dropped = dropped
                return path
        return self._root.joinpath(*parts)
