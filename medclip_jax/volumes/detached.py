"""The voxels of NRRD and MetaImage files, which may lie in the file, beside it, or in many files.

ITK parses what headers say of space and type. Voxels are read here, because ITK verifies no checksum, and
where data end early it hands out whatever memory held before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from medclip_jax.volumes.content import GZIP, ZLIB, check_size, inflate, inflate_bzip2
from medclip_jax.volumes.volume import VolumeRejected

_LONGEST_HEADER = 1 << 20
_MOST_FILES = 20_000


@dataclass(frozen=True)
class Header:
    """What a header says, and where its data are.

    Attributes:
        fields: names in lower case without spaces to their texts.
        encoding: "raw", "gzip" (also zlib), "bzip2", "text" or "hex".
        big_endian: byte order of the voxels.
        files: that hold the voxels in their order; empty where they follow the header.
        start: byte after the header in its own file.
        skip_bytes: before the voxels in each file; -1 takes the last bytes of the file.
        skip_lines: before that.
    """

    fields: Mapping[str, str]
    encoding: str
    big_endian: bool
    files: tuple[Path, ...]
    start: int
    skip_bytes: int
    skip_lines: int


def read_header(path: Path) -> Header:
    """Parse the header of a .nrrd, .nhdr, .mha or .mhd file as far as the voxels need it.

    Raises:
        VolumeRejected: "damaged-header", "unreadable", "data-elsewhere" or "unsupported-encoding".
    """
    with path.open("rb") as stream:
        beginning = stream.read(_LONGEST_HEADER)
    try:
        if beginning[:4] == b"NRRD":
            return _nrrd(path, beginning)
        return _meta_image(path, beginning)
    except (ValueError, IndexError, OverflowError) as error:
        if isinstance(error, VolumeRejected):
            raise
        raise VolumeRejected(
            "damaged-header", "The header cannot be understood: export the file again."
        ) from None


def read_voxels(
    path: Path, header: Header, dtype: np.dtype, shape: Sequence[int], *, labels: bool = False
) -> tuple[Shaped[np.ndarray, "I J K"], int]:
    """Read the voxels that a header describes, all checksums verified.

    Args:
        path: of the header's file.
        header: of `read_header`.
        dtype: of a voxel.
        shape: in the file's order, fastest axis first.
        labels: the file is a label map.

    Returns:
        The voxels with axes in the order of `shape`, and the number of bytes left over.

    Raises:
        VolumeRejected: "truncated-file", "damaged-gzip", "size-mismatch", "implausible-size",
            "out-of-memory" or "damaged-header".
    """
    dtype = dtype.newbyteorder(">" if header.big_endian else "<")
    count = int(np.prod(shape, dtype=object))
    files = header.files or (path,)
    if count % len(files):
        raise VolumeRejected(
            "damaged-header",
            f"{count} voxels cannot be divided among the {len(files)} data files that the header names: a "
            "name is missing or too many. Export the volume again.",
        )
    wanted = count // len(files) * dtype.itemsize
    check_size(count * dtype.itemsize, sum(file.stat().st_size for file in files), labels=labels)
    parts, surplus = [], 0
    for file in files:
        content = file.read_bytes()[header.start if not header.files else 0 :]
        for _ in range(header.skip_lines):
            content = content[content.find(b"\n") + 1 :]
        part, left = _decode(content, header, dtype, wanted)
        if len(part) < wanted:
            raise VolumeRejected(
                "truncated-file",
                "The file holds fewer voxels than its header says: copy or download it again."
                if len(files) == 1
                else "A data file holds fewer voxels than its share: copy the full set again.",
            )
        parts.append(part)
        surplus += left
    whole = parts[0] if len(parts) == 1 else b"".join(parts)
    return np.frombuffer(whole, dtype, count).reshape(shape, order="F"), surplus


def _decode(content: bytes, header: Header, dtype: np.dtype, wanted: int) -> tuple[bytes, int]:
    """Bytes of voxels, at most as many as wanted, and how many more there are."""
    if header.encoding == "text":
        numbers = content.decode("ascii", "replace").replace(",", " ").split()
        values = np.array(numbers[: wanted // dtype.itemsize]).astype(
            np.float64 if dtype.kind == "f" else np.int64
        )
        return values.astype(dtype).tobytes(), max(0, len(numbers) * dtype.itemsize - wanted)
    if header.encoding == "hex":
        content = bytes.fromhex(content.decode("ascii"))
    elif header.encoding == "gzip":
        content, left = inflate(
            content, wanted + max(header.skip_bytes, 0), GZIP if content[:2] == b"\x1f\x8b" else ZLIB
        )
        return content[max(header.skip_bytes, 0) :], left
    elif header.encoding == "bzip2":
        content, left = inflate_bzip2(content, wanted + max(header.skip_bytes, 0))
        return content[max(header.skip_bytes, 0) :], left
    if header.skip_bytes < 0:
        return (content[len(content) - wanted :] if len(content) >= wanted else content), 0
    content = content[header.skip_bytes :]
    return content[:wanted], max(0, len(content) - wanted)


def _beside(path: Path, names: Sequence[str]) -> tuple[Path, ...]:
    """Data files that a header names: below its own folder, and there.

    A header from elsewhere must not make files of any other folder part of a data set.
    """
    if not 0 < len(names) <= _MOST_FILES:
        raise VolumeRejected("damaged-header", "The header names no data file: export the volume again.")
    folder = path.parent.resolve()
    files = []
    for name in names:
        file = path.parent / name.replace("\\", "/")
        if not file.resolve().is_relative_to(folder):
            raise VolumeRejected(
                "data-elsewhere",
                "The header names a data file outside of its own folder: put the file beside the header, and "
                "its bare name into it.",
            )
        if not file.is_file():
            raise VolumeRejected(
                "unreadable",
                "A data file that the header names is not there: copy it to its place beside the header.",
            )
        files.append(file)
    return tuple(files)


def _nrrd(path: Path, beginning: bytes) -> Header:
    end = re.search(rb"\r?\n\r?\n", beginning)
    text = beginning[: end.start()] if end else beginning
    lines = text.decode("utf-8", "replace").splitlines()
    fields: dict[str, str] = {}
    listed: list[str] | None = None
    for line in lines[1:]:
        if listed is not None:
            listed.append(line.strip())
        elif not line.startswith("#") and ":" in line and ":=" not in line:
            name, _, value = line.partition(":")
            fields[_plain(name)] = value.strip()
            if _plain(name) == "datafile" and value.split()[:1] == ["LIST"]:
                listed = []
    names: list[str] = []
    if listed is not None:
        names = [name for name in listed if name]
    elif "datafile" in fields:
        names = _numbered(fields["datafile"])
    encoding = fields.get("encoding", "").lower()
    known = {"raw": "raw", "gz": "gzip", "gzip": "gzip", "bz2": "bzip2", "bzip2": "bzip2", "hex": "hex"}
    known |= {"txt": "text", "text": "text", "ascii": "text"}
    if encoding not in known:
        raise VolumeRejected(
            "unsupported-encoding",
            "The header's encoding is unknown: save the file with encoding gzip or raw.",
        )
    if not names and end is None:
        raise VolumeRejected("truncated-file", "The file ends within its header: copy or download it again.")
    return Header(
        fields=fields,
        encoding=known[encoding],
        big_endian=fields.get("endian", "little").lower() == "big",
        files=_beside(path, names) if names else (),
        start=end.end() if end else 0,
        skip_bytes=int(fields.get("byteskip", 0)),
        skip_lines=int(fields.get("lineskip", 0)),
    )


def _meta_image(path: Path, beginning: bytes) -> Header:
    fields: dict[str, str] = {}
    place = 0
    while "elementdatafile" not in fields:
        end = beginning.find(b"\n", place)
        end = len(beginning) if end < 0 else end
        name, equals, value = beginning[place:end].decode("utf-8", "replace").partition("=")
        if place >= len(beginning):
            raise VolumeRejected(
                "truncated-file", "The header names no data (ElementDataFile): copy or export the file again."
            )
        if equals:
            fields[_plain(name)] = value.strip()
        place = end + 1
    data = fields["elementdatafile"]
    names: list[str] = []
    if data.split()[:1] == ["LIST"]:
        rest = beginning[place:].decode("utf-8", "replace")
        names = [line.strip() for line in rest.splitlines() if line.strip()]
    elif data.upper() != "LOCAL":
        names = _numbered(data)
    is_compressed = _is_true(fields.get("compresseddata", "false"))
    is_binary = _is_true(fields.get("binarydata", "true"))
    order = fields.get("binarydatabyteordermsb", fields.get("elementbyteordermsb", "false"))
    return Header(
        fields=fields,
        encoding="gzip" if is_compressed else "raw" if is_binary else "text",
        big_endian=_is_true(order),
        files=_beside(path, names) if names else (),
        start=place,
        skip_bytes=int(fields.get("headersize", "0").split()[0]),
        skip_lines=0,
    )


def _plain(name: str) -> str:
    return re.sub(r"[\s_]+", "", name).lower()


def _is_true(text: str) -> bool:
    return text.strip().lower() in ("true", "1", "t")


def _numbered(text: str) -> list[str]:
    """File names that a text stands for: itself, or a pattern such as ``slice%03d.raw 1 20 1``."""
    words = text.split()
    if len(words) < 3 or not re.search(r"%0?\d*d", words[0]):
        return [text]
    first, last, *rest = (int(word) for word in words[1:4])
    step = rest[0] if rest else 1
    if step == 0 or abs(last - first) // abs(step) >= _MOST_FILES:
        raise VolumeRejected(
            "damaged-header", "The header's range of data files is invalid: export it again."
        )
    numbers = range(first, last + (1 if step > 0 else -1), step)
    before, place, after = re.split(r"(%0?\d*d)", words[0], maxsplit=1)
    return [before + place % number + after for number in numbers]
