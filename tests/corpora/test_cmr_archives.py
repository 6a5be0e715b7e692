"""Cardiac MR archives with a layout of their own: ACDC, and what CMR-CLIP's public code writes."""

import json
from pathlib import Path

import numpy as np
import pytest

from medclip_jax.cli.main import main
from medclip_jax.corpora.acdc import GROUPS, acdc, labels_of
from medclip_jax.corpora.cmr_clip import cmr_clip
from medclip_jax.corpora.folder import TableError
from medclip_jax.reports.findings import CARDIAC_MR_FINDINGS
from medclip_jax.shards.manifest import read_manifest
from medclip_jax.shards.read import open_shards, open_split
from tests.made_frames import beating, write_nifti


def write_acdc(root: Path) -> Path:
    """Five patients of training, one of each group, and one of testing."""
    for number, group in enumerate((*GROUPS, "DCM"), 1):
        folder = root / ("training" if number < 6 else "testing") / f"patient{number:03d}"
        write_nifti(folder / f"{folder.name}_4d.nii.gz", beating(phases=6, seed=number))
        text = f"ED: 1\nES: {number + 2}\nGroup: {group}\nHeight: 184.0\nNbFrame: 6\nWeight: 95.5\n"
        (folder / "Info.cfg").write_text(text)
    return root


def test_acdc(tmp_path):
    studies = acdc(write_acdc(tmp_path)).studies
    assert [study.split for study in studies] == ["test", *["train"] * 5]
    study = next(study for study in studies if study.patient_id == "patient003")
    assert [(series.name, series.path.name) for series in study.series] == [
        ("cine_sa", "patient003_4d.nii.gz")
    ]
    assert study.measurements == {
        "acdc_group": 2.0,
        "end_diastolic_phase": 1.0,
        "end_systolic_phase": 5.0,
        "height_cm": 184.0,
        "weight_kg": 95.5,
    }
    assert study.labels["left_ventricular_dilation"] == study.labels["nonischemic_cardiomyopathy"] == 1
    assert study.labels["hypertrophic_cardiomyopathy"] == -1
    assert "right_ventricular_dilation" not in study.labels
    assert [study.split for study in acdc(tmp_path / "training")] == ["train"] * 5


@pytest.mark.parametrize("group", GROUPS)
def test_groups_are_told_apart_by_findings_that_are_known(group):
    labels = labels_of(group)
    assert set(labels) <= set(CARDIAC_MR_FINDINGS)
    diagnoses = [name for name, label in labels.items() if name.endswith("cardiomyopathy") and label == 1]
    assert len(diagnoses) == (group in ("MINF", "DCM", "HCM"))
    if group == "NOR":
        assert set(labels.values()) == {-1}


def test_acdc_from_the_command_line(tmp_path):
    write_acdc(tmp_path / "ACDC")
    words = ["prepare", "--corpus", "acdc", "--root", str(tmp_path / "ACDC"), "--out", str(tmp_path / "set")]
    words += [
        "--slices",
        "middle",
        "--frame-shape",
        "24",
        "24",
        "--frame-spacing",
        "2.5",
        "2.5",
        "--workers",
        "1",
    ]
    assert main(words) == 0
    info = open_shards(tmp_path / "set")
    assert dict(info.splits) == {"train": 5, "test": 1}
    sample = open_split(info, "test")[0]
    assert sample["cine_sa_frames"].tolist() == [1, 6]
    assert sample["report"] == ""
    assert sample["measurements"][info.measurements.index("acdc_group")] == GROUPS.index("DCM")
    assert sample["labels"][info.findings.index("left_ventricular_dysfunction")] == 1
    assert all(entry["notes"] == ["empty-report"] for entry in read_manifest(info.folder))
    assert main(["inspect", str(info.folder)]) == 0


def test_acdc_that_is_not_there_or_damaged(tmp_path):
    with pytest.raises(TableError, match=r"holds no patient001/Info\.cfg"):
        acdc(tmp_path)
    write_acdc(tmp_path)
    (tmp_path / "training/patient002/Info.cfg").write_text("ED: 1\nGroup: XYZ\n")
    with pytest.raises(TableError, match="names no group of NOR, MINF"):
        acdc(tmp_path)
    (tmp_path / "training/patient002/Info.cfg").write_text("ED: one\nGroup: RV\n")
    with pytest.raises(TableError, match="ED must be a number"):
        acdc(tmp_path)


