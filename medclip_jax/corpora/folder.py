"""Any folder of scans, described by a table: what a hospital uses."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from medclip_jax.corpora.cells import (
    MOST_GROUPS,
    SPLITS,
    ZeroMeaning,
    is_windows_path,
    looks_like_scan,
    read_box,
    read_group,
    read_label,
    read_number,
    read_path,
    read_rescale,
    read_spacing,
    said,
    zero_meaning,
)
from medclip_jax.corpora.columns import COLUMNS, Columns, find_columns, known_names
from medclip_jax.corpora.joining import Unmatched
from medclip_jax.corpora.organ_masks import ClassCache, MaskError, find_masks
from medclip_jax.corpora.study import VOLUME, LabelMap, Series, Study
from medclip_jax.corpora.table_ids import clean_ids
from medclip_jax.corpora.tables import Row, Table, TableError, name_rows, open_table
from medclip_jax.reports.definitions import BUILT_IN, Findings

__all__ = ["COLUMNS", "StudyTable", "TableError", "TableReader", "folder", "read_table"]


@dataclass(frozen=True)
class StudyTable:
    """The studies of a table, in its order; iterate over it.

    Attributes:
        studies: one for each row that is not empty.
        remarks: what the user should know, one sentence or two each. They name columns, rows and files of
            masks: for the screen, not for anything that is passed on.
        zero_label: what 0 means in its label columns, None where there is no 0.
        unmatched: of a corpus that is several tables: name of each to (volumes without a row, rows without a
            volume), ids as the archive has them: for the screen, or a file that the user asks for.
        left_out: of a tree of DICOM files: `dicom_index.LEFT_OUT_COLUMNS` to cell, for each series and file
            that no study takes: likewise.
    """

    studies: tuple[Study, ...]
    remarks: tuple[str, ...] = ()
    zero_label: ZeroMeaning | None = None
    unmatched: Unmatched = field(default_factory=dict)
    left_out: tuple[Mapping[str, str], ...] = ()

    def __iter__(self) -> Iterator[Study]:
        return iter(self.studies)

    def __len__(self) -> int:
        return len(self.studies)

    def first(self, count: int | None) -> StudyTable:
        """The same with the first studies alone; None means all."""
        return replace(self, studies=self.studies[:count])


def folder(
    csv_path: str | os.PathLike,
    *,
    root: str | os.PathLike | None = None,
    reports_elsewhere: bool = False,
    encoding: str | None = None,
    sheet: str | None = None,
    definitions: Findings = BUILT_IN,
) -> StudyTable:
    """Read a table of studies.

    Args:
        csv_path: CSV, TSV or spreadsheet (.xlsx) with a header. ``volume`` and one of ``report``,
            ``findings``, ``impression`` are needed; `docs/how-to/data.md` describes every column.
        root: folder that relative paths start from; default: the table's folder.
        reports_elsewhere: the table need not have reports.
        encoding: of the table; default: UTF-8, or what its byte order mark says.
        sheet: of a spreadsheet; default: its first.
        definitions: the findings that its labels can be of.

    Returns:
        One study for each row, in order. A row without a volume gives a series at ``Path()``.

    Raises:
        TableError: no table, a column is missing or stands twice, a stray quote, ids that a spreadsheet has
            changed, or a cell that cannot be understood. Cells of patients are not quoted.
    """
    return read_table(
        csv_path,
        TableReader,
        root=root,
        reports_elsewhere=reports_elsewhere,
        encoding=encoding,
        sheet=sheet,
        definitions=definitions,
    )


def read_table(
    csv_path: str | os.PathLike,
    reader: type[TableReader],
    *,
    root: str | os.PathLike | None = None,
    reports_elsewhere: bool = False,
    encoding: str | None = None,
    sheet: str | None = None,
    definitions: Findings = BUILT_IN,
) -> StudyTable:
    """Read a table by a reader that may understand other columns.

    Args:
        csv_path: as for `folder`, and so are the others.
        reader: `TableReader`, or what is derived from it.

    Raises:
        TableError: as `folder`.
    """
    path = Path(csv_path)
    if not path.is_file():
        raise TableError(f"no table '{path}': give the CSV, TSV or .xlsx file with --table")
    root = Path(root) if root is not None else path.parent
    if not root.is_dir():
        raise TableError(f"no folder '{root}': --root must be the folder that the table's paths start from")
    table = open_table(path, encoding=encoding, known=known_names(reader.columns), sheet=sheet)
    columns = find_columns(table.header, path, reports_elsewhere, definitions, reader.columns)
    return reader(table, columns, root).read()


class TableReader:
    """Reads one table of studies and gathers what is worth a remark.

    Attributes:
        columns: that it understands, as `columns.COLUMNS`.
        modality: of rows that do not say theirs.
    """

    columns: ClassVar[Mapping[str, Sequence[str]]] = COLUMNS
    modality: ClassVar[str] = "CT"

    def __init__(self, table: Table, columns: Columns, root: Path):
        self._table, self._columns, self._root = table, columns, root
        self._remarks: list[str] = []
        self._classes: ClassCache = {}
        self._labels: dict[int, dict[str, int | None]] = {}
        self._mask_errors: dict[str, dict[int, MaskError]] = {"organs": {}, "label_map": {}}
        self._masks: Counter[str] = Counter()

    def read(self) -> StudyTable:
        """The studies, and what is to be said of the table.

        Raises:
            TableError: a cell cannot be understood.
        """
        rows = self._rows()
        self._remark_on_columns(rows)
        self._remark_on_volumes(rows)
        ids = {name: self._ids(name, rows) for name in ("patient", "study")}
        studies = [self._study(row, ids) for row in rows]
        self._check_masks()
        self._check_groups(studies)
        meaning = zero_meaning(label for labels in self._labels.values() for label in labels.values())
        if meaning is not None:
            zero = -1 if meaning == "absent" else 0
            for place, study in enumerate(studies):
                labels = self._labels[study.row]
                read = {name: zero if value is None else value for name, value in labels.items()}
                studies[place] = replace(study, labels=read)
            self._remark_on_zeros(meaning)
        self._check_reports(studies)
        return StudyTable(tuple(studies), tuple(self._remarks), meaning)

    def _rows(self) -> list[Row]:
        volume = self._columns.places["volume"]
        return list(self._table.rows(lambda inside, row: self._is_scan(inside[volume], row[volume])))

    def _is_scan(self, text: str, like: str) -> bool:
        return looks_like_scan(text, like) or bool(
            text.strip() and os.path.lexists(self._root / text.strip())
        )

    def _remark(self, text: str) -> None:
        self._remarks.append(text)

    def _cell(self, row: Row, column: str) -> str:
        place = self._columns.places.get(column)
        return "" if place is None else said(row.cells[place])

    def _fail(self, row: Row, column: str, what: str) -> TableError:
        where = f"row {row.number} (line {row.line})"
        name = self._columns.names.get(column, column)
        return TableError(f"{where} of '{self._table.path}', column '{name}': {what}")

    def _ids(self, column: str, rows: Sequence[Row]) -> dict[int, str]:
        """Row to id; of patients, none may be missing."""
        if column not in self._columns.places:
            return {}
        ids = {row.number: self._cell(row, column) for row in rows}
        if column == "patient" and (empty := [row for row in rows if not ids[row.number]]):
            # A table without patients is accepted, every study its own patient; one with gaps is a mistake.
            raise self._fail(empty[0], column, "empty; fill it in, because splits go by patient")
        given = {row: text for row, text in ids.items() if text}
        return clean_ids(given, self._columns.names[column], str(self._table.path), self._remark)

    def _study(self, row: Row, ids: dict[str, dict[int, str]]) -> Study:
        def fail(column: str):
            return lambda what: self._fail(row, column, what)

        volume, uid = self._cell(row, "volume"), self._cell(row, "series")
        volume = volume and read_path(volume, self._root)
        record_id = f"{volume}#{uid}" if volume and uid else volume or f"row {row.number}"
        study = ids["study"].get(row.number) or record_id
        columns = self._columns
        self._labels[row.number] = {
            name: read_label(said(row.cells[place]), fail(f"label:{name}"))
            for name, place in columns.labels.items()
        }
        measured = {
            name: read_number(text, fail(f"measurement:{name}"))
            for name, place in columns.measurements.items()
            if (text := said(row.cells[place]))
        }
        groups = {
            name: read_group(text, fail(f"group:{name}"))
            for name, place in columns.groups.items()
            if (text := said(row.cells[place]))
        }
        split = self._cell(row, "split").lower()
        if split and split not in SPLITS:
            raise self._fail(row, "split", f"must be one of {', '.join(sorted(SPLITS))}, or empty")
        modality = self._cell(row, "modality").upper() or self.modality
        if modality not in ("CT", "MR", "MRI"):
            raise self._fail(row, "modality", "must be CT or MR")
        organs, organ_classes, notes = self._find_masks(row, "organs", "organ_classes")
        labels, label_classes, more = self._find_masks(row, "label_map", "label_classes")
        slope, intercept = self._cell(row, "rescale_slope"), self._cell(row, "rescale_intercept")
        series = Series(
            path=self._root / volume if volume else Path(),
            name=self._series_name(row),
            modality=modality[:2],
            rescale=read_rescale(slope, intercept, lambda column, what: self._fail(row, column, what)),
            spacing=read_spacing(self._cell(row, "spacing"), fail("spacing")),
            uid=uid,
        )
        return Study(
            series=(series,),
            record_id=record_id,
            study_id=study,
            patient_id=ids["patient"].get(row.number) or study,
            report=self._cell(row, "report"),
            sections={name: text for name in ("findings", "impression") if (text := self._cell(row, name))},
            labels={name: value or 0 for name, value in self._labels[row.number].items()},
            measurements=measured | read_box(self._cell(row, "box"), fail("box")),
            organs=organs,
            organ_classes=organ_classes,
            split=SPLITS[split] if split else None,
            row=row.number,
            notes=notes + more,
            label_map=LabelMap(labels["*"], label_classes) if labels else None,
            groups=groups,
        )

    def _series_name(self, row: Row) -> str:
        """Which of a study's series the row names, and so the array that it becomes."""
        return VOLUME

    def _find_masks(
        self, row: Row, column: str, classes: str
    ) -> tuple[dict[str, Path], dict[int, str], tuple[str, ...]]:
        """What a row says of organ masks, or of its label map: files, names of values, notes."""
        text = self._cell(row, column)
        if not text:
            return {}, {}, ()
        self._masks[column] += 1
        try:
            path = read_path(text, self._root)
            found, names = find_masks(path, self._cell(row, classes), self._root, self._classes)
            if column == "label_map" and "*" not in found:
                raise MaskError(
                    "organs",
                    "organs-folder",
                    "this is a folder, and a label map is one file: name folders of organ masks in the "
                    "column 'organs' (--label-maps organs makes a map of them)",
                )
            return found, dict(names), ()
        except MaskError as error:
            if column == "label_map":
                error = error.of_label_map()
            self._mask_errors[column][row.number] = error
            return {}, {}, (error.code,)
        except OSError as error:  # it may pass, so the study must not continue without its masks
            raise self._fail(
                row, column, f"it cannot be looked at ({error.strerror}): see to it, and run again"
            ) from None

    def _check_masks(self) -> None:
        """One row's masks that cannot be used are that row's loss; all of them are a mistake."""
        for asked, errors in self._mask_errors.items():
            kinds: dict[tuple[str, str], list[int]] = defaultdict(list)
            for row, error in errors.items():
                # A fault of the class map is named even where its column is absent: the masks' then holds it.
                column = error.column if error.column in self._columns.places else asked
                kinds[self._columns.names[column], str(error)].append(row)
            without = "masks" if asked == "organs" else "a label map"
            for (column, message), rows in kinds.items():
                text = f"{name_rows(rows)} of '{self._table.path}', column '{column}': {message}"
                if len(errors) == self._masks[asked]:
                    raise TableError(text)
                self._remark(f"{text}. These studies are prepared without {without}")

    def _check_groups(self, studies: Sequence[Study]) -> None:
        for name in self._columns.groups:
            values = {study.groups[name] for study in studies if name in study.groups}
            if len(values) > MOST_GROUPS:
                raise TableError(
                    f"'{self._table.path}', column '{self._columns.names[f'group:{name}']}': {len(values)} "
                    f"different values, and groups have {MOST_GROUPS} at most. Ids and dates are no groups; "
                    "join numbers to bands (age 60-69), or make it a 'measurement:' column"
                )
            spelled = defaultdict(set)
            for value in values:
                spelled[value.casefold()].add(value)
            twins = [" and ".join(map(repr, sorted(found))) for found in spelled.values() if len(found) > 1]
            if twins:
                self._remark(
                    f"group {name!r}: {', '.join(twins)} differ in capitals alone, and count as different "
                    "groups"
                )

    def _remark_on_columns(self, rows: Sequence[Row]) -> None:
        table, columns = self._table, self._columns
        self._remarks += table.remarks
        for column, others in columns.alternatives.items():
            place = columns.places[column]
            name = columns.names[column]
            unread = ", ".join(repr(table.header[other].strip()) for other in others)
            differ = [
                row.number
                for row in rows
                for other in others
                if (text := said(row.cells[other])) and text != said(row.cells[place])
            ]
            if differ and name.lower() != column:
                raise TableError(
                    f"'{table.path}' has several columns that could mean {column!r}: {name!r}, {unread}, and "
                    f"they differ in {name_rows(differ)}. Rename the right one to {column!r}"
                )
            self._remark(
                f"column {name!r} is read as {column!r}; not read, though it could mean it: {unread}"
            )
        if columns.ignored:
            self._remark(f"columns that are not read: {', '.join(columns.ignored)}")
        if short := [row.number for row in rows if row.short]:
            self._remark(
                f"{name_rows(short)} have fewer cells than the header; the missing ones count as empty"
            )
        if table.empty_rows:
            self._remark(f"{table.empty_rows} empty rows are passed over")

    def _remark_on_volumes(self, rows: Sequence[Row]) -> None:
        columns = self._columns
        volumes = [(row.number, row.cells[columns.places["volume"]].strip()) for row in rows]
        if windows := [number for number, text in volumes if is_windows_path(text)]:
            self._remark(
                f"{name_rows(windows)} name paths of a Windows drive or share, which this system does not "
                "have: write paths relative to --root"
            )
        if "patient" not in columns.places and rows:
            self._remark(
                "there is no column 'patient': every study counts as a patient of its own, and scans of one "
                "person can come into different splits"
            )

    def _remark_on_zeros(self, meaning: ZeroMeaning) -> None:
        if meaning == "absent":
            self._remark(
                "labels: 0 is read as absent, because the label columns hold 1 and 0 and no -1. If it means "
                "unknown, leave those cells empty"
            )
        else:
            self._remark(
                "labels: 0 is read as unknown, because absence is written as -1 (or nothing is ever "
                "present). Where 0 means absent and -1 uncertain, as CheXpert writes it, write -1 for absent "
                "and leave uncertain cells empty"
            )

    def _check_reports(self, studies: Sequence[Study]) -> None:
        """Scans of one study share a report; where they do not, the ids may be those of several people."""
        scans = Counter((study.patient_id, study.study_id) for study in studies)
        texts: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for study in studies:
            owner = (study.patient_id, study.study_id)
            text = " ".join((study.report, *study.sections.values())) if scans[owner] > 1 else ""
            if plain := re.sub(r"\W+", " ", text).strip().lower():
                texts[owner][plain].append(study.row)
        rows = [row for said in texts.values() if len(said) > 1 for found in said.values() for row in found]
        if not rows:
            return
        if "patient" not in self._columns.places:
            raise TableError(
                f"'{self._table.path}': {name_rows(rows)} have the study of another row and another "
                "report. Give the table a column 'patient' if studies are numbered for each patient anew, or "
                "correct the ids or the reports"
            )
        self._remark(
            f"{name_rows(rows)} have patient and study of another row and another report: each keeps its "
            "own, and is noted as 'study-with-several-reports'"
        )
