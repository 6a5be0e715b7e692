"""CSV files as programs leave them: encodings, delimiters, stray quotes."""

import pytest

from medclip_jax.corpora.folder import TableError, folder
from medclip_jax.corpora.tables import open_table


def write(path, text, encoding="utf-8"):
    (path / "studies.csv").write_bytes(text.encode(encoding))
    return path / "studies.csv"


TEXT = "volume,patient,report\n0.nii,a,Größe normal.\n1.nii,b,Şüpheli.\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_that_tell_themselves(tmp_path, encoding):
    studies = list(folder(write(tmp_path, TEXT, encoding)))
    assert [study.report for study in studies] == ["Größe normal.", "Şüpheli."]


@pytest.mark.parametrize("encoding", ["cp1254", "utf-16-le", "utf-16-be", "UTF-8"])
def test_encodings_that_are_given(tmp_path, encoding):
    path = write(tmp_path, TEXT, encoding)
    assert [study.report for study in folder(path, encoding=encoding)] == ["Größe normal.", "Şüpheli."]


@pytest.mark.parametrize(
    ("written", "given", "message"),
    [
        ("cp1254", None, r"not UTF-8 \(line 2\).*--encoding cp1252"),
        ("utf-16-le", None, r"--encoding.*utf-16"),
        ("utf-16-be", None, r"--encoding.*utf-16"),
        ("cp1254", "utf-8", "line 2 .* not in the encoding utf-8"),
        ("utf-8", "latin-9000", "no encoding 'latin-9000': --encoding takes utf-8, utf-16, cp1252"),
    ],
)
def test_wrong_encodings_name_the_option(tmp_path, written, given, message):
    text = TEXT if written != "utf-16-be" else TEXT.replace("Ş", "Ä")
    with pytest.raises(TableError, match=message) as error:
        folder(write(tmp_path, text, written), encoding=given)
    assert "normal" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04rest", "archive: unpack it"),
        (b"\xd0\xcf\x11\xe0rest", "password.*CSV UTF-8"),
        (b"\x1f\x8brest", "compressed: unpack it"),
        (b"PAR1rest", "Parquet"),
        (
            b"volume,report\na,one\nb,t\0wo\n",
            "line 3 .* NUL byte: the file is damaged, or not in the encoding",
        ),
    ],
)
def test_other_files_under_the_name_of_a_table(tmp_path, content, message):
    (tmp_path / "studies.csv").write_bytes(content)
    with pytest.raises(TableError, match=message):
        folder(tmp_path / "studies.csv")


@pytest.mark.parametrize(
    ("text", "delimiter"),
    [
        ("volume,report\n", ","),
        ("volume;report, as dictated;patient, pseudonym\n", ";"),
        ('"volume"\t"report, final, signed"\n', "\t"),
        ("volume|report\n", "|"),
        ("sep=;\nvolume;report\n", ";"),
        ("volume;report,caption,text\n", ","),
    ],
)
def test_the_delimiter_is_found(tmp_path, text, delimiter):
    table = open_table(write(tmp_path, text), known=("volume", "report", "caption", "text"))
    assert table.delimiter == delimiter


def test_line_ends_of_all_systems(tmp_path):
    for end in ("\n", "\r\n", "\r"):
        text = f'volume,report{end}a.nii,"two{end}lines"{end}b.nii,one{end}'
        studies = list(folder(write(tmp_path, text)))
        assert [study.report for study in studies] == [f"two{end}lines", "one"]


def test_an_excel_hint_does_not_shift_the_rows(tmp_path):
    table = open_table(write(tmp_path, "sep=;\nvolume;report\na;r\n"))
    (row,) = table.rows(lambda *_: False)
    assert (row.number, row.line, row.cells) == (1, 3, ("a", "r"))


