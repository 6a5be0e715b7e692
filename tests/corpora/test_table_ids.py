"""Ids that a spreadsheet or a data frame has changed."""

import pytest

from medclip_jax.corpora.folder import TableError, folder


def read(tmp_path, ids, column="patient"):
    rows = "".join(f"{place}.nii,{text},Report {place}.\n" for place, text in enumerate(ids))
    (tmp_path / "studies.csv").write_text(f"volume,{column},report\n{rows}")
    return folder(tmp_path / "studies.csv")


@pytest.mark.parametrize("column", ["patient", "Study ID"])
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["1.23457E+11"] * 3, "rows 1, 2, 3 hold a number in scientific notation.*as text"),
        (["a", "1.2e+09"], "row 2 hold a number in scientific"),
        (["a", '"1,23457E+11"'], "row 2 hold a number in scientific"),
        (["123456789012345000", "123456789012346000"], "rows 1, 2 hold more than 15 digits.*zeros"),
        (["A-1", "#NAME?x", "#####"], "row 3 hold an error value"),
        (["4-5b", "04-Mar", "12-7"], "row 2 hold a date, other rows do not"),
        (["3-4a", "2024-03-04 00:00:00"], "row 2 hold a date"),
        (["007", "x", "7"], "rows 1, 3 hold ids that differ in leading zeros"),
    ],
)
def test_changed_ids_are_refused_by_row(tmp_path, column, ids, message):
    with pytest.raises(TableError, match=message) as error:
        read(tmp_path, ids, column)
    assert f"column '{column}'" in str(error.value)
    assert not any(text in str(error.value) for text in ids if len(text) > 11)


def test_numbers_of_a_data_frame_lose_their_fraction(tmp_path):
    table = read(tmp_path, ["12.0", "13.0", "12", "1.10", "1.2.840.0"])
    assert [study.patient_id for study in table] == ["12", "13", "12", "1.10", "1.2.840.0"]
    assert any("rows 1, 2 hold a number with .0" in remark for remark in table.remarks)


def test_lost_zeros_are_suspected(tmp_path):
    table = read(tmp_path, ["10234567", "10234568", "90234569", "234570"])
    assert any("row 4 hold fewer than 8 digits" in remark for remark in table.remarks)


@pytest.mark.parametrize(
    "ids",
    [
        ["1", "2", "10", "100"],
        ["1E5", "2E10", "0x1E"],
        ["00123", "00124"],
        ["12345678901234567", "12345678901234560"],
        ["a-1", "MAR-1", "1-2-3"],
        ["1.3.6.1.4.1.14519.5", "1.3.6.1.4.1.14519.50"],
    ],
)
def test_ordinary_ids_are_left_alone(tmp_path, ids):
    table = read(tmp_path, ids)
    assert [study.patient_id for study in table] == ids
    assert not table.remarks


def test_one_letter_in_two_unicode_forms_is_one_patient(tmp_path):
    first, second = read(tmp_path, ["M\u00fcller", "Mu\u0308ller"])
    assert first.patient_id == second.patient_id


def test_capitals_are_told(tmp_path):
    table = read(tmp_path, ["P1", "p1", "P2"])
    assert len({study.patient_id for study in table}) == 3
    assert any("rows 1, 2 hold ids that differ in capitals alone" in remark for remark in table.remarks)
