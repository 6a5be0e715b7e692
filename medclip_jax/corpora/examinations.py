"""A table with a row for each examination, joined to an archive by any of the ids that headers have."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from medclip_jax.corpora.columns import COLUMNS
from medclip_jax.corpora.folder import StudyTable, TableReader, read_table
from medclip_jax.corpora.joining import Unmatched, join
from medclip_jax.corpora.study import Study
from medclip_jax.corpora.tables import Row, TableError
from medclip_jax.reports.definitions import BUILT_IN, Findings

_COLUMNS: dict[str, tuple[str, ...]] = {
    "uid": ("studyinstanceuid", "study_instance_uid", "study_uid"),
    "study": (
        "accessionnumber",
        "accession_number",
        "accession",
        "accession_no",
        "accno",
        "exam",
        "exam_id",
        "study",
        "study_id",
    ),
    "patient": ("patientid", *COLUMNS["patient"], "mrn", "pid"),
    **{
        name: COLUMNS[name]
        for name in ("report", "findings", "impression", "split", "organs", "organ_classes", "box")
    },
}
"""Column to the header names that are understood: what names an examination, and what is said of it."""


@dataclass(frozen=True)
class Examination:
    """An examination of one patient in an archive.

    Attributes:
        patient: PatientID, "" where the header has none.
        uid: StudyInstanceUID, likewise.
        accession: AccessionNumber, likewise.
        name: what it is called on the screen.
        is_wanted: whether some series of it is prepared. The others count where one of several is meant.
    """

    patient: str
    uid: str
    accession: str
    name: str
    is_wanted: bool = True


@dataclass(frozen=True)
class Said:
    """What a table says of the examinations of an archive.

    Attributes:
        studies: for each examination, what its row says, and its rejection where it is not clear which row is
            its own; None where the table has no row.
        table: remarks, and what 0 means in columns of labels.
        unmatched: of the table "reports": (examinations without a row, rows without an examination).
    """

    studies: tuple[Study | None, ...]
    table: StudyTable
    unmatched: Unmatched


class _ExaminationReader(TableReader):
    """Reads rows that are an examination each and name no volume."""

    columns: ClassVar[Mapping[str, Sequence[str]]] = _COLUMNS

    def _rows(self) -> list[Row]:
        places = self._columns.places
        keys = [places[name] for name in ("uid", "study", "patient") if name in places]
        if not keys:
            told = ", ".join(repr(name.strip()) for name in self._table.header) or "nothing"
            raise TableError(
                f"'{self._table.path}' has no column that names an examination: give it AccessionNumber, "
                f"StudyInstanceUID or PatientID. It has: {told}"
            )

        def looks_like_row(inside: Sequence[str], cells: Sequence[str]) -> bool:
            return any(len(inside[key].strip()) == len(cells[key].strip()) > 0 for key in keys)

        rows = [
            row for row in self._table.rows(looks_like_row) if any(row.cells[key].strip() for key in keys)
        ]
        if not rows:
            raise TableError(f"'{self._table.path}' has no row that names an examination")
        return rows

    def _ids(self, column: str, rows: Sequence[Row]) -> dict[int, str]:
        if column not in self._columns.places:
            return {}
        from medclip_jax.corpora.table_ids import clean_ids

        given = {row.number: text for row in rows if (text := self._cell(row, column))}
        return clean_ids(given, self._columns.names[column], str(self._table.path), self._remark)

    def _study(self, row: Row, ids: dict[str, dict[int, str]]) -> Study:
        said = super()._study(row, ids)
        key = _Key(
            self._cell(row, "uid"), ids["study"].get(row.number, ""), ids["patient"].get(row.number, "")
        )
        return replace(said, record_id=key.text())

    def _remark_on_volumes(self, rows: Sequence[Row]) -> None:
        """There are none."""

    def _check_reports(self, studies: Sequence[Study]) -> None:
        """Rows of one examination that differ are its rejection."""


@dataclass(frozen=True)
class _Key:
    """By what a row names an examination; each may be empty."""

    uid: str
    accession: str
    patient: str

    def text(self) -> str:
        """As a text that `of` reads."""
        return "\t".join((self.uid, self.accession, self.patient))

    @classmethod
    def of(cls, study: Study) -> _Key:
        """Of what the reader made of a row."""
        return cls(*study.record_id.split("\t"))

    @property
    def name(self) -> str:
        """What the row is called on the screen."""
        return self.accession or self.uid or self.patient


def join_examinations(
    examinations: Sequence[Examination],
    path: Path,
    *,
    root: Path,
    encoding: str | None = None,
    sheet: str | None = None,
    definitions: Findings = BUILT_IN,
) -> Said:
    """Find the row of each examination: by StudyInstanceUID, else by AccessionNumber, else by PatientID.

    A row that has one of the first two is never taken by its patient. A row that names a patient alone is
    taken where the archive holds one examination of the patient, or where it holds nothing but a split.

    Args:
        examinations: all that the archive holds.
        path: CSV or TSV with any of the columns AccessionNumber, StudyInstanceUID, PatientID, and any of
            those of `corpora.folder` that say something of a study.
        root: folder that paths of masks start from.
        encoding: of the table.
        sheet: of a table that is a spreadsheet; default: its first.
        definitions: the findings that its labels can be of.

    Raises:
        TableError: as `corpora.folder.folder`; or no row could be joined to an examination.
    """
    if not path.is_file():
        raise TableError(f"no table '{path}': give the CSV or TSV file of reports with --table")
    table = read_table(
        path,
        _ExaminationReader,
        root=root,
        reports_elsewhere=True,
        encoding=encoding,
        sheet=sheet,
        definitions=definitions,
    )
    rows = _Rows(table.studies)
    patients = Counter(_plain(one.patient) for one in examinations if one.patient)
    owners: dict[str, set[str]] = defaultdict(set)
    for one in examinations:
        owners[_plain(one.accession)].add(one.patient)
    studies: list[Study | None] = []
    names: dict[str, Study] = {}
    used: set[int] = set()
    for one in examinations:
        if not one.is_wanted:
            studies.append(None)
            continue
        found = rows.of(one)
        used.update(map(id, found))
        said = _decide(one, found, owners[_plain(one.accession)], patients)
        studies.append(said)
        if said is not None:
            names[one.name] = said
    free = {_Key.of(row).name: row for row in table.studies if id(row) not in used}
    wanted = [one.name for one in examinations if one.is_wanted]
    joining = join(wanted, {"reports": {**free, **names}}, unit="study")
    said_of = [study for study in studies if study is not None]
    refused = Counter(study.rejection for study in said_of if study.rejection is not None)
    if sum(refused.values()) == len(said_of):
        why = "; ".join(f"{count} studies: {text}" for (_, text), count in refused.most_common())
        raise TableError(
            f"no row of '{path}' could be joined to the {len(wanted)} studies of the archive. "
            + (why or "Do its ids stand in the headers (AccessionNumber, StudyInstanceUID, PatientID)?")
        )
    remarks = [*table.remarks, *joining.remarks]
    remarks += [f"{count} studies are rejected, {code}: {text}" for (code, text), count in refused.items()]
    return Said(tuple(studies), replace(table, studies=(), remarks=tuple(remarks)), joining.unmatched)


class _Rows:
    """Rows of a table by what they name."""

    def __init__(self, rows: Sequence[Study]):
        self._by_study: dict[str, list[Study]] = defaultdict(list)
        self._by_patient: dict[str, list[Study]] = defaultdict(list)
        for row in rows:
            key = _Key.of(row)
            if key.uid or key.accession:
                for text in dict.fromkeys(filter(None, (_plain(key.uid), _plain(key.accession)))):
                    self._by_study[text].append(row)
            else:
                self._by_patient[_plain(key.patient)].append(row)

    def of(self, examination: Examination) -> list[Study]:
        """Rows that may be of an examination; those that name it go before those that name its patient."""
        for text in (examination.uid, examination.accession):
            if text and (found := self._by_study.get(_plain(text))):
                return found
        return self._by_patient.get(_plain(examination.patient), []) if examination.patient else []


def _decide(
    one: Examination, rows: Sequence[Study], owners: set[str], patients: Mapping[str, int]
) -> Study | None:
    """What is said of an examination, with the reason where nobody can tell."""
    if not rows:
        return None
    keys = [_Key.of(row) for row in rows]
    by_patient = not any(key.uid or key.accession for key in keys)
    if not by_patient:
        own = [row for row, key in zip(rows, keys, strict=True) if _plain(key.patient) == _plain(one.patient)]
        if not own and any(_plain(key.patient) in patients for key in keys):
            return _refused(
                rows[0],
                "patients-differ",
                "The table gives the examination to a patient whom the headers give other examinations "
                "alone: correct the patient, or leave the column out.",
            )
        by_uid = any(_plain(key.uid) == _plain(one.uid) for key in keys)
        if len(owners) > 1 and not own and not by_uid:
            return _refused(
                rows[0],
                "several-patients",
                "Patients share this accession number, so that nobody knows whose the report is: give the "
                "table a column PatientID or StudyInstanceUID.",
            )
        rows = own or rows
    contents = {_content(row) for row in rows}
    if len(contents) > 1:
        return _refused(
            rows[0],
            "several-reports",
            "The table has several rows of this examination that differ: keep one, or join them.",
        )
    if by_patient and patients[_plain(one.patient)] > 1 and any(_content(rows[0])[1:]):
        return _refused(
            rows[0],
            "report-by-patient-alone",
            "The table names the patient alone, and the archive holds several examinations of the patient, "
            "so that nobody knows which one is meant: give the table a column AccessionNumber or "
            "StudyInstanceUID.",
        )
    return rows[0]


def _refused(row: Study, code: str, message: str) -> Study:
    return replace(row, rejection=(code, message))


def _content(row: Study) -> tuple:
    """What a row says, the split first."""
    return (
        row.split or "",
        row.report,
        tuple(sorted(row.sections.items())),
        tuple(sorted((name, value) for name, value in row.labels.items() if value)),
        tuple(sorted(row.measurements.items())),
        tuple(sorted(row.groups.items())),
        tuple(sorted((name, str(path)) for name, path in row.organs.items())),
    )


def _plain(text: str) -> str:
    return text.strip().casefold()
