"""CT-RATE in the archive's layout: both versions, joined tables, splits, and what is wrong with them."""

import numpy as np
import pytest

from medclip_jax.cli.main import main
from medclip_jax.cli.prepare_studies import read_studies
from medclip_jax.corpora.ct_rate import ct_rate
from medclip_jax.corpora.tables import TableError
from medclip_jax.shards.manifest import read_manifest
from medclip_jax.shards.plan import make_plan, report_of
from medclip_jax.shards.read import open_shards, open_split
from medclip_jax.shards.settings import resolve
from tests.corpora.made_arguments import arguments
from tests.corpora.made_ct_rate import (
    folder_of,
    label_row,
    metadata_row,
    report_row,
    write_csv,
    write_tables,
    write_v1,
    write_v2,
)
from tests.corpora.tiny_training import train_step
from tests.volumes.made_scans import chest, write_nifti

NAMES = ["train_1_a_1", "train_1_a_2", "train_2_a_1", "train_2_b_1", "valid_1_a_1", "valid_2_b_1"]


def archive(root, names=NAMES, version="v2", **options):
    for seed, name in enumerate(names):
        (write_v1 if version == "v1" else write_v2)(root / "dataset", name, seed)
    write_tables(root / "dataset", names, **options)
    return root


def told(table, words):
    return next(remark for remark in table.remarks if words in remark)


def by_name(table):
    return {study.record_id: study for study in table}


def test_ids_splits_reports_and_labels(tmp_path):
    table = ct_rate(archive(tmp_path))
    studies = by_name(table)
    assert list(studies) == NAMES
    both = studies["train_1_a_1"], studies["train_1_a_2"]
    assert {(study.patient_id, study.study_id) for study in both} == {("train_1", "train_1_a")}
    assert both[0].sections["findings"] == "The heart is normal, case train_1_a."
    assert report_of(both[0]) == "Findings: The heart is normal, case train_1_a."  # "Not given." is nothing
    assert [study.split for study in table] == [None] * 4 + ["test"] * 2
    assert studies["train_2_b_1"].labels["cardiomegaly"] == 1
    assert studies["train_2_a_1"].labels["cardiomegaly"] == -1  # the archive's 0 means absent
    assert len(studies["train_1_a_1"].labels) == 18
    assert table.zero_label == "absent"
    assert studies["train_1_a_1"].measurements == {"age_years": 41.0}
    assert all(not any(sides) for sides in table.unmatched.values())
    assert "train 4 volumes of 3 scans and 2 patients; valid 2 volumes" in table.remarks[0]


@pytest.mark.parametrize("version", ["v1", "v2", "auto"])
@pytest.mark.parametrize("written", ["v1", "v2"])
def test_versions_come_to_the_same_volumes_or_are_refused(tmp_path, written, version):
    archive(tmp_path, version=written)
    words = ["prepare", "--corpus", "ct_rate", "--root", str(tmp_path), "--out", str(tmp_path / "set")]
    words += ["--ct-rate-version", version, "--workers", "1", "--tokenizer", "none"]
    words += ["--shape", "16", "40", "44", "--spacing", "3", "2", "1.5", "--max-rejected", "1"]
    fits = version in (written, "auto")
    if not fits:
        main(words)
        rejected = (tmp_path / "set.rejected.csv").read_text()
        assert rejected.count("no-orientation" if written == "v1" else "double-rescale") == 6
        return
    assert main(words) == 0
    info = open_shards(tmp_path / "set")
    assert dict(info.splits)["test"] == 2
    assert sum(info.splits.values()) == 6
    reader = open_split(info, "test")
    found = {reader[place]["volume"].tobytes() for place in range(2)}
    assert found == {chest(seed=seed).tobytes() for seed in (4, 5)}


def test_from_the_archive_to_a_training_step(tmp_path):
    names = [f"train_{patient}_a_1" for patient in range(1, 9)] + ["valid_1_a_1"]
    words = ["prepare", "--corpus", "ct_rate", "--root", str(archive(tmp_path / "ct", names, "v1"))]
    words += ["--out", str(tmp_path / "set"), "--shape", "16", "32", "32", "--spacing", "3", "2", "1.5"]
    words += ["--workers", "1", "--vocabulary-patients", "1", "--vocabulary-size", "200"]
    assert main([*words, "--fractions", "1", "0", "0"]) == 0
    info = open_shards(tmp_path / "set")
    assert dict(info.splits) == {"train": 8, "test": 1}
    assert info.findings[:2] == ("medical_material", "arterial_wall_calcification")
    assert open_split(info, "test")[0]["measurements"][info.measurements.index("age_years")] == 41
    train_step(tmp_path / "set", tmp_path / "run")


