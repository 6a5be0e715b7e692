"""Models of frames in use: studies by folder, table and mapping; prepared as the shards were."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import medclip_jax
from medclip_jax.cli.main import main
from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.inference.studies import find_studies, series_in
from medclip_jax.shards.read import open_split
from medclip_jax.volumes import VolumeRejected
from tests.frame_run import SIZE, STUDIES, make_run
from tests.made_frames import beating, write_nifti

NAMES = ("cine_sa", "lge_sa")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("frames")
    make_run(folder)
    return folder


@pytest.fixture(scope="module")
def model(run):
    return medclip_jax.load(run / "workdir", progress=False)


def test_a_study_is_prepared_as_its_record_was(run, model):
    records = open_split(run / "shards", "test")
    prepared = [model.prepare_study(run / "studies" / str(index)) for index in range(STUDIES)]
    for index in range(len(records)):
        inputs = model.embedder.inputs(records[index], index)
        same = [all(np.array_equal(inputs[name], one[name]) for name in inputs) for one in prepared]
        assert sum(same) == 1
    assert prepared[1]["view"].tolist() == [0] * 7 + [1]  # of 18 frames of cine and 4 of scar
    assert prepared[0]["view"].tolist() == [0] * 8


def test_folder_mapping_and_table_are_one_study(run, model, tmp_path):
    place = run / "studies" / "1"
    expected = model.embed_volumes(place)
    assert expected.shape == (1, 16)
    files = {name: place / f"{name}.nii.gz" for name in NAMES}
    both = model.embed_volumes([files, str(place)])
    np.testing.assert_allclose(both, expected.repeat(2, axis=0), atol=1e-6)
    for file, name in zip(files.values(), ("a.nii.gz", "b.nii.gz"), strict=True):
        shutil.copy(file, tmp_path / name)
    (tmp_path / "series.csv").write_text("series,path\nCine SA,a.nii.gz\nlge_sa,b.nii.gz\nscout,c.nii\n")
    np.testing.assert_allclose(model.embed_volumes(tmp_path), expected, atol=1e-6)
    assert not np.allclose(model.embed_volumes({"cine_sa": files["cine_sa"]}), expected, atol=1e-4)
    found = model.zero_shot(place, ["pericardial_effusion"])
    assert 0 < found["pericardial_effusion"] < 1
    assert model.retrieve("Effusion.", [place, run / "studies" / "0"])[0].index in (0, 1)
    assert "8 frames of cine_sa, lge_sa: 16 x 16 pixels of 3.75 x 3.75 mm" in repr(model)


def test_what_is_no_study(run, model, tmp_path):
    with pytest.raises(VolumeRejected, match="none of the series that the model looks at"):
        model.embed_volumes(tmp_path)
    with pytest.raises(VolumeRejected, match="no such folder"):
        model.embed_volumes(tmp_path / "away")
    with pytest.raises(VolumeRejected, match=r"Series 'cine_sa': There is no such file"):
        model.embed_volumes({"cine_sa": tmp_path / "away.nii"})
    with pytest.raises(TypeError, match="a mapping of series to paths"):
        model.embed_volumes([3])
    with pytest.raises(ValueError, match="give no center"):
        model.embed_volumes(tmp_path, center=(0, 0, 0))
    with pytest.raises(NotEvaluable, match="call prepare_study"):
        model.prepare(tmp_path)
    with pytest.raises(NotEvaluable, match="call prepare_study"):
        model.explain(run / "studies" / "1", "Effusion.")


def test_series_are_found_by_name(tmp_path):
    (tmp_path / "LGE-SA").mkdir()
    for name in ("cine_sa.nii.gz", "localizer.nii", "lge_2ch.npy", "notes.txt", "lge_sa"):
        (tmp_path / name).touch()
    found = {series.name: series.path.name for series in series_in(tmp_path, (*NAMES, "lge_2ch"))}
    assert found == {"cine_sa": "cine_sa.nii.gz", "lge_sa": "LGE-SA", "lge_2ch": "lge_2ch.npy"}
    (tmp_path / "cine_sa.nii").touch()
    with pytest.raises(ValueError, match=r"cine_sa\.nii and cine_sa\.nii\.gz, and both are cine_sa"):
        series_in(tmp_path, NAMES)


def test_studies_are_found_in_folders_patterns_and_lists(run, tmp_path):
    below = find_studies([str(run / "studies")], names=NAMES)
    assert {Path(entry.scan).name for entry in below} == {str(index) for index in range(STUDIES)}
    assert [series.name for series in below[1].path] == list(NAMES)
    assert find_studies([str(run / "studies" / "*")], names=NAMES) == below
    table = find_studies(list_file=run / "studies.csv", names=NAMES)
    assert [entry.scan for entry in table] == [f"P{index}/S{index}" for index in range(STUDIES)]
    assert {entry.path for entry in table} == {entry.path for entry in below}
    (tmp_path / "list.txt").write_text("studies/3\n# not this\nstudies/away\n")
    listed = find_studies(list_file=tmp_path / "list.txt", root=run, names=NAMES)
    assert [(entry.scan, len(entry.path)) for entry in listed] == [("studies/3", 1), ("studies/away", 0)]
    with pytest.raises(ValueError, match="is a file, and this model reads studies"):
        find_studies([str(run / "studies/0/cine_sa.nii.gz")], names=NAMES)
    with pytest.raises(FileNotFoundError, match="holds no study"):
        find_studies([str(run / "shards")], names=NAMES)


def test_embed_writes_studies_and_names_what_fails(run, model, tmp_path, capsys):
    shutil.copytree(run / "studies", tmp_path / "studies")
    (tmp_path / "studies/3/cine_sa.nii.gz").write_bytes(b"damaged")
    out = tmp_path / "vectors.parquet"
    words = ["embed", str(run / "workdir"), str(tmp_path / "studies"), "--out", str(out), "--workers", "1"]
    assert main(words) == 1
    assert "studies/3: Series 'cine_sa': " in capsys.readouterr().err
    table = pq.read_table(out).to_pydict()
    assert len(table["scan"]) == STUDIES - 1
    assert table["notes"][0] == "series-missing:lge_sa"
    place = table["scan"].index(str(tmp_path / "studies/1"))
    expected = model.embed_volumes(run / "studies" / "1")[0]
    np.testing.assert_allclose(table["embedding"][place], expected, atol=1e-6)
    # Once it is put right, only that study is embedded.
    shutil.copy(run / "studies/3/cine_sa.nii.gz", tmp_path / "studies/3/cine_sa.nii.gz")
    assert main(words) == 0
    assert f"{STUDIES - 1} of {STUDIES} scans were embedded before" in capsys.readouterr().out
    assert main([*words, "--kernel", "soft"]) == 2
    assert "--kernel is of scans" in capsys.readouterr().err


def test_evaluation_on_a_set_that_lacks_a_series(run, tmp_path, capsys):
    for name, other in (("cine_sa", tmp_path / "cine"), ("lge_2ch", tmp_path / "other")):
        rows = []
        for index in range(3):
            path = write_nifti(tmp_path / f"{name}{index}.nii", beating(slices=2, phases=4, seed=index))
            labels = {"label:pericardial_effusion": str(1 - 2 * (index % 2))}
            ids = {"study": f"S{index}", "series": name, "path": path.name}
            rows.append({**ids, "report": f"Case {index}.", "split": "test", **labels})
        with open(tmp_path / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        words = ["prepare", "--corpus", "cmr", "--table", str(tmp_path / f"{name}.csv"), "--out", str(other)]
        assert main([*words, *SIZE, "--findings", "pericardial_effusion", "--workers", "1"]) == 0
    evaluate = ["evaluate", "--workdir", str(run / "workdir"), "--split", "test", "--evaluators", "zero_shot"]
    evaluate += ["--set", "zero_shot.draws=0"]
    assert main([*evaluate, "--shards", str(tmp_path / "cine")]) == 0
    assert "n: 3 volumes" in capsys.readouterr().out
    assert main([*evaluate, "--shards", str(tmp_path / "other")]) == 2
    assert "none of the series that the model looks at (cine_sa, lge_sa); it has lge_2ch" in (
        capsys.readouterr().err
    )


def test_an_exported_model_prepares_studies_alike(run, model, tmp_path):
    assert main(["export", "--workdir", str(run / "workdir"), "--out", str(tmp_path / "out")]) == 0
    exported = medclip_jax.load(tmp_path / "out", progress=False)
    assert exported.series == model.series
    assert exported.volume_kind == model.volume_kind
    place = run / "studies" / "1"
    np.testing.assert_allclose(exported.embed_volumes(place), model.embed_volumes(place), atol=1e-6)
