"""CT-RATE's volumes on the disk: known by their names, whatever folders they lie in."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from medclip_jax.corpora.sentences import volume_name

Version = Literal["v1", "v2", "auto"]

NAME = re.compile(r"(train|valid)_(\d+)_([a-z]+)_(\d+)")
"""Split, patient, scan, reconstruction."""

MADE_FROM_VOLUMES = re.compile(r"seg|mask|label|preprocess", re.IGNORECASE)
"""In the name of a folder: its files have the names of volumes, and are none as the archive gives them."""


@dataclass(frozen=True)
class VolumeFile:
    """A volume on the disk.

    Attributes:
        path: from the root, with slashes.
        name: "train_1_a_1".
        fixed: whether it lies in a folder such as ``train_fixed``, where the second version is published.
    """

    path: str
    name: str
    fixed: bool

    @property
    def split(self) -> str:
        """ "train" or "valid", by the name."""
        return self.name.partition("_")[0]

    @property
    def patient(self) -> str:
        """ "train_1"."""
        return "_".join(self.name.split("_")[:2])

    @property
    def scan(self) -> str:
        """ "train_1_a", which all reconstructions of a scan share."""
        return self.name.rpartition("_")[0]


def find_volumes(
    files: Sequence[str], others: re.Pattern[str] = MADE_FROM_VOLUMES
) -> tuple[list[VolumeFile], list[str]]:
    """The volumes among files, and remarks on what has their names and is passed over.

    Args:
        files: paths from the root.
        others: found in names of folders whose files are passed over.
    """
    volumes, passed, torn = [], Counter(), []
    for path in files:
        if not path.lower().endswith((".nii", ".nii.gz")):
            continue
        *folders, file = PurePosixPath(path).parts
        name = volume_name(file)
        if NAME.fullmatch(name) is None:
            continue
        if other := next((folder for folder in folders if others.search(folder)), None):
            passed[other] += 1
            continue
        volume = VolumeFile(path, name, any(folder.lower().endswith("_fixed") for folder in folders))
        tops = {folder.lower().removesuffix("_fixed") for folder in folders} & {"train", "valid"}
        if tops and volume.split not in tops:
            torn.append(path)
        volumes.append(volume)
    remarks = [
        f"{count} files in folders '{folder}' have names of volumes and are passed over: they are made from "
        "volumes"
        for folder, count in passed.items()
    ]
    if torn:
        remarks.append(
            f"{len(torn)} volumes lie in the folder of another split than their name says ({torn[0]}); the "
            "name counts"
        )
    return volumes, remarks


def one_file_each(volumes: Sequence[VolumeFile], version: Version) -> tuple[list[VolumeFile], list[str]]:
    """Of volumes that lie there twice the file of the wanted version: the fixed one, unless it is "v1".

    Args:
        volumes: that were found.
        version: as for `ct_rate`.
    """
    files: dict[str, list[VolumeFile]] = defaultdict(list)
    for volume in volumes:
        files[volume.name].append(volume)
    # In the order of paths; of several of one version, the first.
    chosen = [min(files[name], key=lambda one: one.fixed is (version == "v1")) for name in sorted(files)]
    twice = sum(len(found) > 1 for found in files.values())
    if not twice:
        return chosen, []
    taken = Counter(PurePosixPath(one.path).parts[:-1][:2] for one in chosen if len(files[one.name]) > 1)
    where = ", ".join("/".join(folders) or "the root" for folders in list(taken)[:4])
    kind = "raw files" if version == "v1" else "fixed files"
    return chosen, [f"volumes that lie there more than once: {twice}; {kind} are read first ({where})"]


def describe(volumes: Sequence[VolumeFile], corpus: str = "CT-RATE") -> str:
    """How many volumes, scans and patients there are, in a sentence."""
    parts = []
    for split in ("train", "valid"):
        own = [volume for volume in volumes if volume.split == split]
        if own:
            parts.append(
                f"{split} {len(own)} volumes of {len({one.scan for one in own})} scans and "
                f"{len({one.patient for one in own})} patients"
            )
    return f"{corpus}: {'; '.join(parts)}. valid is the test split; validation is drawn from train's patients"