def test_auto_says_what_it_decided_and_from_what(tmp_path):
    fixed = ct_rate(archive(tmp_path / "fixed"))
    assert (
        "taken as v2 by the folder's name and the headers (of 6 headers looked at, 6 with the metadata's"
        in (told(fixed, "*_fixed"))
    )
    assert all(study.series[0].rescale is None and study.series[0].spacing is None for study in fixed)
    raw = ct_rate(archive(tmp_path / "raw", version="v1"))
    assert "taken as v1 by the headers (of 6 headers looked at, 6 with no spacing)" in told(raw, "volumes:")
    series = raw.studies[0].series[0]
    assert (series.rescale, series.spacing, series.axes) == ((1.0, -8192.0), (3.0, 2.0, 1.5), "LPS")
    assert not series.raw  # its values have the last word


def test_fixed_files_in_folders_that_do_not_say_so(tmp_path):
    archive(tmp_path)
    for split in ("train", "valid"):
        (tmp_path / f"dataset/{split}_fixed").rename(tmp_path / f"dataset/{split}")
    table = ct_rate(tmp_path)
    assert "each volume's values decide on the metadata's slope" in told(
        table, "6 with the metadata's spacing"
    )
    assert table.studies[0].series[0].rescale == (1.0, -8192.0)


def test_headers_with_another_spacing_keep_it(tmp_path):
    archive(tmp_path)
    for path in (tmp_path / "dataset/metadata").iterdir():
        path.write_text(path.read_text().replace("[1.5, 2.0]", "[0.7, 0.7]"))
    table = ct_rate(tmp_path)
    assert "were they resampled?" in told(table, "the folder's name says v2, but")
    assert all(study.series[0].spacing is None for study in table)


def test_volumes_that_lie_there_twice(tmp_path):
    archive(tmp_path)
    write_v1(tmp_path / "dataset", "train_1_a_1")
    table = ct_rate(tmp_path)
    assert len(table) == 6
    assert "volumes that lie there more than once: 1" in told(table, "more than once")
    assert "train_fixed" in by_name(table)["train_1_a_1"].path.as_posix()
    first = by_name(ct_rate(tmp_path, version="v1"))["train_1_a_1"]
    assert "train_fixed" not in first.path.as_posix()


def test_both_spellings_of_the_scan_folder_and_other_places(tmp_path):
    write_v2(tmp_path, "train_1_a_1", joined=True)
    write_nifti(tmp_path / "valid_7_c_2.nii.gz", chest())
    masks = tmp_path / "ts_seg/ts_total/train_fixed/train_1/train_1_a"
    masks.mkdir(parents=True)
    write_nifti(masks / "train_1_a_1.nii.gz", chest())
    write_tables(tmp_path, ["train_1_a_1", "valid_7_c_2"])
    (tmp_path / ".cache").mkdir()
    write_nifti(tmp_path / ".cache/train_9_a_1.nii.gz", chest())
    table = ct_rate(tmp_path)
    assert list(by_name(table)) == ["train_1_a_1", "valid_7_c_2"]
    assert "1 files in folders 'ts_seg'" in told(table, "passed over")


def test_what_has_no_partner_is_counted_and_listed(tmp_path):
    root = archive(tmp_path, NAMES[:4])
    write_v2(root / "dataset", "train_9_a_1")
    reports = root / "dataset/radiology_text_reports/train_reports.csv"
    lines = reports.read_text().splitlines(keepends=True)
    reports.write_text("".join(lines) + lines[1].replace("train_1_a_1", "train_8_a_1"))
    table = ct_rate(root)
    assert table.unmatched["reports"] == (("train_9_a_1",), ("train_8_a_1",))
    assert table.unmatched["labels"] == (("train_9_a_1",), ())
    assert told(table, "reports:") == (
        "reports: 4 of 5 volumes have a row; 1 has none (train_9_a_1); 1 row has no volume (train_8_a_1)"
    )
    listed = tmp_path / "unmatched.csv"
    words = ["prepare", "--corpus", "ct_rate", "--root", str(root), "--out", str(tmp_path / "set")]
    words += ["--list-unmatched", str(listed), "--workers", "1", "--shape", "8", "16", "16"]
    assert main([*words, "--tokenizer", "none", "--max-rejected", "1"]) == 0
    assert "reports,row,train_9_a_1" in listed.read_text()
    assert "train_9_a_1" not in (tmp_path / "set/manifest.jsonl").read_text()
    assert [entry["reason"] for entry in read_manifest(tmp_path / "set") if "reason" in entry] == [
        "empty-report"
    ]


