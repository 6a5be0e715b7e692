"""Spreadsheets as tables: what Excel does to cells, and what must not pass unseen."""

import datetime
import io
import re
import zipfile

import openpyxl
import pytest

from medclip_jax.corpora.folder import TableError, folder
from medclip_jax.corpora.report_files import read_report_files
from medclip_jax.corpora.tables import open_table

HEADER = ("volume", "patient", "report")


def write(path, rows, name="studies.xlsx", title="Sheet1"):
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = title
    for row in rows:
        sheet.append(row)
    book.save(path / name)
    return path / name


def cells(path, sheet=None):
    table = open_table(path, sheet=sheet)
    return [row.cells for row in table.rows(lambda line, row: False)]


def test_a_sheet_is_read_as_its_csv_would_be(tmp_path):
    path = write(
        tmp_path, [HEADER, ("0.nii", "007", "Größe normal.\nNo effusion."), ("1.nii", "a;b", '"Q", x')]
    )
    studies = list(folder(path))
    assert [study.patient_id for study in studies] == ["007", "a;b"]
    assert [study.report for study in studies] == ["Größe normal.\nNo effusion.", '"Q", x']
    assert [study.row for study in studies] == [1, 2]
    assert [study.path for study in studies] == [tmp_path / "0.nii", tmp_path / "1.nii"]


def test_values_that_are_no_text(tmp_path):
    when = datetime.datetime(2024, 3, 4)
    path = write(tmp_path, [
        ("a", "b", "c", "d", "e", "f", "g"),
        (7, 7.0, 0.1, True, when, datetime.datetime(2024, 3, 4, 5, 6), None),
        (-1, 999999999999999, 1e15, False, datetime.time(5, 6), "x", "#N/A"),
    ])  # fmt: skip
    assert cells(path) == [
        ("7", "7", "0.1", "TRUE", "2024-03-04", "2024-03-04 05:06:00", ""),
        ("-1", "999999999999999", "1.00000000000000E+15", "FALSE", "05:06:00", "x", "#N/A"),
    ]


def test_zeros_that_a_format_shows_are_kept(tmp_path):
    path = write(tmp_path, [HEADER, ("0.nii", 7, "r"), ("1.nii", 123456, "r")])
    book = openpyxl.load_workbook(path)
    for row in (2, 3):
        book.active.cell(row, 2).number_format = "00000"
    book.save(path)
    assert [row[1] for row in cells(path)] == ["00007", "123456"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ((1234567890123456, "b"), "row 1 hold.*rounded the ids"),
        ((1.5e17, "b"), "rounded the ids"),
        ((datetime.datetime(2024, 3, 4), "3-5"), "row 1 hold a date, other rows do not"),
        (("#NUM!", "b"), "error value of a spreadsheet"),
        ((7, "007"), "differ in leading zeros alone"),
    ],
)
def test_ids_that_the_spreadsheet_has_changed(tmp_path, ids, message):
    path = write(tmp_path, [HEADER, *((f"{n}.nii", one, "r") for n, one in enumerate(ids))])
    with pytest.raises(TableError, match=message) as error:
        folder(path)
    assert "1234567890123456" not in str(error.value)


def test_labels_measurements_and_dates_of_other_columns(tmp_path):
    path = write(tmp_path, [
        (*HEADER, "label:cardiomegaly", "measurement:agatston_score", "scanned"),
        ("0.nii", "a", "r", 1, 312.5, datetime.datetime(2024, 3, 4)),
        ("1.nii", "b", "r", 0, None, None),
    ])  # fmt: skip
    first, second = folder(path)
    assert (first.labels, first.measurements) == ({"cardiomegaly": 1}, {"agatston_score": 312.5})
    assert (second.labels, second.measurements) == ({"cardiomegaly": -1}, {})


def test_other_sheets(tmp_path):
    path = write(tmp_path, [("notes",), ("not a table",)], title="Read me")
    book = openpyxl.load_workbook(path)
    for row in (HEADER, ("0.nii", "a", "r")):
        book.create_sheet("Studies") if "Studies" not in book.sheetnames else None
        book["Studies"].append(row)
    book.save(path)
    assert len(folder(path, sheet="studies")) == 1
    assert open_table(path).remarks == (
        f"of '{path}' the first sheet is read, 'Read me'; others: 'Studies' (--sheet)",
    )
    with pytest.raises(TableError, match="no sheet 'Study': it has 'Read me', 'Studies'"):
        folder(path, sheet="Study")
    with pytest.raises(TableError, match="lacks the column"):
        folder(path)


