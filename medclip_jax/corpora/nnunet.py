"""A data set in nnU-Net's raw format, of version 1 or 2: images and label maps, without reports.

Reference: Isensee et al., nnU-Net: a self-configuring method for deep learning-based biomedical image
segmentation, Nature Methods 2021.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from medclip_jax.corpora.dataset_json import (
    ENDINGS,
    DatasetJson,
    choose_channel,
    modality_of_channel,
    read_dataset_json,
)
from medclip_jax.corpora.folder import StudyTable
from medclip_jax.corpora.joining import Joining, join
from medclip_jax.corpora.study import VOLUME, Series, Study
from medclip_jax.corpora.tables import TableError

_CHANNEL = re.compile(r"(.+)_(\d{4})")

SPLITS_FILE = "splits_final.json"

Cases = Mapping[str, Mapping[int, Path]]
"""Case to channel to file."""


def nnunet(root: str | os.PathLike, *, channel: str | None = None) -> StudyTable:
    """Read a data set of nnU-Net.

    Args:
        root: ``nnUNet_raw/Dataset001_NAME``: dataset.json, ``imagesTr/CASE_0000.nii.gz``,
            ``labelsTr/CASE.nii.gz``, and ``imagesTs``, ``labelsTs`` where there are some.
        channel: name or number of the channel that is read, where the images have several.

    Returns:
        One study a case, without report, each its own patient. Cases of ``imagesTs`` are the test split;
        the others are of the first fold of splits_final.json, which is looked for there and in
        nnUNet_preprocessed, else of no split.

    Raises:
        TableError: no data set, or no such channel.
    """
    root = Path(root)
    dataset = read_dataset_json(root, "an nnU-Net data set")
    ending = str(dataset.written.get("file_ending", ".nii.gz"))
    if ending not in ENDINGS:
        raise TableError(
            f"'{dataset.path}': images end in {ending}; those of scans end in {', '.join(ENDINGS)}"
        )
    place = choose_channel(dataset, channel)
    modality, remark = modality_of_channel(dataset, place)
    train, labels = _listed(dataset)
    train = train or _images(root / "imagesTr", ending)
    labels = labels or _labels(root / "labelsTr", ending)
    test = _images(root / "imagesTs", ending)
    if not train and not test:
        raise TableError(_no_images(root, ending))
    joined = join(tuple(train), {"label maps": labels}, unit="case")
    joinings = [joined]
    if test_labels := _labels(root / "labelsTs", ending):
        joinings.append(join(tuple(test), {"label maps of imagesTs": test_labels}, unit="case"))
    splits, said = _splits(root, train)

    def study(case: str, folder: str, files: Mapping[int, Path], split: str | None) -> Study:
        path = files.get(place, root / folder / f"{case}_{place:04d}{ending}")
        found = labels.get(case) if folder == "imagesTr" else test_labels.get(case)
        owner = f"imagesTs/{case}" if folder == "imagesTs" and case in train else case
        return Study(
            series=(Series(path, VOLUME, modality),),
            record_id=f"{folder}/{case}",
            study_id=owner,
            patient_id=owner,
            split=split,
            label_map=None if found is None else dataset.label_map(found),
        )

    studies = [study(case, "imagesTr", files, splits.get(case)) for case, files in train.items()]
    studies += [study(case, "imagesTs", files, "test") for case, files in test.items()]
    return StudyTable(
        tuple(studies),
        tuple(filter(None, (remark, *_remarks(dataset, train, test, place), *said, *_said(joinings)))),
        unmatched={name: sides for each in joinings for name, sides in each.unmatched.items()},
    )


def _visible(folder: Path, ending: str) -> list[Path]:
    """Files of a folder, without hidden ones, among them those that macOS writes beside others."""
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if path.name.endswith(ending) and not path.name.startswith(".")
    )


def _images(folder: Path, ending: str) -> dict[str, dict[int, Path]]:
    cases: dict[str, dict[int, Path]] = {}
    for path in _visible(folder, ending):
        if found := _CHANNEL.fullmatch(path.name.removesuffix(ending)):
            cases.setdefault(found[1], {})[int(found[2])] = path
    return cases


def _labels(folder: Path, ending: str) -> dict[str, Path]:
    return {path.name.removesuffix(ending): path for path in _visible(folder, ending)}


def _listed(dataset: DatasetJson) -> tuple[dict[str, dict[int, Path]], dict[str, Path]]:
    """Training cases that dataset.json lists with their files, as later versions of nnU-Net may."""
    listed = dataset.written.get("dataset")
    if not isinstance(listed, dict):
        return {}, {}
    try:
        images = {
            str(case): {place: dataset.inside(path) for place, path in enumerate(files["images"])}
            for case, files in listed.items()
        }
        labels = {str(case): dataset.inside(files["label"]) for case, files in listed.items()}
    except (KeyError, TypeError):
        raise TableError(
            f'\'{dataset.path}\': each entry of "dataset" needs "images", a list of paths, and "label"'
        ) from None
    return images, {case: path for case, path in labels.items() if path.exists()}


def _no_images(root: Path, ending: str) -> str:
    decathlon = any(
        not _CHANNEL.fullmatch(path.name.removesuffix(ending)) for path in _visible(root / "imagesTr", ending)
    )
    fix = (
        "its images have no number of a channel in their names, as those of the Decathlon have none: take "
        "--corpus decathlon"
        if decathlon
        else f"images are named CASE_0000{ending}; give --root the data set's own folder, in nnUNet_raw"
    )
    return f"'{root}' holds no image of an nnU-Net data set in imagesTr or imagesTs: {fix}"


def _splits(root: Path, train: Cases) -> tuple[dict[str, str], list[str]]:
    """Case to split by the first fold, where the data set was split; and what is to be said of it."""
    beside = root.resolve().parent.parent / "nnUNet_preprocessed" / root.resolve().name
    path = next((folder / SPLITS_FILE for folder in (root, beside) if (folder / SPLITS_FILE).is_file()), None)
    if path is None:
        return {}, []
    try:
        folds = json.loads(path.read_text(encoding="utf-8"))
        splits = {str(case): "train" for case in folds[0]["train"]}
        splits |= {str(case): "validation" for case in folds[0]["val"]}
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        raise TableError(
            f'\'{path}\' is no list of folds with "train" and "val": remove it, or copy it again'
        ) from None
    joined = join(tuple(train), {SPLITS_FILE: splits}, unit="case")
    said = [f"splits are those of fold 0 of {len(folds)} in '{path}'"]
    if any(joined.unmatched[SPLITS_FILE]):
        said += [*joined.remarks, "cases that the fold does not name come into the training split"]
    return {case: splits.get(case, "train") for case in train}, said


def _remarks(dataset: DatasetJson, train: Cases, test: Cases, place: int) -> list[str]:
    said = [
        f"{len(train)} training and {len(test)} test cases; every case counts as a patient of its own, "
        "because nnU-Net's format names none"
    ]
    stated = dataset.written.get("numTraining")
    if isinstance(stated, int) and stated != len(train):
        said.append(f"dataset.json says {stated} training cases, and imagesTr holds {len(train)}")
    without = [case for cases in (train, test) for case, files in cases.items() if place not in files]
    if without:
        said.append(
            f"{len(without)} cases lack the channel {dataset.channels[place]} ({', '.join(without[:5])})"
        )
    return said


def _said(joinings: list[Joining[Path]]) -> list[str]:
    return [remark for each in joinings for remark in each.remarks]
