"""Which scans a command line means."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from made_scans import chest, dicom_header, lps_stack, write_enhanced, write_slices

from medclip_jax.inference.scans import Entry, Selection, find_scans
from medclip_jax.volumes import VolumeRejected, read_volume


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
    """Two folders that hold the same positions are two scans, whatever their UIDs say."""
    write_slices(folder / "top/p1/one/deeper", chest((2, 6, 6)))
    (folder / "top/p1/one/mask.nii").write_bytes(b"")
    found = ["top/p1/one/mask.nii", "top/p1/one", "top/p1/one/deeper"]
    assert names("top/p1") == [*found, "top/p1/two"]
    assert names("top/p1/one") == found
    upper = find_scans(["top/p1/one"])[1]
    assert {file.parent for file in upper.path} == {Path("top/p1/one")}


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


class TestSeries:
    """One series is one scan, whatever the folders; patients are never merged."""

    def write(self, place, seed=0, *, names=slice(None), **tags):
        shape = (6, 20, 22)
        files = write_slices(place, lps_stack(chest(shape, seed)), prefix=f"s{seed}", **tags)
        for file in set(files) - set(files[names]):
            file.unlink()

    def test_a_report_beside_folders_changes_nothing(self, tmp_path):
        for name in ("a", "b"):
            self.write(tmp_path / name)
        report = dicom_header("1.2.840.10008.5.1.4.1.1.88.11")
        report.Modality = "SR"
        report.save_as(tmp_path / "dose.dcm", enforce_file_format=True)
        left_out = Counter()
        found = find_scans([str(tmp_path)], left_out=left_out)
        assert [entry.path for entry in found] == [tmp_path / "a", tmp_path / "b"]
        assert left_out == {"SR": 1}

    def test_patients_in_one_folder(self, tmp_path):
        for patient in range(3):
            uids = {"SeriesInstanceUID": f"1.2.3.{patient}", "StudyInstanceUID": f"1.2.{patient}"}
            self.write(tmp_path, patient, PatientID=f"PAT{patient}", **uids)
        found = find_scans([str(tmp_path)])
        assert len({entry.scan for entry in found}) == 3
        assert not any("PAT" in entry.scan.removeprefix(str(tmp_path)) for entry in found)
        kinds = {frozenset(file.name[:2] for file in entry.path) for entry in found}
        assert kinds == {frozenset({f"s{patient}"}) for patient in range(3)}
        for entry in found:
            assert read_volume(entry.path).voxels.shape == (6, 20, 22)
        with pytest.raises(VolumeRejected, match="3 patients") as caught:
            read_volume(tmp_path)
        assert caught.value.code == "several-patients"

    def test_patients_that_were_given_one_series_uid(self, tmp_path):
        for patient in range(2):
            self.write(tmp_path, patient, PatientID=f"PAT{patient}")
        assert len(find_scans([str(tmp_path)])) == 2

    def test_enhanced_files_in_one_folder(self, tmp_path):
        for n in range(3):
            path = tmp_path / f"{n}.dcm"
            write_enhanced(path, lps_stack(chest((6, 20, 22))), [(1.0, -1024.0)] * 6, range(6))
            header = pydicom.dcmread(path)
            header.SeriesInstanceUID = f"1.2.3.{n}"
            header.save_as(path)
        assert names(str(tmp_path)) == [str(tmp_path / f"{n}.dcm") for n in range(3)]

    def test_a_series_in_two_folders(self, tmp_path):
        self.write(tmp_path / "IM1", names=slice(0, 3))
        self.write(tmp_path / "IM2", names=slice(3, None))
        self.write(tmp_path / "IM2", 1, SeriesInstanceUID="1.2.9")
        first, second = find_scans([str(tmp_path)])
        np.testing.assert_array_equal(read_volume(first.path).voxels, chest((6, 20, 22)))
        np.testing.assert_array_equal(read_volume(second.path).voxels, chest((6, 20, 22), 1))

    def test_slices_with_a_series_uid_each(self, tmp_path):
        self.write(tmp_path)
        for n, file in enumerate(tmp_path.iterdir()):
            header = pydicom.dcmread(file)
            header.SeriesInstanceUID = f"1.2.{n}"
            header.save_as(file)
        (entry,) = find_scans([str(tmp_path)])
        with pytest.raises(VolumeRejected, match="a SeriesInstanceUID each"):
            read_volume(entry.path)

    def test_one_series_of_each_examination(self, tmp_path):
        for patient in range(2):
            who = {"PatientID": f"PAT{patient}", "StudyInstanceUID": f"1.2.{patient}"}
            for n, kernel in enumerate(("B70f", "B30f")):
                uid = f"1.3.{patient}.{n}"
                place = tmp_path / str(patient) / kernel
                self.write(place, n, ConvolutionKernel=kernel, SeriesInstanceUID=uid, **who)
        assert len(find_scans([str(tmp_path)])) == 4
        for selection, kernel in ((Selection(rule="best"), "B30f"), (Selection(kernel="sharp"), "B70f")):
            left_out = Counter()
            found = find_scans([str(tmp_path)], selection=selection, left_out=left_out)
            assert [entry.path.name for entry in found] == [kernel, kernel]
            assert left_out == {"series not chosen": 2}

    def test_only_reports(self, tmp_path):
        """The folder is a scan that cannot be read, so that its reason is told."""
        report = dicom_header("1.2.840.10008.5.1.4.1.1.88.11")
        report.Modality = "SR"
        report.save_as(tmp_path / "dose.dcm", enforce_file_format=True)
        assert names(str(tmp_path)) == [str(tmp_path)]
        with pytest.raises(VolumeRejected, match=r"no slices of a scan \(1 SR\)"):
            read_volume(tmp_path)

    def test_a_folder_that_may_not_be_opened(self, tmp_path, monkeypatch):
        """Half a series may lie in it: it is a scan that cannot be read, and so is the folder above."""
        self.write(tmp_path, names=slice(0, 3))
        self.write(tmp_path / "closed", names=slice(3, None))
        scan = os.scandir

        def refuse(path):
            if os.fspath(path).endswith("closed"):
                raise PermissionError(13, "Permission denied", path)
            return scan(path)

        monkeypatch.setattr(os, "scandir", refuse)
        assert names(str(tmp_path)) == [str(tmp_path), str(tmp_path / "closed")]
        for place in (tmp_path, tmp_path / "closed"):
            with pytest.raises(VolumeRejected, match=r"cannot be opened.*Permission denied") as caught:
                read_volume(place)
            assert caught.value.code == "unreadable"


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"sc\xe4n.nii")
    (tmp_path / name).write_bytes(b"")
    (entry,) = find_scans([str(tmp_path)])
    assert entry.scan == str(tmp_path) + "/sc\\xe4n.nii"
    assert entry.path.exists()


class TestLists:
    @pytest.mark.parametrize("name", ["series", "SeriesInstanceUID", "series_number"])
    def test_a_column_of_series(self, folder, name):
        Path("top/s.csv").write_text(f"volume,{name}\np1/one,1.2.3.4.5\nb.nii.gz,\n")
        found = find_scans(list_file="top/s.csv")
        assert [(entry.scan, entry.series) for entry in found] == [
            ("p1/one#1.2.3.4.5", "1.2.3.4.5"),
            ("b.nii.gz", None),
        ]

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
            ('volume,id\na.nii,"1\nb.nii,2\n', r"row 1 \(line 2\).* never closed"),
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
