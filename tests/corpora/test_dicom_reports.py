"""Reports beside a tree of DICOM files: joined to examinations by any id."""

import pytest

from medclip_jax.corpora.dicom_tree import dicom_tree
from medclip_jax.corpora.tables import TableError
from tests.corpora.made_dicom_tree import codes, series, table


class TestReports:
    @pytest.fixture
    def root(self, tmp_path):
        """Two studies of one patient, one of another."""
        series(tmp_path / "tree" / "a", 1, 1, 1)
        series(tmp_path / "tree" / "b", 1, 2, 1)
        series(tmp_path / "tree" / "c", 2, 1, 1)
        return tmp_path / "tree"

    @pytest.mark.parametrize(
        ("header", "rows"),
        [
            ("AccessionNumber,report", ("ACC11,One", " acc12 ,Two", "ACC21,Three")),
            ("Study Instance UID;report", ("1.2.1.1;One", "1.2.1.2;Two", "1.2.2.1;Three")),
            ("study,report", ("1.2.1.1,One", "ACC12,Two", "ACC21,Three")),
            ("accession,patient_id,report", ("ACC11,MRN1,One", "ACC12,MRN1,Two", ",MRN2,Three")),
        ],
    )
    def test_joined_by_any_id(self, root, tmp_path, header, rows):
        found = dicom_tree(root, table=table(tmp_path / "r.csv", header, *rows))
        assert [(study.report, study.rejection) for study in found] == [
            ("One", None),
            ("Two", None),
            ("Three", None),
        ]
        assert found.unmatched == {"reports": ((), ())}

    def test_what_a_row_says(self, root, tmp_path):
        header = "StudyInstanceUID,findings,impression,label:cardiomegaly,measurement:ffr,box,split"
        said = table(
            tmp_path / "r.csv", header, "1.2.1.1,Big heart.,Cardiomegaly.,1,0.8,0 10 0 20 0 30,train"
        )
        study = dicom_tree(root, table=said).studies[0]
        assert study.sections == {"findings": "Big heart.", "impression": "Cardiomegaly."}
        assert study.labels == {"cardiomegaly": 1}
        assert study.measurements["ffr"] == 0.8
        assert study.measurements["box_y_max"] == 20
        assert study.split == "train"

    def test_both_sides_are_counted(self, root, tmp_path):
        found = dicom_tree(
            root, table=table(tmp_path / "r.csv", "accession,report", "ACC11,One", "ACC9,Nine")
        )
        assert found.unmatched == {"reports": (("ACC12", "ACC21"), ("ACC9",))}
        assert [study.report for study in found] == ["One", "", ""]
        assert any("1 of 3 studies have a row" in remark for remark in found.remarks)

    def test_a_patient_with_several_studies_is_ambiguous(self, root, tmp_path):
        found = dicom_tree(root, table=table(tmp_path / "r.csv", "PatientID,report", "MRN1,One", "MRN2,Two"))
        assert codes(found) == ["report-by-patient-alone", "report-by-patient-alone", None]
        assert found.studies[2].report == "Two"
        with pytest.raises(TableError, match="give the table a column AccessionNumber or StudyInstanceUID"):
            dicom_tree(root, table=table(tmp_path / "r.csv", "PatientID,report", "MRN1,One"))

    def test_a_study_that_is_not_wanted_makes_it_ambiguous_as_well(self, root, tmp_path):
        series(root / "d", 2, 2, 1, Modality="MR")
        found = dicom_tree(
            root, table=table(tmp_path / "r.csv", "PatientID,split,report", "MRN1,test,", "MRN2,,Two")
        )
        assert codes(found) == [
            None,
            None,
            "report-by-patient-alone",
        ]
        assert [study.split for study in found.studies[:2]] == ["test", "test"]

    def test_rows_that_differ(self, root, tmp_path):
        rows = ("ACC11,One", "ACC11,Other", "ACC12,Two", "ACC12,Two")
        found = dicom_tree(root, table=table(tmp_path / "r.csv", "accession,report", *rows))
        assert codes(found) == ["several-reports", None, None]

    def test_an_accession_number_of_two_patients(self, root, tmp_path):
        series(root / "d", 3, 1, 1, AccessionNumber="ACC11")
        reports = table(tmp_path / "r.csv", "accession,report", "ACC11,One", "ACC12,Two")
        codes = {
            study.patient_id: study.rejection for study in dicom_tree(root, table=reports) if study.rejection
        }
        assert {patient: code for patient, (code, _) in codes.items()} == {
            "MRN1": "several-patients",
            "MRN3": "several-patients",
        }
        rows = ("ACC11,MRN3,One", "ACC12,MRN2,Two", "ACC21,X9,Three")
        found = dicom_tree(root, table=table(tmp_path / "r.csv", "accession,patient,report", *rows))
        assert [(study.report, study.rejection and study.rejection[0]) for study in found] == [
            ("One", "patients-differ"),
            ("Two", "patients-differ"),
            ("Three", None),
            ("One", None),
        ]

    @pytest.mark.parametrize(
        ("header", "row", "message"),
        [
            ("date,report", "2020,One", "no column that names an examination"),
            ("accession,report", "X,One", "Do its ids stand in the headers"),
            ("accession,report", ",One", "no row that names an examination"),
        ],
    )
    def test_tables_that_cannot_be_joined(self, root, tmp_path, header, row, message):
        with pytest.raises(TableError, match=message):
            dicom_tree(root, table=table(tmp_path / "r.csv", header, row))
