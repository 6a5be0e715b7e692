"""TotalSegmentator's output beside a corpus: masks are found by the volume's name, whatever their layout."""

import json

import nibabel
import numpy as np
import pytest

from medclip_jax.cli.main import main
from medclip_jax.corpora.folder import StudyTable, TableError
from medclip_jax.corpora.mask_folder import TABLE, join_masks, volume_names
from medclip_jax.corpora.study import Series, Study
from medclip_jax.shards.read import open_shards, open_split
from tests.made_label_maps import AFFINE, GRID, canonical, labels, save, write_nnunet

HEADER = (
    '<?xml version="1.0" encoding="UTF-8"?><CaretExtension><VolumeInformation Index="0"><LabelTable>'
    '<Label Key="1" Red="1" Green="0" Blue="0" Alpha="1"><![CDATA[heart]]></Label>'
    '<Label Key="2" Red="0" Green="1" Blue="0" Alpha="1"><![CDATA[aorta]]></Label>'
    "</LabelTable></VolumeInformation></CaretExtension>"
)
"""As TotalSegmentator writes it into the extended header of its multilabel files."""


def study(path, record_id=""):
    name = record_id or str(path)
    return Study((Series(path),), name, study_id=name, patient_id=name, report="Normal.")


def test_every_layout_is_found(tmp_path):
    masks = tmp_path / "masks"
    for name in ("heart", "aorta"):
        save(masks / "a" / f"{name}.nii.gz", labels(1, top=1))
        save(masks / "s0002/segmentations" / f"{name}.nii.gz", labels(1, top=1))
        save(masks / "deep/er/d" / f"{name}.nii.gz", labels(1, top=1))
    (masks / "a/statistics.json").write_text("{}")
    save(masks / "b.nii.gz", labels(1))
    (masks / "b.json").write_text(json.dumps({"1": "liver", "2": "spleen"}))
    image = nibabel.Nifti1Image(labels(1), AFFINE)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", HEADER.encode()))
    nibabel.save(image, masks / "c.nii.gz")
    save(masks / "files/e.nii.gz", labels(1))
    (masks / "classes.json").write_text(json.dumps({"1": "stomach"}))
    save(masks / "another/heart.nii.gz", labels(1, top=1))
    root = tmp_path / "scans"
    paths = [root / "a.nii.gz", root / "b.nii.gz", root / "c.nrrd", root / "d", root / "e.nii.gz"]
    paths += [root / "s0001/ct.nii.gz", root / "s0002/ct.nii.gz"]
    table = join_masks(StudyTable(tuple(map(study, paths))), masks)
    found = {name: each for name, each in zip("abcde12", table, strict=True)}
    assert {name: sorted(each.organs) for name, each in found.items()} == {
        "a": ["aorta", "heart"],
        "b": ["*"],
        "c": ["*"],
        "d": ["aorta", "heart"],
        "e": ["*"],
        "1": [],
        "2": ["aorta", "heart"],
    }
    assert found["b"].organ_classes == {1: "liver", 2: "spleen"}
    assert found["c"].organ_classes == {1: "heart", 2: "aorta"}
    assert found["e"].organ_classes == {1: "stomach"}
    assert table.unmatched[TABLE] == (("s0001",), ("another",))
    assert any("6 of 7 volumes" in remark and "another" in remark for remark in table.remarks)


def test_names_are_the_files_or_where_they_repeat_the_folders(tmp_path):
    paths = [
        tmp_path / "x.nii.gz",
        tmp_path / "p1/ct.nii.gz",
        tmp_path / "p2/ct.nii.gz",
        tmp_path / "dicom/p3",
    ]
    assert volume_names([study(path) for path in paths]) == ["x", "p1", "p2", "p3"]
    cases = [study(tmp_path / f"liver_{n}_0000.nii.gz", f"imagesTr/liver_{n}") for n in range(2)]
    assert volume_names(cases) == ["liver_0", "liver_1"]


def test_masks_that_cannot_be_used_are_that_studys_loss(tmp_path):
    save(tmp_path / "masks/a/heart.nii.gz", labels(1, top=1))
    save(tmp_path / "masks/b.nii.gz", labels(1))
    table = join_masks(
        StudyTable((study(tmp_path / "a.nii.gz"), study(tmp_path / "b.nii.gz"))), tmp_path / "masks"
    )
    assert [each.notes for each in table] == [(), ("organs-without-names",)]
    assert any("1 with masks that cannot be used" in remark for remark in table.remarks)


@pytest.mark.parametrize(
    ("masks", "organs", "message"),
    [
        ("none", {}, "no folder"),
        ("masks", {"heart": "x"}, "have organ masks already"),
        (".", {}, "no volume has organ masks"),
        ("unnamed", {}, "cannot be used"),
    ],
)
def test_mistakes_are_told(tmp_path, masks, organs, message):
    save(tmp_path / "masks/a/heart.nii.gz", labels(1, top=1))
    save(tmp_path / "unnamed/z.nii.gz", labels(1))
    name = "z" if masks == "unnamed" else "q" if masks == "." else "a"
    given = Study((Series(tmp_path / f"{name}.nii.gz"),), name, study_id=name, patient_id=name, organs=organs)
    with pytest.raises(TableError, match=message):
        join_masks(StudyTable((given,)), tmp_path / masks)


def test_masks_beside_a_corpus_become_cells_and_a_label_map(tmp_path):
    root, out = write_nnunet(tmp_path / "data", count=3, tests=1), tmp_path / "out"
    heart = labels(7, top=1)
    for case in ("liver_000", "liver_001", "liver_002", "liver_100"):
        save(tmp_path / "ts" / case / "heart.nii.gz", heart)
    command = [
        "prepare",
        "--corpus",
        "nnunet",
        "--root",
        str(root),
        "--out",
        str(out),
        "--workers",
        "1",
        *GRID,
    ]
    command += ["--masks", str(tmp_path / "ts"), "--organ-cell", "4", "--label-maps", "organs"]
    assert main(command) == 0
    info = open_shards(out)
    assert info.organs == info.label_classes == ("heart",)
    record = open_split(info, "train")[0]
    np.testing.assert_array_equal(record["label_map"], canonical(heart))
    assert record["organs"].sum() > 0


def test_a_phantoms_lesions_and_organs_are_a_label_map(tmp_path):
    out = tmp_path / "out"
    command = ["prepare", "--corpus", "phantom", "--count", "3", "--out", str(out), "--workers", "1"]
    command += ["--shape", "32", "48", "48", "--spacing", "8", "7", "7", "--tokenizer", "none"]
    assert main([*command, "--label-maps", "corpus"]) == 0
    info = open_shards(out)
    assert info.label_classes == (
        "lung_nodule",
        "consolidation",
        "pleural_effusion",
        "pericardial_effusion",
        "emphysema",
        "lungs",
        "heart",
        "aorta",
        "liver",
        "vertebrae",
    )
    phantoms = out.with_name("out.phantoms")
    assert (phantoms / "label_classes.json").is_file()
    for split, count in info.splits.items():
        for record in (open_split(info, split)[index] for index in range(count)):
            values = set(np.unique(record["label_map"])) - {0, 255}
            present = {
                name for name, label in zip(info.findings, record["labels"], strict=True) if label == 1
            }
            # What a map shows, the labels say; what is mild or small may fill no voxel.
            shown = {info.label_classes[value - 1] for value in values}
            assert shown & set(info.findings) <= present
            assert {"lungs", "heart", "aorta", "vertebrae"} <= shown
