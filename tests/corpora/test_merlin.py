"""Merlin's archive: written here as it is published, prepared, and trained on."""

import numpy as np
import pytest

from medclip_jax.cli.main import main
from medclip_jax.corpora.folder import TableError
from medclip_jax.corpora.merlin import merlin
from medclip_jax.reports.findings import MERLIN_FINDINGS
from medclip_jax.shards.manifest import read_manifest
from medclip_jax.shards.read import open_shards, open_split
from medclip_jax.training.status import read_status
from tests.corpora.made_abdomen import abdomen, write_sheet, write_table
from tests.tiny_run import PREPARE, train_on
from tests.volumes.made_scans import write_nifti

IDS = [f"AC4214d{n:02x}" for n in range(16)]


def report(n):
    return (
        f"LOWER THORAX: Normal. LIVER AND BILIARY TREE: Hepatic steatosis in case {n}. GALLBLADDER: "
        f"{'Surgically absent' if n % 2 else 'Normal'}. SPLEEN: Normal. KIDNEYS AND URETERS: Normal."
    )


def rows_of_reports(ids=IDS):
    splits = ["train"] * 10 + ["val"] * 2 + ["test"] * 4
    return [
        {"study id": one, "Findings": report(n), "Split": splits[n % 16], "Few Shot": n % 2}
        for n, one in enumerate(ids)
    ]


def rows_of_findings(ids=IDS):
    return [
        {"study_id": one, **dict.fromkeys(MERLIN_FINDINGS, -1), "ascites": n % 2, "gallstones": (n % 3) - 1}
        for n, one in enumerate(ids)
    ]


def write(root, *, ids=IDS, reports=None, findings=None, voxels=True):
    folder = root / "merlin_data"
    folder.mkdir(parents=True)
    for seed, one in enumerate(ids):
        path = folder / f"{one}.nii.gz"
        write_nifti(path, abdomen(seed=seed)) if voxels else path.touch()
    write_sheet(root / "reports_final.xlsx", rows_of_reports() if reports is None else reports)
    write_table(root / "zero_shot_findings_disease_cls.csv", findings or rows_of_findings())
    five = [
        {
            "study_id": one,
            "merlin_split": "val",
            "Chronic Kidney Disease": n % 3 - 1,
            "diabetes": 1,
            "note": "x",
        }
        for n, one in enumerate(IDS[12:])
    ]
    write_table(root / "five_years_disease_task.csv", five)
    scans = [
        {"study_id": one, "Age": f"0{40 + n}Y" if n else "97Y", "kvp": 120, "slicethickness": "?"}
        for n, one in enumerate(IDS)
    ]
    write_table(root / "metadata.csv", scans)
    return root


def test_prepared_by_the_command(tmp_path, capsys):
    # Two scans were not downloaded, one has no row.
    root = write(tmp_path / "merlinabdominalctdataset", ids=[*IDS[:-2], "AC4ffffff"])
    words = ["prepare", "--corpus", "merlin", "--root", str(root), "--out", str(tmp_path / "set")]
    assert main([*words, *PREPARE]) == 0
    said = capsys.readouterr().err
    assert "reports: 14 of 15 volumes have a row; 1 has none (AC4ffffff); 2 rows have no volume" in said
    info = open_shards(tmp_path / "set")
    assert dict(info.splits) == {"train": 10, "validation": 2, "test": 2}
    assert info.findings == MERLIN_FINDINGS
    records = {str(record["report"]): record for record in open_split(info, "test")}
    record = next(record for text, record in records.items() if "case 13." in text)
    labels = dict(zip(info.findings, record["labels"].tolist(), strict=True))
    assert (labels["ascites"], labels["gallstones"], labels["fracture"]) == (1, -1, 0)
    found = dict(zip(info.findings, record["findings"].tolist(), strict=True))
    assert (found["hepatic_steatosis"], found["splenomegaly"], found["surgically_absent_gallbladder"]) == (
        1,
        -1,
        1,
    )
    measured = dict(zip(info.measurements, record["measurements"].tolist(), strict=True))
    assert measured["five_year_chronic_kidney_disease"] == 0
    assert (measured["five_year_split"], measured["age_years"], measured["tube_voltage_kv"]) == (1, 53, 120)
    entries = list(read_manifest(tmp_path / "set"))
    assert [entry["reason"] for entry in entries if "reason" in entry] == ["not-in-archive"]
    assert not any(one in (tmp_path / "set" / "manifest.jsonl").read_text() for one in IDS)


