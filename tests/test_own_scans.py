"""The README's "Your own scans": its table, and its commands as they stand there, on three small scans."""

import csv
import json
import re
import shlex
from pathlib import Path

import pytest
from made_scans import chest, lps_stack, write_nifti, write_slices

from medclip_jax.cli.main import main
from medclip_jax.training.status import read_status

README = (Path(__file__).parents[1] / "README.md").read_text()
SECTION = re.search(r"^## Your own scans.*?(?=^## )", README, re.MULTILINE | re.DOTALL)[0]
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"^ *```sh\n(.*?)^ *```$", SECTION, re.MULTILINE | re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
]


def table():
    """Header and rows of the README's table."""
    rows = re.findall(r"^ *\|(.+)\|$", SECTION, re.MULTILINE)
    header, _, *rows = ([cell.strip() for cell in row.split("|")] for row in rows)
    return header, rows


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A user's folder: the table's two rows and one more, each with its scan."""
    folder = tmp_path_factory.mktemp("own")
    header, rows = table()
    assert len(rows) == 2
    rows.append(["scans/0003.nii.gz", "p3", "s3", "FINDINGS: There is a pericardial effusion."])
    with (folder / "studies.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    for seed, (volume, *_) in enumerate(rows):
        path = folder / volume
        path.parent.mkdir(exist_ok=True)
        if path.suffix:
            write_nifti(path, chest(seed=seed))
        else:
            write_slices(path, lps_stack(chest(seed=seed)))
    return folder


@pytest.mark.slow
def test_every_command_as_it_stands_there(desk, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    kinds = [words[1] for words in COMMANDS]
    assert kinds == (
        ["verify", "prepare", "inspect", "check", "train", "train", "evaluate", "evaluate", "embed", "export"]
    )
    for words in COMMANDS:
        assert words[0] == "medclip"
        assert main(words[1:]) == 0, words
    printed = capsys.readouterr().out
    assert "VERDICT  fits" in printed
    splits = json.loads((desk / "shards/prepare.json").read_text())["splits"]
    assert splits == {"train": 1, "validation": 1, "test": 1}
    for name in ("mae", "clip"):
        status = read_status(desk / "runs" / name)
        assert status.state == "finished"
        assert status.step == status.steps > 1
    assert (desk / "verify.html").exists()
    assert (desk / "sheet.html").exists()
    assert (desk / "evaluation.html").exists()
    assert (desk / "clip-for-torch/model.safetensors").exists()
    # Given again, they resume where they stopped: nothing is left to do.
    assert main(COMMANDS[kinds.index("train")][1:]) == 0


def test_the_commands_that_the_pages_show_parse():
    """No page names a config that is not there."""
    for page in (README, *(path.read_text() for path in (Path(__file__).parents[1] / "docs").rglob("*.md"))):
        for name in re.findall(r"--config (configs/[\w/]+\.py)", page):
            assert (Path(__file__).parents[1] / name).is_file(), name
