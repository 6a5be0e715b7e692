"""nnU-Net's and the Decathlon's folders, from the layouts as published to a batch with label maps."""

import json

import nibabel
import numpy as np
import pytest

from medclip_jax.cli.main import main
from medclip_jax.corpora.decathlon import decathlon
from medclip_jax.corpora.folder import TableError
from medclip_jax.corpora.nnunet import nnunet
from medclip_jax.fields import Layout
from medclip_jax.objectives.base import DataSpec
from medclip_jax.pipeline import train_batches
from medclip_jax.shards.manifest import read_manifest
from medclip_jax.shards.read import open_shards, open_split
from tests.made_label_maps import AFFINE, GRID, body, canonical, labels, save, write_decathlon, write_nnunet
from tests.made_records import settings


def rewrite(root, **changes):
    """Change entries of dataset.json; None removes one."""
    path = root / "dataset.json"
    written = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in written.items() if value is not None}))


@pytest.mark.parametrize(
    ("write", "corpus", "classes", "count"),
    [(write_nnunet, "nnunet", ("liver", "tumor"), 8), (write_decathlon, "decathlon", ("lung", "cancer"), 7)],
)
def test_from_the_layout_to_a_batch_with_label_maps(tmp_path, capsys, write, corpus, classes, count):
    root, out = write(tmp_path / "data"), tmp_path / "out"
    command = ["prepare", "--corpus", corpus, "--root", str(root), "--out", str(out), "--workers", "1", *GRID]
    assert main(command) == 0
    info = open_shards(out)
    assert info.label_classes == classes
    assert sum(info.splits.values()) == count
    notes = [entry["notes"] for entry in read_manifest(out)]
    assert sum("label-map-missing" in each for each in notes) == 2  # the test images
    layout = Layout(("volume", "label_map"), DataSpec.of(info, None), settings())
    made = {labels(number).tobytes() for number in range(10)}
    for split, size in info.splits.items():
        records = open_split(info, split, fields=layout.reads)
        for index in range(size):
            sample = layout.sample(records[index], index)
            assert sample["label_map"].shape == sample["volume"].shape == (16, 20, 24)
            if (sample["label_map"] != 255).any():
                made.remove(np.ascontiguousarray(canonical(sample["label_map"])).tobytes())
    assert len(made) == 10 - (count - 2)
    records = open_split(info, "train", fields=layout.reads)
    batch = next(train_batches(records, layout, seed=1, batch_size=2))
    assert batch["label_map"].shape == (2, 16, 20, 24)
    assert batch["label_map"].dtype == np.uint8
    assert batch.keys() == {"volume", "label_map", "study", "sample"}
    assert main(["inspect", str(out), "--out", str(tmp_path / "sheet.html")]) == 0
    page = (tmp_path / "sheet.html").read_text()
    assert all(f"<title>{name}</title></path>" in page for name in classes)
    said = capsys.readouterr()
    assert "a patient of its own" in said.err
    assert classes[0] in said.out


def test_label_maps_can_be_left_out(tmp_path):
    root, out = write_nnunet(tmp_path / "data", count=2, tests=1), tmp_path / "out"
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
    assert main([*command, "--label-maps", "none"]) == 0
    info = open_shards(out)
    assert "label_map" not in info.schema.arrays
    assert info.label_classes == ()


def test_version_1_and_lists_of_files_are_understood(tmp_path):
    write_nnunet(tmp_path, count=3, tests=1)
    rewrite(
        tmp_path,
        channel_names=None,
        modality={"0": "CT"},
        labels={"0": "background", "1": "liver", "2": "tumor"},
        training=[{"image": "./imagesTr/liver_000.nii.gz", "label": "./labelsTr/liver_000.nii.gz"}],
    )
    table = nnunet(tmp_path)
    assert [study.label_map is not None for study in table] == [True, True, True, False]
    assert table.studies[0].label_map.classes == {1: "liver", 2: "tumor"}
    listed = {
        "left": {"images": ["imagesTr/liver_000_0000.nii.gz"], "label": "labelsTr/liver_001.nii.gz"},
    }
    rewrite(tmp_path, dataset=listed)
    first = nnunet(tmp_path).studies[0]
    assert first.patient_id == "left"
    assert (first.path.name, first.label_map.path.name) == ("liver_000_0000.nii.gz", "liver_001.nii.gz")


