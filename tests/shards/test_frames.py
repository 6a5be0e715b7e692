"""Studies of several series of frames: one record each, with how many slices and phases every series has."""

import json
from dataclasses import asdict, replace

import blosc2
import numpy as np
import pytest

from medclip_jax.cli.main import main
from medclip_jax.corpora.study import Series, Study
from medclip_jax.shards.manifest import read_manifest
from medclip_jax.shards.merge import merge
from medclip_jax.shards.parts import Part
from medclip_jax.shards.prepare import prepare, prepare_part
from medclip_jax.shards.read import open_shards, open_split
from medclip_jax.shards.record import ShardError
from medclip_jax.shards.series import SeriesSettings
from medclip_jax.shards.settings import PrepareSettings, resolve
from medclip_jax.volumes.frames import fit_frames, read_frames
from tests.made_frames import beating, write_nifti
from tests.shards.small_set import QUIET

CINE = SeriesSettings("cine_sa", (None, 24, 20), (None, 2.5, 2.5), "MR", (1.0, 99.0), False, "middle")
SCAR = replace(CINE, name="lge_sa", frames="all")
SETTINGS = PrepareSettings(
    series=(CINE, SCAR),
    findings=("pericardial_effusion",),
    vocabulary_size=200,
    fractions=(1.0, 0.0, 0.0),
    per_shard=1,
)


@pytest.fixture
def studies(tmp_path) -> list[Study]:
    """Three patients, of 8, 9 and 10 phases; the last has no late enhancement."""
    found = []
    for index in range(3):
        cine = write_nifti(tmp_path / f"cine{index}.nii.gz", beating(phases=8 + index, seed=index))
        series = [Series(cine, "cine_sa", "MR")]
        if index < 2:
            stack = beating(slices=4 + index, phases=1, seed=9 + index)[:, 0]
            series.append(Series(write_nifti(tmp_path / f"lge{index}.nii.gz", stack), "lge_sa", "MR"))
        found.append(Study(tuple(series), f"r{index}", f"s{index}", f"p{index}", f"No scar. Case {index}."))
    return found


def test_a_record_holds_frames_and_says_how_many(studies, tmp_path, capsys):
    info = prepare(studies, tmp_path / "set", SETTINGS, **QUIET)
    assert (info.shape, info.series) == ((), (CINE, SCAR))
    assert open_shards(info.folder).series == info.series
    samples = {
        len(sample["cine_sa"]): sample for sample in map(open_split(info, "train").__getitem__, range(3))
    }
    assert sorted(samples) == [8, 9, 10]
    for index in range(3):
        sample = samples[8 + index]
        expected = read_frames(studies[index].path, percentiles=(1, 99)).middle()
        np.testing.assert_array_equal(
            sample["cine_sa"], fit_frames(expected, (24, 20), (2.5, 2.5))[0].voxels[0]
        )
        assert (sample["cine_sa"].dtype, sample["cine_sa_frames"].dtype) == (np.int16, np.int32)
        assert sample["cine_sa_frames"].tolist() == [1, 8 + index]
        np.testing.assert_allclose(sample["cine_sa_spacing"], (8, 2.5, 2.5), rtol=1e-5)
        assert ("lge_sa" in sample) == ("lge_sa_frames" in sample) == (index < 2)
    assert samples[9]["lge_sa"].shape == (5, 24, 20)
    assert samples[9]["lge_sa_frames"].tolist() == [5, 1]
    notes = {entry["row"]: entry["notes"] for entry in read_manifest(info.folder)}
    assert notes == {1: [], 2: [], 3: ["series-missing:lge_sa"]}

    assert main(["inspect", str(info.folder), "--count", "3"]) == 0
    said = capsys.readouterr().out
    assert "cine_sa, 1 slices × 8–10 phases of 24×20 voxels, 8×2.5×2.5 mm" in said
    assert "lge_sa, 4–5 slices × 1 phases of 24×20 voxels" in said
    page = (tmp_path / "set.html").read_text()
    assert page.count(">phase 1<") == 3
    assert page.count("cine_sa, 9 phases of slice 1<") == 1
    assert page.count(">slice 5<") == 1