@pytest.mark.slow
def test_from_the_archive_to_a_training_step(tmp_path):
    root = write(tmp_path / "merlinabdominalctdataset")
    words = ["prepare", "--corpus", "merlin", "--root", str(root), "--out", str(tmp_path / "set")]
    assert main([*words, *PREPARE]) == 0
    train_on(tmp_path / "set", tmp_path / "workdir", {})
    assert read_status(tmp_path / "workdir").step == 2


def studies_of(root):
    return {study.record_id: study for study in merlin(root)}


def test_what_a_study_is(tmp_path):
    write(tmp_path / "merlinabdominalctdataset", voxels=False)
    table = merlin(tmp_path)  # the root may lie above
    study = next(study for study in table if study.record_id == IDS[12])
    assert study.path == tmp_path / "merlinabdominalctdataset" / "merlin_data" / f"{IDS[12]}.nii.gz"
    assert (study.study_id, study.patient_id, study.split) == (IDS[12], IDS[12], "test")
    assert study.sections == {"findings": report(12)}
    # -1 of the outcomes is unknown, and not there.
    assert study.measurements == {
        "five_year_diabetes": 1,
        "five_year_split": 1,
        "age_years": 52,
        "tube_voltage_kv": 120,
    }
    assert table.studies[0].measurements["age_years"] == 90
    assert set(study.labels) == set(MERLIN_FINDINGS)
    assert [study.split for study in table].count("train") == 10
    said = "\n".join(table.remarks)
    assert "no patient ids" in said
    assert "columns that are not read: note" in said
    assert "16 cells of slice_thickness_mm hold no number" in said


def test_tables_that_need_not_be_there_and_csv_for_xlsx(tmp_path):
    write(tmp_path, voxels=False)
    for name in ("zero_shot_findings_disease_cls.csv", "five_years_disease_task.csv", "metadata.csv"):
        (tmp_path / name).unlink()
    (tmp_path / "reports_final.xlsx").unlink()
    write_table(tmp_path / "reports_final.csv", rows_of_reports())
    table = merlin(tmp_path)
    assert len(table) == 16
    assert not any(study.labels or study.measurements for study in table)
    assert any("no study has labels" in remark for remark in table.remarks)


def test_an_impression_within_the_findings_or_beside_them(tmp_path):
    rows = rows_of_reports()
    rows[0]["Findings"] = "Liver: Normal. IMPRESSION: 1. Ascites."
    rows[1]["Impression"] = "Fracture."
    write(tmp_path, reports=[{**row, "Impression": row.get("Impression")} for row in rows], voxels=False)
    studies = studies_of(tmp_path)
    assert studies[IDS[0]].sections == {"findings": "Liver: Normal.", "impression": "1. Ascites."}
    assert studies[IDS[1]].sections == {"findings": report(1), "impression": "Fracture."}


def test_ids_of_several_rows(tmp_path):
    rows = rows_of_reports()
    reports = [
        {**rows[0], "Findings": "No acute findings."},  # a preliminary reading, before the final report
        *rows,
        rows[2],
        {**rows[12], "Findings": None},
    ]
    labels = rows_of_findings()
    labels += [{**labels[1], "ascites": 0}, labels[2]]
    write(tmp_path, reports=reports, findings=labels, voxels=False)
    five = tmp_path / "five_years_disease_task.csv"
    five.write_text(five.read_text() + f"{IDS[13]},val,1,0,x\n")
    table = merlin(tmp_path)
    studies = {study.record_id: study for study in table}
    assert len(table) == 16
    assert studies[IDS[0]].sections["findings"] == report(0)
    assert studies[IDS[12]].sections["findings"] == report(12)
    assert [one for one, study in studies.items() if study.notes] == [IDS[0], IDS[12]]
    # Rows that contradict each other make the label unknown, and no other.
    assert (studies[IDS[1]].labels["ascites"], studies[IDS[1]].labels["gallstones"]) == (0, -1)
    assert studies[IDS[3]].labels["ascites"] == 1
    assert "five_year_diabetes" not in studies[IDS[13]].measurements
    said = "\n".join(table.remarks)
    assert f"2 ids have several that differ ({IDS[0]}, {IDS[12]})" in said
    assert "1 rows repeat another one word for word" in said
    write_sheet(tmp_path / "reports_final.xlsx", [*rows, {**rows[0], "Split": "test"}])
    with pytest.raises(
        TableError, match=r"rows 1, 17 of .*reports_final.xlsx' are of one id, and in several splits"
    ):
        merlin(tmp_path)


