"""The snippets of docs/how-to/using.md and of the README, run as they stand there."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from made_scans import chest, lps_stack, write_nifti, write_slices

from medclip_jax.cli.main import main

ROOT = Path(__file__).parents[1]


def blocks(text):
    """(language, content) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def desk(tiny_run, tmp_path_factory):
    """A user's folder with what the pages name."""
    folder = tmp_path_factory.mktemp("desk")
    for model in ("runs/clip", "medclip-demo/contrastive"):
        shutil.copytree(tiny_run / "workdir", folder / model)
    scan = write_nifti(folder / "scan1.nii.gz", chest())
    shutil.copy(scan, folder / "scan.nii.gz")
    (folder / "damaged.nii.gz").write_bytes(scan.read_bytes()[:300])
    write_slices(folder / "scan2_dicom", lps_stack(chest(seed=1)))
    for i in range(3):
        (folder / "archive").mkdir(exist_ok=True)
        write_nifti(folder / "archive" / f"{i}.nii.gz", chest(seed=i))
    return folder


def test_using(desk, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    found, names = blocks((ROOT / "docs/how-to/using.md").read_text()), {}
    assert [language for language, _ in found].count("python") >= 8
    for language, content in found:
        if language == "python":
            exec(compile(content, "docs/how-to/using.md", "exec"), names)
        else:
            assert language == "sh"
            for line in content.splitlines():
                assert main(shlex.split(line)[1:]) == 0
    printed = capsys.readouterr().out
    assert "truncated-file - damaged.nii.gz: The gzip data end early: copy or download" in printed
    table = names["table"]
    assert table["scan"].to_pylist() == [f"archive/{i}.nii.gz" for i in range(3)]
    assert table.column_names[-2:] == ["cosine:There is emphysema.", "notes"]
    assert names["vectors"].shape == (3, 16)
    np.testing.assert_allclose(names["best"], table["cosine:There is emphysema."].to_numpy(), atol=1e-6)
    assert names["texts"].shape == (2, 16)
    assert names["found"].voxels.shape == names["model"].spec.shape


def test_readme(desk, monkeypatch):
    monkeypatch.chdir(desk)
    names = {}
    for language, content in blocks((ROOT / "README.md").read_text()):
        if language == "python":
            exec(compile(content, "README.md", "exec"), names)
    assert names["vector"].shape == (16,)
    assert np.linalg.norm(names["vector"]) == pytest.approx(1, abs=1e-5)
