"""The layout of CMR-CLIP's public code: arrays, one JSON of captions, and lists of ids for each split.

Reference: Nakashima et al., CMR-CLIP, https://github.com/Makiya11/CMRCLIP.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from medclip_jax.corpora.cmr import SERIES
from medclip_jax.corpora.folder import StudyTable, TableError
from medclip_jax.corpora.study import Series, Study

CAPTIONS = ("annotation/CMR.json", "CMR.json")
"""Where the captions lie, below the root: a list of {image_id, caption, cine_sa: path of an array, ...}."""

_LISTS = {"train": "train_list_CMR.txt", "validation": "val_list_CMR.txt", "test": "test_list_CMR.txt"}
_LIST_FOLDERS = ("", "data", "split", "annotation", "..", "../..")
"""Below the root; the public code keeps them two folders above it."""

_NOTHING = ("", "0", "none", "nan", "null")


def cmr_clip(root: str | os.PathLike) -> StudyTable:
    """Read what the public code's preprocessing wrote.

    Args:
        root: holds `annotation/CMR.json`, and the lists there, in `data`, `split`, or up to two folders
            above. Paths of arrays (.npy of rows, columns, slices and, of cines, phases) start from the root
            where they are not absolute.

    Returns:
        One study for each record, with the series that it names. Records in no list are left out where there
        are lists; the remarks count them.

    Raises:
        TableError: a file is missing or cannot be read, or the records name no arrays.
    """
    root = Path(root)
    path = next((root / name for name in CAPTIONS if (root / name).is_file()), None)
    if path is None:
        raise TableError(
            f"'{root}' holds no {CAPTIONS[0]}: --root must be the folder that preprocessing wrote"
        )
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(records, Mapping):  # pandas' other layout: column to row to value
            rows = next(iter(records.values()), {})
            records = [{name: column[row] for name, column in records.items()} for row in rows]
        records = [dict(record) for record in records]
        ids = [str(record["image_id"]) for record in records]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TableError(
            f"'{path}' is no list of records with image_id and caption ({type(error).__name__}): write it "
            "again"
        ) from None
    if not any(_array(record.get(name)) for record in records for name in SERIES):
        raise TableError(
            f"the records of '{path}' name no arrays ({', '.join(SERIES)}). Videos are compressed pictures "
            "and are not read: keep the columns with the paths of the arrays"
        )
    splits = _read_lists(root)
    studies, left_out = [], 0
    for number, (record, image) in enumerate(zip(records, ids, strict=True), 1):
        if splits and image not in splits:
            left_out += 1
            continue
        study = str(record.get("AccessionNumber") or image)
        found = {name: array for name in SERIES if (array := _array(record.get(name)))}
        studies.append(
            Study(
                series=tuple(
                    # The arrays are of one size, and nobody wrote down how many mm it is.
                    Series(root / array, name, "MR", spacing=(1.0, 1.0, 1.0))
                    for name, array in found.items()
                )
                or (Series(Path(), SERIES[0], "MR"),),
                record_id=image,
                study_id=study,
                patient_id=study,
                sections={"impression": str(record.get("caption") or "")},
                split=splits.get(image),
                row=number,
                notes=("spacing-unknown",),
            )
        )
    if not studies:
        raise TableError(f"no id of '{path}' stands in a list of a split: the lists are of another set")
    counts = Counter(split or "divided at random" for split in (study.split for study in studies))
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    remarks = [f"{len(studies)} records ({told}); every study counts as a patient of its own"]
    if left_out:
        remarks.append(f"{left_out} records stand in no list of a split, and are left out")
    return StudyTable(tuple(studies), tuple(remarks))


def _array(value: object) -> str:
    """Path of an array, "" where the record has none."""
    text = str(value if value is not None else "").strip()
    return "" if text.lower() in _NOTHING else text


def _read_lists(root: Path) -> dict[str, str]:
    """Id to split; {} where there are no lists."""
    splits: dict[str, str] = {}
    for split, name in _LISTS.items():
        path = next(
            (root / folder / name for folder in _LIST_FOLDERS if (root / folder / name).is_file()), None
        )
        if path is None:
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            if not (image := line.strip()):
                continue
            if splits.setdefault(image, split) != split:
                raise TableError(f"'{path}': an id stands in the lists of {splits[image]} and {split}")
    return splits