def test_rows_that_stand_twice(tmp_path):
    root = archive(tmp_path, NAMES[:2])
    write_csv(root / "copy.csv", [report_row(NAMES[0], "Another text."), report_row(NAMES[1], "X.")])
    table = ct_rate(root)
    assert by_name(table)[NAMES[0]].sections["findings"].startswith("The heart is normal")
    assert "2 rows of 'copy.csv' stand there before" in told(table, "copy.csv")
    assert "2 of these rows differ from the first one" in told(table, "differ")


def test_metadata_with_gaps(tmp_path):
    names = ["train_1_a_1", "train_2_a_1", "train_3_a_1"]
    for name in names:
        write_v1(tmp_path, name)
    write_tables(tmp_path, names, metadata=False)
    rows = [
        metadata_row(names[0], ZSpacing="", PatientAge="097Y"),
        metadata_row(names[1], ImageOrientationPatient="[-1, 0, 0, 0, -1, 0]", RescaleSlope="nan"),
    ]
    write_csv(tmp_path / "my metadata.csv", rows)
    studies = by_name(ct_rate(tmp_path))
    assert studies[names[0]].notes == ("spacing-not-in-metadata",)
    assert studies[names[0]].measurements == {"age_years": 90.0}
    assert studies[names[1]].notes == ("rescale-not-in-metadata",)
    assert studies[names[1]].series[0].axes == "RAS"
    assert studies[names[2]].notes == ("metadata-missing",)


def test_volumes_without_a_chest(tmp_path):
    archive(tmp_path)
    (tmp_path / "dataset/metadata/no_chest_train.txt").write_text("train_1_a_1.nii.gz\n")
    (tmp_path / "dataset/metadata/no_chest_valid.txt").write_text("valid_1_a_1.nii.gz\n")
    table = ct_rate(tmp_path)
    studies = by_name(table)
    assert studies["train_1_a_1"].rejection[0] == "no-chest"
    assert studies["valid_1_a_1"].rejection is None
    assert studies["valid_1_a_1"].notes == ("no-chest",)
    assert "listed as showing no chest: 2" in told(table, "no chest")


def test_an_archive_that_cannot_be_used(tmp_path):
    with pytest.raises(TableError, match="no folder"):
        ct_rate(tmp_path / "nowhere")
    with pytest.raises(TableError, match="holds no volume of CT-RATE, named such as"):
        ct_rate(tmp_path)
    write_v1(tmp_path, "train_1_a_1")
    with pytest.raises(TableError, match="no table of CT-RATE's reports"):
        ct_rate(tmp_path)
    labels = write_csv(tmp_path / "l.csv", [label_row("train_1_a_1")])
    assert len(ct_rate(tmp_path)) == 1
    with pytest.raises(TableError, match="files of version v1 need the metadata"):
        ct_rate(tmp_path, version="v1")
    labels.write_text(labels.read_text().replace(",0,", ",perhaps,"))
    with pytest.raises(TableError, match=r"labels of train_1_a_1, column .*a label is 1"):
        ct_rate(tmp_path)
    write_csv(tmp_path / "l.csv", [label_row("train_1_a_1")])
    write_csv(tmp_path / "m.csv", [metadata_row("train_1_a_1", XYSpacing="wide")])
    with pytest.raises(TableError, match="metadata of train_1_a_1, column 'xyspacing': it holds no number"):
        ct_rate(tmp_path)
    write_csv(tmp_path / "m.csv", [metadata_row("train_1_a_1", VolumeName="")])
    with pytest.raises(TableError, match=r"row 1 of '.*' has no VolumeName: fill it in"):
        ct_rate(tmp_path)


def test_options_of_other_corpora_are_refused(tmp_path, capsys):
    words = ["prepare", "--corpus", "acdc", "--root", str(tmp_path), "--out", str(tmp_path / "set")]
    assert main([*words, "--ct-rate-version", "v1"]) != 0
    assert "--corpus acdc has no --ct-rate-version: it takes --root" in capsys.readouterr().err


def test_validation_patients_are_drawn_from_train(tmp_path):
    names = [f"train_{patient}_a_{scan}" for patient in range(1, 9) for scan in (1, 2)] + ["valid_1_a_1"]
    for name in names:
        (folder_of(tmp_path, name, fixed=True) / f"{name}.nii.gz").touch()
    write_tables(tmp_path, names)
    studies, settings = read_studies(arguments("--corpus", "ct_rate", "--root", str(tmp_path)))
    assert settings.fractions == (0.95, 0.05, 0.0)
    shards = make_plan(list(studies), resolve(settings, list(studies)), b"key")
    split = {item.study.record_id: item.split for shard in shards for item in shard.items}
    assert split["valid_1_a_1"] == "test"
    assert {split[name] for name in names[:-1]} == {"train", "validation"}
    assert all(split[name] == split[name[:-1] + "1"] for name in names)
    assert np.sum([place == "test" for place in split.values()]) == 1
