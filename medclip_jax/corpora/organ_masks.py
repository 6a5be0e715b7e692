"""Organ masks as archives lay them down: a folder of one file for each organ, or one file of labels."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

_LONGEST_NAME = 255
"""Bytes of a file's name, on every file system in use."""

ClassCache = dict[str, Mapping[int, str]]
"""Class maps that were read before, by what the table's cell says."""

_LABEL = re.compile(
    r'<Label\s[^>]*?Key="(\d+)"[^>]*>\s*(?:<!\[CDATA\[(.*?)\]\]>|([^<]*))\s*</Label>', re.DOTALL
)


class MaskError(ValueError):
    """Masks that cannot be used.

    Attributes:
        column: of the table, "organs" or "organ_classes".
        code: what the manifest notes.
    """

    def __init__(self, column: str, code: str, message: str):
        super().__init__(message)
        self.column, self.code = column, code

    def of_label_map(self) -> MaskError:
        """The same of a label map and its columns."""
        columns = {"organs": "label_map", "organ_classes": "label_classes"}
        code = self.code.replace("organs-", "label-map-")
        return MaskError(columns[self.column], code, str(self).replace("organ_classes", "label_classes"))


def find_masks(
    organs: str, organ_classes: str, root: Path, cache: ClassCache
) -> tuple[dict[str, Path], Mapping[int, str]]:
    """What a table's cells about masks mean.

    Args:
        organs: a folder with one NIfTI for each organ, named after it (TotalSegmentator's output,
            RadGenome-ChestCT's ``seg_NAME``), or one multilabel file; relative to `root`.
        organ_classes: of a multilabel file: JSON, or the path of such a file; "" to look into the file's
            header, where TotalSegmentator writes the names, and then for ``NAME.json`` beside it.
        root: folder that relative paths start from.
        cache: remembers class maps from row to row.

    Returns:
        `Study.organs` and `Study.organ_classes`.

    Raises:
        MaskError: no such file, an empty folder, or no class map.
        OSError: the file or folder cannot be looked at.
    """
    path = root / organs
    if len(path.name.encode()) > _LONGEST_NAME:
        raise MaskError("organs", "organs-not-found", "this is no path; correct it, or leave the cell empty")
    if path.is_dir():
        masks = {
            re.sub(r"\.nii(\.gz)?$", "", mask.name): mask
            for mask in sorted(path.iterdir())
            if mask.name.endswith((".nii", ".nii.gz")) and not mask.name.startswith(".")
        }
        if not masks:
            raise MaskError(
                "organs",
                "organs-folder-empty",
                "the folder holds no .nii or .nii.gz; one for each organ is expected",
            )
        return masks, {}
    if not path.exists():
        raise MaskError(
            "organs", "organs-not-found", "no such file or folder; correct the path, or leave the cell empty"
        )
    if organ_classes:
        if organ_classes not in cache:
            cache[organ_classes] = _written_classes(organ_classes, root)
        return {"*": path}, cache[organ_classes]
    beside = path.with_name(re.sub(r"\.nii(\.gz)?$", "", path.name) + ".json")
    classes = header_classes(path)
    if classes is None and beside.is_file():
        classes = _written_classes(str(beside), root)
    if classes is None:
        raise MaskError(
            "organs",
            "organs-without-names",
            'a single mask file needs the column organ_classes: JSON such as {"1": "heart"}, or its file; '
            "unless the names stand in its NIfTI header (TotalSegmentator --ml writes them there) or in "
            "NAME.json beside it",
        )
    return {"*": path}, classes


def header_classes(path: Path) -> Mapping[int, str] | None:
    """Label names in the extended header of a NIfTI, as TotalSegmentator and Connectome Workbench write them.

    Returns:
        Label value to name without 0, None where the header has none. Of a file that is damaged, {}: it is
        rejected with the reason when its volume is prepared.
    """
    if not path.name.endswith((".nii", ".nii.gz")):
        return None
    import nibabel

    if path.stat().st_size == 0:
        return None
    try:
        extensions = nibabel.load(path).header.extensions
        texts = [extension.get_content() for extension in extensions]
    except Exception:  # nibabel, zlib and the system raise many types here
        return {}
    for text in texts:
        if isinstance(text, bytes):
            text = text.decode("utf-8", errors="replace")
        if isinstance(text, str) and "<LabelTable" in text:
            pairs = ((int(value), (quoted or plain).strip()) for value, quoted, plain in _LABEL.findall(text))
            return {value: name for value, name in pairs if value and name}
    return None


def _written_classes(text: str, root: Path) -> Mapping[int, str]:
    """A class map in JSON, or in a file of it: value to name, name to value, or nnU-Net's dataset.json."""
    try:
        written = json.loads(text if text.startswith("{") else (root / text).read_text())
        if isinstance(written.get("labels"), dict):
            written = written["labels"]
        pairs = [(k, v) if str(k).strip().isdigit() else (v, k) for k, v in written.items()]
        classes = {int(value): str(name) for value, name in pairs if int(value) != 0}
    except (OSError, ValueError, TypeError, AttributeError):
        classes = {}
    if not classes:
        raise MaskError(
            "organ_classes",
            "organs-without-names",
            'must be JSON such as {"1": "heart", "2": "aorta"}, or the path of such a file',
        )
    return classes
