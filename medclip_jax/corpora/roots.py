"""Whether a table's paths start from where they were said to, and from where they do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medclip_jax.corpora.study import Study
from medclip_jax.corpora.tables import TableError

_LOOKED_AT = 50
"""Rows that are enough to tell a wrong root from missing files."""


def check_root(studies: Sequence[Study], root: Path, *, given: bool) -> None:
    """Check that a folder holds some of the first volumes, or name the folder that does.

    Args:
        studies: of `corpora.folder.folder`.
        root: that their paths were put after.
        given: whether the user said it (--root), or it is the table's folder.

    Raises:
        TableError: none of the first volumes is there, and some are if the paths start elsewhere. Where none
            is found anywhere, nothing is said: each row is then rejected with its reason.
    """
    volumes = [study.path for study in studies if study.has_scan][:_LOOKED_AT]
    relative = [volume.relative_to(root) for volume in volumes if volume.is_relative_to(root)]
    if len(relative) < len(volumes) or not relative or any(map(_exists, volumes)):
        return
    first = {path.parts[0] for path in relative if len(path.parts) > 1}
    name = root.resolve().name
    if given and first == {name} and any(_exists(root.parent / path) for path in relative):
        raise TableError(
            f"the table's paths start with '{name}/' already, so that '{root / name}/...' was looked for, "
            f"and none of the first {len(relative)} volumes is there: give --root {root.parent}"
        )
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if any(_exists(folder / path) for path in relative):
            raise TableError(
                f"none of the first {len(relative)} volumes is in '{root}', from where the table's paths "
                f"were taken to start, but they are in '{folder}': give --root {folder}"
            )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False