def test_regions_and_ignored_voxels_of_nnunet(tmp_path):
    names = {"background": 0, "whole tumor": [1, 2, 3], "core": [2, 3], "enhancing": [3], "ignore": 4}
    write_nnunet(tmp_path, count=1, tests=0, labels=names, regions_class_order=[1, 2, 3])
    found = nnunet(tmp_path).studies[0].label_map
    assert found.classes == {1: "label 1", 2: "label 2", 3: "enhancing"}
    assert found.regions == {
        "whole tumor": ("label 1", "label 2", "enhancing"),
        "core": ("label 2", "enhancing"),
    }
    assert found.ignored == (4,)


def test_splits_are_those_of_the_first_fold(tmp_path):
    root = write_nnunet(tmp_path / "nnUNet_raw/Dataset001_Liver", count=5, tests=2)
    folds = [{"train": [f"liver_{n:03d}" for n in (0, 1, 2)], "val": ["liver_003", "liver_999"]}, {}]
    beside = tmp_path / "nnUNet_preprocessed/Dataset001_Liver/splits_final.json"
    beside.parent.mkdir(parents=True)
    beside.write_text(json.dumps(folds))
    table = nnunet(root)
    splits = {study.patient_id: study.split for study in table}
    assert splits["liver_000"] == splits["liver_004"] == "train"
    assert splits["liver_003"] == "validation"
    assert splits["liver_100"] == "test"
    assert table.unmatched["label maps"] == ((), ())
    said = " ".join(table.remarks)
    assert "fold 0 of 2" in said
    assert "1 row has no case (liver_999)" in said
    beside.write_text("[]")
    with pytest.raises(TableError, match="is no list of folds"):
        nnunet(root)


def test_what_has_no_partner_is_counted_and_kept(tmp_path):
    write_nnunet(tmp_path, count=4, tests=0)
    (tmp_path / "labelsTr/liver_001.nii.gz").unlink()
    (tmp_path / "labelsTr/liver_001.nii.gz").with_name("liver_777.nii.gz").write_bytes(b"x")
    table = nnunet(tmp_path)
    assert table.unmatched["label maps"] == (("liver_001",), ("liver_777",))
    assert len(table) == 4
    assert [study.label_map is None for study in table] == [False, True, False, False]
    rewrite(tmp_path, numTraining=9)
    assert any("says 9 training cases" in remark for remark in nnunet(tmp_path).remarks)


def test_test_cases_with_labels_and_names_of_training_cases(tmp_path):
    write_nnunet(tmp_path, count=2, tests=0)
    save(tmp_path / "imagesTs/liver_000_0000.nii.gz", body(50))
    save(tmp_path / "labelsTs/liver_000.nii.gz", labels(50))
    *_, last = nnunet(tmp_path)
    assert (last.split, last.patient_id) == ("test", "imagesTs/liver_000")
    assert last.label_map.path == tmp_path / "labelsTs/liver_000.nii.gz"


@pytest.mark.parametrize("name", ["ADC", "adc", "1"])
def test_one_of_several_channels_is_read(tmp_path, name):
    write_nnunet(tmp_path, count=2, tests=0, channel_names={"0": "T2", "1": "ADC"})
    with pytest.raises(TableError, match=r"2 channels \(0 T2, 1 ADC\): choose one with --channel"):
        nnunet(tmp_path)
    save(tmp_path / "imagesTr/liver_000_0001.nii.gz", body(1))
    table = nnunet(tmp_path, channel=name)
    assert [study.path.name for study in table] == ["liver_000_0001.nii.gz", "liver_001_0001.nii.gz"]
    assert {study.series[0].modality for study in table} == {"MR"}
    said = " ".join(table.remarks)
    assert "1 cases lack the channel ADC (liver_001)" in said
    assert "--modality MR" in said
    with pytest.raises(TableError, match=r"--channel FLAIR: the images have 0 T2, 1 ADC"):
        nnunet(tmp_path, channel="FLAIR")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channel_names": None}, "which channels the images have"),
        ({"channel_names": {"0": "PET"}}, "neither CT nor MR"),
        ({"labels": None}, "names no classes"),
        ({"labels": {"background": 0}}, "names no classes"),
        ({"labels": {"liver": "one"}}, "names no classes"),
        ({"file_ending": ".png"}, "images end in .png"),
        ({"dataset": {"a": {"image": "x"}}}, 'needs "images"'),
        ({"dataset": {"a": {"images": ["../../x.nii.gz"], "label": "y"}}}, "leads out of"),
    ],
)
def test_data_sets_that_cannot_be_understood_are_refused(tmp_path, changes, message):
    write_nnunet(tmp_path / "d", count=1, tests=0)
    rewrite(tmp_path / "d", **changes)
    with pytest.raises(TableError, match=message):
        nnunet(tmp_path / "d")


