"""Phantoms on disk: files, table, splits, workers; read back by the folder corpus."""

import csv
import json
import os
import shutil

import nibabel
import numpy as np
import pytest

from medclip_jax.corpora.folder import folder as read_folder
from medclip_jax.corpora.generated_set import split_of
from medclip_jax.corpora.phantom import (
    FINDINGS,
    ORGAN_CLASSES,
    PhantomSettings,
    generate,
    write,
    writing,
)

COARSE = PhantomSettings(in_plane_mm=(6.0, 6.0), slice_mm=(9.0,))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write(tmp_path_factory.mktemp("phantoms"), 5, seed=6, settings=COARSE)


def test_files_hold_the_phantoms(table):
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5
    classes = json.loads((table.parent / "organ_classes.json").read_text())
    assert {int(value): name for value, name in classes.items()} == ORGAN_CLASSES
    for index, row in enumerate(rows):
        phantom = generate(6, index, settings=COARSE)
        image = nibabel.load(table.parent / row["volume"])
        assert image.get_data_dtype() == np.int16
        np.testing.assert_array_equal(np.asarray(image.dataobj), phantom.voxels)
        np.testing.assert_allclose(image.affine, phantom.affine, atol=1e-4)
        organs = nibabel.load(table.parent / row["organs"])
        np.testing.assert_array_equal(np.asarray(organs.dataobj), phantom.organs)
        assert row["report"] == phantom.report
        assert [int(row[f"label:{name}"]) for name in FINDINGS] == [phantom.labels[n] for n in FINDINGS]


def test_folder_corpus_reads_the_table(table):
    studies = list(read_folder(table))
    assert len(studies) == 5
    for index, study in enumerate(studies):
        phantom = generate(6, index, settings=COARSE)
        assert study.patient_id == phantom.patient_id
        assert study.report == phantom.report
        assert {name: study.labels[name] for name in FINDINGS} == dict(phantom.labels)
        assert study.measurements["agatston_score"] == pytest.approx(
            phantom.measurements["agatston_score"], rel=1e-4
        )
        assert dict(study.organ_classes) == ORGAN_CLASSES
        assert study.split in ("train", "validation", "test")


def test_splits_never_cut_through_a_patient_and_have_their_shares():
    splits = [split_of(0, f"p{number:06d}") for number in range(4000)]
    assert abs(splits.count("train") / 4000 - 0.7) < 0.03
    assert abs(splits.count("test") / 4000 - 0.15) < 0.03
    assert split_of(0, "p000001") == splits[1]


def test_workers_write_the_same_bytes(table, tmp_path):
    other = write(tmp_path, 5, seed=6, settings=COARSE, workers=2)
    assert other.read_text() == table.read_text()
    for path in sorted((table.parent / "volumes").iterdir()):
        np.testing.assert_array_equal(
            np.asarray(nibabel.load(path).dataobj),
            np.asarray(nibabel.load(tmp_path / "volumes" / path.name).dataobj),
        )


def test_the_same_phantoms_are_generated_once(table, tmp_path, monkeypatch):
    folder = tmp_path / "phantoms"
    shutil.copytree(table.parent, folder)
    made = []
    monkeypatch.setattr(
        writing, "_write_one", lambda task: made.append(task[2]) or dict.fromkeys(["volume", "organs"], "x")
    )
    before = (folder / "studies.csv").read_bytes()
    assert write(folder, 5, seed=6, settings=COARSE).read_bytes() == before
    assert made == []
    next((folder / "volumes").iterdir()).unlink()
    write(folder, 5, seed=6, settings=COARSE)
    assert made == [0, 1, 2, 3, 4]
    write(folder, 5, seed=7, settings=COARSE)
    assert len(made) == 10


def test_the_table_appears_last_and_whole(table, tmp_path, monkeypatch):
    """Whoever sees `studies.csv` sees all of it, and every file that it names."""
    folder = tmp_path / "phantoms"
    shutil.copytree(table.parent, folder)

    def broken(task):
        assert not (folder / "studies.csv").exists()  # nor the table of the phantoms that are replaced
        if task[2] == 1:
            raise KeyboardInterrupt
        return original(task)

    original = writing._write_one
    with monkeypatch.context() as patch:
        patch.setattr(writing, "_write_one", broken)
        with pytest.raises(KeyboardInterrupt):
            write(folder, 2, seed=8, settings=COARSE)
    assert not (folder / "studies.csv").exists()
    with monkeypatch.context() as patch:
        patch.setattr(writing, "_write_one", lambda task: {"volume": "x", "organs": "x"})
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(OSError, match="No space left"):
            write(folder, 2, seed=8, settings=COARSE)
    assert not (folder / "studies.csv").exists()


def test_count_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        write(tmp_path, 0)