def test_empty_rows_and_a_header_further_down(tmp_path):
    rows = [(), (), (*HEADER, None), ("0.nii", "a", "r"), (), (), ("1.nii", "b"), ()]
    table = open_table(write(tmp_path, rows))
    found = list(table.rows(lambda line, row: False))
    assert table.header == HEADER
    assert [(row.number, row.line, row.cells) for row in found] == [
        (1, 4, ("0.nii", "a", "r")),
        (4, 7, ("1.nii", "b", "")),
    ]
    assert table.empty_rows == 2
    with pytest.raises(TableError, match=r"row 2 of .*more cells than the header"):
        cells(write(tmp_path, [HEADER, ("0.nii", "a", "r", "what is this")]))
    with pytest.raises(TableError, match=r"'Sheet1' of .* is empty: it has no other"):
        open_table(write(tmp_path, [(), ()]))


def test_formulas_need_their_values(tmp_path):
    path = write(tmp_path, [HEADER, ("0.nii", "a", '=CONCAT("r","s")')])
    with pytest.raises(TableError, match="holds 1 formulas without a value, the first in row 2, column 3"):
        folder(path)
    # As Excel saves it: the formula and what it gave.
    inside = "xl/worksheets/sheet1.xml"
    data = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(data, "w") as new:
        for name in old.namelist():
            text = old.read(name)
            if name == inside:
                text = re.sub(rb'<c r="C2"[^>]*><f>(.*?)</f><v ?/?>(</v>)?</c>',
                              rb'<c r="C2" t="str"><f>\1</f><v>rs</v></c>', text)  # fmt: skip
                assert b"<v>rs</v>" in text
            new.writestr(name, text)
    path.write_bytes(data.getvalue())
    assert [study.report for study in folder(path)] == ["rs"]


def test_a_wrong_extent_loses_no_rows(tmp_path):
    path = write(tmp_path, [HEADER, *((f"{n}.nii", f"p{n}", "r") for n in range(9))])
    with zipfile.ZipFile(path) as old:
        files = {name: old.read(name) for name in old.namelist()}
    sheet = "xl/worksheets/sheet1.xml"
    assert b'<dimension ref="A1:C10"' in files[sheet]
    files[sheet] = files[sheet].replace(b'ref="A1:C10"', b'ref="A1:B2"')
    with zipfile.ZipFile(path, "w") as new:
        for name, text in files.items():
            new.writestr(name, text)
    assert len(folder(path)) == 9


def test_files_that_are_no_spreadsheet_or_need_another_option(tmp_path):
    path = write(tmp_path, [HEADER, ("0.nii", "a", "r")])
    renamed = tmp_path / "studies.csv"
    renamed.write_bytes(path.read_bytes())
    assert len(folder(renamed)) == 1
    cut = tmp_path / "cut.xlsx"
    cut.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TableError, match=r"cannot be read as a spreadsheet.*copy it again"):
        folder(cut)
    locked = tmp_path / "locked.xlsx"
    locked.write_bytes(b"\xd0\xcf\x11\xe0 and so on")
    with pytest.raises(TableError, match="protected by a password: save it as"):
        folder(locked)
    with pytest.raises(TableError, match="leave out --encoding"):
        folder(path, encoding="cp1252")
    text = tmp_path / "text.csv"
    text.write_text("volume,report\na,b\n")
    with pytest.raises(TableError, match=r"no spreadsheet .*leave out --sheet"):
        folder(text, sheet="Sheet1")


def test_reports_are_read_from_one(tmp_path):
    path = write(tmp_path, [("report", "label: cardiomegaly"), ("The heart is enlarged.", 1), ("Normal.", 0)])
    found = read_report_files(str(path)).reports
    assert [report.text for report in found] == ["The heart is enlarged.", "Normal."]
    assert found[0].labels == {"cardiomegaly": 1}
