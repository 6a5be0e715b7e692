"""Series of DICOM files as a hospital exports them, and what was found of them."""

from pathlib import Path

from tests.volumes.made_scans import chest, lps_stack, write_slices

SHAPE = (6, 20, 22)


def series(folder: Path, patient: int, study: int, number: int, **tags: object) -> list[Path]:
    """Six slices of a series; ids follow from the numbers."""
    ids = {
        "PatientID": f"MRN{patient}",
        "AccessionNumber": f"ACC{patient}{study}",
        "StudyInstanceUID": f"1.2.{patient}.{study}",
        "SeriesInstanceUID": f"1.3.{patient}.{study}.{number}",
        "SeriesNumber": number,
        "ConvolutionKernel": "B30f",
    }
    shape = tags.pop("shape", SHAPE)
    voxels = lps_stack(chest(shape, 100 * patient + 10 * study + number))
    return write_slices(folder, voxels, prefix=f"{patient}_{study}_{number}", **(ids | tags))


def table(path: Path, header: str, *rows: str) -> Path:
    path.write_text("\n".join((header, *rows)) + "\n")
    return path


def taken(found) -> list[str]:
    """UIDs of the series that are prepared."""
    return sorted(study.series[0].uid for study in found if study.rejection is None)


def reasons(found) -> dict[str, str]:
    """Series to the reason why it is left out."""
    return {row["series"]: row["code"] for row in found.left_out if row["series"]}


def codes(found) -> list[str | None]:
    """Of the rejection of each study."""
    return [study.rejection and study.rejection[0] for study in found]
