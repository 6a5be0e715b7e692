"""Cine studies on disk: files, table, workers."""

import csv

import nibabel
import numpy as np
import pytest

from medclip_jax.corpora.cine import DIAGNOSES, FINDINGS, CineSettings, generate, write, writing

TINY = CineSettings(size=16, slices=2, phases=4, lge_slices=2)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write(tmp_path_factory.mktemp("cine"), 4, seed=6, settings=TINY)


def rows_of(table):
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_files_and_rows_hold_the_studies(table):
    rows = rows_of(table)
    assert len(rows) == 4 * len(TINY.series)
    for number, row in enumerate(rows):
        study = generate(6, number // 3, settings=TINY)
        assert row["series"] == TINY.series[number % 3]
        picture = study.series[row["series"]]
        image = nibabel.load(table.parent / row["path"])
        assert image.get_data_dtype() == np.int16
        np.testing.assert_array_equal(np.asarray(image.dataobj), picture.voxels)
        np.testing.assert_allclose(image.affine, picture.affine, atol=1e-4)
        spacing = np.linalg.norm(picture.affine[:3, :3], axis=0)
        np.testing.assert_allclose(image.header.get_zooms()[:3], spacing, rtol=1e-5)
        if row["series"].startswith("cine"):
            assert image.shape[3] == 4
            assert image.header.get_xyzt_units() == ("mm", "sec")
            assert image.header.get_zooms()[3] * 4 == pytest.approx(study.patient.heart.beat.seconds)
        else:
            assert image.ndim == 3
        assert (row["patient_id"], row["study_id"]) == (study.patient_id, study.study_id)
        assert row["impression"] == study.impression
        assert row["split"] in ("train", "validation", "test")
        names = (*FINDINGS, *DIAGNOSES)
        assert [int(row[f"label:{name}"]) for name in names] == [study.labels[name] for name in names]
        for name, value in study.measurements.items():
            assert float(row[f"measurement:{name}"]) == pytest.approx(value, rel=1e-4)


def test_workers_write_the_same_bytes(table, tmp_path):
    other = write(tmp_path, 4, seed=6, settings=TINY, workers=2)
    assert other.read_text() == table.read_text()
    for row in rows_of(table):
        assert (tmp_path / row["path"]).read_bytes() == (table.parent / row["path"]).read_bytes()


def test_a_set_continues_where_another_ended(table, tmp_path):
    later = rows_of(write(tmp_path, 2, seed=6, settings=TINY, start=2))
    assert later == rows_of(table)[6:]


def test_what_is_there_is_not_made_again(tmp_path, monkeypatch):
    made = []
    original = writing._write_one
    monkeypatch.setattr(writing, "_write_one", lambda task: made.append(task[2]) or original(task))
    table = write(tmp_path, 2, seed=6, settings=TINY)
    write(tmp_path, 2, seed=6, settings=TINY)
    assert made == [0, 1]
    next((tmp_path / "series").iterdir()).unlink()
    assert write(tmp_path, 2, seed=6, settings=TINY) == table
    assert made == [0, 1, 0, 1]
    write(tmp_path, 3, seed=6, settings=TINY)
    assert len(made) == 7


def test_count_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        write(tmp_path, 0)
