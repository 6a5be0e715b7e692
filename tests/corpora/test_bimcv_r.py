"""BIMCV-R's archive: written here as it is published, prepared, and trained on."""

import pytest

from medclip_jax.cli.main import main
from medclip_jax.corpora.bimcv_r import bimcv_r
from medclip_jax.corpora.folder import TableError
from medclip_jax.shards.manifest import read_manifest
from medclip_jax.shards.read import open_shards, open_split
from medclip_jax.training.status import read_status
from tests.corpora.made_abdomen import write_table
from tests.tiny_run import PREPARE, train_on
from tests.volumes.made_scans import chest, write_nifti

COUNT = 24
META = "meta/curated_ct_report_path_En.csv"


def name(n):
    """Every patient has two examinations, the second of which has two runs."""
    session = f"ses-E{5000 + n // 3 * 2 + (n % 3 > 0)}"
    return f"sub-S0{3000 + n // 3}_{session}_run-{1 + (n % 3 == 2)}_bp-chest_ct"


def rows(count=COUNT, paths="/raid/data/covid19_posi/{patient}/{session}/mod-rx/{name}.nii.gz"):
    made = []
    for n in range(count):
        patient, session, *_ = name(n).split("_")
        path = paths.format(patient=patient, session=session, name=name(n))
        said = f"Small pleural effusion in examination {session}. Heart size is normal."
        made.append({"": n, "path": path, "Report_en": said, "Report": "derrame pleural"})
    return made


def write(root, *, table=None, volumes=range(COUNT), voxels=False):
    for n in volumes:
        path = root / f"CT{1 + n // 10}" / "ct" / f"{name(n)}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_nifti(path, chest((12, 32, 36), seed=n)) if voxels else path.touch()
    write_table(root / META, rows() if table is None else table)
    return root


def test_prepared_by_the_command(tmp_path, capsys):
    root = write(tmp_path / "BIMCV_R", table=rows()[:-1], voxels=True)
    words = ["prepare", "--corpus", "bimcv_r", "--root", str(root), "--out", str(tmp_path / "set")]
    (tmp_path / "key").write_text("01" * 32)
    words += [*PREPARE, "--fractions", "0.6", "0.2", "0.2", "--key", str(tmp_path / "key")]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "24 volumes of 8 patients, 8 of whom have several volumes: splits are by patient" in said
    assert f"reports: 23 of 24 volumes have a row; 1 has none ({name(23)})" in said
    info = open_shards(tmp_path / "set")
    owners = {split: {record["patient"] for record in open_split(info, split)} for split in info.splits}
    assert sum(map(len, owners.values())) == len(set().union(*owners.values())) == 8
    record = open_split(info, "train")[0]
    found = dict(zip(info.findings, record["findings"].tolist(), strict=True))
    assert found["cardiomegaly"] == -1
    studies = [record["study"] for split in info.splits for record in open_split(info, split)]
    assert len(studies) == 23
    assert len(set(studies)) == 16
    assert [e["reason"] for e in read_manifest(tmp_path / "set") if "reason" in e] == ["not-in-archive"]
    written = (tmp_path / "set" / "manifest.jsonl").read_text()
    assert "sub-S" not in written
    assert "ses-E" not in written


@pytest.mark.slow
def test_from_the_archive_to_a_training_step(tmp_path):
    root = write(tmp_path / "BIMCV_R", voxels=True)
    words = ["prepare", "--corpus", "bimcv_r", "--root", str(root), "--out", str(tmp_path / "set")]
    assert main([*words, *PREPARE, "--fractions", "0.6", "0.2", "0.2"]) == 0
    train_on(tmp_path / "set", tmp_path / "workdir", {})
    assert read_status(tmp_path / "workdir").step == 2


def test_what_a_study_is(tmp_path):
    table = bimcv_r(write(tmp_path))
    assert len(table) == COUNT
    first, second, third = (next(s for s in table if s.record_id == name(n)) for n in range(3))
    assert first.path == tmp_path / "CT1" / "ct" / f"{name(0)}.nii.gz"
    assert {study.patient_id for study in (first, second, third)} == {"sub-S03000"}
    assert first.study_id == "sub-S03000_ses-E5000"
    assert second.study_id == third.study_id == "sub-S03000_ses-E5001"
    assert second.report == third.report == rows()[1]["Report_en"]
    assert {study.split for study in table} == {None}


