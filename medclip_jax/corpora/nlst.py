"""NLST as TCIA and IDC ship it: folders of DICOM series by patient and study, and a table of participants."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from medclip_jax.corpora.dicom_tree import KEYWORDS, group_tree, make_studies, survey_tree, tree_remarks
from medclip_jax.corpora.folder import StudyTable
from medclip_jax.corpora.joining import join
from medclip_jax.corpora.study import Study
from medclip_jax.corpora.tables import TableError, open_table, plain_name
from medclip_jax.volumes.dicom_selection import SeriesChoice

YEARS = 6
"""Years after a screening for which it is said whether lung cancer was diagnosed."""

_FIRST_SCREENING = 1999
"""The dates in NLST's headers are made up: their year is 1999, 2000 or 2001, for T0, T1 and T2."""

_DAYS = 365
_KNOWN = ("pid", "dicom_patient_id", "can_scr", "candx_days", "canc_free_days", "fup_days", "scr_days0")


def nlst(
    root: str | os.PathLike,
    *,
    table: Path | None = None,
    choice: SeriesChoice | None = None,
    encoding: str | None = None,
    sheet: str | None = None,
    cache: Path | None = None,
    workers: int = 1,
) -> StudyTable:
    """Read NLST: a study for each series that is wanted, with the participant's lung cancer as measurements.

    Args:
        root: folder with the DICOM files, in any structure (TCIA's: patient, study, series), and perhaps the
            table.
        table: of participants (``nlst_780_prsn_idc_20210527.csv``), one row for each ``pid``; default: the
            one file in the root whose name is like that; without one, nothing is known of participants.
        choice: as for `corpora.dicom_tree.dicom_tree`, and so are cache and workers.
        encoding: of the table.
        sheet: of a table that is a spreadsheet; default: its first.

    Returns:
        Studies without reports. Measurements: ``lung_cancer`` (1 where it was ever diagnosed in the trial),
        ``lung_cancer_1y`` to ``lung_cancer_6y`` (1 where it was diagnosed within so many years of 365 days
        after this screening, 0 where the participant was followed for so long without it, unknown otherwise),
        ``days_to_lung_cancer``.

    Raises:
        TableError: no DICOM slices, several tables, or one that cannot be understood.
    """
    root = Path(root)
    archive = survey_tree(root, (*KEYWORDS, "StudyDate"), cache=cache, workers=workers)
    groups, index = group_tree(archive, choice or SeriesChoice())
    remarks = list(tree_remarks(archive, groups, index))
    unmatched = {}
    said: list[Study | None] = [None] * len(groups)
    path = table or _find_table(root)
    if path is None:
        remarks.append("no table of participants (nlst_*prsn*.csv): nothing is known of their lung cancer")
    else:
        participants = _read_participants(path, encoding, sheet)
        wanted = [group.examination for group in groups if group.examination.is_wanted]
        joining = join([one.patient for one in wanted], {"participants": participants}, unit="patient")
        remarks += joining.remarks
        unmatched = joining.unmatched
        without_year = 0
        for place, group in enumerate(groups):
            row = participants.get(group.examination.patient)
            if row is None:
                continue
            year = _screening(group.date)
            without_year += year is None and group.examination.is_wanted
            said[place] = Study((), "", "", "", measurements=_measure(row, year))
        if without_year:
            remarks.append(
                f"{without_year} studies have no date of 1999 to 2001, by which NLST's headers tell the "
                "screening: of their lung cancer only whether it ever was diagnosed is known"
            )
    studies = make_studies(root, archive, groups, said)
    return StudyTable(studies, tuple(remarks), unmatched=unmatched, left_out=tuple(index.left_out))


def _find_table(root: Path) -> Path | None:
    found = sorted(path for path in root.glob("*.csv") if re.search(r"nlst.*prsn", path.name.lower()))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise TableError(f"'{root}' holds several tables of participants ({names}): name one with --table")
    return found[0] if found else None


def _read_participants(path: Path, encoding: str | None, sheet: str | None) -> dict[str, Mapping[str, str]]:
    """pid to the cells of the row, by plain name of the column."""
    if not path.is_file():
        raise TableError(f"no table '{path}': give NLST's participants (nlst_*prsn*.csv) with --table")
    table = open_table(path, encoding=encoding, sheet=sheet, known=_KNOWN)
    names = [plain_name(name) for name in table.header]
    key = next((name for name in ("pid", "dicom_patient_id") if name in names), None)
    if key is None:
        told = ", ".join(repr(name.strip()) for name in table.header) or "nothing"
        raise TableError(f"'{path}' has no column pid, by which participants are joined. It has: {told}")
    if not {"can_scr", "candx_days"} & set(names):
        raise TableError(
            f"'{path}' has neither can_scr nor candx_days, which say who has lung cancer: is it the table of "
            "participants (nlst_*prsn*.csv)?"
        )
    found: dict[str, Mapping[str, str]] = {}
    counts: Counter[str] = Counter()
    for row in table.rows(lambda inside, cells: True):
        cells = dict(zip(names, row.cells, strict=True))
        if pid := re.sub(r"\.0+$", "", cells[key].strip()):
            counts[pid] += 1
            found[pid] = cells
    if twice := sum(count > 1 for count in counts.values()):
        raise TableError(f"'{path}' has several rows of {twice} participants: keep one of each")
    return found


def _screening(date: str) -> int | None:
    """Which screening a study is, by the year of its date."""
    year = int(date[:4]) - _FIRST_SCREENING if date[:4].isdecimal() else -1
    return year if year in (0, 1, 2) else None


def _measure(row: Mapping[str, str], year: int | None) -> dict[str, float]:
    """What a participant's row says of a study, days counted from its screening."""
    diagnosis = _days(row.get("candx_days"))
    is_case = diagnosis is not None or (_days(row.get("can_scr")) or 0) > 0
    # canc_free_days is no time of follow-up, but by it nothing was found.
    free = _days(row.get("fup_days")) or _days(row.get("canc_free_days"))
    if not is_case and _days(row.get("can_scr")) is None and free is None:
        return {}
    measured = {"lung_cancer": float(is_case)}
    begin = None if year is None else _days(row.get(f"scr_days{year}"))
    if begin is None:
        return measured
    if diagnosis is not None:
        measured["days_to_lung_cancer"] = float(diagnosis - begin)
    last = diagnosis if diagnosis is not None else None if is_case else free
    for years in range(1, YEARS + 1):
        if diagnosis is not None and 0 <= diagnosis - begin < years * _DAYS:
            measured[f"lung_cancer_{years}y"] = 1.0
        elif last is not None and last - begin >= years * _DAYS:
            measured[f"lung_cancer_{years}y"] = 0.0
    return measured


def _days(cell: str | None) -> int | None:
    """A whole number; None where the trial wrote that there is none (empty, .M, .N)."""
    text = re.sub(r"\.0+$", "", (cell or "").strip())
    return int(text) if re.fullmatch(r"-?\d+", text) else None
