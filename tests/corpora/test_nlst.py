"""NLST: DICOM folders by patient, study and series, and the table of participants."""

from pathlib import Path

import pytest

from medclip_jax.cli.main import main
from medclip_jax.corpora.nlst import nlst
from medclip_jax.corpora.tables import TableError
from medclip_jax.shards.read import open_shards
from medclip_jax.volumes.dicom_selection import SeriesChoice
from tests.corpora.made_dicom_tree import series, table

HEADER = "pid,can_scr,candx_days,fup_days,canc_free_days,scr_days0,scr_days1,scr_days2"


def screening(
    root: Path, pid: str, year: int, kernel: str = "STANDARD", number: int = 1, **tags: object
) -> None:
    """A series of a screening, in folders as TCIA's Data Retriever names them."""
    study = f"01-02-{1999 + year}-NLST-LSS-{year}"
    folder = root / "NLST" / pid / study / f"{number}.000000-0OPAGELSPLUS{kernel}-1"
    series(
        folder,
        int(pid),
        year,
        number,
        PatientID=pid,
        AccessionNumber="",
        StudyDate=f"{1999 + year}0102",
        ConvolutionKernel=kernel,
        **tags,
    )


def test_participants_are_joined_and_counted_from_the_screening(tmp_path):
    screening(tmp_path, "100001", 0)
    screening(tmp_path, "100001", 1)
    screening(tmp_path, "100001", 1, "BONE", 2)
    screening(tmp_path, "100002", 2)
    screening(tmp_path, "100003", 0)
    screening(tmp_path, "100004", 0)
    table(
        tmp_path / "nlst_780_prsn_idc_20210527.csv",
        HEADER,
        "100001,1,400,.N,350,20,380,",  # diagnosed 380 days after T0, 20 after T1
        "100002,0,.N,2200,2100,0,365,730",  # free for 1470 days after T2
        "100003,0,.N,.M,400,35,,",  # known to be free for 365 days after T0
        "100009,0,.N,2000,2000,0,,",
    )
    found = nlst(tmp_path)
    said = {(study.patient_id, study.study_id[-1]): dict(study.measurements) for study in found}
    assert len(found) == 5
    assert said["100001", "0"] == {
        "lung_cancer": 1,
        "days_to_lung_cancer": 380,
        "lung_cancer_1y": 0,
        **{f"lung_cancer_{years}y": 1 for years in (2, 3, 4, 5, 6)},
    }
    assert said["100001", "1"] == {
        "lung_cancer": 1,
        "days_to_lung_cancer": 20,
        **{f"lung_cancer_{years}y": 1 for years in (1, 2, 3, 4, 5, 6)},
    }
    assert said["100002", "2"] == {"lung_cancer": 0, **{f"lung_cancer_{years}y": 0 for years in (1, 2, 3, 4)}}
    assert said["100003", "0"] == {"lung_cancer": 0, "lung_cancer_1y": 0}
    assert said["100004", "0"] == {}
    assert found.unmatched == {"participants": (("100004",), ("100009",))}
    assert [row["code"] for row in found.left_out] == ["not-chosen"]
    kept = nlst(tmp_path, choice=SeriesChoice(rule="all"))
    assert len({study.study_id for study in kept}) == 5
    assert len(kept) == 6


def test_a_case_without_a_date_of_diagnosis(tmp_path):
    """Nobody can say when, and nothing is made up."""
    screening(tmp_path, "100001", 0)
    people = table(tmp_path / "people.csv", HEADER, "100001.0,4,.N,900,900,0,,")
    (study,) = nlst(tmp_path, table=people)
    assert study.measurements == {"lung_cancer": 1}


def test_a_date_that_is_no_screening(tmp_path):
    screening(tmp_path, "100001", 9)
    table(tmp_path / "nlst_prsn.csv", HEADER, "100001,0,.N,900,900,0,,")
    found = nlst(tmp_path)
    assert found.studies[0].measurements == {"lung_cancer": 0}
    assert any("1 studies have no date of 1999 to 2001" in remark for remark in found.remarks)


@pytest.mark.parametrize(
    ("names", "header", "message"),
    [
        (("nlst_prsn.csv", "nlst_780_prsn.csv"), HEADER, "several tables of participants"),
        (("nlst_prsn.csv",), "patient,can_scr", "no column pid"),
        (("nlst_prsn.csv",), "pid,age", "is it the table of participants"),
    ],
)
def test_tables_that_are_not_it(tmp_path, names, header, message):
    screening(tmp_path, "100001", 0)
    for name in names:
        table(tmp_path / name, header, "1,1" + ",1" * (header.count(",") - 1))
    with pytest.raises(TableError, match=message):
        nlst(tmp_path)


def test_participants_that_stand_twice(tmp_path):
    screening(tmp_path, "100001", 0)
    table(tmp_path / "nlst_prsn.csv", "pid,can_scr", "100001,0", "100001,1")
    with pytest.raises(TableError, match="several rows of 1 participants"):
        nlst(tmp_path)


def test_from_folders_to_shards(tmp_path):
    for pid in ("100001", "100002", "100003"):
        screening(tmp_path, pid, 0, shape=(12, 20, 22))
    table(tmp_path / "nlst_prsn.csv", HEADER, "100001,1,40,.N,30,0,,", "100002,0,.N,900,900,0,,")
    size = ["--shape", "8", "8", "8", "--spacing", "9", "9", "9", "--workers", "1", "--tokenizer", "none"]
    words = ["prepare", "--corpus", "nlst", "--root", str(tmp_path), "--out", str(tmp_path / "shards"), *size]
    assert main(words) == 0
    info = open_shards(tmp_path / "shards")
    assert sum(info.splits.values()) == 3
    assert {"lung_cancer", "lung_cancer_1y", "days_to_lung_cancer"} <= set(info.measurements)