def write_public(root: Path) -> Path:
    """Four records: complete, without late enhancement, in no list, with a damaged array."""
    records = []
    for index in range(4):
        cine, scar = f"arrays/{index}_cine.npy", f"arrays/{index}_lge.npy"
        (root / "arrays").mkdir(parents=True, exist_ok=True)
        pictures = beating(slices=3, phases=5, seed=index)
        np.save(root / cine, np.clip(pictures // 4, 0, 255).astype(np.uint8).transpose(2, 3, 0, 1))
        np.save(root / scar, beating(slices=4, phases=1)[:, 0].transpose(1, 2, 0))
        record = {"image_id": f"video{index}", "caption": f"Scar {index}.", "AccessionNumber": 1000 + index}
        records.append(record | {"cine_sa": cine, "lge_sa": "0" if index == 1 else scar, "lge_2ch": None})
    (root / "arrays/3_cine.npy").write_bytes(b"\x93NUMPY")
    (root / "annotation").mkdir()
    (root / "annotation/CMR.json").write_text(json.dumps(records))
    (root / "data").mkdir()
    (root / "data/train_list_CMR.txt").write_text("video0\nvideo1\n")
    (root / "data/test_list_CMR.txt").write_text("video3\n")
    return root


def test_the_public_layout(tmp_path):
    table = cmr_clip(write_public(tmp_path))
    assert [study.split for study in table] == ["train", "train", "test"]
    assert [[series.name for series in study.series] for study in table] == [
        ["cine_sa", "lge_sa"],
        ["cine_sa"],
        ["cine_sa", "lge_sa"],
    ]
    assert table.studies[0].sections == {"impression": "Scar 0."}
    assert "1 records stand in no list of a split, and are left out" in table.remarks
    for lists in (tmp_path / "data").iterdir():
        lists.unlink()
    assert [study.split for study in cmr_clip(tmp_path)] == [None] * 4


def test_the_public_layout_from_the_command_line(tmp_path):
    write_public(tmp_path / "data/CMR")
    words = ["prepare", "--corpus", "cmr_clip", "--root", str(tmp_path / "data/CMR"), "--workers", "1"]
    words += ["--out", str(tmp_path / "set"), "--frame-shape", "20", "20", "--max-rejected", "1"]
    assert main(words) == 0
    info = open_shards(tmp_path / "set")
    assert dict(info.splits) == {"train": 2}
    assert sorted(open_split(info, "train")[n]["cine_sa"].shape for n in range(2)) == [(15, 20, 20)] * 2
    entries = {entry["row"]: entry for entry in read_manifest(info.folder)}
    assert entries[4]["reason"] == "truncated-file"
    assert {"spacing-unknown", "series-missing:lge_sa"} <= set(entries[2]["notes"])


def test_a_public_layout_that_cannot_be_used(tmp_path):
    with pytest.raises(TableError, match=r"holds no annotation/CMR\.json"):
        cmr_clip(tmp_path)
    path = tmp_path / "CMR.json"
    path.write_text('[{"caption": "x"}]')
    with pytest.raises(TableError, match="no list of records with image_id"):
        cmr_clip(tmp_path)
    path.write_text('[{"image_id": "a", "caption": "x", "cine_sa": "0"}]')
    with pytest.raises(TableError, match="name no arrays"):
        cmr_clip(tmp_path)
    path.write_text('[{"image_id": "a", "caption": "x", "cine_sa": "a.npy"}]')
    (tmp_path / "train_list_CMR.txt").write_text("b\n")
    with pytest.raises(TableError, match="the lists are of another set"):
        cmr_clip(tmp_path)
    (tmp_path / "test_list_CMR.txt").write_text("b\n")
    with pytest.raises(TableError, match="stands in the lists of train and test"):
        cmr_clip(tmp_path)
