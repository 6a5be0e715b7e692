"""Reports by themselves: a text file, a folder of text files, a table, or what comes through a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from medclip_jax.corpora.cells import read_label, zero_meaning
from medclip_jax.corpora.columns import KNOWN_NAMES
from medclip_jax.corpora.spreadsheets import SUFFIXES
from medclip_jax.corpora.tables import Row, Table, TableError, open_table, plain_name
from medclip_jax.reports.definitions import BUILT_IN, Findings
from medclip_jax.reports.names import UnknownFinding, finding_name, is_finding

TABLES = (".csv", ".tsv", *SUFFIXES)
TEXTS = (".txt", ".text", ".md", ".rpt")


@dataclass(frozen=True)
class ReportText:
    """One report.

    Attributes:
        name: file name or number of the row, for those who have the file.
        text: of the report; sections in columns of their own under their titles.
        labels: finding to 1 present, -1 absent, 0 neither; only those that are labeled.
    """

    name: str
    text: str
    labels: Mapping[str, int]


@dataclass(frozen=True)
class ReportSet:
    """Reports from one source.

    Attributes:
        reports: in the source's order.
        two_valued: whether labels only tell present from the rest, as columns of 1 and 0 do.
        remarks: what the user should know, a sentence each.
    """

    reports: tuple[ReportText, ...]
    two_valued: bool = False
    remarks: tuple[str, ...] = ()


def read_report_files(
    source: str,
    *,
    column: str | None = None,
    encoding: str | None = None,
    definitions: Findings = BUILT_IN,
) -> ReportSet:
    """Read reports from where they are.

    Args:
        source: a text file (one report), a folder (every text file in it and below), a CSV or TSV table (one
            report a row), or "-" for one report from standard input. A table needs a column ``report``,
            ``findings`` or ``impression`` (or what `corpora.columns.COLUMNS` takes for them). Columns named
            ``label:`` and a finding, or titled by a finding, are labels; so is ``status`` beside ``finding``,
            for tables of one statement a row.
        column: of the table, that holds the reports.
        encoding: of files; default: UTF-8, or what a byte order mark says.
        definitions: the findings that labels can be of.

    Raises:
        FileNotFoundError: no such file or folder, or a folder without text files.
        TableError: a table without reports, or a cell that is no label.
        ValueError: text in another encoding.
    """
    if source == "-":
        return ReportSet((ReportText("standard input", sys.stdin.read(), {}),))
    path = Path(source)
    if path.is_dir():
        return _folder(path, encoding)
    if not path.is_file():
        raise FileNotFoundError(f"no '{path}': give a text file, a folder of text files, a CSV, or -")
    if path.suffix.lower() in TABLES:
        return _table(path, column, encoding, definitions)
    return ReportSet((ReportText(path.name, _text(path, encoding), {}),))


def _folder(folder: Path, encoding: str | None) -> ReportSet:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    texts = [path for path in files if path.suffix.lower() in TEXTS]
    kinds = ", ".join(TEXTS)
    if not texts:
        raise FileNotFoundError(f"no text file ({kinds}) in '{folder}': give the reports as such, or a CSV")
    others = len(files) - len(texts)
    remarks = (f"not read, as they are no text files ({kinds}): {others} files",) if others else ()
    reports = tuple(
        ReportText(path.relative_to(folder).as_posix(), _text(path, encoding), {}) for path in texts
    )
    return ReportSet(reports, remarks=remarks)


def _text(path: Path, encoding: str | None) -> str:
    data = path.read_bytes()
    marked = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding or marked)
    except (UnicodeDecodeError, LookupError) as error:
        raise ValueError(
            f"'{path}' is no {encoding or marked} text: give its encoding with --encoding, for example cp1252"
        ) from error


def _table(path: Path, column: str | None, encoding: str | None, definitions: Findings) -> ReportSet:
    table = open_table(path, encoding=encoding, known={*KNOWN_NAMES, "finding", "status"})
    read = _report_reader(table, column)
    labels, single = _label_columns(table, definitions)
    # A report may hold lines that look like rows of its table, and nothing else here tells them apart.
    rows = list(table.rows(lambda line, row: False))
    if single:
        reports = [
            ReportText(f"row {row.number}", read(row), _single_label(table, row, *single, definitions))
            for row in rows
        ]
        return ReportSet(tuple(reports), remarks=table.remarks)
    found = [
        {name: _label(table, row, place) for name, place in labels.items() if row.cells[place].strip()}
        for row in rows
    ]
    zero = zero_meaning(label for row in found for label in row.values())
    reports = []
    for row, said in zip(rows, found, strict=True):
        known = {name: label for name, label in said.items() if label is not None}
        if zero == "absent":
            known |= {name: -1 for name, label in said.items() if label is None}
        reports.append(ReportText(f"row {row.number}", read(row), known))
    meaning = "not present" if zero == "absent" else "not known, and is not compared"
    remarks = (f"0 in the label columns of '{path}' is read as {meaning}",) if zero else ()
    return ReportSet(tuple(reports), two_valued=zero == "absent", remarks=(*table.remarks, *remarks))


def _report_reader(table: Table, column: str | None) -> Callable[[Row], str]:
    names = [plain_name(name) for name in table.header]
    if column is not None:
        if plain_name(column) not in names:
            raise TableError(f"'{table.path}' has no column {column!r}; it has {', '.join(table.header)}")
        place = names.index(plain_name(column))
        return lambda row: row.cells[place]
    places: dict[str, int] = {}
    for place, name in enumerate(names):
        if (kind := KNOWN_NAMES.get(name)) in ("report", "findings", "impression"):
            places.setdefault(kind, place)
    if "report" in places:
        return lambda row: row.cells[places["report"]]
    if not places:
        raise TableError(
            f"'{table.path}' has no column report, findings or impression; it has {', '.join(table.header)}. "
            "Say which one holds the reports with --column"
        )
    return lambda row: "\n".join(
        f"{kind.upper()}: {row.cells[place]}" for kind, place in places.items() if row.cells[place].strip()
    )


def _label_columns(table: Table, definitions: Findings) -> tuple[dict[str, int], tuple[int, int] | None]:
    """Finding to its column, and the columns ``finding`` and ``status`` of a table of single statements."""
    names = [plain_name(name) for name in table.header]
    if "finding" in names and "status" in names:
        return {}, (names.index("finding"), names.index("status"))
    labels = {}
    for place, title in enumerate(table.header):
        kind, _, rest = title.partition(":")
        name = rest if plain_name(kind) == "label" and rest.strip() else title
        if is_finding(name, definitions=definitions):
            labels[finding_name(name, definitions=definitions)] = place
    return labels, None


def _label(table: Table, row: Row, place: int) -> int | None:
    def fail(wanted: str) -> Exception:
        return TableError(f"row {row.number} of '{table.path}', column {table.header[place]!r}: {wanted}")

    return read_label(row.cells[place].strip(), fail)


def _single_label(table: Table, row: Row, finding: int, status: int, definitions: Findings) -> dict[str, int]:
    try:
        name = finding_name(row.cells[finding].strip(), definitions=definitions)
    except UnknownFinding as error:
        raise TableError(f"row {row.number} of '{table.path}': {error}") from None
    return {name: _label(table, row, status) or 0}
