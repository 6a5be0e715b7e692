"""Which scans a command line means."""

import os
from pathlib import Path

import pytest
from made_scans import chest, write_slices

from medclip_jax.inference.scans import Entry, find_scans


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Empty files with the names of scans, and two DICOM series."""
    for name in ("b.nii.gz", "a.NRRD", "c/d.mha", "c/e.mhd", "c/e.raw", "readme.txt", ".hidden.nii"):
        (tmp_path / "top" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "top" / name).write_bytes(b"")
    for name in ("one", "two"):
        write_slices(tmp_path / "top/p1" / name, chest((2, 6, 6)))
    (tmp_path / "top/p1/DICOMDIR").write_bytes(bytes(128) + b"DICM")
    monkeypatch.chdir(tmp_path)
    return tmp_path


ALL = ["top/a.NRRD", "top/b.nii.gz", "top/c/d.mha", "top/c/e.mhd", "top/p1/one", "top/p1/two"]


def names(*arguments, **options):
    return [entry.scan for entry in find_scans(arguments, **options)]


def test_a_folder_is_searched(folder):
    assert names("top") == ALL
    assert [entry.path for entry in find_scans(["top"])] == list(map(Path, ALL))


def test_a_dicom_folder_is_one_scan(folder):
    assert names("top/p1/one") == ["top/p1/one"]
    assert names("top/p1") == ["top/p1/one", "top/p1/two"]


def test_a_series_with_folders_below(folder):
    """As `read_volume` reads it: the largest series of all that lies there."""
    write_slices(folder / "top/p1/one/deeper", chest((2, 6, 6)))
    (folder / "top/p1/one/mask.nii").write_bytes(b"")
    assert names("top/p1") == ["top/p1/one/mask.nii", "top/p1/one", "top/p1/two"]
    with pytest.raises(ValueError, match="one holds DICOM files itself and in top/p1/one/deeper"):
        names("top/p1/one")


def test_files_stand_as_they_are(folder):
    assert names("top/c/e.raw", "gone.nii", "top/b.nii.gz") == ["top/c/e.raw", "gone.nii", "top/b.nii.gz"]


def test_patterns(folder):
    assert names("top/**/*.m*") == ["top/c/d.mha", "top/c/e.mhd"]
    assert names("top/p1/*") == ["top/p1/DICOMDIR", "top/p1/one", "top/p1/two"]
    assert names("top/?") == ["top/c/d.mha", "top/c/e.mhd"]
    (folder / "top/[1].nii").write_bytes(b"")
    assert names("top/[1].nii") == ["top/[1].nii"]
    with pytest.raises(FileNotFoundError, match=r"no file matches top/\*\.img"):
        names("top/*.img")


def test_each_once_in_the_order_given(folder):
    assert names("top/b.nii.gz", "top") == ["top/b.nii.gz", *(name for name in ALL if name != "top/b.nii.gz")]


def test_links_in_a_circle(folder):
    os.symlink(folder / "top", folder / "top" / "c" / "again")
    assert names("top") == ALL


def test_an_empty_folder(folder):
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty holds no scan"):
        names("empty")


class TestLists:
    def test_text(self, folder):
        Path("top/list.txt").write_text("b.nii.gz\n\n# a comment\n  c/d.mha \nb.nii.gz\n")
        found = find_scans(list_file="top/list.txt")
        assert found == [Entry("b.nii.gz", Path("top/b.nii.gz")), Entry("c/d.mha", Path("top/c/d.mha"))]
        assert find_scans(list_file="top/list.txt", root=folder)[0].path == folder / "b.nii.gz"
        assert names("top/p1/one", list_file="top/list.txt") == ["top/p1/one", "b.nii.gz", "c/d.mha"]

    def test_a_table_of_studies(self, folder):
        Path("top/s.csv").write_text(
            'Volume,report,id\nb.nii.gz,"Heart normal,\nno effusion.",x1\nc/d.mha,"",\n', encoding="utf-8-sig"
        )
        found = find_scans(list_file="top/s.csv")
        assert [(entry.scan, entry.id, entry.center) for entry in found] == [
            ("b.nii.gz", "x1", None),
            ("c/d.mha", None, None),
        ]

    def test_centers(self, folder):
        Path("s.tsv").write_text(
            "volume\tcenter_x\tcenter_y\tcenter_z\na.nii\t1\t-2.5\t3e1\nb.nii\t\t\t\n", encoding="utf-8"
        )
        assert [entry.center for entry in find_scans(list_file="s.tsv")] == [(1.0, -2.5, 30.0), None]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("file_name,id\na.nii,1\n", "lacks the column volume; it has file_name, id"),
            ("volume,center_x\na.nii,1\n", "lacks center_y and center_z"),
            ("volume,center_x,center_y,center_z\na.nii,1,,2\n", "row 1 of .*three numbers"),
            ("volume,center_x,center_y,center_z\na.nii,1,nan,2\n", "row 1 of .*three numbers"),
            ("volume,id\n,1\n", "row 1 of .* names no volume"),
            ("volume\n\xe4.nii\n", "not UTF-8"),
            ("", "lacks the column volume; it has nothing"),
        ],
    )
    def test_mistakes(self, folder, text, message):
        Path("s.csv").write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=message):
            find_scans(list_file="s.csv")

    def test_no_list(self, folder):
        with pytest.raises(FileNotFoundError, match=r"no list gone\.txt"):
            find_scans(list_file="gone.txt")
        Path("s.txt").write_text("a.nii\n")
        with pytest.raises(FileNotFoundError, match="no folder nowhere"):
            find_scans(list_file="s.txt", root="nowhere")
