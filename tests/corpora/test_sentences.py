"""Tables of region sentences, joined to studies by the volume's file name."""

from pathlib import Path

import pytest

from medclip_jax.corpora.folder import TableError, folder
from medclip_jax.corpora.sentences import join_sentences, read_sentences
from medclip_jax.corpora.study import Series, Study

TABLE = """VolumeName,ANATOMY,sentence
valid_1_a_1.nii.gz,,"The heart is big. A nodule, small."
valid_1_a_1.nii.gz,heart,The heart is big.
valid_1_a_1.nii.gz,lung/left lung,"A nodule, small."
valid_1_a_1.nii.gz,lung/left lung,"A nodule, small."
valid_1_a_1.nii.gz,lung/left lung,Another one.
valid_2_a_1,liver,A cyst.
valid_2_a_1,bone,NaN
valid_9_a_1.nii.gz,heart,Nobody's.
valid_9_a_1.nii.gz,lung,Nobody's.
"""


def study(name, **more):
    return Study((Series(Path(name)),), name, study_id=name, patient_id=name, **more)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "sentences.csv"
    path.write_text(TABLE)
    return read_sentences(path)


def test_rows_are_joined_by_file_name(table):
    studies = [
        study("deep/down/valid_1_a_1.nii.gz", report="Of the table."),
        study("VALID_2_a_1.NII.GZ", report=""),
        study("valid_3_a_1.nii.gz", report="Left alone."),
    ]
    joined = join_sentences(studies, table)
    assert [s.record_id for s in joined.studies] == [s.record_id for s in studies]
    assert joined.studies[0].sentences == {
        "heart": "The heart is big.",
        "lung/left lung": "A nodule, small. Another one.",
    }
    assert joined.studies[0].report == "Of the table."
    assert joined.studies[1].sentences == {"liver": "A cyst."}
    assert joined.studies[2] == studies[2]
    assert (joined.described, joined.unknown_volumes, joined.unknown_rows) == (2, 1, 2)
    assert "2 of 3 volumes" in joined.text()
    assert "2 rows of 1 volumes" in joined.text()
    assert "valid" not in joined.text()


def test_the_whole_report_is_taken_where_there_is_none(table):
    name = "valid_1_a_1.nii.gz"
    whole = "The heart is big. A nodule, small."
    for given, expected in (
        ({}, whole),
        ({"report": "Not given."}, whole),
        ({"report": "", "sections": {"findings": "nan"}}, whole),
        ({"sections": {"findings": "Some."}}, ""),
        ({"report": "Own."}, "Own."),
    ):
        joined = join_sentences([study(name, **given)], table)
        assert joined.studies[0].report == expected
        assert joined.reports == (expected == whole)


def test_one_name_in_two_folders_is_refused_only_if_it_is_meant(table):
    twice = [study("a/other.nii.gz"), study("b/other.nii.gz"), study("a/valid_1_a_1.nii.gz")]
    assert join_sentences(twice, table).described == 1
    with pytest.raises(TableError, match="rows 3 and 4 have the same file name"):
        join_sentences([*twice, study("b/valid_1_a_1.nii.gz")], table)
    # The same file in two rows is for `prepare` to say.
    assert join_sentences([*twice, study("a/valid_1_a_1.nii.gz")], table).described == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Volumename,Sentence\na,b\n", "lacks the column anatomy. It has: 'Volumename', 'Sentence'"),
        ("Volumename,Anatomy,Sentence\n,heart,b\n", "row 1 .* names no volume"),
        ("Volumename,Anatomy,Sentence\na,heart,b,c\n", "more cells than the header"),
    ],
)
def test_refused_tables(tmp_path, text, message):
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(TableError, match=message):
        read_sentences(tmp_path / "s.csv")
    with pytest.raises(TableError, match="--sentences"):
        read_sentences(tmp_path / "absent.csv")


def test_a_table_may_leave_the_reports_to_the_sentences(tmp_path):
    (tmp_path / "studies.csv").write_text("volume\nvalid_1_a_1.nii.gz\n")
    with pytest.raises(TableError, match="lacks the column report"):
        list(folder(tmp_path / "studies.csv"))
    (study,) = folder(tmp_path / "studies.csv", reports_elsewhere=True)
    assert study.report == ""