def test_wrong_folders_are_told(tmp_path):
    with pytest.raises(TableError, match="no folder"):
        nnunet(tmp_path / "none")
    write_nnunet(tmp_path / "Dataset001_A", count=1, tests=0)
    with pytest.raises(TableError, match=r"it stands in Dataset001_A: give --root one of these"):
        nnunet(tmp_path)
    with pytest.raises(TableError, match="take --corpus nnunet"):
        decathlon(tmp_path / "Dataset001_A")
    write_decathlon(tmp_path / "Task06_Lung", count=1)
    with pytest.raises(TableError, match="take --corpus decathlon"):
        nnunet(tmp_path / "Task06_Lung")
    (tmp_path / "Task06_Lung/dataset.json").write_text("{")
    with pytest.raises(TableError, match="is no JSON"):
        decathlon(tmp_path / "Task06_Lung")


def test_files_of_macos_are_passed_over(tmp_path):
    write_decathlon(tmp_path)
    written = json.loads((tmp_path / "dataset.json").read_text())
    hidden = {"image": "./imagesTr/._lung_000.nii.gz", "label": "./labelsTr/._lung_000.nii.gz"}
    rewrite(tmp_path, training=[*written["training"], hidden])
    table = decathlon(tmp_path)
    assert len(table) == 7
    assert table.unmatched == {"dataset.json": ((), ()), "label maps": ((), ())}


def test_images_that_are_not_listed_and_lists_without_images(tmp_path):
    write_decathlon(tmp_path)
    save(tmp_path / "imagesTr/extra.nii.gz", body(9))
    (tmp_path / "imagesTr/lung_001.nii.gz").unlink()
    (tmp_path / "labelsTr/lung_002.nii.gz").unlink()
    table = decathlon(tmp_path)
    assert table.unmatched["dataset.json"] == (("extra",), ("lung_001",))
    assert table.unmatched["label maps"] == (("lung_002",), ())
    assert len(table) == 7


def test_sequences_of_a_4d_image(tmp_path):
    write_decathlon(tmp_path / "task", count=4, tests=0)
    rewrite(tmp_path / "task", modality={"0": "FLAIR", "1": "T1w"})
    voxels = {}
    for path in sorted((tmp_path / "task/imagesTr").glob("lung_*")):
        both = np.stack([body(1) + 2000, body(2) + 3000], -1)
        voxels[path.name] = both
        nibabel.save(nibabel.Nifti1Image(both.astype(np.int16), AFFINE), path)
    with pytest.raises(TableError, match=r"2 channels \(0 FLAIR, 1 T1w\)"):
        decathlon(tmp_path / "task")
    out = tmp_path / "out"
    command = ["prepare", "--corpus", "decathlon", "--root", str(tmp_path / "task"), "--channel", "T1w"]
    command += ["--modality", "MR", "--out", str(out), "--workers", "1", *GRID]
    assert main(command) == 0
    info = open_shards(out)
    record = open_split(info, "train")[0]
    np.testing.assert_array_equal(record["volume"], canonical(voxels["lung_000.nii.gz"][..., 1]))
    assert record["label_map"].max() == 2


def test_a_channel_that_the_file_lacks_is_rejected(tmp_path):
    write_decathlon(tmp_path / "task", count=3, tests=0)
    rewrite(tmp_path / "task", modality={"0": "FLAIR", "1": "T1w"})
    both = np.stack([body(1) + 2000] * 2, -1)
    for name in ("lung_000", "lung_001"):
        nibabel.save(nibabel.Nifti1Image(both, AFFINE), tmp_path / f"task/imagesTr/{name}.nii.gz")
    out = tmp_path / "out"
    command = ["prepare", "--corpus", "decathlon", "--root", str(tmp_path / "task"), "--channel", "1"]
    command += ["--modality", "MR", "--out", str(out), "--workers", "1", "--max-rejected", "1", *GRID]
    main(command)
    assert [entry["reason"] for entry in read_manifest(out) if "reason" in entry] == ["no-such-channel"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corpus", "folder", "--table", "t.csv", "--channel", "1"], "has no --channel"),
        (["--corpus", "acdc", "--root", ".", "--label-maps", "organs"], "has frames"),
        (["--corpus", "cine", "--count", "1", "--label-maps", "corpus"], "has frames"),
        (["--corpus", "acdc", "--root", ".", "--masks", "."], "--masks is of volumes"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, capsys, arguments, message):
    assert main(["prepare", *arguments, "--out", str(tmp_path / "out")]) != 0
    assert message in capsys.readouterr().err