HEAD = "volume,patient,report\n0.nii,a,Cardiomegaly.\n"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        # Never closed: the rest of the file is one cell.
        (
            '1.nii,b,"Emphysema\n2.nii,c,Normal.\n3.nii,d,Normal.\n',
            r"row 2 \(line 3\).*never closed: lines 4 to 5",
        ),
        # Closed by a quote that was meant to open.
        ('1.nii,b,"Emphysema\n2.nii,c,Normal.\n3.nii,d,"Normal, small."\n', r"row 2 \(line 3\).*in line 5"),
        # Closed by a quote at the end of a later text: only the swallowed line shows it.
        (
            '1.nii,b,"Emphysema\n2.nii,c,Normal."\n3.nii,d,Normal.\n',
            r"row 2 \(line 3\).*line 4 looks like a row",
        ),
        ('1.nii,b,"Emphysema\n2.nii,c,"\n3.nii,d,Normal.\n', r"row 2 \(line 3\).*line 4 looks like a row"),
        # Quotes within a text, not doubled.
        ('1.nii,b,"A "mass" there."\n', r"row 2 \(line 3\).*line 3.*twice"),
        ('1.nii,b,"A \\"mass\\", there."\n', r"row 2 \(line 3\).*line 3.*twice"),
        # A line break without quotes.
        ("1.nii,b,Emphysema\nand more.\n", r"row 3 \(line 4\).*one cell, the header has 3"),
    ],
)
def test_no_row_is_lost_in_a_quoted_cell(tmp_path, rows, message):
    with pytest.raises(TableError, match=message) as error:
        folder(write(tmp_path, HEAD + rows))
    assert "mphysema" not in str(error.value)


def test_swallowed_rows_without_a_suffix(tmp_path):
    """Folders of DICOM files: they are spelled as the names of the other rows are."""
    text = 'volume,patient,report\nscan_01,a,"Emphysema\nscan_02,b,Normal."\nscan_03,c,Normal.\n'
    with pytest.raises(TableError, match=r"row 1 \(line 2\).*line 3 looks like a row"):
        folder(write(tmp_path, text))


def test_swallowed_rows_that_name_folders(tmp_path):
    (tmp_path / "second").mkdir()
    with pytest.raises(TableError, match=r"row 1 \(line 2\).*line 3 looks like a row"):
        folder(write(tmp_path, 'volume,patient,report\nfirst,a,"Emphysema\nsecond,b,Normal."\n'))


def test_reports_of_many_lines_are_no_swallowed_rows(tmp_path):
    report = "Findings:\nHeart, lungs, pleura\nT12, L1, L2 normal\n,,\nImpression, 12 mm, stable"
    text = f'volume,patient,report\nscan_01,a,"{report}"\nscan_02,b,"He said ""no""."\n'
    studies = list(folder(write(tmp_path, text)))
    assert [study.report for study in studies] == [report, 'He said "no".']


def test_empty_rows_are_passed_over_and_counted(tmp_path):
    table = folder(write(tmp_path, "volume,patient,report\n\n0.nii,a,r\n,,\n1.nii,b,r\n,, \n,,\n"))
    assert [(study.row, study.record_id) for study in table] == [(2, "0.nii"), (4, "1.nii")]
    assert "4 empty rows are passed over" in table.remarks


def test_short_rows_are_told(tmp_path):
    table = folder(write(tmp_path, "volume,report,split\n0.nii,r\n1.nii,r,\n2.nii,r\n"))
    assert any(remark.startswith("rows 1, 3 have fewer cells") for remark in table.remarks)


def test_tables_written_by_hand(tmp_path):
    """Spaces behind the commas, and a comma at the end of every line but the header's."""
    text = 'volume, patient, report\n0.nii, a, "Heart, lungs.",\n1.nii, b, Normal.,\n'
    studies = list(folder(write(tmp_path, text)))
    assert [(s.record_id, s.patient_id, s.report) for s in studies] == [
        ("0.nii", "a", "Heart, lungs."),
        ("1.nii", "b", "Normal."),
    ]
