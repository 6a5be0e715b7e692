"""A real scan and real sentences in the layouts of public archives."""

import shutil

import nibabel as nib
import numpy as np

from medclip_jax.cli.main import main
from medclip_jax.corpora.rad_genome import rad_genome
from medclip_jax.shards.read import open_shards, open_split
from medclip_jax.volumes import read_volume
from tests.corpora.made_ct_rate import STORED, folder_of, metadata_row, report_row, write_csv


def test_a_real_scan_in_both_versions_of_ct_rate(real_data, tmp_path):
    scan = read_volume(real_data / "chest_small.nrrd")
    depth, height, width = scan.spacing
    stored = (scan.voxels.astype(np.float64) + STORED)[:, ::-1, ::-1].transpose(2, 1, 0)
    true = np.diag([-width, -height, depth, 1.0])
    for name, image in {
        "train_1_a_1": nib.Nifti1Image(stored, np.eye(4)),  # as first published
        "train_2_a_1": nib.Nifti1Image((stored - STORED).astype(np.int16), true),  # HU in a raw folder
        "train_3_a_1": nib.Nifti1Image((stored - STORED).astype(np.int16), true),
    }.items():
        folder = folder_of(tmp_path / "ct", name, fixed=name == "train_3_a_1")
        nib.save(image, folder / f"{name}.nii.gz")
    names = ["train_1_a_1", "train_2_a_1", "train_3_a_1"]
    cells = {"XYSpacing": f"[{width}, {height}]", "ZSpacing": depth}
    write_csv(tmp_path / "ct/m.csv", [metadata_row(name, **cells) for name in names])
    write_csv(tmp_path / "ct/r.csv", [report_row(name, f"Scan {name}.") for name in names])
    words = ["prepare", "--corpus", "ct_rate", "--root", str(tmp_path / "ct"), "--out", str(tmp_path / "set")]
    words += ["--shape", "16", "32", "32", "--spacing", "20", "12", "12", "--workers", "1"]
    assert main([*words, "--tokenizer", "none", "--fractions", "1", "0", "0"]) == 0
    records = open_split(open_shards(tmp_path / "set"), "train")
    volumes = [records[place]["volume"] for place in range(3)]
    assert np.ptp(volumes[0]) > 1000
    for volume in volumes[1:]:
        np.testing.assert_array_equal(volume, volumes[0])


def test_real_sentences_of_radgenome(report_data, tmp_path):
    table = report_data / "radgenome_region_sentences_200.csv"
    shutil.copy(table, tmp_path / "train_region_report.csv")
    names = dict.fromkeys(line.split(",")[0] for line in table.read_text().splitlines() if ".nii.gz," in line)
    for name in names:
        split, patient, scan, _ = name.split("_")
        folder = tmp_path / f"{split}_preprocessed/{split}_{patient}/{split}_{patient}{scan}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    found = rad_genome(tmp_path)
    assert len(found) == len(names) == 200
    assert all(study.sentences for study in found)
    assert all(len(study.report) > 100 for study in found)
    assert found.unmatched["region sentences"] == ((), ())
