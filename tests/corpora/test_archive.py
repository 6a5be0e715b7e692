"""Files below a root, and tables told apart by their columns."""

import os

import pytest

from medclip_jax.corpora.archive import find_tables, list_files, read_rows
from medclip_jax.corpora.tables import TableError


def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_files_are_listed_once(tmp_path):
    for name in ("b.txt", "a/c.txt", "a/d/e.txt", ".cache/f.txt", "a/.hidden"):
        write(tmp_path / "root" / name)
    write(tmp_path / "elsewhere/g.txt")
    os.symlink(tmp_path / "elsewhere", tmp_path / "root/link")
    os.symlink(tmp_path / "root", tmp_path / "root/a/loop")
    os.symlink(tmp_path / "elsewhere", tmp_path / "root/again")
    os.symlink(tmp_path / "nowhere", tmp_path / "root/broken.nii.gz")
    found = list_files(tmp_path / "root")
    assert [path for path in found if "g.txt" not in path] == [
        "a/c.txt",
        "a/d/e.txt",
        "b.txt",
        "broken.nii.gz",  # it counts as a volume, and is missing when it is read
    ]
    assert sum("g.txt" in path for path in found) == 1


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    write(tmp_path / "closed/a.txt")
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(TableError, match=r"cannot be listed \(Permission denied\)"):
        list_files(tmp_path)


def test_tables_are_known_by_their_first_line(tmp_path):
    write(tmp_path / "a.csv", "VolumeName,Findings EN\n1,x\n")
    write(tmp_path / "b.tsv", "Volume-Name\tFindings_EN\n")
    write(tmp_path / "c.CSV", "\ufeffVolumeName;x\n")
    (tmp_path / "d.csv").write_bytes("VolumeName,y\n".encode("utf-16"))
    write(tmp_path / "e.csv")
    write(tmp_path / "f.txt", "VolumeName,z\n")
    tables = find_tables(tmp_path, list_files(tmp_path))
    assert {table.path: table.columns for table in tables} == {
        "a.csv": {"volumename", "findings_en"},
        "b.tsv": {"volume_name", "findings_en"},
        "c.CSV": {"volumename", "x"},
        "d.csv": {"volumename", "y"},
        "e.csv": set(),
    }


def test_the_first_row_of_an_id_counts(tmp_path):
    write(tmp_path / "a.csv", "id,text\nx.nii.gz,first\ny,NaN\nx,second\n")
    write(tmp_path / "b.csv", "text;id\nfirst;x\n")
    rows = read_rows(
        tmp_path,
        find_tables(tmp_path, ["a.csv", "b.csv"]),
        "reports",
        key="id",
        columns=("text", "other"),
        spell=lambda name: name.removesuffix(".nii.gz"),
    )
    assert rows.cells == {"x": {"text": "first", "other": ""}, "y": {"text": "", "other": ""}}
    assert rows.remarks == (
        "reports: 1 rows of 'a.csv' stand there before",
        "reports: 1 rows of 'b.csv' stand there before",
        "reports: 1 of these rows differ from the first one, which is used (x): see which one is right, and "
        "take the other out",
    )


def test_a_row_without_an_id(tmp_path):
    write(tmp_path / "a.csv", "id,text\nx,1\n,2\n")
    with pytest.raises(TableError, match=r"row 2 of '.*' has no id: fill it in"):
        read_rows(tmp_path, find_tables(tmp_path, ["a.csv"]), "r", key="id", columns=(), spell=str)
