"""DICOM files as files: which ones they are, what their headers say, and no more memory than they state."""

from __future__ import annotations

import io
import logging
import os
import re
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pydicom
import SimpleITK as sitk
from pydicom.dataset import FileDataset
from pydicom.filereader import read_dataset, read_file_meta_info, read_partial
from pydicom.pixels import get_decoder
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    UID_dictionary,
)

NATIVE = {
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    RLELossless,
}
"""Transfer syntaxes that pydicom decodes by itself."""

_BY_ITK = {f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81, 90, 91)}
"""JPEG, JPEG-LS and JPEG 2000, decoded by SimpleITK."""

_NAMES = {
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.113619.5.2": "GE's private big endian",
    "1.3.46.670589.33.1.4.1": "Philips' private compression",
}
"""Transfer syntaxes that pydicom 3.0 does not list."""

_HEADER_BYTES = 1 << 25
"""What a deflated file may hold besides its pixels: 32 MiB, enough for the frames of any scanner."""

_DEFLATED = DeflatedExplicitVRLittleEndian.encode()

_VALUE_REPRESENTATIONS = {b"AE", b"CS", b"DA", b"IS", b"LO", b"PN", b"SH", b"TM", b"UI", b"UL"}
"""Those that the first elements of a header without preamble can have."""


