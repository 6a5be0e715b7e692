"""What nnU-Net's and the Decathlon's dataset.json say: channels, classes of label maps, regions."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medclip_jax.corpora.study import LabelMap
from medclip_jax.corpora.tables import TableError

FILE = "dataset.json"

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Of images and label maps that are read; the pictures of nnU-Net's 2D data sets are not."""

_OTHER_MODALITIES = re.compile(r"pet|suv|us|ultrasound|x-?ray|rgb|red|green|blue|[rgb]", re.IGNORECASE)


@dataclass(frozen=True)
class DatasetJson:
    """A dataset.json, understood.

    Attributes:
        path: of the file.
        written: as it stands.
        channels: names of the images' channels, in order.
        classes: value in a label map to name, without the background.
        ignored: values of voxels that nobody has labeled.
        regions: name to the names of the classes that together make it.
    """

    path: Path
    written: Mapping[str, Any]
    channels: tuple[str, ...]
    classes: Mapping[int, str]
    ignored: tuple[int, ...]
    regions: Mapping[str, tuple[str, ...]]

    def label_map(self, path: Path) -> LabelMap:
        """A label map of the data set."""
        return LabelMap(path, self.classes, self.ignored, self.regions)

    def inside(self, stated: object) -> Path:
        """Where a path that the file states leads.

        Raises:
            TableError: it is none, or leads out of the data set's folder.
        """
        root = self.path.parent
        if not isinstance(stated, str) or not stated:
            raise TableError(f"'{self.path}': a path is missing in the list of images: correct the file")
        path = root / stated
        if not path.resolve().is_relative_to(root.resolve()):
            raise TableError(f"'{self.path}': '{stated}' leads out of '{root}': write paths inside of it")
        return path


def read_dataset_json(root: Path, what: str) -> DatasetJson:
    """Read the dataset.json of a folder.

    Args:
        root: the folder.
        what: should lie there, for messages.

    Raises:
        TableError: no such folder or file, no JSON, or one that says nothing of channels or labels.
    """
    path = root / FILE
    if not root.is_dir():
        raise TableError(f"no folder '{root}': --root must be the folder of {what}, which holds {FILE}")
    if not path.is_file():
        below = sorted(inner.parent.name for inner in root.glob(f"*/{FILE}"))
        there = f"; it stands in {', '.join(below[:10])}: give --root one of these" if below else ""
        raise TableError(f"'{root}' holds no {FILE}, which {what} has{there}")
    try:
        written = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise TableError(f"'{path}' is no JSON ({type(error).__name__}): copy it again") from None
    if not isinstance(written, dict):
        raise TableError(f"'{path}' holds no JSON object: copy it again")
    classes, ignored, regions = _labels(written, path)
    return DatasetJson(path, written, _channels(written, path), classes, ignored, regions)


def choose_channel(dataset: DatasetJson, wanted: str | None) -> int:
    """Which channel of the images is read.

    Args:
        dataset: of the folder.
        wanted: name in any case, or number from 0; None where there is one.

    Raises:
        TableError: there are several and none is named, or no such one; the message lists them.
    """
    names = dataset.channels
    shown = ", ".join(f"{place} {name}" for place, name in enumerate(names))
    if wanted is None:
        if len(names) == 1:
            return 0
        raise TableError(f"the images have {len(names)} channels ({shown}): choose one with --channel")
    if wanted.isdigit() and int(wanted) < len(names):
        return int(wanted)
    found = [place for place, name in enumerate(names) if name.lower() == wanted.strip().lower()]
    if len(found) != 1:
        raise TableError(f"--channel {wanted}: the images have {shown}; give one of these names or numbers")
    return found[0]


def modality_of_channel(dataset: DatasetJson, channel: int) -> tuple[str, str]:
    """Modality of a channel by its name, and a remark where the command needs to know of it.

    Raises:
        TableError: it is neither CT nor MR.
    """
    name = dataset.channels[channel]
    if name.upper().startswith("CT"):
        return "CT", ""
    if _OTHER_MODALITIES.fullmatch(name):
        raise TableError(
            f"channel '{name}' is neither CT nor MR, and others are not prepared: choose another channel "
            "with --channel, if the images have one"
        )
    return "MR", f"channel '{name}' is taken for MR: prepare it with --modality MR"


def _channels(written: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    stated = written.get("channel_names", written.get("modality"))
    if isinstance(stated, list):
        stated = dict(enumerate(stated))
    try:
        names = {int(place): str(name).strip() for place, name in stated.items()}
    except (AttributeError, TypeError, ValueError):
        names = {}
    if not names or sorted(names) != list(range(len(names))):
        raise TableError(
            f"'{path}' does not say which channels the images have: it needs \"channel_names\" (or "
            '"modality"), such as {"0": "CT"}'
        )
    return tuple(names[place] for place in range(len(names)))


def _labels(
    written: Mapping[str, Any], path: Path
) -> tuple[dict[int, str], tuple[int, ...], dict[str, tuple[str, ...]]]:
    """Classes, ignored values and regions, of either version of the file."""
    stated = written.get("labels")
    values: dict[str, list[int]] = {}
    try:
        for key, value in stated.items():
            # Version 1 and the Decathlon: number to name; version 2: name to number, or numbers of a region.
            first = isinstance(value, str) and str(key).strip().isdigit()
            name, numbers = (value, key) if first else (key, value)
            values[str(name).strip()] = [
                int(n) for n in (numbers if isinstance(numbers, list) else [numbers])
            ]
    except (AttributeError, TypeError, ValueError):
        values = {}
    known = {n for name, numbers in values.items() for n in numbers if name.lower() != "ignore"} - {0}
    if not known or min(known) < 0:
        raise TableError(
            f"'{path}' names no classes: it needs \"labels\", such as "
            '{"background": 0, "liver": 1} or {"0": "background", "1": "liver"}'
        )
    ignored = tuple(n for name, numbers in values.items() if name.lower() == "ignore" for n in numbers)
    values = {name: numbers for name, numbers in values.items() if name.lower() != "ignore" and any(numbers)}
    classes = {numbers[0]: name for name, numbers in values.items() if len(numbers) == 1}
    # Of overlapping regions, what a single value means has a name only where a region is that value alone.
    classes |= {n: f"label {n}" for n in known - set(classes)}
    regions = {
        name: tuple(classes[n] for n in numbers if n) for name, numbers in values.items() if len(numbers) > 1
    }
    return dict(sorted(classes.items())), ignored, regions