def test_all_phases_of_a_slice_stand_together(studies, tmp_path):
    settings = replace(SETTINGS, series=(replace(CINE, frames="all"),))
    info = prepare(studies[:1], tmp_path / "set", settings, **QUIET)
    sample = open_split(info, "train")[0]
    assert sample["cine_sa_frames"].tolist() == [5, 8]
    pictures = sample["cine_sa"].reshape(5, 8, 24, 20)
    # The spot in the corner grows from slice to slice; the pool is smallest in the middle of the phases.
    spots = (pictures[:, :, 2:6, :10] > 3500).sum(axis=(2, 3))
    assert (np.diff(spots.min(axis=1)) >= 0).all()
    assert spots[4].min() > spots[0].max()
    pools = (pictures[:, :, 8:] > 2000).sum(axis=(2, 3))
    assert (pools[:, [3, 4]].max(axis=1) < pools[:, [0, 7]].min(axis=1)).all()
    notes = [note for entry in read_manifest(info.folder) for note in entry["notes"]]
    assert notes == ["series-left-out:lge_sa"]


def test_parts_a_merge_and_a_second_call_make_the_same(studies, tmp_path):
    info = prepare(studies, tmp_path / "set", SETTINGS, **QUIET)
    for index in (1, 2):
        prepare_part(Part(index, 2), studies, tmp_path / "parts", SETTINGS, **QUIET)
    merge(tmp_path / "parts")
    for path in info.folder.iterdir():
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes()
    assert prepare(studies, tmp_path / "set", SETTINGS, **QUIET) == info
    other = replace(SETTINGS, series=(replace(CINE, frames="all"), SCAR))
    with pytest.raises(ShardError, match="made from"):
        prepare(studies, tmp_path / "set", other, **QUIET)


def test_tfds_reads_records_that_lack_a_series(studies, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    info = prepare(studies, tmp_path / "set", SETTINGS, **QUIET)
    source = tfds.builder_from_directory(info.folder).as_data_source("train")
    for index in range(3):
        ours, theirs = open_split(info, "train")[index], source[index]
        cine = np.frombuffer(blosc2.decompress2(theirs["cine_sa"]), np.int16)
        np.testing.assert_array_equal(cine.reshape(theirs["cine_sa_shape"]), ours["cine_sa"])
        assert theirs["cine_sa_frames"].tolist() == ours["cine_sa_frames"].tolist()
        assert (len(theirs["lge_sa"]) > 0) == ("lge_sa" in ours)


def test_a_bad_series_is_rejected_by_name(studies, tmp_path):
    still = beating()
    still[:] = still[:, :1]
    write_nifti(studies[1].path, still)
    info = prepare(studies, tmp_path / "set", SETTINGS, **QUIET, max_rejected=0.5)
    (entry,) = [entry for entry in read_manifest(info.folder) if entry["row"] == 2]
    assert entry["reason"] == "still-image"
    assert entry["message"].startswith("Series 'cine_sa': All 8 phases show the same picture")


def test_a_single_phase_of_a_cine_is_noted(studies, tmp_path):
    write_nifti(studies[0].path, beating(phases=1))
    info = prepare(studies, tmp_path / "set", SETTINGS, **QUIET)
    notes = {entry["row"]: entry["notes"] for entry in read_manifest(info.folder)}
    assert (notes[1], notes[2]) == (["one-phase:cine_sa"], [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": "first"}, "none of all, middle"),
        ({"shape": (5, 24, 20), "spacing": (8.0, 2.5, 2.5)}, r"give \(None, rows, columns\)"),
        ({"spacing": (None, None, 2.5)}, r"give \(None, rows, columns\)"),
        ({"modality": "CT", "percentiles": None}, "leave frames out"),
    ],
)
def test_settings_that_make_no_sense(studies, change, message):
    with pytest.raises(ShardError, match=message):
        resolve(PrepareSettings(series=(replace(CINE, **change),)), studies)
    with pytest.raises(ShardError, match="Leave --crop out"):
        resolve(replace(SETTINGS, crop="box"), studies)


def test_settings_of_frames_and_of_volumes_come_back_from_json(studies):
    settings = resolve(SETTINGS, studies)
    written = json.loads(json.dumps(settings.to_json()))
    assert PrepareSettings.from_json(written) == settings
    # Sets of volumes say nothing of frames, as they always have.
    volume = replace(CINE, frames="")
    assert list(volume.to_json()) == [name for name in asdict(volume) if name != "frames"]
