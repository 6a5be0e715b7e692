"""Organ masks that lie beside a corpus, in a folder of their own: TotalSegmentator's output, by volume."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from medclip_jax.corpora.folder import StudyTable
from medclip_jax.corpora.joining import join
from medclip_jax.corpora.organ_masks import ClassCache, MaskError, find_masks
from medclip_jax.corpora.study import Study
from medclip_jax.corpora.tables import TableError
from medclip_jax.progress import track_each

TABLE = "organ masks"
"""Name of the masks among the tables that are joined."""

CLASS_FILES = ("classes.json", "dataset.json")
"""Class maps that hold for all multilabel files of a folder."""

_INNER = "segmentations"
"""TotalSegmentator's training data have the masks of ``s0001/ct.nii.gz`` there."""

_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".npz", ".npy")

_LOOKERS = 16
"""Threads: on network storage, looking is mostly waiting."""


def join_masks(table: StudyTable, folder: Path) -> StudyTable:
    """Give the studies of a corpus their organ masks, by the name of the volume.

    Args:
        table: of any corpus of volumes.
        folder: for a volume NAME.nii.gz it holds ``NAME/`` (or ``NAME/segmentations/``), a folder of one
            NIfTI for each class; or ``NAME.nii.gz``, one file of labels, whose class map stands in its
            header, in NAME.json beside it, or in classes.json for all. Folders may lie deeper.

    Returns:
        The same studies with `organs`; remarks and lists of what has no partner.

    Raises:
        TableError: no such folder, the studies have masks already, or no volume has masks there.
    """
    if not folder.is_dir():
        raise TableError(f"no folder '{folder}': --masks must be the folder of the organ masks")
    if any(study.organs for study in table):
        raise TableError(
            "the studies have organ masks already (the table's column 'organs', or the corpus's own): leave "
            "--masks out, or that column"
        )
    names = volume_names(table.studies)
    there = _masks_there(folder, set(names))
    joined = join(tuple(names), {TABLE: there})
    if not joined.matched[TABLE]:
        examples = ", ".join(f"'{folder}/{name}'" for name in names[:2])
        raise TableError(
            f"no volume has organ masks in '{folder}': a folder or file is looked for by the volume's name, "
            f"such as {examples}"
        )
    shared = next((folder / name for name in CLASS_FILES if (folder / name).is_file()), None)
    cache: ClassCache = {}

    def look(name: str) -> tuple[Mapping[str, Path], Mapping[int, str], MaskError | None]:
        path = there.get(name)
        if path is None:
            return {}, {}, None
        try:
            return *_find(path, shared, cache), None
        except MaskError as error:
            return {}, {}, error

    with ThreadPoolExecutor(_LOOKERS) as pool:
        looked = track_each(pool.map(look, names), total=len(names), label="masks", unit="volume")
        found = list(looked)
    studies = tuple(
        replace(
            study,
            organs=organs,
            organ_classes=dict(classes),
            notes=study.notes if error is None else (*study.notes, error.code),
        )
        for study, (organs, classes, error) in zip(table.studies, found, strict=True)
    )
    errors = [error for _, _, error in found if error is not None]
    if len(errors) == len(joined.matched[TABLE]):
        raise TableError(f"the masks in '{folder}' cannot be used: {errors[0]}")
    said = [f"{count} with masks that cannot be used: {text}" for text, count in _counted(errors)]
    return replace(
        table,
        studies=studies,
        remarks=(*table.remarks, *joined.remarks, *said),
        unmatched={**table.unmatched, **joined.unmatched},
    )


def volume_names(studies: Sequence[Study]) -> list[str]:
    """Name of each study's volume by which its masks are called: the file's, without its ending.

    Of files that share a name (``s0001/ct.nii.gz``, ``s0002/ct.nii.gz``), that of their folder. nnU-Net's
    images are called by their case, without the number of the channel.
    """
    names = [_plain(study) for study in studies]
    count = Counter(names)
    return [
        name if count[name] == 1 else study.path.parent.name
        for name, study in zip(names, studies, strict=True)
    ]


def _plain(study: Study) -> str:
    name = study.path.name
    case = study.record_id.rpartition("/")[2]
    bare = next((name.removesuffix(ending) for ending in _ENDINGS if name.endswith(ending)), name)
    # The corpus's own name of it, where the file's is that with more behind it: CASE_0000.nii.gz.
    return case if case and bare.startswith(f"{case}_") and bare[len(case) + 1 :].isdigit() else bare


def _masks_there(folder: Path, names: set[str]) -> dict[str, Path]:
    """Name to folder or file of masks, all that look like such; those of unknown names as well."""
    found: dict[str, Path] = {}
    for path in _walk(folder, names):
        found.setdefault(path.name if path.is_dir() else _stem(path), path)
    return found


def _walk(folder: Path, names: set[str]) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            # A folder of masks, or one that holds those of several volumes.
            if path.name not in names and any(
                inner.is_dir() or _stem(inner) in names for inner in path.iterdir()
            ):
                yield from _walk(path, names)
            else:
                yield path
        elif path.name.endswith((".nii", ".nii.gz")):
            yield path


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _find(path: Path, shared: Path | None, cache: ClassCache) -> tuple[Mapping[str, Path], Mapping[int, str]]:
    if path.is_dir() and (path / _INNER).is_dir():
        path = path / _INNER
    try:
        return find_masks(str(path), "", Path(), cache)
    except MaskError as error:
        if error.code != "organs-without-names" or shared is None:
            raise
        return find_masks(str(path), str(shared), Path(), cache)


def _counted(errors: Sequence[MaskError]) -> list[tuple[str, int]]:
    return Counter(map(str, errors)).most_common()
