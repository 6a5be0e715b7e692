"""How long a tree of DICOM files takes to survey: the first time, again, and after one series was added.

    python tools/dicom_tree_speed.py --files 50000 --folder /tmp/tree

Writes small files (16 x 16 voxels, 200 slices a series; nine of ten series in folders of their own, the rest
together in one folder), surveys them as `medclip prepare --corpus dicom` does, prints seconds and removes
them.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import time
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from medclip_jax.corpora.dicom_tree import dicom_tree
from medclip_jax.pool import available_cores
from medclip_jax.volumes.dicom_selection import SeriesChoice

SLICES = 200
_SERIES, _SLICE, _PLACE = "1.2.826.0.1.900001", "1.2.826.0.1.7000001", "-1111.0"
"""Stand for what differs between files, in as many characters."""


def template() -> bytes:
    """A CT slice as a scanner writes it, about 60 elements, with texts that are replaced."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, _SLICE
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID, header.SOPInstanceUID, header.Modality = CTImageStorage, _SLICE, "CT"
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.PatientID, header.StudyInstanceUID = f"{_SERIES}.1", f"{_SERIES}.2"
    header.SeriesInstanceUID, header.FrameOfReferenceUID = _SERIES, f"{_SERIES}.3"
    header.AccessionNumber, header.SeriesNumber, header.ConvolutionKernel = "ACC", 1, "B30f"
    for name in ("PatientName", "InstitutionName", "StationName", "ProtocolName", "StudyDescription"):
        setattr(header, name, "SOMETHING")
    for name in ("SeriesDescription", "ManufacturerModelName", "Manufacturer", "BodyPartExamined"):
        setattr(header, name, "CHEST")
    for name in ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "PatientBirthDate"):
        setattr(header, name, "20000101")
    for name in ("StudyTime", "SeriesTime", "AcquisitionTime", "ContentTime"):
        setattr(header, name, "101010")
    for name in ("KVP", "SliceThickness", "DataCollectionDiameter", "ReconstructionDiameter", "TableHeight"):
        setattr(header, name, "100")
    header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    header.ImagePositionPatient = ["-30", "-40", _PLACE]
    header.PixelSpacing, header.RescaleSlope, header.RescaleIntercept = ["2", "2"], 1, -1024
    header.SamplesPerPixel, header.PhotometricInterpretation, header.Rows, header.Columns = (
        1,
        "MONOCHROME2",
        16,
        16,
    )
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 0
    header.PixelData = np.full((16, 16), 1060, "<u2").tobytes()
    written = io.BytesIO()
    header.save_as(written, enforce_file_format=True)
    return written.getvalue()


def write_series(folder: Path, number: int, content: bytes) -> None:
    """Write a series whose ids follow from its number."""
    folder.mkdir(parents=True, exist_ok=True)
    content = content.replace(_SERIES.encode(), f"1.2.826.0.1.{900001 + number}".encode())
    for place in range(SLICES):
        slice_uid = f"1.2.826.0.1.{7000001 + (SLICES * number + place) % 2999999}".encode()
        own = content.replace(_SLICE.encode(), slice_uid).replace(_PLACE.encode(), b"%07.1f" % (1.5 * place))
        (folder / f"{number}-{place}").write_bytes(own)


def measure(root: Path, workers: int, cache: Path) -> str:
    """Survey once, and say how long it took."""
    begin, cpu = time.perf_counter(), os.times()
    found = dicom_tree(root, choice=SeriesChoice(rule="all"), cache=cache, workers=workers)
    used = os.times()
    seconds = sum(getattr(used, name) - getattr(cpu, name) for name in ("user", "system"))
    seconds += used.children_user + used.children_system - cpu.children_user - cpu.children_system
    return f"{time.perf_counter() - begin:.1f} s, {seconds:.1f} s of processor time, {len(found)} series"


def main() -> None:
    """Write, survey three times, remove."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--folder", type=Path, required=True, help="is made, and removed")
    parser.add_argument("--workers", type=int, default=available_cores())
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    try:
        content, count = template(), args.files // SLICES
        for number in range(count):
            place = "together" if number % 10 == 9 else f"{number // 4}/{number}"
            write_series(args.folder / "tree" / place, number, content)
        cache = args.folder / "headers.jsonl"
        print(f"{count * SLICES} files of {len(content)} bytes, {args.workers} workers", flush=True)
        for what in ("first run", "second run", "with a series more"):
            if what.startswith("with"):
                write_series(args.folder / "tree" / "more", count, content)
            print(f"{what}: {measure(args.folder / 'tree', args.workers, cache)}", flush=True)
        print(f"cache: {cache.stat().st_size / 1e6:.1f} MB")
    finally:
        shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()
