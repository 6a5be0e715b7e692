"""Which of CT-RATE's two versions files are: raw values that need the metadata, or HU that it would ruin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medclip_jax.corpora.ct_rate_files import Version, VolumeFile
from medclip_jax.corpora.ct_rate_metadata import Metadata
from medclip_jax.corpora.study import Series

_LOOKED_AT = 12
"""Headers of each kind of folder that are enough to tell."""

_OWN, _NONE, _OTHER = "the metadata's spacing", "no spacing", "another spacing"
"""What a header can hold."""


@dataclass(frozen=True)
class Treatment:
    """What is done with the files of one kind of folder.

    Attributes:
        rescale: whether the metadata's slope and intercept are given to the reader. It then looks at the
            values, and leaves files alone that are HU already.
        raw: whether it applies them without that look.
        spacing: whether spacing and axes are the metadata's.
    """

    rescale: bool = False
    raw: bool = False
    spacing: bool = False


@dataclass(frozen=True)
class Decided:
    """How each file is read.

    Attributes:
        root: that the files' paths start from.
        treatments: of files in ``*_fixed`` folders (True) and in others (False).
        remarks: what was decided, and from what.
    """

    root: Path
    treatments: Mapping[bool, Treatment]
    remarks: tuple[str, ...]

    def series(self, volume: VolumeFile, metadata: Metadata | None) -> tuple[Series, tuple[str, ...]]:
        """The series of a volume, and notes on what its metadata lack.

        Args:
            volume: of the archive.
            metadata: None where no table has its row.
        """
        path, treatment = self.root / volume.path, self.treatments[volume.fixed]
        if not treatment.rescale:
            return Series(path), ()
        if metadata is None:
            return Series(path), ("metadata-missing",)
        lacks = [("rescale", metadata.rescale)] + [("spacing", metadata.spacing)] * treatment.spacing
        series = Series(
            path,
            rescale=metadata.rescale,
            raw=treatment.raw and metadata.rescale is not None,
            spacing=metadata.spacing if treatment.spacing else None,
            axes=metadata.axes if treatment.spacing else "",
        )
        return series, tuple(f"{what}-not-in-metadata" for what, value in lacks if value is None)


def decide_version(
    root: Path, volumes: Sequence[VolumeFile], metadata: Mapping[str, Metadata], version: Version
) -> Decided:
    """Decide for the files of ``*_fixed`` folders and for those of others how they are read.

    With "auto", files are taken for version 2 where the folder's name and the headers say so: the spacing in
    a few of them is that of the metadata. All others are given slope and intercept of the metadata, and the
    reader decides for each by its values (`volumes.checks.resolve_rescale`). The metadata's spacing is used
    where headers have none, and never in place of a header's own.

    Args:
        root: that the files' paths start from.
        volumes: of the archive.
        metadata: by volume.
        version: the user's word: "v1", "v2" or "auto".
    """
    treatments, remarks = {}, []
    for fixed in (False, True):
        own = [volume for volume in volumes if volume.fixed is fixed]
        if not own:
            continue
        where = f"{len(own)} volumes in folders named *_fixed" if fixed else f"{len(own)} volumes"
        if version == "v1":
            treatments[fixed] = Treatment(rescale=True, raw=True, spacing=True)
            remarks.append(
                f"{where}: v1, as you say: slope, intercept and spacing of the metadata are applied to all"
            )
        elif version == "v2":
            treatments[fixed] = Treatment()
            remarks.append(f"{where}: v2, as you say: HU and spacing are the files' own")
        else:
            treatments[fixed], why = _decide(look_at_headers(root, own, metadata), fixed)
            remarks.append(f"{where}: {why}")
    return Decided(root, treatments, tuple(remarks))


def look_at_headers(
    root: Path, volumes: Sequence[VolumeFile], metadata: Mapping[str, Metadata]
) -> Counter[str]:
    """What the headers of a few volumes, spread over all, hold, next to what the metadata say."""
    told = [volume for volume in volumes if (row := metadata.get(volume.name)) and row.in_plane]
    places = np.unique(np.linspace(0, len(told) - 1, _LOOKED_AT).astype(int)) if told else ()
    chosen = [told[place] for place in places]
    with ThreadPoolExecutor(_LOOKED_AT) as pool:
        found = pool.map(lambda one: _look(root / one.path, metadata[one.name]), chosen)
        return Counter(verdict for verdict in found if verdict is not None)


def _look(path: Path, metadata: Metadata) -> str | None:
    """What one header holds; None where it cannot be read."""
    import nibabel

    try:
        image = nibabel.load(path)
        lengths = np.array(image.header.get_zooms()[:3], float)
        affine = image.affine
    except Exception:  # nibabel, zlib and the system raise many types here; reading the volume tells why
        return None
    expected = np.array([*metadata.in_plane, metadata.between_slices or lengths[-1]])
    if len(lengths) == 3 and np.allclose(lengths, expected, rtol=1e-2):
        return _OWN
    return _NONE if np.array_equal(np.abs(affine), np.eye(4)) or (lengths == 1).all() else _OTHER


def _decide(seen: Counter[str], fixed: bool) -> tuple[Treatment, str]:
    """The treatment, and the sentence that says why.

    Args:
        seen: of `look_at_headers`.
        fixed: whether the folder's name says version 2.
    """
    count = seen.total()
    told = ", ".join(f"{number} with {what}" for what, number in seen.items())
    looked = f"of {count} headers looked at, {told}" if count else "no header could be compared to metadata"
    if fixed and set(seen) <= {_OWN}:
        return Treatment(), (
            f"taken as v2 by the folder's name and the headers ({looked}): HU and spacing are the files' own"
        )
    spacing = _OTHER not in seen
    if set(seen) == {_NONE} and not fixed:
        why = f"taken as v1 by the headers ({looked}): slope, intercept and spacing are the metadata's"
    elif fixed:
        why = f"the folder's name says v2, but {looked}: each volume's values decide on slope and intercept"
    else:
        why = f"{looked}: each volume's values decide on the metadata's slope and intercept"
    if not spacing:
        why += "; spacing is the files' own, because headers hold another one: were they resampled?"
    return Treatment(rescale=True, spacing=spacing), (
        f"{why}. Files that are HU already are left as they are, with a note"
    )
