"""RadGenome-ChestCT in the archive's layout: masks, sentences by region, questions."""

import numpy as np
import pytest

from medclip_jax.cli.main import main
from medclip_jax.corpora.rad_genome import rad_genome
from medclip_jax.corpora.tables import TableError
from medclip_jax.shards.read import open_shards, open_split
from tests.corpora.made_ct_rate import label_row, report_row, write_csv
from tests.corpora.tiny_training import train_step
from tests.volumes.made_scans import chest, write_nifti

NAMES = [f"train_{number}_a_1" for number in range(1, 9)] + ["valid_1_a_1"]
HEART = "The heart is enlarged."


def write_volume(root, name, seed=0):
    split, patient, scan, _ = name.split("_")
    folder = root / f"{split}_preprocessed" / f"{split}_{patient}" / f"{split}_{patient}{scan}"
    folder.mkdir(parents=True)
    return write_nifti(folder / f"{name}.nii.gz", chest((16, 32, 32), seed))


def write_masks(root, name, *regions, kind="region"):
    folder = root / f"{name.split('_')[0]}_{kind}_mask" / f"seg_{name}"
    folder.mkdir(parents=True)
    for place, region in enumerate(regions):
        mask = np.zeros((16, 32, 32), np.uint8)
        mask[4:12, 8:24, 4 + 8 * place : 12 + 8 * place] = 1
        write_nifti(folder / f"{region}.nii.gz", mask)


def sentences(name):
    rows = [("", f"{HEART} The lungs are clear in {name}."), ("heart", HEART)]
    rows += [("lung/left lung/left lung lower lobe", "The lower lobe is clear.")]
    return [{"Volumename": f"{name}.nii.gz", "Anatomy": path, "Sentence": text} for path, text in rows]


def archive(root, names=NAMES):
    for seed, name in enumerate(names):
        write_volume(root / "dataset", name, seed)
        write_masks(root / "dataset", name, "heart", "lung")
    tables = root / "dataset/radgenome_files"
    for split, long in {"train": "train", "valid": "validation"}.items():
        own = [name for name in names if name.startswith(split)]
        if not own:
            continue
        write_csv(tables / f"{long}_region_report.csv", [row for name in own for row in sentences(name)])
        asked = [{"Volumename": f"{name}.nii.gz", "Anatomy": "heart", "Abnormality": "x"} for name in own]
        for kind in ("abnormality", "location"):
            write_csv(tables / f"{long}_vqa_{kind}.csv", asked * 2)
        write_csv(tables / f"{long}_vqa_size.csv", [row | {"Size": "6x4 mm"} for row in asked])
        found = [{"Volumename": f"{name}.nii.gz", "Disorders": "y"} for name in own]
        write_csv(tables / f"{long}_case_disorders.csv", found)
    return root


def told(table, words):
    return next(remark for remark in table.remarks if words in remark)


def test_masks_sentences_and_questions_are_joined(tmp_path):
    table = rad_genome(archive(tmp_path))
    studies = {study.record_id: study for study in table}
    assert sorted(studies) == sorted(NAMES)
    first = studies["train_1_a_1"]
    assert sorted(first.organs) == ["heart", "lung"]
    assert first.sentences == {
        "heart": HEART,
        "lung/left lung/left lung lower lobe": "The lower lobe is clear.",
    }
    assert first.report == f"{HEART} The lungs are clear in train_1_a_1."
    assert [first.split, studies["valid_1_a_1"].split] == [None, "test"]
    counted = told(table, "counted, and not written")
    for words in ("18 questions on abnormality", "18 questions on location", "9 questions on size"):
        assert f"{words} of 9 volumes" in counted
    assert "9 disorders of cases of 9 volumes" in counted
    assert set(table.unmatched) >= {"region sentences", "region masks", "questions on location"}
    assert all(not any(sides) for sides in table.unmatched.values())


def test_from_the_archive_to_a_training_step(tmp_path):
    words = ["prepare", "--corpus", "rad_genome", "--root", str(archive(tmp_path / "rad"))]
    words += ["--out", str(tmp_path / "set"), "--shape", "16", "32", "32", "--workers", "1"]
    words += ["--spacing", "3", "2", "1.5", "--vocabulary-patients", "1", "--vocabulary-size", "200"]
    assert main([*words, "--organ-cell", "8", "--fractions", "1", "0", "0"]) == 0
    info = open_shards(tmp_path / "set")
    assert dict(info.splits) == {"train": 8, "test": 1}
    record = open_split(info, "test")[0]
    assert info.organs == ("heart", "lung")
    assert record["organs"].max() > 0
    assert record["organ_sentences"]["heart"]["text"] == HEART
    train_step(tmp_path / "set", tmp_path / "run")


def test_tables_of_ct_rate_beside_it(tmp_path):
    archive(tmp_path, NAMES[:2])
    write_csv(tmp_path / "train_reports.csv", [report_row(NAMES[0], "From CT-RATE.", "An impression.")])
    write_csv(tmp_path / "train_predicted_labels.csv", [label_row(NAMES[0], "Cardiomegaly")])
    table = rad_genome(tmp_path)
    first, second = table.studies
    assert first.sections == {"findings": "From CT-RATE.", "impression": "An impression."}
    assert first.labels["cardiomegaly"] == 1
    assert not second.labels
    assert second.report
    assert table.unmatched["reports"] == ((NAMES[1],), ())


def test_what_has_no_partner(tmp_path):
    archive(tmp_path, NAMES[:2])
    write_volume(tmp_path, "train_9_a_1")
    write_masks(tmp_path, "train_7_a_1", "heart")
    table = rad_genome(tmp_path)
    assert table.unmatched["region sentences"] == (("train_9_a_1",), ())
    assert table.unmatched["region masks"] == (("train_9_a_1",), ("train_7_a_1",))
    assert next(s for s in table if s.record_id == "train_9_a_1").notes == ("organs-not-found",)


def test_masks_of_two_kinds_and_other_volumes(tmp_path):
    archive(tmp_path, NAMES[:1])
    write_masks(tmp_path / "dataset", NAMES[0], "heart", "aorta", kind="anatomy")
    raw = tmp_path / "dataset/train/train_1/train_1_a"
    raw.mkdir(parents=True)
    write_nifti(raw / f"{NAMES[0]}.nii.gz", chest())
    table = rad_genome(tmp_path)
    (study,) = table
    assert "train_preprocessed" in study.path.as_posix()
    assert sorted(study.organs) == ["aorta", "heart", "lung"]
    assert "region_mask" in study.organs["heart"].as_posix()
    assert "1 volumes outside of *_preprocessed" in told(table, "outside")


def test_an_archive_that_cannot_be_used(tmp_path):
    with pytest.raises(TableError, match="no folder"):
        rad_genome(tmp_path / "nowhere")
    with pytest.raises(TableError, match="holds no volume such as"):
        rad_genome(tmp_path)
    write_volume(tmp_path, NAMES[0])
    with pytest.raises(TableError, match="no table of sentences by region"):
        rad_genome(tmp_path)
    write_csv(tmp_path / "a.csv", [{"Volumename": "", "Anatomy": "heart", "Sentence": "x"}])
    with pytest.raises(TableError, match="names no volume"):
        rad_genome(tmp_path)