@contextmanager
def silenced() -> Iterator[None]:
    """Silence ITK and pydicom: their warnings and log lines quote header values and paths."""
    sitk.ProcessObject.GlobalWarningDisplayOff()
    logger = logging.getLogger("pydicom")
    before = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def walk(
    folder: str | os.PathLike, on_error: Callable[[OSError], None]
) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` by name, through links, no folder twice.

    Args:
        folder: to start from.
        on_error: is told of every folder that cannot be listed.
    """
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=on_error):
        real = os.path.realpath(place)
        if real in seen:  # a link back to where we have been
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield place, folders, sorted(files)


def is_dicom(file: str | os.PathLike) -> bool:
    """Whether a file is DICOM: by its marker, or by a first element as only headers have it.

    Raises:
        OSError: it cannot be read.
    """
    if not os.path.isfile(file):  # a socket or a pipe would wait for ever
        return False
    with open(file, "rb") as opened:
        return _starts_as_dicom(opened.read(132))


def _starts_as_dicom(start: bytes) -> bool:
    if start[128:132] == b"DICM":
        return True
    # A data set without preamble starts with a small element of group 2 or 8.
    if len(start) < 132 or start[:2] not in (b"\x02\x00", b"\x08\x00") or start[3] != 0:
        return False
    if start[4:6] in _VALUE_REPRESENTATIONS:
        return True
    return start[:2] == b"\x08\x00" and 0 < int.from_bytes(start[4:8], "little") <= 64


class Header(NamedTuple):
    """Elements of a file, and how many bytes follow the header: the pixels, None where that is not known."""

    elements: FileDataset
    rest: int | None


def read_header(
    file: str | os.PathLike, tags: Sequence[BaseTag], *, last: BaseTag | None = None
) -> Header | None:
    """Read the given elements of a file, nothing from its pixels on.

    Args:
        file: of any kind.
        tags: elements of the upper level that are wanted.
        last: element after which nothing is read; default: all before the pixels.

    Returns:
        Elements whose `file_meta` names a transfer syntax, also where the file does not; None where the file
        is not DICOM.

    Raises:
        OSError: it cannot be opened.
        Exception: whatever pydicom raises on damaged files, of many types.
    """
    if not os.path.isfile(file):  # a socket or a pipe would wait for ever
        return None
    with open(file, "rb") as opened:
        start = opened.read(1024)
        if not _starts_as_dicom(start):
            return None
        if _DEFLATED in start:
            return Header(_read_deflated(file, list(tags)), None)
        opened.seek(0)
        if last is not None:
            found = read_partial(
                opened, stop_when=lambda tag, *_: tag > last, specific_tags=list(tags), force=True
            )
            return Header(_with_syntax(found), None)
        found = pydicom.dcmread(opened, stop_before_pixels=True, specific_tags=list(tags), force=True)
        return Header(_with_syntax(found), os.fstat(opened.fileno()).st_size - opened.tell())


def read_pixels(file: str | os.PathLike) -> FileDataset:
    """Read a whole file.

    Raises:
        Exception: whatever pydicom raises on damaged files, of many types.
    """
    with open(file, "rb") as opened:
        deflated = _DEFLATED in opened.read(1024)
    if not deflated:
        return _with_syntax(pydicom.dcmread(file, force=True))
    header = _read_deflated(file, None)
    frames = int(header.get("NumberOfFrames") or 1) * int(header.get("SamplesPerPixel") or 1)
    stated = frames * int(header.Rows) * int(header.Columns) * int(header.BitsAllocated) // 8
    return _read_deflated(file, None, pixel_bytes=stated + 1)


def _read_deflated(
    file: str | os.PathLike, tags: list[BaseTag] | None, pixel_bytes: int | None = None
) -> FileDataset:
    """Inflate no more than a header and the pixels that it states, and read that.

    Raises:
        ValueError: there is more, or it ends early.
    """
    meta = read_file_meta_info(file)
    # What follows the preamble (132 bytes), the element that holds the length of the group, and the group.
    start = 132 + 12 + int(meta.FileMetaInformationGroupLength)
    inflating = zlib.decompressobj(-zlib.MAX_WBITS)
    content = Path(file).read_bytes()[start:]
    body = inflating.decompress(content, _HEADER_BYTES + (pixel_bytes or 0))
    if pixel_bytes is not None and not inflating.eof:
        raise ValueError("the deflated data are cut short, or larger than the header states")
    stop = None if pixel_bytes is not None else lambda tag, *_: tag >= 0x7FE00008
    dataset = read_dataset(io.BytesIO(body), False, True, stop_when=stop, specific_tags=tags)
    meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    return FileDataset("", dataset, file_meta=meta, is_implicit_VR=False, is_little_endian=True)


def _with_syntax(header: FileDataset) -> FileDataset:
    if not header.file_meta.get("TransferSyntaxUID"):
        implicit, little = header.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return header


def is_decodable(syntax: str) -> bool:
    """Whether pixels of a transfer syntax can be decoded with what is installed."""
    if syntax in NATIVE or syntax in _BY_ITK:
        return True
    return by_pydicom(syntax)


def by_pydicom(syntax: str) -> bool:
    """Whether pydicom decodes a transfer syntax, by itself or by a plug-in of its own."""
    if syntax in NATIVE:
        return True
    if syntax in _BY_ITK:
        return False
    try:
        return get_decoder(UID(syntax)).is_available
    except NotImplementedError:
        return False


def is_syntax(text: str) -> bool:
    """Whether a text can be a transfer syntax: a UID of digits and points."""
    return text in UID_dictionary or re.fullmatch(r"[0-9]+(\.[0-9]+){3,}", text) is not None


def name_syntax(syntax: str) -> str:
    """Name of a transfer syntax for a message; its number only where it is a public one."""
    if syntax in UID_dictionary:
        return UID(syntax).name
    if syntax in _NAMES:
        return f"{_NAMES[syntax]} ({syntax})"
    public = syntax.startswith("1.2.840.10008.1.2.")
    return f"the transfer syntax {syntax}" if public else "a maker's private transfer syntax"


def how_to_convert(syntax: str) -> str:
    """What a user can do about a transfer syntax that is not decoded."""
    name = name_syntax(syntax)
    if "High-Throughput" in name:
        return "install a decoder (pip install pylibjpeg pylibjpeg-openjpeg), or export uncompressed"
    if "MPEG" in name or "HEVC" in name:
        return "it is a video: export the scan itself"
    if "JPEG XL" in name:
        return "have the archive export the series uncompressed (Explicit VR Little Endian)"
    return "export again from the archive or scanner as Explicit VR Little Endian, uncompressed"


@contextmanager
def path_for_itk(path: Path) -> Iterator[str]:
    """A name under which ITK opens a file: it takes UTF-8 only, so other names get a link."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory(prefix="medclip-") as folder:
            link = os.path.join(folder, "file")
            os.symlink(path.resolve(), link)
            yield link
    else:
        yield os.fspath(path)
