"""A task of the Medical Segmentation Decathlon: images and label maps, without reports.

Reference: Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 2022.
"""

from __future__ import annotations

import os
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
from medclip_jax.corpora.joining import join
from medclip_jax.corpora.study import VOLUME, Series, Study
from medclip_jax.corpora.tables import TableError


def decathlon(root: str | os.PathLike, *, channel: str | None = None) -> StudyTable:
    """Read a task of the Decathlon.

    Args:
        root: such as ``Task03_Liver``: dataset.json, imagesTr, labelsTr, imagesTs. The files that macOS
            writes beside others (``._NAME``) are passed over.
        channel: name or number of the sequence that is read, where images hold several (4D NIfTI).

    Returns:
        One study an image, without report, each its own patient. ``test`` is the test split, which has no
        label maps; the others are of no split.

    Raises:
        TableError: no task, or no such channel.
    """
    root = Path(root)
    dataset = read_dataset_json(root, "a task of the Decathlon")
    training, test = _list(dataset, "training"), _list(dataset, "test")
    if not training and not test:
        raise TableError(
            f"'{dataset.path}' lists no images as 'training' or 'test', as tasks of the Decathlon do: for an "
            "nnU-Net data set, take --corpus nnunet"
        )
    place = choose_channel(dataset, channel)
    modality, remark = modality_of_channel(dataset, place)
    train_images = {_name(entry["image"]): dataset.inside(entry["image"]) for entry in training}
    maps = {_name(entry["image"]): dataset.inside(entry["label"]) for entry in training if entry.get("label")}
    maps = {name: path for name, path in maps.items() if path.is_file()}
    test_images = {_name(entry["image"]): dataset.inside(entry["image"]) for entry in test}
    joined = join(
        tuple(dict.fromkeys((*_on_disk(root / "imagesTr"), *_on_disk(root / "imagesTs")))),
        {"dataset.json": {**train_images, **test_images}},
        unit="image",
    )
    labeled = join(tuple(train_images), {"label maps": maps}, unit="training image")
    studies = [
        _study(name, path, "imagesTr", modality, place, dataset, maps.get(name))
        for name, path in train_images.items()
    ]
    studies += [
        _study(name, path, "imagesTs", modality, place, dataset, None, "test", name in train_images)
        for name, path in test_images.items()
    ]
    said = (
        remark,
        f"{len(train_images)} training and {len(test_images)} test images; every image counts as a patient "
        "of its own, because the Decathlon names none",
        *joined.remarks,
        *labeled.remarks,
    )
    unmatched = {**joined.unmatched, **labeled.unmatched}
    return StudyTable(tuple(studies), tuple(filter(None, said)), unmatched=unmatched)


def _list(dataset: DatasetJson, key: str) -> list[Mapping[str, str]]:
    """Entries of a list of images, each with "image"; those of macOS are left out."""
    entries = dataset.written.get(key, [])
    if not isinstance(entries, list):
        raise TableError(f"'{dataset.path}': \"{key}\" is no list: copy the file again")
    found = [entry if isinstance(entry, dict) else {"image": entry} for entry in entries]
    if any(not isinstance(entry.get("image"), str) for entry in found):
        raise TableError(f'\'{dataset.path}\': an entry of "{key}" has no path "image": copy the file again')
    return [entry for entry in found if not Path(entry["image"]).name.startswith("._")]


def _name(path: str) -> str:
    name = Path(path).name
    return next((name.removesuffix(ending) for ending in ENDINGS if name.endswith(ending)), name)


def _on_disk(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(
        _name(path.name)
        for path in folder.iterdir()
        if path.name.endswith(ENDINGS) and not path.name.startswith(".")
    )


def _study(
    name: str,
    path: Path,
    folder: str,
    modality: str,
    channel: int,
    dataset: DatasetJson,
    label_map: Path | None,
    split: str | None = None,
    also_in_training: bool = False,
) -> Study:
    owner = f"{folder}/{name}" if also_in_training else name
    return Study(
        series=(Series(path, VOLUME, modality, channel=channel if len(dataset.channels) > 1 else None),),
        record_id=f"{folder}/{name}",
        study_id=owner,
        patient_id=owner,
        split=split,
        label_map=None if label_map is None else dataset.label_map(label_map),
    )