@pytest.mark.parametrize(
    "paths",
    [
        "{name}.nii.gz",
        "CT1\\ct\\{name}.nii.gz",
        "/raid/covid19_posi/{patient}/{session}/mod-rx",
        "/raid/covid19_posi/{patient}/{session}/mod-rx/",
    ],
)
def test_rows_that_name_a_file_or_the_folder_of_an_examination(tmp_path, paths):
    table = bimcv_r(write(tmp_path, table=rows(paths=paths)))
    assert all(f"{study.study_id.split('_')[1]}." in study.report for study in table)
    assert not any(study.rejection for study in table)


def test_the_column_of_files_goes_before_that_of_folders(tmp_path):
    made = rows(paths="/raid/{patient}/{session}/mod-rx")
    made = [{**row, "ct_path": f"{row['path']}/{name(n)}.nii.gz"} for n, row in enumerate(made)]
    made[2]["Report_en"] = "Of the second run alone."
    studies = {study.record_id: study for study in bimcv_r(write(tmp_path, table=made))}
    assert studies[name(2)].report == "Of the second run alone."
    assert studies[name(1)].report == made[1]["Report_en"]


def test_lists_of_patients_are_the_split(tmp_path):
    root = write(tmp_path)
    parts = {"train": range(0, 15), "val": range(15, 18), "test": range(18, 21)}
    for part, numbers in parts.items():
        listed = [{"PatientID": name(n).split("_")[0], **rows()[n]} for n in numbers]
        write_table(root / "metadata" / f"bimcv_{part}.csv", listed)
    table = bimcv_r(root)
    assert [sum(s.split == one for s in table) for one in ("train", "validation", "test", None)] == [
        15,
        3,
        3,
        3,
    ]
    assert "the lists put 7 of them into a split" in table.remarks[0]
    (root / META).unlink()
    assert sum(study.rejection is None for study in bimcv_r(root)) == 21
    write_table(root / "metadata" / "bimcv_val.csv", [{"PatientID": "sub-S03000"}])
    with pytest.raises(TableError, match=r"1 patients stand in several of the lists .*sub-S03000"):
        bimcv_r(root)


def test_patients_by_folders_and_volumes_of_nobody(tmp_path):
    root = write(tmp_path)
    (root / "sub-S07777" / "ses-E1").mkdir(parents=True)
    (root / "sub-S07777" / "ses-E1" / "volume.nii.gz").touch()
    (root / "CT1" / "ct" / "scan7.nii.gz").touch()
    studies = {study.record_id: study for study in bimcv_r(root)}
    assert (studies["volume"].patient_id, studies["volume"].study_id) == ("sub-S07777", "sub-S07777_ses-E1")
    assert studies["scan7"].rejection[0] == "patient-unknown"
    assert any("1 volumes do not say whose they are (scan7)" in remark for remark in bimcv_r(root).remarks)


def test_rows_that_stand_there_twice(tmp_path):
    made = rows()
    table = bimcv_r(write(tmp_path, table=[*made, made[0], {**made[1], "Report_en": "Another."}]))
    assert len(table) == COUNT
    said = "\n".join(table.remarks)
    assert "2 rows of" in said
    assert f"1 of these rows differ from the first one, which is used ({name(1)})" in said


def test_wrong_files_say_which_columns_they_have(tmp_path):
    root = write(tmp_path, table=[{"path": "x.nii.gz", "Report": "y"}])
    with pytest.raises(TableError, match=r"no table with the columns path and Report_en.*path, Report$"):
        bimcv_r(root)
    write_table(root / META, [{"path": "/raid/other.nii.gz", "Report_en": "y"}])
    with pytest.raises(TableError, match=r"none of the 24 volumes .* has a row"):
        bimcv_r(root)
    write_table(root / META, [{"path": "", "Report_en": "y"}])
    with pytest.raises(TableError, match=r"row 1 of .*Path_En|row 1 of .*path_En.csv' has no path"):
        bimcv_r(root)
    other = tmp_path / "plain"
    (other / "CT1" / "ct").mkdir(parents=True)
    with pytest.raises(TableError, match=r"holds no volumes.*unpack"):
        bimcv_r(other)
    (other / "CT1" / "ct" / "1.nii.gz").touch()
    with pytest.raises(TableError, match=r"none of the 1 volumes .* is named by its patient"):
        bimcv_r(other)


def test_many_rows_of_few_volumes(tmp_path):
    write(tmp_path, table=rows(8000))
    assert len(bimcv_r(tmp_path)) == COUNT
