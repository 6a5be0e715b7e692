"""What a file is that is no scan we read, for a reason that helps: by its name, else by its first bytes."""

from __future__ import annotations

from pathlib import Path

from medclip_jax.volumes.volume import VolumeRejected

SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
"""Endings of files that are read; DICOM files have any."""

_ARCHIVE = "a compressed file or archive: unpack it ({tool}) and give what is in it"
_PICTURE = "a picture, without Hounsfield units and spacing: export the scan itself as DICOM or NIfTI"
_TEXT = "a text or a document, not a scan: check the path"
_ARRAY = "a bare array, without orientation and spacing: write it as NIfTI with its affine"

_BY_NAME = {
    (".nii.bz2", ".bz2"): _ARCHIVE.format(tool="bunzip2; recompress with gzip if space matters"),
    (".xz", ".zst", ".lz4", ".z"): _ARCHIVE.format(tool="unxz, zstd -d or the like"),
    (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar"): _ARCHIVE.format(tool="unzip, tar -x or the like"),
    (".mgz", ".mgh"): "a FreeSurfer volume: convert it (mri_convert scan.mgz scan.nii.gz, or nibabel)",
    (".npz", ".npy"): _ARRAY,
    (".mat", ".h5", ".hdf5", ".zarr"): _ARRAY,
    (".pkl", ".pickle", ".pt", ".pth", ".joblib"): "a pickle, which is never opened: write the scan as NIfTI",
    (".raw", ".zraw"): "the voxels of a MetaImage: give the .mhd file that describes them",
    (".mnc", ".par", ".rec", ".vtk", ".vti", ".v", ".ima.gz"): "a format that is not read: convert to NIfTI",
    (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2"): _PICTURE,
    (".mp4", ".avi", ".mov", ".mpg"): "a video: export the scan itself as DICOM or NIfTI",
    (
        ".txt",
        ".csv",
        ".tsv",
        ".json",
        ".xml",
        ".html",
        ".htm",
        ".md",
        ".pdf",
        ".doc",
        ".docx",
        ".xls",
        ".xlsx",
    ): _TEXT,
}

_BY_START = {
    b"\x89PNG": _PICTURE,
    b"\xff\xd8\xff": _PICTURE,
    b"GIF8": _PICTURE,
    b"BM": _PICTURE,
    b"II*\0": _PICTURE,
    b"MM\0*": _PICTURE,
    b"%PDF": _TEXT,
    b"PK\x03\x04": _ARCHIVE.format(tool="unzip"),
    b"BZh": _ARCHIVE.format(tool="bunzip2"),
    b"\xfd7zXZ": _ARCHIVE.format(tool="unxz"),
    b"\x28\xb5\x2f\xfd": _ARCHIVE.format(tool="zstd -d"),
    b"7z\xbc\xaf": _ARCHIVE.format(tool="7z x"),
    b"\x1f\x8b": "a gzip file: name it .nii.gz if it holds NIfTI, else unpack it",
    b"\x93NUMPY": _ARRAY,
    b"\x89HDF": _ARRAY,
    b"\x80\x04": "a pickle, which is never opened: write the scan as NIfTI",
    b"\x5c\x01\x00\x00": "NIfTI under another name: call it .nii",
    b"NRRD": "NRRD under another name: call it .nrrd",
    b"ObjectType": "MetaImage under another name: call it .mha or .mhd",
}


def explain(file: Path) -> VolumeRejected:
    """Why a file that is neither DICOM nor of a known name is no scan.

    Args:
        file: that exists.

    Raises:
        OSError: it cannot be opened.
    """
    name = file.name.lower()
    with file.open("rb") as opened:
        start = opened.read(512)
    what = next((text for endings, text in _BY_NAME.items() if name.endswith(endings)), None)
    what = what or next((text for magic, text in _BY_START.items() if start.startswith(magic)), None)
    if what is None:
        kinds = ", ".join(SUFFIXES)
        what = _TEXT if _is_text(start) else f"of no kind that is read ({kinds}, DICOM): convert it to NIfTI"
    return VolumeRejected("unsupported-format", f"The file is {what}.")


def explain_folder(folder: Path) -> VolumeRejected:
    """Why a folder without DICOM files is no scan: what it holds instead."""
    names = [path.name.lower() for path in folder.rglob("*") if path.is_file()]
    scans = [name for name in names if name.endswith(SUFFIXES)]
    if scans:
        ending = next(suffix for suffix in reversed(SUFFIXES) if scans[0].endswith(suffix))
        what = f"no DICOM file, but {len(scans)} such as *{ending}: give the file itself, not its folder"
    elif names:
        archives = sum(name.endswith((".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar")) for name in names)
        what = f"no DICOM file among its {len(names)} files: "
        what += "unpack the archive in it" if archives else "point to the folder with the series"
    else:
        what = "no file: check the path, and that the series was copied"
    return VolumeRejected("no-dicom-images", f"The folder holds {what}.")


def _is_text(start: bytes) -> bool:
    if b"\0" in start:
        return False
    try:
        start.decode()
    except UnicodeDecodeError as error:
        return error.start >= len(start) - 3  # a letter that was cut
    return True