def test_ids_that_a_spreadsheet_has_changed(tmp_path):
    ids = [f"00{n}7" for n in range(1, 5)]
    rows = rows_of_reports(ids)
    write(tmp_path, ids=ids, reports=rows, findings=rows_of_findings(ids), voxels=False)
    for name in ("five_years_disease_task.csv", "metadata.csv"):
        (tmp_path / name).unlink()
    assert len(merlin(tmp_path)) == 4
    write_table(
        tmp_path / "zero_shot_findings_disease_cls.csv", rows_of_findings([one.lstrip("0") for one in ids])
    )
    with pytest.raises(TableError, match=r"4 ids of '.*disease_cls.csv' differ .* leading zeros") as error:
        merlin(tmp_path)
    assert "0017" not in str(error.value)
    write_sheet(tmp_path / "reports_final.xlsx", [{**row, "study id": int(row["study id"])} for row in rows])
    with pytest.raises(
        TableError, match=r"4 ids of the volumes .* of '.*reports_final.xlsx' in leading zeros"
    ):
        merlin(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Split": "holdout"}, r"row 1 \(line 2\) of '.*reports_final.xlsx', column 'Split': must be one of"),
        ({"study id": None}, "row 1 of '.*reports_final.xlsx' have no 'study id'"),
        ({"study id": 12345678901234567}, "column 'study id': row 1 hold a number in scientific notation"),
    ],
)
def test_cells_that_cannot_be_understood(tmp_path, change, message):
    rows = rows_of_reports()
    write(tmp_path, reports=[rows[0] | change, *rows[1:]], voxels=False)
    with pytest.raises(TableError, match=message):
        merlin(tmp_path)


def test_wrong_files_say_which_columns_they_have(tmp_path):
    root = write(tmp_path, voxels=False)
    write_table(root / "zero_shot_findings_disease_cls.csv", [{"study_id": IDS[0], "sex": 1, "age": 2}])
    with pytest.raises(
        TableError, match=r"disease_cls.csv' has none of the thirty.*Its columns are 'sex', 'age'"
    ):
        merlin(root)
    write_table(root / "zero_shot_findings_disease_cls.csv", [{"study_id": IDS[0], "ascites": 2}])
    with pytest.raises(TableError, match=r"column 'ascites': must be 1 \(stated\), 0 \(denied\) or -1"):
        merlin(root)
    (root / "zero_shot_findings_disease_cls.csv").unlink()
    write_sheet(root / "reports_final.xlsx", [{"id": IDS[0], "Findings": "x", "Split": "train"}])
    with pytest.raises(
        TableError, match=r"final.xlsx' lacks the column 'study_id'. Its columns are 'id', 'Findings'"
    ):
        merlin(root)
    (root / "reports_final.xlsx").unlink()
    with pytest.raises(TableError, match=r"holds no reports_final.xlsx"):
        merlin(root)
    with pytest.raises(TableError, match="holds no volumes"):
        merlin(root / "..." if (root / "...").mkdir() is None else root)
    with pytest.raises(TableError, match="no folder"):
        merlin(root / "absent")


def test_volumes_of_another_archive_or_there_twice(tmp_path):
    root = write(tmp_path / "a", ids=["LUNG1", "LUNG2"], voxels=False)
    with pytest.raises(TableError, match=r"none of the 2 volumes .* has a row"):
        merlin(root)
    root = write(tmp_path / "b", voxels=False)
    (root / "copy").mkdir()
    (root / "copy" / f"{IDS[0]}.nii").touch()
    with pytest.raises(TableError, match=r"1 volumes lie below .* twice"):
        merlin(root)


def test_many_rows_of_few_volumes(tmp_path):
    ids = [f"AC{n:07x}" for n in range(8000)]
    rows = [{"study id": one, "Findings": "Ascites.", "Split": "train"} for one in ids]
    write(tmp_path, ids=ids[:3], findings=rows_of_findings(ids), voxels=False)
    (tmp_path / "reports_final.xlsx").unlink()
    write_table(tmp_path / "reports_final.csv", rows)
    assert len(merlin(tmp_path)) == 3


def test_the_made_abdomen_has_no_lung():
    assert np.mean(abdomen() < -1000 + 400) < 0.6
